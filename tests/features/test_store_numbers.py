"""Every number of the toy's store against a dense float64 computation."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from saelab.errors import ConfigError
from saelab.features.build import write_store
from saelab.features.config import StoreOptions
from saelab.features.examples import TextKeys
from saelab.features.reader import FeatureStore
from saelab.features.schema import N_BINS, QUANTILE_LEVELS
from saelab.features.unpacking import split_tokens

HERE = Path(__file__).parent


def load(name):
    spec = importlib.util.spec_from_file_location(f"feature_store_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


brute = load("brute_force")
DEAD, ALWAYS, KINGS, RIVERS, SCRIPTS, ONCE, EMOJIS = range(7)
KING = 8
D_SAE = 24
LENGTH = 16


@pytest.fixture
def records(tiny_store):
    return [tiny_store.feature(feature, None) for feature in range(tiny_store.n_features)]


def positive(toy, feature):
    codes = toy.codes[:, feature].astype(np.float64)
    return codes[codes > 0]


def test_density_names_both_integers_and_leaves_out_rows_that_do_not_count(toy, records):
    counted = int(toy.counted.sum())
    assert counted < toy.tokens.size
    for record in records:
        assert record.n_active == len(positive(toy, record.id))
        assert record.n_tokens == counted
        assert record.density == record.n_active / counted
    assert records[ALWAYS].density == 1.0
    assert records[ALWAYS].flags == ("dense",)
    assert records[DEAD].flags == ("dead",)
    assert records[KINGS].n_active == int((toy.tokens == KING).sum())


def test_moments_quantiles_and_histogram(toy, records):
    for record in records:
        values = positive(toy, record.id)
        if not len(values):
            assert (record.max_act, record.histogram, record.quantiles) == (0.0, None, ())
            assert record.moments.mean is None
            continue
        assert record.max_act == values.max()
        assert record.moments.mean == pytest.approx(values.mean(), rel=1e-12)
        assert record.moments.standard_deviation == pytest.approx(values.std(), abs=1e-12)
        levels, found = zip(*record.quantiles, strict=True)
        assert levels == QUANTILE_LEVELS
        np.testing.assert_allclose(found, np.quantile(values, levels), rtol=1e-12)
        edges = np.linspace(0, values.max(), N_BINS + 1)
        assert np.array_equal(record.histogram.edges, edges)
        assert np.array_equal(record.histogram.counts, np.histogram(values, edges)[0])
        if len(values) > 1:
            z = (values - values.mean()) / values.std()
            assert record.moments.skewness == pytest.approx((z**3).mean(), abs=1e-10)
            assert record.moments.kurtosis == pytest.approx((z**4).mean(), rel=1e-10)


def test_top_examples_are_the_highest_contexts_once_each(toy, records):
    options = StoreOptions()
    for record in records:
        places = [(e.sequence, int(e.positions[e.anchor])) for e in record.top_examples]
        expected = brute.top_places(
            toy.codes[:, record.id], toy.tokens, options.n_top, options.same_window
        )
        # An anchor on a fragment is shown at the character's first token.
        shown = [(c, p - 1 if record.id == EMOJIS and p == 6 else p) for c, p in expected]
        if record.id == EMOJIS:
            assert [c for c, _ in places] == [c for c, _ in shown]
        else:
            pieces_start_at_tokens = [(e.sequence, e.value) for e in record.top_examples]
            values = [toy.codes[c * LENGTH + p, record.id] for c, p in expected]
            assert pieces_start_at_tokens == [
                (c, v) for (c, _), v in zip(expected, values, strict=True)
            ]
        assert all(example.value > 0 for example in record.top_examples)


def test_top_tokens_are_listed_from_the_strongest_each_once(toy, tmp_path):
    """A, B, A by strength is [A, B]: a token's strongest example decides, not its last."""
    tokens, codes = toy.tokens.copy(), toy.codes.copy()
    feature, position = 20, 3
    codes[:, feature] = 0
    for context, (token, strength) in enumerate([(KING, 9), (KING + 1, 8), (KING, 7)], start=2):
        tokens[context, position] = token
        codes[context * LENGTH + position, feature] = strength
    planted = dataclasses.replace(toy, tokens=tokens, codes=codes)
    write_store(tmp_path / "features.sqlite", planted.sources(planted.shards(tmp_path, 7)))
    with FeatureStore(tmp_path) as store:
        assert split_tokens(store.table()["top_tokens"][feature]) == (" king", " queen")


