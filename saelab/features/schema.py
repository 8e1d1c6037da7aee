"""The feature store's file: a SQLite database, its tables, how they are packed and written.

Scalars of a feature are columns of `feature`, so any SQLite client can query them. What a page
shows beside them is in one packed blob per feature and table: each a list of little-endian
arrays in a fixed order (`LAYOUTS`), their lengths in front. Examples are stored as sequence,
positions and activations, and the text itself as token ids, so the file is complete, small, and
can show any context in full.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer, Shaped

from saelab.errors import ArtifactError, ConfigError
from saelab.formats.files import atomic_path
from saelab.formats.kinds import KINDS
from saelab.formats.manifest import seal

from .token_text import Vocabulary

KIND = "feature_store"
SCHEMA_VERSION = KINDS[KIND].schema_version
"""Version 1 listed top tokens by their last example instead of their strongest."""
STORE_FILE = "features.sqlite"
"""Name of the store in a dictionary's folder."""
LABEL_FILE = "feature_labels.sqlite"
"""Name of the labels' database beside it."""

QUANTILE_LEVELS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
"""Levels of the stored quantiles of a feature's positive activations."""
LONGEST_CONTEXT = (1 << 16) - 1
"""Tokens of a context at most: positions and counts of them are stored in 16 bits."""
N_BINS = 50
"""Bins of both histograms, of equal width."""

FLAGS = {"dead": 1, "rare": 2, "dense": 4}
"""Bits of the column `flags`."""

TABLES = """
CREATE TABLE manifest (content TEXT NOT NULL);
CREATE TABLE feature (
    id INTEGER PRIMARY KEY,
    n_active INTEGER NOT NULL,
    density REAL,
    max_act REAL NOT NULL,
    mean_act REAL,
    std_act REAL,
    skewness REAL,
    kurtosis REAL,
    n_sequences INTEGER NOT NULL,
    decoder_norm REAL NOT NULL,
    encoder_norm REAL NOT NULL,
    encoder_bias REAL,
    threshold REAL,
    map_x REAL,
    map_y REAL,
    logit_max REAL,
    logit_min REAL,
    logit_skewness REAL,
    logit_kurtosis REAL,
    flags INTEGER NOT NULL,
    top_tokens TEXT NOT NULL,
    promoted_tokens TEXT NOT NULL
);
CREATE TABLE sequence (id INTEGER PRIMARY KEY, tokens BLOB NOT NULL, counted BLOB NOT NULL);
CREATE TABLE vocabulary (lengths BLOB NOT NULL, bytes BLOB NOT NULL);
"""

LAYOUTS: dict[str, dict[str, str]] = {
    "statistics": {
        # By `QUANTILE_LEVELS`; empty for a feature that was never active.
        "quantiles": "<f8",
        # `N_BINS` equal bins from 0 to the largest activation; an edge belongs to the bin above.
        "histogram": "<u4",
    },
    "examples": {
        # Strata, from the highest down: lower edge (in it), upper edge (not in it, but for the
        # first), and what is in it.
        "stratum_low": "<f8",
        "stratum_high": "<f8",
        "stratum_sequences": "<u4",
        "stratum_activations": "<u8",
        "stratum_mass": "<f8",
        # How many examples each list has: top, one per stratum, random positives.
        "list_sizes": "<u2",
        # One entry per example, list after list.
        "sequence": "<u4",
        "anchor": "<u2",
        "n_active": "<u2",
        # One entry per active token of each example, example after example.
        "position": "<u2",
        "activation": "<f4",
    },
    "silent": {
        # Contexts in which the feature is silent while a decoder neighbour is active.
        "near_sequence": "<u4",
        "near_anchor": "<u2",
        "near_feature": "<u4",
        "near_activation": "<f4",
        # Contexts drawn from all in which it is silent.
        "random_sequence": "<u4",
        "random_anchor": "<u2",
    },
    "logits": {
        "top_token": "<u4",
        "top_value": "<f4",
        "bottom_token": "<u4",
        "bottom_value": "<f4",
        # `N_BINS` equal bins between the two ends.
        "ends": "<f8",
        "histogram": "<u4",
        # Mean, standard deviation, skewness, kurtosis (3 for a normal distribution).
        "moments": "<f8",
    },
    "neighbours": {
        "decoder_feature": "<u4",
        "decoder_cosine": "<f4",
        "encoder_feature": "<u4",
        "encoder_cosine": "<f4",
    },
    "coactivation": {
        "jaccard_feature": "<u4",
        "jaccard": "<f8",
        "jaccard_both": "<u4",
        "pearson_feature": "<u4",
        "pearson": "<f8",
        "pearson_both": "<u4",
    },
}
"""Arrays of each packed table, in order, with their types."""

