"""Which features a table shows, in which order, and what its columns hold. No Streamlit here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from saelab.features.reader import FeatureStore, SearchHit
from saelab.features.schema import FLAGS
from saelab.features.unpacking import split_tokens

from .token_html import visible_text

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
TOKENS_IN_TABLE = 8
MOST_HITS = 5000


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


def select_features(
    store: FeatureStore, labels: Mapping[int, str], wanted: FeatureFilter
) -> tuple[Int[np.ndarray, " chosen"], dict[int, str]]:
    """The features that a filter lets through, in its order.

    Args:
        store: the open feature store.
        labels: newest label by feature.
        wanted: the filter.

    Returns:
        Their indices, and for a search where each was found.
    """
    table = store.table()
    keep = _shown(table, labels, wanted.show)
    low, high = wanted.log_density
    if (low, high) != (LOWEST_LOG_DENSITY, 0.0):
        density = np.nan_to_num(table["density"])
        keep &= (density >= 10.0**low) & (density <= 10.0**high)
    found: dict[int, str] = {}
    if wanted.query.strip():
        found = _found(store.search(wanted.query, limit=MOST_HITS), labels, wanted.query)
        hit = np.zeros(len(keep), dtype=bool)
        hit[list(found)] = True
        keep &= hit
    chosen = np.flatnonzero(keep)
    if wanted.sort == BEST_MATCH or wanted.sort not in SORTS:
        rank = {feature: place for place, feature in enumerate(found)}
        order = np.array(
            [rank.get(feature, feature) for feature in chosen.tolist()], dtype=np.int64
        )
        return chosen[np.argsort(order, kind="stable")], found
    values = np.asarray(table[SORTS[wanted.sort]], dtype=np.float64)[chosen]
    # Undefined numbers come last in either direction.
    key = np.where(np.isnan(values), np.inf, -values if wanted.descending else values)
    return chosen[np.argsort(key, kind="stable")], found


def _shown(table: Mapping[str, Any], labels: Mapping[int, str], show: str) -> Any:
    if show == "active":
        return table["n_active"] > 0
    if show == "labelled":
        return np.isin(table["id"], list(labels))
    if show in FLAGS:
        return (table["flags"] & FLAGS[show]) != 0
    return np.ones(len(table["id"]), dtype=bool)


def _found(hits: Sequence[SearchHit], labels: Mapping[int, str], query: str) -> dict[int, str]:
    """Where each feature was found, labels first: a person's words count most."""
    wanted = query.strip().casefold()
    where: dict[int, list[str]] = {}
    for feature, text in labels.items():
        if wanted in text.casefold():
            where.setdefault(feature, []).append("label")
    names = {"top_tokens": "top tokens", "promoted_tokens": "promoted tokens"}
    for hit in hits:
        where.setdefault(hit.feature, []).append(names.get(hit.field, hit.field))
    return {feature: ", ".join(fields) for feature, fields in where.items()}


def table_columns(
    store: FeatureStore,
    labels: Mapping[int, str],
    features: Sequence[int],
    found: Mapping[int, str],
    sort: str = "index",
) -> dict[str, list[Any]]:
    """The columns of the table, for the features given; numbers begin with the sorted one."""
    table = store.table()
    columns: dict[str, list[Any]] = {"feature": list(features)}
    if found:
        columns["found in"] = [found.get(feature, "") for feature in features]
    if labels:
        columns["label"] = [labels.get(feature, "") for feature in features]
    columns |= {
        "top tokens": [tokens_text(table["top_tokens"][feature]) for feature in features],
        "promoted tokens": [tokens_text(table["promoted_tokens"][feature]) for feature in features],
    }
    titles = [title for title in SORTS if title != "index"]
    for title in sorted(titles, key=lambda title: title != sort):
        columns[title] = [_number(table[SORTS[title]][feature]) for feature in features]
    columns["flags"] = [flags_text(int(table["flags"][feature])) for feature in features]
    return columns


def tokens_text(joined: str, most: int = TOKENS_IN_TABLE) -> str:
    """Tokens of a text column, readable in one cell."""
    return "  ".join(visible_text(token) for token in split_tokens(joined)[:most])


def flags_text(bits: int) -> str:
    """The flags of a feature by name."""
    return ", ".join(name for name, bit in FLAGS.items() if bits & bit)


def _number(value: Any) -> float | int | None:
    if isinstance(value, np.integer):
        return int(value)
    return None if np.isnan(value) else float(value)
