"""Test 1's scores: how well reconstructions stand in for activations, and what they leave behind.

All are functions of mean logit differences (LD) over prompts, in the order clean, mean ablation,
intervention; ratios are of means, not means of ratios. Source: Makelov, Lange & Nanda, arXiv
2405.08366, section 3.2, A.3, A.11.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .bootstrap import UNDEFINED, Bootstrap, Estimate

SMALLEST_EFFECT = 0.1
"""Share of the clean LD that mean ablation must move it by for necessity and recovery to be
defined."""


@dataclass(frozen=True, kw_only=True)
class Approximation:
    """Test 1 of one dictionary at one cross-section; mean logit differences beside every score."""

    sufficiency: Estimate
    """LD with reconstructions in place of activations, over the clean LD; 1 is best."""
    necessity: Estimate
    """1 − |LD_ablated − LD_rest| / |LD_ablated − LD_clean|, where rest is the mean plus what the
    reconstruction misses; 1 is best. Undefined where mean ablation hardly hurts."""
    recovered: Estimate
    """(LD_reconstruction − LD_ablated) / (LD_clean − LD_ablated), with its sign: above 1 it
    overshoots, below 0 it is worse than ablation."""
    logit_difference: dict[str, float]
    """Mean LD of `clean`, `mean_ablation`, `reconstruction` and `rest`, in logits."""


def sufficiency(means: Float[Tensor, "... 3"]) -> Float[Tensor, "..."]:
    """From mean LDs (clean, ablated, reconstruction)."""
    return means[..., 2] / means[..., 0]


def necessity(means: Float[Tensor, "... 3"]) -> Float[Tensor, "..."]:
    """From mean LDs (clean, ablated, rest)."""
    gap = (means[..., 1] - means[..., 0]).abs()
    return 1 - (means[..., 1] - means[..., 2]).abs() / gap


def recovered(means: Float[Tensor, "... 3"]) -> Float[Tensor, "..."]:
    """From mean LDs (clean, ablated, reconstruction), with its sign."""
    return (means[..., 2] - means[..., 1]) / (means[..., 0] - means[..., 1])


def ablation_matters(clean: float, ablated: float) -> bool:
    """Whether mean ablation moves the mean LD enough to divide by."""
    return abs(ablated - clean) >= SMALLEST_EFFECT * abs(clean)


def measure_approximation(
    clean: Float[Tensor, " prompts"],
    ablated: Float[Tensor, " prompts"],
    reconstruction: Float[Tensor, " prompts"],
    rest: Float[Tensor, " prompts"],
    bootstrap: Bootstrap,
) -> Approximation:
    """Test 1 from each prompt's logit differences under the four conditions."""
    kinds = {
        "clean": clean,
        "mean_ablation": ablated,
        "reconstruction": reconstruction,
        "rest": rest,
    }
    means = {name: float(values.double().mean()) for name, values in kinds.items()}
    replaced = torch.stack([clean, ablated, reconstruction], dim=1)
    left = torch.stack([clean, ablated, rest], dim=1)
    defined = ablation_matters(means["clean"], means["mean_ablation"])
    return Approximation(
        sufficiency=bootstrap.estimate(replaced, sufficiency),
        necessity=bootstrap.estimate(left, necessity) if defined else UNDEFINED,
        recovered=bootstrap.estimate(replaced, recovered) if defined else UNDEFINED,
        logit_difference=means,
    )
