"""From cosines and counts to numbers per feature and per dictionary, with their definitions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.formats.evaluation_result import Better
from saelab.stats.metric_definitions import METRICS

from ..definitions import Definition, filled_in
from .firing import FiringCounts
from .matching import ABSORBED_COMPONENT, HOST_COSINE, Matching

THRESHOLDS = {"080": 0.8, "090": 0.9, "095": 0.95, "099": 0.99}
"""By the name they have in keys of numbers."""
QUARTILES = ("most frequent", "second most frequent", "third most frequent", "rarest")
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


def feature_table(
    matching: Matching,
    counts: FiringCounts,
    frequency: Float[Tensor, " n_features"],
    threshold: float,
) -> FeatureTable:
    """Put together what is known of each feature; where there are no rows, 0 / 0 gives NaN."""
    n_rows = counts.sparsity.n_rows
    best = matching.best_latent
    latent_active = counts.sparsity.count[best].double()
    matched = matching.cosine >= threshold
    claimed = counts.alive() & (matching.latent_cosine >= threshold)
    return FeatureTable(
        frequency=frequency,
        observed_frequency=counts.active / n_rows,
        matched=matched,
        latent_frequency=latent_active / n_rows,
        f1=2 * counts.both / (counts.active + latent_active),
        mass_share=counts.mass_on / counts.sparsity.total[best],
        absorbed_share=torch.where(matched, counts.absorbed / counts.active, torch.nan),
        n_latents=torch.bincount(matching.best_feature[claimed], minlength=len(matched)),
    )


def cosine_values(matching: Matching) -> dict[str, float | int | None]:
    """The numbers that need nothing but the true features and the decoder, by name."""
    values: dict[str, float | int | None] = {}
    assigned = matching.assigned_cosine
    for name, threshold in THRESHOLDS.items():
        values[f"frr_{name}"] = _share(matching.cosine >= threshold)
        values[f"frr_one_to_one_{name}"] = (
            None if assigned is None else _share(assigned >= threshold)
        )
    return values | {"mean_max_cosine_features": _mean(matching.cosine)}


def recovery_values(
    matching: Matching, counts: FiringCounts, table: FeatureTable
) -> dict[str, float | int | None]:
    """Every number of the suite that one dictionary alone has, by name."""
    alive, matched = counts.alive(), table.matched
    latent_cosine = matching.latent_cosine[alive]
    absorbed = table.absorbed_share[matched]
    values = cosine_values(matching)
    for name, threshold in THRESHOLDS.items():
        values[f"precision_{name}"] = _share(latent_cosine >= threshold)
    values |= {f"frr_quartile_{quarter}": None for quarter in range(1, len(QUARTILES) + 1)}
    if float(table.frequency.min()) < float(table.frequency.max()):
        order = table.frequency.argsort(descending=True, stable=True)
        for quarter, part in enumerate(torch.tensor_split(order, len(QUARTILES)), start=1):
            values[f"frr_quartile_{quarter}"] = _share(matched[part])
    apart = (table.latent_frequency / table.observed_frequency).log10().abs()
    reconstruction, sparsity = counts.reconstruction.values(), counts.sparsity.values()
    return values | {
        "mean_max_cosine_latents": _mean(latent_cosine),
        "frequency_matched": _median(table.frequency[matched]),
        "frequency_missed": _median(table.frequency[~matched]),
        "match_f1": _mean(table.f1[matched]),
        "match_mass_share": _mean(table.mass_share[matched]),
        "frequency_error": _mean(apart[matched]),
        "z_score_median": _median(counts.z_scores()[alive]),
        "split_share": _share(table.n_latents[matched] >= 2),
        "latents_per_match": _mean(table.n_latents[matched].double()),
        "absorption_rate": _mean(absorbed),
        "absorbed_features": _share(absorbed[absorbed.isfinite()] >= OFTEN_ABSORBED),
        "nmse": float(counts.reconstruction.squared_error.sum()) / counts.norm_total,
        **{name: reconstruction[name] for name in ("fvu", "n_rows")},
        **{name: sparsity[name] for name in ("l0_mean", "dead_fraction", "dense_fraction")},
    }


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


_MATCHED = "matched features (those with a latent of cosine at least {threshold})"
_SHARED = ("fvu", "l0_mean", "dead_fraction", "dense_fraction")
MEANINGS: dict[str, dict[str, str]] = {
    "Recovery": {
        **{
            f"frr_{name}": f"Feature recovery rate at {threshold}: share of the {{n_features}} "
            "true features for which some latent, alive or dead, has a cosine of at least "
            f"{threshold}; cosine is the signed cosine of a decoder row and a true feature."
            for name, threshold in THRESHOLDS.items()
        },
        **{
            f"frr_one_to_one_{name}": "Share of the true features whose latent under the "
            "one-to-one assignment of largest total cosine (Hungarian method) has a cosine of at "
            f"least {threshold}: one latent cannot stand for two features. Null where there are "
            "too many pairs."
            for name, threshold in THRESHOLDS.items()
        },
        "mean_max_cosine_features": "Mean over true features of the largest cosine with any "
        "latent.",
        "mean_max_cosine_latents": "Mean over alive latents (active on one of the {n_rows} "
        "held-out rows or more) of the largest cosine with any true feature.",
        "chance_cosine": "mean_max_cosine_features of {d_sae} random directions: what this width "
        "reaches without learning.",
        **{
            f"precision_{name}": "Share of the alive latents that have a cosine of at least "
            f"{threshold} with some true feature."
            for name, threshold in THRESHOLDS.items()
        },
    },
    "Recovery by frequency": {
        **{
            f"frr_quartile_{quarter}": f"Feature recovery rate at {{threshold}} of the {which} "
            "quarter of the true features. Null where all are equally frequent."
            for quarter, which in enumerate(QUARTILES, start=1)
        },
        "frequency_matched": f"Median frequency of the {_MATCHED}; frequency is the probability, "
        "by the law that planted it, that a feature is active in a row.",
        "frequency_missed": "Median frequency of the features that are not matched at "
        "{threshold}; null where none is missed.",
    },
    "Purity of matches": {
        "match_f1": f"Mean over {_MATCHED} of the F1 with which the best latent being active "
        "predicts the feature being active, over the {n_rows} held-out rows.",
        "match_mass_share": f"Mean over {_MATCHED} of the share of the best latent's summed codes "
        "that lies on rows where the feature is active: 1 is a monosemantic latent.",
        "frequency_error": f"Mean over {_MATCHED} of |log10(p / f)|: p is the share of held-out "
        "rows on which the best latent is active, f that on which the feature is; features with p "
        "or f zero are left out.",
        "z_score_median": "Median over alive latents of (largest code - mean code) / standard "
        "deviation of the code, over all held-out rows, zeros included.",
    },
    "Splitting and absorption": {
        "split_share": f"Share of the {_MATCHED} that are split: the best feature, at "
        "{threshold} or more, of two alive latents or more.",
        "latents_per_match": f"Mean over {_MATCHED} of the number of alive latents whose best "
        "feature it is, at {threshold} or more.",
        "absorption_rate": f"Mean over {_MATCHED} of the share of its active held-out rows on "
        "which it is absorbed: every latent with a cosine of at least {threshold} to it is "
        "silent, and another latent is active that stands for a feature active on the row (its "
        f"host, the other feature of largest cosine, at least {HOST_COSINE}) and has a weight of "
        f"at least {ABSORBED_COMPONENT} on this one when its unit decoder row is fitted by host "
        "and feature.",
        "absorbed_features": f"Share of the {_MATCHED} that are absorbed on at least "
        f"{OFTEN_ABSORBED:.0%} of their active held-out rows.",
    },
    "Reconstruction": {
        "nmse": "Sum of |x - reconstruction|^2 divided by the sum of |x|^2, both over the "
        "{n_rows} held-out rows. It says nothing of recovery: the lowest go with none.",
        **{name: METRICS[name].text for name in _SHARED},
    },
    "Consistency": {
        "mcs_090": "Share of the alive latents whose mean, over the other {n_others} dictionaries "
        "of this evaluation trained alike on the same cache with another seed, of the largest "
        "cosine with any of their latents is above 0.9. Null where there is no other.",
    },
    "What was planted": {
        "n_features": "True features.",
        "true_l0": "Mean number of true features active in a held-out row.",
        "coherence": "Largest |cosine| of two different true features.",
        "n_rows": "Held-out rows evaluated; training rows come from another stream.",
    },
}
"""Every number by heading and name; braces in the texts name facts of a run."""

_UNITS = {
    "frequency_matched": "share of rows",
    "frequency_missed": "share of rows",
    "frequency_error": "decades",
    "z_score_median": "standard deviations",
    "latents_per_match": "latents per feature",
    **{name: METRICS[name].unit for name in _SHARED},
    "n_features": "features",
    "true_l0": "features per row",
    "n_rows": "rows",
}
_BETTER: dict[str, Better] = {
    **{f"frr_{name}": "higher" for name in THRESHOLDS},
    **{f"frr_one_to_one_{name}": "higher" for name in THRESHOLDS},
    **dict.fromkeys(("mean_max_cosine_features", "precision_090", "match_f1"), "higher"),
    **dict.fromkeys(("absorption_rate", "split_share", "nmse", "dead_fraction"), "lower"),
}


def recovery_definitions(facts: Mapping[str, Any]) -> list[Definition]:
    """Every number with the facts of a run filled in."""
    return filled_in(MEANINGS, facts, units=_UNITS, better=_BETTER)
