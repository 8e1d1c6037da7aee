"""One row per token in a parquet file: where it stands, and the norms of the parts of its error.

The file is written while the rows stream past, in reading order; files of dictionaries that were
judged on the same rows can be read side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from jaxtyping import Float, Int
from pyarrow import parquet
from torch import Tensor

from saelab.formats.files import atomic_path

from .row_source import RowBatch
from .split import CONTEXT_TEST

NORMS = ("activation", "reconstruction", "error", "linear_error", "nonlinear_error")
SCHEMA = pyarrow.schema(
    [
        ("sequence", pyarrow.int64()),
        ("position", pyarrow.int32()),
        ("token", pyarrow.int32()),
        ("held_out", pyarrow.bool_()),
        ("loss", pyarrow.float64()),
        ("l0", pyarrow.int32()),
        *((f"{name}_norm", pyarrow.float32()) for name in NORMS),
    ]
)
READ_ROWS = 65_536
TRACE_ROWS = 100


class TokenWriter:
    """Appends rows to an open token file."""

    def __init__(self, writer: parquet.ParquetWriter):
        self._writer = writer

    def write(
        self,
        batch: RowBatch,
        cell: Int[Tensor, " rows"],
        l0: Int[Tensor, " rows"],
        norms: dict[str, Tensor],
    ) -> None:
        """Add rows; a loss that was not measured is null."""
        loss = batch.loss.numpy()
        columns: dict[str, Any] = {
            "sequence": batch.sequence.numpy(),
            "position": batch.position.int().numpy(),
            "token": batch.tokens.int().numpy(),
            "held_out": torch.isin(cell, torch.tensor(CONTEXT_TEST)).numpy(),
            "loss": pyarrow.array(loss, mask=np.isnan(loss)),
            "l0": l0.cpu().int().numpy(),
            **{f"{name}_norm": norms[name].float().numpy() for name in NORMS},
        }
        self._writer.write_table(pyarrow.table(columns, schema=SCHEMA))


@contextmanager
def token_writer(path: Path) -> Iterator[TokenWriter]:
    """A writer of a token file that is there, whole, when the context ends."""
    with atomic_path(path) as temporary, parquet.ParquetWriter(temporary, SCHEMA) as writer:
        yield TokenWriter(writer)


def read_columns(path: Path, columns: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """Some columns of a token file, `READ_ROWS` rows at a time."""
    with parquet.ParquetFile(path) as opened:
        for batch in opened.iter_batches(batch_size=READ_ROWS, columns=list(columns)):
            yield {name: batch.column(name).to_numpy(zero_copy_only=False) for name in columns}


def trace_of(path: Path) -> dict[str, list[Any]]:
    """Up to `TRACE_ROWS` neighbouring tokens of one held-out context: the first with so many.

    Where no context has so many, those of the longest run.
    """
    wanted = ("sequence", "position", "token", *(f"{name}_norm" for name in NORMS[2:]))
    best: dict[str, list[Any]] = {name: [] for name in wanted}
    run: dict[str, list[Any]] = {name: [] for name in wanted}
    for block in read_columns(path, (*wanted, "held_out")):
        for place in np.flatnonzero(block["held_out"]):
            row = {name: block[name][place].item() for name in wanted}
            broken = run["sequence"] and (
                run["sequence"][-1] != row["sequence"] or run["position"][-1] + 1 != row["position"]
            )
            if broken:
                run = {name: [] for name in wanted}
            for name, value in row.items():
                run[name].append(value)
            if len(run["position"]) > len(best["position"]):
                best = run
            if len(best["position"]) >= TRACE_ROWS:
                return best
    return best


def norms_matrix(
    paths: Sequence[Path], names: Sequence[str]
) -> Iterator[tuple[Float[Tensor, "rows columns"], Int[Tensor, " rows"]]]:
    """Norms of several files of the same rows side by side, and whether each row is held out.

    Yields:
        Columns by file and then by name, float64; 1 where the row's context is held out.

    Raises:
        ValueError: the files hold different rows.
    """
    places = ("sequence", "position", "held_out")
    readers = [read_columns(path, (*places, *(f"{name}_norm" for name in names))) for path in paths]
    for blocks in zip(*readers, strict=True):
        first = blocks[0]
        for block in blocks[1:]:
            if any(not np.array_equal(block[name], first[name]) for name in places):
                raise ValueError("token files of different rows cannot be read side by side")
        columns = [block[f"{name}_norm"].astype(np.float64) for block in blocks for name in names]
        yield (
            torch.from_numpy(np.stack(columns, axis=1)),
            torch.from_numpy(first["held_out"].astype(np.int64)),
        )
