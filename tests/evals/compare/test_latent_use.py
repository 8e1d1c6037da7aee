"""Underused latents, effective number and Zipf's law, against literal slow versions."""

from __future__ import annotations

import math

import pyarrow
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from saelab.errors import ArtifactError
from saelab.evals.compare.numbers import (
    density_curve,
    effective_latents,
    latent_use,
    read_density,
    underused_fraction,
)


def slow_underused(density: list[float], l0: float) -> float:
    """The definition word by word."""
    weights = [1 / (rank + 10) for rank in range(1, len(density) + 1)]
    below = 0
    for weight, value in zip(weights, sorted(density, reverse=True), strict=True):
        target = min(0.5, l0 * weight / sum(weights))
        below += value < 0.1 * target
    return below / len(density)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0.1, 40))
def test_underused_is_its_definition(density, l0):
    found = underused_fraction(torch.tensor(density, dtype=torch.float64), l0)
    assert found == pytest.approx(slow_underused(density, l0))


def test_dead_latents_are_underused_and_a_law_abiding_dictionary_has_none():
    law = torch.tensor([1 / (rank + 10) for rank in range(1, 101)], dtype=torch.float64)
    density = 8 * law / law.sum()
    assert underused_fraction(density, 8.0) == 0
    density[60:] = 0
    assert underused_fraction(density, 8.0) == pytest.approx(0.4)


def test_effective_latents_counts_equally_frequent_ones():
    density = torch.zeros(50, dtype=torch.float64)
    assert effective_latents(density) is None
    density[:7] = 0.3
    assert effective_latents(density) == pytest.approx(7)
    density[7] = 1e-12
    assert effective_latents(density) == pytest.approx(7, abs=1e-6)


def test_a_zipf_dictionary_has_its_exponent_and_no_tail_gap():
    ranks = torch.arange(1, 401, dtype=torch.float64)
    density = 0.9 * (ranks + 5) ** -1.25
    found = latent_use(density[torch.randperm(400)], float(density.sum()))
    assert found["zipf_exponent"] == pytest.approx(1.25)
    assert found["zipf_offset"] == 5
    assert found["zipf_r_squared"] == pytest.approx(1)
    assert found["zipf_tail_gap"] == pytest.approx(0, abs=1e-9)
    density[-1] /= math.e
    assert latent_use(density, 1.0)["zipf_tail_gap"] == pytest.approx(1, abs=1e-6)


def test_numbers_without_a_fit_are_undefined():
    found = latent_use(torch.full((30,), 0.1, dtype=torch.float64), 3.0)
    assert found["zipf_exponent"] is None
    assert found["effective_latents"] == pytest.approx(30)


def test_the_curve_is_the_mean_over_seeds_by_rank():
    one = torch.tensor([0.1, 0.5, 0.0, 0.2], dtype=torch.float64)
    other = torch.tensor([0.3, 0.1, 0.0, 0.0], dtype=torch.float64)
    curve = density_curve([one, other])
    assert curve["rank"] == [1, 2, 3], "the last rank never fired and has no logarithm"
    assert curve["density"] == pytest.approx([0.4, 0.15, 0.05])
    assert curve["law"] == []


def write_table(path, **columns):
    parquet.write_table(pyarrow.table(columns), path)


def test_densities_are_put_in_the_order_of_latents(tmp_path):
    write_table(tmp_path / "f.parquet", latent=[2, 0, 1], density=[0.2, 0.0, 0.1])
    assert read_density(tmp_path / "f.parquet", 3).tolist() == [0.0, 0.1, 0.2]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"latent": [0, 1], "density": [0.1, 0.2]}, "does not list the density of 3 latents"),
        ({"latent": [0, 1, 1], "density": [0.1, 0.2, 0.2]}, "each once"),
        ({"latent": [0, 1, 2], "density": [0.1, 0.2, 1.5]}, "between 0 and 1"),
        ({"latent": [0, 1, 2], "density": [0.1, 0.2, math.nan]}, "between 0 and 1"),
        ({"latent": [0, 1, 2], "density": [0.1, 0.2, None]}, "not a readable table"),
        ({"latent": [0, 1, 2]}, "not a readable table"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, columns, message):
    write_table(tmp_path / "f.parquet", **columns)
    with pytest.raises(ArtifactError, match=message):
        read_density(tmp_path / "f.parquet", 3)


def test_a_file_that_is_no_table_is_named(tmp_path):
    (tmp_path / "f.parquet").write_bytes(b"no parquet")
    with pytest.raises(ArtifactError, match=r"f\.parquet is not a readable table"):
        read_density(tmp_path / "f.parquet", 3)
