from __future__ import annotations

import json
import logging
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch

from saelab.cache.config import TokenFilter
from saelab.cache.reader import open_cache
from saelab.cache.writer import write_caches
from saelab.commands.info import describe
from saelab.errors import (
    ActivationError,
    ArtifactError,
    ConfigError,
    ModelError,
    ResourceError,
    Stopped,
    TextError,
)
from tests.conftest import context_batches


def expected_rows(program, model, config, hook_point):
    """Every row that the rule keeps, found position by position."""
    tokens = torch.cat(
        list(
            context_batches(
                config.text,
                model,
                split="train",
                context_length=config.context_length,
                batch_contexts=config.batch_contexts,
            )
        )
    )
    if config.n_contexts is not None:
        tokens = tokens[: config.n_contexts]
    activations = model.capture(tokens, [hook_point])[hook_point]
    head = [
        float(activations[c, p].float().norm())
        for c in range(min(32, len(tokens)))
        for p in range(1, config.context_length)
        if int(tokens[c, p]) not in (0, 1)
    ]
    median = sorted(head)[(len(head) - 1) // 2]
    kept = []
    for c in range(len(tokens)):
        for p in range(1, config.context_length):
            massive = float(activations[c, p].float().norm()) > 10 * median
            if int(tokens[c, p]) not in (0, 1) and not massive:
                kept.append((c, p, int(tokens[c, p]), activations[c, p]))
    return kept, tokens.numel()


def test_holds_exactly_the_rows_of_the_rule(program, table_model, small_text, tmp_path):
    config = program.small_config(small_text, hook_points=program.HOOK_POINTS)
    paths = write_caches(tmp_path / "out", config, model=table_model)
    assert [path.name for path in paths] == list(program.HOOK_POINTS)
    for path in paths:
        cache = open_cache(path)
        kept, n_tokens = expected_rows(program, table_model, config, path.name)
        assert cache.n_rows == len(kept)
        assert len(cache.manifest["shards"]) > 3
        read = cache.rows(torch.arange(cache.n_rows), with_context=True)
        rows = torch.stack([row for *_, row in kept])
        assert torch.equal(read.activations, rows.float())
        assert read.sequence.tolist() == [c for c, *_ in kept]
        assert read.position.tolist() == [p for _, p, *_ in kept]
        assert read.tokens.tolist() == [t for _, _, t, _ in kept]
        assert sum(cache.excluded.values()) + cache.n_rows == n_tokens
        assert cache.manifest["n_tokens_processed"] == n_tokens
        assert min(cache.excluded[reason] for reason in ("bos", "separator", "norm")) > 0
        by_shard = [entry["excluded"] for entry in cache.manifest["shards"]]
        assert sum(sum(shard.values()) for shard in by_shard) == sum(cache.excluded.values())


def test_statistics_agree_with_float64(make_cache):
    cache = make_cache()
    rows = cache.rows(torch.arange(cache.n_rows)).activations.double()
    torch.testing.assert_close(cache.statistics.mean, rows.mean(0).float())
    assert cache.statistics.mean_squared_norm == pytest.approx(float(rows.square().sum(1).mean()))
    centred = float((rows - rows.mean(0)).square().sum(1).mean())
    assert cache.statistics.centred_mean_squared_norm == pytest.approx(centred)


def test_gradients_are_kept_beside_their_rows(make_cache):
    cache = make_cache(gradients=True)
    batch = cache.rows(torch.arange(cache.n_rows))
    assert batch.gradients is not None
    assert torch.equal(batch.gradients, (batch.activations.bfloat16() * 0.5).float())
    rms = float(batch.gradients.double().square().mean().sqrt())
    assert cache.manifest["gradient_rms"] == pytest.approx(rms)
    assert "next-token losses" in cache.manifest["gradient_of"]


def test_float32_rows_are_kept_as_they_are(program, small_text, tmp_path):
    model = program.TableModel(dtype=torch.float32)
    config = program.small_config(small_text, model_dtype="float32", cache_dtype="float32")
    cache = open_cache(write_caches(tmp_path / "out", config, model=model)[0])
    batch = cache.rows(torch.arange(20), with_context=True)
    table = model.capture(torch.arange(258)[None], cache.manifest["config"]["hook_points"])
    rows = next(iter(table.values()))[0, batch.tokens.long()]
    assert not torch.equal(rows, rows.bfloat16().float())
    assert (batch.activations - rows).abs().max() < 1
    assert not torch.equal(batch.activations, batch.activations.bfloat16().float())


def test_n_tokens_stops_in_the_middle_of_a_batch(make_cache):
    cache = make_cache(n_tokens=16 * 5 + 1)
    assert cache.manifest["n_contexts"] == 6
    assert int(cache.rows(torch.tensor([cache.n_rows - 1]), with_context=True).sequence) == 5


def test_the_rule_is_recorded_and_applied(make_cache):
    everything = TokenFilter(exclude_bos=False, exclude_separators=False, max_norm_ratio=None)
    cache = make_cache(rows=everything)
    assert cache.n_rows == cache.manifest["n_tokens_processed"]
    assert cache.token_filter == everything and cache.norm_ceiling is None
    without = make_cache("without", rows=TokenFilter(exclude_positions=(3, 4)))
    positions = set(without.rows(torch.arange(without.n_rows), with_context=True).position.tolist())
    assert positions.isdisjoint({0, 3, 4}) and without.excluded["position"] > 0


def test_calibration_contexts_are_run_once(program, table_model, small_text, tmp_path):
    config = program.small_config(small_text, n_tokens=16 * 48)
    write_caches(tmp_path / "out", config, model=table_model)
    assert table_model.calls == 12


def test_the_manifest_says_what_the_cache_is_of(make_cache, program):
    cache = make_cache()
    made_from = cache.provenance()
    assert made_from["model"] == "table" and made_from["model_hash"] == "table-hash"
    assert made_from["hook_point"] == program.HOOK_POINTS[0] == cache.hook_point
    assert made_from["norm_ceiling"] == cache.norm_ceiling
    assert made_from["cache_hash"] == cache.content_hash
    assert made_from["row_rule"] == cache.manifest["row_rule"]
    assert set(made_from) == {
        "model",
        "model_hash",
        "bos_id",
        "hook_point",
        "text",
        "text_hash",
        "context_length",
        "prepend_bos",
        "row_rule",
        "norm_ceiling",
        "model_dtype",
        "cache_hash",
    }


def test_equal_harvests_have_equal_hashes(make_cache):
    first, second = make_cache("a"), make_cache("b")
    assert first.content_hash == second.content_hash
    assert make_cache("c", n_tokens=160).content_hash != first.content_hash


def test_text_that_ends_early_is_said(program, table_model, small_text, tmp_path, caplog):
    config = program.small_config(small_text, n_tokens=10_000_000)
    with caplog.at_level(logging.WARNING):
        path = write_caches(tmp_path / "out", config, model=table_model)[0]
    manifest = open_cache(path).manifest
    assert manifest["n_tokens_requested"] == 10_000_000
    assert f"ended after {manifest['n_tokens_processed']} of the 10000000" in caplog.text


def test_bad_input_leaves_nothing(program, table_model, small_text, tmp_path):
    out = tmp_path / "out"
    cases = [
        ({"batch_contexts": 4000}, TextError, "fills"),
        ({"context_length": 1024}, ConfigError, "longer than the 512 tokens"),
        ({"model_dtype": "float32"}, ConfigError, "model_dtype"),
        ({"model": "another"}, ConfigError, "'another'"),
        ({"n_tokens": 10**15}, ResourceError, "GB are free"),
        (
            {"rows": TokenFilter(exclude_positions=tuple(range(16)))},
            ActivationError,
            "every position",
        ),
    ]
    for changes, error, match in cases:
        config = program.small_config(small_text, **changes)
        with pytest.raises(error, match=match):
            write_caches(out, config, model=table_model)
    assert not out.exists()


def test_an_unknown_hook_point_leaves_nothing(program, small_text, tmp_path):
    class Strict(program.TableModel):
        def width_at(self, hook_point):
            raise ModelError(f"no hook point {hook_point!r}")

    with pytest.raises(ModelError, match="no hook point"):
        write_caches(tmp_path / "out", program.small_config(small_text), model=Strict())
    assert not (tmp_path / "out").exists()


def test_an_existing_cache_asks_for_a_decision(program, table_model, small_text, tmp_path):
    config = program.small_config(small_text)
    (path,) = write_caches(tmp_path / "out", config, model=table_model)
    before = (path / "manifest.json").read_bytes()
    with pytest.raises(ConfigError, match=r"--resume.*--overwrite"):
        write_caches(tmp_path / "out", config, model=table_model)
    with pytest.raises(ConfigError, match="exclude each other"):
        write_caches(tmp_path / "out", config, model=table_model, resume=True, overwrite=True)
    calls = table_model.calls
    write_caches(tmp_path / "out", config, model=table_model, resume=True)
    assert table_model.calls == calls
    assert (path / "manifest.json").read_bytes() == before


def test_overwriting_replaces_and_failing_to_does_not(program, table_model, small_text, tmp_path):
    (path,) = write_caches(tmp_path / "out", program.small_config(small_text), model=table_model)
    first = open_cache(path)
    too_long = program.small_config(small_text, batch_contexts=4000)
    with pytest.raises(TextError):
        write_caches(tmp_path / "out", too_long, model=table_model, overwrite=True)
    assert open_cache(path).content_hash == first.content_hash
    shorter = program.small_config(small_text, n_tokens=16 * 8)
    write_caches(tmp_path / "out", shorter, model=table_model, overwrite=True)
    assert open_cache(path).manifest["n_contexts"] == 8
    assert len(list(path.glob("shard-*"))) == 1


def test_overwriting_spares_what_is_not_a_cache(program, table_model, small_text, tmp_path):
    path = tmp_path / "out" / program.HOOK_POINTS[0]
    path.mkdir(parents=True)
    (path / "thesis.tex").write_text("years of work")
    config = program.small_config(small_text)
    with pytest.raises(ArtifactError, match=r"thesis\.tex"):
        write_caches(tmp_path / "out", config, model=table_model, overwrite=True)
    assert (path / "thesis.tex").read_text() == "years of work"


class Interrupting:
    """Makes a model's n-th forward pass fail or be signalled."""

    def __init__(self, model, call, action):
        self.capture, self.call, self.action, self.calls = model.capture, call, action, 0

    def __call__(self, tokens, hook_points):
        self.calls += 1
        captured = self.capture(tokens, hook_points)
        if self.calls == self.call:
            self.action(captured)
        return captured


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("call", [1, 9, 12, 20])
def test_a_signal_leaves_a_folder_that_resumes(
    program, small_text, tmp_path, monkeypatch, number, call
):
    config = program.small_config(small_text, hook_points=program.HOOK_POINTS)
    whole = write_caches(tmp_path / "whole", config, model=program.TableModel())
    model = program.TableModel()
    stopping = Interrupting(model, call, lambda _: signal.raise_signal(number))
    monkeypatch.setattr(model, "capture", stopping)
    with pytest.raises(Stopped, match=r"saelab cache.*--resume"):
        write_caches(tmp_path / "out", config, model=model)
    paths = write_caches(tmp_path / "out", config, model=program.TableModel(), resume=True)
    assert_same_files(whole, paths)


def assert_same_files(whole, paths):
    for one, other in zip(whole, paths, strict=True):
        assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())
        for file in one.iterdir():
            if file.suffix == ".json":
                first, second = (json.loads((f / file.name).read_text()) for f in (one, other))
                when = {"created": "", "self_hash": ""}
                assert first | when == second | when
            else:
                assert file.read_bytes() == (other / file.name).read_bytes(), file


