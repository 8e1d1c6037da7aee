"""A transcoder from harvest to saved dictionary: what is read and written side by side."""

import dataclasses

import pytest
import torch

from saelab.cache.aligned import AlignedCaches, open_caches
from saelab.cache.cache_stream import CacheStream
from saelab.cache.reader import open_cache
from saelab.cache.writer import write_caches
from saelab.dictionary import Site, load_dictionary
from saelab.errors import ActivationError, ConfigError
from saelab.formats.files import read_json
from saelab.stats.metrics import fvu
from saelab.training.config import OptimizerConfig, TrainConfig
from saelab.training.run import train

READ, WRITTEN = "blocks.1.mlp.hook_post", "blocks.1.hook_mlp_out"
SITE = Site((READ,), (WRITTEN,))


@pytest.fixture(scope="module")
def mlp_caches(tiny_harvest, tmp_path_factory):
    """Caches of an MLP's hidden layer and of its output, from one harvest."""
    folder = tmp_path_factory.mktemp("mlp") / "caches"
    harvest = dataclasses.replace(tiny_harvest, hook_points=(READ, WRITTEN), gradients=False)
    write_caches(folder, harvest)
    return folder


def config_of(folder, out, **changes):
    config = TrainConfig(
        out=out,
        cache=folder,
        reads=SITE.reads,
        writes=SITE.writes,
        d_sae=(96,),
        k=(8,),
        n_tokens=256 * 60,
        batch_rows=256,
        device="cpu",
        checkpoint_every_steps=25,
        optimizer=OptimizerConfig(learning_rate=5e-3),
    )
    return dataclasses.replace(config, **changes)


def test_a_transcoder_is_harvested_trained_saved_and_loaded(mlp_caches, tmp_path):
    run = train(config_of(mlp_caches, tmp_path / "run", methods=("topk", "jumprelu")))
    read, written = open_cache(mlp_caches, READ), open_cache(mlp_caches, WRITTEN)
    every = torch.arange(read.n_rows)
    x, targets = read.rows(every).activations, written.rows(every).activations
    assert x.shape[1] == 64 and targets.shape[1] == 32
    for name, figures in run["dictionaries"].items():
        saved = load_dictionary(tmp_path / "run" / "dictionaries" / name)
        assert saved.site == SITE
        assert fvu(targets, saved.dictionary(x)) < 0.7 and figures["fvu"] < 0.7
        assert saved.made_from["cache_hashes"] == {
            READ: read.content_hash,
            WRITTEN: written.content_hash,
        }
    folder = tmp_path / "run" / "dictionaries" / "jumprelu-d96-k8-s0"
    assert read_json(folder / "cfg.json")["architecture"] == "jumprelu_transcoder"


def test_a_crosscoder_reads_and_writes_both(mlp_caches, tmp_path):
    both = (READ, WRITTEN)
    run = train(config_of(mlp_caches, tmp_path / "run", reads=both, writes=both))
    ((name, figures),) = run["dictionaries"].items()
    saved = load_dictionary(tmp_path / "run" / "dictionaries" / name)
    assert (saved.dictionary.d_in, saved.dictionary.d_out) == (96, 96)
    assert saved.site == Site(both, both) and figures["fvu"] < 0.9


def test_a_transcoder_without_a_cache(tiny_harvest, tmp_path):
    stream = dataclasses.replace(tiny_harvest, gradients=False)
    run = train(config_of(None, tmp_path / "run", stream=stream, stream_pool_rows=512))
    ((name, figures),) = run["dictionaries"].items()
    saved = load_dictionary(tmp_path / "run" / "dictionaries" / name)
    assert saved.site == SITE and figures["fvu"] < 0.9


def test_the_stream_hands_out_the_same_rows_of_both(mlp_caches):
    aligned = open_caches(mlp_caches, SITE)
    assert isinstance(aligned, AlignedCaches)
    batch = CacheStream(aligned, 32, 7).next_batch()
    alone = CacheStream(open_cache(mlp_caches, READ), 32, 7).next_batch()
    assert torch.equal(batch.activations, alone.activations)
    other = CacheStream(open_cache(mlp_caches, WRITTEN), 32, 7).next_batch()
    assert batch.targets is not None and torch.equal(batch.targets, other.activations)
    both = AlignedCaches(
        {name: open_cache(mlp_caches, name) for name in (READ, WRITTEN)},
        Site((READ, WRITTEN), (READ, WRITTEN)),
    )
    joined = CacheStream(both, 32, 7).next_batch()
    assert torch.equal(joined.activations, torch.cat([batch.activations, batch.targets], dim=1))
    assert joined.targets is None


def test_caches_of_other_rows_are_refused(mlp_caches, tiny_harvest, tmp_path):
    fewer = dataclasses.replace(
        tiny_harvest, hook_points=(WRITTEN,), n_tokens=2048, gradients=False
    )
    write_caches(tmp_path / "fewer", fewer)
    shifted = dataclasses.replace(
        tiny_harvest,
        hook_points=(WRITTEN,),
        gradients=False,
        text=dataclasses.replace(tiny_harvest.text, seed=tiny_harvest.text.seed + 1),
    )
    write_caches(tmp_path / "shifted", shifted)
    read = open_cache(mlp_caches, READ)
    for name in ("fewer", "shifted"):
        caches = {READ: read, WRITTEN: open_cache(tmp_path / name)}
        with pytest.raises(ActivationError, match="not side by side; harvest both"):
            AlignedCaches(caches, SITE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"writes": ()}, "given together"),
        ({"hook_point": READ}, "hook_point is given beside reads"),
        ({"methods": ("bias_adaptation",)}, "takes off its input it adds to its output"),
        ({"reads": (READ, READ)}, "names a hook point twice"),
    ],
)
def test_a_site_that_cannot_be_trained_is_refused(mlp_caches, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        config_of(mlp_caches, tmp_path, **changes)
