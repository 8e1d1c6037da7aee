"""Which features a table shows and in which order, and which are worth a first look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from saelab.features.label_content import Label
from saelab.features.reader import FeatureStore
from saelab.features.schema import FLAGS
from saelab.features.unpacking import split_tokens

from .token_html import short_label, visible_text

BEST_MATCH = "best match"
SORTS: dict[str, str] = {
    "index": "id",
    "density": "density",
    "max activation": "max_act",
    "mean activation": "mean_act",
    "contexts": "n_sequences",
    "activation kurtosis": "kurtosis",
    "largest logit": "logit_max",
    "logit kurtosis": "logit_kurtosis",
    "decoder norm": "decoder_norm",
}
"""Words of the sort box -> column of the store; "best match" is the order of a search."""
SHOWN = ("all", "active", "labelled", *FLAGS)
"""Words of the filter: every feature, those ever active, those with a label, or with a flag."""
LOWEST_LOG_DENSITY = -8.0
TOKENS_IN_TABLE, MOST_ABOUT = 8, 5
MOST_HITS = 5000
FEWEST_CONTEXTS = 20
"""A feature seen in fewer contexts is not recommended: too little to judge it by."""
FEWEST_CONTEXTS_OF_A_SMALL_STORE = 5
"""The same, where hardly any feature was seen in more."""
PER_GROUP = 4


@dataclass(frozen=True, kw_only=True)
class FeatureFilter:
    """What a table of features is asked to show."""

    query: str = ""
    """Words of a label, tokens or indices; empty: every feature."""
    show: str = "all"
    """Which kind of features."""
    log_density: tuple[float, float] = (LOWEST_LOG_DENSITY, 0.0)
    """Lowest and highest log10 of the density."""
    sort: str = "index"
    """Number that they are ordered by."""
    descending: bool = False
    """Whether the largest comes first."""
    only_labelled: bool = False
    """Whether features without one of the labels given are left out."""
    score: str = ""
    """Score of explanations that is asked for; empty: none."""
    least: float = 0.0
    """Value that the score has at least."""


def scores_of(
    labels: Sequence[Label], n_features: int
) -> dict[str, Float[np.ndarray, " features"]]:
    """The newest value of each score of explanations, by "… score"; NaN where there is none."""
    scores: dict[str, np.ndarray] = {}
    for label in sorted(labels, key=lambda label: label.id):
        for score in label.scores:
            column = scores.setdefault(f"{score.name} score", np.full(n_features, np.nan))
            column[label.feature] = score.value
    return dict(sorted(scores.items()))


def select_features(
    store: FeatureStore,
    labels: Mapping[int, str],
    wanted: FeatureFilter,
    scores: Mapping[str, Float[np.ndarray, " features"]] | None = None,
    likeness: Mapping[int, float] | None = None,
) -> tuple[Int[np.ndarray, " chosen"], dict[int, str]]:
    """The features that a filter lets through, in its order.

    Args:
        store: the features.
        labels: text of every label.
        wanted: the filter.
        scores: scores of explanations, by name; the filter and the order may ask for one.
        likeness: features by likeness to the query, where they are searched by meaning.

    Returns:
        Their indices, and for a search where each was hit, or how like it is.
    """
    table, scores = store.table(), scores or {}
    keep = _shown(table, labels, wanted.show)
    if wanted.only_labelled:
        keep &= np.isin(table["id"], list(labels))
    if wanted.score in scores:
        keep &= np.nan_to_num(scores[wanted.score], nan=-np.inf) >= wanted.least
    low, high = wanted.log_density
    if (low, high) != (LOWEST_LOG_DENSITY, 0.0):
        density = np.nan_to_num(table["density"])
        keep &= (density >= 10.0**low) & (density <= 10.0**high)
    hits: dict[int, str] = {}
    if wanted.query.strip():
        hits = search_features(store, labels, wanted.query) if likeness is None else _like(likeness)
        keep &= np.isin(table["id"], list(hits))
    chosen = np.flatnonzero(keep)
    if wanted.sort == BEST_MATCH or wanted.sort not in {*SORTS, *scores}:
        rank = {feature: index for index, feature in enumerate(hits)}
        order = [rank.get(feature, feature) for feature in chosen.tolist()]
        return chosen[np.argsort(np.array(order, dtype=np.int64), kind="stable")], hits
    column = scores[wanted.sort] if wanted.sort in scores else table[SORTS[wanted.sort]]
    values = np.asarray(column, dtype=np.float64)[chosen]
    # Undefined numbers come last in either direction.
    key = np.where(np.isnan(values), np.inf, -values if wanted.descending else values)
    return chosen[np.argsort(key, kind="stable")], hits


def _like(likeness: Mapping[int, float]) -> dict[int, str]:
    """From the likest down."""
    ranked = sorted(likeness.items(), key=lambda pair: -pair[1])
    return {feature: f"{cosine:.2f}" for feature, cosine in ranked}


def _shown(table: Mapping[str, Any], labels: Mapping[int, str], show: str) -> Any:
    if show == "active":
        return table["n_active"] > 0
    if show == "labelled":
        return np.isin(table["id"], list(labels))
    if show in FLAGS:
        return (table["flags"] & FLAGS[show]) != 0
    return np.ones(len(table["id"]), dtype=bool)


def search_features(store: FeatureStore, labels: Mapping[int, str], query: str) -> dict[int, str]:
    """Where each feature that a search hits was hit, labels first: a person's words count most."""
    wanted = query.strip().casefold()
    where: dict[int, list[str]] = {}
    for feature, text in labels.items():
        if wanted in text.casefold():
            where.setdefault(feature, []).append("label")
    names = {"top_tokens": "top tokens", "promoted_tokens": "promoted tokens"}
    for hit in store.search(query, limit=MOST_HITS):
        where.setdefault(hit.feature, []).append(names.get(hit.field, hit.field))
    return {feature: ", ".join(fields) for feature, fields in where.items()}


