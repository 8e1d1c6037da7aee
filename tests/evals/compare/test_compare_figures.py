"""The figures of a comparison: twelve methods told apart, and words with the numbers."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saelab.errors import ArtifactError
from saelab.report import Report
from saelab.report.compare_figures import COMPARE_FIGURES, comparison_figures
from saelab.report.line_styles import COLOURS, line_style, short_name, spread_apart

NAMES = [f"method_{place}" for place in range(12)]
ABOUT = {"d_sae": 2304, "many_widths": False, "names": NAMES}
LINE = {
    "k": ["16", "32"],
    "seeds": [3, 3],
    "l0": [15.9, 31.5],
    "l0_sd": [0.2, None],
    "value": [0.2, 0.1],
    "value_sd": [0.01, None],
}
CURVE = {
    "rank": [1, 2, 40],
    "density": [0.5, 0.2, 0.001],
    "law": [0.6, 0.2, 0.002],
    "head": [0, 28],
}
BOX = dict(zip(("q05", "q25", "q50", "q75", "q95", "mean"), range(1, 7), strict=True))
DATA = {
    "pareto": {
        "metric": "fvu",
        "definition": "What FVU is.",
        "lines": [{"name": name, **LINE} for name in NAMES],
    },
    "differences": {
        "metric": "fvu",
        "reference": NAMES[0],
        "l0": [22.6, 32.0],
        "rows": [
            {"name": name, "l0": l0, "difference": value, "difference_sd": 0.01, "pairs": 3}
            for name in NAMES[1:]
            for l0, value in ((22.6, -0.02), (32.0, None))
        ],
    },
    "dead_and_underused": {
        "dead_definition": "Never fired.",
        "underused_definition": "Fired seldom.",
        "rows": [
            {
                "name": name,
                "k": "16",
                "dead": 0.02,
                "dead_sd": 0.01,
                "underused": 0.05,
                "underused_sd": None,
            }
            for name in NAMES
        ],
    },
    "density_by_rank": {"k": "16", "curves": [{"name": name, **CURVE} for name in NAMES]},
    "consistency": {
        "by": "rank",
        "k": "16",
        "threshold": 0.9,
        "random": None,
        "curves": [{"name": name, "x": [0.01, 1.0], "share": [0.9, 0.4]} for name in NAMES],
    },
    "steering": {
        "quantity": "size",
        "strength": 1.0,
        "boxes": [
            *({"name": name, "method": name, **BOX} for name in NAMES),
            {"name": "random directions", "method": None, **BOX},
        ],
    },
    "costs": {
        "name": "train_seconds",
        "title": "Training time",
        "axis": "training time",
        "unit": "s",
        "definition": "How long.",
        "rows": [{"name": name, "k": "16", "value": 3.0, "sd": 0.5} for name in NAMES],
    },
}
STATED = {
    "pareto": "method_11 0.2 at L0 15.9 to 0.1 at 31.5",
    "differences": "method_11 -0.02 at L0 22.6",
    "dead_and_underused": "method_11 k 16 2.0% and 5.0%",
    "density_by_rank": "method_11 from 0.5 to 0.001 at rank 40",
    "consistency": "method_11 0.40 of all",
    "steering": "random directions 3",
    "costs": "method_11 k 16 3",
}


def test_every_figure_has_data_to_be_tested_with():
    assert set(DATA) == set(STATED) == set(COMPARE_FIGURES)


@pytest.mark.parametrize("name", DATA)
def test_a_figure_carries_its_words_and_numbers(name):
    (figure,) = comparison_figures({name: [ABOUT | DATA[name]]}, "here")
    assert figure.caption.endswith(".") and len(figure.caption) > 60
    assert STATED[name] in figure.alt
    assert len({len(column) for column in figure.data.values()}) == 1
    layout = figure.plot.layout
    assert layout.xaxis.title.text or name == "density_by_rank"
    assert layout.height >= 340
    page = Report("x").add_figures([figure]).to_html()
    assert ('<figure class="wide"' in page) == figure.wide


@pytest.mark.parametrize("name", ["pareto", "differences", "dead_and_underused", "costs"])
def test_error_bars_are_said_to_be_deviations_over_seeds(name):
    (figure,) = comparison_figures({name: [ABOUT | DATA[name]]}, "here")
    assert "standard deviation over seeds" in figure.caption


def test_the_consistency_figure_by_cosine_shows_the_floor():
    data = DATA["consistency"] | {
        "by": "cosine",
        "random": {"x": [0.0, 1.0], "share": [1.0, 0.0]},
    }
    (figure,) = comparison_figures({"consistency": [ABOUT | data]}, "here")
    assert figure.plot.data[-1].name == "random directions"
    assert "random directions" in figure.caption


def test_twelve_methods_differ_in_marker_and_in_colour_and_dash():
    styles = [line_style(name, NAMES) for name in NAMES]
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


@pytest.mark.parametrize("name", DATA)
def test_edited_data_is_named(name):
    data = copy.deepcopy(DATA[name])
    key = next(key for key in ("lines", "rows", "curves", "boxes") if key in data)
    data[key] = 7
    with pytest.raises(ArtifactError, match=f"figure '{name}' of here cannot be drawn"):
        comparison_figures({name: [ABOUT | data]}, "here")
