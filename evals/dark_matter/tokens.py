"""One row per token in a parquet file: where it stands, and the norms of the parts of its error.

The file is written while the rows stream past, in reading order; files of dictionaries that were
judged on the same rows can be read side by side.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from jaxtyping import Float, Int
from pyarrow import parquet
from torch import Tensor

from saelab.formats.chart import Axis, Chart, Number, Series
from saelab.formats.files import atomic_path

from .analysis import ERROR, VECTOR_LABELS
from .regression import CrossStatistics, RegressionMoments
from .rows import CONTEXT_TEST, RowBatch

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


REGRESSED = ("error", "nonlinear_error")


@dataclass(frozen=True, eq=False)
class Scaling:
    """R² between all pairs; rows predict columns."""

    r_squared: list[list[float | None]]
    """Held-out R² of the column's |error| regressed on the row's |error| and a constant."""
    gain: list[list[float | None]]
    """Share of the residual variance removed by adding the row's |nonlinear error|; 0 where none
    is left."""

    def charts(self, labels: Sequence[str]) -> list[Chart]:
        """Both matrices; dictionaries from narrow to wide, upper triangle."""
        return [
            _matrix(
                "scaling_r_squared",
                "Do wider dictionaries fail on the same tokens?",
                "Held-out R² of the norm of the column's error regressed on the norm of the row's "
                "error and a constant, token by token; from narrow to wide, upper triangle. Near "
                "1: the wider dictionary's errors are large where the narrower one's are.",
                labels,
                self.r_squared,
            ),
            _matrix(
                "scaling_gain",
                "What the norm of the nonlinear error adds",
                "Share of the residual variance of the prediction beside it that is removed when "
                "the norm of the row's nonlinear error is a second regressor: (R²_new - R²_old) / "
                "(1 - R²_old); 0 on the diagonal.",
                labels,
                self.gain,
            ),
        ]


def _matrix(
    name: str,
    title: str,
    caption: str,
    labels: Sequence[str],
    matrix: Sequence[Sequence[float | None]],
) -> Chart:
    upper: list[list[Number | None]] = [
        [value if column >= row else None for column, value in enumerate(line)]
        for row, line in enumerate(matrix)
    ]
    known = [
        value for row, line in enumerate(upper) for value in line[row + 1 :] if value is not None
    ]
    # With a unit, so that widths are taken for categories and not for numbers.
    named = [f"{x} latents" if x.replace(",", "").isdigit() else x for x in labels]
    reach = f"from {min(known):.3f} to {max(known):.3f}" if known else "undefined"
    return Chart(
        name=name,
        title=title,
        caption=caption,
        summary=f"Upper triangle of a {len(labels)} by {len(labels)} matrix; off the diagonal "
        f"{reach}.",
        x=Axis(title="predicted: error of"),
        y=Axis(title="from the error of"),
        colour="share",
        series=(
            Series(
                name=title,
                x=list(named),
                y=list(named),
                z=upper,
                mark="heat map",
            ),
        ),
        height=max(340, 90 + 34 * len(labels)),
    )


def measure_scaling(token_files: Sequence[Path], ridge: float) -> Scaling:
    """Regress every dictionary's error norm on every other's.

    Args:
        token_files: of the dictionaries, of the same rows, from narrow to wide.
        ridge: regularisation, as in `RegressionMoments.fit`.

    Raises:
        ActivationError: fewer rows than coefficients.
    """
    width = len(token_files) * len(REGRESSED)
    statistics = CrossStatistics(width, width, 2)
    for norms, held_out in norms_matrix(token_files, REGRESSED):
        statistics.update(norms, norms, held_out)

    def r_squared(regressors: list[int], target: int) -> float | None:
        train, test = (_block(statistics, cell, regressors, target) for cell in (0, 1))
        what = "an error norm from another dictionary's"
        fitted = train.fit(ridge=ridge, what=what, rank_level=logging.DEBUG)
        return test.score(fitted).pooled_r_squared()

    plain: list[list[float | None]] = []
    gain: list[list[float | None]] = []
    for row in range(len(token_files)):
        error, nonlinear = len(REGRESSED) * row, len(REGRESSED) * row + 1
        plain.append([])
        gain.append([])
        for column in range(len(token_files)):
            target = len(REGRESSED) * column
            first, both = r_squared([error], target), r_squared([error, nonlinear], target)
            plain[-1].append(first)
            gain[-1].append(_gain(first, both))
    return Scaling(plain, gain)


def _gain(first: float | None, both: float | None) -> float | None:
    if first is None or both is None:
        return None
    # The ridge leaves about 1e-12 of a norm regressed on itself.
    return 0.0 if 1 - first < 1e-9 else (both - first) / (1 - first)


def _block(
    statistics: CrossStatistics, cell: int, regressors: list[int], target: int
) -> RegressionMoments:
    sums = statistics.merged([cell])
    chosen = torch.tensor(regressors)
    return RegressionMoments(
        n_rows=int(sums.n_rows),
        mean_regressors=sums.mean_left[chosen],
        mean_targets=sums.mean_left[target : target + 1],
        gram=sums.product[chosen][:, chosen],
        cross=sums.product[chosen, target : target + 1],
        squares=sums.product[target, target : target + 1],
    )


def trace_chart(trace: Mapping[str, list[Any]], prefix: str, codes: str) -> Chart:
    """Norms of the error and its parts at neighbouring tokens.

    Args:
        trace: of a token file.
        prefix: before the chart's name.
        codes: words for the encoder.
    """
    norms = {name: _rounded(trace[f"{name}_norm"]) for name in NORMS[2:]}
    means = ", ".join(
        f"{VECTOR_LABELS[name]} {sum(values) / max(1, len(values)):.3g}"
        for name, values in norms.items()
    )
    context = trace["sequence"][0] if trace["sequence"] else "none"
    n = len(trace["position"])
    return Chart(
        name=f"{prefix}error_trace",
        title=f"Error token by token, {codes}",
        caption=f"Norms at {n} neighbouring tokens of a held-out context (number {context} of the "
        f"text); {ERROR}",
        summary=f"Lines over {n} tokens; mean norms: {means}.",
        x=Axis(title="position in the context"),
        y=Axis(title="norm (activation units)", low=0),
        series=tuple(
            Series(
                name=VECTOR_LABELS[name],
                x=list(trace["position"]),
                y=list(values),
                labels=[f"token {token}" for token in trace["token"]],
                style={"error": 0, "linear_error": 2}.get(name, 1),
                dashed=name == "error",
            )
            for name, values in norms.items()
        ),
        wide=True,
    )


def family_traces(labels: Sequence[str], paths: Sequence[Path]) -> list[Chart]:
    """For each part of the error, its norm at the same neighbouring tokens, by dictionary."""
    traces = [trace_of(path) for path in paths]
    position = traces[0]["position"]
    charts = []
    for name in NORMS[2:]:
        part = VECTOR_LABELS[name]
        norms = [_rounded(trace[f"{name}_norm"]) for trace in traces]
        means = "; ".join(
            f"{label}: {sum(line) / max(1, len(line)):.3g}"
            for label, line in zip(labels, norms, strict=True)
        )
        chart = Chart(
            name=f"family_trace_{name}",
            title=f"Norm of the {part}, token by token",
            caption=f"Norm of the {part} at {len(position)} neighbouring tokens of one held-out "
            "context, a line per dictionary.",
            summary=f"Lines over {len(position)} tokens; means {means}.",
            x=Axis(title="position in the context"),
            y=Axis(title=f"norm of the {part} (activation units)"),
            series=tuple(
                Series(name=label, x=list(position), y=list(line))
                for label, line in zip(labels, norms, strict=True)
            ),
            named_ends=bool(position),
            height=380,
            wide=True,
        )
        charts.append(chart)
    return charts


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
