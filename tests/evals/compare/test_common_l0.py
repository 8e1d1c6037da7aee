"""Interpolation between a method's own points, pairing by seed, and nothing beyond the points."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saelab.evals.compare.rows import (
    at_common_l0,
    default_common_l0,
    interpolate,
)
from saelab.evals.display import written
from saelab.stats.spread import Spread, spread_of

POINTS = [(8.0, 0.4), (16.0, 0.3), (64.0, 0.1)]


@given(
    st.dictionaries(st.integers(1, 400), st.floats(-5, 5), min_size=1, max_size=6),
    st.floats(0.5, 500),
)
def test_it_is_numpys_interpolation_in_log_l0_inside_the_points_and_nothing_outside(points, l0):
    places = sorted(points)
    found = interpolate([(float(place), points[place]) for place in points], l0)
    if places[0] <= l0 <= places[-1]:
        expected = np.interp(math.log(l0), np.log(places), [points[place] for place in places])
        assert found == pytest.approx(expected, abs=1e-9)
    else:
        assert found is None


def test_golden_values():
    assert interpolate(POINTS, 16.0) == 0.3
    assert interpolate(POINTS, 32.0) == pytest.approx(0.2)
    assert interpolate(POINTS, math.sqrt(8 * 16)) == pytest.approx(0.35)
    assert interpolate(POINTS, 7.999) is None
    assert interpolate(POINTS, 64.001) is None
    assert interpolate([], 3.0) is None
    assert interpolate([(0.0, 1.0), (4.0, 2.0)], 2.0) is None, "L0 zero has no logarithm"
    assert interpolate([(4.0, 1.0), (4.0, 3.0)], 4.0) == 2.0


def test_differences_are_paired_by_seed_before_they_are_averaged():
    curves = {
        ("topk", 64): {seed: [(8.0, 0.4 + seed), (32.0, 0.2 + seed)] for seed in (0, 1, 2)},
        ("other", 64): {
            0: [(8.0, 0.30), (32.0, 0.10)],
            1: [(8.0, 1.28), (32.0, 1.08)],
            2: [(20.0, 9.0), (32.0, 9.0)],
            3: [(8.0, 5.0), (32.0, 5.0)],
        },
    }
    reference, other = at_common_l0(curves, "fvu", {64: [16.0]}, "topk")
    assert (reference.value.mean, reference.value.sd) == pytest.approx((1.3, 1.0))
    assert reference.difference == Spread(None, None, 0)
    # Seed 2 does not reach L0 16, seed 3 has no partner: two pairs, of -0.1 and -0.12.
    assert other.outside == [2]
    assert other.seeds == [0, 1, 3]
    assert other.value.n == 3
    assert other.difference.n == 2
    assert other.difference.mean == pytest.approx(-0.11)
    assert other.difference.sd == pytest.approx(0.02 / math.sqrt(2))


def test_the_default_places_lie_between_targets():
    assert default_common_l0([16.0, 32.0, 64.0]) == [22.6, 32.0, 45.3]
    assert default_common_l0([16.0, 8.0]) == [11.3]
    assert default_common_l0([16.0]) == []
    assert default_common_l0([]) == []


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8))
def test_spread_is_numpys_with_one_degree_of_freedom_less(values):
    found = spread_of([*values, None])
    assert found.n == len(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-6)
    assert found.sd == pytest.approx(np.std(values, ddof=1), abs=1e-6)


@pytest.mark.parametrize(
    ("spread", "expected"),
    [
        (Spread(0.13462, 0.00051, 3), "0.1346 ± 0.0005"),
        (Spread(31.97, 0.034, 3), "31.97 ± 0.03"),
        (Spread(0.5, None, 1), "0.5000 ± —"),
        (Spread(None, None, 0), "—"),
        (Spread(1234.5, 10.0, 2), "1,234 ± 10"),
        (Spread(0.0, 0.0, 2), "0.000 ± 0.000"),
        (Spread(0.8213, 0.00002, 2), "0.8213 ± 2e-05"),
    ],
)
def test_spreads_as_text(spread, expected):
    assert written(spread).replace("\u00a0", " ") == expected


def test_signed_text():
    assert (
        written(Spread(0.0123, 0.5, 2), 3, signed=True).replace("\u00a0", " ") == "+0.012 ± 0.500"
    )
    assert written(Spread(-0.0123, None, 1), 3, signed=True).startswith("-0.012")
