"""The Evals page: results of known, unknown, damaged and foreign suites, and comparisons."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from toy_store import decoder, page_opener, write_dictionary

from saelab.errors import ArtifactError
from saelab.formats.chart import Axis, Chart, Series
from saelab.formats.evaluation_result import (
    EvaluationResult,
    MeasuredMetric,
    Table,
    read_evaluation_result,
    write_evaluation_result,
)
from saelab.formats.manifest import seal


def metric(name, value, definition="as planted"):
    return MeasuredMetric(name=name, value=value, unit="1", definition=definition)


def chart(**changes):
    fields = {
        "name": "bars",
        "title": "Planted bars",
        "caption": "What is planted.",
        "x": Axis(title="kind"),
        "y": Axis(title="height (1)"),
        "series": (Series(name="heights", x=["a"], y=[7], mark="bars"),),
    }
    return Chart(**fields | changes)


def result_of(suite, **changes):
    fields = {
        "suite": suite,
        "dictionary_name": "first",
        "dictionary_hash": "toyhash",
        "settings": {"n_tokens": 512, "text": {"source": "<script>x</script>"}},
        "made_from": {"model": "toy-model", "hook_point": "blocks.0.hook_resid_post"},
        "metrics": (metric("fvu", 0.25), metric("made_up_number", None, "<b>none</b> of it")),
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


def test_any_suite_is_drawn_from_its_result_alone(evals, open_evals):
    table = Table(title="Planted table", columns=("a", "b"), rows=(("<i>x</i>", 3),), section="Own")
    numbers = (
        replace(metric("fvu", 0.25), group="Reconstruction of planted rows"),
        metric("made_up_number", 3),
    )
    planted = result_of(
        "made_up", charts=(chart(),), tables=(table,), notes=("Read this.",), metrics=numbers
    )
    write_evaluation_result(evals / "made_up.json", planted)
    app = open_evals()
    assert not app.exception and not app.warning
    assert [drawn.proto.alt for drawn in app.get("plotly_chart")] == [
        "Bars of height (1) against kind: heights a 7."
    ]
    assert "Planted bars" in words(app) and "What is planted." in words(app)
    assert "Read this." in words(app) and "Own" in words(app)
    page = html_of(app)
    assert "Planted table" in page and "&lt;i&gt;x&lt;/i&gt;" in page
    assert "Reconstruction of planted rows" in page


def test_every_number_stands_with_unit_and_definition(evals, open_evals):
    write_evaluation_result(evals / "core.json", result_of("core"))
    app = open_evals()
    page = html_of(app)
    assert not app.exception and not app.warning
    assert "fvu" in page and "0.25" in page and "ratio" in page and "as planted" in page
    assert "undefined" in page and "&lt;b&gt;none&lt;/b&gt; of it" in page
    assert "<script>x" not in page
    app.text_input(key="evals_find").set_value("made up").run()
    assert app.query_params["find"] == "made up"
    assert "as planted" not in html_of(app) and "made_up_number" in html_of(app)
    app.text_input(key="evals_find").set_value("zzz").run()
    assert "No number has this word" in words(app)


def test_a_result_without_charts_says_how_to_get_them_and_shows_its_numbers(evals, open_evals):
    path = evals / "astrology.json"
    write_evaluation_result(path, result_of("astrology"))
    content = json.loads(path.read_text()) | {"schema_version": 1, "figure_data": {"x": [1]}}
    content.pop("self_hash", None)
    path.write_text(json.dumps(content))
    app = open_evals()
    assert not app.exception
    assert "saelab eval astrology FOLDER --overwrite" in words(app)
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


def test_charts_that_cannot_be_drawn_leave_the_numbers(evals, open_evals):
    broken = Series(name="a", x=["a", "b"], y=[1, 2], mark="bars", low=[0.5], high=[1.5])
    write_evaluation_result(
        evals / "core.json", result_of("core", charts=(chart(series=(broken,)),))
    )
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
    parquet.write_table(pyarrow.table({"latent": list(range(1, 401))}), evals / "rows.parquet")
    app = open_evals()
    assert not app.exception and "rows.parquet was changed since it was written" in words(app)
    assert "Every number and its definition" in words(app)


def test_edited_numbers_are_a_sentence(evals, open_evals):
    write_evaluation_result(evals / "core.json", result_of("core"))
    text = (evals / "core.json").read_text()
    (evals / "core.json").write_text(text.replace('"value": 0', '"value": 1'))
    app = open_evals()
    assert not app.exception and "core.json is incomplete or was edited" in words(app)


def write_planted_comparison(tmp_path, **changes):
    """A comparison with a table and a chart; `changes` edit the file."""
    folder = tmp_path / "runs" / "compared"
    folder.mkdir(parents=True, exist_ok=True)
    table = Table(
        title="mean ± standard deviation",
        columns=("method", "FVU"),
        rows=(("topk", "0.25 ± 0.01"), ("relu", "—")),
        section="Numbers",
    )
    result = result_of(
        "compare",
        dictionary_name="2 dictionaries",
        dictionary_hash="",
        metrics=(),
        title="2 training methods compared",
        subtitle="2 dictionaries of 2 training methods.",
        charts=(chart(),),
        tables=(table,),
        notes=("Only two seeds.",),
    )
    path = folder / "compare.json"
    write_evaluation_result(path, result)
    if changes:
        content = json.loads(path.read_text()) | changes
        content.pop("self_hash", None)
        # Sealed files would be refused for their hash; what is refused beside that is shown here.
        path.write_text(json.dumps(seal(content)))


@pytest.mark.parametrize("changes", [{}, {"kind": "comparison"}], ids=["today", "before"])
def test_a_comparison_below_the_folders_is_found(tmp_path, evals, open_evals, changes):
    write_evaluation_result(evals / "core.json", result_of("core"))
    write_planted_comparison(tmp_path, **changes)
    app = open_evals(suite="comparison runs/compared")
    assert not app.exception and not app.warning
    assert "2 dictionaries of 2 training methods" in words(app) and "Only two seeds." in words(app)
    page = html_of(app)
    assert "0.25 ± 0.01" in page and "—" in page
    assert len(app.get("plotly_chart")) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": [3]}, "metric 0 needs exactly"),
        ({"schema_version": 99}, "schema version 99"),
        ({"kind": "comparison", "schema_version": 99}, "schema version 99"),
        (
            {"kind": "comparison", "schema_version": 1},
            "make it again with `saelab compare RUN …",
        ),
        ({"charts": [{"wrong": 1}]}, "not a usable evaluation result"),
    ],
)
def test_damaged_comparisons_are_sentences(tmp_path, evals, open_evals, changes, message):
    del evals
    write_planted_comparison(tmp_path, **changes)
    app = open_evals(suite="comparison runs/compared")
    assert not app.exception and message in words(app)


def test_a_comparison_alone_is_read_and_refused_elsewhere(tmp_path):
    from saelab.dashboards.run_index import scan

    write_planted_comparison(tmp_path)
    found = scan([tmp_path / "runs", tmp_path / "missing"]).comparisons
    assert list(found) == ["runs/compared"]
    assert read_evaluation_result(found["runs/compared"]).tables[0].rows[0][0] == "topk"
    with pytest.raises(ArtifactError, match=r"does not exist|cannot be read|missing"):
        read_evaluation_result(tmp_path / "compare.json")
