"""Dictionaries that labels give: one feature per attribute value, the skyline of the suite.

An activation is modelled as x̂ = x̄ + Σ_i u_{i, a_i(p)}: the mean over the fitting prompts plus one
feature for the value a_i of each attribute i, all with coefficient 1.

* mean: u_{i,v} is the mean activation of the prompts with a_i = v, minus x̄;
* mse: the least-squares features, from normal equations. Their design has fewer independent columns
  than columns, so the solution of smallest norm is taken and the gauge fixed afterwards: within
  each attribute the features, weighted by how often their values occur, sum to zero, which makes
  the bias x̄. Of nested attributes (a name determines a gender) the coarser gets the mean of the
  finer's features.

Sums are float64. Values without a prompt have a zero feature and a count of 0.
Source: Makelov, Lange & Nanda, arXiv 2405.08366, section 3.1, A.5 and A.6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ActivationError, ConfigError

from .sites import PromptSite
from .tasks import Labels, Parametrisation, Prompt, Task


@dataclass(frozen=True)
class Design:
    """Attributes and their values, each with a column."""

    attributes: Mapping[str, tuple[str, ...]]
    """Design attribute -> its values, in the order of the columns."""
    nested: Mapping[str, str]
    """Attribute -> the coarser attribute that it determines."""
    parametrisation: Parametrisation | None = None
    """How to read a prompt's labels; None where labels name the design's attributes themselves."""

    @cached_property
    def _columns(self) -> dict[str, dict[str, int]]:
        number = count()
        return {
            name: {value: next(number) for value in values}
            for name, values in self.attributes.items()
        }

    @property
    def offsets(self) -> dict[str, int]:
        """Attribute -> its first column."""
        return {name: min(columns.values()) for name, columns in self._columns.items()}

    @property
    def n_features(self) -> int:
        """Columns in all."""
        return sum(map(len, self.attributes.values()))

    @property
    def feature_names(self) -> list[str]:
        """Every column as "attribute=value"."""
        return [f"{name}={value}" for name, values in self.attributes.items() for value in values]

    def columns(self, attribute: str) -> slice:
        """The columns of an attribute.

        Raises:
            ConfigError: the design has no such attribute.
        """
        if attribute not in self.attributes:
            raise ConfigError(
                f"the design has no attribute {attribute!r}: choose among "
                f"{', '.join(self.attributes)}"
            )
        start = self.offsets[attribute]
        return slice(start, start + len(self.attributes[attribute]))

    def index(self, labels: Sequence[Labels]) -> Int[Tensor, "prompts attributes"]:
        """The column of each attribute's value for each prompt; −1: none of the design's."""
        rows = []
        for row in labels:
            read = self.parametrisation
            values = row if read is None else {name: value(row) for name, value in read.items()}
            rows.append([column.get(values[name], -1) for name, column in self._columns.items()])
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), len(self.attributes))


def design_of(
    task: Task, parametrisation: str = "independent", prompts: Sequence[Prompt] = ()
) -> Design:
    """The design of a task.

    Where an attribute of the parametrisation is none of the task's, its values are those that
    occur in the prompts, in alphabetical order.

    Raises:
        ConfigError: no such parametrisation, or no prompts to read the values from.
    """
    read = task.parametrisation(parametrisation)
    attributes = {}
    for name, value in read.items():
        if name in task.attributes:
            attributes[name] = task.attributes[name]
            continue
        if not prompts:
            raise ConfigError(
                f"parametrisation {parametrisation!r} of task {task.name} takes its values from "
                "prompts: give those that the dictionary is fitted to"
            )
        attributes[name] = tuple(sorted({value(prompt.labels) for prompt in prompts}))
    nested = {fine: coarse for fine, coarse in task.nested.items() if {fine, coarse} <= set(read)}
    return Design(attributes, nested, read)


Kind = Literal["mean", "mse"]
RANK_TOLERANCE = 1e-9
"""Eigenvalues of the normal equations below this share of the largest count as zero."""


@dataclass(frozen=True, eq=False)
class SupervisedDictionary:
    """Features of attribute values at one site; codes are 0 or 1 and come from labels."""

    kind: str
    """`mean` or `mse`, or the name of a baseline."""
    design: Design
    """What the features are of."""
    W_dec: Float[Tensor, "features d_in"]
    """The features, float32."""
    bias: Float[Tensor, " d_in"]
    """The mean activation of the fitting prompts."""
    counts: Int[Tensor, " features"]
    """Fitting prompts with each value; 0: never seen, and the feature is zero."""

    def codes(self, labels: Sequence[Labels]) -> Float[Tensor, "prompts features"]:
        """1 in the column of each attribute's value, 0 elsewhere."""
        index = self.design.index(labels)
        codes = torch.zeros(len(index), self.design.n_features + 1)
        # Values that the design does not have are written to a column that is cut off.
        codes.scatter_(1, torch.where(index < 0, self.design.n_features, index), 1.0)
        return codes[:, :-1]

    def reconstruct(self, labels: Sequence[Labels]) -> Float[Tensor, "prompts d_in"]:
        """x̂ of prompts with these labels."""
        return self.bias + self.explained(labels)

    def explained(self, labels: Sequence[Labels]) -> Float[Tensor, "prompts d_in"]:
        """The sum of the active features, without the bias."""
        index = self.design.index(labels)
        # −1 selects the row of zeros.
        return torch.cat([self.W_dec, torch.zeros_like(self.W_dec[:1])])[index].sum(1)

    def edit(
        self,
        x: Float[Tensor, "prompts d_in"],
        before: Sequence[Labels],
        after: Sequence[Labels],
    ) -> Float[Tensor, "prompts d_in"]:
        """Activations with the features of old labels taken out and those of new ones put in.

        Features that both have cancel, so with independent attributes one feature goes and one
        comes per edited attribute; what the dictionary does not explain stays.
        """
        return x - self.explained(before) + self.explained(after)


