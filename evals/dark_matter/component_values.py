"""The numbers and figures of the analysis "components", with their definitions."""

from __future__ import annotations

import re
from typing import Any

from saelab.dictionary.error_rows import ErrorComponent

from .definition import Definition
from .error_components import ComponentFindings, ComponentScore

WORDS: dict[ErrorComponent, str] = {
    "error": "the error",
    "linear": "the linear error",
    "nonlinear": "the nonlinear error",
}


def definitions(findings: ComponentFindings) -> dict[str, Definition]:
    """Unit and sentence of every value."""
    found = {
        f"component_variance_share_{part}": Definition(
            "1",
            f"Variance of {words} over the variance of the activations, pooled over dimensions, on "
            f"{findings.n_rows:,} held-out rows.",
        )
        for part, words in WORDS.items()
    }
    for score in findings.scores:
        words, key = WORDS[score.component], _key(score)
        trained = ", ".join(f"{name} {value}" for name, value in score.settings.items())
        found[f"component_fvu_{key}"] = Definition(
            "1",
            f"FVU of {words} by a dictionary trained on it ({trained}), on {findings.n_rows:,} "
            "held-out rows. Compare dictionaries of equal settings only.",
        )
        found[f"component_l0_{key}"] = Definition(
            "latents per row", f"Mean active latents of that dictionary on {words}."
        )
        found[f"component_dead_{key}"] = Definition(
            "1", f"Share of its latents never active on these rows of {words}."
        )
    return found


def values(findings: ComponentFindings) -> dict[str, float | int | None]:
    """Every number by name."""
    found: dict[str, float | int | None] = {
        f"component_variance_share_{part}": findings.variance_share[part] for part in WORDS
    }
    for score in findings.scores:
        key = _key(score)
        found[f"component_fvu_{key}"] = score.fvu
        found[f"component_l0_{key}"] = score.l0
        found[f"component_dead_{key}"] = score.dead
    return found


def figure_data(findings: ComponentFindings) -> dict[str, dict[str, Any]]:
    """Data of the figure "error_components"."""
    return {
        "error_components": {
            "component": [score.component for score in findings.scores],
            "settings": [_settings(score) for score in findings.scores],
            "fvu": [score.fvu for score in findings.scores],
            "l0": [score.l0 for score in findings.scores],
            "dead": [score.dead for score in findings.scores],
            "variance_share": {part: findings.variance_share[part] for part in WORDS},
            "n_rows": findings.n_rows,
        }
    }


def _settings(score: ComponentScore) -> str:
    s = score.settings
    return f"{s['method']}, {s['d_sae']} latents, k {s['target_l0']}, {s['n_tokens']} rows"


def _key(score: ComponentScore) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "_", score.name)
    return f"{score.component}_{name}"
