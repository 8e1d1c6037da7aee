"""What a reconstruction costs the model, from sums by document, with intervals over documents.

All dictionaries of a comparison are measured on the same documents, so a resample of documents
serves them all, and differences between dictionaries are paired.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.stats.bootstrap import UNDEFINED, Bootstrap, Estimate

SUMS = ("positions", "clean", "zero_ablation", "spliced", "mean_ablation", "kl")
"""Columns of the table of documents: predicted positions, and over them summed losses and KL."""
Sums = Float[Tensor, "*resamples sums"]

EFFECTS: dict[str, Callable[[Sums], Float[Tensor, "*resamples"]]] = {
    "loss_recovered_zero": lambda sums: _recovered(sums, SUMS.index("zero_ablation")),
    "loss_recovered_mean": lambda sums: _recovered(sums, SUMS.index("mean_ablation")),
    "kl": lambda sums: sums[..., SUMS.index("kl")] / sums[..., SUMS.index("positions")],
}
"""Metric -> its value from sums, or from their means over documents."""


def _recovered(sums: Sums, ablated: int) -> Float[Tensor, "*resamples"]:
    clean, spliced = sums[..., SUMS.index("clean")], sums[..., SUMS.index("spliced")]
    return (sums[..., ablated] - spliced) / (sums[..., ablated] - clean)


def intervals(sums: Float[Tensor, "documents sums"]) -> dict[str, float | None]:
    """`<metric>_low` and `<metric>_high` of every effect: its 95 % interval over documents."""
    ends = {}
    for metric in EFFECTS:
        estimate = over_documents([sums], [1.0], metric)
        ends |= {f"{metric}_low": estimate.low, f"{metric}_high": estimate.high}
    return ends


def over_documents(
    dictionaries: list[Float[Tensor, "documents sums"]], weights: list[float], metric: str
) -> Estimate:
    """A weighted sum of a metric of several dictionaries, with its 95 % interval over documents.

    Weights +1 and -1 give a paired difference.

    Args:
        dictionaries: sums of each, of the same documents.
        weights: of each.
        metric: one of `EFFECTS`.

    Returns:
        The estimate; undefined for fewer than two documents, which say nothing of others.
    """
    if not dictionaries or len(dictionaries[0]) < 2:
        return UNDEFINED
    shares = torch.tensor(weights, dtype=torch.float64)

    def score(means: Tensor) -> Tensor:
        by_dictionary = means.unflatten(-1, (len(weights), len(SUMS)))
        return EFFECTS[metric](by_dictionary) @ shares

    return Bootstrap(len(dictionaries[0])).estimate(torch.cat(dictionaries, dim=1), score)
