"""`FeatureStore`: reading what `saelab features` built. Needs neither torch nor the model."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer, Shaped

from saelab.errors import ArtifactError, ConfigError
from saelab.formats.database import open_to_read
from saelab.formats.files import odd_content_is_damage, parse_json, read_json
from saelab.formats.manifest import check_manifest, require_fields
from saelab.formats.run import DICTIONARY_FILE

from .records import Example, FeatureRecord
from .schema import FLAGS, KIND, LAYOUTS, STORE_FILE, TABLES_HASH, hash_of_tables, unpack
from .search import Hits, TokenIndex, search
from .token_text import Vocabulary
from .unpacking import Context, PackedFeature, Windows, context_of, record_of, strongest_example

DEFAULT_WINDOW = 24
"""Tokens shown on either side of an example's anchor."""
KEPT_CONTEXTS = 1024
"""Contexts kept in memory as text once they were read: many features show the same ones."""
PACKED_TABLES = tuple(LAYOUTS)
COLUMN_DTYPES: dict[str, type] = {
    **dict.fromkeys(("id", "n_active", "n_sequences", "flags"), np.int64),
    **dict.fromkeys(("top_tokens", "promoted_tokens"), object),
}
"""Types of the columns of `feature` that are not float64."""
NEEDED: dict[str, type] = {
    **dict.fromkeys(("store_id", "token_dtype"), str),
    **dict.fromkeys(("n_features", "n_tokens", "n_sequences", "context_length"), int),
    **dict.fromkeys(("made_from", "config"), dict),
    "quantile_levels": list,
    "has_logit_lens": bool,
}
WEIGHTS_FILE = "sae_weights.safetensors"


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


