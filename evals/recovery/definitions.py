"""What every number of the suite "recovery" means, in words that travel with it.

Braces are filled in with the facts of a run by `recovery_definitions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from saelab.formats.evaluation_result import Better
from saelab.stats.metric_definitions import METRICS

from ..suite import Definition
from .matching import ABSORBED_COMPONENT, HOST_COSINE
from .measures import OFTEN_ABSORBED, THRESHOLDS, threshold_name

_COSINE = "the signed cosine of a decoder row and a true feature"
_MATCHED = "matched features (those with a latent of cosine at least {threshold})"
_QUARTILES = ("most frequent", "second most frequent", "third most frequent", "rarest")

_TABLE: dict[str, list[tuple[str, str, str]]] = {
    "Recovery": [
        *(
            (
                f"frr_{threshold_name(threshold)}",
                "1",
                f"Feature recovery rate at {threshold}: share of the {{n_features}} true features "
                f"for which some latent, alive or dead, has a cosine of at least {threshold}; "
                f"cosine is {_COSINE}.",
            )
            for threshold in THRESHOLDS
        ),
        *(
            (
                f"frr_one_to_one_{threshold_name(threshold)}",
                "1",
                "Share of the true features whose latent under the one-to-one assignment of "
                f"largest total cosine (Hungarian method) has a cosine of at least {threshold}: "
                "one latent cannot stand for two features. Null where there are too many pairs.",
            )
            for threshold in THRESHOLDS
        ),
        (
            "mean_max_cosine_features",
            "1",
            "Mean over true features of the largest cosine with any latent.",
        ),
        (
            "mean_max_cosine_latents",
            "1",
            "Mean over alive latents (active on one of the {n_rows} held-out rows or more) of the "
            "largest cosine with any true feature.",
        ),
        (
            "chance_cosine",
            "1",
            "mean_max_cosine_features of {d_sae} random directions: what this width reaches "
            "without learning.",
        ),
        *(
            (
                f"precision_{threshold_name(threshold)}",
                "1",
                "Share of the alive latents that have a cosine of at least "
                f"{threshold} with some true feature.",
            )
            for threshold in THRESHOLDS
        ),
    ],
    "Recovery by frequency": [
        *(
            (
                f"frr_quartile_{place + 1}",
                "1",
                f"Feature recovery rate at {{threshold}} of the {which} quarter of the true "
                "features. Null where all are equally frequent.",
            )
            for place, which in enumerate(_QUARTILES)
        ),
        (
            "frequency_matched",
            "share of rows",
            f"Median frequency of the {_MATCHED}; frequency is the probability, by the law that "
            "planted it, that a feature is active in a row.",
        ),
        (
            "frequency_missed",
            "share of rows",
            "Median frequency of the features that are not matched at {threshold}; null where none "
            "is missed.",
        ),
    ],
    "Purity of matches": [
        (
            "match_f1",
            "1",
            f"Mean over {_MATCHED} of the F1 with which the best latent being active predicts the "
            "feature being active, over the {n_rows} held-out rows.",
        ),
        (
            "match_mass_share",
            "1",
            f"Mean over {_MATCHED} of the share of the best latent's summed codes that lies on "
            "rows where the feature is active: 1 is a monosemantic latent.",
        ),
        (
            "frequency_error",
            "decades",
            f"Mean over {_MATCHED} of |log10(p / f)|: p is the share of held-out rows on which the "
            "best latent is active, f that on which the feature is; features with p or f zero are "
            "left out.",
        ),
        (
            "z_score_median",
            "standard deviations",
            "Median over alive latents of (largest code - mean code) / standard deviation of the "
            "code, over all held-out rows, zeros included.",
        ),
    ],
    "Splitting and absorption": [
        (
            "split_share",
            "1",
            f"Share of the {_MATCHED} that are split: the best feature, at {{threshold}} or more, "
            "of two alive latents or more.",
        ),
        (
            "latents_per_match",
            "latents per feature",
            f"Mean over {_MATCHED} of the number of alive latents whose best feature it is, at "
            "{threshold} or more.",
        ),
        (
            "absorption_rate",
            "1",
            f"Mean over {_MATCHED} of the share of its active held-out rows on which it is "
            "absorbed: every latent with a cosine of at least {threshold} to it is silent, and "
            "another latent is active that stands for a feature active on the row (its host, the "
            f"other feature of largest cosine, at least {HOST_COSINE}) and has a weight of at "
            f"least {ABSORBED_COMPONENT} on this one when its unit decoder row is fitted by host "
            "and feature.",
        ),
        (
            "absorbed_features",
            "1",
            f"Share of the {_MATCHED} that are absorbed on at least {OFTEN_ABSORBED:.0%} of their "
            "active held-out rows.",
        ),
    ],
    "Reconstruction": [
        (
            "nmse",
            "1",
            "Sum of |x - reconstruction|^2 divided by the sum of |x|^2, both over the {n_rows} "
            "held-out rows. It says nothing of recovery: the lowest go with none.",
        ),
        *((name, METRICS[name].unit, METRICS[name].definition) for name in ("fvu", "l0_mean")),
        *(
            (name, METRICS[name].unit, METRICS[name].definition)
            for name in ("dead_fraction", "dense_fraction")
        ),
    ],
    "Consistency": [
        (
            "mcs_090",
            "1",
            "Share of the alive latents whose mean, over the other {n_others} dictionaries of this "
            "evaluation trained alike on the same cache with another seed, of the largest cosine "
            "with any of their latents is above 0.9. Null where there is no other.",
        ),
    ],
    "What was planted": [
        ("n_features", "features", "True features."),
        ("true_l0", "features per row", "Mean number of true features active in a held-out row."),
        ("coherence", "1", "Largest |cosine| of two different true features."),
        ("n_rows", "rows", "Held-out rows evaluated; training rows come from another stream."),
    ],
}

BETTER: dict[str, Better] = {
    **{f"frr_{threshold_name(threshold)}": "higher" for threshold in THRESHOLDS},
    **{f"frr_one_to_one_{threshold_name(threshold)}": "higher" for threshold in THRESHOLDS},
    **dict.fromkeys(("mean_max_cosine_features", "precision_090", "match_f1"), "higher"),
    **dict.fromkeys(("absorption_rate", "split_share", "nmse", "dead_fraction"), "lower"),
}
UNFILLED = {
    name: Definition(
        name=name, group=group, unit=unit, text=text, better=BETTER.get(name, "neither")
    )
    for group, entries in _TABLE.items()
    for name, unit, text in entries
}
"""Every number; braces in the texts name facts."""


def recovery_definitions(facts: Mapping[str, Any]) -> list[Definition]:
    """Every number with the facts of a run filled in.

    Raises:
        KeyError: a fact that a text names was not given.
    """
    texts = {
        key: f"{fact:,}" if isinstance(fact, int) else str(fact) for key, fact in facts.items()
    }
    return [replace(d, text=d.text.format_map(texts)) for d in UNFILLED.values()]
