"""The files of a comparison: compare.json, and compare.parquet with a row per dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saelab.config import to_plain
from saelab.errors import ConfigError
from saelab.formats.files import atomic_path, sha256_of
from saelab.formats.manifest import new_manifest, read_manifest, write_manifest

from .candidates import Candidate
from .common_l0 import AtCommonL0
from .config import CompareConfig
from .definitions import SPREAD, Column
from .figure_data import Figures
from .reuse import RESULTS_FOLDER
from .rows import ModeRow, Row
from .values import Measured

KIND = "comparison"
JSON_FILE = "compare.json"
PARQUET_FILE = "compare.parquet"
PAGE_FILE = "compare.html"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything that was found out, ready to be shown and written."""

    config: CompareConfig
    found: list[Measured]
    """Every dictionary with its numbers, in the order given."""
    columns: dict[str, Column]
    """The numbers that some dictionary has."""
    rows: list[Row]
    """Means over seeds."""
    reference: str
    """Label that differences are taken to."""
    compared: list[AtCommonL0]
    """Methods at common L0."""
    modes: list[ModeRow]
    """Inference modes beside the plain one, where some dictionary has them."""
    figures: Figures
    """Data of the figures."""
    notes: list[str]
    """What a reader should know, in sentences."""

    @property
    def origin(self) -> dict[str, Any]:
        """What all dictionaries have in common."""
        first = self.found[0].candidate
        wanted = ("model", "model_hash", "hook_point", "text", "text_hash", "context_length")
        return {name: first.origin.get(name) for name in wanted} | {
            "row_rule": to_plain(first.spec.token_filter)
        }


def check_out(candidates: Sequence[Candidate], config: CompareConfig) -> None:
    """Refuse to replace a comparison that could not be made again from what is given.

    Raises:
        ConfigError: `out` holds a comparison of other dictionaries, or is a file.
        ArtifactError: what lies there as compare.json is none of ours.
    """
    if config.out.exists() and not config.out.is_dir():
        raise ConfigError(f"{config.out} is a file, not a folder: give another --out")
    path = config.out / JSON_FILE
    if not path.exists() or config.overwrite:
        return
    content = read_manifest(path, KIND)
    listed = content.get("dictionaries")
    old = {one.get("hash") for one in listed or () if isinstance(one, dict)}
    lost = old - {one.content_hash for one in candidates}
    if lost:
        raise ConfigError(
            f"{path} compares {len(lost)} dictionaries that are not given now: give another --out, "
            "name them too, or replace it with --overwrite"
        )


def write_json_file(comparison: Comparison) -> Path:
    """Write compare.json: settings, dictionaries with hashes, numbers, definitions, figure data."""
    made_from = comparison.origin | {
        "dictionaries": [one.candidate.content_hash for one in comparison.found]
    }
    content = new_manifest(
        KIND, seed=None, config=to_plain(comparison.config), made_from=made_from
    ) | {
        "notes": comparison.notes,
        "spread": SPREAD,
        "definitions": {name: column._asdict() for name, column in comparison.columns.items()},
        "dictionaries": [_dictionary(one, comparison.columns) for one in comparison.found],
        "rows": [_row(row, comparison.columns) for row in comparison.rows],
        "reference": comparison.reference,
        "common_l0": [asdict(one) for one in comparison.compared],
        "inference_modes": [_mode(one) for one in comparison.modes],
        "figure_data": comparison.figures,
        "item_files": {"dictionaries": PARQUET_FILE},
    }
    path = comparison.config.out / JSON_FILE
    write_manifest(path, content)
    return path


def _about(candidate: Candidate) -> dict[str, Any]:
    return {
        "name": candidate.name,
        "folder": str(candidate.folder),
        "hash": candidate.content_hash,
        "method": candidate.method,
        "label": candidate.label,
        "d_sae": candidate.d_sae,
        "k": candidate.k,
        "seed": candidate.seed,
        "n_tokens": candidate.n_tokens,
    }


def _dictionary(one: Measured, columns: Mapping[str, Column]) -> dict[str, Any]:
    evals = one.candidate.folder / RESULTS_FOLDER
    return _about(one.candidate) | {
        "results": {suite: sha256_of(evals / f"{suite}.json") for suite in one.results},
        "values": {name: one.values[name] for name in columns},
    }


def _row(row: Row, columns: Mapping[str, Column]) -> dict[str, Any]:
    return {
        "label": row.label,
        "d_sae": row.d_sae,
        "k": row.k,
        "seeds": row.seeds,
        "values": {name: asdict(row.values[name]) for name in columns},
    }


def _mode(one: ModeRow) -> dict[str, Any]:
    return {
        "label": one.row.label,
        "d_sae": one.row.d_sae,
        "k": one.row.k,
        "mode": one.mode,
        "values": {name: asdict(spread) for name, spread in one.values.items()},
    }


def write_parquet_file(comparison: Comparison) -> Path:
    """Write compare.parquet: a row per dictionary, null where a number is undefined."""
    import pyarrow
    from pyarrow import parquet

    rows = [
        _about(one.candidate) | {name: one.values[name] for name in comparison.columns}
        for one in comparison.found
    ]
    numbers = {name: pyarrow.float64() for name in ("k", *comparison.columns)}
    columns = {
        name: pyarrow.array([row[name] for row in rows], numbers.get(name)) for name in rows[0]
    }
    path = comparison.config.out / PARQUET_FILE
    with atomic_path(path) as temporary:
        parquet.write_table(pyarrow.table(columns), temporary)
    return path
