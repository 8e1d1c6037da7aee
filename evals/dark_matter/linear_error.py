"""Analyses 1 and 2 in numbers: how much of the error, and of its norm, is linear in the activation.

Everything is read off the sums of the first pass: each variant is another choice of cells to fit
and score on, with or without a constant, and needs no further look at the rows.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from saelab.dictionary.decomposition import ErrorProbe
from saelab.errors import ActivationError
from saelab.formats.chart import Axis, Chart, Series

from .analysis import ERROR, Meaning, in_words
from .first_pass import BASELINES, ErrorSums
from .regression import LinearMap, RegressionMoments, RegressionStatistics
from .rows import CONTEXT_TEST, CONTEXT_TRAIN, TOKEN_TEST, TOKEN_TRAIN

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


_PER_VARIANT = {
    "fvu": "Sum of |x - Sae(x)|² divided by the sum of |x - mean|² over the scored rows.",
    "fvu_nonlinear": "Sum of |nonlinear error|² divided by the sum of |x - mean|² over the scored "
    "rows, the nonlinear error being x - Sae(x) less its least-squares prediction from x",
    "error_r_squared": "R² of the error vector regressed on x: per output dimension, then the "
    "unweighted mean over dimensions",
    "error_explained": "Share of the error's summed square that its regression on x explains: 1 - "
    "FVU_nonlinear / FVU, pooled over dimensions",
    "norm_r_squared": "R² of the squared error norm regressed on x",
}

_VARIANT_METRICS = {
    f"{name}{suffix}": Meaning(
        "1",
        f"{text} On {'held-out contexts' if not suffix or 'no_bias' in suffix else 'those rows'}."
        if name == "fvu"
        else f"{text}; {variant.words}.",
    )
    for name, text in _PER_VARIANT.items()
    for suffix, variant in VARIANTS.items()
    if name != "fvu" or suffix in ("", "_all_tokens", "_token_split")
}

FIRST_PASS: dict[str, Meaning] = {
    "n_rows": Meaning("rows", "Rows evaluated, after the token filter and the first position."),
    "n_train_rows": Meaning("rows", "Rows of the contexts that probes are fitted on."),
    "n_test_rows": Meaning("rows", "Rows of the held-out contexts."),
    "l0_mean": Meaning("latents per row", "Mean number of positive codes over all rows."),
    **_VARIANT_METRICS,
    "normalised_error": Meaning("1", "Mean over all rows of |x - Sae(x)|² / |x|²."),
    "shrinkage_gamma": Meaning(
        "1",
        "Shrinkage: sum of <Sae(x) - b, x - b> over sum of |x - b|², b the decoder bias, over all "
        "rows. Below 1 reconstructions are too short, and part of the error is linear for that "
        "reason alone.",
    ),
    "fvu_rescaled": Meaning("1", "FVU over all rows after Sae(x) - b is divided by gamma."),
    "norm_r_squared_token_loss": Meaning(
        "1",
        "Held-out R² of the squared error norm regressed on the model's loss at predicting the "
        "next token, on the rows where it was measured.",
    ),
    "norm_r_squared_l0": Meaning(
        "1", "Held-out R² of the squared error norm regressed on the row's L0."
    ),
    "norm_r_squared_activation_norm": Meaning(
        "1", "Held-out R² of the squared error norm regressed on |x|."
    ),
    "norm_r_squared_token_identity": Meaning(
        "1",
        "Held-out R² of predicting the squared error norm by its mean over training rows of the "
        "same token (of all training rows for a token not among them).",
    ),
    "norm_r_squared_token_identity_in_sample": Meaning(
        "1",
        "The same with means over all rows, scored on the same rows, as published: each row "
        "contributes to its own mean, which flatters rare tokens.",
    ),
}

SECOND_PASS: dict[str, Meaning] = {
    "linear_norm_share": Meaning(
        "1", "Mean |linear error| over mean |error| on held-out contexts."
    ),
    "nonlinear_norm_share": Meaning(
        "1", "Mean |nonlinear error| over mean |error| on held-out contexts."
    ),
    "linear_norm_ratio_mean": Meaning("1", "Mean over held-out rows of |linear error| / |error|."),
    "nonlinear_norm_ratio_mean": Meaning(
        "1", "Mean over held-out rows of |nonlinear error| / |error|."
    ),
    "recovered_r_squared_linear": Meaning(
        "1",
        "Share of the gap in R² between Sae(x) and x that adding the linear error closes, on "
        "held-out contexts; the same number as error_explained.",
    ),
    "recovered_r_squared_nonlinear": Meaning(
        "1", "The same for adding the nonlinear error: 1 - sum |linear error|² / sum |error|²."
    ),
}


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


def error_charts(
    encoders: Mapping[str, Mapping[str, Any]], values: Mapping[str, Any]
) -> list[Chart]:
    """The error in two parts, what predicts its size, and how much the way of scoring matters.

    Args:
        encoders: numbers by the words for the encoder they are of.
        values: those of the dictionary's codes.
    """
    return [_parts_chart(encoders), _predictors_chart(values), _ways_chart(values)]


def _parts_chart(encoders: Mapping[str, Mapping[str, Any]]) -> Chart:
    nonlinear = [numbers["fvu_nonlinear"] for numbers in encoders.values()]
    linear = [numbers["fvu"] - numbers["fvu_nonlinear"] for numbers in encoders.values()]
    stated = "; ".join(
        f"{name}: FVU {numbers['fvu']:.4f}, of which nonlinear {numbers['fvu_nonlinear']:.4f}"
        for name, numbers in encoders.items()
    )
    return Chart(
        name="error_parts",
        title="What is not explained, in two parts",
        caption=f"The whole bar is FVU on held-out contexts, cut by FVU_nonlinear; {ERROR} "
        "Pursuit codes are found by gradient pursuit with as many latents per row as the own codes "
        "have, and get a probe of their own.",
        summary=f"Stacked bars. {stated}.",
        x=Axis(title="share of the activations' variance (FVU)", low=0),
        y=Axis(title="codes"),
        stacked=True,
        series=tuple(
            Series(
                name=label,
                x=list(shares),
                y=list(encoders),
                mark="bars",
                axis="x",
                style=style,
                text=[f"{share:.3f}" for share in shares],
            )
            for label, shares, style in (
                ("nonlinear error", nonlinear, 1),
                ("linear error", linear, 2),
            )
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
    stated = ", ".join(f"{label} {value:.3f}" for label, value in known.items())
    return Chart(
        name="norm_predictors",
        title="What predicts how large the error is",
        caption="R² of |activation - reconstruction|² regressed with a constant on what stands at "
        "the left, fitted on the training contexts, scored on held-out ones. “Token identity” is "
        "the mean over training rows of the same token; “in sample” scores it on the rows it was "
        "taken over, as published, which flatters rare tokens.",
        summary=f"Bars of R²: {stated}.",
        x=Axis(title="R² of the squared error norm"),
        y=Axis(title="predictor"),
        series=(
            Series(
                name="R²",
                x=list(known.values()),
                y=list(known),
                mark="bars",
                axis="x",
                text=[f"{value:.3f}" for value in known.values()],
            ),
        ),
    )


def _ways_chart(values: Mapping[str, Any]) -> Chart:
    ways = {
        "": "held-out contexts",
        "_no_bias": "no constant",
        "_token_split": "token split",
        "_all_tokens": "all rows",
        "_as_published": "as published",
    }
    names = {
        "fvu_nonlinear": "FVU_nonlinear",
        "error_r_squared": "R² of the error vector",
        "norm_r_squared": "R² of the squared norm",
    }
    stated = "; ".join(
        f"{label} {in_words(values[name])} held out, {in_words(values[f'{name}_as_published'])} "
        "as published"
        for name, label in names.items()
    )
    return Chart(
        name="ways_to_score",
        title="How much the way of scoring matters",
        caption="“Held-out contexts” (fitted with a constant, scored on contexts not fitted on) is "
        "used everywhere else. “Token split” holds out single tokens, whose neighbours were fitted "
        "on; “all rows” scores on fitted rows too; “as published” fits without a constant on a "
        "token split and scores on all rows.",
        summary=f"Dots for five ways of fitting and scoring. {stated}.",
        x=Axis(title="way of fitting and scoring"),
        y=Axis(title="share"),
        wide=True,
        series=tuple(
            Series(
                name=label,
                x=list(ways.values()),
                y=[values[f"{name}{suffix}"] for suffix in ways],
                mark="dots",
            )
            for name, label in names.items()
        ),
    )
