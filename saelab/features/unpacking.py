"""From a feature's row and blobs to its record; examples as windows of text around an anchor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped

from saelab.errors import ArtifactError

from .records import (
    ActivationMoments,
    Example,
    FeatureRecord,
    Histogram,
    LogitLens,
    Neighbour,
    QuantileGroup,
    TokenScore,
)
from .schema import FLAGS, N_BINS
from .token_text import Vocabulary

Arrays = Mapping[str, Shaped[np.ndarray, " entries"]]
TOKEN_SEPARATOR = "\x1f"
"""Between the tokens of the text columns: a control character, which no search is for."""


COLUMNS = (
    *("id", "n_active", "density", "n_sequences", "max_act"),
    *("decoder_norm", "encoder_norm", "encoder_bias", "threshold"),
)
"""Columns of `feature` that a record holds as they are."""
NOWHERE = np.zeros(0, np.int64)
SILENT = np.zeros(0, np.float32)


class Context(NamedTuple):
    """A context of the store's text, piece by piece."""

    tokens: Integer[np.ndarray, " context"]
    """Token ids."""
    starts: Integer[np.ndarray, " pieces"]
    """Position of each piece's first token."""
    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    counted: Bool[np.ndarray, " pieces"]
    """Which pieces hold a row."""


def context_of(
    tokens: Integer[np.ndarray, " context"],
    counted: Bool[np.ndarray, " context"],
    vocabulary: Vocabulary,
) -> Context:
    """A context from its tokens and which of them are rows."""
    ids = tokens.tolist()
    pieces = vocabulary.pieces(ids)
    starts = np.array(pieces.starts[:-1], np.int64)
    token_ids = tuple(zip(ids, strict=True))
    if len(starts) < len(ids):
        counted = np.logical_or.reduceat(counted, starts)
        bounds = zip(pieces.starts[:-1], pieces.starts[1:], strict=True)
        token_ids = tuple(tuple(ids[a:b]) for a, b in bounds)
    return Context(tokens, starts, pieces.texts, token_ids, counted)


class Windows:
    """Makes examples of one width from contexts."""

    def __init__(self, contexts: Mapping[int, Context], vocabulary: Vocabulary, window: int | None):
        self._contexts = contexts
        self.vocabulary = vocabulary
        self._window = window

    def example(
        self,
        sequence: int,
        anchor: int,
        positions: Integer[np.ndarray, " active"] = NOWHERE,
        activations: Float[np.ndarray, " active"] = SILENT,
        value: float = 0.0,
        *,
        other_feature: int | None = None,
        other_value: float | None = None,
    ) -> Example:
        """The window around position `anchor` of a context, in whole pieces.

        Args:
            sequence: the context.
            anchor: position the example is about.
            positions: where in the context the feature is active; nowhere where left out.
            activations: how much.
            value: activation at the anchor.
            other_feature: in a near miss, the feature active there.
            other_value: and how much.
        """
        tokens, starts, texts, token_ids, counted = self._contexts[sequence]
        dense = np.zeros(len(tokens), np.float32)
        dense[positions] = activations
        first, last = 0, len(tokens) - 1
        if self._window is not None:
            first, last = max(0, anchor - self._window), min(last, anchor + self._window)
        if len(starts) < len(tokens):
            dense = np.maximum.reduceat(dense, starts)
            places = np.searchsorted(starts, [first, last, anchor], side="right") - 1
            first, last, anchor = places.tolist()
        inside = slice(first, last + 1)
        return Example(
            sequence=sequence,
            texts=texts[inside],
            token_ids=token_ids[inside],
            positions=starts[inside],
            activations=dense[inside],
            counted=counted[inside],
            anchor=anchor - first,
            value=value,
            other_feature=other_feature,
            other_value=other_value,
        )


class PackedFeature(NamedTuple):
    """A feature as read."""

    scalars: dict[str, Any]
    """Its row of `feature`."""
    arrays: dict[str, Arrays]
    """Its unpacked blobs by table."""
    origin: str
    """File and feature, for errors."""


def record_of(packed: PackedFeature, windows: Windows, manifest: dict[str, Any]) -> FeatureRecord:
    """The record of a feature.

    Raises:
        ArtifactError: its parts do not fit one another.
    """
    try:
        return _record_of(packed, windows, manifest)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"{packed.origin} cannot be put together ({error!r}): the file was damaged; build it "
            "again with `saelab features … --overwrite`"
        ) from None


