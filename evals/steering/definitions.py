"""What every number of the suite "steering" means, in words that travel with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..suite import Definition

QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}

CHANGE = (
    "Δ: logits at the last position of a context with {length:.4g} ({strength:g} × the mean norm "
    "of the held-out rows) times the latent's unit decoder row added there, minus the logits "
    "without, minus the mean of that over the vocabulary"
)
MEANINGS = {
    "size": "size: mean over {n_contexts} random held-out contexts of the largest Δ of any token",
    "consistency": "consistency: mean Δ, over the last {n_testing} contexts, of the "
    "{n_top_tokens} tokens with the largest mean Δ over the first {n_choosing}",
}
QUANTITIES = ("size", "consistency")


def metric_name(quantity: str, what: str, strength: float) -> str:
    """The key of a number: such as "size_mean_c0.5"."""
    return f"{quantity}_{what}_c{strength:g}"


def steering_definitions(facts: Mapping[str, Any]) -> list[Definition]:
    """What every number means, in reading order.

    Args:
        facts: strengths, mean_norm, and the numbers of rows, latents, contexts and so on.
    """
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
    definitions = [
        Definition(name=name, unit=unit, text=text) for name, (unit, text) in counts.items()
    ]
    for strength in facts["strengths"]:
        for quantity in QUANTITIES:
            definitions += _of_quantity(quantity, strength, facts)
    return definitions


def _of_quantity(quantity: str, strength: float, facts: Mapping[str, Any]) -> list[Definition]:
    n_choosing = facts["n_contexts"] // 2
    meaning = MEANINGS[quantity].format(
        n_choosing=n_choosing, n_testing=facts["n_contexts"] - n_choosing, **facts
    )
    change = CHANGE.format(strength=strength, length=strength * facts["mean_norm"])
    latents = f"{facts['n_latents']} live latents, drawn at random with seed {facts['seed']}"
    random = f"{facts['n_random']} random unit directions in the latents' place"
    words = {"mean": "Mean", **{name: f"{q:.0%} quantile" for name, q in QUANTILES.items()}}
    texts = {
        "mean": f"Mean over {latents}, of {meaning}; {change}.",
        **{
            name: f"{word} over those latents of the same."
            for name, word in words.items()
            if name != "mean"
        },
        **{f"random_{name}": f"{word} over {random}." for name, word in words.items()},
        "difference": "Mean over latents minus mean over random directions.",
        "difference_low": "Lower end of the 95 % bootstrap interval of the difference; latents "
        f"and random directions are drawn again {facts['n_bootstrap']} times.",
        "difference_high": "Upper end of that interval.",
        "share_above_random": "Share of the latents above the 95% quantile of the random "
        "directions; 0.05 is chance.",
    }
    return [
        Definition(
            name=metric_name(quantity, what, strength),
            unit="1" if what == "share_above_random" else "logits",
            text=text,
            group=f"Strength {strength:g}",
            better="higher" if what in ("mean", "difference", "share_above_random") else "neither",
        )
        for what, text in texts.items()
    ]
