"""Analyses 1 and 2: how much of the error, and of its norm, is linear in the activation.

Everything is read off the sums of one pass over the rows: each variant is another choice of cells
to fit and score on, with or without a constant, and needs no further look at the rows. What depends
on neither dictionary nor encoder, the activations' own products, is collected once and shared.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.dictionary import Dictionary
from saelab.dictionary.architectures import error_of
from saelab.dictionary.decomposition import ErrorProbe
from saelab.errors import ActivationError
from saelab.formats.chart import Axis, Chart, Series
from saelab.sparse import SparseCodes
from saelab.stats.metrics import SparsityStatistics

from .analysis import ERROR, Values, bars
from .regression import CrossStatistics, LinearMap, RegressionMoments, RegressionStatistics
from .rows import CONTEXT_TEST, CONTEXT_TRAIN, N_CELLS, TOKEN_TEST, TOKEN_TRAIN, RowBatch

Cells = tuple[int, ...] | None


VARIANTS: dict[str, tuple[Cells, Cells, bool]] = {
    "": (CONTEXT_TRAIN, CONTEXT_TEST, True),
    "_no_bias": (CONTEXT_TRAIN, CONTEXT_TEST, False),
    "_token_split": (TOKEN_TRAIN, TOKEN_TEST, True),
    "_all_tokens": (CONTEXT_TRAIN, None, True),
    "_as_published": (TOKEN_TRAIN, None, False),
}
"""Suffix of a number -> cells that a fit sees, cells that it is scored on, and whether it has a
constant; the first is the one to use."""
_VARIANT_WORDS = {
    "": "fitted with a constant, scored on held-out contexts",
    "_no_bias": "fitted without a constant, scored on held-out contexts",
    "_token_split": "fitted with a constant, scored on held-out tokens whose neighbours were "
    "trained on",
    "_all_tokens": "fitted with a constant on the training contexts, scored on all rows, those "
    "included",
    "_as_published": "as published: fitted without a constant on a random part of the tokens, "
    "scored on all rows, those included",
}
_OF_VARIANTS = {
    "fvu_nonlinear": "Sum of |nonlinear error|² divided by the sum of |x - mean|² over the scored "
    "rows, the nonlinear error being x - Sae(x) less its least-squares prediction from x",
    "error_r_squared": "R² of the error vector regressed on x: per output dimension, then the "
    "unweighted mean over dimensions",
    "error_explained": "Share of the error's summed square that its regression on x explains: 1 - "
    "FVU_nonlinear / FVU, pooled over dimensions",
    "norm_r_squared": "R² of the squared error norm regressed on x",
}
_FVU = "Sum of |x - Sae(x)|² divided by the sum of |x - mean|² over the scored rows. On "

FIRST_PASS: dict[str, str] = {
    "n_rows": "Rows evaluated, after the token filter and the first position.",
    "n_train_rows": "Rows of the contexts that probes are fitted on.",
    "n_test_rows": "Rows of the held-out contexts.",
    "l0_mean": "Mean number of positive codes over all rows.",
    "fvu": f"{_FVU}held-out contexts.",
    "fvu_token_split": f"{_FVU}those rows.",
    "fvu_all_tokens": f"{_FVU}those rows.",
    **{
        f"{name}{suffix}": f"{text}; {words}."
        for name, text in _OF_VARIANTS.items()
        for suffix, words in _VARIANT_WORDS.items()
    },
    "normalised_error": "Mean over all rows of |x - Sae(x)|² / |x|².",
    "shrinkage_gamma": "Shrinkage: sum of <Sae(x) - b, x - b> over sum of |x - b|², b the decoder "
    "bias, over all rows. Below 1 reconstructions are too short, and part of the error is linear "
    "for that reason alone.",
    "fvu_rescaled": "FVU over all rows after Sae(x) - b is divided by gamma.",
    "norm_r_squared_token_loss": "Held-out R² of the squared error norm regressed on the model's "
    "loss at predicting the next token, on the rows where it was measured.",
    "norm_r_squared_l0": "Held-out R² of the squared error norm regressed on the row's L0.",
    "norm_r_squared_activation_norm": "Held-out R² of the squared error norm regressed on |x|.",
    "norm_r_squared_token_identity": "Held-out R² of predicting the squared error norm by its mean "
    "over training rows of the same token (of all training rows for a token not among them).",
    "norm_r_squared_token_identity_in_sample": "The same with means over all rows, scored on the "
    "same rows, as published: each row contributes to its own mean, which flatters rare tokens.",
}
"""Number of the first pass -> how it is computed."""
UNITS = {
    "n_rows": "rows",
    "n_train_rows": "rows",
    "n_test_rows": "rows",
    "l0_mean": "latents per row",
}
"""Units of the numbers of both passes that are not ratios."""
SECOND_PASS: dict[str, str] = {
    "linear_norm_share": "Mean |linear error| over mean |error| on held-out contexts.",
    "nonlinear_norm_share": "Mean |nonlinear error| over mean |error| on held-out contexts.",
    "linear_norm_ratio_mean": "Mean over held-out rows of |linear error| / |error|.",
    "nonlinear_norm_ratio_mean": "Mean over held-out rows of |nonlinear error| / |error|.",
    "recovered_r_squared_linear": "Share of the gap in R² between Sae(x) and x that adding the "
    "linear error closes, on held-out contexts; the same number as error_explained.",
    "recovered_r_squared_nonlinear": "The same for adding the nonlinear error: 1 - sum |linear "
    "error|² / sum |error|².",
}
"""Number of the second pass -> how it is computed."""


class ErrorSums:
    """Sums over the rows for one dictionary under one encoder: what every fit and score needs.

    Args:
        dictionary: on the device that rows and codes are on, and the sums.
        design: products of the same rows' activations, from an earlier pass; None: collected.
    """

    def __init__(self, dictionary: Dictionary, design: CrossStatistics | None = None):
        self._dictionary = dictionary
        d_in, device = dictionary.d_in, dictionary.W_dec.device
        # The last target is the squared norm of the error.
        self.regression = RegressionStatistics(d_in, d_in + 1, N_CELLS, device, design=design)
        self.errors = CrossStatistics(d_in, d_in, N_CELLS, device)
        self.baselines = {
            name: RegressionStatistics(1, 1, N_CELLS, device)
            for name in ("token_loss", "l0", "activation_norm")
        }
        self.tokens = TokenMeans(device)
        self.sparsity = SparsityStatistics(dictionary.d_sae, device)
        self.code_powers = torch.zeros(4, dictionary.d_sae, dtype=torch.float64, device=device)
        """By latent: count of positive codes and sums of their first three powers, in activation
        units."""
        self.n_rows = 0
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)

    def update(self, batch: RowBatch, codes: SparseCodes) -> None:
        """Add rows.

        Raises:
            ActivationError: something is not finite.
        """
        x, cell = batch.activations.double(), batch.cell
        reconstruction = self._dictionary.decode(codes).double()
        error = error_of(x, reconstruction)
        squared = error.square().sum(1, keepdim=True)
        self.regression.update(x, torch.cat([error, squared], dim=1), cell)
        self.errors.update(error, error, cell)
        norm = torch.linalg.vector_norm(x, dim=1)
        numbers = {
            "token_loss": batch.loss,
            "l0": codes.l0().double(),
            "activation_norm": norm,
        }
        for name, number in numbers.items():
            known = number.isfinite()
            self.baselines[name].update(number[known, None], squared[known], cell[known])
        self.tokens.update(batch.tokens, squared.squeeze(1), cell)
        self.sparsity.update(codes)
        value = codes.scaled_values().double()
        for power, sums in enumerate(self.code_powers):
            sums.index_add_(0, codes.latent, torch.where(value > 0, value**power, 0.0))
        self.n_rows += len(x)
        bias = self._dictionary.baseline(x)
        x, hat = (vectors - bias for vectors in (x, reconstruction))
        share = (squared.squeeze(1) / norm.square())[norm > 0]
        self._sums += torch.stack(
            [share.sum(), (x * hat).sum(), x.square().sum(), hat.square().sum()]
        )

    def values(self) -> Values:
        """The numbers that need no fit."""
        everywhere = self.regression.moments()
        variance = float(everywhere.gram.trace())
        share, product, square, square_hat = self._sums.tolist()
        gamma = product / square if square > 0 else None
        rescaled = None
        if gamma is not None and gamma > 0 and variance > 0:
            rescaled = (square - 2 * product / gamma + square_hat / gamma**2) / variance
        return {
            "n_rows": self.n_rows,
            "n_train_rows": self.regression.moments(CONTEXT_TRAIN).n_rows,
            "n_test_rows": self.regression.moments(CONTEXT_TEST).n_rows,
            "l0_mean": float(self.sparsity.values()["l0_mean"]),
            "normalised_error": share / max(self.n_rows, 1),
            "shrinkage_gamma": gamma,
            "fvu_rescaled": rescaled,
            "norm_r_squared_token_identity": self.tokens.r_squared(CONTEXT_TRAIN, CONTEXT_TEST),
            "norm_r_squared_token_identity_in_sample": self.tokens.r_squared(None, None),
        }


class TokenMeans:
    """Counts and sums of one number by token id and cell; grows with the vocabulary alone."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        of = {"dtype": torch.float64, "device": device}
        self._count, self._total = torch.zeros(2, N_CELLS, 0, **of)
        self._square = torch.zeros(N_CELLS, **of)

    def update(
        self,
        tokens: Int[Tensor, " rows"],
        values: Float[Tensor, " rows"],
        cell: Int[Tensor, " rows"],
    ) -> None:
        """Add rows."""
        if len(tokens) == 0:
            return
        missing = max(0, int(tokens.max()) + 1 - self._count.shape[1])
        self._count = torch.nn.functional.pad(self._count, (0, missing))
        self._total = torch.nn.functional.pad(self._total, (0, missing))
        self._count.index_put_((cell, tokens), torch.ones_like(values), accumulate=True)
        self._total.index_put_((cell, tokens), values, accumulate=True)
        self._square.index_add_(0, cell, values.square())

    def r_squared(self, fitted: Cells, scored: Cells) -> float | None:
        """R² on some cells of the means over some cells (None: all); None where undefined."""
        chosen = [slice(None) if cells is None else list(cells) for cells in (fitted, scored)]
        (count, n_token), (total, sum_token) = (
            [sums[cells].sum(0) for cells in chosen] for sums in (self._count, self._total)
        )
        n_fit, n = count.sum(), n_token.sum()
        if n_fit == 0 or n == 0:
            return None
        mean = torch.where(count > 0, total / count.clamp(min=1), total.sum() / n_fit)
        square = self._square[chosen[1]].sum()
        error = square - 2 * (mean * sum_token).sum() + (mean.square() * n_token).sum()
        deviation = square - sum_token.sum().square() / n
        return float(1 - error / deviation) if deviation > 0 else None