def test_contexts_too_long_for_the_file_are_refused():
    with pytest.raises(ConfigError, match=r"contexts of 65536 tokens do not fit.*65535 or less"):
        TextKeys(np.zeros((1, 65536), np.int64), StoreOptions())


def test_examples_show_every_activation_of_their_context(toy, records):
    for record in records:
        lists = [record.top_examples, record.random_positives]
        lists += [group.examples for group in record.quantile_groups]
        for example in (example for examples in lists for example in examples):
            dense = toy.codes.reshape(-1, LENGTH, D_SAE)[example.sequence, :, record.id]
            ends = [*example.positions[1:], LENGTH]
            for start, end, shown in zip(example.positions, ends, example.activations, strict=True):
                assert shown == dense[start:end].max()
            assert example.activations[example.anchor] >= example.value > 0
            ids = [id_ for piece in example.token_ids for id_ in piece]
            assert ids == toy.tokens[example.sequence].tolist()


def test_strata_are_half_open_and_their_shares_are_of_all_activations(toy, records):
    for record in records:
        values = positive(toy, record.id)
        groups = record.quantile_groups
        if not len(values):
            assert groups == ()
            continue
        maxima = brute.sequence_maxima(toy.codes[:, record.id], LENGTH)
        assert groups[0].high == values.max()
        assert groups[-1].low == 0
        for index, group in enumerate(groups):

            def inside(value, group=group, highest=index == 0):
                return group.low <= value < group.high or (highest and value == group.high)

            assert group.n_sequences == sum(inside(value) for value, _ in maxima.values())
            assert group.n_sequences > 0
            assert group.n_activations == sum(map(inside, values))
            mass = sum(value for value in values if inside(value))
            assert group.share_of_mass == pytest.approx(mass / values.sum(), rel=1e-12)
            assert all(inside(maxima[example.sequence][0]) for example in group.examples)
        assert sum(group.n_activations for group in groups) == record.n_active
        assert sum(group.share_of_activations for group in groups) == pytest.approx(1)


def test_equal_strata_where_no_maxima_are_equal(records):
    sizes = [group.n_sequences for group in records[ALWAYS].quantile_groups]
    assert sizes == [12] * 5


def test_a_feature_active_once_has_one_of_everything(records):
    once = records[ONCE]
    assert once.n_active == once.n_sequences == 1
    assert [len(once.top_examples), len(once.random_positives)] == [1, 1]
    assert [group.n_sequences for group in once.quantile_groups] == [1]
    assert once.quantiles[0][1] == once.quantiles[-1][1] == 1.5
    assert once.moments.skewness is None


def test_logit_lens_finds_the_planted_token(toy, records):
    lens = records[KINGS].logit_lens
    assert lens.top[0].token_id == KING
    assert lens.top[0].text == " king"
    unembedding = toy.lens.unembedding.double()
    unembedding = unembedding - unembedding.mean(0)
    logits = (toy.dictionary.W_dec.double() @ unembedding.T).numpy()
    for record in records:
        row = logits[record.id]
        lens = record.logit_lens
        order = np.argsort(-row)
        assert [score.token_id for score in lens.top] == order[:10].tolist()
        assert [score.token_id for score in lens.bottom] == order[::-1][:10].tolist()
        np.testing.assert_allclose([s.value for s in lens.top], row[order[:10]], rtol=1e-4)
        assert lens.histogram.counts.sum() == len(row)
        z = (row - row.mean()) / row.std()
        assert lens.moments.kurtosis == pytest.approx((z**4).mean(), rel=1e-4)
        assert lens.moments.skewness == pytest.approx((z**3).mean(), abs=1e-4)


