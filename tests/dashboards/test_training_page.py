"""The Training page and what it reads: whole, half-written, empty and foreign logs."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from toy_store import page_opener

from saelab.errors import ArtifactError
from saelab.formats.lock import writer_lock
from saelab.formats.run_log import Curve, read_history
from saelab.report.training_figures import training_figure


def line(step, name="a-k2", **numbers):
    return {"step": step, "dictionary": name, "tokens": 100 * step, **numbers}


def write_log(path, lines, tail=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in lines) + tail)
    return path


LINES = [
    line(step, name, loss=1 / step, fvu=0.5 / step, l0=k, dead_fraction=0.1 * (step - 1))
    for step in (1, 2, 3)
    for name, k in (("a-k2", 2.0), ("b-k4", 4.0))
]


def write_run(root, name, lines, status="complete", tail=""):
    write_log(root / name / "metrics.jsonl", lines, tail)
    (root / name / "run.json").write_text(
        json.dumps(
            {
                "kind": "training_run",
                "schema_version": 1,
                "created": "2026-01-01T00:00:00+00:00",
                "status": status,
            }
        )
    )


def words(app):
    parts = [*app.title, *app.markdown, *app.caption, *app.info, *app.warning]
    return "\n".join(str(part.value) for part in parts).replace("\\", "").replace("\u2060", "")


def data_of(app):
    return [frame.value for frame in app.dataframe]


def test_history_is_what_was_written(tmp_path):
    history = read_history(write_log(tmp_path / "m.jsonl", LINES))
    assert history.dictionaries == ["a-k2", "b-k4"]
    assert history.numbers == ["loss", "fvu", "l0", "dead_fraction"]
    assert history.curves["b-k4"]["fvu"] == Curve([100, 200, 300], [0.5, 0.25, 0.5 / 3])
    assert history.last_tokens == 300


def test_undefined_numbers_and_texts_are_no_points(tmp_path):
    odd = [line(1, speed=None, note="x", ok=True, fvu=float("nan")), line(2, speed=3)]
    history = read_history(write_log(tmp_path / "m.jsonl", odd))
    assert history.curves["a-k2"] == {"speed": Curve([200], [3])}


@pytest.mark.parametrize("tail", ['{"step": 4, "dictio', "{", '{"step": 4, "a": 1.0}'[:-1]])
def test_a_half_written_last_line_is_left_out(tmp_path, tail):
    whole = read_history(write_log(tmp_path / "a.jsonl", LINES))
    assert read_history(write_log(tmp_path / "b.jsonl", LINES, tail)) == whole


def test_an_empty_log_has_no_curves(tmp_path):
    assert read_history(write_log(tmp_path / "m.jsonl", [])).curves == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00binary\n", "not a log of training metrics"),
        (b'[1, 2]\n{"a": 1}\n', "line 1, is no JSON object"),
        (b'{"step": 1}\n{"step": 2}\n', "names no dictionary"),
        (b"hello\nworld\n", "is not JSON"),
    ],
)
def test_foreign_files_are_refused_in_words(tmp_path, content, message):
    (tmp_path / "m.jsonl").write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        read_history(tmp_path / "m.jsonl")


def test_a_missing_log_is_refused_in_words(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        read_history(tmp_path / "nothing.jsonl")


def test_figure_leaves_out_what_a_log_scale_cannot_show():
    curves = {"a": Curve([0, 1, 2], [0.0, 0.5, 0.25]), "b": Curve([0, 1], [0.0, -1.0])}
    figure = training_figure("dead_fraction", curves, ["a", "b"], scale="log", x_scale="log")
    assert figure.data["dictionary"] == ["a", "a"] and figure.data["tokens"] == [1, 2]
    assert figure.plot.layout.xaxis.type == figure.plot.layout.yaxis.type == "log"
    assert "a from 0.5 to 0.25 at 2 tokens" in figure.alt
    assert training_figure("fvu", {"b": curves["b"]}, ["b"], scale="log") is None
    linear = training_figure("something_new", curves, ["a", "b"])
    assert linear.title == "Something new" and len(linear.data["tokens"]) == 5


def test_page_draws_every_number_of_every_dictionary(tmp_path, monkeypatch):
    write_run(tmp_path / "runs", "one", LINES)
    app = page_opener(monkeypatch, tmp_path / "runs")("training")
    assert not app.exception and not app.warning
    charts = app.get("plotly_chart")
    assert len(charts) == 4
    assert "a-k2 from 1 to 0.3333 at 300 tokens; b-k4 from" in charts[0].proto.alt
    assert data_of(app)[2]["latents per token"].tolist() == [2, 2, 2, 4, 4, 4]
    assert "runs/one: finished, 300 tokens." in words(app)
    assert "2 dictionaries logged." in words(app)


def test_choices_are_in_the_address(tmp_path, monkeypatch):
    write_run(tmp_path / "runs", "one", LINES)
    opener = page_opener(monkeypatch, tmp_path / "runs")
    app = opener("training", lines="b-k4", show="fvu", scale="linear", logx="True")
    assert len(app.get("plotly_chart")) == 1
    assert data_of(app)[0]["dictionary"].unique().tolist() == ["b-k4"]
    app.multiselect(key="training_show").set_value(["l0", "loss"]).run()
    assert app.query_params["show"] == "l0,loss"
    app.multiselect(key="training_lines").set_value([]).run()
    assert "Choose a dictionary" in words(app)


def test_several_runs_are_overlaid(tmp_path, monkeypatch):
    write_run(tmp_path / "runs", "one", LINES)
    write_run(tmp_path / "runs", "two", LINES[:2])
    opener = page_opener(monkeypatch, tmp_path / "runs")
    app = opener("training", runs="runs/one,runs/two", show="fvu")
    assert not app.exception
    names = data_of(app)[0]["dictionary"].unique().tolist()
    assert names == [
        "runs/one: a-k2",
        "runs/one: b-k4",
        "runs/two: a-k2",
        "runs/two: b-k4",
    ]


def test_a_run_under_way_is_watched_and_grows(tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "one"
    lines = [{**one, "tokens_per_second": 10.0} for one in LINES[::2]]
    write_run(tmp_path / "runs", "one", lines[:2], status="running", tail='{"step": 3, "dic')
    content = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(content | {"config": {"n_tokens": 1000}}))
    with writer_lock(folder):
        app = page_opener(monkeypatch, tmp_path / "runs")("training", show="fvu")
        said = "runs/one: running, 200 tokens of 1,000 (20%), about 1 min 20 s left."
        assert said in words(app) and "1 dictionary logged." in words(app)
        assert max(data_of(app)[0]["tokens"]) == 200
        time.sleep(0.02)
        write_log(folder / "metrics.jsonl", lines)
        app.run()
        assert "300 tokens of 1,000 (30%), about 1 min 10 s left." in words(app)
        assert max(data_of(app)[0]["tokens"]) == 300
    app.run()
    assert "runs/one: stopped before its end; `saelab train`" in words(app)
    assert "300 tokens of 1,000 (30%)." in words(app) and " left" not in words(app)
    killed = "import os; from pathlib import Path; from saelab.formats.lock import writer_lock\n"
    killed += f"with writer_lock(Path({str(folder)!r})): os._exit(9)"
    subprocess.run([sys.executable, "-c", killed], check=False)
    app.run()
    assert "runs/one: killed before its end" in words(app)


def test_no_log_an_empty_log_and_a_foreign_one_are_sentences(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    app = page_opener(monkeypatch, tmp_path / "runs")("training")
    assert "No training run with a log" in words(app)
    write_run(tmp_path / "empty", "one", [], status="running")
    app = page_opener(monkeypatch, tmp_path / "empty")("training")
    assert "Nothing is logged yet" in words(app)
    write_run(tmp_path / "odd", "one", [{"a": 1}, {"b": 2}])
    app = page_opener(monkeypatch, tmp_path / "odd")("training")
    assert "is not a line of training metrics" in words(app) and not app.exception