def fit_error(sums: ErrorSums, ridge: float, what: str) -> tuple[ErrorProbe, Values]:
    """Fit the error and its squared norm in every variant, and the baselines of the norm.

    Args:
        ridge: regularisation, as in `RegressionMoments.fit`.
        what: names the dictionary in messages.

    Returns:
        The probe that is used everywhere, fitted with a constant on the training contexts, and the
        numbers by name.

    Raises:
        ActivationError: too few rows to fit or to score on.
    """
    values = sums.values()
    fits: dict[tuple[Cells, bool], LinearMap] = {}
    for suffix, (trained, tested, intercept) in VARIANTS.items():
        if (trained, intercept) not in fits:
            moments = sums.regression.moments(trained)
            name = f"error of {what} from its activations"
            fits[trained, intercept] = moments.fit(intercept=intercept, ridge=ridge, what=name)
        scored = sums.regression.moments(tested)
        if scored.n_rows < 2 or float(scored.gram.trace()) <= 0:
            raise ActivationError(
                f"{what}: {scored.n_rows} held-out rows are too few to score on (or all are "
                "equal); give more tokens, so that both parts of the split hold several contexts"
            )
        scores = _scores(fits[trained, intercept], scored, f"error of {what}{suffix}")
        values |= {f"{name}{suffix}": value for name, value in scores.items()}
    for name, statistics in sums.baselines.items():
        values[f"norm_r_squared_{name}"] = _baseline_r_squared(statistics, ridge)
    chosen = fits[CONTEXT_TRAIN, True]
    probe = ErrorProbe(chosen.weight[:, :-1].contiguous(), chosen.bias[:-1].contiguous())
    return probe, values


