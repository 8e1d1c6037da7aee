"""The figures of the two toy models, over-splitting and occlusion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .figure import Figure, new_plot
from .line_styles import line_style
from .supervised_parts import LEGEND, grouped_bars


def splitting_toy(data: dict[str, Any]) -> Figure:
    """The over-splitting toy: loss of the ideal pair and of random latents by penalty."""
    plot = new_plot("penalty λ", "lowest loss ‖x − x̂‖² + λ Σf")
    plot.update_layout(showlegend=True, legend=LEGEND)
    for name, label in (("ideal", "one pair of true latents"), ("random", "1,000 random latents")):
        style = line_style(name, ("ideal", "random"))
        plot.add_scatter(
            x=data["penalty"],
            y=data[name],
            name=label,
            mode="lines+markers",
            line=style.line(),
            marker=style.points(7),
            hovertemplate=f"{label}<br>λ = %{{x}}: %{{y:.2f}}<extra></extra>",
        )
    return Figure(
        name="splitting_toy",
        title="Over-splitting: random latents beat the true pair",
        plot=plot,
        caption="Rows ±μ + N(0, I) in 100 dimensions, ‖μ‖ = 2. Lower is better. As long as the "
        "penalty is small, a thousand latents in random directions, each on for few rows, have a "
        "lower loss than the two latents of the attribute, so training is drawn to splinters.",
        alt="; ".join(
            f"λ {penalty:g}: {ideal:.2f} against {random:.2f}"
            for penalty, ideal, random in zip(
                data["penalty"], data["ideal"], data["random"], strict=True
            )
        ),
        data={"λ": data["penalty"], "true pair": data["ideal"], "random latents": data["random"]},
    )


def occlusion_toy(data: dict[str, Any]) -> Figure:
    """The occlusion toy: directions with a latent of their own, by norm and penalty."""
    plot = new_plot("ratio of norms and L1 weight", "share of directions found", range=[0, 1.02])
    bars = [
        {
            "series": f"{kind} directions, F1 > {limit}",
            "category": f"{ratio:g}, L1 {l1:g}",
            "value": share,
            "low": None,
            "high": None,
        }
        for ratio, l1, limit, kind, share in zip(
            data["ratio"], data["l1"], data["threshold"], data["set"], data["share"], strict=True
        )
    ]
    grouped_bars(plot, bars, list(dict.fromkeys(bar["series"] for bar in bars)), whiskers=False)
    return Figure(
        name="occlusion_toy",
        title="Occlusion: long directions are found before short ones",
        plot=plot,
        caption="Rows u_i + v_j with random directions, u longer than v by the ratio; share of the "
        "directions for which a trained ReLU autoencoder has a latent above the F1.",
        alt="; ".join(f"{b['series']} at {b['category']}: {b['value']:.2f}" for b in bars),
        data={name: data[name] for name in ("ratio", "l1", "threshold", "set", "share", "l0")},
    )


TOY_FIGURES: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "splitting_toy": splitting_toy,
    "occlusion_toy": occlusion_toy,
}
