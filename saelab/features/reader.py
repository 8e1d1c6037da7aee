"""`FeatureStore`: reading what `saelab features` built. Needs neither torch nor the model."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Integer, Shaped

from saelab.errors import ArtifactError, ConfigError
from saelab.formats.manifest import check_manifest, require_fields

from .records import Example, FeatureRecord
from .schema import FLAGS, KIND, STORE_FILE, TABLES_HASH, hash_of_tables, unpack
from .token_text import Vocabulary
from .unpacking import PackedFeature, record_of, split_tokens
from .windows import Context, Windows

DEFAULT_WINDOW = 24
"""Tokens shown on either side of an example's anchor."""
PACKED_TABLES = ("statistics", "examples", "silent", "logits", "neighbours", "coactivation")
COLUMN_DTYPES: dict[str, type] = {
    **dict.fromkeys(("id", "n_active", "n_sequences", "flags"), np.int64),
    **dict.fromkeys(("top_tokens", "promoted_tokens"), object),
}
"""Types of the columns of `feature` that are not float64."""
NEEDED = {
    "store_id": str,
    "n_features": int,
    "n_tokens": int,
    "n_sequences": int,
    "context_length": int,
    "token_dtype": str,
    "quantile_levels": list,
    "has_logit_lens": bool,
    "made_from": dict,
    "config": dict,
}


def open_features(path: Path) -> FeatureStore:
    """Open what `saelab features` built.

    Args:
        path: a dictionary's folder, or the file `features.sqlite` in it.

    Raises:
        ArtifactError: missing, damaged, of another kind, or from another version of saelab.

    Example:
        >>> with saelab.open_features(store_file) as store:
        ...     store.n_features, store.feature(2).id
        (24, 2)
    """
    return FeatureStore(Path(path))


class SearchHit(NamedTuple):
    """A feature that a search found."""

    feature: int
    """The feature."""
    field: str
    """Where: "top_tokens" or "promoted_tokens"."""
    tokens: tuple[str, ...]
    """The tokens of that field."""