def _baseline_r_squared(statistics: RegressionStatistics, ridge: float) -> float | None:
    train, test = statistics.moments(CONTEXT_TRAIN), statistics.moments(CONTEXT_TEST)
    if train.n_rows < 3 or test.n_rows < 2:
        return None
    # A baseline may be constant, as L0 is where every row has k latents: it predicts the mean then.
    fitted = train.fit(ridge=ridge, what="a baseline", rank_level=logging.DEBUG)
    return test.score(fitted).pooled_r_squared()


def _scores(fitted: LinearMap, scored: RegressionMoments, what: str) -> Values:
    scores = scored.score(fitted)
    vector, norm = scores.of(slice(0, -1)), scores.of(slice(-1, None))
    variance = float(scored.gram.trace())
    total_error = float(scored.raw_squares()[:-1].sum())
    left = float(vector.squared_error.sum())
    return {
        "fvu": total_error / variance,
        "fvu_nonlinear": left / variance,
        "error_r_squared": vector.mean_r_squared(what),
        "error_explained": 1 - left / total_error if total_error > 0 else None,
        "norm_r_squared": norm.mean_r_squared(),
    }


def error_charts(encoders: Mapping[str, Mapping[str, Any]]) -> list[Chart]:
    """What is linear, what predicts the error's size, and how much the way of scoring matters."""
    # The dictionary's own codes come first.
    values = next(iter(encoders.values()))
    return [_parts_chart(encoders), _predictors_chart(values), _ways_chart(values)]


