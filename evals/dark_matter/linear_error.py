"""Analyses 1 and 2 in numbers: how much of the error, and of its norm, is linear in the activation.

Everything is read off the sums of the first pass: each variant is another choice of cells to fit
and score on, with or without a constant, and needs no further look at the rows.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from types import MappingProxyType

from saelab.dictionary.decomposition import ErrorProbe
from saelab.errors import ActivationError

from .error_sums import BASELINES, ErrorSums
from .regression import LinearMap, RegressionMoments, RegressionStatistics
from .split import CONTEXT_TEST, CONTEXT_TRAIN, TOKEN_TEST, TOKEN_TRAIN

Cells = tuple[int, ...] | None


@dataclass(frozen=True)
class Variant:
    """Which rows a fit sees, which it is scored on, and whether it has a constant."""

    train: Cells
    score: Cells
    intercept: bool
    words: str


VARIANTS = MappingProxyType(
    {
        "": Variant(
            CONTEXT_TRAIN, CONTEXT_TEST, True, "fitted with a constant, scored on held-out contexts"
        ),
        "_no_bias": Variant(
            CONTEXT_TRAIN,
            CONTEXT_TEST,
            False,
            "fitted without a constant, scored on held-out contexts",
        ),
        "_token_split": Variant(
            TOKEN_TRAIN,
            TOKEN_TEST,
            True,
            "fitted with a constant, scored on held-out tokens whose neighbours were trained on",
        ),
        "_all_tokens": Variant(
            CONTEXT_TRAIN,
            None,
            True,
            "fitted with a constant on the training contexts, scored on all rows, those included",
        ),
        "_as_published": Variant(
            TOKEN_TRAIN,
            None,
            False,
            "as published: fitted without a constant on a random part of the tokens, scored on all "
            "rows, those included",
        ),
    }
)
"""Suffix of the metric -> how it is fitted and scored; the first is the one to use."""


@dataclass(frozen=True, eq=False)
class ErrorFindings:
    """What the first pass says of one dictionary under one encoder."""

    probe: ErrorProbe
    """Fitted with a constant on the training contexts: the one used everywhere."""
    values: dict[str, float | int | None]
    """Numbers by name."""
    map: LinearMap
    """The same fit with the squared norm as a last target."""


def error_findings(sums: ErrorSums, ridge: float, what: str) -> ErrorFindings:
    """Fit the error and its squared norm in every variant, and the baselines of the norm.

    Args:
        sums: of the first pass.
        ridge: regularisation, as in `RegressionMoments.fit`.
        what: names the dictionary in messages.

    Raises:
        ActivationError: too few rows to fit or to score on.
    """
    values: dict[str, float | int | None] = _totals(sums)
    fits: dict[tuple[Cells, bool], LinearMap] = {}
    for suffix, variant in VARIANTS.items():
        key = (variant.train, variant.intercept)
        if key not in fits:
            moments = sums.regression.moments(variant.train)
            name = f"error of {what} from its activations"
            fits[key] = moments.fit(intercept=variant.intercept, ridge=ridge, what=name)
        scored = scored_moments(sums.regression, variant.score, what)
        values |= _scores(fits[key], scored, suffix, f"error of {what}{suffix}")
    for name in BASELINES:
        values[f"norm_r_squared_{name}"] = single_r_squared(sums.baselines[name], ridge)
    values["norm_r_squared_token_identity"] = sums.tokens.held_out_r_squared()
    values["norm_r_squared_token_identity_in_sample"] = sums.tokens.in_sample_r_squared()
    chosen = fits[CONTEXT_TRAIN, True]
    probe = ErrorProbe(chosen.weight[:, :-1].contiguous(), chosen.bias[:-1].contiguous())
    return ErrorFindings(probe, values, chosen)


def scored_moments(statistics: RegressionStatistics, cells: Cells, what: str) -> RegressionMoments:
    """The moments to score on.

    Raises:
        ActivationError: too few rows, or rows that do not vary.
    """
    moments = statistics.moments(cells)
    if moments.n_rows < 2 or float(moments.gram.trace()) <= 0:
        raise ActivationError(
            f"{what}: {moments.n_rows} held-out rows are too few to score on (or all are equal); "
            "give more tokens, so that both parts of the split hold several contexts"
        )
    return moments


def single_r_squared(statistics: RegressionStatistics, ridge: float) -> float | None:
    """Held-out R² of a regression on one number; None where it has too few rows."""
    train, test = statistics.moments(CONTEXT_TRAIN), statistics.moments(CONTEXT_TEST)
    if train.n_rows < 3 or test.n_rows < 2:
        return None
    # A baseline may be constant, as L0 is where every row has k latents: it predicts the mean then.
    fitted = train.fit(ridge=ridge, what="a baseline", rank_level=logging.DEBUG)
    return test.score(fitted).pooled_r_squared()


def _scores(
    fitted: LinearMap, scored: RegressionMoments, suffix: str, what: str
) -> dict[str, float | None]:
    scores = scored.score(fitted)
    vector, norm = scores.of(slice(0, -1)), scores.of(slice(-1, None))
    variance = float(scored.gram.trace())
    error_means = scored.mean_targets[:-1].square().sum()
    total_error = float(scored.squares[:-1].sum() + scored.n_rows * error_means)
    left = float(vector.squared_error.sum())
    return {
        f"fvu{suffix}": total_error / variance,
        f"fvu_nonlinear{suffix}": left / variance,
        f"error_r_squared{suffix}": vector.mean_r_squared(what),
        f"error_explained{suffix}": 1 - left / total_error if total_error > 0 else None,
        f"norm_r_squared{suffix}": norm.mean_r_squared(),
    }


def _totals(sums: ErrorSums) -> dict[str, float | int | None]:
    everywhere = sums.regression.moments()
    variance = float(everywhere.gram.trace())
    rescaled = sums.shrinkage.rescaled_error()
    return {
        "n_rows": sums.n_rows,
        "n_train_rows": sums.regression.moments(CONTEXT_TRAIN).n_rows,
        "n_test_rows": sums.regression.moments(CONTEXT_TEST).n_rows,
        "l0_mean": float(sums.sparsity.values()["l0_mean"]),
        "normalised_error": sums.normalised_error / max(sums.n_rows, 1),
        "shrinkage_gamma": sums.shrinkage.gamma,
        "fvu_rescaled": None if rescaled is None or variance <= 0 else rescaled / variance,
    }
