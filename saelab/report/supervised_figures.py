"""The figures of the suite "supervised", each a pure function from the data in its result file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .figure import Figure, new_plot
from .line_styles import GREY
from .supervised_latent_figures import f1_histogram, f1_sweep, occlusion
from .supervised_parts import grouped_bars, panels
from .supervised_tradeoff_figures import tradeoff, tradeoff_normalised

WHISKERS = (
    "Whiskers: 95 % bootstrap interval over prompts; ± one standard deviation where there are "
    "several seeds."
)


def approximation(data: dict[str, Any]) -> Figure:
    """Test 1: sufficiency and necessity, one panel each."""
    names = data["contenders"]
    plot, axes = panels(
        ["sufficiency", "necessity"], "cross-section", "score (1 is best)", columns=2
    )
    table: dict[str, list[Any]] = {
        key: [] for key in ("measure", "contender", "cross-section", "value", "low", "high")
    }
    for (x_name, y_name), measure in zip(axes, ("sufficiency", "necessity"), strict=True):
        bars = data["bars"][measure]
        first = measure == "sufficiency"
        grouped_bars(plot, bars, names, xaxis=x_name, yaxis=y_name, showlegend=first)
        for bar in bars:
            table["measure"].append(measure)
            table["contender"].append(bar["series"])
            table["cross-section"].append(bar["category"])
            for key in ("value", "low", "high"):
                table[key].append(bar[key])
    floors = data["mean_ablation"]
    if floors:
        plot.add_scatter(
            x=list(floors),
            y=list(floors.values()),
            mode="markers",
            name="mean ablation",
            marker={"symbol": "line-ew", "size": 46, "line": {"width": 2, "color": GREY}},
            hovertemplate="mean ablation<br>%{x}<br>%{y:.3f}<extra></extra>",
        )
    plot.update_layout(margin={"t": 120, "b": 90}, height=470, legend={"y": 1.13})
    best = [
        f"{bar['series']} {bar['value']:.2f} at {bar['category']}"
        for bar in data["bars"]["sufficiency"]
    ]
    return Figure(
        name="approximation",
        title="Test 1: do reconstructions carry the task, and is nothing left over?",
        plot=plot,
        caption="Sufficiency: mean metric with reconstructions patched at all sites of the "
        "cross-section, over the clean mean metric; the grey line is mean ablation. Necessity: "
        "how far the model falls towards mean ablation when the mean plus what the reconstruction "
        f"misses is patched; missing where mean ablation hardly hurts. {WHISKERS}",
        alt="Bars of sufficiency and necessity per cross-section; sufficiency: "
        + "; ".join(best)
        + ".",
        data=table,
        wide=True,
    )


def edit_accuracy(data: dict[str, Any]) -> Figure:
    """Test 2 at the smallest edit: accuracy beside floors and ceiling."""
    names = data["contenders"]
    ordered = [name for name in names if "(" not in name] + [name for name in names if "(" in name]
    plot = new_plot("edited attributes and cross-section", "edit accuracy", range=[0, 1.02])
    aware = [name for name in ordered if name.endswith("(aware)")]
    grouped_bars(plot, data["bars"], ordered, hatched=aware)
    plot.update_layout(height=420, margin={"t": 80, "b": 90})
    return Figure(
        name="edit_accuracy",
        title=f"Test 2: edits of {data['k']} latents per attribute",
        plot=plot,
        caption="Share of prompts at which the edited run predicts the same token as the run with "
        "the counterfactual's own activations patched. No intervention, the random decoder and the "
        "supervised dictionary (one feature out, one in per attribute) are the floors and the "
        f"ceiling; agnostic edits are greedy, aware ones (hatched) chosen by F1. {WHISKERS}",
        alt="Bars of edit accuracy: "
        + "; ".join(f"{b['series']}, {b['category']}: {b['value']:.2f}" for b in data["bars"])
        + ".",
        data={
            "contender": [bar["series"] for bar in data["bars"]],
            "edit": [bar["category"] for bar in data["bars"]],
            "accuracy": [bar["value"] for bar in data["bars"]],
            "low": [bar["low"] for bar in data["bars"]],
            "high": [bar["high"] for bar in data["bars"]],
        },
        wide=True,
    )


SUPERVISED_FIGURES: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "approximation": approximation,
    "edit_accuracy": edit_accuracy,
    "tradeoff": tradeoff,
    "tradeoff_normalised": tradeoff_normalised,
    "occlusion": occlusion,
    "f1_histogram": f1_histogram,
    "f1_sweep": f1_sweep,
}