def _parts_chart(encoders: Mapping[str, Mapping[str, Any]]) -> Chart:
    nonlinear = [numbers["fvu_nonlinear"] for numbers in encoders.values()]
    linear = [numbers["fvu"] - numbers["fvu_nonlinear"] for numbers in encoders.values()]
    return Chart(
        name="error_parts",
        title="What is not explained, in two parts",
        caption=f"The whole bar is FVU on held-out contexts, cut by FVU_nonlinear; {ERROR} "
        "Pursuit codes are found by gradient pursuit with as many latents per row as the own codes "
        "have, and get a probe of their own.",
        x=Axis(title="share of the activations' variance (FVU)", low=0),
        y=Axis(title="codes"),
        stacked=True,
        series=(
            bars("nonlinear error", encoders, nonlinear, axis="x", digits=3, style=1),
            bars("linear error", encoders, linear, axis="x", digits=3, style=2),
        ),
    )


def _predictors_chart(values: Mapping[str, Any]) -> Chart:
    labels = {
        "norm_r_squared": "activation x",
        "norm_r_squared_activation_norm": "norm |x|",
        "norm_r_squared_token_identity": "token identity",
        "norm_r_squared_token_identity_in_sample": "token identity, in sample",
        "norm_r_squared_l0": "L0",
        "norm_r_squared_token_loss": "token loss",
    }
    known = {label: values[name] for name, label in labels.items() if values[name] is not None}
    return Chart(
        name="norm_predictors",
        title="What predicts how large the error is",
        caption="R² of |activation - reconstruction|² regressed with a constant on what is named "
        "at the left, fitted on the training contexts, scored on held-out ones. “Token identity”: "
        "the mean over training rows of the same token; “in sample” scores it on the rows it was "
        "taken over, as published, which flatters rare tokens.",
        x=Axis(title="R² of the squared error norm"),
        y=Axis(title="predictor"),
        series=(bars("R²", known, known.values(), axis="x", digits=3),),
    )


def _ways_chart(values: Mapping[str, Any]) -> Chart:
    ways = ["held-out contexts", "no constant", "token split", "all rows", "as published"]
    names = {
        "fvu_nonlinear": "FVU_nonlinear",
        "error_r_squared": "R² of the error vector",
        "norm_r_squared": "R² of the squared norm",
    }
    return Chart(
        name="ways_to_score",
        title="How much the way of scoring matters",
        caption="“Held-out contexts” (fitted with a constant, scored on contexts not fitted on) is "
        "used everywhere else. “Token split” holds out single tokens, whose neighbours were fitted "
        "on; “all rows” scores on fitted rows too; “as published” fits without a constant on a "
        "token split and scores on all rows.",
        x=Axis(title="way of fitting and scoring"),
        y=Axis(title="share"),
        wide=True,
        series=tuple(
            Series(
                name=label,
                x=[*ways],
                y=[values[f"{name}{suffix}"] for suffix in VARIANTS],
                mark="dots",
            )
            for name, label in names.items()
        ),
    )
