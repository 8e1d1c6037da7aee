from __future__ import annotations

import logging
from collections import Counter

import pytest
import torch

from saelab.cache.aligned import open_caches
from saelab.cache.config import TokenFilter
from saelab.cache.model_stream import ModelStream
from saelab.cache.reader import open_cache
from saelab.cache.writer import write_caches
from saelab.dictionary.site import Site
from saelab.errors import ActivationError, ConfigError
from saelab.text.contexts import describe_text


@pytest.fixture
def make_stream(program, table_model, small_text):
    def make(batch_rows=32, seed=0, pool_rows=200, model=table_model, site=None, **changes):
        config = program.small_config(small_text, **changes)
        return ModelStream(model, config, batch_rows, seed, pool_rows, site)

    return make


def rows_of(batch):
    return [tuple(row) for row in batch.activations.tolist()]


def test_hands_out_the_same_rows_as_a_cache(
    make_stream, program, table_model, small_text, tmp_path
):
    config = program.small_config(small_text)
    cache = open_cache(write_caches(tmp_path / "out", config, model=table_model)[0])
    stream = make_stream()
    drawn = Counter()
    for _ in range(5 * cache.n_rows // 32):
        drawn.update(rows_of(stream.next_batch()))
    cached = Counter(rows_of(cache.rows(torch.arange(cache.n_rows))))
    assert set(drawn) == set(cached)
    assert stream.statistics.norm_ceiling == cache.norm_ceiling
    without_hash = {**cache.provenance(), "cache_hash": None}
    assert stream.provenance() == without_hash


def test_no_row_is_lost_or_doubled(make_stream, small_text):
    # What left the pool and what is in it are the rows harvested, each as often as harvested.
    stream = make_stream()
    drawn = Counter()
    for _ in range(10):
        drawn.update(rows_of(stream.next_batch()))
    state = stream.state()
    held = torch.cat([state["pool_activations"], state["pending_activations"]])
    drawn.update(tuple(row) for row in held.float().tolist())
    in_order = make_stream(batch_rows=1, pool_rows=1)
    harvested = Counter()
    for _ in range(sum(drawn.values())):
        harvested.update(rows_of(in_order.next_batch()))
    assert drawn == harvested


def test_the_pool_shuffles(make_stream, program):
    in_order = make_stream(batch_rows=1, pool_rows=1)
    order = [rows_of(in_order.next_batch())[0] for _ in range(200)]
    batch = rows_of(make_stream(batch_rows=100).next_batch())
    places = [order.index(row) for row in batch]
    assert places != sorted(places)
    assert max(places) > 150 and min(places) < 50


def test_statistics_are_those_of_the_first_pool(make_stream):
    stream = make_stream()
    pool = stream.state()["pool_activations"].double()
    statistics = stream.statistics
    assert statistics.n_rows == 200
    torch.testing.assert_close(statistics.mean, pool.mean(0).float())
    centred = float((pool - pool.mean(0)).square().sum(1).mean())
    assert statistics.centred_mean_squared_norm == pytest.approx(centred)


def test_gradients_stay_with_their_rows(make_stream):
    stream = make_stream(gradients=True)
    for _ in range(5):
        batch = stream.next_batch()
        assert torch.equal(batch.gradients, (batch.activations.bfloat16() * 0.5).float())


FIRST, SECOND = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
SITES = {
    "transcoder": Site((FIRST,), (SECOND,)),
    "crosscoder": Site((FIRST, SECOND), (FIRST, SECOND)),
    "several to one": Site((SECOND, FIRST), (SECOND,)),
}


def sides_of(batch):
    sides = (batch.activations, batch.targets, batch.gradients)
    return [tuple(row) for row in torch.cat([s for s in sides if s is not None], dim=1).tolist()]


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("site", SITES.values(), ids=SITES)
def test_several_hook_points_have_the_rows_that_their_caches_have(
    make_stream, program, table_model, small_text, tmp_path, site, gradients
):
    both = {"hook_points": program.HOOK_POINTS, "gradients": gradients}
    # A row that is massive at the second hook point alone is left out at both.
    table_model._tables[SECOND][2 + ord("q")] *= 1000
    config = program.small_config(small_text, **both)
    caches = write_caches(tmp_path / "out", config, model=table_model)
    aligned = open_caches(caches[0].parent, site)
    stream = make_stream(batch_rows=64, pool_rows=400, site=site, **both)
    drawn = Counter()
    for _ in range(5 * aligned.n_rows // 64):
        drawn.update(sides_of(stream.next_batch()))
    assert set(drawn) == set(sides_of(aligned.rows(torch.arange(aligned.n_rows))))
    assert stream.d_in == aligned.d_in
    assert (stream.target_statistics is None) == (aligned.target_statistics is None)
    hashes = dict.fromkeys(("cache_hash", "cache_hashes"))
    assert {"cache_hashes": None, **stream.provenance()} == {**aligned.provenance(), **hashes}


@pytest.mark.parametrize("site", SITES.values(), ids=SITES)
def test_statistics_of_several_hook_points_are_those_of_the_first_pool(make_stream, program, site):
    stream = make_stream(site=site, hook_points=program.HOOK_POINTS)
    state = stream.state()
    sides = {"pool_activations": (stream.statistics, site.reads)}
    if stream.target_statistics is not None:
        sides["pool_targets"] = (stream.target_statistics, site.writes)
    for name, (statistics, hook_points) in sides.items():
        pool = state[name].double()
        torch.testing.assert_close(statistics.mean, pool.mean(0).float())
        centred = float((pool - pool.mean(0)).square().sum(1).mean())
        assert statistics.centred_mean_squared_norm == pytest.approx(centred)
        assert len(statistics.by_hook_point) == (len(hook_points) if len(hook_points) > 1 else 0)


@pytest.mark.parametrize("steps", [0, 1, 7, 60])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradients": True},
        {"site": SITES["transcoder"], "hook_points": (FIRST, SECOND), "gradients": True},
    ],
    ids=["plain", "gradients", "transcoder"],
)
def test_a_restored_stream_goes_on_exactly(make_stream, steps, changes):
    stream = make_stream(**changes)
    for _ in range(steps):
        stream.next_batch()
    state = stream.state()
    following = [stream.next_batch().activations for _ in range(60)]
    fresh = make_stream(seed=99, **changes)
    fresh.restore(state)
    assert torch.equal(fresh.statistics.mean, stream.statistics.mean)
    for one, other in ((fresh, stream), (stream, fresh)):
        assert (one.target_statistics is None) == ("site" not in changes)
        if one.target_statistics is not None:
            assert torch.equal(one.target_statistics.mean, other.target_statistics.mean)
    assert all(torch.equal(fresh.next_batch().activations, rows) for rows in following)
    first, second = stream.state(), fresh.state()
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else None
        assert same or value == second[name], name


