"""The power law and its asymptote, the breakdown, contours, scaling between sizes, figures."""

from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from saelab.errors import ConfigError
from saelab.evals.dark_matter.breakdown import Member, break_down
from saelab.evals.dark_matter.family import contour_chart, interpolate
from saelab.evals.dark_matter.norm_test import norm_test_violins
from saelab.evals.dark_matter.rows import RowBatch, cells_of
from saelab.evals.dark_matter.tokens import NORMS, measure_scaling, token_writer
from saelab.report.draw import draw
from saelab.stats.power_law import _best_exponent, fit_power_law

WIDTHS = 16_384.0 * 2 ** np.arange(7)
PUBLISHED = np.array([0.312, 0.285, 0.264, 0.249, 0.241, 0.232, 0.216])
"""Digitised from the paper's Figure 1 (9B, layer 20, L0 about 60)."""


def test_the_published_points_have_the_published_optimum():
    """P12: c = .189 with a residual of .00273; c = .12 gives .0039, c = 0 still .0050."""
    fit = fit_power_law(WIDTHS, PUBLISHED)
    assert fit.c == pytest.approx(0.189, abs=0.002)
    assert fit.rms == pytest.approx(0.00273, abs=0.0001)
    for c, rms in ((0.12, 0.0039), (0.0, 0.0050)):
        error = _best_exponent(WIDTHS, PUBLISHED, c)[1]
        assert (error / 7) ** 0.5 == pytest.approx(rms, abs=0.0001)


def test_the_interval_of_the_asymptote_is_as_wide_as_the_points_leave_it():
    fit = fit_power_law(WIDTHS, PUBLISHED)
    assert fit.c_low < 0.12 < fit.c < fit.c_high <= PUBLISHED.min()
    exact = fit_power_law(WIDTHS, 0.186 + 2.708 * WIDTHS**-0.317)
    assert (exact.c, exact.a, exact.m) == pytest.approx((0.186, 2.708, 0.317), rel=1e-4)
    assert exact.c_high - exact.c_low < 1e-6


def test_the_fit_is_the_same_every_time_and_has_no_negative_part():
    one, other = fit_power_law(WIDTHS, PUBLISHED), fit_power_law(WIDTHS, PUBLISHED)
    assert (one.c, one.a, one.m) == (other.c, other.a, other.m)
    rising = fit_power_law(WIDTHS, PUBLISHED[::-1].copy())
    assert min(rising.c, rising.a, rising.m) >= 0


def test_three_widths_determine_no_power_law():
    with pytest.raises(ConfigError, match=r"three parameters and 3 widths cannot determine them"):
        fit_power_law(WIDTHS[:3], PUBLISHED[:3])


def member(width, l0, **values):
    return Member(
        name=f"{width}-{l0}",
        d_sae=int(width),
        l0=float(l0),
        values={"fvu": 0.2, "fvu_nonlinear": 0.1, "pursuit_fvu_nonlinear": None, **values},
        token_file=Path("none"),
    )


def published(nonlinear):
    return [
        member(width, 60, fvu=float(fvu), fvu_nonlinear=nonlinear)
        for width, fvu in zip(WIDTHS, PUBLISHED, strict=True)
    ]


def test_areas_are_drawn_where_they_do_not_cross_and_refused_where_they_do():
    drawn = break_down(published(0.122), None)
    assert drawn.refused is None
    assert drawn.mean_nonlinear == pytest.approx(0.122)
    areas = drawn.charts()[0]
    assert "Areas:" in areas.caption
    assert [trace.fill for trace in draw(areas).plot.data] == [
        "tozeroy",
        *["tonexty"] * 2,
        *[None] * 2,
    ]
    crossing = break_down(published(0.195), None)
    assert crossing.refused is not None
    assert "lies below the mean FVU_nonlinear, 0.1950, so they would cross" in crossing.refused
    areas = crossing.charts()[0]
    assert "Areas:" not in areas.caption
    assert not any(trace.fill for trace in draw(areas).plot.data)


def test_widths_are_compared_at_the_l0_that_most_of_them_reach():
    members = [member(100, 30), member(200, 31), member(400, 33), member(100, 60), member(400, 64)]
    found = break_down(members, None)
    assert [one.d_sae for one in found.members] == [100, 200, 400]
    assert 30 <= found.l0 <= 33
    at_60 = break_down(members, 60.0)
    assert [one.l0 for one in at_60.members] == [60, 64]
    assert at_60.left_out == ["200 latents: the nearest L0 is 31, more than 20% from 60"]
    assert at_60.fit is None
    assert "at least 4 widths" in str(at_60.refused)


