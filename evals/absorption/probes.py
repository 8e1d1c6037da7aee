"""Logistic probes: of activations for every letter at once, and of a few latents for one letter."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.optimize import minimize
from scipy.special import expit

Array = np.ndarray
MOST_STEPS = 500


def f1_score(
    score: Float[Array, "n *more"], truth: Bool[Array, "n *more"]
) -> Float[Array, "*more"]:
    """2 · hits / (predicted + true) of score > 0; 0 where nothing is predicted or true.

    Example:
        >>> float(f1_score(np.array([1.0, 1.0, -1.0]), np.array([True, False, False])))
        0.6666666666666666
    """
    predicted = score > 0
    hits = (predicted & truth).sum(0)
    return np.asarray(2 * hits / np.maximum(1, predicted.sum(0) + truth.sum(0)))


def fit_probes(
    x: Float[Array, "n d"], truth: Bool[Array, "n letters"], l2: float
) -> tuple[Float[Array, "d letters"], Float[Array, " letters"]]:
    """One-vs-rest logistic probes of every letter, both sides of each with the same weight.

    For each letter: mean over rows of weight · log(1 + exp(−±score)) + l2/2 ‖w‖², of rows less
    their mean and divided by one number, which makes the mean variance of their entries 1. (With a
    number for each entry, probes would lean on entries that hardly vary.) The weights returned are
    for `x` as it is.

    Args:
        x: float64.
        truth: whether each row is of each letter; each has at least a row of both kinds.

    Returns:
        Weights and biases: score = x @ weights + biases.
    """
    mean = x.mean(0)
    scale = x.var(0).mean() ** 0.5 or 1.0
    z = (x - mean) / scale
    (n, d), letters = z.shape, truth.shape[1]
    positive = truth.sum(0)
    weight = np.where(truth, 1 / (2 * positive), 1 / (2 * (n - positive)))
    sign = np.where(truth, 1.0, -1.0)

    def loss(parameters: Float[Array, " size"]) -> tuple[float, Float[Array, " size"]]:
        w = parameters.reshape(d + 1, letters)
        margin = sign * (z @ w[:-1] + w[-1])
        value = (weight * np.logaddexp(0, -margin)).sum() + l2 / 2 * (w[:-1] ** 2).sum()
        slope = -weight * sign * expit(-margin)
        return value, np.vstack([z.T @ slope + l2 * w[:-1], slope.sum(0)]).ravel()

    start = np.zeros((d + 1) * letters)
    options = {"maxiter": MOST_STEPS, "maxcor": 20}
    solved = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    w = solved.x.reshape(d + 1, letters)
    weights = w[:-1] / scale
    return weights, w[-1] - mean @ weights


def rank_latents(codes: Any, truth: Bool[Array, " n"], l1: float, most: int) -> Int[Array, " k"]:
    """The latents with the largest positive weights in a probe with an L1 penalty, falling.

    The objective is SAEBench's at its optimum: mean over rows of pos_weight · cross-entropy plus
    l1 · ‖w‖₁, pos_weight = negatives / positives.

    Args:
        codes: [n d_sae], a scipy CSR matrix in activation units.
        truth: whether each row is of the letter.
        l1: weight of the penalty.
        most: latents at most; fewer where fewer have a positive weight.
    """
    n, negatives = len(truth), int((~truth).sum())
    probe = _logistic(
        l1_ratio=1.0,
        solver="liblinear",
        # Balanced classes weigh n / 2·negatives as much as pos_weight does.
        C=2 * negatives / (n * n * l1),
        # The solver would hold back the intercept as it does the weights.
        intercept_scaling=10.0,
        tol=1e-3,
        random_state=0,
    )
    weight = _fitted(probe, codes, truth).coef_[0]
    order = np.argsort(-weight, kind="stable")[:most]
    return order[weight[order] > 0]


def sparse_f1(
    train: Any,
    train_truth: Bool[Array, " n"],
    test: Any,
    test_truth: Bool[Array, " m"],
    latents: Int[Array, " k"],
) -> Float[Array, " k"]:
    """F1 on tested rows of probes of the first 1, 2, … k latents, balanced, sklearn's default C."""
    scores = np.zeros(len(latents))
    for index in range(len(latents)):
        columns = latents[: index + 1]
        probe = _fitted(_logistic(max_iter=500), train[:, columns].toarray(), train_truth)
        score = probe.decision_function(test[:, columns].toarray())
        scores[index] = f1_score(score, test_truth)
    return scores


def main_latents(
    latents: Int[Array, " k"], f1: Float[Array, " k"], split_gain: float
) -> Int[Array, " mains"]:
    """The first latent, and each next one while it raises F1 by more than `split_gain`."""
    count = min(1, len(latents))
    while 0 < count < len(latents) and f1[count] > f1[count - 1] + split_gain:
        count += 1
    return latents[:count]


def _logistic(**settings: Any) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(class_weight="balanced", **settings)


def _fitted(probe: Any, x: Shaped[Any, "n d"], truth: Bool[Array, " n"]) -> Any:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # A ranking is as good some steps before the optimum.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return probe.fit(x, truth)