def test_neighbours_are_the_highest_cosines_of_all_others(toy, records):
    for kind, vectors in (
        ("decoder_neighbours", toy.dictionary.W_dec),
        ("encoder_neighbours", toy.dictionary.W_enc.T),
    ):
        unit = torch.nn.functional.normalize(vectors.double(), dim=1)
        cosines = (unit @ unit.T).numpy()
        for record in records:
            found = getattr(record, kind)
            others = np.delete(np.arange(D_SAE), record.id)
            best = np.sort(cosines[record.id][others])[::-1][:10]
            np.testing.assert_allclose([n.value for n in found], best, atol=1e-6)
            assert record.id not in [n.feature for n in found]


def test_coactivation_is_over_all_features(toy, records):
    for record in records:
        both, jaccard, pearson = brute.coactivation(toy.codes, toy.counted, record.id)
        for name, values in (("coactive_jaccard", jaccard), ("coactive_pearson", pearson)):
            found = getattr(record, name)
            usable = (both > 0) & (values > 1e-12)
            usable[record.id] = False
            best = np.sort(values[usable])[::-1][:10]
            np.testing.assert_allclose([n.value for n in found], best, rtol=1e-9, atol=1e-12)
            for neighbour in found:
                assert neighbour.n_both == both[neighbour.feature]
                assert neighbour.value == pytest.approx(values[neighbour.feature], rel=1e-9)


def test_silent_contexts_are_silent_and_near_misses_are_the_neighbours(toy, records):
    by_context = toy.codes.reshape(-1, LENGTH, D_SAE)
    for record in records:
        for example in (*record.near_misses, *record.random_silent):
            assert by_context[example.sequence, :, record.id].max() == 0
            assert not example.activations.any()
        neighbours = {neighbour.feature for neighbour in record.decoder_neighbours}
        for example in record.near_misses:
            assert example.other_feature in neighbours
            other = by_context[example.sequence, :, example.other_feature]
            assert example.other_value == other.max() > 0
        n_silent = int((by_context[:, :, record.id].max(1) == 0).sum())
        assert len(record.random_silent) == min(10, n_silent)
    assert records[KINGS].decoder_neighbours[0].feature == RIVERS
    assert records[KINGS].near_misses[0].other_feature == RIVERS
    assert records[ALWAYS].near_misses == ()


def test_the_map_says_how_many_neighbours_it_keeps(toy, tiny_store):
    unit = torch.nn.functional.normalize(toy.dictionary.W_dec.double(), dim=1).numpy()
    table, described = tiny_store.table(), tiny_store.manifest["map"]
    places = np.stack([table["map_x"], table["map_y"]], axis=1)
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    kept = 0
    for one in range(D_SAE):
        others = np.flatnonzero(np.arange(D_SAE) != one)
        true = others[np.argsort(-(unit @ unit[one])[others])][:10]
        shown = others[np.argsort(distance[one][others])][:10]
        kept += len(set(true) & set(shown))
    assert described["nearest"] == 10
    assert described["kept"] == pytest.approx(kept / (10 * D_SAE))
    assert described["chance"] == pytest.approx(10 / (D_SAE - 1))
    assert described["method"].startswith("t-SNE of the ")


def test_table_agrees_with_the_records(records, tiny_store):
    table = tiny_store.table()
    for record in records:
        assert table["n_active"][record.id] == record.n_active
        assert table["max_act"][record.id] == record.max_act
        assert table["decoder_norm"][record.id] == record.decoder_norm
        assert np.isnan(table["threshold"][record.id])
        assert record.threshold is None
    assert tiny_store.flag("dead").tolist() == [record.n_active == 0 for record in records]
