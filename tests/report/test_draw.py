"""Charts as data become plots: every mark, with units on hovering, a data table and words."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from saelab.config import from_plain, to_plain
from saelab.formats.chart import Axis, Chart, ReferenceLine, Series
from saelab.report.draw import draw


def chart(*series: Series, **changes) -> Chart:
    settings = {
        "name": "c",
        "title": "A chart",
        "caption": "What is drawn.",
        "x": Axis(title="L0 (latents per row)"),
        "y": Axis(title="FVU (ratio)"),
        **changes,
    }
    return Chart(series=series, **settings)


LINE = Series(name="topk", x=[1, 10, 100], y=[0.5, 0.25, 0.125], mark="lines+dots")
MARKS = {
    "bars": Series(name="a", x=["p", "q"], y=[1, -2], mark="bars", text=["1", "-2"]),
    "across": Series(name="a", x=[1, 2], y=["p", "q"], mark="bars", axis="x"),
    "lines": replace(LINE, mark="lines"),
    "dots": Series(name="d", x=[1, 2], y=[3, None], mark="dots", labels=["u", "v"]),
    "lines+dots": LINE,
    "steps": replace(LINE, mark="steps"),
    "histogram": Series(name="h", x=[0, 1, 3], y=[4, 5], mark="histogram"),
    "heat map": Series(name="m", x=["a", "b"], y=["r"], z=[[1.0, None]], mark="heat map"),
    "violin": Series(name="v", y=[1.0, 2.0, 4.0], mark="violin"),
}


@pytest.mark.parametrize("mark", MARKS)
def test_every_mark_is_drawn_with_units_words_and_a_table(mark):
    given = chart(MARKS[mark], colour="cosine (ratio)")
    figure = draw(from_plain(Chart, json.loads(json.dumps(to_plain(given))), "here"))
    [trace] = figure.plot.data
    assert "FVU (ratio)" in trace.hovertemplate
    assert figure.plot.layout.xaxis.title.text == "L0 (latents per row)"
    assert any(letter.isdigit() for letter in figure.alt), figure.alt
    lengths = {len(column) for column in figure.data.values()}
    assert len(lengths) == 1 and lengths.pop() > 0
    assert figure.plot.layout.paper_bgcolor == "rgba(0,0,0,0)", "either theme shows through"


def test_histograms_end_at_their_edges_on_linear_and_logarithmic_axes():
    series = Series(name="h", x=[0.01, 0.1, 1.0], y=[4, 5], mark="histogram")
    for axis in (Axis(title="density", log=True), Axis(title="density")):
        [bars] = draw(chart(series, x=axis)).plot.data
        ends = [(x - w / 2, x + w / 2) for x, w in zip(bars.x, bars.width, strict=True)]
        assert [end for pair in ends for end in pair] == pytest.approx([0.01, 0.1, 0.1, 1.0])


def test_error_bars_reach_the_ends_given_and_are_in_the_table():
    series = Series(name="a", x=["p", "q"], y=[1.0, 2.0], low=[0.5, None], high=[3.0, 2.5])
    figure = draw(chart(replace(series, mark="bars")))
    [bars] = figure.plot.data
    assert list(bars.error_y.array) == [2.0, 0.5]
    assert list(bars.error_y.arrayminus) == [0.5, 0]
    assert figure.data["low"] == [0.5, None]
    across = replace(series, x=series.y, y=series.x, axis="x", mark="bars")
    [bars] = draw(chart(across)).plot.data
    assert list(bars.error_x.array) == [2.0, 0.5]


def test_a_logarithmic_axis_shows_every_positive_value_and_lines_stand_on_it():
    line = ReferenceLine(value=1000.0, label="chance", axis="y")
    figure = draw(chart(LINE, y=Axis(title="loss", log=True), lines=(line,)))
    low, high = figure.plot.layout.yaxis.range
    assert low < math.log10(0.125) and high > 3, "the line is in the range"
    assert figure.plot.layout.shapes[0].y0 == 1000
    assert figure.plot.layout.annotations[0].y == pytest.approx(3)


def test_vertical_lines_stand_on_the_horizontal_axis():
    figure = draw(chart(LINE, lines=(ReferenceLine(value=50, label="k", axis="x"),)))
    shape = figure.plot.layout.shapes[0]
    assert (shape.x0, shape.x1, shape.yref) == (50, 50, "paper")


@pytest.mark.parametrize("log", [False, True])
def test_lines_may_carry_their_names_at_their_ends(log):
    other = replace(LINE, name="relu", y=[0.6, 0.3, 0.2])
    named = chart(LINE, other, named_ends=True, y=Axis(title="FVU", log=log))
    layout = draw(named).plot.layout
    assert [note.text for note in layout.annotations] == ["topk", "relu"]
    assert not layout.showlegend
    bottom, top = layout.yaxis.range
    assert all(bottom <= note.y <= top for note in layout.annotations)


def test_several_series_have_a_legend_colours_of_their_own_and_a_column():
    figure = draw(chart(LINE, replace(LINE, name="relu"), replace(LINE, name="floor", dashed=True)))
    assert figure.plot.layout.showlegend
    assert len({trace.line.color for trace in figure.plot.data}) == 3
    assert figure.plot.data[2].line.dash == "dash"
    assert figure.data["series"] == ["topk"] * 3 + ["relu"] * 3 + ["floor"] * 3


def test_heat_maps_of_signed_values_are_centred_and_start_at_the_top():
    signed = Series(name="m", x=["a"], y=["r", "s"], z=[[-1.0], [2.0]], mark="heat map")
    figure = draw(chart(signed, colour="effect (nats)"))
    assert figure.plot.data[0].zmid == 0
    assert figure.plot.layout.yaxis.autorange == "reversed"
    assert figure.data["effect (nats)"] == [-1.0, 2.0]


def test_weights_are_areas_and_labels_are_shown():
    series = Series(name="n", x=[1, 2], y=[1, 2], mark="dots", weights=[1, 4], labels=["u", "v"])
    [dots] = draw(chart(series)).plot.data
    small, large = dots.marker.size
    assert large - 4 == pytest.approx(2 * (small - 4))
    assert list(dots.hovertext) == ["u", "v"]


def test_nothing_to_draw_is_no_error():
    for mark in ("lines", "dots", "bars", "violin"):
        assert draw(chart(Series(name="none", mark=mark))).data is not None
    assert draw(chart()).plot.data == ()
    gaps = Series(name="gap", x=[1, 2], y=[None, None])
    assert draw(chart(gaps, named_ends=True, y=Axis(title="y", log=True))).alt


def test_legends_stand_above_the_plot_and_long_names_are_wrapped():
    bars = Series(name="a", x=["a name of many words", "<b>"], y=[1, 2], mark="bars")
    layout = draw(chart(bars, replace(bars, name="b"), y=Axis(title="share", low=0))).plot.layout
    assert (layout.legend.yref, layout.legend.y, layout.legend.yanchor) == ("container", 1, "top")
    assert list(layout.xaxis.ticktext) == ["a name of many<br>words", "&lt;b&gt;"]
    assert list(layout.xaxis.tickvals) == ["a name of many words", "&lt;b&gt;"]
    assert layout.yaxis.rangemode == "tozero"
    counts = Series(name="h", x=[0, 1, 2], y=[1, 3], mark="histogram")
    ticks = draw(chart(counts, y=Axis(title="n", log=True, low=0.5))).plot.layout.yaxis.tickvals
    assert 1 in ticks and all(tick % 1 == 0 for tick in ticks), "counts are whole"
