"""From sparse codes on disk to a feature store: everything about every latent, in two passes.

The first pass over ranges of latents gives the numbers and the examples. The second, when sums and
top examples of all latents are known, gives co-activation and silent contexts.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Integer

from saelab.dictionary import Dictionary
from saelab.formats.files import hash_of
from saelab.formats.manifest import new_manifest
from saelab.model.logit_lens import Lens
from saelab.progress import progress_bar
from saelab.stats.cosines import MAP_KEEPS, most_similar, neighbour_map, row_norms, unit_rows

from .coactivation import LatentSums, RowCodes, coactivation_arrays, row_codes
from .config import StoreOptions
from .examples import RangeExamples, SilentContexts, TextKeys, TopRows, no_examples
from .schema import (
    DEFINITIONS,
    FLAGS,
    KIND,
    QUANTILE_LEVELS,
    SCHEMA_VERSION,
    StoreWriter,
    store_writer,
)
from .shards import Pairs, Shards
from .statistics import histogram_of, logit_chunks, quantiles_of, range_moments
from .token_text import Vocabulary
from .unpacking import join_tokens

logger = logging.getLogger(__name__)

RANGE_PAIRS = 1 << 21
"""Pairs of a range of latents; memory grows with it, the numbers do not depend on it."""
RANGE_LATENTS = 512
"""Latents of a range, at most."""
PART_PAIRS = 40_000_000
"""Codes held row by row for co-activation: 12 bytes each."""
MAP_NEIGHBOURS = 30
"""Nearest decoder rows by which the map places a feature."""
MOMENT_COLUMNS = ("mean_act", "std_act", "skewness", "kurtosis")
LOGIT_COLUMNS = ("logit_min", "logit_max", "logit_skewness", "logit_kurtosis")
STAGES = 4
"""Times each latent is counted by the progress bar: neighbours, logits, examples, co-activation."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoreSources:
    """What a store is built from."""

    shards: Shards
    """Codes and text."""
    dictionary: Dictionary
    vocabulary: Vocabulary
    lens: Lens | None
    """The model's way to the logits; None where the dictionary does not write to it."""
    no_lens_because: str
    """Why there is no lens; empty where there is one."""
    dictionary_facts: Mapping[str, Any]
    """Name, architecture, method, … for the page."""
    made_from: Mapping[str, Any]
    """Names and hashes of everything; with `dictionary_hash` and `weights_sha256`."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """Settings as the command was given them, by which the same command knows its store again."""
    options: StoreOptions = field(default_factory=StoreOptions)
    """What to store."""


def write_store(path: Path, sources: StoreSources) -> dict[str, Any]:
    """Build the store; an older one stays readable until the new one is complete.

    Args:
        path: the SQLite file.
        sources: codes, dictionary, text.

    Returns:
        The manifest.

    Raises:
        ResourceError: the disk is full.
    """
    d_sae = sources.dictionary.d_sae
    build = _Build(sources)
    with (
        store_writer(path) as writer,
        progress_bar(STAGES * d_sae, "reading features", "steps") as bar,
    ):
        neighbours = build.neighbours(writer, bar.update)
        build.logits(writer, bar.update)
        sums, tops = build.examples(writer, bar.update)
        build.together(writer, bar.update, neighbours, sums, tops)
        writer.features(build.columns)
        shards = sources.shards
        writer.text(shards.tokens, shards.counted, shards.lengths, build.token_dtype)
        writer.vocabulary(sources.vocabulary)
        manifest = build.manifest()
        writer.manifest(manifest)
    return manifest


class _Build:
    """The state of one build: the columns of table `feature` as they become known."""

    def __init__(self, sources: StoreSources):
        self._sources = sources
        self._shards = sources.shards
        self._options = sources.options
        self._d_sae = sources.dictionary.d_sae
        self._keys = TextKeys(sources.shards.tokens, sources.options, sources.shards.lengths)
        self._map: dict[str, Any] = {}
        largest_token = int(sources.shards.tokens.max(initial=0))
        self.token_dtype = "<u2" if largest_token < 1 << 16 else "<u4"
        self.columns: dict[str, Any] = self._first_columns()

    def _first_columns(self) -> dict[str, Any]:
        """What is known without the codes, and the columns that the passes fill."""
        dictionary, d_sae = self._sources.dictionary, self._d_sae
        counts, n_tokens = self._shards.n_active, self._shards.n_tokens
        density = counts / n_tokens if n_tokens else np.full(d_sae, np.nan)
        flags = np.where(counts == 0, FLAGS["dead"], 0)
        flags |= np.where((counts > 0) & (density < self._options.rare_below), FLAGS["rare"], 0)
        flags |= np.where(density > self._options.dense_above, FLAGS["dense"], 0)
        undefined = np.full(d_sae, np.nan)
        bias = getattr(dictionary, "b_enc", getattr(dictionary, "b_gate", None))
        threshold = getattr(dictionary, "threshold", None)
        empty = (*MOMENT_COLUMNS, *LOGIT_COLUMNS, "map_x", "map_y")
        return {
            "id": np.arange(d_sae),
            "n_active": counts,
            "density": density,
            "max_act": np.zeros(d_sae),
            "n_sequences": np.zeros(d_sae, np.int64),
            "decoder_norm": _numbers(row_norms(dictionary.W_dec)),
            "encoder_norm": _numbers(row_norms(dictionary.W_enc.T)),
            "encoder_bias": undefined if bias is None else _numbers(bias),
            "threshold": undefined if threshold is None else _numbers(threshold),
            **{name: undefined.copy() for name in empty},
            "flags": flags,
            "top_tokens": [""] * d_sae,
            "promoted_tokens": [""] * d_sae,
        }

    def neighbours(
        self, writer: StoreWriter, advance: Callable[[int], Any]
    ) -> Integer[np.ndarray, "d_sae n"]:
        """Fill table `neighbours` and the map; returns the decoder neighbours."""
        dictionary, n = self._sources.dictionary, self._options.n_neighbours
        # One side after the other: the unit rows of a side are as large as its weights.
        wide = max(n, MAP_NEIGHBOURS)
        decoder_side = list(most_similar(unit_rows(dictionary.W_dec.float()), None, wide))
        encoder_side = most_similar(unit_rows(dictionary.W_enc.T.float()), None, n)
        for (part, *decoder), (_, *encoder) in zip(decoder_side, encoder_side, strict=True):
            names = ("decoder_cosine", "decoder_feature", "encoder_cosine", "encoder_feature")
            arrays = {
                name: tensor[:, :n].cpu().numpy()
                for name, tensor in zip(names, (*decoder, *encoder), strict=True)
            }
            for name in ("decoder_cosine", "encoder_cosine"):
                arrays[name] = arrays[name].clip(-1.0, 1.0)
            latents = range(part.start, part.stop)
            writer.packed(
                "neighbours",
                (
                    (latent, {name: array[row] for name, array in arrays.items()})
                    for row, latent in enumerate(latents)
                ),
            )
            advance(len(latents))
        cosine = torch.cat([cosines for _, cosines, _ in decoder_side]).cpu().numpy()
        nearest = torch.cat([index for _, _, index in decoder_side]).cpu().numpy()
        self._place(cosine[:, :MAP_NEIGHBOURS], nearest[:, :MAP_NEIGHBOURS])
        return nearest[:, :n]

    def _place(
        self, cosine: Float[np.ndarray, "d_sae k"], nearest: Integer[np.ndarray, "d_sae k"]
    ) -> None:
        """Fill the columns of the map."""
        coordinates, method, kept = neighbour_map(self._sources.dictionary.W_dec, cosine, nearest)
        self.columns["map_x"], self.columns["map_y"] = coordinates.T.astype(np.float64)
        near = min(MAP_KEEPS, cosine.shape[1])
        self._map = {"method": f"{method} unit decoder rows", "nearest": near}
        if near:
            self._map |= {"kept": kept, "chance": near / (self._d_sae - 1)}

    def logits(self, writer: StoreWriter, advance: Callable[[int], Any]) -> None:
        """Fill table `logits`, where there is a lens."""
        lens = self._sources.lens
        if lens is None:
            advance(self._d_sae)
            return
        text = self._sources.vocabulary.text
        feature = 0
        for chunk in logit_chunks(self._sources.dictionary.W_dec, lens, self._options.n_logits):
            writer.packed("logits", enumerate(chunk, start=feature))
            for arrays in chunk:
                numbers = (*arrays["ends"], *arrays["moments"][2:])
                for name, number in zip(LOGIT_COLUMNS, numbers, strict=True):
                    self.columns[name][feature] = number
                self.columns["promoted_tokens"][feature] = join_tokens(
                    text(token) for token in arrays["top_token"].tolist()
                )
                feature += 1
            advance(len(chunk))

    def examples(
        self, writer: StoreWriter, advance: Callable[[int], Any]
    ) -> tuple[LatentSums, TopRows]:
        """First pass over the codes: numbers and examples."""
        n_top = self._options.n_top
        total, squares = np.zeros(self._d_sae), np.zeros(self._d_sae)
        tops = TopRows(
            np.full((self._d_sae, n_top), -1), np.zeros((self._d_sae, n_top), np.float32)
        )
        for start, end in self._shards.ranges(RANGE_PAIRS, RANGE_LATENTS):
            pairs = self._shards.pairs(start, end)
            chosen = RangeExamples(pairs, self._keys, self._options)
            moments = range_moments(pairs)
            counts = np.diff(pairs.pointer)
            spread = np.nan_to_num(moments.std) ** 2 + np.nan_to_num(moments.mean) ** 2
            total[start:end] = counts * np.nan_to_num(moments.mean)
            squares[start:end] = counts * spread
            for name, values in zip(MOMENT_COLUMNS, moments, strict=True):
                self.columns[name][start:end] = values
            self.columns["n_sequences"][start:end] = chosen.n_sequences
            statistics, examples = [], []
            for latent in range(end - start):
                if not counts[latent]:
                    statistics.append(dict.fromkeys(("quantiles", "histogram"), np.zeros(0)))
                    examples.append(no_examples())
                    continue
                rising = chosen.rising(latent)
                statistics.append(
                    {"quantiles": quantiles_of(rising), "histogram": histogram_of(rising)}
                )
                examples.append(chosen.packed(latent))
                self._note_top(start + latent, pairs, chosen.top(latent), tops)
            writer.packed("statistics", enumerate(statistics, start=start))
            writer.packed("examples", enumerate(examples, start=start))
            advance(end - start)
        return LatentSums(self._shards.n_tokens, self._shards.n_active, total, squares), tops

    def _note_top(
        self, feature: int, pairs: Pairs, top: Integer[np.ndarray, " examples"], tops: TopRows
    ) -> None:
        rows = pairs.row[top].astype(np.int64)
        tops.row[feature, : len(top)] = rows
        tops.activation[feature, : len(top)] = pairs.activation[top]
        self.columns["max_act"][feature] = pairs.activation[top[0]]
        strongest: dict[int, int] = {}
        for token, row in zip(
            rearrange(self._shards.tokens, "context position -> (context position)")[rows].tolist(),
            rows,
            strict=True,
        ):
            strongest.setdefault(token, int(row))
        vocabulary = self._sources.vocabulary
        # What a fragment belongs to may differ from row to row.
        self.columns["top_tokens"][feature] = join_tokens(
            self._text_at(row) if vocabulary.is_fragment(token) else vocabulary.text(token)
            for token, row in strongest.items()
        )

    def _text_at(self, row: int) -> str:
        """The whole character at a position whose token is a fragment of one."""
        context, position = divmod(row, self._shards.context_length)
        pieces = self._sources.vocabulary.pieces(self._shards.tokens[context].tolist())
        return pieces.texts[int(np.searchsorted(pieces.starts, position, side="right")) - 1]

    def together(
        self,
        writer: StoreWriter,
        advance: Callable[[int], Any],
        neighbours: Integer[np.ndarray, "d_sae n"],
        sums: LatentSums,
        tops: TopRows,
    ) -> None:
        """Second pass over the codes: silent contexts and co-activation."""
        options = self._options
        silent = SilentContexts(tops, self._keys, options.n_near_misses, options.n_random_silent)
        parts = self._shards.parts(PART_PAIRS)
        only = row_codes(self._shards, *parts[0]) if len(parts) == 1 else None
        for start, end in self._shards.ranges(RANGE_PAIRS, RANGE_LATENTS):
            pairs = self._shards.pairs(start, end)
            rows = enumerate(np.split(pairs.row, pairs.pointer[1:-1]), start=start)
            writer.packed(
                "silent",
                ((latent, silent.arrays(row, neighbours[latent])) for latent, row in rows),
            )
            codes = iter([only]) if only else (row_codes(self._shards, *part) for part in parts)
            together = enumerate(_together(pairs, codes), start=start)
            writer.packed(
                "coactivation",
                (
                    (latent, coactivation_arrays(*with_each, latent, sums, options.n_neighbours))
                    for latent, with_each in together
                ),
            )
            advance(end - start)

    def manifest(self) -> dict[str, Any]:
        """What the store says of itself."""
        sources, shards = self._sources, self._shards
        tokens_sha256 = hashlib.sha256(shards.tokens.astype("<u4").tobytes()).hexdigest()
        decisive = ("model_hash", "model_dtype", "hook_point", "row_rule", "norm_ceiling")
        content = {
            "weights": sources.made_from["weights_sha256"],
            "tokens": tokens_sha256,
            "build": {name: sources.made_from.get(name) for name in decisive},
            "options": self._options.to_json(),
            "schema_version": SCHEMA_VERSION,
        }
        if labels := sources.made_from.get("labels"):
            content["labels"] = labels
        lens = sources.lens
        manifest = new_manifest(
            KIND,
            seed=self._options.seed,
            config=self._options.to_json(),
            made_from={**sources.made_from, "tokens_sha256": tokens_sha256},
        )
        return manifest | {
            "store_id": hash_of(content),
            "asked": dict(sources.asked),
            "dictionary": dict(sources.dictionary_facts),
            "n_features": self._d_sae,
            "n_tokens": shards.n_tokens,
            "n_positions": int(shards.lengths.sum()),
            "n_sequences": len(shards.tokens),
            "context_length": shards.context_length,
            "excluded": shards.excluded,
            "d_in": sources.dictionary.d_in,
            "token_dtype": self.token_dtype,
            "quantile_levels": list(QUANTILE_LEVELS),
            "has_logit_lens": lens is not None,
            "logit_lens": sources.no_lens_because if lens is None else lens.describe(),
            "map": self._map,
            "flag_bounds": {
                "rare_below": self._options.rare_below,
                "dense_above": self._options.dense_above,
            },
            "definitions": DEFINITIONS,
        }


def _together(
    pairs: Pairs, parts: Iterator[RowCodes]
) -> Iterable[tuple[Integer[np.ndarray, " d_sae"], Float[np.ndarray, " d_sae"]]]:
    """Counts and products of each latent of a range with all, summed over the parts of the text."""

    def sums_in(codes: RowCodes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (codes.together(*pairs.of(latent)) for latent in range(len(pairs.pointer) - 1))

    summed: Iterable[tuple[np.ndarray, np.ndarray]] = sums_in(next(parts))
    for codes in parts:
        together = zip(summed, sums_in(codes), strict=True)
        summed = [(both + more, products + m) for (both, products), (more, m) in together]
    return summed


def _numbers(tensor: torch.Tensor) -> Float[np.ndarray, " d_sae"]:
    return tensor.detach().cpu().double().numpy()
