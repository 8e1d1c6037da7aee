"""From cosines and counts to numbers: one per feature, and one per dictionary.

What each number means, in words, is in `definitions`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .firing import FiringCounts
from .matching import Matching

THRESHOLDS = (0.8, 0.9, 0.95, 0.99)
QUARTILES = 4
OFTEN_ABSORBED = 0.05
"""Absorbed share from which a feature counts as absorbed."""


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """What is known of each true feature; NaN where a number is undefined."""

    frequency: Float[Tensor, " n_features"]
    """f_i by the law that planted the feature."""
    observed_frequency: Float[Tensor, " n_features"]
    """Share of the held-out rows on which it is active."""
    matched: Bool[Tensor, " n_features"]
    """Whether its largest cosine reaches the threshold."""
    latent_frequency: Float[Tensor, " n_features"]
    """p_m: share of the held-out rows on which its best latent is active."""
    f1: Float[Tensor, " n_features"]
    """F1 of "best latent active" as a detector of "feature active"."""
    mass_share: Float[Tensor, " n_features"]
    """Share of the best latent's summed codes that lies on rows with the feature."""
    absorbed_share: Float[Tensor, " n_features"]
    """Share of the rows with the feature on which it is absorbed; only for matched features."""
    n_latents: Int[Tensor, " n_features"]
    """Alive latents whose best feature it is, with a cosine of at least the threshold."""


def threshold_name(threshold: float) -> str:
    """A cosine as it stands in metric names: 0.95 is "095"."""
    return f"{round(100 * threshold):03d}"


def feature_table(
    matching: Matching,
    counts: FiringCounts,
    frequency: Float[Tensor, " n_features"],
    threshold: float,
) -> FeatureTable:
    """Put together what is known of each feature."""
    n_rows = counts.sparsity.n_rows
    best = matching.best_latent
    latent_active = counts.sparsity.count[best].double()
    matched = matching.cosine >= threshold
    claimed = counts.alive() & (matching.latent_cosine >= threshold)
    n_latents = torch.bincount(matching.best_feature[claimed], minlength=len(matched))
    absorbed_share = _ratio(counts.absorbed, counts.active)
    return FeatureTable(
        frequency=frequency,
        observed_frequency=counts.active / n_rows,
        matched=matched,
        latent_frequency=latent_active / n_rows,
        f1=_ratio(2 * counts.both, counts.active + latent_active),
        mass_share=_ratio(counts.mass_on, counts.sparsity.total[best]),
        absorbed_share=torch.where(matched, absorbed_share, torch.nan),
        n_latents=n_latents,
    )


def recovery_values(
    matching: Matching, counts: FiringCounts, table: FeatureTable
) -> dict[str, float | int | None]:
    """Every number of the suite that one dictionary alone has, by its name in `definitions`."""
    alive = counts.alive()
    latent_cosine = matching.latent_cosine[alive]
    values: dict[str, float | int | None] = {}
    for threshold in THRESHOLDS:
        name = threshold_name(threshold)
        assigned = matching.assigned_cosine
        values[f"frr_{name}"] = _share(matching.cosine >= threshold)
        values[f"frr_one_to_one_{name}"] = (
            None if assigned is None else _share(assigned >= threshold)
        )
        values[f"precision_{name}"] = _share(latent_cosine >= threshold)
    values["mean_max_cosine_features"] = _mean(matching.cosine)
    values["mean_max_cosine_latents"] = _mean(latent_cosine)
    values |= _by_frequency(table) | _of_matches(table)
    values |= _reconstruction(counts)
    values["z_score_median"] = _median(counts.z_scores()[alive])
    return values


def quartiles(frequency: Float[Tensor, " n_features"]) -> list[Int[Tensor, " some_features"]]:
    """The features in four parts from frequent to rare; no parts if all are equally frequent."""
    if float(frequency.min()) == float(frequency.max()):
        return []
    order = frequency.argsort(descending=True, stable=True)
    return [part for part in torch.tensor_split(order, QUARTILES) if len(part)]


def _by_frequency(table: FeatureTable) -> dict[str, float | int | None]:
    values: dict[str, float | int | None] = {
        f"frr_quartile_{place + 1}": None for place in range(QUARTILES)
    }
    for place, part in enumerate(quartiles(table.frequency)):
        values[f"frr_quartile_{place + 1}"] = _share(table.matched[part])
    values["frequency_matched"] = _median(table.frequency[table.matched])
    values["frequency_missed"] = _median(table.frequency[~table.matched])
    return values


def _of_matches(table: FeatureTable) -> dict[str, float | int | None]:
    matched = table.matched
    apart = (table.latent_frequency / table.observed_frequency).log10().abs()
    absorbed = table.absorbed_share[matched]
    return {
        "match_f1": _mean(table.f1[matched]),
        "match_mass_share": _mean(table.mass_share[matched]),
        "frequency_error": _mean(apart[matched]),
        "split_share": _share(table.n_latents[matched] >= 2),
        "latents_per_match": _mean(table.n_latents[matched].double()),
        "absorption_rate": _mean(absorbed),
        "absorbed_features": _share(absorbed[absorbed.isfinite()] >= OFTEN_ABSORBED),
    }


def _reconstruction(counts: FiringCounts) -> dict[str, float | int | None]:
    reconstruction, sparsity = counts.reconstruction.values(), counts.sparsity.values()
    return {
        "nmse": float(counts.reconstruction.squared_error.sum()) / counts.norm_total,
        "fvu": reconstruction["fvu"],
        "l0_mean": sparsity["l0_mean"],
        "dead_fraction": sparsity["dead_fraction"],
        "dense_fraction": sparsity["dense_fraction"],
        "n_rows": reconstruction["n_rows"],
    }


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """A quotient, NaN where the denominator is zero."""
    return torch.where(below > 0, above / below, torch.nan)


def _share(holds: Tensor) -> float | None:
    """Share of entries that hold; None where there are none."""
    return float(holds.double().mean()) if len(holds) else None


def _mean(values: Tensor) -> float | None:
    """Mean of the defined entries; None where there are none."""
    defined = values[values.isfinite()]
    return float(defined.mean()) if len(defined) else None


def _median(values: Tensor) -> float | None:
    """Median of the entries, the mean of the middle two; None where there are none."""
    return float(values.double().quantile(0.5)) if len(values) else None
