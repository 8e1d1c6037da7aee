"""What every number of the suite "dark-matter" means, in words that travel with it."""

from __future__ import annotations

from .definition import Definition
from .linear import VARIANTS
from .part_sums import VECTORS

PURSUIT = "pursuit_"
PURSUIT_WORDS = "With gradient-pursuit codes, each row with as many latents as its own codes have: "

VECTOR_WORDS = {
    "activation": "the activation x",
    "reconstruction": "the reconstruction Sae(x)",
    "error": "the error x - Sae(x)",
    "linear_error": "the linear error",
    "nonlinear_error": "the nonlinear error",
    "reconstruction_plus_nonlinear": "reconstruction plus nonlinear error",
}

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
    f"{name}{suffix}": Definition(
        "1",
        f"{text} On {'held-out contexts' if not suffix or 'no_bias' in suffix else 'those rows'}."
        if name == "fvu"
        else f"{text}; {variant.words}.",
    )
    for name, text in _PER_VARIANT.items()
    for suffix, variant in VARIANTS.items()
    if name != "fvu" or suffix in ("", "_all_tokens", "_token_split")
}

_FIRST_PASS = {
    "n_rows": Definition("rows", "Rows evaluated, after the token filter and the first position."),
    "n_train_rows": Definition("rows", "Rows of the contexts that probes are fitted on."),
    "n_test_rows": Definition("rows", "Rows of the held-out contexts."),
    "l0_mean": Definition("latents per row", "Mean number of positive codes over all rows."),
    **_VARIANT_METRICS,
    "normalised_error": Definition("1", "Mean over all rows of |x - Sae(x)|² / |x|²."),
    "shrinkage_gamma": Definition(
        "1",
        "Shrinkage: sum of <Sae(x) - b, x - b> over sum of |x - b|², b the decoder bias, over all "
        "rows. Below 1 reconstructions are too short, and part of the error is linear for that "
        "reason alone.",
    ),
    "fvu_rescaled": Definition("1", "FVU over all rows after Sae(x) - b is divided by gamma."),
    "norm_r_squared_token_loss": Definition(
        "1",
        "Held-out R² of the squared error norm regressed on the model's loss at predicting the "
        "next token, on the rows where it was measured.",
    ),
    "norm_r_squared_l0": Definition(
        "1", "Held-out R² of the squared error norm regressed on the row's L0."
    ),
    "norm_r_squared_activation_norm": Definition(
        "1", "Held-out R² of the squared error norm regressed on |x|."
    ),
    "norm_r_squared_token_identity": Definition(
        "1",
        "Held-out R² of predicting the squared error norm by its mean over training rows of the "
        "same token (of all training rows for a token not among them).",
    ),
    "norm_r_squared_token_identity_in_sample": Definition(
        "1",
        "The same with means over all rows, scored on the same rows, as published: each row "
        "contributes to its own mean, which flatters rare tokens.",
    ),
}

_SECOND_PASS = {
    "linear_norm_share": Definition(
        "1", "Mean |linear error| over mean |error| on held-out contexts."
    ),
    "nonlinear_norm_share": Definition(
        "1", "Mean |nonlinear error| over mean |error| on held-out contexts."
    ),
    "linear_norm_ratio_mean": Definition(
        "1", "Mean over held-out rows of |linear error| / |error|."
    ),
    "nonlinear_norm_ratio_mean": Definition(
        "1", "Mean over held-out rows of |nonlinear error| / |error|."
    ),
    "recovered_r_squared_linear": Definition(
        "1",
        "Share of the gap in R² between Sae(x) and x that adding the linear error closes, on "
        "held-out contexts; the same number as error_explained.",
    ),
    "recovered_r_squared_nonlinear": Definition(
        "1", "The same for adding the nonlinear error: 1 - sum |linear error|² / sum |error|²."
    ),
}

_NORM_TEST = {
    f"norm_test{kind}_{name}": Definition("1", text.format(vector=VECTOR_WORDS[name]))
    for kind, text in {
        "": "Held-out R² of the squared norm of {vector} regressed on x.",
        "_self": "Held-out R² of the squared norm of {vector} regressed on that vector itself.",
        "_gaussian": "Control: the R² on x that the squared norm of {vector} would have if all "
        "vectors were Gaussian with the same means and covariances (closed form, all rows).",
        "_norm_only": "Control: held-out R² of the squared norm of {vector} regressed on |x|² "
        "alone.",
    }.items()
    for name in VECTORS
}

_DIRECTIONS = {
    "directions_r_squared": Definition(
        "1",
        "Held-out R² of |Sae(x) - b|² regressed on Sae(x) - b, b the decoder bias.",
    ),
    "directions_independent_r_squared": Definition(
        "1",
        "Control: the same after each latent's codes are dealt out to random rows, so that which "
        "latents are active together is left to chance.",
    ),
    "directions_correlation_mean": Definition(
        "1",
        "Correlation over live latents of the probe's inner product with the unit decoder row and "
        "the mean code when active (times the row's norm).",
    ),
    "directions_correlation_cubic": Definition(
        "1",
        "The same with E[w³] / E[w²] of the latent's codes w, the optimum for sparse orthogonal "
        "features.",
    ),
}

DEFINITIONS: dict[str, Definition] = _FIRST_PASS | _SECOND_PASS | _NORM_TEST | _DIRECTIONS
"""Numbers of a dictionary under one encoder, in reading order."""

GROUPS = {
    "Error and its linear part": (*_FIRST_PASS, *_SECOND_PASS),
    "Norm-prediction test": tuple(_NORM_TEST),
    "Probe and latents": tuple(_DIRECTIONS),
}
"""Heading of the report -> the numbers under it."""


def define(name: str) -> Definition:
    """The definition of a number, of pursuit codes where its name says so.

    Raises:
        KeyError: no number has this name.
    """
    if name.startswith(PURSUIT):
        plain = DEFINITIONS[name.removeprefix(PURSUIT)]
        return Definition(plain.unit, PURSUIT_WORDS + plain.text)
    return DEFINITIONS[name]
