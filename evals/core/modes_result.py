"""From what the inference modes did to metrics, figure data and a section of the report."""

from __future__ import annotations

from dataclasses import replace

from saelab.formats.evaluation_result import EvaluationResult, MeasuredMetric
from saelab.report import Report, figures_of
from saelab.report.mode_figures import FIGURE, MODE_LABELS, WARNING
from saelab.stats.metric_definitions import INFERENCE_MODES, MODES_GROUP
from saelab.stats.metrics import METRICS, define, loss_recovered

from .losses import LossFindings
from .modes import SHUFFLE_SEED, ModeFindings

COLUMNS = {
    "l0_mean": "L0",
    "fvu": "FVU",
    "loss_spliced": "loss, spliced (nats per token)",
    "loss_recovered_zero": "loss recovered (zero)",
    "loss_recovered_mean": "loss recovered (mean)",
    "kl": "KL (nats per token)",
}


def mode_values(
    findings: ModeFindings, losses: LossFindings, index: int
) -> dict[str, float | int | None]:
    """The group "Inference modes" by metric name.

    Args:
        findings: of the dictionary's modes.
        losses: what was measured on the same tokens.
        index: the dictionary's place in `losses`.
    """
    n = losses.n_positions
    clean, zero, mean = losses.clean / n, losses.zero_ablation / n, losses.mean_ablation[index] / n
    found: dict[str, float | int | None] = {}
    for mode, sums in findings.sums.items():
        rows = sums.reconstruction.values()
        spliced = sums.spliced / n
        values = {
            "l0_mean": sums.active / rows["n_rows"],
            "fvu": rows["fvu"],
            "loss_spliced": spliced,
            "loss_recovered_zero": loss_recovered(clean, spliced, zero),
            "loss_recovered_mean": loss_recovered(clean, spliced, mean),
            "kl": sums.kl / n,
        }
        found |= {f"mode_{mode}_{name}": value for name, value in values.items()}
        found["mode_n_rows"] = rows["n_rows"]
    return found


def with_modes(
    result: EvaluationResult, findings: ModeFindings, losses: LossFindings, index: int
) -> EvaluationResult:
    """A dictionary's result with the numbers of its modes added, and nothing else changed.

    Args:
        result: without them.
        findings: of this dictionary's modes.
        losses: what was measured on the same tokens.
        index: the dictionary's place in `losses`.
    """
    values, modes = mode_values(findings, losses, index), findings.modes
    facts = {
        "n_mode_rows": values["mode_n_rows"],
        "n_loss_positions": losses.n_positions,
        "mode_beta": f"{modes.beta:g}",
        "mode_threshold": f"{modes.threshold_value:.4g} activation units",
    }
    metrics = tuple(
        MeasuredMetric(
            name=name, value=values[name], unit=metric.unit, definition=define(name, **facts)
        )
        for name, metric in METRICS.items()
        if name in values
    )
    figure = {
        "mode": list(INFERENCE_MODES),
        **{name: [values[f"mode_{mode}_{name}"] for mode in INFERENCE_MODES] for name in COLUMNS},
        "n_rows": values["mode_n_rows"],
        "n_positions": losses.n_positions,
        "mean_source": result.settings["mean_ablation"],
    }
    settings = {
        "beta": modes.beta,
        "gradient_rms": modes.gradient_rms,
        "gradient_scale": "token" if modes.per_token else "all",
        "threshold": modes.threshold_value,
        "control_shuffle_seed": SHUFFLE_SEED,
    }
    return replace(
        result,
        metrics=result.metrics + metrics,
        figure_data=result.figure_data | {FIGURE: figure},
        settings=result.settings | {"inference_modes": settings},
        seed=SHUFFLE_SEED,
    )


def add_modes_section(report: Report, result: EvaluationResult) -> None:
    """The section of the modes; nothing for a dictionary that has none."""
    if FIGURE not in result.figure_data:
        return
    report.add_heading(MODES_GROUP).add_text(
        "Everything above is the plain top-k mode. This section runs the same dictionary in its "
        f"other modes, on the tokens on which losses are measured. {WARNING}"
    )
    report.add_table(
        "The modes side by side; definitions are at the end",
        ["mode", *COLUMNS.values()],
        [
            [MODE_LABELS[mode], *(result.value(f"mode_{mode}_{name}") for name in COLUMNS)]
            for mode in INFERENCE_MODES
        ],
    )
    report.add_figures([figure for figure in figures_of(result) if figure.name == FIGURE])
