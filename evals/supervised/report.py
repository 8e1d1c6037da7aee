"""The HTML page of a run: pictures first, then every headline number, then what each means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saelab.formats.evaluation_result import EvaluationResult
from saelab.report import Report, figures_of, unit_text

from .scores import MEASURES

OCCLUSION = ("occlusion",)
TEST_THREE = ("f1_histogram", "f1_sweep")


def write_report(path: Path, result: EvaluationResult) -> Path:
    """Write the page.

    Raises:
        ArtifactError: a figure cannot be drawn from its data.
    """
    origin, settings = result.made_from, result.settings
    report = Report(
        f"Supervised dictionaries on {origin['task']}",
        f"{_sentence(origin['title'])} Model {origin['model']}; {settings['n_fit']:,} fitting, "
        f"{settings['n_interpret']:,} interpreting and {settings['n_eval']:,} evaluated prompts "
        f"(split {settings['eval_split']}); {len(settings['prompt_seeds'])} prompt seed(s). "
        f"Judged: {result.dictionary_name}.",
    )
    for note in settings["notes"]:
        report.add_text(note)
    figures = {figure.name: figure for figure in figures_of(result)}
    last = (*TEST_THREE, *OCCLUSION)
    report.add_heading("Approximation and control")
    report.add_figures([figure for name, figure in figures.items() if name not in last])
    shown = [figures[name] for name in last if name in figures]
    if shown:
        report.add_heading("Interpretation and occlusion").add_figures(shown)
    scores = result.figure_data["scores"]
    report.add_heading("Numbers")
    _add_approximation(report, scores)
    _add_control(report, scores)
    _add_spread(report, result.figure_data["spread_over_seeds"])
    _add_checks(report, origin)
    report.add_heading("What every number means").add_table(
        "Units and definitions",
        ["number", "unit", "definition"],
        [[one.label, unit_text(one.unit), one.definition] for one in MEASURES.values()],
    )
    report.add_heading("Settings").add_table(
        "What decided the numbers",
        ["setting", "value"],
        [[name, _text(value)] for name, value in settings.items() if name != "notes"],
    )
    return report.write(path)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else value


def _interval(row: dict[str, Any]) -> str:
    if row["value"] is None:
        return "undefined"
    if row["low"] is None:
        return f"{row['value']:.3g}"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _add_approximation(report: Report, scores: list[dict[str, Any]]) -> None:
    wanted = ("sufficiency", "necessity", "recovered", "l0")
    rows: dict[tuple[Any, ...], dict[str, str]] = {}
    for one in scores:
        key = (one["section"], one["contender"], one["prompt_seed"])
        if one["measure"] in wanted:
            rows.setdefault(key, {})[one["measure"]] = _interval(one)
        if one["measure"] == "metric":
            rows.setdefault(key, {})[f"metric {one['mode']}"] = _interval(one)
    raw = ["metric reconstruction", "metric rest"]
    cells = [
        [
            contender,
            section,
            seed,
            *(found.get(name, "–") for name in wanted),
            *(found.get(name) or found.get(f"metric {contender}", "–") for name in raw[:1]),
            found.get(raw[1], "–"),
        ]
        for (section, contender, seed), found in rows.items()
    ]
    report.add_table(
        "Test 1, with the mean metrics behind the scores (95 % interval over prompts)",
        ["contender", "cross-section", "prompt seed", *wanted, *raw],
        cells,
    )


def _add_control(report: Report, scores: list[dict[str, Any]]) -> None:
    wanted = (
        "accuracy",
        "weight_removed",
        "isolation",
        "cause",
        "counterfactual_answer",
        "metric_fidelity",
        "kl",
        "distance",
    )
    rows: dict[tuple[Any, ...], dict[str, str]] = {}
    for one in scores:
        if one["edit"] and one["measure"] in wanted:
            key = tuple(one[name] for name in ("contender", "section", "edit", "mode", "k"))
            rows.setdefault((*key, one["prompt_seed"]), {})[one["measure"]] = _interval(one)
    report.add_table(
        "Test 2: edits (95 % interval over prompts)",
        [
            "contender",
            "cross-section",
            "edit",
            "how",
            "k",
            "prompt seed",
            *(MEASURES[name].label for name in wanted),
        ],
        [
            [*("–" if part is None else part for part in key), *(f.get(n, "–") for n in wanted)]
            for key, f in rows.items()
        ],
    )


def _add_spread(report: Report, spread: list[dict[str, Any]]) -> None:
    shown = [
        row
        for row in spread
        if row["measure"] in ("sufficiency", "necessity", "accuracy") and row["n_seeds"] > 1
    ]
    if not shown:
        return
    report.add_table(
        "Spread over seeds of training and prompts",
        ["contender", "cross-section", "measure", "edit", "how", "k", "seeds", "mean", "sd"],
        [
            [
                row["group"],
                row["section"],
                row["measure"],
                row["edit"],
                row["mode"],
                "–" if row["k"] is None else row["k"],
                row["n_seeds"],
                row["mean"],
                row["standard_deviation"],
            ]
            for row in shown
        ],
    )


def _add_checks(report: Report, origin: dict[str, Any]) -> None:
    rows = [
        [name, seed, _text(value)]
        for seed, found in origin["checks"].items()
        for name, value in found.items()
    ]
    report.add_table("Checked before judging", ["check", "prompt seed", "value"], rows)
    report.add_table(
        "Cross-sections",
        ["name", "sites", "edits"],
        [
            [name, ", ".join(one["sites"]), ", ".join(one["edits"])]
            for name, one in origin["cross_sections"].items()
        ],
    )
