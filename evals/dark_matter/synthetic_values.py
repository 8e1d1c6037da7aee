"""The numbers and figures of the analysis "synthetic", with their definitions."""

from __future__ import annotations

from typing import Any

from .definition import Definition
from .synthetic_validation import SyntheticFindings

ESTIMATES = {"linear": "FVU − FVU_nonlinear", "nonlinear": "FVU_nonlinear"}


def definitions(findings: SyntheticFindings) -> dict[str, Definition]:
    """Unit and sentence of every value."""
    scope = (
        f"fitted on {findings.n_train_rows:,} rows of planted noise and scored on "
        f"{findings.n_test_rows:,} others"
    )
    found = {
        f"synthetic_correlation_{noise}_{estimate}": Definition(
            "1",
            f"Pearson correlation of the standard deviation of planted {noise} noise with "
            f"{ESTIMATES[estimate]} over a 5 × 5 grid of both noises; {scope}.",
        )
        for noise, estimate in findings.correlations
    }
    found["synthetic_fvu_clean"] = Definition(
        "1",
        "FVU of encoding and decoding a reconstruction once more, with no noise planted: what is "
        f"there before anything is planted; {scope}.",
    )
    found["synthetic_fvu_nonlinear_clean"] = Definition(
        "1", f"FVU_nonlinear there, with no noise planted; {scope}."
    )
    found["synthetic_deviation"] = Definition(
        "activation units",
        "Standard deviation of a reconstruction's entry about its dimension's mean, root mean "
        "square over dimensions: the unit of the planted noise.",
    )
    found["synthetic_never_active"] = Definition(
        "latents", "Latents that are never active on these rows; they are left out first."
    )
    return found


def values(findings: SyntheticFindings) -> dict[str, float | int | None]:
    """Every number by name."""
    clean = findings.grid[0]
    found: dict[str, float | int | None] = {
        f"synthetic_correlation_{noise}_{estimate}": value
        for (noise, estimate), value in findings.correlations.items()
    }
    return found | {
        "synthetic_fvu_clean": clean.fvu,
        "synthetic_fvu_nonlinear_clean": clean.fvu_nonlinear,
        "synthetic_deviation": findings.deviation,
        "synthetic_never_active": findings.n_never_active,
    }


def figure_data(findings: SyntheticFindings) -> dict[str, dict[str, Any]]:
    """Data of the figures "synthetic_grid" and "synthetic_ablation"."""
    columns = ("dense", "introduced", "ablated", "fvu", "fvu_nonlinear", "linear")
    facts = {"n_train_rows": findings.n_train_rows, "n_test_rows": findings.n_test_rows}
    grid: dict[str, Any] = {
        name: [getattr(cell, name) for cell in findings.grid] for name in columns
    }
    grid["correlations"] = [
        [noise, estimate, value] for (noise, estimate), value in findings.correlations.items()
    ]
    lines = {name: [getattr(cell, name) for cell in findings.lines] for name in columns}
    return {"synthetic_grid": grid | facts, "synthetic_ablation": lines | facts}
