"""The numbers and figures of the analysis "downstream", with their definitions."""

from __future__ import annotations

from typing import Any

from .definition import Definition
from .downstream import CONDITIONS, CONTROLS, PARTS, DownstreamFindings

SPLICED = {
    "identity": "the reconstruction with both parts of the error added, which is the activation",
    "sae": "the reconstruction",
    "sae_linear": "the reconstruction with the linear error added",
    "sae_nonlinear": "the reconstruction with the nonlinear error added",
    "random_error": "the activation moved in a random direction by the norm of its error",
    "sae_linear_random": "the reconstruction with a random vector of the linear error's norm added",
    "sae_linear_shuffled": "the reconstruction with another row's linear error, at this row's norm",
    "sae_nonlinear_random": (
        "the reconstruction with a random vector of the nonlinear error's norm added"
    ),
    "sae_nonlinear_shuffled": (
        "the reconstruction with another row's nonlinear error, at this row's norm"
    ),
}
SCOPE = "over {downstream_n_positions:,} predicted positions of held-out text"


def definitions(findings: DownstreamFindings) -> dict[str, Definition]:
    """Unit and sentence of every value."""
    scope = SCOPE.format(downstream_n_positions=findings.n_positions)
    if findings.first_position:
        scope += f" from position {findings.first_position} on, the earlier ones untouched"
    found = {
        "downstream_loss_original": Definition(
            "nats per token", f"Mean next-token loss of the untouched model, {scope}."
        )
    }
    for name, words in SPLICED.items():
        found[f"downstream_loss_{name}"] = Definition(
            "nats per token", f"Mean next-token loss with {words} in place of each row, {scope}."
        )
        found[f"downstream_kl_{name}"] = Definition(
            "nats per token", f"Mean KL(original || spliced) with {words} in place, {scope}."
        )
    found["downstream_identity_deviation"] = Definition(
        "1",
        "Largest norm of activation − (reconstruction + linear + nonlinear error) over the "
        "activation's norm: rounding only.",
    )
    found["downstream_random_error_ratio"] = Definition(
        "1",
        "Loss added by a random error of each row's own error norm over the loss added by the "
        "reconstruction; below 1, the dictionary's errors hurt more than random ones as long.",
    )
    for part in PARTS:
        found |= _part_definitions(part)
    found["downstream_n_positions"] = Definition("positions", "Predicted positions, as above.")
    found["downstream_n_rows"] = Definition("rows", "Rows replaced in each condition.")
    return found


def _part_definitions(part: str) -> dict[str, Definition]:
    other = PARTS[1 - PARTS.index(part)]
    found = {
        f"downstream_recovered_ce_{part}": Definition(
            "%",
            f"Share of the loss that the reconstruction adds which adding the {part} error takes "
            "back: 100 (CE_sae − CE_part) / (CE_sae − CE_original). The shares of the two parts "
            "need not add up to 100.",
        ),
        f"downstream_removed_ce_{part}": Definition(
            "%",
            f"Loss added by taking the {part} error away from the activation (which leaves the "
            f"reconstruction and the {other} error), as a share of what the reconstruction adds.",
        ),
        f"downstream_recovered_r_squared_{part}": Definition(
            "%",
            f"Share of the summed squared error that adding the {part} error takes back: "
            "100 (R²_sae − R²_part) / (R²_sae − 1), R² pooled over dimensions.",
        ),
        f"downstream_norm_share_{part}": Definition(
            "%", f"Mean norm of the {part} error over the mean norm of the error."
        ),
        f"downstream_norm_share_per_row_{part}": Definition(
            "%", f"Mean over rows of the norm of the {part} error over the norm of the error."
        ),
    }
    for control in CONTROLS:
        found[f"downstream_recovered_ce_{part}_{control}"] = Definition(
            "%",
            f"As downstream_recovered_ce_{part}, with {SPLICED[f'sae_{part}_{control}']}: a "
            "control, which a part worth anything exceeds.",
        )
    return found


def values(findings: DownstreamFindings) -> dict[str, float | int | None]:
    """Every number by name; None where the reconstruction adds no loss or no error."""
    n, added = findings.n_positions, findings.loss["sae"] - findings.original
    found: dict[str, float | int | None] = {"downstream_loss_original": findings.original / n}
    for name in CONDITIONS:
        found[f"downstream_loss_{name}"] = findings.loss[name] / n
        found[f"downstream_kl_{name}"] = findings.kl[name] / n
    found["downstream_identity_deviation"] = findings.identity_deviation
    found["downstream_random_error_ratio"] = (
        (findings.loss["random_error"] - findings.original) / added if added > 0 else None
    )

    def back(condition: str) -> float | None:
        return (
            100 * (findings.loss["sae"] - findings.loss[condition]) / added if added > 0 else None
        )

    squares, norms = findings.squares, findings.norms
    for part, other in zip(PARTS, reversed(PARTS), strict=True):
        found[f"downstream_recovered_ce_{part}"] = back(f"sae_{part}")
        kept = back(f"sae_{other}")
        found[f"downstream_removed_ce_{part}"] = None if kept is None else 100 - kept
        # What is left of the error once a part is added is the other part.
        found[f"downstream_recovered_r_squared_{part}"] = _percent(
            squares["error"] - squares[other], squares["error"]
        )
        found[f"downstream_norm_share_{part}"] = _percent(norms[part], norms["error"])
        found[f"downstream_norm_share_per_row_{part}"] = _percent(
            findings.norm_ratios[part], findings.n_rows_with_error
        )
        for control in CONTROLS:
            found[f"downstream_recovered_ce_{part}_{control}"] = back(f"sae_{part}_{control}")
    found["downstream_n_positions"] = n
    found["downstream_n_rows"] = findings.n_rows
    return found


def figure_data(findings: DownstreamFindings) -> dict[str, dict[str, Any]]:
    """Data of the figures "downstream_recovery" and "downstream_losses"."""
    found = values(findings)
    measures = ("recovered_ce", "recovered_r_squared", "norm_share", "norm_share_per_row")
    recovery: dict[str, Any] = {
        part: [found[f"downstream_{measure}_{part}"] for measure in measures]
        + [found[f"downstream_recovered_ce_{part}_{control}"] for control in CONTROLS]
        for part in PARTS
    }
    recovery |= {"measure": [*measures, *CONTROLS], "n_positions": findings.n_positions}
    losses = {
        "condition": list(CONDITIONS),
        "added_loss": [
            (findings.loss[name] - findings.original) / findings.n_positions for name in CONDITIONS
        ],
        "kl": [findings.kl[name] / findings.n_positions for name in CONDITIONS],
        "n_positions": findings.n_positions,
        "original": findings.original / findings.n_positions,
    }
    return {"downstream_recovery": recovery, "downstream_losses": losses}


def _percent(above: float, below: float | int) -> float | None:
    return 100 * above / below if below > 0 else None