def test_a_state_is_not_changed_by_going_on(make_stream):
    stream = make_stream()
    state = stream.state()
    pool = state["pool_activations"].clone()
    stream.next_batch()
    assert torch.equal(state["pool_activations"], pool)


def test_the_text_begins_again(make_stream, caplog):
    stream = make_stream(n_tokens=16 * 8, batch_rows=32, pool_rows=64)
    with caplog.at_level(logging.INFO):
        for _ in range(10):
            stream.next_batch()
    assert "its pass 3 begins" in caplog.text


def test_settings_that_do_not_fit_are_all_named(make_stream, program):
    with pytest.raises(ConfigError) as caught:
        make_stream(batch_rows=300, hook_points=program.HOOK_POINTS)
    assert len(caught.value.problems) == 2


def test_another_streams_state_is_refused(make_stream):
    state = make_stream().state()
    with pytest.raises(ActivationError, match="resume with the settings"):
        make_stream(rows=TokenFilter(max_norm_ratio=3.0)).restore(state)
    with pytest.raises(ActivationError, match="resume with the settings"):
        make_stream(pool_rows=201).restore(state)
    both = {"hook_points": (FIRST, SECOND)}
    there, back = SITES["transcoder"], Site((SECOND,), (FIRST,))
    with pytest.raises(ActivationError, match="resume with the settings"):
        make_stream(site=back, **both).restore(make_stream(site=there, **both).state())
    with pytest.raises(ActivationError, match="resume with the settings"):
        make_stream().restore({"stream": "cache"})


def own_text(folder, ending=""):
    folder.mkdir(exist_ok=True)
    for index in range(8):
        (folder / f"{index}.txt").write_text(f"{index} the quick brown fox ~ jumps {ending}" * 9)
    return folder


def test_a_text_that_changed_is_refused(program, table_model, tmp_path):
    def stream():
        return ModelStream(
            table_model, program.small_config(own_text(tmp_path / "text")), 32, 0, 100
        )

    state = stream().state()
    stream().restore(state)
    config = program.small_config(own_text(tmp_path / "text", "high "))
    changed = ModelStream(table_model, config, 32, 0, 100)
    with pytest.raises(ActivationError, match=r"text .*text changed since the data position"):
        changed.restore(state)


def test_provenance_names_the_text_and_the_bos_token(make_stream, program, small_text):
    config = program.small_config(small_text)
    made_from = make_stream().provenance()
    assert made_from["text_hash"] == describe_text(config.text)["content_hash"]
    assert made_from["prepend_bos"] is True

    class WithoutBos(program.TableModel):
        def __init__(self):
            super().__init__()
            self.bos_id = None

    assert make_stream(model=WithoutBos()).provenance()["prepend_bos"] is False


def test_excluded_positions_are_counted_and_go_on_after_a_restore(make_stream, table_model):
    stream = make_stream()
    assert stream.excluded == {}
    for _ in range(20):
        stream.next_batch()
    state = stream.state()
    held = len(state["pool_activations"]) + len(state["pending_activations"])
    rows = 20 * 32 + held
    assert sum(stream.excluded.values()) + rows == table_model.calls * 4 * 16
    assert min(stream.excluded[reason] for reason in ("bos", "separator", "norm")) > 0
    fresh = make_stream()
    fresh.restore(state)
    assert fresh.excluded == stream.excluded
    for _ in range(20):
        stream.next_batch(), fresh.next_batch()
    assert fresh.excluded == stream.excluded


def test_a_whole_pass_excludes_what_a_cache_excludes(make_stream, make_cache):
    cache = make_cache()
    stream = make_stream(batch_rows=1, pool_rows=1)
    for _ in range(cache.n_rows - 1):
        stream.next_batch()
    assert stream.excluded == cache.excluded