TABLES += "".join(
    f"CREATE TABLE {name} (feature INTEGER PRIMARY KEY, data BLOB NOT NULL);\n" for name in LAYOUTS
)
TABLES_HASH = "tables_sha256"
"""Key, in the store's manifest, of the hash of everything else in the file."""


def hash_of_tables(connection: sqlite3.Connection) -> str:
    """SHA-256 over the definition and all rows of every table but the manifest's."""
    digest = hashlib.sha256()
    tables = connection.execute(
        "SELECT name, type, sql FROM sqlite_master WHERE name != 'manifest' ORDER BY name"
    ).fetchall()
    for name, kind, sql in tables:
        digest.update(f"{name} {kind} {sql}".encode())
        if kind != "table" or str(sql).upper().startswith("CREATE VIRTUAL"):
            continue
        quoted = '"' + name.replace('"', '""') + '"'
        cursor = connection.execute(f"SELECT * FROM {quoted}")
        order = ", ".join(str(1 + index) for index in range(min(2, len(cursor.description))))
        for row in connection.execute(f"SELECT * FROM {quoted} ORDER BY {order}"):
            for value in row:
                data = value if isinstance(value, bytes) else repr(value).encode()
                digest.update(f"{type(value).__name__}{len(data)}:".encode())
                digest.update(data)
    return digest.hexdigest()


def check_context_length(length: int) -> None:
    """Refuse contexts whose positions do not fit the file.

    Raises:
        ConfigError: more than `LONGEST_CONTEXT` tokens.
    """
    if length > LONGEST_CONTEXT:
        raise ConfigError(
            f"contexts of {length} tokens do not fit a feature store, which numbers positions with "
            f"16 bits: read the text with --context-length {LONGEST_CONTEXT} or less"
        )


def pack(kind: str, arrays: Mapping[str, Shaped[np.ndarray, " entries"]]) -> bytes:
    """The blob of one feature in table `kind`.

    Not compressed: what is left beside the text is mostly mantissas, of which deflating saves a
    tenth and costs more time than everything else about a feature.
    """
    layout = LAYOUTS[kind]
    parts = [np.asarray(arrays[name]).astype(dtype, copy=False) for name, dtype in layout.items()]
    lengths = struct.pack(f"<{len(parts)}I", *(part.size for part in parts))
    return b"".join([lengths, *(part.tobytes() for part in parts)])


def unpack(kind: str, data: bytes, origin: str) -> dict[str, Shaped[np.ndarray, " entries"]]:
    """The arrays of a blob.

    Args:
        kind: the table it was read from.
        data: the blob.
        origin: file and feature, for the error.

    Raises:
        ArtifactError: the blob is not what `pack` writes.
    """
    layout = LAYOUTS[kind]
    try:
        lengths = struct.unpack_from(f"<{len(layout)}I", data)
        offset = 4 * len(layout)
        arrays = {}
        for (name, dtype), length in zip(layout.items(), lengths, strict=True):
            arrays[name] = np.frombuffer(data, dtype, length, offset)
            offset += arrays[name].nbytes
        if offset != len(data):
            raise ValueError(f"{len(data) - offset} bytes too many")
    except (struct.error, ValueError, TypeError) as error:
        raise ArtifactError(
            f"{origin}: its {kind} cannot be read ({error}): the file was damaged; build it again "
            "with `saelab features … --overwrite`"
        ) from None
    return arrays


@contextmanager
def store_writer(path: Path) -> Iterator[StoreWriter]:
    """A writer whose file becomes `path` when the block ends well, and vanishes when it does not.

    Raises:
        ResourceError: the disk is full.
    """
    with atomic_path(path) as temporary:
        temporary.unlink(missing_ok=True)
        with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            # Nobody reads the file before it is complete and flushed, so it needs no journal.
            connection.execute("PRAGMA page_size = 8192")
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            connection.executescript(TABLES)
            connection.execute("BEGIN")
            yield StoreWriter(connection)
            connection.execute("COMMIT")


