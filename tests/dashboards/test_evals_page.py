"""The Evals page: results of known, unknown, damaged and foreign suites, and comparisons."""

from __future__ import annotations

import json

import pytest
from conftest import page_opener, write_dictionary
from toy_store import decoder

from saelab.errors import ArtifactError
from saelab.formats.evaluation_result import (
    EvaluationResult,
    MeasuredMetric,
    write_evaluation_result,
)
from saelab.report.registry import FIGURES


def metric(name, value, definition="as planted"):
    return MeasuredMetric(name=name, value=value, unit="1", definition=definition)


def result_of(suite, figure_data=None, **changes):
    fields = {
        "suite": suite,
        "dictionary_name": "first",
        "dictionary_hash": "toyhash",
        "settings": {"n_tokens": 512, "text": {"source": "<script>x</script>"}},
        "made_from": {"model": "toy-model", "hook_point": "blocks.0.hook_resid_post"},
        "metrics": (metric("fvu", 0.25), metric("made_up_number", None, "<b>none</b> of it")),
        "figure_data": figure_data or {},
        **changes,
    }
    return EvaluationResult(**fields)


@pytest.fixture
def evals(tmp_path):
    """The evals folder of a dictionary in a run."""
    folder = write_dictionary(
        tmp_path / "runs" / "demo" / "dictionaries" / "first", decoder(), "toyhash"
    )
    (folder / "evals").mkdir()
    return folder / "evals"


@pytest.fixture
def open_evals(tmp_path, monkeypatch):
    return lambda **params: page_opener(monkeypatch, tmp_path / "runs")("evals", **params)


def words(app):
    parts = [*app.title, *app.subheader, *app.markdown, *app.caption, *app.info, *app.warning]
    return "\n".join(str(part.value) for part in parts).replace("\\", "").replace("\u2060", "")


def html_of(app):
    return "\n".join(str(block.value) for block in app.get("html"))


def test_a_known_suite_is_drawn_through_the_registry(evals, open_evals, monkeypatch):
    from saelab.report.figure import Figure, new_plot

    def draw(data):
        plot = new_plot("x", "y")
        plot.add_bar(x=[1], y=[data["n"]])
        return Figure(
            name="bars", title="Planted bars", plot=plot, caption="What is planted.",
            alt=f"One bar of height {data['n']}, as it was planted.", data={"n": [data["n"]]},
        )  # fmt: skip

    monkeypatch.setitem(FIGURES, "dark_and_new", {"bars": draw})
    write_evaluation_result(
        evals / "dark_and_new.json", result_of("dark_and_new", {"bars": {"n": 7}})
    )
    app = open_evals()
    assert not app.exception and not app.warning and not app.info
    assert [chart.proto.alt for chart in app.get("plotly_chart")] == [
        "One bar of height 7, as it was planted."
    ]
    assert "Planted bars" in words(app) and "What is planted." in words(app)


def test_every_number_stands_with_unit_and_definition(evals, open_evals):
    write_evaluation_result(evals / "core.json", result_of("core"))
    app = open_evals()
    page = html_of(app)
    assert not app.exception and not app.warning
    assert "fvu" in page and "0.25" in page and "ratio" in page and "as planted" in page
    assert "undefined" in page and "&lt;b&gt;none&lt;/b&gt; of it" in page
    assert "<script>" not in page
    app.text_input(key="evals_find").set_value("made up").run()
    assert app.query_params["find"] == "made up"
    assert "as planted" not in html_of(app) and "made_up_number" in html_of(app)
    app.text_input(key="evals_find").set_value("zzz").run()
    assert "No number has this word" in words(app)


def test_an_unknown_suite_gets_a_sentence_and_its_numbers(evals, open_evals):
    write_evaluation_result(evals / "astrology.json", result_of("astrology", {"x": [1]}))
    app = open_evals()
    assert not app.exception
    assert "no figures for the suite 'astrology'" in words(app)
    assert "made_up_number" in html_of(app)


def test_the_address_chooses_the_suite(evals, open_evals):
    for suite in ("core", "astrology"):
        write_evaluation_result(evals / f"{suite}.json", result_of(suite))
    assert "Suite core on first" in words(open_evals())
    app = open_evals(suite="astrology")
    assert "Suite astrology on first" in words(app)
    app.radio(key="evals_suite").set_value("core").run()
    assert "suite" not in app.query_params
    assert "Suite core on first" in words(open_evals(suite="../../etc/passwd"))


