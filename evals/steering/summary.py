"""Numbers of a distribution of effects, and how it differs from that of random directions."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from saelab.stats.bootstrap import difference_interval
from saelab.stats.seeds import seeded_generator
from saelab.stats.spread import quantiles

from .definitions import QUANTILES


def summarise(
    latents: Float[Tensor, " latents"],
    random: Float[Tensor, " random"],
    *,
    n_bootstrap: int,
    seed: int,
) -> dict[str, float]:
    """Mean and quantiles of latents and of random directions, and the difference of the means.

    Args:
        latents: one number per latent.
        random: the same number of random directions.
        n_bootstrap: resamples of both for the 95 % interval.
        seed: of the resamples.

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