class StoreWriter:
    """Fills the tables of a store."""

    def __init__(self, connection: sqlite3.Connection):
        self._connection = connection

    def packed(
        self, kind: str, entries: Iterable[tuple[int, Mapping[str, Shaped[np.ndarray, " _"]]]]
    ) -> None:
        """Add the blobs of some features to table `kind`."""
        self._connection.executemany(
            f"INSERT INTO {kind} VALUES (?, ?)",
            ((feature, pack(kind, arrays)) for feature, arrays in entries),
        )

    def features(self, columns: Mapping[str, Iterable[Any]]) -> None:
        """Fill table `feature`; a number that is NaN becomes NULL."""
        names = list(columns)
        marks = ", ".join("?" * len(names))
        rows = zip(*(_plain(values) for values in columns.values()), strict=True)
        self._connection.executemany(
            f"INSERT INTO feature ({', '.join(names)}) VALUES ({marks})", rows
        )

    def text(
        self,
        tokens: Integer[np.ndarray, "contexts context_length"],
        counted: Bool[np.ndarray, "contexts context_length"],
        lengths: Integer[np.ndarray, " contexts"],
        token_dtype: str,
    ) -> None:
        """Fill table `sequence`, each context without its padding."""
        bits = np.packbits(counted, axis=1)
        self._connection.executemany(
            "INSERT INTO sequence VALUES (?, ?, ?)",
            (
                (index, ids[:n].astype(token_dtype).tobytes(), bits[index, : -(-n // 8)].tobytes())
                for index, (ids, n) in enumerate(zip(tokens, lengths.tolist(), strict=True))
            ),
        )

    def vocabulary(self, vocabulary: Vocabulary) -> None:
        """Fill table `vocabulary`."""
        lengths, content = vocabulary.to_arrays()
        self._connection.execute(
            "INSERT INTO vocabulary VALUES (?, ?)", (lengths.astype("<u4").tobytes(), content)
        )

    def manifest(self, content: Mapping[str, Any]) -> None:
        """Fill table `manifest`, last: it holds the hash of everything else, and of itself."""
        # The search index writes its last pages when the transaction ends.
        self._connection.execute("COMMIT")
        self._connection.execute("BEGIN")
        sealed = seal({**content, TABLES_HASH: hash_of_tables(self._connection)})
        text = json.dumps(sealed, allow_nan=False)
        self._connection.execute("INSERT INTO manifest VALUES (?)", (text,))


def _plain(values: Iterable[Any]) -> list[Any]:
    """Python values that SQLite takes."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    return [None if value != value else value for value in values]


DEFINITIONS = {
    "density": "Tokens on which the feature's code is positive, over tokens counted. Tokens that "
    "the token filter leaves out (BOS, separators, rows of excessive norm) are in neither.",
    "moments": "Mean, standard deviation, skewness and kurtosis (3 for a normal distribution) of "
    "the positive activations, computed in float64.",
    "quantiles": "Quantiles of the positive activations, interpolated linearly between neighbours; "
    "exact, from all of them.",
    "histogram": "Counts of the positive activations in 50 bins of equal width from 0 to the "
    "largest. An edge belongs to the bin above it.",
    "top_examples": "Contexts with the highest maximum, one window each. Of windows whose tokens "
    "around the maximum are equal, only the highest is shown.",
    "quantile_groups": "Contexts in which the feature is active, divided by their maximum into "
    "strata of equal size. A stratum holds its lower edge and not its upper one, but the highest "
    "holds both. Its shares are of single tokens: those whose activation is in the stratum.",
    "random_positives": "Tokens drawn uniformly from all on which the feature is active: an "
    "unbiased picture, where the top examples show the tail.",
    "near_misses": "Contexts where the nearest decoder neighbours are strongest and this feature "
    "is silent throughout; the anchor is where the neighbour is active.",
    "random_silent": "Contexts drawn uniformly from all in which the feature is silent throughout.",
    "logit_lens": "What one unit of activation adds to each token's logit if nothing came between: "
    "the decoder row times the gain of the final norm, through the unembedding centred over the "
    "vocabulary.",
    "logit_kurtosis": "Fourth standardised moment of those logits; high where the feature speaks "
    "for a few tokens.",
    "decoder_neighbours": "Features with the highest cosine of decoder rows.",
    "encoder_neighbours": "Features with the highest cosine of encoder columns.",
    "coactive_jaccard": "Features with the highest tokens-with-both over tokens-with-either, of "
    "all features.",
    "coactive_pearson": "Features with the highest correlation of activations over all counted "
    "tokens, zeros included, of all features.",
    "map": "Two dimensions in which decoder rows of high cosine lie near each other; how: the "
    "manifest's map.",
    "flags": "dead: never active on this text; rare and dense: density below or above the bounds "
    "named.",
    "max_act": "Largest activation on this text.",
}
