"""Training on a component of another dictionary's error, through the ordinary loop."""

import dataclasses
import shutil

import pytest
import torch

from saelab.cache.cache_stream import CacheStream, ErrorStream
from saelab.cache.reader import open_cache
from saelab.dictionary import load_dictionary
from saelab.dictionary.data_spec import data_spec_of
from saelab.dictionary.decomposition import (
    PROBE_FILE,
    ErrorProbe,
    ErrorRows,
    decompose,
    hash_of_probe,
    save_probe,
)
from saelab.errors import ActivationError, ArtifactError, ConfigError, Stopped
from saelab.evals.core.config import CoreConfig
from saelab.features.config import FeaturesConfig
from saelab.features.pipeline import build_features
from saelab.formats.files import read_json
from saelab.training.config import TrainConfig
from saelab.training.run import train
from saelab.training.run_folder import check_folder

NAME = "topk-d64-k4-s0"


@pytest.fixture(scope="module")
def base(tiny_cache, tmp_path_factory):
    """A dictionary trained on the cache, with a probe where the suite leaves it."""
    out = tmp_path_factory.mktemp("base") / "run"
    settings = TrainConfig(
        out=out, cache=tiny_cache, d_sae=(64,), k=(4,), n_tokens=1024, batch_rows=256, device="cpu"
    )
    train(settings)
    folder = out / "dictionaries" / NAME
    generator = torch.Generator().manual_seed(0)
    weight = 0.3 * torch.eye(32) + 0.02 * torch.randn(32, 32, generator=generator)
    save_probe(folder / PROBE_FILE, ErrorProbe(weight, torch.full((32,), 0.05)), {})
    return folder


def config_of(run_config, base, component, **changes):
    return dataclasses.replace(
        run_config, k=(4,), error_component=component, error_of=base, **changes
    )


def weights(out):
    return (out / "dictionaries" / NAME / "sae_weights.safetensors").read_bytes()


@pytest.mark.parametrize("component", ["error", "linear", "nonlinear"])
def test_rows_are_the_component_and_statistics_are_theirs(base, tiny_cache, component):
    cache = open_cache(tiny_cache)
    rows = ErrorRows.load(base, None, component)
    stream = ErrorStream(CacheStream(cache, 64, 3), rows)
    plain = CacheStream(cache, 64, 3).next_batch().activations
    probe = ErrorRows.load(base, None, "linear").probe
    parts = decompose(rows.saved.dictionary, probe, plain)
    expected = {
        "error": plain - parts.reconstruction,
        "linear": parts.linear_error,
        "nonlinear": parts.nonlinear_error,
    }
    assert torch.equal(stream.next_batch().activations, expected[component])
    every = rows(cache.rows(torch.arange(cache.n_rows)).activations).double()
    found = stream.statistics
    assert found.n_rows == cache.n_rows and found.norm_ceiling == cache.norm_ceiling
    torch.testing.assert_close(found.mean, every.mean(0).float())
    variance = float((every - every.mean(0)).square().sum(1).mean())
    assert found.centred_mean_squared_norm == pytest.approx(variance, rel=1e-6)


def test_the_whole_error_needs_no_probe(base, tiny_cache, tmp_path):
    alone = tmp_path / "without_probe"
    shutil.copytree(base, alone, ignore=shutil.ignore_patterns("evals"))
    rows = ErrorRows.load(alone, None, "error")
    x = open_cache(tiny_cache).rows(torch.arange(20)).activations
    assert torch.equal(rows(x), x - rows.saved.dictionary(x))
    assert rows.provenance()["probe_hash"] is None
    with pytest.raises(ConfigError, match="the probe that tells"):
        ErrorRows.load(alone, None, "linear")
    with pytest.raises(ConfigError, match="without the probe"):
        ErrorRows(rows.saved, None, "nonlinear")


def test_statistics_of_a_large_cache_are_of_rows_spread_over_it(base, tiny_cache, monkeypatch):
    from saelab.cache import cache_stream

    cache = open_cache(tiny_cache)
    monkeypatch.setattr(cache_stream, "STATISTICS_ROWS", 10)
    rows = ErrorRows.load(base, None, "nonlinear")
    stream = ErrorStream(CacheStream(cache, 64, 3), rows)
    chosen = (torch.arange(10) * (cache.n_rows / 10)).long()
    expected = rows(cache.rows(chosen).activations).mean(0)
    torch.testing.assert_close(stream.statistics.mean, expected)


