"""The charts and tables of a "steering" result."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from saelab.formats.chart import Axis, Chart, Series
from saelab.formats.evaluation_result import IN_SHORT, Table

from ..display import rounded
from .measure import SteeringFindings
from .numbers import QUANTITIES, metric_name
from .suite import SteeringConfig

MOST_LISTED = 20
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
    """Every chart of a steering result; `data` has `findings`, `config` and `numbers`."""
    findings, config = data["findings"], data["config"]
    return [
        *(distribution(findings, quantity, config) for quantity in QUANTITIES),
        size_and_consistency(findings, config),
    ]


def distribution(findings: SteeringFindings, quantity: str, config: SteeringConfig) -> Chart:
    """Share of latents, and of random directions, with at least an effect, by strength."""
    title, axis, meaning = WORDS[quantity]
    series, stated = [], []
    for index, strength in enumerate(config.strengths):
        medians = []
        for kind, effects in (("latents", findings.effects), ("random", findings.random)):
            values = rounded(getattr(effects, quantity)[index].sort().values)
            medians.append(median(values))
            series.append(
                Series(
                    name=f"{kind}, strength {strength:g}",
                    x=[*values],
                    y=[1 - rank / len(values) for rank, _ in enumerate(values)],
                    style=index,
                    dashed=kind == "random",
                )
            )
        stated.append(f"{medians[0]:.2f} against {medians[1]:.2f} at strength {strength:g}")
    counts = {"n_contexts": config.n_contexts, "n_top_tokens": config.n_top_tokens}
    return Chart(
        name=f"{quantity}_distribution",
        title=title,
        caption=f"Share of the latents (solid) and of random unit directions (dashed) with at "
        f"least this effect. {meaning.format(**counts)} Strength is the length of what is added in "
        "multiples of the mean norm of the activations.",
        summary=f"Falling curves of the share of directions against {quantity}; medians of latents "
        f"against random directions: {'; '.join(stated)} logits.",
        x=Axis(title=axis),
        y=Axis(title="share with at least this effect", low=-0.02, high=1.02),
        series=tuple(series),
    )


def _middle(config: SteeringConfig) -> int:
    """Index of the strength nearest to 1, for what shows a single strength."""
    return min(range(len(config.strengths)), key=lambda index: abs(config.strengths[index] - 1))


def size_and_consistency(findings: SteeringFindings, config: SteeringConfig) -> Chart:
    """Each latent and each random direction by size and consistency."""
    middle = _middle(config)
    effects, random = findings.effects, findings.random
    size, consistency = rounded(effects.size[middle]), rounded(effects.consistency[middle])
    top = max(range(len(consistency)), key=lambda index: consistency[index])
    latents = findings.latent.tolist()
    return Chart(
        name="size_and_consistency",
        title="Size against consistency",
        caption="One point per latent and per random direction at strength "
        f"{config.strengths[middle]:g} × the mean norm of the activations. A point high up for its "
        "size changes the same tokens in every context; one low down changes others in each.",
        summary=f"Scatter of {len(latents)} latents and {random.size.shape[1]} random directions; "
        f"the most consistent latent, {latents[top]}, has size {size[top]:.2f} and consistency "
        f"{consistency[top]:.2f} logits.",
        x=Axis(title=WORDS["size"][1]),
        y=Axis(title=WORDS["consistency"][1]),
        series=(
            Series(
                name="latents",
                x=[*size],
                y=[*consistency],
                mark="dots",
                labels=[
                    f"latent {latent}: {', '.join(map(repr, tokens[:5]))}"
                    for latent, tokens in zip(latents, findings.promoted[middle], strict=True)
                ],
            ),
            Series(
                name="random directions",
                x=[*rounded(random.size[middle])],
                y=[*rounded(random.consistency[middle])],
                mark="dots",
            ),
        ),
    )


def steering_tables(data: Mapping[str, Any]) -> list[Table]:
    """The numbers that matter by strength, and the most consistent latents with their tokens."""
    findings, config, numbers = data["findings"], data["config"], data["numbers"]
    middle = _middle(config)
    effects = findings.effects
    order = effects.consistency[middle].argsort(descending=True)[:MOST_LISTED].tolist()
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
            rows=tuple(_in_short(numbers, strength) for strength in config.strengths),
            section=IN_SHORT,
        ),
        Table(
            title=f"Latents of the largest consistency at strength {config.strengths[middle]:g}, "
            "and the tokens they promote",
            columns=("latent", "density", "size", "consistency", "tokens"),
            rows=tuple(
                (
                    str(int(findings.latent[row])),
                    *rounded(
                        [
                            float(findings.density[row]),
                            float(effects.size[middle, row]),
                            float(effects.consistency[middle, row]),
                        ]
                    ),
                    " ".join(map(repr, findings.promoted[middle][row])),
                )
                for row in order
            ),
            section="What the most consistent latents promote",
        ),
    ]


def _in_short(numbers: Mapping[str, Any], strength: float) -> tuple[Any, ...]:
    means = [
        numbers[metric_name(quantity, what, strength)]
        for quantity in QUANTITIES
        for what in ("mean", "random_mean")
    ]
    low, high, share = (
        numbers[metric_name("consistency", what, strength)]
        for what in ("difference_low", "difference_high", "share_above_random")
    )
    return (f"{strength:g}", *means, f"{low:+.3g} to {high:+.3g}", share)