class FeatureStore:
    """A feature store, open for reading; safe to share between threads. See `open_features`."""

    def __init__(self, path: Path):
        path = Path(path)
        self.path: Path = path / STORE_FILE if path.is_dir() else path
        self._lock = threading.Lock()
        self._kept_context = lru_cache(KEPT_CONTEXTS)(self._read_context)
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
            changed = hash_of_tables(self._connection) != expected
        if changed:
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
        examples, silent = packed.arrays["examples"], packed.arrays["silent"]
        needed = np.unique(
            np.concatenate(
                [examples["sequence"], silent["near_sequence"], silent["random_sequence"]]
            )
        )
        contexts = {sequence: self._kept_context(sequence) for sequence in needed.tolist()}
        windows = Windows(contexts, self.vocabulary, window)
        with odd_content_is_damage(self.path):
            return record_of(packed, windows, self.manifest)

    def strongest_examples(
        self, features: Sequence[int], window: int | None = DEFAULT_WINDOW
    ) -> dict[int, Example]:
        """The example with the highest maximum, of those of the features that have one.

        Args:
            features: indices of latents, at most some hundred.
            window: as in `feature`.
        """
        marks = ",".join("?" * len(features))
        sql = f"SELECT feature, data FROM examples WHERE feature IN ({marks})"
        examples = {}
        for feature, blob in self._all(sql, tuple(features)):
            arrays = unpack("examples", blob, f"{self.path}, feature {feature}")
            with odd_content_is_damage(self.path):
                contexts = {int(s): self._kept_context(int(s)) for s in arrays["sequence"][:1]}
                windows = Windows(contexts, self.vocabulary, window)
                if example := strongest_example(arrays, windows):
                    examples[feature] = example
        return examples

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The text of every token."""
        lengths, content = self._single_row("SELECT lengths, bytes FROM vocabulary", "vocabulary")
        with odd_content_is_damage(self.path):
            plain = np.frombuffer(content, np.uint8).tobytes()
            return Vocabulary.from_arrays(np.frombuffer(lengths, "<u4"), plain)

    def table(self) -> Mapping[str, Shaped[np.ndarray, " features"]]:
        """One array per column of `feature`, by feature; NaN where a number is undefined.

        Integers: id, n_active, n_sequences, flags (bits as in `schema.FLAGS`). Text: top_tokens,
        promoted_tokens. The rest is float64. A column is read when it is first asked for, while
        the store is open, and kept; the arrays are read-only.
        """
        return self._columns

    @cached_property
    def _columns(self) -> _Columns:
        names = [row["name"] for row in self._all("PRAGMA table_info(feature)", ())]
        return _Columns(names, self._column)

    def _column(self, name: str) -> Shaped[np.ndarray, " features"]:
        dtype = COLUMN_DTYPES.get(name, np.float64)
        with self._guarded(), odd_content_is_damage(self.path):
            rows = self._connection.execute(f'SELECT "{name}" FROM feature ORDER BY id')
            column = np.array([value for (value,) in rows], dtype=dtype)
        column.setflags(write=False)
        return column

    def flag(self, name: str) -> Bool[np.ndarray, " features"]:
        """Which features carry the flag "dead", "rare" or "dense".

        Raises:
            ConfigError: no flag of that name.
        """
        if name not in FLAGS:
            raise ConfigError(f"unknown flag {name!r}: expected one of {', '.join(FLAGS)}")
        return (self.table()["flags"] & FLAGS[name]) != 0

    def search(self, query: str, labels: Mapping[int, str] | None = None) -> Hits:
        """Features whose top tokens, promoted tokens or label are as the query says.

        Args:
            query: as `query.HELP` says.
            labels: text by feature; None: labels are not searched.

        Raises:
            ConfigError: the query cannot be read, or an expression takes too long.
        """
        return search(self._token_indices, labels or {}, self.n_features, query)

    @cached_property
    def _token_indices(self) -> dict[str, TokenIndex]:
        names = ("top_tokens", "promoted_tokens")
        return {name: TokenIndex(self.table()[name].tolist()) for name in names}

    def tokens(self, sequence: int) -> Integer[np.ndarray, " context"]:
        """Token ids of one context.

        Raises:
            ConfigError: there is no such context.
        """
        return self._context(sequence).tokens

    def context_pieces(self, sequence: int) -> Example:
        """One context as text with no feature's activations: every activation is 0."""
        windows = Windows({sequence: self._context(sequence)}, self.vocabulary, None)
        return windows.example(sequence, 0)

    def _context(self, sequence: int) -> Context:
        if not 0 <= sequence < self.n_sequences:
            raise ConfigError(
                f"context {sequence} does not exist: {self.path} has 0 to {self.n_sequences - 1}"
            )
        return self._kept_context(sequence)

    def _read_context(self, sequence: int) -> Context:
        sql = "SELECT tokens, counted FROM sequence WHERE id = ?"
        tokens, counted = self._single_row(sql, f"context {sequence}", (sequence,))
        with odd_content_is_damage(self.path):
            ids = np.frombuffer(tokens, self.manifest["token_dtype"]).astype(np.int64)
            bits = np.unpackbits(np.frombuffer(counted, np.uint8), count=len(ids)).astype(bool)
            return context_of(ids, bits, self.vocabulary)

    def _packed(self, feature: int) -> PackedFeature:
        blobs = ", ".join(f"{table}.data AS {table}" for table in PACKED_TABLES)
        joins = " ".join(
            f"LEFT JOIN {table} ON {table}.feature = feature.id" for table in PACKED_TABLES
        )
        sql = f"SELECT feature.*, {blobs} FROM feature {joins} WHERE feature.id = ?"
        columns = dict(self._single_row(sql, f"feature {feature}", (feature,)))
        origin = f"{self.path}, feature {feature}"
        arrays = {}
        for table in PACKED_TABLES:
            blob = columns.pop(table)
            if blob is not None:
                arrays[table] = unpack(table, blob, origin)
            elif table != "logits":
                raise ArtifactError(f"{origin}: its {table} are missing: build the store again")
        return PackedFeature(columns, arrays, origin)

    def _read_manifest(self) -> dict[str, Any]:
        (content,) = self._single_row("SELECT content FROM manifest", "manifest")
        try:
            manifest = parse_json(str(content))
        except ValueError:
            raise ArtifactError(f"{self.path}: its manifest is no JSON: build it again") from None
        check_manifest(manifest, self.path, KIND)
        return require_fields(manifest, NEEDED, self.path)

    def _single_row(self, sql: str, what: str, values: tuple[Any, ...] = ()) -> sqlite3.Row:
        rows = self._all(sql, values)
        if len(rows) != 1:
            raise ArtifactError(
                f"{self.path} has {len(rows)} entries for its {what} where one was expected: it "
                "is unfinished or damaged; build it again with `saelab features … --overwrite`"
            )
        return rows[0]

    def _all(self, sql: str, values: tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        with self._guarded():
            return self._connection.execute(sql, values).fetchall()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """One thread at a time, and SQLite's errors in words."""
        try:
            with self._lock:
                yield
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise ArtifactError(
                f"{self.path} is not a readable feature store ({error}): build it again with "
                "`saelab features … --overwrite`"
            ) from None


def _open(path: Path) -> sqlite3.Connection:
    if not path.exists():
        raise ArtifactError(
            f"{path} does not exist: build it with `saelab features` on the dictionary's folder"
        )
    try:
        connection = open_to_read(path, finished=True)
    except sqlite3.Error as error:
        raise ArtifactError(
            f"{path} is not a readable feature store ({error}): build it again with "
            "`saelab features … --overwrite`"
        ) from None
    connection.row_factory = sqlite3.Row
    return connection


class _Columns(Mapping[str, Shaped[np.ndarray, " features"]]):
    """Columns that are read when they are first asked for: of 262,144 features, all take long."""

    def __init__(self, names: Sequence[str], read: Callable[[str], np.ndarray]):
        self._names, self._read = tuple(names), lru_cache(read)

    def __getitem__(self, name: str) -> Shaped[np.ndarray, " features"]:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def is_stale(store: FeatureStore, dictionary: Path) -> str | None:
    """Compare a store with the dictionary it is beside.

    Args:
        store: the store.
        dictionary: the dictionary's folder.

    Returns:
        None where they belong together; else a sentence that says what differs and what to do.
    """
    made_from = store.manifest["made_from"]
    remedy = f"build it again with `saelab features {dictionary} --overwrite`"
    try:
        manifest = read_json(dictionary / DICTIONARY_FILE)
        content_hash, weights = manifest["content_hash"], manifest["files"][WEIGHTS_FILE]
    except ArtifactError as error:
        return f"The dictionary of these features cannot be read: {error}."
    except (KeyError, TypeError):
        return (
            "The dictionary of these features cannot be read: its "
            f"{DICTIONARY_FILE} names no hashes."
        )
    if weights != made_from.get("weights_sha256"):
        return (
            f"These features were built from a different checkpoint: the weights in {dictionary} "
            f"have SHA-256 {_short(weights)}, those the features were read with had "
            f"{_short(made_from.get('weights_sha256'))}; {remedy}."
        )
    if content_hash != made_from.get("dictionary_hash"):
        return (
            f"The dictionary in {dictionary} was saved again with other settings since these "
            f"features were built, though with the same weights; {remedy}."
        )
    if store.manifest["schema_version"] < 2:
        return (
            "These features were built by an earlier saelab, which listed a feature's top tokens "
            f"in a wrong order; {remedy}."
        )
    return None


def _short(content_hash: Any) -> str:
    return f"{str(content_hash)[:12]}…"
