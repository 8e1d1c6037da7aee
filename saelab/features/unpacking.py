"""From a feature's row and blobs to its record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from saelab.errors import ArtifactError

from .records import (
    Example,
    FeatureRecord,
    Histogram,
    LogitLens,
    Moments,
    Neighbour,
    QuantileGroup,
    TokenScore,
)
from .schema import FLAGS, N_BINS
from .windows import Windows

Arrays = Mapping[str, Shaped[np.ndarray, " entries"]]
TOKEN_SEPARATOR = "\x1f"
"""Between the tokens of the text columns: a control character, which no search is for."""


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
    statistics, neighbours = arrays["statistics"], arrays["neighbours"]
    coactivation = arrays["coactivation"]
    lists = list(_example_lists(arrays["examples"], windows))
    top, *drawn, positives = lists
    active = row["n_active"] > 0
    return FeatureRecord(
        id=row["id"],
        n_active=row["n_active"],
        n_tokens=manifest["n_tokens"],
        density=row["density"],
        n_sequences=row["n_sequences"],
        max_act=row["max_act"],
        moments=Moments(row["mean_act"], row["std_act"], row["skewness"], row["kurtosis"]),
        quantiles=tuple(
            zip(manifest["quantile_levels"], statistics["quantiles"].tolist(), strict=False)
        ),
        histogram=_histogram(0.0, row["max_act"], statistics["histogram"]) if active else None,
        flags=tuple(name for name, bit in FLAGS.items() if row["flags"] & bit),
        decoder_norm=row["decoder_norm"],
        encoder_norm=row["encoder_norm"],
        encoder_bias=row["encoder_bias"],
        threshold=row["threshold"],
        map_xy=None if row["map_x"] is None else (row["map_x"], row["map_y"]),
        top_examples=top,
        quantile_groups=tuple(_groups(arrays["examples"], drawn, row)),
        random_positives=positives,
        near_misses=tuple(_near_misses(arrays["silent"], windows)),
        random_silent=tuple(_random_silent(arrays["silent"], windows)),
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
    ends = np.cumsum(arrays["n_active"], dtype=np.int64).tolist()
    begins = [0, *ends[:-1]]
    sequences, anchors = arrays["sequence"].tolist(), arrays["anchor"].tolist()
    positions = arrays["position"].astype(np.int64)
    activations = arrays["activation"]
    place = 0
    for size in arrays["list_sizes"].tolist():
        examples = []
        for index in range(place, place + size):
            window = slice(begins[index], ends[index])
            where, values = positions[window], activations[window]
            value = float(values[np.searchsorted(where, anchors[index])])
            examples.append(windows.example(sequences[index], anchors[index], where, values, value))
        place += size
        yield tuple(examples)


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


def _near_misses(arrays: Arrays, windows: Windows) -> Iterator[Example]:
    nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)
    names = ("near_sequence", "near_anchor", "near_feature", "near_activation")
    for sequence, anchor, other, value in zip(
        *(arrays[name].tolist() for name in names), strict=True
    ):
        yield windows.example(
            sequence, anchor, *nothing, 0.0, other_feature=other, other_value=value
        )


def _random_silent(arrays: Arrays, windows: Windows) -> Iterator[Example]:
    nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)
    for sequence, anchor in zip(
        arrays["random_sequence"].tolist(), arrays["random_anchor"].tolist(), strict=True
    ):
        yield windows.example(sequence, anchor, *nothing, 0.0)


def _logit_lens(arrays: Arrays, windows: Windows) -> LogitLens:
    low, high = arrays["ends"].tolist()
    moments = [None if value != value else value for value in arrays["moments"].tolist()]
    return LogitLens(
        top=_scores(arrays["top_token"], arrays["top_value"], windows),
        bottom=_scores(arrays["bottom_token"], arrays["bottom_value"], windows),
        histogram=_histogram(low, high, arrays["histogram"]),
        moments=Moments(*moments),
    )


def _scores(
    tokens: Shaped[np.ndarray, " entries"], values: Shaped[np.ndarray, " entries"], windows: Windows
) -> tuple[TokenScore, ...]:
    pairs = zip(tokens.tolist(), values.tolist(), strict=True)
    return tuple(TokenScore(token, windows.token_text(token), value) for token, value in pairs)


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
