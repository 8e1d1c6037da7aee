"""What every number of the suite "steering" means, in words that travel with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saelab.formats.evaluation_result import MeasuredMetric

from .summary import QUANTILES

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
UNITS = {"size": "logits", "consistency": "logits"}


def metric_name(quantity: str, what: str, strength: float) -> str:
    """The key of a number: such as "size_mean_c0.5"."""
    return f"{quantity}_{what}_c{strength:g}"


def metrics_of(
    quantity: str, strength: float, values: Mapping[str, float], facts: Mapping[str, Any]
) -> list[MeasuredMetric]:
    """The summary of one quantity at one strength, with definitions.

    Args:
        quantity: "size" or "consistency".
        strength: in multiples of the mean norm.
        values: as `summarise` gives them.
        facts: what the definitions name.
    """
    meaning = MEANINGS[quantity].format(**facts)
    change = CHANGE.format(strength=strength, **facts)
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
        MeasuredMetric(
            name=metric_name(quantity, what, strength),
            value=values[what],
            unit="1" if what == "share_above_random" else UNITS[quantity],
            definition=text,
        )
        for what, text in texts.items()
    ]
