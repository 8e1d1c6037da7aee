"""The HTML report: one file, no network, every figure with its words."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise

from saelab.evals.core.charts import core_charts
from saelab.formats.evaluation_result import (
    EvaluationResult,
    MeasuredMetric,
    write_evaluation_result,
)
from saelab.report.draw import draw
from saelab.report.figure import BLUE, GREEN, ORANGE, PURPLE, Figure, log_axis, new_plot
from saelab.report.page import Report, format_value
from saelab.report.result_page import write_result_page

FIGURE_DATA = {
    "losses": {
        "loss": {"clean": 3.0, "spliced": 3.2, "mean_ablation": 8.0, "zero_ablation": 11.0},
        "n_positions": 1000,
        "mean_source": "the mean of the evaluated rows",
    },
    "density_histogram": {
        "log10_edges": [-2.0, -1.0, 0.0],
        "latents": [5, 3],
        "never_active": 2,
        "n_rows": 100,
    },
    "l0_histogram": {"l0_from": [4], "l0_to": [4], "rows": [100], "mean": 4.0, "median": 4},
    "fvu_by_position": {
        "position_from": [1, 2],
        "position_to": [1, 2],
        "fvu": [0.5, 0.25],
        "pooled": 0.3,
    },
    "error_by_norm": {
        "norm_low": [1.0, 1.1],
        "norm_high": [1.1, 1.2],
        "mean_error_norm": [0.5, 0.6],
        "rows": [60, 40],
    },
    "density_and_strength": {
        "latent": [0, 3],
        "density": [0.01, 0.5],
        "mean_activation": [1.5, 20.0],
        "n_alive": 2,
    },
    "inference_modes": {
        "mode": ["plain", "threshold", "gradient_assisted", "gradient_shuffled"],
        "l0_mean": [4.0, 3.9, 4.0, 4.0],
        "fvu": [0.2, 0.21, 0.22, 0.25],
        "loss_spliced": [3.2, 3.3, 3.1, 3.4],
        "loss_recovered_zero": [0.97, 0.96, 0.98, 0.95],
        "loss_recovered_mean": [0.95, -0.1, 0.97, None],
        "kl": [0.2, 0.3, 0.1, 0.4],
        "n_rows": 100,
        "n_positions": 1000,
        "mean_source": "the mean of the evaluated rows",
    },
}


def figures_of(data: dict) -> list:
    return [draw(chart) for chart in core_charts(data)]


class Page(HTMLParser):
    """The elements of a page, and the text of its scripts apart."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_every_core_figure_has_title_axes_caption_alt_and_data():
    figures = figures_of(FIGURE_DATA)
    assert {figure.name for figure in figures} == set(FIGURE_DATA)
    for figure in figures:
        assert figure.plot.layout.xaxis.title.text
        assert figure.plot.layout.yaxis.title.text
        assert len(figure.plot.data) > 0
        assert len(figure.title) > 5
        assert len(figure.caption) > 40
        assert re.search(r"\d", figure.alt), "the alternative text states numbers"
        lengths = {len(column) for column in figure.data.values()}
        assert len(lengths) == 1


def test_a_result_of_an_unknown_suite_is_drawn_from_its_json_alone(tmp_path):
    copied = json.loads(json.dumps(FIGURE_DATA))
    assert [f.name for f in figures_of({"losses": FIGURE_DATA["losses"]})] == ["losses"]
    unknown = EvaluationResult(
        suite="other",
        dictionary_name="sae",
        dictionary_hash="ab" * 32,
        settings={"seed": 0},
        made_from={},
        metrics=(MeasuredMetric(name="fvu", value=0.5, unit="1", definition="what it says"),),
        charts=tuple(core_charts(copied)),
    )
    html = write_result_page(tmp_path / "other.html", unknown).read_text()
    page = Page(html)
    assert len(page.all("figure")) == len(FIGURE_DATA)
    assert "what it says" in page.text


def test_no_latent_active_and_no_spread_can_still_be_drawn():
    empty = {
        "density_and_strength": {"latent": [], "density": [], "mean_activation": [], "n_alive": 0},
        "l0_histogram": {"l0_from": [0], "l0_to": [0], "rows": [9], "mean": 0.0, "median": 0},
    }
    assert len(figures_of(empty)) == 2


def test_the_page_is_one_file_that_loads_nothing():
    page = Page(Report("t").add_figures(figures_of(FIGURE_DATA)).to_html())
    assert all("src" not in script for script in page.all("script"))
    assert page.all("link") == page.all("img") == page.all("iframe") == []
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_plotly_is_embedded_once_and_only_where_there_is_a_plot():
    with_plots = Report("t").add_figures(figures_of(FIGURE_DATA)).to_html()
    assert with_plots.count("plotly.js v") == 1
    assert len(Report("t").add_text("no plot").to_html()) < 10_000