def table_columns(
    store: FeatureStore,
    labels: Mapping[int, str],
    features: Sequence[int],
    hits: Mapping[int, str],
    sort: str = "index",
    scores: Mapping[str, Float[np.ndarray, " features"]] | None = None,
    found: str = "found in",
) -> dict[str, list[Any]]:
    """The columns of the table, for the features given; numbers begin with the sorted one.

    `found` is the title of the column of hits; the rest as in `select_features`.
    """
    table = store.table()
    columns: dict[str, list[Any]] = {"feature": list(features)}
    if hits:
        columns[found] = [hits.get(feature, "") for feature in features]
    if labels:
        columns["label"] = [labels.get(feature, "") for feature in features]
    for title, values in (scores or {}).items():
        columns[title] = [_number(values[feature]) for feature in features]
    columns |= {
        column.replace("_", " "): [tokens_text(table[column][feature]) for feature in features]
        for column in ("top_tokens", "promoted_tokens")
    }
    titles = [title for title in SORTS if title != "index"]
    for title in sorted(titles, key=lambda title: title != sort):
        columns[title] = [_number(table[SORTS[title]][feature]) for feature in features]
    columns["flags"] = [
        ", ".join(name for name, bit in FLAGS.items() if bits & bit)
        for bits in table["flags"][list(features)]
    ]
    return columns


def tokens_text(joined: str, most: int = TOKENS_IN_TABLE) -> str:
    """Tokens of a text column, readable in one cell."""
    return "  ".join(visible_text(short_label(token)) for token in split_tokens(joined)[:most])


def about(
    table: Mapping[str, Any], labels: Mapping[int, str], feature: int, most: int = MOST_ABOUT
) -> str:
    """What a feature is about: its label, or the tokens at which its strongest examples peak."""
    return labels.get(feature) or tokens_text(table["top_tokens"][feature], most)


def _number(value: Any) -> float | int | None:
    if isinstance(value, np.integer):
        return int(value)
    return None if np.isnan(value) else float(value)


@dataclass(frozen=True, kw_only=True)
class CuratedGroup:
    """A few features that are alike in one respect."""

    title: str
    """What they have in common."""
    reason: str
    """How they were chosen, in words."""
    features: tuple[int, ...]
    """From the clearest down."""


@lru_cache(maxsize=32)
def curated_features(store: FeatureStore) -> list[CuratedGroup]:
    """The curated groups of an open store, chosen once."""
    return curated_groups(store.table())


def curated_groups(table: Mapping[str, Any], per_group: int = PER_GROUP) -> list[CuratedGroup]:
    """Groups of features to begin with; a feature appears once, an empty group not at all."""
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
            clean + 1e-3 * _rank_share(table["kurtosis"]),
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
    for feature, joined in enumerate(top_tokens):
        words = [token.strip().casefold() for token in split_tokens(joined)]
        if words and any(words):
            scores[feature] = Counter(words).most_common(1)[0][1] / len(words)
    return scores


def _best(
    score: Any, allowed: Bool[np.ndarray, " features"], most: int, taken: set[int], top_tokens: Any
) -> list[int]:
    """The highest scores; of features that peak on the same token, only the first is taken."""
    scores = np.where(allowed & np.isfinite(score), score, np.nan)
    order = np.argsort(-scores, kind="stable")[: np.isfinite(scores).sum()]
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


def _rank_share(values: Any) -> Float[np.ndarray, " features"]:
    """Rank of each value among all, 0 to 1; undefined ones are lowest."""
    filled = np.nan_to_num(np.asarray(values, dtype=np.float64), nan=-np.inf)
    return np.argsort(np.argsort(filled, kind="stable"), kind="stable") / max(1, len(filled) - 1)
