"""A new suite is one file and one registry line; everything else it gets from the runner."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest

from saelab.cli import main
from saelab.dictionary import load_dictionary
from saelab.errors import ArtifactError, ConfigError
from saelab.evals import command
from saelab.evals.suite import Definition, Measurement, Suite, evaluate
from saelab.evals.terminal import show
from saelab.formats.chart import Axis, Chart, Series
from saelab.formats.evaluation_result import (
    EvaluationResult,
    MeasuredMetric,
    Table,
    read_evaluation_result,
)
from saelab.formats.lock import writer_lock

MEASURED: list[str] = []


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """How the toy counts."""

    n_columns: int = 3
    """Columns to count."""
    out: Path | None = None
    """Folder for the results."""
    overwrite: bool = False
    """Replace an existing result."""


def measure(folders, outs, config):
    for folder, out in zip(folders, outs, strict=True):
        saved = load_dictionary(folder)
        MEASURED.append(saved.name)
        norms = saved.dictionary.W_dec.norm(dim=1)[: config.n_columns].tolist()
        yield Measurement(
            name=saved.name,
            content_hash=saved.content_hash,
            out=out,
            numbers={"mean_norm": sum(norms) / len(norms)},
            made_from={"d_sae": saved.dictionary.d_sae},
            facts={"n": len(norms)},
            data={"norms": norms},
            rows={"latents": {"latent": list(range(len(norms))), "norm": norms}},
        )


TOY = Suite(
    name="toy-norms",
    summary="Norms of decoder rows.",
    Config=ToyConfig,
    measure=measure,
    definitions=lambda facts: [
        Definition(name="mean_norm", unit="1", text=f"Mean norm of {facts['n']} decoder rows.")
    ],
    charts=lambda data: [
        Chart(
            name="norms",
            title="Norms of the decoder rows",
            caption="The norm of each decoder row.",
            x=Axis(title="latent"),
            y=Axis(title="norm (ratio)"),
            series=(Series(name="norm", x=[*range(len(data["norms"]))], y=data["norms"]),),
        )
    ],
    tables=lambda data: [Table(title="First norm", columns=("norm",), rows=((data["norms"][0],),))],
    headline=("mean_norm",),
    shown={"mean_norm": "mean norm"},
)


@pytest.fixture
def toy(monkeypatch):
    """The toy suite, registered by its one line."""
    module = ModuleType("toy_suite")
    module.SUITE = TOY  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_suite", module)
    monkeypatch.setitem(command.SUITES, "toy-norms", ("toy_suite", "norms of decoder rows"))
    MEASURED.clear()
    return TOY


def test_one_file_and_one_line_give_everything(toy, save_trained, topk_dictionary, capsys):
    from pyarrow import parquet

    folder = save_trained(topk_dictionary(), "sae")
    assert main(["eval", "toy-norms", str(folder), "--n-columns", "4"]) == 0
    shown = capsys.readouterr().out
    assert "mean norm" in shown and "toy_norms.html" in shown
    evals = folder / "evals"
    assert sorted(path.name for path in evals.iterdir()) == [
        "toy_norms.html",
        "toy_norms.json",
        "toy_norms_latents.parquet",
    ]
    result = read_evaluation_result(evals / "toy_norms.json")
    assert result.value("mean_norm") == pytest.approx(1)
    assert result.metrics[0].definition == "Mean norm of 4 decoder rows."
    assert result.settings["n_columns"] == 4
    assert parquet.read_table(evals / "toy_norms_latents.parquet").num_rows == 4
    assert "Norms of the decoder rows" in (evals / "toy_norms.html").read_text()
    assert main(["eval", "--help"]) == 0
    assert "norms of decoder rows" in capsys.readouterr().out
    assert {"--n-columns", "--overwrite"} <= set(command.completion_options())
    assert "toy-norms" in command.completion_values()


def test_its_page_is_made_again_without_the_suite(toy, save_trained, topk_dictionary, capsys):
    folder = save_trained(topk_dictionary(), "sae")
    [(path, _)] = evaluate(toy, [folder], ToyConfig())
    page = path.with_suffix(".html")
    before = page.read_bytes()
    page.unlink()
    sys.modules.pop("toy_suite")
    assert main(["report", str(path.parent)]) == 0
    assert str(page) in capsys.readouterr().out
    assert page.read_bytes() == before
    assert main(["report", str(path), "--out", str(path.parent / "elsewhere.html")]) == 0
    assert (path.parent / "elsewhere.html").read_bytes() == before
    assert main(["report", str(path.parent / "none.json")]) == 2
    assert main(["report"]) == 2


def test_the_dashboard_draws_its_charts_without_the_suite(toy, save_trained, topk_dictionary):
    from saelab.report.draw import draw

    [(path, _)] = evaluate(toy, [save_trained(topk_dictionary(), "sae")], ToyConfig())
    sys.modules.pop("toy_suite")
    [figure] = [draw(chart) for chart in read_evaluation_result(path).charts]
    assert figure.title == "Norms of the decoder rows"
    assert figure.data["norm (ratio)"] == pytest.approx([1, 1, 1])


def test_the_same_call_again_keeps_results_and_other_settings_are_refused(
    toy, save_trained, topk_dictionary, caplog
):
    folders = [save_trained(topk_dictionary(seed), f"sae{seed}") for seed in range(2)]
    evaluate(toy, folders[:1], ToyConfig())
    with caplog.at_level("INFO"):
        results = evaluate(toy, folders, ToyConfig())
    assert MEASURED == ["sae0", "sae1"]
    assert [result.dictionary_name for _, result in results] == ["sae0", "sae1"]
    assert "kept" in caplog.text
    with pytest.raises(ConfigError, match=r"of other settings: add --overwrite.*other settings"):
        evaluate(toy, folders, ToyConfig(n_columns=5))
    evaluate(toy, folders, ToyConfig(n_columns=5, overwrite=True))
    assert MEASURED == ["sae0", "sae1", "sae0", "sae1"]


def test_edited_results_and_rows_are_refused_in_words(toy, save_trained, topk_dictionary):
    from pyarrow import parquet

    folder = save_trained(topk_dictionary(0), "sae0")
    ((path, _),) = evaluate(toy, [folder], ToyConfig())
    rows, good = path.with_name("toy_norms_latents.parquet"), path.read_text()
    path.write_text(good.replace('"mean_norm"', '"mean_norms"'))
    with pytest.raises(ConfigError, match=r"toy_norms\.json .*edited.*add --overwrite"):
        evaluate(toy, [folder], ToyConfig())
    path.write_text(good)
    whole = rows.read_bytes()
    parquet.write_table(parquet.read_table(rows).slice(1), rows)
    with pytest.raises(ConfigError, match=r"latents\.parquet is not the file.*add --overwrite"):
        evaluate(toy, [folder], ToyConfig())
    with pytest.raises(ArtifactError, match=r"latents\.parquet is not the file"):
        read_evaluation_result(path)
    rows.write_bytes(whole)
    evaluate(toy, [folder], ToyConfig())
    assert MEASURED == ["sae0"]


def test_another_process_that_finishes_first_is_seen(toy, save_trained, topk_dictionary):
    """What is there is looked at only once nobody else can write it."""
    folder = save_trained(topk_dictionary(0), "sae0")
    with (
        writer_lock(folder / "evals" / "toy_norms.json"),
        pytest.raises(ConfigError, match=r"is being written by process \d+"),
    ):
        evaluate(toy, [folder], ToyConfig())
    together = replace(toy, folder=lambda config: folder / "evals")
    evaluate(toy, [folder], ToyConfig())
    with (
        writer_lock(folder / "evals" / "toy_norms.json"),
        pytest.raises(ConfigError, match=r"is being written by process \d+"),
    ):
        evaluate(together, [folder], ToyConfig())


def test_dictionaries_judged_together_are_kept_together_or_not_at_all(
    toy, save_trained, topk_dictionary
):
    folders = [save_trained(topk_dictionary(seed), f"sae{seed}") for seed in range(2)]
    jointly = replace(toy, groups=lambda dictionaries, _: [range(len(dictionaries))])
    evaluate(jointly, folders, ToyConfig())
    evaluate(jointly, folders, ToyConfig())
    assert MEASURED == ["sae0", "sae1"]
    (folders[1] / "evals" / "toy_norms.json").unlink()
    evaluate(jointly, folders, ToyConfig())
    assert MEASURED == ["sae0", "sae1"] * 2


def test_a_group_is_kept_whatever_other_groups_there_are(toy, save_trained, topk_dictionary):
    folders = [save_trained(topk_dictionary(seed), f"sae{seed}") for seed in range(3)]
    pairs = replace(
        toy, groups=lambda dictionaries, _: [[0, 1], [2]] if len(dictionaries) > 2 else [[0, 1]]
    )
    evaluate(pairs, folders[:2], ToyConfig())
    evaluate(pairs, folders, ToyConfig())
    assert MEASURED == ["sae0", "sae1", "sae2"]


def test_a_result_that_holds_more_serves_where_its_suite_says_so(
    toy, save_trained, topk_dictionary
):
    folder = save_trained(topk_dictionary(), "sae")
    evaluate(toy, [folder], ToyConfig(n_columns=5))
    lenient = replace(toy, serves={"n_columns": lambda measured, asked: measured >= asked})
    evaluate(lenient, [folder], ToyConfig(n_columns=3))
    with pytest.raises(ConfigError, match="it has n_columns 5, not 6"):
        evaluate(lenient, [folder], ToyConfig(n_columns=6))


def test_a_number_without_a_definition_is_a_mistake_of_the_suite(
    toy, save_trained, topk_dictionary
):
    silent = replace(toy, definitions=lambda facts: [])
    with pytest.raises(KeyError, match="toy-norms defines no number"):
        evaluate(silent, [save_trained(topk_dictionary(), "sae")], ToyConfig())


def test_results_of_the_first_version_still_open_with_their_numbers(tmp_path, capsys):
    """As the writer of version 1 left them: numbers and figure data, no charts."""
    old = {
        "kind": "evaluation_result",
        "schema_version": 1,
        "created": "2026-01-01T00:00:00+00:00",
        "library_versions": {"torch": "2.13.0"},
        "seed": None,
        "made_from": {"model": "tiny", "hook_point": "blocks.1.hook_resid_post"},
        "suite": "core",
        "dictionary": {"name": "sae", "hash": "ab" * 32},
        "settings": {"n_tokens": 640, "device": "cpu"},
        "metrics": [{"name": "fvu", "value": 0.25, "unit": "1", "definition": "what it says"}],
        "figure_data": {"losses": {"loss": {"clean": 3.0}}},
        "item_files": {"features": "core_features.parquet"},
    }
    path = tmp_path / "core.json"
    path.write_text(json.dumps(old))
    result = read_evaluation_result(path)
    assert result.value("fvu") == 0.25
    assert result.charts == ()
    assert "`saelab eval core FOLDER --overwrite`" in result.notes[0]
    assert main(["report", str(path)]) == 0
    assert "--overwrite" in (tmp_path / "core.html").read_text()
    path.write_text(json.dumps(old | {"charts": [{"name": 1}]}))
    with pytest.raises(ArtifactError, match="not a usable evaluation result"):
        read_evaluation_result(path)


def test_dictionaries_of_one_name_are_shown_with_their_run_and_hook_point(capsys):
    def result(hook_point):
        return EvaluationResult(
            suite="toy_norms",
            dictionary_name="topk-d8",
            dictionary_hash="a" * 64,
            settings={},
            made_from={"hook_point": hook_point},
            metrics=(MeasuredMetric(name="mean_norm", value=1.0, unit="1", definition="a norm"),),
        )

    end = "dictionaries/topk-d8/evals/toy_norms.json"
    runs = [
        (Path(f"runs/{run}/{end}"), result(f"blocks.{block}.hook_out"))
        for run, block in (("first", 0), ("second", 0), ("second", 1))
    ]
    show(TOY, runs)
    lines = " ".join(capsys.readouterr().out.split())
    assert "topk-d8 blocks.0.hook_out first" in lines
    assert "topk-d8 blocks.0.hook_out second" in lines
    assert "topk-d8 blocks.1.hook_out second" in lines
    show(TOY, runs[:2])
    assert "blocks.0" not in capsys.readouterr().out.partition("report")[0]
    show(TOY, runs[:1])
    assert "first" not in capsys.readouterr().out.partition("report")[0]