def test_activations_that_are_not_finite_stop_the_run(program, small_text, tmp_path, monkeypatch):
    config = program.small_config(small_text)
    model = program.TableModel()

    def spoil(captured):
        captured[program.HOOK_POINTS[0]][2, 5, 0] = float("nan")

    monkeypatch.setattr(model, "capture", Interrupting(model, 12, spoil))
    with pytest.raises(ActivationError, match="context 46 at position 5"):
        write_caches(tmp_path / "out", config, model=model)
    path = tmp_path / "out" / program.HOOK_POINTS[0]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["status"] == "writing" and len(manifest["shards"]) == 5
    whole = write_caches(tmp_path / "whole", config, model=program.TableModel())
    paths = write_caches(tmp_path / "out", config, model=program.TableModel(), resume=True)
    assert_same_files(whole, paths)


def test_a_cache_begun_with_a_multiple_of_the_median_keeps_its_ceiling(
    program, small_text, tmp_path, monkeypatch
):
    tenfold = program.small_config(small_text, rows=TokenFilter(max_norm_ratio=10.0))
    model = program.TableModel()
    stopping = Interrupting(model, 12, lambda _: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(model, "capture", stopping)
    with pytest.raises(Stopped):
        write_caches(tmp_path / "out", tenfold, model=model)
    with pytest.raises(ConfigError, match=r"rows\.max_norm_ratio: 10\.0, not 'bulk'"):
        write_caches(tmp_path / "out", program.small_config(small_text), model=model, resume=True)
    (path,) = write_caches(tmp_path / "out", tenfold, model=program.TableModel(), resume=True)
    cache = open_cache(path)
    assert cache.token_filter == tenfold.rows
    assert cache.norm_ceiling == 10 * cache.manifest["calibration"]["median_norm"]
    assert cache.excluded["norm"] > 0


def test_resuming_with_other_settings_names_them(program, small_text, tmp_path, monkeypatch):
    model = program.TableModel()
    stopping = Interrupting(model, 12, lambda _: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(model, "capture", stopping)
    with pytest.raises(Stopped):
        write_caches(tmp_path / "out", program.small_config(small_text), model=model)
    changed = program.small_config(
        small_text, context_length=32, rows=TokenFilter(max_norm_ratio=5.0)
    )
    with pytest.raises(ConfigError) as caught:
        write_caches(tmp_path / "out", changed, model=model, resume=True)
    assert "context_length: 16, not 32" in str(caught.value)
    assert "rows.max_norm_ratio: 'bulk', not 5.0" in str(caught.value)
    model.bos_id = 5
    with pytest.raises(ConfigError, match="BOS token 0, not 5"):
        write_caches(tmp_path / "out", program.small_config(small_text), model=model, resume=True)
    model.content_hash = "changed"
    with pytest.raises(ConfigError, match="model: its files changed"):
        write_caches(tmp_path / "out", program.small_config(small_text), model=model, resume=True)


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("norm_ceiling", lambda manifest: manifest.update(norm_ceiling=11.0)),
        ("contexts", lambda manifest: manifest["shards"][0].update(contexts=16)),
    ],
)
def test_an_edited_manifest_of_an_unfinished_cache_is_refused(
    program, small_text, tmp_path, monkeypatch, name, edit
):
    model = program.TableModel()
    stopping = Interrupting(model, 12, lambda _: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(model, "capture", stopping)
    config = program.small_config(small_text)
    with pytest.raises(Stopped):
        write_caches(tmp_path / "out", config, model=model)
    path = tmp_path / "out" / program.HOOK_POINTS[0] / "manifest.json"
    assert any("intact so far" in line for line in describe(path.parent))
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"manifest\.json is incomplete or was edited"):
        write_caches(tmp_path / "out", config, model=model, resume=True)
    with pytest.raises(ArtifactError, match=r"manifest\.json is incomplete or was edited"):
        describe(path.parent)