def _record_of(packed: PackedFeature, windows: Windows, manifest: dict[str, Any]) -> FeatureRecord:
    row, arrays = packed.scalars, packed.arrays
    for name, value in row.items():
        if isinstance(value, str | bytes) and not name.endswith("_tokens"):
            raise TypeError(f"its {name} is no number")
    statistics, neighbours = arrays["statistics"], arrays["neighbours"]
    coactivation, silent = arrays["coactivation"], arrays["silent"]
    lists = list(_example_lists(arrays["examples"], windows))
    top, *drawn, positives = lists
    active = row["n_active"] > 0
    return FeatureRecord(
        **{name: row[name] for name in COLUMNS},
        n_tokens=manifest["n_tokens"],
        moments=ActivationMoments(
            row["mean_act"], row["std_act"], row["skewness"], row["kurtosis"]
        ),
        quantiles=tuple(
            zip(manifest["quantile_levels"], statistics["quantiles"].tolist(), strict=False)
        ),
        histogram=_histogram(0.0, row["max_act"], statistics["histogram"]) if active else None,
        flags=tuple(name for name, bit in FLAGS.items() if row["flags"] & bit),
        map_xy=None if row["map_x"] is None else (row["map_x"], row["map_y"]),
        top_examples=top,
        quantile_groups=tuple(_groups(arrays["examples"], drawn, row)),
        random_positives=positives,
        near_misses=tuple(
            windows.example(sequence, anchor, other_feature=feature, other_value=value)
            for sequence, anchor, feature, value in _rows_of(
                silent, "near", "feature", "activation"
            )
        ),
        random_silent=tuple(windows.example(*row) for row in _rows_of(silent, "random")),
        logit_lens=_logit_lens(arrays["logits"], windows) if "logits" in arrays else None,
        decoder_neighbours=_pairs(neighbours["decoder_feature"], neighbours["decoder_cosine"]),
        encoder_neighbours=_pairs(neighbours["encoder_feature"], neighbours["encoder_cosine"]),
        coactive_jaccard=_pairs(
            coactivation["jaccard_feature"], coactivation["jaccard"], coactivation["jaccard_both"]
        ),
        coactive_pearson=_pairs(
            coactivation["pearson_feature"], coactivation["pearson"], coactivation["pearson_both"]
        ),
        top_tokens=split_tokens(row["top_tokens"]),
    )


def join_tokens(tokens: Iterable[str]) -> str:
    """The text column of some tokens, each once; what would break it shows as a symbol."""
    shown = (token.replace(TOKEN_SEPARATOR, "␟").replace("\0", "␀") for token in tokens)
    return TOKEN_SEPARATOR.join(dict.fromkeys(token for token in shown if token))


def split_tokens(joined: str) -> tuple[str, ...]:
    """The tokens of a text column."""
    return tuple(joined.split(TOKEN_SEPARATOR)) if joined else ()


def _example_lists(arrays: Arrays, windows: Windows) -> Iterator[tuple[Example, ...]]:
    """Each list of examples: top, one per stratum, random positives."""
    examples = _examples(arrays, windows)
    for size in arrays["list_sizes"].tolist():
        yield tuple(islice(examples, size))


def strongest_example(arrays: Arrays, windows: Windows) -> Example | None:
    """The first of the top examples, of which alone the context is needed; None of none."""
    return next(_examples(arrays, windows), None)


def _examples(arrays: Arrays, windows: Windows) -> Iterator[Example]:
    ends = np.cumsum(arrays["n_active"], dtype=np.int64).tolist()
    positions = arrays["position"].astype(np.int64)
    begin, contexts = 0, zip(arrays["sequence"].tolist(), arrays["anchor"].tolist(), strict=True)
    for (sequence, anchor), end in zip(contexts, ends, strict=True):
        active, values = positions[begin:end], arrays["activation"][begin:end]
        value = float(values[np.searchsorted(active, anchor)])
        yield windows.example(sequence, anchor, active, values, value)
        begin = end


def _groups(
    arrays: Arrays, drawn: list[tuple[Example, ...]], row: dict[str, Any]
) -> Iterator[QuantileGroup]:
    total_mass = float(arrays["stratum_mass"].sum())
    for index, examples in enumerate(drawn):
        n_activations = int(arrays["stratum_activations"][index])
        yield QuantileGroup(
            low=float(arrays["stratum_low"][index]),
            high=float(arrays["stratum_high"][index]),
            n_sequences=int(arrays["stratum_sequences"][index]),
            n_activations=n_activations,
            share_of_activations=n_activations / row["n_active"],
            share_of_mass=float(arrays["stratum_mass"][index]) / total_mass,
            examples=examples,
        )


def _rows_of(arrays: Arrays, prefix: str, *more: str) -> Iterator[tuple[Any, ...]]:
    """Sequence, anchor and more of each silent context of a kind."""
    names = ("sequence", "anchor", *more)
    return zip(*(arrays[f"{prefix}_{name}"].tolist() for name in names), strict=True)


def _logit_lens(arrays: Arrays, windows: Windows) -> LogitLens:
    low, high = arrays["ends"].tolist()
    moments = [None if value != value else value for value in arrays["moments"].tolist()]
    return LogitLens(
        top=_scores(arrays["top_token"], arrays["top_value"], windows),
        bottom=_scores(arrays["bottom_token"], arrays["bottom_value"], windows),
        histogram=_histogram(low, high, arrays["histogram"]),
        moments=ActivationMoments(*moments),
    )


def _scores(
    tokens: Shaped[np.ndarray, " entries"], values: Shaped[np.ndarray, " entries"], windows: Windows
) -> tuple[TokenScore, ...]:
    pairs = zip(tokens.tolist(), values.tolist(), strict=True)
    return tuple(TokenScore(token, windows.vocabulary.text(token), value) for token, value in pairs)


def _histogram(low: float, high: float, counts: Shaped[np.ndarray, " bins"]) -> Histogram:
    return Histogram(np.linspace(low, high, N_BINS + 1), counts)


def _pairs(
    features: Shaped[np.ndarray, " entries"],
    values: Shaped[np.ndarray, " entries"],
    both: Shaped[np.ndarray, " entries"] | None = None,
) -> tuple[Neighbour, ...]:
    counts = [None] * len(features) if both is None else both.tolist()
    return tuple(
        Neighbour(*entry) for entry in zip(features.tolist(), values.tolist(), counts, strict=True)
    )
