"""Properties that hold for any codes: nothing lost, nothing invented, no dependence on batching."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.dictionary import Dictionary
from saelab.errors import ConfigError
from saelab.features import build, coactivation
from saelab.features.build import StoreSources, write_store
from saelab.features.config import FeaturesConfig, StoreOptions
from saelab.features.examples import RangeExamples, TextKeys, strata_of
from saelab.features.reader import FeatureStore
from saelab.features.shards import Shards, ShardText, write_shard
from saelab.features.statistics import histogram_of, quantiles_of
from saelab.features.token_text import Vocabulary

LENGTH = 6
ACTIVATIONS = st.sampled_from([0.0, 0.0, 0.0, 0.125, 0.25, 0.25, 1.0, 3.5])


def shards_of(folder, codes, tokens, counted, contexts):
    paths = []
    for first in range(0, len(tokens), contexts):
        inside = slice(first, first + contexts)
        part = codes[first * LENGTH : (first + contexts) * LENGTH]
        row, latent = part.nonzero()
        paths.append(folder / f"shard-{first}.safetensors")
        text = ShardText(first, tokens[inside], counted[inside], {})
        write_shard(paths[-1], text, row, latent, part[row, latent], codes.shape[1], "b")
    return Shards(paths, codes.shape[1])


def store_of(folder, codes, tokens, contexts=3, decoder=None, options=None):
    """A store of dense codes; positions 0 are no rows."""
    counted = np.ones(tokens.shape, bool)
    counted[:, 0] = False
    codes = np.where(counted.reshape(-1, 1), codes, 0).astype(np.float32)
    d_sae = codes.shape[1]
    if decoder is None:
        decoder = torch.randn(d_sae, 4, generator=torch.Generator().manual_seed(0))
    dictionary = Dictionary(
        "topk",
        W_enc=decoder.T.clone(),
        W_dec=decoder,
        b_dec=torch.zeros(4),
        b_enc=torch.zeros(d_sae),
        k=1,
    )
    sources = StoreSources(
        shards=shards_of(folder, codes, tokens, counted, contexts),
        dictionary=dictionary,
        vocabulary=Vocabulary([bytes([97 + i]) for i in range(8)]),
        lens=None,
        no_lens_because="there is no model",
        dictionary_facts={},
        made_from={"weights_sha256": "w"},
        options=options or StoreOptions(n_top=3, n_per_stratum=2, n_random=3, n_near_misses=3),
    )
    write_store(folder / "features.sqlite", sources)
    return FeatureStore(folder / "features.sqlite"), codes


def contents(store):
    """Everything a store says of its features, by feature, as comparable values."""

    def plain(value):
        if hasattr(value, "__dataclass_fields__"):
            return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return value.tolist() if isinstance(value, np.ndarray) else value

    return [plain(store.feature(feature, None)) for feature in range(store.n_features)]


@st.composite
def toys(draw):
    contexts, d_sae = draw(st.integers(1, 7)), draw(st.integers(2, 5))
    size = contexts * LENGTH * d_sae
    codes = draw(st.lists(ACTIVATIONS, min_size=size, max_size=size))
    tokens = draw(
        st.lists(st.integers(0, 7), min_size=contexts * LENGTH, max_size=contexts * LENGTH)
    )
    return np.array(codes).reshape(-1, d_sae), np.array(tokens).reshape(contexts, LENGTH)


@settings(max_examples=25, deadline=None)
@given(toys())
def test_no_zeros_no_losses_and_disjoint_strata(toy):
    codes, tokens = toy
    with tempfile.TemporaryDirectory() as folder:
        store, codes = store_of(Path(folder), codes, tokens)
        with store:
            for feature in range(store.n_features):
                record = store.feature(feature)
                values = codes[:, feature][codes[:, feature] > 0]
                groups = record.quantile_groups
                assert record.n_active == len(values)
                examples = [*record.top_examples, *record.random_positives]
                examples += [example for group in groups for example in group.examples]
                assert all(example.value > 0 for example in examples)
                drawn = [e.sequence for group in groups for e in group.examples]
                assert len(set(drawn)) == len(drawn)
                assert sum(group.n_activations for group in groups) == record.n_active
                assert sum(group.n_sequences for group in groups) == record.n_sequences
                edges = [edge for group in groups[::-1] for edge in (group.low, group.high)]
                assert edges[1:-1:2] == edges[2::2]
                assert edges == sorted(edges)
                tops = [example.sequence for example in record.top_examples]
                assert len(set(tops)) == len(tops)
                heights = [example.value for example in record.top_examples]
                assert heights == sorted(heights, reverse=True)
                if len(values):
                    assert record.histogram.counts.sum() == record.n_active
                for example in (*record.near_misses, *record.random_silent):
                    assert example.value == 0


def random_toy(seed=0, contexts=11, d_sae=6):
    rng = np.random.default_rng(seed)
    codes = np.where(rng.random((contexts * LENGTH, d_sae)) < 0.3, rng.random((1, d_sae)) + 0.1, 0)
    codes *= rng.random(codes.shape) + 0.5
    codes[:, 0] = 0
    codes[7, 0] = 1.0
    return codes, rng.integers(0, 8, (contexts, LENGTH))


@pytest.mark.parametrize("contexts", [1, 4, 100])
def test_nothing_depends_on_shards_ranges_or_parts(tmp_path, monkeypatch, contexts):
    codes, tokens = random_toy()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with store_of(tmp_path / "a", codes, tokens, contexts=3)[0] as store:
        expected, columns = contents(store), dict(store.table())
    monkeypatch.setattr(build, "RANGE_PAIRS", 10)
    monkeypatch.setattr(build, "RANGE_LATENTS", 2)
    monkeypatch.setattr(build, "PART_PAIRS", 20)
    monkeypatch.setattr(coactivation, "GATHERED_BLOCKS", 3)
    with store_of(tmp_path / "b", codes, tokens, contexts=contexts)[0] as store:
        found = contents(store)
        for name, values in store.table().items():
            if values.dtype == np.float64:
                np.testing.assert_allclose(values, columns[name], rtol=1e-12)
            else:
                assert values.tolist() == columns[name].tolist()
    for ours, theirs in zip(found, expected, strict=True):
        for key in ("coactive_pearson", "coactive_jaccard"):
            pairs = zip(ours.pop(key), theirs.pop(key), strict=True)
            for one, other in pairs:
                assert one["value"] == pytest.approx(other["value"], rel=1e-12)
        assert str(ours) == str(theirs)


def test_renumbering_features_renumbers_the_store_and_nothing_else(tmp_path):
    codes, tokens = random_toy(seed=1)
    decoder = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    order = [3, 0, 5, 1, 4, 2]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with store_of(tmp_path / "a", codes, tokens, decoder=decoder)[0] as store:
        before = contents(store)
    with store_of(tmp_path / "b", codes[:, order], tokens, decoder=decoder[order])[0] as store:
        after = contents(store)
    for new, old in enumerate(order):
        for name in ("n_active", "quantiles", "top_examples", "quantile_groups"):
            assert str(after[new][name]) == str(before[old][name])
        assert str(after[new]["random_positives"]) == str(before[old]["random_positives"])
        assert str(after[new]["random_silent"]) == str(before[old]["random_silent"])
        ours = [(order[n["feature"]], n["value"]) for n in after[new]["decoder_neighbours"]]
        theirs = [(n["feature"], n["value"]) for n in before[old]["decoder_neighbours"]]
        assert [f for f, _ in ours] == [f for f, _ in theirs]


def test_a_store_of_dead_features_only_is_readable(tmp_path):
    codes, tokens = random_toy()
    with store_of(tmp_path, np.zeros_like(codes), tokens)[0] as store:
        assert store.flag("dead").all()
        record = store.feature(0)
        assert record.top_examples == record.random_positives == record.near_misses == ()
        assert len(record.random_silent) == 10
        assert record.coactive_jaccard == ()
        assert record.logit_lens is None
        assert store.manifest["logit_lens"] == "there is no model"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, 4.0]), min_size=1, max_size=40))
def test_strata_never_part_equal_maxima_and_leave_none_out(values):
    rising = np.sort(np.array(values, np.float32))
    low, high, sizes = strata_of(rising, 5)
    assert sizes.sum() == len(rising)
    assert (sizes > 0).all()
    assert low[-1] == 0
    assert high[0] == rising[-1]
    for index, (bottom, top, size) in enumerate(zip(low, high, sizes, strict=True)):
        closed = index == 0
        assert size == sum(bottom <= v < top or (closed and v == top) for v in rising)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(2**-20, 2**20, width=32), min_size=1, max_size=60).map(
        lambda values: np.sort(np.array(values, np.float32))
    )
)
def test_quantiles_and_histograms_are_numpys(rising):
    exact = rising.astype(np.float64)
    levels = [0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99]
    np.testing.assert_allclose(quantiles_of(rising), np.quantile(exact, levels), rtol=1e-12)
    edges = np.linspace(0, exact[-1], 51)
    assert np.array_equal(histogram_of(rising), np.histogram(exact, edges)[0])


def test_random_positives_are_uniform_over_active_tokens(tmp_path):
    """Over many seeds each active token is drawn as often as any other."""
    tokens = np.arange(2 * LENGTH).reshape(2, LENGTH) % 8
    codes = np.zeros((2 * LENGTH, 2), np.float32)
    # Five weak tokens in one context, one strong one in the other.
    codes[1:6, 0], codes[7, 0] = 0.1, 100.0
    counted = np.ones(tokens.shape, bool)
    pairs = shards_of(tmp_path, codes, tokens, counted, 2).pairs(0, 2)
    hits = np.zeros(len(codes))
    n_seeds = 400
    for seed in range(n_seeds):
        options = StoreOptions(n_random=1, seed=seed)
        chosen = RangeExamples(pairs, TextKeys(tokens, options), options).packed(0)
        last = chosen["sequence"][-1] * LENGTH + chosen["anchor"][-1]
        hits[int(last)] += 1
    share = hits[codes[:, 0] > 0] / n_seeds
    # Six tokens; five standard deviations.
    np.testing.assert_allclose(share, 1 / 6, atol=5 * np.sqrt(1 / 6 * 5 / 6 / n_seeds))


def test_codes_that_are_not_finite_are_refused(tmp_path):
    codes, tokens = random_toy()
    codes[8, 1] = np.nan
    with pytest.raises(ConfigError, match="contexts 0 to 2 hold a NaN or an infinity"):
        store_of(tmp_path, codes, tokens)
    assert list(tmp_path.glob("features.sqlite*")) == []


def test_a_build_that_fails_leaves_the_old_store(tmp_path, monkeypatch):
    codes, tokens = random_toy()
    with store_of(tmp_path, codes, tokens)[0] as store:
        store_id = store.store_id

    def fail(*arguments):
        raise RuntimeError("half way")

    monkeypatch.setattr(build, "coactivation_arrays", fail)
    with pytest.raises(RuntimeError, match="half way"):
        store_of(tmp_path, codes, tokens, options=StoreOptions(n_top=1))
    assert [path.name for path in tmp_path.glob("features.sqlite*")] == ["features.sqlite"]
    with FeatureStore(tmp_path) as store:
        assert store.store_id == store_id


def test_store_id_depends_on_weights_tokens_and_options_alone(tmp_path):
    codes, tokens = random_toy()
    options = StoreOptions(n_top=3, n_per_stratum=2, n_random=3, n_near_misses=3)
    ids = []
    variants = [(tokens, options), (tokens, options), (tokens[::-1], options)]
    variants.append((tokens, StoreOptions(seed=1)))
    for index, (text, chosen) in enumerate(variants):
        folder = tmp_path / str(index)
        folder.mkdir()
        with store_of(folder, codes, text, contexts=1 + index, options=chosen)[0] as store:
            ids.append(store.store_id)
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


def test_settings_that_do_not_fit_are_all_named():
    with pytest.raises(ConfigError, match=r"n_top: 0 is below 1.*rare_below: 0.5"):
        StoreOptions(n_top=0, rare_below=0.5)
    with pytest.raises(ConfigError, match=r"n_tokens: 0 is below 1.*batch_contexts: -1"):
        FeaturesConfig(n_tokens=0, batch_contexts=-1)
