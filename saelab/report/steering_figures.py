"""The figures of the suite "steering", each a pure function from the data in its result file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .figure import BLUE, GREEN, ORANGE, PURPLE, Figure, new_plot

COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
WORDS = {
    "size": (
        "How large the effect is",
        "size of the effect (logits)",
        "Size is the mean over {n_contexts} contexts of the largest change of any token's logit, "
        "centred over the vocabulary.",
    ),
    "consistency": (
        "How consistent the effect is across contexts",
        "consistency of the effect (logits)",
        "Consistency is the mean change, in half of the {n_contexts} contexts, of the "
        "{n_top_tokens} tokens that are promoted most in the other half, centred over the "
        "vocabulary.",
    ),
}
LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom"}


def distribution(data: dict[str, Any], *, quantity: str) -> Figure:
    """Share of latents, and of random directions, with at least an effect, by strength."""
    title, axis, meaning = WORDS[quantity]
    plot = new_plot(axis, "share with at least this effect", range=[-0.02, 1.02])
    plot.update_layout(showlegend=True, legend=LEGEND)
    table: dict[str, list[Any]] = {"share": [1 - percent / 100 for percent in range(101)]}
    stated = []
    for place, strength in enumerate(data["latents"]):
        for kind, dash in (("latents", "solid"), ("random", "dot")):
            values = data[kind][strength]
            label = f"{kind}, strength {strength}"
            plot.add_scatter(
                x=values,
                y=[1 - rank / len(values) for rank, _ in enumerate(values)],
                name=label,
                mode="lines",
                line={"color": COLOURS[place % len(COLOURS)], "width": 2, "dash": dash},
                hovertemplate=f"{label}<br>%{{y:.2f}} have at least %{{x:.3g}} logits"
                "<extra></extra>",
            )
            table[label] = [_quantile(values, percent / 100) for percent in range(101)]
        middle = [_quantile(data[kind][strength], 0.5) for kind in ("latents", "random")]
        stated.append(f"{middle[0]:.2f} against {middle[1]:.2f} at strength {strength}")
    return Figure(
        name=f"{quantity}_distribution",
        title=title,
        plot=plot,
        caption=f"Share of the latents (solid) and of random unit directions (dotted) with at "
        f"least this effect. {meaning.format(**data)} Strength is the length of what is added in "
        "multiples of the mean norm of the activations.",
        alt=f"Falling curves of the share of directions against {quantity}; medians of latents "
        f"against random directions: {'; '.join(stated)} logits.",
        data=table,
    )


def size_and_consistency(data: dict[str, Any]) -> Figure:
    """Each latent and each random direction by size and consistency."""
    latents, random = data["latents"], data["random"]
    plot = new_plot("size of the effect (logits)", "consistency of the effect (logits)")
    plot.update_layout(showlegend=True, legend=LEGEND)
    plot.add_scatter(
        x=random["size"],
        y=random["consistency"],
        name="random directions",
        mode="markers",
        marker={"size": 5, "color": ORANGE, "symbol": "x", "opacity": 0.7},
        hovertemplate="random direction<br>size %{x:.3g}, consistency %{y:.3g}<extra></extra>",
    )
    plot.add_scatter(
        x=latents["size"],
        y=latents["consistency"],
        name="latents",
        mode="markers",
        marker={"size": 6, "color": BLUE, "opacity": 0.8, "line": {"width": 0}},
        customdata=list(zip(latents["latent"], latents["tokens"], strict=True)),
        hovertemplate="latent %{customdata[0]}<br>size %{x:.3g}, consistency %{y:.3g}"
        "<br>%{customdata[1]}<extra></extra>",
    )
    n_latents = len(latents["latent"])
    top = max(range(n_latents), key=lambda place: latents["consistency"][place])
    return Figure(
        name="size_and_consistency",
        title="Size against consistency",
        plot=plot,
        caption=f"One point per latent and per random direction at strength {data['strength']:g} "
        "× the mean norm of the activations. A point high up for its size changes the same tokens "
        "in every context; one low down changes others in each.",
        alt=f"Scatter of {n_latents} latents and {len(random['size'])} random directions; the most "
        f"consistent latent, {latents['latent'][top]}, has size {latents['size'][top]:.2f} and "
        f"consistency {latents['consistency'][top]:.2f} logits.",
        data={
            "latent": latents["latent"],
            "size": latents["size"],
            "consistency": latents["consistency"],
            "promoted tokens": latents["tokens"],
        },
    )


STEERING_FIGURES: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "size_distribution": partial(distribution, quantity="size"),
    "consistency_distribution": partial(distribution, quantity="consistency"),
    "size_and_consistency": size_and_consistency,
}


def _quantile(ordered: list[float], share: float) -> float:
    """Quantile of ascending values, between neighbours in proportion."""
    position = share * (len(ordered) - 1)
    low = min(int(position), len(ordered) - 2) if len(ordered) > 1 else 0
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])
