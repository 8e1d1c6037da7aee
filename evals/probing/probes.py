"""Linear probes on all features or on the k that tell two classes apart best; float64, on the CPU.

A probe is logistic regression with an L2 penalty. The k features are those with the largest
|mean(positive) − mean(negative)| on the training examples (Kantamneni et al., 2025, arXiv
2502.16681; SAEBench). A full probe on d features and n < d examples is fitted in the n dimensions
that the training examples span, where its weights lie in any case: the same probe, much faster.
Nothing here is chosen by looking at the test examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

FOLDS = 3
FULL = "all"
"""In place of k: a probe on all features."""
Features = Float[np.ndarray, "examples features"]
Answers = Bool[np.ndarray, " examples"]


@dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """What a probe comes to."""

    auc: float
    """Area under the ROC curve on the test examples."""
    accuracy: float
    """Mean of its accuracies on positive and on negative test examples."""
    validation_auc: float
    """Mean AUC over folds of the training examples; NaN where it was not asked for."""


@dataclass(frozen=True, kw_only=True)
class ProbeQuestion:
    """Examples for training and for the test, with their answers."""

    train: Int[np.ndarray, " train"]
    """Indices."""
    answers: Bool[np.ndarray, " train"]
    """What training is told of them, which noise may have changed."""
    test: Int[np.ndarray, " test"]
    """Indices."""
    truth: Bool[np.ndarray, " test"]
    """The answers of the test examples."""

    def folds(self) -> Iterator[ProbeQuestion]:
        """Questions within the training examples, of which a part is the test in turn."""
        fold = np.empty(len(self.train), np.int64)
        for answer in (False, True):
            members = np.flatnonzero(self.answers == answer)
            fold[members] = np.arange(len(members)) % FOLDS
        for index in range(FOLDS):
            inside, outside = fold != index, fold == index
            if len({*self.answers[outside].tolist()}) < 2 or len({*self.answers[inside]}) < 2:
                continue
            yield ProbeQuestion(
                train=self.train[inside],
                answers=self.answers[inside],
                test=self.train[outside],
                truth=self.answers[outside],
            )

    def shuffled(self, generator: np.random.Generator) -> ProbeQuestion:
        """The same with the answers of training in random order: the control."""
        return ProbeQuestion(
            train=self.train,
            answers=generator.permutation(self.answers),
            test=self.test,
            truth=self.truth,
        )


def auc(scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """Probability that a positive example has a higher score than a negative one, ties half.

    Example:
        >>> auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
        0.75
    """
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    ranks = rankdata(scores)[positive].sum()
    return float((ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def balanced_accuracy(scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """Mean of the shares of positive examples above zero and of negative ones not above it."""
    return float(((scores[positive] > 0).mean() + (scores[~positive] <= 0).mean()) / 2)


def strongest_features(
    features: Float[np.ndarray, "n features"], positive: Bool[np.ndarray, " n"], k: int
) -> Int[np.ndarray, " k"]:
    """The k features whose means differ most between the classes, the largest first; of equal ones
    the first."""
    return np.argsort(-mean_difference(features, positive), kind="stable")[:k]


def mean_difference(
    features: Float[np.ndarray, "n features"], positive: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " features"]:
    """|mean over positive examples − mean over negative ones| of each feature."""
    # Two products in place of two copies of half the rows each.
    weights = positive / positive.sum() - ~positive / (~positive).sum()
    return np.abs(weights @ features)


def score_probes(
    features: Features,
    question: ProbeQuestion,
    ks: Sequence[int],
    *,
    full: bool,
    validate: bool,
    standardise: bool,
    inverse_penalty: float,
) -> dict[str, ProbeScore]:
    """Score a probe for each k, and one on all features.

    Args:
        features: of every example.
        question: which to train on and which to test.
        ks: numbers of features.
        full: whether to train one on all.
        validate: whether to say what they come to on folds of the training examples.
        standardise: whether the full probe sees every feature with standard deviation one. Those of
            k features always do.
        inverse_penalty: C of the full probe, whose training rows have a mean squared norm of one.
            It is 1 for probes on k features.

    Returns:
        Score by k in words, or `FULL`.
    """

    def scores_of(asked: ProbeQuestion) -> dict[str, Float[np.ndarray, " test"]]:
        order = strongest_features(features[asked.train], asked.answers, max(ks, default=0))
        scores = {str(k): _score_selected(features[:, order[:k]], asked) for k in ks}
        if full:
            scores[FULL] = _score_full(features, asked, standardise, inverse_penalty)
        return scores

    tested = scores_of(question)
    within: dict[str, list[float]] = {name: [] for name in tested}
    for fold in question.folds() if validate else ():
        for name, scores in scores_of(fold).items():
            within[name].append(auc(scores, fold.truth))
    return {
        name: ProbeScore(
            auc=auc(scores, question.truth),
            accuracy=balanced_accuracy(scores, question.truth),
            validation_auc=float(np.mean(within[name])) if within[name] else float("nan"),
        )
        for name, scores in tested.items()
    }


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """Log odds of an example: features times weights, plus an offset."""

    weight: Float[np.ndarray, " features"]
    """In units of the features as they were given."""
    offset: float

    def scores(self, features: Features) -> Float[np.ndarray, " examples"]:
        """Log odds; above zero means positive."""
        return features @ self.weight + self.offset


def fit_all(
    train: Features,
    answers: Answers,
    *,
    standardise: bool,
    inverse_penalty: float,
) -> LinearProbe:
    """Fit a probe on all features, classes weighted to equal shares.

    Args:
        train: features of the training examples.
        answers: of them.
        standardise: whether every feature has standard deviation one.
        inverse_penalty: C, where the training rows have a mean squared norm of one.
    """
    mean = train.mean(0)
    scale = _one_over(train.std(0)) if standardise else np.ones(train.shape[1])
    train = (train - mean) * scale
    size = np.sqrt((train**2).sum(1).mean())
    if size == 0:
        return LinearProbe(weight=np.zeros(len(mean)), offset=0.0)
    eigenvalues, vectors = np.linalg.eigh(train @ train.T / size**2)
    kept = eigenvalues > eigenvalues[-1] * 1e-10
    length, vectors = np.sqrt(eigenvalues[kept]), vectors[:, kept]
    rotated = _fit(vectors * length, answers, inverse_penalty)
    weight = train.T @ (vectors @ (rotated.weight / length)) / size**2 * scale
    return LinearProbe(weight=weight, offset=rotated.offset - float(mean @ weight))


def _score_selected(features: Features, question: ProbeQuestion) -> Float[np.ndarray, " test"]:
    train, test = features[question.train], features[question.test]
    mean, scale = train.mean(0), _one_over(train.std(0))
    return _fit((train - mean) * scale, question.answers, 1.0).scores((test - mean) * scale)


def _score_full(
    features: Features, question: ProbeQuestion, standardise: bool, inverse_penalty: float
) -> Float[np.ndarray, " test"]:
    probe = fit_all(
        features[question.train],
        question.answers,
        standardise=standardise,
        inverse_penalty=inverse_penalty,
    )
    return probe.scores(features[question.test])


def _one_over(spread: Float[np.ndarray, " features"]) -> Float[np.ndarray, " features"]:
    return np.divide(1, spread, out=np.zeros_like(spread), where=spread > 0)


def _fit(train: Features, answers: Answers, inverse_penalty: float) -> LinearProbe:
    if not train.any():
        return LinearProbe(weight=np.zeros(train.shape[1]), offset=0.0)
    probe = LogisticRegression(
        C=inverse_penalty, solver="newton-cholesky", class_weight="balanced", max_iter=200
    ).fit(train, answers)
    return LinearProbe(weight=probe.coef_[0], offset=float(probe.intercept_[0]))
