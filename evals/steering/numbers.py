"""The numbers of a distribution of effects and of that of random directions, with definitions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from saelab.stats.bootstrap import difference_interval
from saelab.stats.seeds import seeded_generator
from saelab.stats.spread import quantiles

from ..definitions import Definition

QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}
QUANTITIES = ("size", "consistency")


def metric_name(quantity: str, what: str, strength: float) -> str:
    """The key of a number: such as "size_mean_c0.5"."""
    return f"{quantity}_{what}_c{strength:g}"


def summarise(
    latents: Float[Tensor, " latents"],
    random: Float[Tensor, " random"],
    *,
    n_bootstrap: int,
    seed: int,
) -> dict[str, float]:
    """Mean and quantiles of latents and of random directions, and the difference of the means.

    Args:
        latents: a number per latent.
        random: the same number of random directions.
        n_bootstrap: resamples of both for the 95 % interval.

    Returns:
        mean, q05 … q95; random_mean, random_q05 … random_q95; difference, difference_low,
        difference_high; share_above_random: share of latents above random_q95.
    """
    generator = seeded_generator("steering", "bootstrap", seed)
    low, high = difference_interval(latents, random, n_resamples=n_bootstrap, generator=generator)
    measured, floor = _distribution(latents), _distribution(random)
    return {
        **measured,
        **{f"random_{name}": value for name, value in floor.items()},
        "difference": measured["mean"] - floor["mean"],
        "difference_low": low,
        "difference_high": high,
        "share_above_random": float((latents > floor["q95"]).double().mean()),
    }


def _distribution(values: Float[Tensor, " n"]) -> dict[str, float]:
    named = zip(QUANTILES, quantiles(values, list(QUANTILES.values())), strict=True)
    return {"mean": float(values.double().mean()), **dict(named)}


_CHANGE = (
    "Δ: logits at the last position of a context with {length:.4g} ({strength:g} × the mean norm "
    "of the held-out rows) times the latent's unit decoder row added there, minus the logits "
    "without, minus the mean of that over the vocabulary"
)
_MEANINGS = {
    "size": "size: mean over {n_contexts} random held-out contexts of the largest Δ of any token",
    "consistency": "consistency: mean Δ, over the last {n_testing} contexts, of the "
    "{n_top_tokens} tokens with the largest mean Δ over the first {n_choosing}",
}


def steering_definitions(facts: Mapping[str, Any]) -> list[Definition]:
    """What every number means, in reading order."""
    rows = f"the {facts['n_rows']:,} held-out rows"
    counts = {
        "mean_norm": ("activation units", f"Mean |x| over {rows}: what strengths multiply."),
        "n_alive": (
            "latents",
            f"Latents that are active on at least one of {rows}; the steered ones are drawn from "
            "them.",
        ),
        "n_latents": ("latents", "Steered latents."),
    }
    directed = ("mean", "difference", "share_above_random")
    return [
        Definition(name=name, unit=unit, text=text) for name, (unit, text) in counts.items()
    ] + [
        Definition(
            name=metric_name(quantity, what, strength),
            unit="1" if what == "share_above_random" else "logits",
            text=text,
            group=f"Strength {strength:g}",
            better="higher" if what in directed else "neither",
        )
        for strength in facts["strengths"]
        for quantity in QUANTITIES
        for what, text in _texts(quantity, strength, facts).items()
    ]


def _texts(quantity: str, strength: float, facts: Mapping[str, Any]) -> dict[str, str]:
    n_choosing = facts["n_contexts"] // 2
    meaning = _MEANINGS[quantity].format(
        n_choosing=n_choosing, n_testing=facts["n_contexts"] - n_choosing, **facts
    )
    change = _CHANGE.format(strength=strength, length=strength * facts["mean_norm"])
    latents = f"{facts['n_latents']} live latents, drawn at random with seed {facts['seed']}"
    random = f"{facts['n_random']} random unit directions in the latents' place"
    ranks = {name: f"{q:.0%} quantile" for name, q in QUANTILES.items()}
    return {
        "mean": f"Mean over {latents}, of {meaning}; {change}.",
        **{name: f"{words} over those latents of the same." for name, words in ranks.items()},
        "random_mean": f"Mean over {random}.",
        **{f"random_{name}": f"{words} over {random}." for name, words in ranks.items()},
        "difference": "Mean over latents minus mean over random directions.",
        "difference_low": "Lower end of the 95 % bootstrap interval of the difference; latents "
        f"and random directions are drawn again {facts['n_bootstrap']} times.",
        "difference_high": "Upper end of that interval.",
        "share_above_random": "Share of the latents above the 95% quantile of the random "
        "directions; 0.05 is chance.",
    }
