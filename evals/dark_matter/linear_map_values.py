"""The numbers and figures of the analysis "linear-maps", with their definitions."""

from __future__ import annotations

import re
from typing import Any

from .definition import Definition
from .linear_maps import JOINT, OWN, TARGETS, LinearMapFindings

TARGET_WORDS = {
    "error": "the error",
    "linear": "the linear error",
    "nonlinear": "the nonlinear error",
}


def definitions(findings: LinearMapFindings) -> dict[str, Definition]:
    """Unit and sentence of every value."""
    rows = (
        f"least squares with a constant on {findings.n_train_rows:,} rows, scored on "
        f"{findings.n_test_rows:,} rows of other contexts"
    )
    found: dict[str, Definition] = {}
    for source in findings.scores:
        output = _words(source)
        for target in TARGETS:
            what = f"of {TARGET_WORDS[target]} predicted from {output}; {rows}."
            found[f"map_r2_{target}_from_{slug(source)}"] = Definition(
                "1", f"R² {what} Unweighted mean over the dimensions that vary."
            )
            found[f"map_r2_pooled_{target}_from_{slug(source)}"] = Definition(
                "1", f"R² {what} Pooled over dimensions."
            )
        found[f"map_fvu_corrected_{slug(source)}"] = Definition(
            "1",
            f"FVU of the reconstruction once the error predicted from {output} is added; {rows}.",
        )
    found["map_fvu"] = Definition(
        "1", f"FVU of the plain reconstruction on the same {findings.n_test_rows:,} rows."
    )
    found["map_n_train_rows"] = Definition("rows", "Rows that the maps are fitted on.")
    found["map_n_test_rows"] = Definition("rows", "Rows of other contexts they are scored on.")
    return found


def values(findings: LinearMapFindings) -> dict[str, float | int | None]:
    """Every number by name."""
    found: dict[str, float | int | None] = {}
    for source, by_target in findings.scores.items():
        for target, score in by_target.items():
            found[f"map_r2_{target}_from_{slug(source)}"] = score.mean_r_squared
            found[f"map_r2_pooled_{target}_from_{slug(source)}"] = score.pooled_r_squared
        found[f"map_fvu_corrected_{slug(source)}"] = findings.fvu_corrected[source]
    found["map_fvu"] = findings.fvu
    found["map_n_train_rows"] = findings.n_train_rows
    found["map_n_test_rows"] = findings.n_test_rows
    return found


def figure_data(findings: LinearMapFindings) -> dict[str, dict[str, Any]]:
    """Data of the figure "linear_maps"."""
    data: dict[str, Any] = {
        "source": list(findings.scores),
        "fvu": findings.fvu,
        "fvu_corrected": list(findings.fvu_corrected.values()),
        "n_train_rows": findings.n_train_rows,
        "n_test_rows": findings.n_test_rows,
    }
    for target in TARGETS:
        scores = [by_target[target] for by_target in findings.scores.values()]
        data[target] = [score.mean_r_squared for score in scores]
        data[f"{target}_pooled"] = [score.pooled_r_squared for score in scores]
    return {"linear_maps": data}


def slug(source: str) -> str:
    """A source's name as part of a number's name."""
    named = {OWN: "same_hook_point", JOINT: "all_sources"}
    return named.get(source) or re.sub(r"[^A-Za-z0-9]+", "_", source)


def _words(source: str) -> str:
    if source == OWN:
        return "the dictionary's own output at the same hook point (a control)"
    if source == JOINT:
        return "the outputs of all sources together"
    return f"the output of the dictionary at {source}"