def test_resuming_checks_what_is_there(program, small_text, tmp_path, monkeypatch):
    model = program.TableModel()
    stopping = Interrupting(model, 12, lambda _: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(model, "capture", stopping)
    config = program.small_config(small_text)
    with pytest.raises(Stopped):
        write_caches(tmp_path / "out", config, model=model)
    shard = tmp_path / "out" / program.HOOK_POINTS[0] / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"shard-00001\.safetensors was changed"):
        write_caches(tmp_path / "out", config, model=model, resume=True)


def test_a_full_disk_keeps_finished_shards(program, small_text, tmp_path, monkeypatch):
    from saelab.cache import hook_folder
    from saelab.formats import files

    config = program.small_config(small_text)
    calls = 0

    def fill_up(path, tensors, metadata):
        nonlocal calls
        calls += 1
        if calls == 3:
            with files.atomic_path(path) as temporary:
                temporary.write_bytes(b"half a shard")
                raise OSError(28, "No space left on device")
        files.write_tensors(path, tensors, metadata)

    monkeypatch.setattr(hook_folder, "write_tensors", fill_up)
    with pytest.raises(ResourceError, match=r"disk full.*--resume"):
        write_caches(tmp_path / "out", config, model=program.TableModel())
    monkeypatch.undo()
    paths = write_caches(tmp_path / "out", config, model=program.TableModel(), resume=True)
    whole = write_caches(tmp_path / "whole", config, model=program.TableModel())
    assert_same_files(whole, paths)