def test_another_dictionarys_result_is_said(evals, open_evals):
    write_evaluation_result(evals / "core.json", result_of("core", dictionary_hash="f" * 64))
    assert "measured on another dictionary (content hash ffffffffffff…" in words(open_evals())


def test_figures_that_cannot_be_drawn_leave_the_numbers(evals, open_evals):
    name = next(iter(FIGURES["core"]))
    write_evaluation_result(evals / "core.json", result_of("core", {name: {"wrong": 1}}))
    app = open_evals()
    assert not app.exception
    assert "cannot be drawn from its data" in words(app) and "Its numbers are below" in words(app)
    assert "made_up_number" in html_of(app)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"kind": "comparison", "schema_version": 1}', '{"a": 1}', "\x00\xff"],
)
def test_damaged_and_foreign_results_are_sentences(evals, open_evals, content):
    (evals / "core.json").write_text(content)
    app = open_evals()
    assert not app.exception and len(app.warning) == 1
    assert "core.json" in words(app)


def test_no_result_says_how_to_make_one(evals, open_evals):
    assert "saelab eval core" in words(open_evals())


def test_rows_beside_a_result_are_shown(evals, open_evals):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"latent": list(range(400))}), evals / "rows.parquet")
    write_evaluation_result(
        evals / "core.json", result_of("core", item_files={"features": "rows.parquet"})
    )
    app = open_evals()
    assert app.dataframe[-1].value["latent"].tolist() == list(range(300))
    assert "The first 300 of 400 rows" in words(app)
    (evals / "rows.parquet").write_bytes(b"no parquet")
    app = open_evals()
    assert not app.exception and "rows.parquet cannot be read" in words(app)


def comparison(**changes):
    spread = {"mean": 0.25, "sd": 0.01, "n": 2}
    return {
        "kind": "comparison",
        "schema_version": 1,
        "notes": ["Only two seeds."],
        "spread": "mean ± standard deviation",
        "made_from": {"model": "toy-model", "hook_point": "blocks.0.hook_resid_post"},
        "dictionaries": [{}, {}],
        "definitions": {"fvu": {"heading": "FVU", "unit": "1", "definition": "<i>share</i>"}},
        "rows": [
            {"label": "topk", "d_sae": 12, "k": 4.0, "seeds": [0, 1], "values": {"fvu": spread}},
            {"label": "relu", "d_sae": 12, "k": None, "seeds": [0], "values": {}},
        ],
        "figure_data": {},
        **changes,
    }


def write_comparison(tmp_path, **changes):
    folder = tmp_path / "runs" / "compared"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.json").write_text(json.dumps(comparison(**changes)))


def test_a_comparison_below_the_folders_is_found(tmp_path, evals, open_evals):
    write_evaluation_result(evals / "core.json", result_of("core"))
    write_comparison(tmp_path)
    app = open_evals(suite="comparison runs/compared")
    assert not app.exception and not app.warning
    assert "2 dictionaries of 2 training methods" in words(app) and "Only two seeds." in words(app)
    page = html_of(app)
    assert "0.25 ± 0.01" in page and "—" in page and "&lt;i&gt;share&lt;/i&gt;" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": [3]}, "a row that is no object"),
        ({"rows": [{"label": "a"}]}, "'seeds' is missing"),
        ({"definitions": {"fvu": {"heading": "FVU"}}}, "'unit' is missing"),
        ({"schema_version": 99}, "schema version 99"),
        ({"figure_data": {"pareto": [{"wrong": 1}]}}, "cannot be drawn"),
    ],
)
def test_damaged_comparisons_are_sentences(tmp_path, evals, open_evals, changes, message):
    del evals
    write_comparison(tmp_path, **changes)
    app = open_evals(suite="comparison runs/compared")
    assert not app.exception and message in words(app)


def test_a_comparison_alone_is_read_and_refused_elsewhere(tmp_path):
    from saelab.dashboards.comparisons import find_comparisons, read_comparison

    write_comparison(tmp_path)
    found = find_comparisons([tmp_path / "runs", tmp_path / "missing"])
    assert list(found) == ["runs/compared"]
    assert read_comparison(found["runs/compared"]).rows[0]["label"] == "topk"
    with pytest.raises(ArtifactError, match=r"does not exist|cannot be read|missing"):
        read_comparison(tmp_path / "compare.json")