class FeatureStore:
    """A feature store, open for reading; safe to share between threads.

    Args:
        path: the SQLite file, or the dictionary folder that holds it.

    Raises:
        ArtifactError: nothing there, not a feature store, damaged, or from a newer saelab.
    """

    def __init__(self, path: Path):
        path = Path(path)
        self.path: Path = path / STORE_FILE if path.is_dir() else path
        self._lock = threading.Lock()
        self._connection = _open(self.path)
        try:
            self.manifest: dict[str, Any] = self._read_manifest()
        except BaseException:
            self._connection.close()
            raise
        self.store_id: str = self.manifest["store_id"]
        """Names what the store was built from: weights, tokens and settings."""
        self.n_features: int = self.manifest["n_features"]
        """Latents of the dictionary; every one has a record."""
        self.n_tokens: int = self.manifest["n_tokens"]
        """Tokens counted: the denominator of every density."""
        self.n_sequences: int = self.manifest["n_sequences"]
        """Contexts of the text."""

    def verify(self) -> None:
        """Read the whole file and check it against the hash in its manifest, if it holds one.

        Raises:
            ArtifactError: something in it was changed since it was built.
        """
        expected = self.manifest.get(TABLES_HASH)
        if expected is None:
            return
        with self._guarded():
            found = hash_of_tables(self._connection)
        if found != expected:
            raise ArtifactError(
                f"{self.path} was changed since it was built (the SHA-256 of its tables differs): "
                "build it again with `saelab features … --overwrite`"
            )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def feature(self, feature: int, window: int | None = DEFAULT_WINDOW) -> FeatureRecord:
        """Everything about one feature.

        Args:
            feature: index of the latent.
            window: tokens shown on either side of an example's anchor; None: the whole context.

        Raises:
            ConfigError: there is no such feature, or a negative window.
            ArtifactError: the file is damaged.
        """
        if not 0 <= feature < self.n_features:
            raise ConfigError(
                f"feature {feature} does not exist: {self.path} has features 0 to "
                f"{self.n_features - 1}"
            )
        if window is not None and window < 0:
            raise ConfigError(f"window {window} is negative: give tokens on either side, or None")
        packed = self._packed(feature)
        needed = np.unique(
            np.concatenate(
                [
                    packed.arrays["examples"]["sequence"],
                    packed.arrays["silent"]["near_sequence"],
                    packed.arrays["silent"]["random_sequence"],
                ]
            )
        )
        windows = Windows(self._contexts(needed.tolist()), self.vocabulary, window)
        return record_of(packed, windows, self.manifest)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The text of every token."""
        lengths, content = self._one("SELECT lengths, bytes FROM vocabulary", "vocabulary")
        return Vocabulary.from_arrays(np.frombuffer(lengths, "<u4"), content)

    @cached_property
    def _table(self) -> dict[str, Shaped[np.ndarray, " features"]]:
        with self._guarded():
            cursor = self._connection.execute("SELECT * FROM feature ORDER BY id")
            names = [column[0] for column in cursor.description]
            rows = cursor.fetchall()
        by_column = zip(*rows, strict=True) if rows else [()] * len(names)
        columns = {
            name: np.array(values, dtype=COLUMN_DTYPES.get(name, np.float64))
            for name, values in zip(names, by_column, strict=True)
        }
        for column in columns.values():
            column.setflags(write=False)
        return columns

    def table(self) -> dict[str, Shaped[np.ndarray, " features"]]:
        """One array per column of `feature`, by feature; NaN where a number is undefined.

        Integers: id, n_active, n_sequences, flags (bits as in `schema.FLAGS`). Text: top_tokens,
        promoted_tokens. The rest is float64. Read once and kept; the arrays are read-only.
        """
        return dict(self._table)

    def flag(self, name: str) -> Bool[np.ndarray, " features"]:
        """Which features carry the flag "dead", "rare" or "dense".

        Raises:
            ConfigError: no flag of that name.
        """
        if name not in FLAGS:
            raise ConfigError(f"unknown flag {name!r}: expected one of {', '.join(FLAGS)}")
        return (self._table["flags"] & FLAGS[name]) != 0

    def search(self, query: str, limit: int = 50) -> list[SearchHit]:
        """Features whose top or promoted tokens hold every word of the query.

        Words match from their start; a query without letters or digits, such as a bracket or an
        emoji, is looked for as it stands. Labels are searched by `labels.LabelBook.search`.
        """
        words = "".join(char if char.isalnum() else " " for char in query).split()
        hits: dict[tuple[int, str], SearchHit] = {}
        for field in ("top_tokens", "promoted_tokens"):
            if words:
                match = " AND ".join(f'{field} : "{word}"*' for word in words)
                sql = (
                    f"SELECT rowid, {field} FROM search WHERE search MATCH ? "
                    "ORDER BY rank, rowid LIMIT ?"
                )
                found = self._all(sql, (match, limit))
            elif query.strip():
                sql = f"SELECT id, {field} FROM feature WHERE instr({field}, ?) LIMIT ?"
                found = self._all(sql, (query.strip(), limit))
            else:
                found = []
            for feature, text in found:
                hits[feature, field] = SearchHit(feature, field, split_tokens(text))
        return list(hits.values())

    def tokens(self, sequence: int) -> Integer[np.ndarray, " context"]:
        """Token ids of one context.

        Raises:
            ConfigError: there is no such context.
        """
        return self._context(sequence).tokens

    def context_pieces(self, sequence: int) -> Example:
        """One context as text with no feature's activations: every activation is 0."""
        windows = Windows({sequence: self._context(sequence)}, self.vocabulary, None)
        return windows.example(sequence, 0, np.zeros(0, np.int64), np.zeros(0, np.float32), 0.0)

    def token_texts(self, token_ids: Iterable[int]) -> list[str]:
        """Text of single tokens."""
        return [self.vocabulary.text(int(token_id)) for token_id in token_ids]

    def _context(self, sequence: int) -> Context:
        if not 0 <= sequence < self.n_sequences:
            raise ConfigError(
                f"context {sequence} does not exist: {self.path} has 0 to {self.n_sequences - 1}"
            )
        return self._contexts([sequence])[sequence]

    def _contexts(self, sequences: Sequence[int]) -> dict[int, Context]:
        if not sequences:
            return {}
        marks = ",".join("?" * len(sequences))
        found = self._all(
            f"SELECT id, tokens, counted FROM sequence WHERE id IN ({marks})", tuple(sequences)
        )
        dtype = self.manifest["token_dtype"]
        contexts = {}
        for sequence, tokens, counted in found:
            ids = np.frombuffer(tokens, dtype).astype(np.int64)
            bits = np.unpackbits(np.frombuffer(counted, np.uint8), count=len(ids)).astype(bool)
            contexts[sequence] = Context(ids, bits)
        missing = [sequence for sequence in sequences if sequence not in contexts]
        if missing:
            raise ArtifactError(
                f"{self.path} lacks contexts {missing[:5]} that its examples point to: it was "
                "damaged; build it again"
            )
        return contexts

    def _packed(self, feature: int) -> PackedFeature:
        columns = ", ".join(f"{table}.data" for table in PACKED_TABLES)
        joins = " ".join(
            f"LEFT JOIN {table} ON {table}.feature = feature.id" for table in PACKED_TABLES
        )
        row = self._one(
            f"SELECT {columns}, feature.* FROM feature {joins} WHERE feature.id = ?",
            f"feature {feature}",
            (feature,),
        )
        blobs, scalars = row[: len(PACKED_TABLES)], row[len(PACKED_TABLES) :]
        origin = f"{self.path}, feature {feature}"
        arrays = {}
        for table, blob in zip(PACKED_TABLES, blobs, strict=True):
            if blob is not None:
                arrays[table] = unpack(table, blob, origin)
            elif table != "logits":
                raise ArtifactError(f"{origin}: its {table} are missing: build the store again")
        return PackedFeature(dict(zip(self._columns, scalars, strict=True)), arrays, origin)

    @cached_property
    def _columns(self) -> list[str]:
        return [row[1] for row in self._all("PRAGMA table_info(feature)")]

    def _read_manifest(self) -> dict[str, Any]:
        (content,) = self._one("SELECT content FROM manifest", "manifest")
        try:
            manifest = json.loads(content)
        except (TypeError, ValueError):
            raise ArtifactError(f"{self.path}: its manifest is no JSON: build it again") from None
        check_manifest(manifest, self.path, KIND)
        return require_fields(manifest, NEEDED, self.path)

    def _one(self, sql: str, what: str, values: tuple[Any, ...] = ()) -> tuple[Any, ...]:
        rows = self._all(sql, values)
        if len(rows) != 1:
            raise ArtifactError(
                f"{self.path} has {len(rows)} entries for its {what} where one was expected: it "
                "is unfinished or damaged; build it again with `saelab features … --overwrite`"
            )
        return rows[0]

    def _all(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._guarded():
            return self._connection.execute(sql, values).fetchall()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """One thread at a time, and SQLite's errors in words."""
        try:
            with self._lock:
                yield
        except sqlite3.Error as error:
            raise ArtifactError(
                f"{self.path} is not a readable feature store ({error}): build it again with "
                "`saelab features … --overwrite`"
            ) from None


def _open(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise ArtifactError(
            f"{path} does not exist: build it with `saelab features` on the dictionary's folder"
        )
    try:
        return sqlite3.connect(
            f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False
        )
    except sqlite3.Error as error:
        raise ArtifactError(f"{path} cannot be opened ({error}): check its permissions") from None