def test_a_run_on_errors_says_so_and_suites_on_activations_refuse_it(base, run_config):
    config = config_of(run_config, base, "nonlinear")
    run = train(config)
    saved = load_dictionary(config.out / "dictionaries" / NAME)
    origin = saved.made_from["error_component"]
    source = load_dictionary(base)
    assert origin["component"] == "nonlinear" and origin["dictionary"] == NAME
    assert origin["dictionary_hash"] == source.content_hash
    assert origin["probe_hash"] == hash_of_probe(ErrorRows.load(base, None, "nonlinear").probe)
    # Normalised by its own statistics: a step would diverge at the activations' scale.
    assert 0 < run["dictionaries"][NAME]["fvu"] < 1
    with pytest.raises(ArtifactError, match="trained on the nonlinear component of the error"):
        data_spec_of(saved, CoreConfig())
    with pytest.raises(
        ArtifactError, match=r"not on activations: judge it with `saelab eval dark-"
    ):
        build_features([saved.folder], FeaturesConfig())


def test_stopped_and_resumed_is_bit_identical(base, run_config, tmp_path, monkeypatch):
    whole = config_of(run_config, base, "linear", out=tmp_path / "whole")
    train(whole)
    from saelab.training import run as run_module

    save = run_module.save_checkpoint

    def save_then_stop(*args):
        save(*args)
        raise Stopped("enough")

    cut = dataclasses.replace(whole, out=tmp_path / "cut")
    monkeypatch.setattr(run_module, "save_checkpoint", save_then_stop)
    with pytest.raises(Stopped):
        train(cut)
    assert read_json(cut.out / "checkpoint" / "checkpoint.json")["step"] == 7
    monkeypatch.undo()
    train(cut, resume=True)
    assert weights(cut.out) == weights(whole.out)


def test_a_position_in_other_errors_is_refused(base, tiny_cache):
    cache = open_cache(tiny_cache)
    one, other = (
        ErrorStream(CacheStream(cache, 64, 3), ErrorRows.load(base, None, component))
        for component in ("linear", "nonlinear")
    )
    with pytest.raises(ActivationError, match="is of other errors than the nonlinear ones"):
        other.restore(one.state())
    one.next_batch()
    state = one.state()
    expected = one.next_batch().activations
    again = ErrorStream(CacheStream(cache, 64, 3), ErrorRows.load(base, None, "linear"))
    again.restore(state)
    assert torch.equal(again.next_batch().activations, expected)


def test_settings_that_do_not_fit_together_are_refused_all_at_once(run_config):
    with pytest.raises(ConfigError, match=r"without error_of.*needs a cache.*gradient_topk learns"):
        dataclasses.replace(
            run_config, error_component="linear", cache=None, methods=("topk", "gradient_topk")
        )
    with pytest.raises(ConfigError, match="error_of is given without error_component"):
        dataclasses.replace(run_config, error_of=run_config.out)


def test_runs_from_before_there_were_error_components_go_on(run_config):
    """Their record has none of the newer settings, and the hash that they had then."""
    from saelab.config import to_plain
    from saelab.formats.manifest import new_manifest, write_manifest

    newer = ("error_component", "error_of", "error_probe", "reads", "writes", "verify")
    old = {name: value for name, value in to_plain(run_config).items() if name not in newer}
    about = new_manifest("training_run", seed=0, config=old, made_from={})
    write_manifest(
        run_config.out / "run.json", about | {"status": "running", "settings_hash": "of then"}
    )
    assert check_folder(run_config, resume=True, overwrite=False)
    with pytest.raises(ConfigError, match="other settings"):
        check_folder(dataclasses.replace(run_config, batch_rows=32), resume=True, overwrite=False)


def test_what_does_not_belong_together_is_refused(base, run_config, tiny_cache, tmp_path):
    missing = config_of(run_config, base, "linear", error_probe=tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match=r"none\.safetensors, the probe.*eval dark-matter"):
        train(missing)
    narrow = tmp_path / "narrow.safetensors"
    save_probe(narrow, ErrorProbe(torch.eye(8), torch.zeros(8)), {})
    with pytest.raises(ArtifactError, match=r"the probe has width 8 and .* has width 32"):
        ErrorRows.load(base, narrow, "linear")
    another = tmp_path / "another.safetensors"
    save_probe(another, ErrorProbe(torch.eye(32), torch.zeros(32)), {"dictionary_hash": "0" * 64})
    with pytest.raises(ArtifactError, match=r"to another dictionary than .*eval dark-matter"):
        ErrorRows.load(base, another, "linear")
    cache = open_cache(tiny_cache)
    rows = ErrorRows.load(base, None, "linear")
    with pytest.raises(ActivationError, match="gradients are of activations"):
        ErrorStream(CacheStream(cache, 64, 3, with_gradients=True), rows)
    cache.hook_point = "blocks.0.hook_resid_post"
    with pytest.raises(ActivationError, match=r"give the cache of its own hook point"):
        ErrorStream(CacheStream(cache, 64, 3), rows)
