"""The charts of a comparison: twelve methods told apart, and words with the numbers."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saelab.cache.config import TokenFilter
from saelab.dictionary import Site
from saelab.dictionary.data_spec import DataSpec
from saelab.evals.compare.candidates import Candidate
from saelab.evals.compare.charts import charts_of
from saelab.evals.compare.numbers import MeasuredCandidate
from saelab.evals.compare.rows import AtCommonL0, MethodComparison, Row
from saelab.evals.compare.suite import CompareConfig
from saelab.evals.steering.numbers import metric_name
from saelab.evals.suite import Definition
from saelab.formats.evaluation_result import EvaluationResult, MeasuredMetric
from saelab.report.draw import draw
from saelab.report.line_styles import COLOURS, line_style, short_name, spread_apart
from saelab.report.page import Report
from saelab.stats.spread import Spread
from saelab.text.contexts import TextConfig

NAMES = [f"method_{place}" for place in range(12)]
DEFINITIONS = {
    name: Definition(name=name, unit="1", text=f"What {name} is, in a sentence of some length.")
    for name in ("fvu", "loss_recovered_mean", "dead_fraction", "underused_fraction",
                 "train_seconds", "state_mib")
}  # fmt: skip
SPEC = DataSpec(
    model="m", model_hash=None, site=Site.of("h"), text=TextConfig(source="s"), context_length=8,
    token_filter=TokenFilter(), norm_ceilings=(None,), model_dtype="float32",
)  # fmt: skip
CANDIDATE = Candidate(
    folder=Path("x"), content_hash="h", method="m", label="m", settings={}, d_sae=4, k=16.0, seed=0,
    n_tokens=None, train_seconds=None, state_bytes=None, weight_bytes=1, origin={}, spec=SPEC,
)  # fmt: skip
QUANTILES = ("q05", "q25", "q50", "q75", "q95", "mean")
STEERED = {
    metric_name(quantity, f"{prefix}{what}", 1.0): float(value)
    for quantity in ("size", "consistency")
    for prefix in ("", "random_")
    for value, what in enumerate(QUANTILES, start=1)
}


def result(suite, values):
    metrics = tuple(
        MeasuredMetric(name=name, value=value, unit="1", definition="") for name, value in values
    )
    return EvaluationResult(
        suite=suite, dictionary_name="x", dictionary_hash="h", settings={"threshold": 0.9},
        made_from={}, metrics=metrics,
    )  # fmt: skip


def planted():
    """Twelve methods at two target L0, one seed each, of which one is steered with."""
    found, rows, compared = [], [], []
    density = torch.tensor([0.5, 0.2, 0.001, 0.0], dtype=torch.float64)
    mcs = torch.tensor([1.0, 0.95, 0.1, 0.1, 0.1], dtype=torch.float64)
    for label in NAMES:
        for k, l0, fvu in ((16.0, 15.9, 0.2), (32.0, 31.5, 0.1)):
            numbers = {
                "l0_mean": Spread(l0, 0.2, 3), "fvu": Spread(fvu, 0.01, 3),
                "loss_recovered_mean": Spread(1 - fvu, None, 1),
                "dead_fraction": Spread(0.02, 0.01, 3), "underused_fraction": Spread(0.05, None, 1),
                "train_seconds": Spread(3.0, 0.5, 3), "state_mib": Spread(1.0, 0.0, 3),
                "mcs_random": Spread(0.25, 0.0, 3),
            }  # fmt: skip
            candidate = replace(CANDIDATE, label=label, k=k)
            results = {"consistency": result("consistency", ())}
            if k == 16:
                results["steering"] = result("steering", STEERED.items())
            member = MeasuredCandidate(candidate, {}, density, results, mcs)
            found.append(member)
            rows.append(Row(label, 4, k, [member], numbers))
        for l0, value in ((22.6, -0.02), (32.0, None)):
            difference = Spread(value, None if value is None else 0.01, 0 if value is None else 3)
            at = AtCommonL0(label, 4, "fvu", l0, Spread(0.1, 0.1, 3), difference, [0], [])
            compared.append(at)
    return found, rows, compared


@pytest.fixture(scope="module")
def charts():
    found, rows, compared = planted()
    comparison = MethodComparison(
        config=CompareConfig(), members=found, columns=DEFINITIONS, rows=rows, reference=NAMES[0],
        compared=compared, modes=[], notes=[],
    )  # fmt: skip
    return {chart.name: chart for chart in charts_of(comparison)}


STATED = {
    "pareto_fvu": "method_11 0.2 at L0 15.9 to 0.1 at 31.5",
    "difference_fvu": "method_11 -0.02 at L0 22.6",
    "dead_and_underused": "method_11 k 16 2.0% and 5.0%",
    "density_by_rank_11": "method_11 from 0.5 to 0.001 at rank 3",
    "consistency_by_rank": "method_11 0.40 of all",
    "consistency_by_cosine": "method_11 0.10",
    "steering_size": "random directions 3",
    "train_seconds": "method_11 k 16 3",
}


@pytest.mark.parametrize("name", STATED)
def test_a_chart_carries_its_words_and_numbers(charts, name):
    figure = draw(charts[name])
    assert figure.caption.endswith(".") and len(figure.caption) > 60
    assert STATED[name] in figure.alt
    assert len({len(column) for column in figure.data.values()}) == 1
    layout = figure.plot.layout
    assert layout.xaxis.title.text
    assert layout.height >= 340
    page = Report("x").add_figures([figure]).to_html()
    assert ('<figure class="wide"' in page) == figure.wide


@pytest.mark.parametrize(
    "name", ["pareto_fvu", "difference_fvu", "dead_and_underused", "train_seconds"]
)
def test_error_bars_are_said_to_be_deviations_over_seeds(charts, name):
    assert "standard deviation over seeds" in charts[name].caption
    assert any(series.low is not None for series in charts[name].series)


def test_the_consistency_chart_by_cosine_shows_the_floor(charts):
    chart = charts["consistency_by_cosine"]
    assert [(line.label, line.value) for line in chart.lines] == [("random directions", 0.25)]
    assert "random directions" in chart.caption


def test_a_method_has_the_same_style_in_every_chart(charts):
    for name in ("pareto_fvu", "consistency_by_rank", "consistency_by_cosine"):
        assert [(s.name, s.style) for s in charts[name].series] == [
            (label, place) for place, label in enumerate(NAMES)
        ]


def test_charts_survive_the_file(charts, tmp_path):
    from saelab.formats.evaluation_result import read_evaluation_result, write_evaluation_result

    drawn = tuple(charts.values())
    write_evaluation_result(tmp_path / "c.json", replace(result("compare", ()), charts=drawn))
    assert read_evaluation_result(tmp_path / "c.json").charts == drawn


def test_twelve_methods_differ_in_marker_and_in_colour_and_dash():
    styles = [line_style(index) for index in range(12)]
    assert len({style.marker for style in styles}) == 12
    assert len({(style.colour, style.dash) for style in styles}) == 12


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("page", ["#ffffff", "#f6f7f9", "#14171b", "#1c2026"])
def test_colours_keep_their_contrast_in_both_themes(colour, page):
    low, high = sorted((luminance(colour), luminance(page)))
    assert (high + 0.05) / (low + 0.05) >= 3


@given(st.lists(st.floats(0, 1), min_size=1, max_size=14), st.floats(0.001, 0.3))
def test_names_never_overlap_and_stay_in_the_plot(wanted, gap):
    places = spread_apart(wanted, gap, 0.0, 1.0)
    fitting = min(gap, 1 / max(1, len(wanted) - 1))
    ordered = sorted(places)
    assert all(b - a >= fitting - 1e-9 for a, b in pairwise(ordered))
    assert ordered[0] >= -1e-9 and ordered[-1] <= 1 + 1e-9
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    assert all(places[a] <= places[b] for a, b in pairwise(order) if wanted[a] < wanted[b]), (
        "names keep the order of the lines"
    )


def test_names_that_have_room_stay_where_they_belong():
    assert spread_apart([0.9, 0.1, 0.5], 0.1, 0.0, 1.0) == pytest.approx([0.9, 0.1, 0.5])
    assert spread_apart([0.5, 0.5], 0.2, 0.0, 1.0) == pytest.approx([0.4, 0.6])


def test_long_names_are_cut():
    assert short_name("topk") == "topk"
    assert short_name("x" * 40) == "x" * 25 + "…"
