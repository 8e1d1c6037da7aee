"""Which features a table shows and in which order, and which are worth a first look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from saelab.features.label_content import TOO_WEAK, Label
from saelab.features.reader import FeatureStore
from saelab.features.schema import FLAGS
from saelab.features.unpacking import split_tokens

from .token_html import short_label, visible_text

BEST_MATCH, PERCENT = "best match", ", %"
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
DENSITIES = (0.0, *(float(f"{d}e{power}") for power in range(-6, 0) for d in (1, 3)), 1.0)
"""Bounds that the sliders offer, as shares of what is counted."""
ANY_DENSITY = (DENSITIES[0], DENSITIES[-1])
TOKENS_IN_TABLE, MOST_ABOUT = 8, 5
ROWS = 50
"""Features on a page of the table."""
FEWEST_CONTEXTS = 20
"""A feature seen in fewer contexts is not recommended: too little to judge it by."""
FEWEST_CONTEXTS_OF_A_SMALL_STORE = 5
"""The same, where hardly any feature was seen in more."""
PER_GROUP = 4
MOST_REGIONS, FEWEST_IN_REGION, FEWEST_ALIKE = 120, 20, 4
"""Regions of a map, and what is asked of one, and of a word, to be named."""


@dataclass(frozen=True, kw_only=True)
class FeatureFilter:
    """What a table of features is asked to show."""

    query: str = ""
    """As `saelab.features.query.HELP` says; empty: every feature."""
    show: str = "all"
    """Which kind of features."""
    density: tuple[float, float] = ANY_DENSITY
    """Lowest and highest share of what is counted."""
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
) -> tuple[Int[np.ndarray, " chosen"], Callable[[int], str] | None]:
    """The features that a filter lets through, in its order.

    Args:
        store: the features.
        labels: text of every label.
        wanted: the filter.
        scores: scores of explanations, by name; the filter and the order may ask for one.
        likeness: features by likeness to the query, where they are searched by meaning.

    Returns:
        Their indices, and for a search where each was hit, or how like it is.

    Raises:
        ConfigError: the query cannot be read.
    """
    table, scores = store.table(), scores or {}
    keep = _shown(table, labels, wanted.show, store.n_features)
    if wanted.only_labelled:
        keep &= _labelled(labels, store.n_features)
    if wanted.score in scores:
        keep &= np.nan_to_num(scores[wanted.score], nan=-np.inf) >= wanted.least
    if wanted.density != ANY_DENSITY:
        low, high = wanted.density
        density = np.nan_to_num(table["density"])
        keep &= (density >= low) & (density <= high)
    ranked, matched = np.arange(store.n_features), None
    if likeness is not None:
        ranked = np.array(sorted(likeness, key=lambda feature: -likeness[feature]), np.int64)
        matched = lambda feature: f"{likeness[feature]:.2f}"  # noqa: E731
    elif wanted.query.strip():
        hits = store.search(wanted.query, labels)
        ranked, matched = hits.features, hits.where
    chosen = ranked[keep[ranked]]
    if wanted.sort not in {*SORTS, *scores}:  # the best match
        return chosen, matched
    chosen = np.sort(chosen)
    column = scores[wanted.sort] if wanted.sort in scores else table[SORTS[wanted.sort]]
    values = np.asarray(column, dtype=np.float64)[chosen]
    # Undefined numbers come last in either direction.
    key = np.where(np.isnan(values), np.inf, -values if wanted.descending else values)
    return chosen[np.argsort(key, kind="stable")], matched


def _labelled(labels: Mapping[int, str], n_features: int) -> Bool[np.ndarray, " features"]:
    labelled = np.zeros(n_features, dtype=bool)
    labelled[list(labels)] = True
    return labelled


def _shown(table: Mapping[str, Any], labels: Mapping[int, str], show: str, n: int) -> Any:
    if show == "active":
        return table["n_active"] > 0
    if show == "labelled":
        return _labelled(labels, n)
    if show in FLAGS:
        return (table["flags"] & FLAGS[show]) != 0
    return np.ones(n, dtype=bool)


def table_columns(
    store: FeatureStore,
    labels: Mapping[int, str],
    features: Sequence[int],
    matched: tuple[str, Callable[[int], str]] | None = None,
    sort: str = "index",
    scores: Mapping[str, Float[np.ndarray, " features"]] | None = None,
    numbers: Sequence[str] = tuple(SORTS),
) -> dict[str, list[Any]]:
    """The columns of the table, for the features given; numbers begin with the sorted one.

    Args:
        matched: title and content of a column of hits.
        numbers: of `SORTS`; the rest as in `select_features`.
    """
    table = store.table()
    columns: dict[str, list[Any]] = {"feature": list(features)}
    if matched:
        columns[matched[0]] = [matched[1](feature) for feature in features]
    if labels:
        columns["label"] = [labels.get(feature, "") for feature in features]
    for title, values in (scores or {}).items():
        columns[title] = [_number(values[feature]) for feature in features]
    columns |= {
        column.replace("_", " "): [tokens_text(table[column][feature]) for feature in features]
        for column in ("top_tokens", "promoted_tokens")
    }
    titles = [title for title in SORTS if title != "index" and title in {*numbers, sort}]
    for title in sorted(titles, key=lambda title: title != sort):
        values = table[SORTS[title]][list(features)]
        if title == "density":
            title, values = f"density{PERCENT}", 100 * values
        columns[title] = [_number(value) for value in values]
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
    if label := labels.get(feature):
        return visible_text(label)
    return tokens_text(table["top_tokens"][feature], most)


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


def best_explained(labels: Sequence[Label]) -> CuratedGroup | None:
    """Features whose explanation does best beyond its controls; None where none is above them."""
    margins: dict[int, float] = {}
    for label in labels:
        beyond = [
            score.value - max(controls)
            for score in label.scores
            if (controls := [c for c in (score.shuffled, score.random) if c is not None])
        ]
        if beyond and label.method != TOO_WEAK and min(beyond) > 0:
            margins[label.feature] = max(margins.get(label.feature, 0), min(beyond))
    if not margins:
        return None
    return CuratedGroup(
        title="Explained best",
        reason="every score of the explanation (where it fires and, where measured, what it "
        "causes) is above its controls; by the smallest distance, the largest first",
        features=tuple(sorted(margins, key=lambda feature: -margins[feature])[:PER_GROUP]),
    )


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


def map_regions(table: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """What regions of the map are about, and where; see `figures.REGIONS_DEFINITION`.

    Args:
        table: columns "map_x", "map_y" and "top_tokens" of features that are on the map.
    """
    from scipy.cluster.vq import kmeans2

    points = np.stack([table["map_x"], table["map_y"]], axis=1).astype(np.float64)
    n_regions = min(MOST_REGIONS, len(points) // FEWEST_IN_REGION)
    if n_regions < 2:
        return []
    words = [
        {word for token in split_tokens(tokens) if len(word := token.strip().casefold()) > 2}
        for tokens in table["top_tokens"]
    ]
    overall = Counter(word for each in words for word in each)
    centres, region = kmeans2(points, n_regions, minit="++", rng=0)
    named: dict[str, tuple[int, float, float]] = {}
    for number, (x, y) in enumerate(centres.tolist()):
        members = np.flatnonzero(region == number).tolist()
        inside = Counter(word for member in members for word in words[member])
        for word, n in inside.most_common():
            if n < max(FEWEST_ALIKE, len(members) / 10):
                break
            elsewhere = (overall[word] - n) / (len(points) - len(members))
            if n / len(members) >= 10 * elsewhere:
                # A word is written once, where most features share it.
                named[word] = max(named.get(word, (0, x, y)), (n, x, y))
                break
    return [(visible_text(word), x, y) for word, (_, x, y) in named.items()]


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