@pytest.mark.parametrize("finished", [False, True])
def test_resuming_with_a_changed_text_is_refused(
    program, small_text, tmp_path, monkeypatch, finished
):
    text = shutil.copytree(small_text, tmp_path / "text")
    config = program.small_config(text)
    model = program.TableModel()
    if not finished:
        stopping = Interrupting(model, 12, lambda _: signal.raise_signal(signal.SIGTERM))
        monkeypatch.setattr(model, "capture", stopping)
        with pytest.raises(Stopped):
            write_caches(tmp_path / "out", config, model=model)
    else:
        write_caches(tmp_path / "out", config, model=model)
    (text / "00.txt").write_text("another document altogether")
    with pytest.raises(
        ConfigError, match=r"text: the content of .*text changed since.*--overwrite"
    ):
        write_caches(tmp_path / "out", config, model=program.TableModel(), resume=True)


def test_space_is_checked_before_every_shard_of_text_of_unknown_length(
    program, small_text, tmp_path, monkeypatch
):
    config = program.small_config(small_text, gradients=True, hook_points=program.HOOK_POINTS)
    assert config.n_tokens is None
    # 8 contexts of 16 tokens: 8 bfloat16 values and as many gradients, and 16 bytes of origin.
    shard = 2 * 8 * 16 * (8 * 2 * 2 + 16)
    out = tmp_path / "out"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=shard))
    with pytest.raises(ResourceError, match="the first shard of a cache, 128 tokens needs"):
        write_caches(out, config, model=program.TableModel())
    assert not out.exists()

    def shrinking(path):
        shards = len(list(out.glob("*/shard-*")))
        return SimpleNamespace(free=10 * shard if shards < 6 else shard)

    monkeypatch.setattr(shutil, "disk_usage", shrinking)
    with pytest.raises(ResourceError, match=r"the next shard .*--resume.* GB are free"):
        write_caches(out, config, model=program.TableModel())
    assert len(list(out.glob("*/shard-*"))) == 6
    monkeypatch.undo()
    paths = write_caches(out, config, model=program.TableModel(), resume=True)
    assert_same_files(write_caches(tmp_path / "whole", config, model=program.TableModel()), paths)


def test_a_cache_smaller_than_a_shard_asks_for_its_own_space_only(
    program, table_model, small_text, tmp_path, monkeypatch
):
    config = program.small_config(small_text, n_tokens=16 * 4, contexts_per_shard=1000)
    needed = 16 * 4 * (8 * 2 + 16)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * needed))
    (path,) = write_caches(tmp_path / "out", config, model=table_model)
    assert open_cache(path).manifest["n_contexts"] == 4
