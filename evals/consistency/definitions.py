"""What every number of the suite "consistency" means, in words that travel with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from ..suite import Definition

RANKINGS = {
    "max_activation": "max activation: the largest code on the {rows} times the norm of the "
    "latent's decoder row, in activation units",
    "z_score": "Z-score: (largest - mean) / standard deviation of the latent's pre-activation over "
    "the {rows}",
    "density": "density: the fraction of the {rows} on which its code is positive",
}
"""What latents are ranked by, in words."""


_MCS = (
    "MCS is a latent's largest signed cosine between its decoder row and one of another "
    "dictionary, averaged over the other dictionaries of the group ({n_others})"
)
_TOP = "Of the {n_top} compared latents (a fraction of {top_fraction}) highest in "

_TEXTS: dict[str, tuple[str, str]] = {
    "mcs_mean": ("1", f"Mean MCS of the {{n_compared}} compared latents. {_MCS}."),
    "mcs_median": ("1", "Median MCS of the compared latents."),
    "mcs_share": (
        "1",
        "Share of the compared latents with MCS above {threshold}: found by the others too.",
    ),
    "one_to_one_mean": (
        "1",
        "Mean over compared latents and others of the cosine with the one-to-one partner; a latent "
        "without one, where the other has fewer latents, counts as 0. Partners are the assignment "
        "of largest total cosine, to within {gap} of its mean (auction algorithm), so "
        "that one latent cannot stand for two.",
    ),
    "one_to_one_share": (
        "1",
        "Share of the compared latents whose mean cosine with their one-to-one partners is above "
        "{threshold}.",
    ),
    "mutual_share": (
        "1",
        "Share, over compared latents and others, of latents whose nearest latent has this one as "
        "its nearest.",
    ),
    "mcs_random": (
        "1",
        "Mean MCS of {n_random} random unit directions against the same others: what chance "
        "gives. Seed {seed}.",
    ),
    **{
        f"mcs_share_top_{ranking}": (
            "1",
            f"{_TOP}{words}: share with MCS above {{threshold}}.",
        )
        for ranking, words in RANKINGS.items()
    },
    **{
        f"one_to_one_share_top_{ranking}": (
            "1",
            f"The same latents as in mcs_share_top_{ranking}: share whose mean cosine with their "
            "one-to-one partners is above {threshold}.",
        )
        for ranking in RANKINGS
    },
    "n_others": ("dictionaries", "Other dictionaries of the group."),
    "n_compared": ("latents", "{compared}"),
}


def consistency_definitions(facts: Mapping[str, Any]) -> list[Definition]:
    """Every number with the facts of a run filled in."""
    texts = {
        key: f"{fact:,}" if isinstance(fact, int) else str(fact) for key, fact in facts.items()
    }
    # Facts of the comparison are missing where there was none; so are the numbers that name them.
    return [
        Definition(
            name=name,
            unit=unit,
            text=text.format_map(defaultdict(str, texts)),
            better="neither" if name.startswith(("n_", "mcs_random")) else "higher",
        )
        for name, (unit, text) in _TEXTS.items()
    ]