def test_a_family_of_one_width_is_told_what_is_missing():
    with pytest.raises(ConfigError, match="needs dictionaries of at least two widths within 20%"):
        break_down([member(100, 30), member(100, 60)], None)


def test_interpolation_is_linear_within_the_hull_and_nothing_outside():
    x, y = np.array([0.0, 0, 1, 1, 2, 2]), np.array([0.0, 1, 0, 1.5, 0, 1])
    surface, triangles = interpolate(
        x, y, 2 * x - 3 * y, np.linspace(0, 2, 9), np.array([0.0, 0.5, 1.4, 2])
    )
    assert np.allclose(surface[:2], 2 * np.linspace(0, 2, 9) - 3 * np.array([[0], [0.5]]))
    assert np.isnan(surface[3]).all()
    assert np.isfinite(surface[2]).sum() == 1
    assert len(triangles) == 4


def test_points_on_one_line_make_no_contours():
    with pytest.raises(ConfigError, match="contours need dictionaries at three places or more"):
        interpolate(np.zeros(3), np.arange(3.0), np.arange(3.0), np.zeros(1), np.zeros(1))


def test_contours_keep_each_value_with_its_own_dictionary():
    """P9: one without a number is left out and shifts no other."""
    members = [member(w, l0, norm_r_squared=w * l0) for w in (10, 20, 40) for l0 in (4, 8)]
    members[2] = member(20, 4, norm_r_squared=None)
    chart = contour_chart(members, "norm_r_squared")
    surface, points = chart.series
    assert len(points.x) == 5
    named = [f"{w}-{l0}: {w * l0:.4f}" for w, l0 in zip(points.x, map(int, points.y), strict=True)]
    assert points.labels == named
    known = [value for row in surface.z for value in row if value is not None]
    assert (min(known), max(known)) == (40, 320)
    assert draw(chart).plot.layout.yaxis.autorange is None


def write_norms(path, error, nonlinear):
    """A token file with these norms."""
    table = parquet.read_table(write_tokens_once(path))
    columns = {name: table.column(name) for name in table.column_names}
    columns |= {"error_norm": error.numpy(), "nonlinear_error_norm": nonlinear.numpy()}
    parquet.write_table(pyarrow.table(columns, schema=table.schema), path)
    return path


def write_tokens_once(path):
    cell_count = 900
    sequence = torch.arange(6).repeat_interleave(150)
    position = torch.arange(150).repeat(6)
    cell = cells_of(sequence, position, seed=0, train_fraction=0.6)
    batch = RowBatch(
        activations=torch.zeros(cell_count, 2),
        tokens=position,
        sequence=sequence,
        position=position,
        loss=torch.full((cell_count,), torch.nan, dtype=torch.float64),
        cell=cell,
    )
    with token_writer(path) as write:
        zeros = torch.zeros(cell_count)
        write(batch, zeros.long(), dict.fromkeys(NORMS, zeros))
    return path


def test_scaling_regresses_unsquared_norms_of_every_pair(tmp_path):
    """P8: against direct regressions."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.rand(900, generator=generator)
    noise = [torch.rand(900, generator=generator) for _ in range(3)]
    paths = [
        write_norms(tmp_path / f"{place}.parquet", shared + place * noise[place], noise[place])
        for place in range(3)
    ]
    by_error, gain = measure_scaling(paths, 1e-12)
    held = np.array(parquet.read_table(paths[0]).column("held_out"))
    one, two = shared.double().numpy(), (shared + noise[1]).double().numpy()

    def r_squared(*columns):
        design = np.stack([*columns, np.ones(len(one))], axis=1)
        solved = np.linalg.lstsq(design[~held], two[~held], rcond=None)[0]
        left = two[held] - design[held] @ solved
        return 1 - (left @ left) / np.square(two[held] - two[held].mean()).sum()

    plain, both = r_squared(one), r_squared(one, noise[0].double().numpy())
    assert by_error[0][1] == pytest.approx(plain, abs=1e-6)
    assert gain[0][1] == pytest.approx((both - plain) / (1 - plain), abs=1e-6)
    assert by_error[1][1] == pytest.approx(1, abs=1e-6)
    assert gain[1][1] == 0


def test_violins_leave_no_dictionary_out():
    """P17: the published figure drops values of 0.5 and below."""
    names = ("activation", "reconstruction", "error", "linear_error", "nonlinear_error")
    vectors = [*names, "reconstruction_plus_nonlinear"]
    values = {name: [-3.0, 0.1, 0.9] for name in vectors}
    figure = draw(norm_test_violins(values))
    assert all(list(trace.y) == [-3.0, 0.1, 0.9] for trace in figure.plot.data)