def random_decoder(dictionary: SupervisedDictionary, seed: int) -> SupervisedDictionary:
    """The same labels, bias and feature norms with random directions for features."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(dictionary.W_dec.shape, generator=generator)
    norms = dictionary.W_dec.norm(dim=1, keepdim=True)
    rows = directions / directions.norm(dim=1, keepdim=True) * norms
    return replace(dictionary, kind="random decoder", W_dec=rows)


class DesignSums:
    """What mean and least-squares features need of labels and activations, in float64.

    Args:
        index: those of each fitting prompt.

    Raises:
        ConfigError: a label that the design does not have.
    """

    def __init__(self, design: Design, index: Int[Tensor, "prompts attributes"]):
        if bool((index < 0).any()):
            name = list(design.attributes)[int((index < 0).any(0).nonzero()[0])]
            raise ConfigError(
                f"a fitting prompt has a value of attribute {name!r} that the design does not "
                "have: list every value in the task"
            )
        self.design, self._index, size = design, index, design.n_features
        pairs = (index[:, :, None] * size + index[:, None, :]).flatten()
        self.together = torch.bincount(pairs, minlength=size * size).reshape(size, size).double()
        """How many prompts have both values."""
        self.counts = self.together.diagonal().long()
        """Prompts with each value."""

    def mean_dictionary(self, x: Float[Tensor, "prompts d_in"]) -> SupervisedDictionary:
        """Per-value means of the prompts' activations minus the mean of all."""
        sums, mean = self._sums(x)
        features = sums / self.counts.clamp_min(1)[:, None].double() - mean
        return self._dictionary("mean", features * (self.counts > 0)[:, None], mean)

    def mse_dictionary(self, x: Float[Tensor, "prompts d_in"]) -> SupervisedDictionary:
        """Least-squares features of smallest norm, with the gauge fixed."""
        sums, mean = self._sums(x)
        features = self._pseudo_inverse @ (sums - self.together.diagonal()[:, None] * mean)
        features, shift = fixed_gauge(self.design, features, self.together)
        # Least squares leaves no mean error, so the shifts of the gauge sum to nothing.
        return self._dictionary("mse", features, mean + shift)

    def _sums(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of the activations by value, and the mean of all."""
        rows = x.double().cpu()
        sums = torch.zeros(self.design.n_features, rows.shape[1], dtype=torch.float64)
        for column in self._index.T:
            sums.index_add_(0, column, rows)
        return sums, rows.mean(0)

    @cached_property
    def _pseudo_inverse(self) -> Float[Tensor, "features features"]:
        """Of the normal equations' matrix, by its eigenvalues that are not zero."""
        values, vectors = torch.linalg.eigh(self.together)
        kept = values > RANK_TOLERANCE * values[-1]
        return (vectors[:, kept] / values[kept]) @ vectors[:, kept].T

    def _dictionary(self, kind: Kind, features: Tensor, bias: Tensor) -> SupervisedDictionary:
        return SupervisedDictionary(kind, self.design, features.float(), bias.float(), self.counts)


def fixed_gauge(
    design: Design,
    features: Float[Tensor, "features d_in"],
    together: Float[Tensor, "features features"],
) -> tuple[Float[Tensor, "features d_in"], Float[Tensor, " d_in"]]:
    """Features of the same reconstructions whose means, by frequency, are zero per attribute.

    Args:
        features: any least-squares features.
        together: how many prompts have both values.

    Returns:
        (features, what is to be added to the bias).
    """
    features = features.clone()
    weights = together.diagonal().to(features.dtype)
    for fine, coarse in design.nested.items():
        _lift(features, together, design.columns(fine), design.columns(coarse))
    shift = features.new_zeros(features.shape[1])
    for name in design.attributes:
        part = design.columns(name)
        mean = (weights[part] / weights[part].sum().clamp_min(1)) @ features[part]
        features[part] -= mean
        shift += mean
    return features * (weights > 0)[:, None], shift


def _lift(features: Tensor, together: Tensor, fine: slice, coarse: slice) -> None:
    """Give each value of a coarse attribute the mean feature of the finer values within it."""
    weights = together.diagonal()[fine]
    coarse_of = together[fine, coarse].argmax(1)
    size = coarse.stop - coarse.start
    totals = torch.zeros(size, dtype=weights.dtype).index_add_(0, coarse_of, weights)
    sums = features.new_zeros(size, features.shape[1])
    sums.index_add_(0, coarse_of, features[fine] * weights[:, None])
    means = sums / totals.clamp_min(1)[:, None]
    features[coarse] += means
    features[fine] -= means[coarse_of]


def fit_supervised(
    task: Task,
    prompts: Sequence[Prompt],
    activations: Mapping[PromptSite, Float[Tensor, "prompts _"]],
    *,
    kind: Kind = "mse",
    parametrisation: str = "independent",
) -> dict[PromptSite, SupervisedDictionary]:
    """Fit a supervised dictionary at each site.

    With the kind "mean", what correlated attributes share is counted twice.

    Raises:
        ConfigError: no such parametrisation.
        ActivationError: activations that are not finite.
    """
    design = design_of(task, parametrisation, prompts)
    for site, x in activations.items():
        if not bool(x.isfinite().all()):
            raise ActivationError(f"activations at {site} are not finite: run the model in float32")
    sums = DesignSums(design, design.index([prompt.labels for prompt in prompts]))
    solve = sums.mse_dictionary if kind == "mse" else sums.mean_dictionary
    return {site: solve(x) for site, x in activations.items()}
