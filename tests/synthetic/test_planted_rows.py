"""Planted features and rows: the law they follow, and that they are the same however made."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.config import from_plain, to_plain
from saelab.errors import ConfigError
from saelab.synthetic.config import (
    BernoulliSupportConfig,
    DensePartConfig,
    ExactSupportConfig,
    HierarchyConfig,
    PlantedConfig,
)
from saelab.synthetic.generator import PlantedSource, planted_features, planted_rows
from saelab.synthetic.presets import (
    COOCCURRENCE_PROBABILITIES,
    PRESETS,
    cooccurrence_grid,
    find_preset,
    preset_name,
    resonance_band,
    resonance_grid,
)
from saelab.synthetic.streams import BLOCK_ROWS, feature_frequencies, partner_map, root_frequencies
from saelab.synthetic.truth import chance_cosine, coherence, planted_hash

EVERYTHING = PlantedConfig(
    n_features=40,
    d_in=16,
    support=BernoulliSupportConfig(highest=0.3, lowest=0.05),
    partner_probability=0.3,
    hierarchy=HierarchyConfig(n_parents=3, children_per_parent=2, child_probability=0.4),
    dense=DensePartConfig(rank=2, scale=0.5),
    noise=0.2,
    seed=5,
)
ALL = {
    **PRESETS,
    "everything": EVERYTHING,
    "exact with partners": replace(PRESETS["imbalanced"], partner_probability=0.3),
    "exact with children": replace(
        PRESETS["imbalanced"], hierarchy=HierarchyConfig(n_parents=4, children_per_parent=3)
    ),
}
config_of = pytest.mark.parametrize("config", ALL.values(), ids=ALL)


@config_of
def test_rows_are_coefficients_times_features(config):
    bare = replace(config, dense=DensePartConfig(), noise=0.0)
    planted = planted_rows(bare, 600)
    h, v = planted.coefficients.to_dense(), planted_features(bare)
    assert planted.rows.dtype == torch.float32
    assert (planted.coefficients.value > 0).all()
    assert torch.allclose(planted.rows, h @ v, atol=1e-5)
    norm = planted.rows.norm(dim=1)
    assert torch.allclose(norm[norm > 0], torch.ones(()), atol=1e-5)
    # A row without a feature is zero, and no other is.
    assert torch.equal(norm == 0, planted.coefficients.l0() == 0)


@config_of
def test_features_are_unit_directions_of_the_seed_alone(config):
    v = planted_features(config)
    assert v.shape == (config.n_features, config.d_in)
    assert torch.allclose(v.norm(dim=1), torch.ones(()), atol=1e-6)
    assert torch.equal(v, planted_features(replace(config, n_rows=7, noise=0.5)))
    assert not torch.allclose(v, planted_features(replace(config, seed=config.seed + 1)))


@config_of
def test_frequencies_are_those_of_the_law(config):
    n_rows = 20_000
    active = planted_rows(config, n_rows).coefficients.to_dense() > 0
    expected = feature_frequencies(config)
    spread = (expected * (1 - expected) / n_rows).sqrt()
    assert ((active.double().mean(0) - expected).abs() < 5 * spread).all()


@settings(max_examples=25, deadline=None)
@given(
    start=st.integers(0, 3 * BLOCK_ROWS),
    cuts=st.lists(st.integers(1, BLOCK_ROWS + 50), min_size=1, max_size=4),
)
def test_any_cut_gives_the_same_rows(start, cuts):
    source = PlantedSource(EVERYTHING)
    whole = source.rows(sum(cuts), start=start)
    parts, place = [], start
    for length in cuts:
        parts.append(source.rows(length, start=place))
        place += length
    assert torch.equal(torch.cat([part.rows for part in parts]), whole.rows)
    dense = torch.cat([part.coefficients.to_dense() for part in parts])
    assert torch.equal(dense, whole.coefficients.to_dense())


def test_chunks_are_the_rows_and_no_rows_are_none():
    source = PlantedSource(EVERYTHING)
    chunks = [chunk.rows for chunk in source.chunks(1000, stream="x", chunk_rows=300)]
    assert [len(chunk) for chunk in chunks] == [300, 300, 300, 100]
    assert torch.equal(torch.cat(chunks), source.rows(1000, stream="x").rows)
    none = source.rows(0)
    assert none.rows.shape == (0, 16) and none.coefficients.n_rows == 0


def test_streams_are_independent():
    train = planted_rows(EVERYTHING, 300, stream="train")
    held_out = planted_rows(EVERYTHING, 300, stream="held_out")
    assert not torch.equal(train.rows, held_out.rows)
    both = torch.stack([train.rows.flatten(), held_out.rows.flatten()]).double()
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.1


def test_two_sparsities_take_turns_and_supports_are_uniform():
    config = PlantedConfig(n_features=5, d_in=4, support=ExactSupportConfig(active=(1, 2)))
    codes = planted_rows(config, 5000, start=3).coefficients
    assert codes.l0().tolist() == [2 - place % 2 for place in range(5000)]
    active = codes.to_dense() > 0
    pairs: dict[tuple[int, ...], int] = {}
    for row in active[::2]:
        key = tuple(row.nonzero().flatten().tolist())
        pairs[key] = pairs.get(key, 0) + 1
    # Each of the 10 pairs 250 times, with a standard deviation of 15.
    assert len(pairs) == 10
    assert all(175 < count < 325 for count in pairs.values())


def test_children_fire_only_with_their_parent():
    h = planted_rows(EVERYTHING, 4000).coefficients.to_dense() > 0
    children = range(EVERYTHING.n_roots, EVERYTHING.n_features)
    assert [EVERYTHING.parent_of(child) for child in children] == [0, 0, 1, 1, 2, 2]
    assert EVERYTHING.parent_of(3) is None
    for child in children:
        parent = EVERYTHING.parent_of(child)
        assert not (h[:, child] & ~h[:, parent]).any()
        assert 0.3 < float(h[h[:, parent], child].double().mean()) < 0.5


def test_an_active_feature_switches_its_partner_on():
    config = replace(PRESETS["cooccurrence"], partner_probability=0.5)
    partner = partner_map(config)
    assert sorted(partner) == list(range(256)) and (partner != range(256)).all()
    h = planted_rows(config, 20_000).coefficients.to_dense() > 0
    own, total = root_frequencies(config), feature_frequencies(config)
    for feature in (0, 1, 2):
        other = int(partner[feature])
        on = float(h[h[:, feature], other].double().mean())
        # Only a feature that the law itself drew switches its partner on.
        drawn = float(own[feature] / total[feature])
        assert abs(on - 0.5 * drawn - float(own[other]) * (1 - 0.5 * drawn)) < 0.05


def test_noise_and_dense_part_have_the_stated_size():
    quiet = PlantedConfig(
        n_features=4, d_in=12, normalise_rows=False, support=ExactSupportConfig(active=(1,))
    )
    clean = planted_rows(quiet, 8000)
    noisy = planted_rows(replace(quiet, noise=0.3), 8000)
    assert torch.equal(clean.coefficients.to_dense(), noisy.coefficients.to_dense())
    noise = noisy.rows - clean.rows
    assert float(noise.square().sum(1).mean().sqrt()) == pytest.approx(0.3, rel=0.02)
    assert torch.allclose(noise.std(0), torch.full((12,), 0.3 / math.sqrt(12)), rtol=0.1)

    dense = replace(quiet, dense=DensePartConfig(rank=3, scale=2.0))
    part = planted_rows(dense, 8000).rows - clean.rows
    assert float(part.square().sum(1).mean().sqrt()) == pytest.approx(2.0, rel=0.03)
    assert int(torch.linalg.matrix_rank(part, rtol=1e-4)) == 3


def test_golden_numbers():
    """A change here changes what every planted dictionary on disk is compared with: raise
    GENERATOR_VERSION with it."""
    v = planted_features(PRESETS["smoke"])
    planted = planted_rows(EVERYTHING, 300, stream="held_out")
    assert v[0, :3].tolist() == pytest.approx([0.28053787, 0.26119366, 0.04043357], abs=1e-6)
    row = [-0.37692124, -0.02553974, 0.07678795]
    assert planted.rows[299, :3].tolist() == pytest.approx(row, abs=1e-5)
    assert planted.coefficients.l0()[:8].tolist() == [6, 4, 5, 5, 6, 5, 5, 6]
    assert planted_hash(PRESETS["smoke"]).startswith("fef88fca079e")


def test_coherence_and_chance_against_loops():
    v = planted_features(EVERYTHING)
    n = len(v)
    largest = max(abs(float(v[i] @ v[j])) for i in range(n) for j in range(n) if i != j)
    assert coherence(v) == pytest.approx(largest, abs=1e-6)
    # In the plane the nearest of m random directions lies at an angle of π / (m + 1) on average.
    circle = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.6, 0.8]])
    assert chance_cosine(circle, 1000) > 0.9999
    assert 0.3 < chance_cosine(planted_features(PRESETS["geometric"]), 512) < 0.5


def test_presets_are_those_of_the_benchmark():
    table = {
        name: (config.n_features, config.d_in, float(feature_frequencies(config).sum()))
        for name, config in PRESETS.items()
    }
    assert table["imbalanced"] == (128, 42, pytest.approx(11.5))
    assert table["geometric"] == (256, 64, pytest.approx(6.44, abs=0.01))
    assert table["resonance"] == (1024, 64, pytest.approx(3))
    assert table["cooccurrence"][:2] == (256, 64)
    assert table["smoke"] == (64, 24, pytest.approx(1.63, abs=0.01))
    assert float(feature_frequencies(PRESETS["imbalanced"])[0]) == pytest.approx(0.0898, abs=1e-4)
    frequencies = feature_frequencies(PRESETS["geometric"])
    assert (float(frequencies[0]), float(frequencies[-1])) == (0.1, 0.002)
    coefficients = planted_rows(
        replace(PRESETS["geometric"], normalise_rows=False), 3000
    ).coefficients.value
    assert 0.5 <= float(coefficients.min()) < 0.51 and 1.49 < float(coefficients.max()) <= 1.5
    assert all(config.n_rows == 100_000 and config.normalise_rows for config in PRESETS.values())


def test_presets_are_found_and_recognised():
    for name, config in PRESETS.items():
        assert find_preset(name) is config
        assert preset_name(replace(config, seed=3, n_rows=9)) == name
    assert {preset_name(config) for config in resonance_grid()} == {"resonance"}
    assert len(resonance_grid()) == 15
    grid = cooccurrence_grid()
    assert [config.partner_probability for config in grid] == list(COOCCURRENCE_PROBABILITIES)
    assert preset_name(grid[0]) == "geometric" and preset_name(grid[-1]) == "cooccurrence"
    assert preset_name(EVERYTHING) == "custom"
    with pytest.raises(ConfigError, match="unknown preset 'smok'; did you mean 'smoke'"):
        find_preset("smok")
    low, high = resonance_band(PRESETS["resonance"])
    assert (low, high) == (pytest.approx(3 / 1024), pytest.approx(math.sqrt(3 / 1024)))
    with pytest.raises(ConfigError, match="equally frequent"):
        resonance_band(PRESETS["smoke"])


@config_of
def test_configs_survive_json(config):
    assert from_plain(PlantedConfig, to_plain(config), "x") == config
    assert planted_hash(config) != planted_hash(replace(config, seed=99))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"n_features": 1, "n_rows": 0, "seed": -1},
            "n_features is 1; it must be at least 2.*n_rows is 0;.*seed is -1;",
        ),
        ({"coefficient_low": 0.0}, "expected 0 < low <= high"),
        ({"partner_probability": 1.5}, "partner_probability is 1.5; it must be between 0 and 1"),
        ({"hierarchy": HierarchyConfig(child_probability=0.0)}, "child_probability: 0.0 is not in"),
        ({"noise": math.nan}, "noise is nan; it must be at least 0, finite"),
        ({"dense": DensePartConfig(rank=25)}, "dense.rank: 25 is not between 0 and d_in = 24"),
        ({"hierarchy": HierarchyConfig(n_parents=30)}, "60 children leave 4 of 64 features"),
        ({"hierarchy": HierarchyConfig(n_parents=-1)}, "-1 parents of 2 children"),
        ({"support": ExactSupportConfig(active=(3, 65))}, "65 is not between 1 and the 64"),
        ({"support": ExactSupportConfig(active=())}, "none given"),
        ({"support": BernoulliSupportConfig(lowest=0.2)}, "0 < lowest <= highest <= 1"),
    ],
)
def test_what_cannot_be_planted_is_refused_in_words(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(PRESETS["smoke"], **changes)


def test_settings_load_without_torch():
    import subprocess
    import sys

    program = (
        "import sys, saelab.synthetic.config, saelab.synthetic.presets; "
        "from saelab.synthetic.presets import PRESETS; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"
