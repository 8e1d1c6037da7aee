"""The charts and tables of a "steering" result, from plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saelab.formats.chart import Axis, Chart, Series
from saelab.formats.evaluation_result import Table

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


def steering_charts(data: Mapping[str, Any]) -> list[Chart]:
    """Every chart of a steering result."""
    return [
        distribution(data["size_distribution"], "size"),
        distribution(data["consistency_distribution"], "consistency"),
        size_and_consistency(data["size_and_consistency"]),
    ]


def distribution(data: Mapping[str, Any], quantity: str) -> Chart:
    """Share of latents, and of random directions, with at least an effect, by strength."""
    title, axis, meaning = WORDS[quantity]
    series, stated = [], []
    for index, strength in enumerate(data["latents"]):
        for kind in ("latents", "random"):
            values = data[kind][strength]
            series.append(
                Series(
                    name=f"{kind}, strength {strength}",
                    x=values,
                    y=[1 - rank / len(values) for rank, _ in enumerate(values)],
                    style=index,
                    dashed=kind == "random",
                )
            )
        middle = [_median(data[kind][strength]) for kind in ("latents", "random")]
        stated.append(f"{middle[0]:.2f} against {middle[1]:.2f} at strength {strength}")
    return Chart(
        name=f"{quantity}_distribution",
        title=title,
        caption=f"Share of the latents (solid) and of random unit directions (dashed) with at "
        f"least this effect. {meaning.format(**data)} Strength is the length of what is added in "
        "multiples of the mean norm of the activations.",
        summary=f"Falling curves of the share of directions against {quantity}; medians of latents "
        f"against random directions: {'; '.join(stated)} logits.",
        x=Axis(title=axis),
        y=Axis(title="share with at least this effect", low=-0.02, high=1.02),
        series=tuple(series),
    )


def size_and_consistency(data: Mapping[str, Any]) -> Chart:
    """Each latent and each random direction by size and consistency."""
    latents, random = data["latents"], data["random"]
    n_latents = len(latents["latent"])
    top = max(range(n_latents), key=lambda index: latents["consistency"][index])
    labels = [
        f"latent {latent}: {tokens}"
        for latent, tokens in zip(latents["latent"], latents["tokens"], strict=True)
    ]
    return Chart(
        name="size_and_consistency",
        title="Size against consistency",
        caption=f"One point per latent and per random direction at strength {data['strength']:g} "
        "× the mean norm of the activations. A point high up for its size changes the same tokens "
        "in every context; one low down changes others in each.",
        summary=f"Scatter of {n_latents} latents and {len(random['size'])} random directions; the "
        f"most consistent latent, {latents['latent'][top]}, has size {latents['size'][top]:.2f} "
        f"and consistency {latents['consistency'][top]:.2f} logits.",
        x=Axis(title=WORDS["size"][1]),
        y=Axis(title=WORDS["consistency"][1]),
        series=(
            Series(
                name="latents",
                x=latents["size"],
                y=latents["consistency"],
                mark="dots",
                labels=labels,
            ),
            Series(
                name="random directions", x=random["size"], y=random["consistency"], mark="dots"
            ),
        ),
    )


def steering_tables(data: Mapping[str, Any]) -> list[Table]:
    """The numbers that matter by strength, and the most consistent latents with their tokens."""
    listed = data["most_consistent"]
    columns = ("latent", "density", "size", "consistency", "tokens")
    return [
        Table(
            title="Effect on the logits; all numbers and their definitions are at the end",
            columns=(
                "strength",
                "size",
                "size, random",
                "consistency",
                "consistency, random",
                "difference of consistency (95 % interval)",
                "above 95 % of random",
            ),
            rows=tuple(tuple(row) for row in data["in_short"]),
            section="In short",
        ),
        Table(
            title=f"Latents of the largest consistency at strength {listed['strength']:g}, and the "
            "tokens they promote",
            columns=columns,
            rows=tuple(
                (str(latent), *rest)
                for latent, *rest in zip(*(listed[name] for name in columns), strict=True)
            ),
            section="What the most consistent latents promote",
        ),
    ]


def _median(ordered: list[float]) -> float:
    half = len(ordered) // 2
    return (ordered[half] + ordered[-half - 1]) / 2
