"""One row per token in a parquet file: where it is, and the norms of the parts of its error.

The file is written while the rows stream past, in reading order; files of dictionaries that were
judged on the same rows can be read side by side.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from jaxtyping import Float, Int
from pyarrow import parquet
from torch import Tensor

from saelab.formats.chart import Axis, Chart, Series
from saelab.formats.files import atomic_path

from ..display import rounded
from .analysis import ERROR, VECTOR_LABELS
from .regression import RegressionStatistics
from .rows import CONTEXT_TEST, RowBatch

ERROR_NORMS = ("error", "linear_error", "nonlinear_error")
NORMS = ("activation", "reconstruction", *ERROR_NORMS)
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
REGRESSED = ("error", "nonlinear_error")

Matrix = list[list[float | None]]


@contextmanager
def token_writer(path: Path) -> Iterator[Callable[..., None]]:
    """`write_tokens` to a token file, which is complete when the context ends."""
    with atomic_path(path) as temporary, parquet.ParquetWriter(temporary, SCHEMA) as writer:
        yield partial(write_tokens, writer)


def write_tokens(
    writer: parquet.ParquetWriter,
    batch: RowBatch,
    l0: Int[Tensor, " rows"],
    norms: Mapping[str, Float[Tensor, " rows"]],
) -> None:
    """Add rows with the norms of `NORMS` in each; a loss that was not measured is null."""
    columns = {
        "sequence": batch.sequence,
        "position": batch.position.int(),
        "token": batch.tokens.int(),
        "held_out": torch.isin(batch.cell, batch.cell.new_tensor(CONTEXT_TEST)),
        "loss": batch.loss,
        "l0": l0.int(),
        **{f"{name}_norm": norms[name].float() for name in NORMS},
    }
    plain: dict[str, Any] = {name: column.cpu().numpy() for name, column in columns.items()}
    plain["loss"] = pyarrow.array(plain["loss"], mask=np.isnan(plain["loss"]))
    writer.write_table(pyarrow.table(plain, schema=SCHEMA))


def trace_of(path: Path) -> dict[str, list[Any]]:
    """Up to `TRACE_ROWS` neighbouring tokens of one held-out context: the first with so many.

    Where no context has so many, those of the longest run.
    """
    names = ["sequence", "position", "token", *(f"{name}_norm" for name in ERROR_NORMS)]
    table = parquet.read_table(path, columns=names, filters=[("held_out", "==", True)])
    sequence, position = table["sequence"].to_numpy(), table["position"].to_numpy()
    breaks = np.flatnonzero((np.diff(sequence) != 0) | (np.diff(position) != 1)) + 1
    starts = np.array([0, *breaks])
    lengths = np.minimum(np.diff([*starts, len(sequence)]), TRACE_ROWS)
    longest = int(lengths.argmax())
    return table.slice(int(starts[longest]), int(lengths[longest])).to_pydict()


def norms_matrix(
    paths: Sequence[Path], names: Sequence[str]
) -> Iterator[tuple[Float[Tensor, "rows columns"], Int[Tensor, " rows"]]]:
    """Norms of several files of the same rows side by side, and whether each row is held out.

    Yields:
        Columns by file and then by name, float64; 1 where the row's context is held out.

    Raises:
        ValueError: the files hold different rows.
    """
    where = ["sequence", "position", "held_out"]
    norms = [f"{name}_norm" for name in names]
    files = [parquet.ParquetFile(path) for path in paths]
    readers = [file.iter_batches(batch_size=READ_ROWS, columns=[*where, *norms]) for file in files]
    for batches in zip(*readers, strict=True):
        if any(not batch.select(where).equals(batches[0].select(where)) for batch in batches[1:]):
            raise ValueError("token files of different rows cannot be read side by side")
        columns = [batch[name].to_numpy().astype(np.float64) for batch in batches for name in norms]
        held_out = batches[0]["held_out"].to_numpy(zero_copy_only=False)
        yield (
            torch.from_numpy(np.stack(columns, axis=1)),
            torch.from_numpy(held_out.astype(np.int64)),
        )


def measure_scaling(token_files: Sequence[Path], ridge: float) -> tuple[Matrix, Matrix]:
    """Regress every dictionary's error norm on that of every dictionary.

    Args:
        token_files: of the dictionaries, of the same rows, from narrow to wide.
        ridge: regularisation, as in `RegressionMoments.fit`.

    Returns:
        Held-out R² of the column's |error| regressed on the row's |error| and a constant, and the
        share of the residual variance (0 where none is left) that the row's |nonlinear error|
        removes.

    Raises:
        ActivationError: fewer rows than coefficients.
    """
    width = len(token_files) * len(REGRESSED)
    statistics = RegressionStatistics(width, width, 2)
    for norms, held_out in norms_matrix(token_files, REGRESSED):
        statistics.update(norms, norms, held_out)
    train, test = statistics.moments([0]), statistics.moments([1])

    def r_squared(regressors: list[int], target: int) -> float | None:
        chosen = slice(target, target + 1)
        what = "an error norm from another dictionary's"
        moments = train.select(regressors, chosen)
        fitted = moments.fit(ridge=ridge, what=what, rank_level=logging.DEBUG)
        return test.select(regressors, chosen).score(fitted).pooled_r_squared()

    errors = range(0, width, len(REGRESSED))
    plain = [[r_squared([row], column) for column in errors] for row in errors]
    both = [[r_squared([row, row + 1], column) for column in errors] for row in errors]
    gain = [
        [_gain(*pair) for pair in zip(*rows, strict=True)] for rows in zip(plain, both, strict=True)
    ]
    return plain, gain


def _gain(plain: float | None, both: float | None) -> float | None:
    if plain is None or both is None:
        return None
    # The ridge leaves about 1e-12 of a norm regressed on itself.
    return 0.0 if 1 - plain < 1e-9 else (both - plain) / (1 - plain)


def scaling_charts(r_squared: Matrix, gain: Matrix, labels: Sequence[str]) -> list[Chart]:
    """Both matrices of `measure_scaling`; dictionaries from narrow to wide, upper triangle."""
    # With a unit, so that widths are taken for categories and not for numbers.
    named = [f"{x} latents" if x.replace(",", "").isdigit() else x for x in labels]
    drawn = (
        (
            "scaling_r_squared",
            "Do wider dictionaries fail on the same tokens?",
            "Held-out R² of the norm of the column's error regressed on the norm of the row's "
            "error and a constant, token by token; from narrow to wide, upper triangle. Near "
            "1: the wider dictionary's errors are large where the narrower one's are.",
            r_squared,
        ),
        (
            "scaling_gain",
            "What the norm of the nonlinear error adds",
            "Share of the residual variance of the prediction beside it that is removed when "
            "the norm of the row's nonlinear error is a second regressor: (R²_new - R²_old) / "
            "(1 - R²_old); 0 on the diagonal.",
            gain,
        ),
    )
    charts = []
    for name, title, caption, matrix in drawn:
        upper = [[None] * row + line[row:] for row, line in enumerate(matrix)]
        heat_map = Series(name=title, x=[*named], y=[*named], z=upper, mark="heat map")
        chart = Chart(
            name=name,
            title=title,
            caption=caption,
            x=Axis(title="predicted: error of"),
            y=Axis(title="from the error of"),
            colour="share",
            series=(heat_map,),
            height=max(340, 90 + 34 * len(labels)),
        )
        charts.append(chart)
    return charts


def trace_chart(trace: Mapping[str, list[Any]], prefix: str, codes: str) -> Chart:
    """Norms of the error and its parts at neighbouring tokens."""
    context = trace["sequence"][0] if trace["sequence"] else "none"
    return Chart(
        name=f"{prefix}error_trace",
        title=f"Error token by token, {codes}",
        caption=f"Norms at {len(trace['position'])} neighbouring tokens of a held-out context "
        f"(number {context} of the text); {ERROR}",
        x=Axis(title="position in the context"),
        y=Axis(title="norm (activation units)", low=0),
        series=tuple(
            Series(
                name=VECTOR_LABELS[name],
                x=list(trace["position"]),
                y=[*rounded(trace[f"{name}_norm"])],
                labels=[f"token {token}" for token in trace["token"]],
                style={"error": 0, "linear_error": 2}.get(name, 1),
                dashed=name == "error",
            )
            for name in ERROR_NORMS
        ),
        wide=True,
    )


def family_traces(labels: Sequence[str], paths: Sequence[Path]) -> list[Chart]:
    """For each part of the error, its norm at the same neighbouring tokens, by dictionary."""
    traces = [trace_of(path) for path in paths]
    position = traces[0]["position"]
    return [
        Chart(
            name=f"family_trace_{name}",
            title=f"Norm of the {VECTOR_LABELS[name]}, token by token",
            caption=f"Norm of the {VECTOR_LABELS[name]} at {len(position)} neighbouring tokens of "
            "one held-out context, a line per dictionary.",
            x=Axis(title="position in the context"),
            y=Axis(title=f"norm of the {VECTOR_LABELS[name]} (activation units)"),
            series=tuple(
                Series(name=label, x=list(position), y=[*rounded(trace[f"{name}_norm"])])
                for label, trace in zip(labels, traces, strict=True)
            ),
            named_ends=bool(position),
            height=380,
            wide=True,
        )
        for name in ERROR_NORMS
    ]
