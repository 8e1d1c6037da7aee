"""Numbers of a distribution of effects, and how it differs from that of random directions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .prompts import generator_for

QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}


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
    low, high = bootstrap_interval(latents, random, n_bootstrap=n_bootstrap, seed=seed)
    own, floor = _distribution(latents), _distribution(random)
    return {
        **own,
        **{f"random_{name}": value for name, value in floor.items()},
        "difference": own["mean"] - floor["mean"],
        "difference_low": low,
        "difference_high": high,
        "share_above_random": float((latents > floor["q95"]).double().mean()),
    }


def bootstrap_interval(
    latents: Float[Tensor, " latents"],
    random: Float[Tensor, " random"],
    *,
    n_bootstrap: int,
    seed: int,
) -> tuple[float, float]:
    """2.5 % and 97.5 % quantiles of the difference of means, both samples drawn again each time."""
    generator = generator_for("bootstrap", seed)

    def means(values: Tensor) -> Tensor:
        places = torch.randint(len(values), (n_bootstrap, len(values)), generator=generator)
        return values.double().cpu()[places].mean(dim=1)

    differences = means(latents) - means(random)
    return float(differences.quantile(0.025)), float(differences.quantile(0.975))


def _distribution(values: Float[Tensor, " n"]) -> dict[str, float]:
    values = values.double()
    quantiles = {name: float(values.quantile(share)) for name, share in QUANTILES.items()}
    return {"mean": float(values.mean()), **quantiles}
