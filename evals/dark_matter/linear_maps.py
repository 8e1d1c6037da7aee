"""How much of the error a linear map of other dictionaries' outputs explains (A10).

Regressors are the reconstructions of dictionaries at other hook points: an earlier layer's, and the
same layer's MLP and attention outputs; all of them together; and, as a control, the judged
dictionary's own. Targets are the error and its parts. A map to the error is also a correction: its
prediction added to the reconstruction leaves a smaller error (arXiv 2410.14670, section 6.2).

One pass collects the moments of all regressors together; every map takes its part of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from saelab.dictionary import SavedDictionary
from saelab.dictionary.decomposition import ErrorProbe, decompose
from saelab.errors import ActivationError

from .regression import RIDGE, RegressionMoments, RegressionStatistics
from .source_rows import SourceRows
from .split import CONTEXT_TEST, CONTEXT_TRAIN, N_CELLS, cells_of

TARGETS = ("error", "linear", "nonlinear")
OWN, JOINT = "same hook point (control)", "all sources together"


@dataclass(frozen=True, kw_only=True)
class MapScore:
    """How well one set of regressors predicts one target on held-out contexts."""

    mean_r_squared: float | None
    """R² per dimension, averaged over dimensions that vary (E9)."""
    pooled_r_squared: float | None
    """1 − summed squared error / summed deviation (1 − E10)."""


@dataclass(frozen=True, kw_only=True)
class LinearMapFindings:
    """Scores by source, then by target; corrections by source."""

    scores: dict[str, dict[str, MapScore]]
    """By source: `OWN`, each source's hook point, `JOINT`; then by target."""
    fvu_corrected: dict[str, float]
    """By source, FVU of the reconstruction with the map's prediction of the error added."""
    fvu: float
    """FVU of the reconstruction on the same rows."""
    n_regressors: dict[str, int]
    """Width of each set of regressors."""
    n_train_rows: int
    """Rows the maps were fitted on."""
    n_test_rows: int
    """Rows of other contexts they are scored on."""


@torch.no_grad()
def measure_linear_maps(
    saved: SavedDictionary,
    probe: ErrorProbe,
    sources: Mapping[str, SavedDictionary],
    batches: Iterable[SourceRows],
    *,
    seed: int = 0,
    train_fraction: float = 0.6,
    ridge: float = RIDGE,
) -> LinearMapFindings:
    """Fit and score every map in one pass over the rows.

    Args:
        saved: the dictionary whose error is explained.
        probe: fitted to its errors on other rows.
        sources: dictionaries of other hook points by name.
        batches: rows with the sources' activations, from `source_rows`.
        seed: draws which contexts are held out.
        train_fraction: share of contexts that maps are fitted on.
        ridge: regularisation, which also keeps rank-deficient reconstructions from blowing up.

    Raises:
        ActivationError: values that are not finite, or too few rows for a map's coefficients.
    """
    d_in = saved.dictionary.d_in
    columns = _columns(saved, sources)
    n_regressors = max(part.stop for part in columns.values())
    # The activation itself is a target too: its deviation is what FVU is a share of.
    statistics = RegressionStatistics(n_regressors, (len(TARGETS) + 1) * d_in, N_CELLS)
    for batch in batches:
        parts = decompose(saved.dictionary, probe, batch.activations)
        regressors = [parts.reconstruction]
        regressors += [source.dictionary(batch.sources[name]) for name, source in sources.items()]
        targets = [parts.error, parts.linear_error, parts.nonlinear_error, batch.activations]
        cell = cells_of(batch.sequence, batch.position, seed=seed, train_fraction=train_fraction)
        statistics.update(torch.cat(regressors, 1).cpu(), torch.cat(targets, 1).cpu(), cell)
    train, test = statistics.moments(CONTEXT_TRAIN), statistics.moments(CONTEXT_TEST)
    if test.n_rows < 2:
        raise ActivationError(
            f"{test.n_rows} rows are held out to score linear maps on: evaluate more contexts"
        )
    return _score(columns, train, test, d_in, ridge)


def _columns(saved: SavedDictionary, sources: Mapping[str, SavedDictionary]) -> dict[str, slice]:
    """Which regressors each map takes."""
    columns = {OWN: slice(0, saved.dictionary.d_in)}
    start = saved.dictionary.d_in
    for name, source in sources.items():
        columns[name] = slice(start, start + source.dictionary.d_in)
        start += source.dictionary.d_in
    if len(sources) > 1:
        columns[JOINT] = slice(saved.dictionary.d_in, start)
    return columns


def _score(
    columns: Mapping[str, slice],
    train: RegressionMoments,
    test: RegressionMoments,
    d_in: int,
    ridge: float,
) -> LinearMapFindings:
    variance = float(test.squares[-d_in:].sum())
    scores: dict[str, dict[str, MapScore]] = {}
    corrected: dict[str, float] = {}
    for source, part in columns.items():
        fitted = part_of(train, part).fit(ridge=ridge, what=f"the map from {source}")
        found = part_of(test, part).score(fitted)
        scores[source] = {}
        for place, target in enumerate(TARGETS):
            of_target = found.of(slice(place * d_in, (place + 1) * d_in))
            scores[source][target] = MapScore(
                mean_r_squared=of_target.mean_r_squared(f"{target} error from {source}"),
                pooled_r_squared=of_target.pooled_r_squared(),
            )
        corrected[source] = float(found.squared_error[:d_in].sum()) / variance
    error = slice(0, d_in)
    squares = test.squares[error] + test.n_rows * test.mean_targets[error].square()
    return LinearMapFindings(
        scores=scores,
        fvu_corrected=corrected,
        fvu=float(squares.sum()) / variance,
        n_regressors={name: part.stop - part.start for name, part in columns.items()},
        n_train_rows=train.n_rows,
        n_test_rows=test.n_rows,
    )


def part_of(moments: RegressionMoments, regressors: slice) -> RegressionMoments:
    """The moments with only some of the regressors."""
    return RegressionMoments(
        n_rows=moments.n_rows,
        mean_regressors=moments.mean_regressors[regressors],
        mean_targets=moments.mean_targets,
        gram=_square(moments.gram, regressors),
        cross=moments.cross[regressors],
        squares=moments.squares,
    )


def _square(gram: Tensor, part: slice) -> Tensor:
    return gram[part, part].contiguous()
