"""The figure of the inference modes that dictionaries trained with `gradient_topk` have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .figure import BLUE, GREEN, ORANGE, Figure, new_plot

FIGURE = "inference_modes"
MODE_LABELS = {
    "plain": "plain top-k (default)",
    "threshold": "threshold",
    "gradient_assisted": "gradient-assisted (uses labels)",
    "gradient_shuffled": "control: gradients shuffled across rows",
}
WARNING = (
    "The gradient-assisted mode reads the true next tokens through the gradient of the loss: it is "
    "no measure of a dictionary one could use without labels. Its control takes the gradients of "
    "other rows; a gain over plain top-k that the control lacks comes from the labels."
)
USES_GRADIENTS = ("gradient_assisted", "gradient_shuffled")
SERIES = {
    "fvu": ("FVU", BLUE),
    "loss_recovered_zero": ("recovered (zero)", GREEN),
    "loss_recovered_mean": ("recovered (mean)", ORANGE),
}
_TICKS = {
    "plain": "plain<br>top-k",
    "threshold": "threshold",
    "gradient_assisted": "gradient-<br>assisted<br>(uses labels)",
    "gradient_shuffled": "control:<br>shuffled<br>gradients",
}


def inference_modes(data: dict[str, Any]) -> Figure:
    """FVU and loss recovered of each mode, those that use gradients hatched."""
    modes = data["mode"]
    labels = [MODE_LABELS[mode] for mode in modes]
    values = [value for name in SERIES for value in data[name] if value is not None]
    low, high = min(0.0, *values), max(0.0, *values)
    margin = 0.25 * (high - low) or 0.1
    plot = new_plot(
        "mode",
        "ratio",
        x_axis={"tickangle": 0},
        range=[low - (margin if low < 0 else 0), high + margin],
    )
    for name, (label, colour) in SERIES.items():
        plot.add_bar(
            x=[_TICKS[mode] for mode in modes],
            y=data[name],
            name=label,
            marker={
                "color": colour,
                "pattern": {"shape": ["/" if mode in USES_GRADIENTS else "" for mode in modes]},
            },
            text=["" if value is None else f"{value:.3f}" for value in data[name]],
            textposition="outside",
            textangle=-90,
            cliponaxis=False,
            hovertemplate=f"{label} %{{y:.4f}}<extra></extra>",
        )
    plot.update_layout(
        barmode="group",
        bargap=0.25,
        showlegend=True,
        legend={"orientation": "h", "y": 1.15, "x": 0},
        margin_t=48,
        height=400,
    )
    stated = "; ".join(
        f"{label}: L0 {l0:.3g}, "
        + ", ".join(f"{SERIES[name][0]} {_number(data[name][place])}" for name in SERIES)
        for place, (label, l0) in enumerate(zip(labels, data["l0_mean"], strict=True))
    )
    return Figure(
        name=FIGURE,
        title="FVU and loss recovered in each mode",
        plot=plot,
        caption=f"FVU over {data['n_rows']:,} evaluated rows (lower is better) and loss recovered "
        f"over {data['n_positions']:,} predicted positions (higher is better): how much of what "
        "zero ablation, and ablation to "
        f"{data['mean_source']}, costs the model is undone. {WARNING} Hatched bars use gradients.",
        alt=f"Grouped bars by mode: {stated}. The gradient-assisted mode uses labels.",
        data={
            "mode": labels,
            "L0": data["l0_mean"],
            **{label: data[name] for name, (label, _) in SERIES.items()},
            "loss, spliced (nats per token)": data["loss_spliced"],
            "KL (nats per token)": data["kl"],
        },
    )


MODE_FIGURES: dict[str, Callable[[dict[str, Any]], Figure]] = {FIGURE: inference_modes}


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