def test_words_are_escaped_everywhere():
    evil = "</script><script>alert(1)</script>\"'&"
    plot = new_plot(evil, "y")
    plot.add_bar(x=[evil], y=[1])
    report = Report(evil, evil).add_heading(evil).add_text(evil).add_table(evil, [evil], [[evil]])
    report.add_metrics(evil, [MeasuredMetric(name=evil, value=1, unit=evil, definition=evil)])
    figure = Figure(name=evil, title=evil, plot=plot, caption=evil, alt=evil, data={evil: [evil]})
    html = report.add_figures([figure]).to_html()
    page = Page(html)
    assert "<script>alert" not in html
    assert len(page.all("script")) == 2
    assert page.text.count(evil) >= 9
    assert next(d["aria-label"] for d in page.all("div") if d.get("role") == "img") == evil


def test_the_page_can_be_used_by_keyboard_and_read_aloud():
    report = Report("Title").add_heading("A").add_table("Numbers", ["metric", "value"], [["a", 1]])
    page = Page(report.add_figures(figures_of(FIGURE_DATA)).to_html())
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.all("html")[0]["lang"] == "en"
    regions = [div for div in page.all("div") if div.get("role") == "region"]
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in regions)
    labels = {h.get("id") for h in page.all("h3")}
    assert {figure["aria-labelledby"] for figure in page.all("figure")} <= labels
    assert len(page.all("details")) == len(page.all("summary")) == 7
    assert {th["scope"] for th in page.all("th")} == {"col", "row"}
    assert page.all("a")[0]["href"] == "#content"


def test_both_themes_give_text_and_series_enough_contrast():
    from saelab.report.page import STYLE

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        low, high = sorted([luminance(one), luminance(other)])
        return (high + 0.05) / (low + 0.05)

    themes = [
        dict(re.findall(r"--(\w+): (#\w{6})", block))
        for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    ]
    assert len(themes) == 2
    for theme in themes:
        for ground in ("page", "card"):
            for text in ("text", "muted", "accent"):
                assert contrast(theme[text], theme[ground]) >= 4.5
            for series in (BLUE, ORANGE, GREEN, PURPLE):
                assert contrast(series, theme[ground]) >= 3


def test_long_data_is_cut_with_a_note_and_tables_say_undefined():
    data = {"n": list(range(1000))}
    figure = Figure(name="n", title="T", plot=new_plot("x", "y"), caption="c", alt="a", data=data)
    page = Page(Report("t").add_figures([figure]).to_html())
    assert "first 300 of 1000 rows" in page.text
    assert [format_value(v) for v in (None, 0.123456, 1234567, 123456.7, True, "x")] == [
        "undefined",
        "0.1235",
        "1,234,567",
        "123,457",
        "True",
        "x",
    ]


def test_write_leaves_one_file(tmp_path):
    path = Report("t").add_text("x").write(tmp_path / "deep" / "report.html")
    assert path.read_text().startswith("<!doctype html>")
    assert list(path.parent.iterdir()) == [path]


def test_results_of_a_dictionary_folder_are_found_and_their_absence_is_said(tmp_path, capsys):
    from saelab.cli import main

    assert main(["report", str(tmp_path)]) == 2
    [said] = capsys.readouterr().err.splitlines()
    assert f"{tmp_path} holds no evaluation result" in said
    assert said.endswith(f"`saelab eval core {tmp_path}`")
    (tmp_path / "cfg.json").write_text("{}")
    result = EvaluationResult(
        suite="core",
        dictionary_name="sae",
        dictionary_hash="ab" * 32,
        settings={},
        made_from={},
        metrics=(MeasuredMetric(name="fvu", value=0.5, unit="1", definition="what it says"),),
    )
    (tmp_path / "evals").mkdir()
    write_evaluation_result(tmp_path / "evals" / "core.json", result)
    assert main(["report", str(tmp_path)]) == 0
    assert "what it says" in (tmp_path / "evals" / "core.html").read_text()


def test_an_axis_shows_two_ticks_at_least_and_a_long_title_in_lines():
    for low, high in ((0.0146, 0.0157), (950.0, 1001.0), (0.5, 0.5), (1e-4, 1e3)):
        axis = log_axis([low, high])
        start, end = (10**edge for edge in axis["range"])
        assert 2 <= sum(start <= tick <= end for tick in axis["tickvals"]) <= 9
    plot = new_plot("|x|: norm of the activation (activation units, log)", "error")
    assert (
        plot.layout.xaxis.title.text.count("<br>") == 1 and plot.layout.yaxis.title.text == "error"
    )
