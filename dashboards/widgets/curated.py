"""Features worth a first look, chosen from the numbers of a feature store alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from saelab.features.unpacking import split_tokens

FEWEST_CONTEXTS = 20
"""A feature seen in fewer contexts is not recommended: too little to judge it by."""
FEWEST_CONTEXTS_OF_A_SMALL_STORE = 5
"""The same, where hardly any feature was seen in more."""
PER_GROUP = 4


@dataclass(frozen=True, kw_only=True)
class CuratedGroup:
    """A few features that are alike in one respect."""

    title: str
    """What they have in common."""
    reason: str
    """How they were chosen, in words."""
    features: tuple[int, ...]
    """From the clearest down."""


def curated_groups(table: Mapping[str, Any], per_group: int = PER_GROUP) -> list[CuratedGroup]:
    """Groups of features to begin with; a feature appears once, an empty group not at all.

    Args:
        table: the columns of a feature store, by feature.
        per_group: features at most in each group.
    """
    seen = table["n_sequences"] >= FEWEST_CONTEXTS
    if seen.sum() < 10 * per_group:
        seen = table["n_sequences"] >= FEWEST_CONTEXTS_OF_A_SMALL_STORE
    common = seen & (table["flags"] == 0)
    clean = clean_token_scores(table["top_tokens"])
    taken: set[int] = set()
    groups = []
    for title, reason, score, allowed in (
        (
            "Speak for a few tokens",
            "highest kurtosis of what they add to the logits, over the vocabulary",
            table["logit_kurtosis"],
            common,
        ),
        (
            "Fire on one word",
            "the largest share of the different tokens of their top examples is one word, in "
            "whatever spelling; among equals, the highest kurtosis of activations first",
            clean + 1e-3 * _rank(table["kurtosis"]),
            common & (clean >= 0.5),
        ),
        (
            "Fire on many different words",
            "highest density among those whose top examples have ten or more different words, none "
            "of them in more than a tenth: what they share is in the context",
            np.where(clean <= 0.1, table["density"], np.nan),
            common,
        ),
        (
            "Rarely strong",
            "highest kurtosis of their activations: mostly faint, now and then very strong",
            table["kurtosis"],
            common,
        ),
        (
            "Almost always on",
            "highest density; such features often carry position or a general offset",
            table["density"],
            seen,
        ),
    ):
        chosen = _best(score, allowed, per_group, taken, table["top_tokens"])
        if chosen:
            taken.update(chosen)
            groups.append(CuratedGroup(title=title, reason=reason, features=tuple(chosen)))
    return groups


def clean_token_scores(top_tokens: Any) -> Float[np.ndarray, " features"]:
    """Share of a feature's distinct top tokens that are one word, ignoring case and spaces.

    The store lists each token text once, so a feature with one text scores 1.
    """
    scores = np.zeros(len(top_tokens))
    for place, joined in enumerate(top_tokens):
        words = [token.strip().casefold() for token in split_tokens(joined)]
        if words and any(words):
            scores[place] = Counter(words).most_common(1)[0][1] / len(words)
    return scores


def _best(
    score: Any,
    allowed: Bool[np.ndarray, " features"],
    most: int,
    taken: set[int],
    top_tokens: Any,
) -> list[int]:
    """The highest scores; of features that peak on the same token, only the first is taken."""
    usable = np.flatnonzero(allowed & np.isfinite(np.asarray(score, dtype=np.float64)))
    order = usable[np.argsort(-np.asarray(score, dtype=np.float64)[usable], kind="stable")]
    chosen: list[int] = []
    peaks: set[str] = set()
    for feature in order.tolist():
        peak = "".join(split_tokens(top_tokens[feature])[:1]).strip().casefold()
        if feature not in taken and peak not in peaks:
            chosen.append(feature)
            peaks.add(peak)
        if len(chosen) == most:
            break
    return chosen


def _rank(values: Any) -> Float[np.ndarray, " features"]:
    """Place of each value among all, 0 to 1; undefined ones are lowest."""
    filled = np.nan_to_num(np.asarray(values, dtype=np.float64), nan=-np.inf)
    return np.argsort(np.argsort(filled, kind="stable"), kind="stable") / max(1, len(filled) - 1)
