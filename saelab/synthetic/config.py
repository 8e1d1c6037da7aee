"""Settings of a planted dictionary: which features there are and how rows are made of them.

A row is x = H V + dense part + noise, divided by its norm where asked for. V holds the features,
one unit vector per row, and H the coefficients, which are positive where a feature is active and
zero elsewhere. This module imports no torch, so that a command line can show its help at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

from saelab.config import Within, problems_in
from saelab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ExactSupportConfig:
    """A fixed number of features active in each row, every set of that size equally likely."""

    active: tuple[int, ...] = (3,)
    """Active features in a row; several numbers take turns row by row, in equal shares."""

    def problems(self, n_roots: int) -> list[str]:
        """What is wrong with it for this many features to choose from."""
        if not self.active:
            return ["support.active: none given; name at least one number of features"]
        return [
            f"support.active: {active} is not between 1 and the {n_roots} features to choose from"
            for active in self.active
            if not 1 <= active <= n_roots
        ]


@dataclass(frozen=True, kw_only=True)
class BernoulliSupportConfig:
    """Each feature active by itself, at frequencies that fall geometrically along the features."""

    highest: float = 0.1
    """Frequency of the first feature: the share of rows in which it is active."""
    lowest: float = 0.002
    """Frequency of the last feature."""

    def problems(self, n_roots: int) -> list[str]:
        """What is wrong with it; any number of features will do."""
        del n_roots
        if 0 < self.lowest <= self.highest <= 1:
            return []
        return [
            f"support: highest = {self.highest}, lowest = {self.lowest}; expected "
            "0 < lowest <= highest <= 1"
        ]


@dataclass(frozen=True, kw_only=True)
class HierarchyConfig:
    """Features that are active only where another one is: what latents can absorb.

    The last features are the children of the first: feature p has those at
    n_roots + p × children_per_parent and behind it. The support law draws the others (the roots).
    """

    n_parents: int = 0
    """Features with children: the first, which the Bernoulli law makes the most frequent."""
    children_per_parent: int = 2
    """Children of each parent."""
    child_probability: float = 0.2
    """Probability that a child is active where its parent is, each child by itself."""


@dataclass(frozen=True, kw_only=True)
class DensePartConfig:
    """A part of every row that is no feature: Gaussian in a random subspace."""

    rank: int = 0
    """Dimensions of the subspace; 0: there is no dense part."""
    scale: float = 1.0
    """Root mean square of the part's norm; a feature with coefficient 1 has norm 1."""


@dataclass(frozen=True, kw_only=True)
class PlantedConfig:
    """A planted dictionary and the pool of training rows made of it."""

    n_features: Annotated[int, Within(2)] = 64
    """True features, each a random direction."""
    d_in: Annotated[int, Within(2)] = 24
    """Width of a row; below n_features the features are in superposition."""
    support: ExactSupportConfig | BernoulliSupportConfig = field(
        default_factory=BernoulliSupportConfig
    )
    """Law of which features are active in a row."""
    coefficient_low: float = 0.5
    """Coefficients of active features are uniform from here …"""
    coefficient_high: float = 1.5
    """… to here; equal bounds make them constant."""
    partner_probability: Annotated[float, Within(0, 1)] = 0.0
    """Probability that an active feature switches on its partner, one fixed other feature. What was
    switched on switches on nothing further."""
    hierarchy: HierarchyConfig = field(default_factory=HierarchyConfig)
    """Features that are active only where their parent is."""
    dense: DensePartConfig = field(default_factory=DensePartConfig)
    """Part of every row that is no feature."""
    noise: Annotated[float, Within(0)] = 0.0
    """Root mean square norm of isotropic Gaussian noise, in the same unit: the norm of a feature
    with coefficient 1. Its standard deviation is noise / sqrt(d_in) in each dimension."""
    normalise_rows: bool = True
    """Divide each row by its norm. A row without any part stays zero."""
    n_rows: Annotated[int, Within(1)] = 100_000
    """Rows in the training pool."""
    seed: Annotated[int, Within(0)] = 0
    """Of the features and of every row."""

    def __post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise ConfigError(problems)

    def _problems(self) -> list[str]:
        problems = problems_in(self)
        if not 0 < self.coefficient_low <= self.coefficient_high < math.inf:
            problems.append(
                f"coefficients: low = {self.coefficient_low}, high = {self.coefficient_high}; "
                "expected 0 < low <= high"
            )
        if not 0 < self.hierarchy.child_probability <= 1:
            problems.append(
                f"hierarchy.child_probability: {self.hierarchy.child_probability} is not in (0, 1]"
            )
        if not 0 <= self.dense.scale < math.inf:
            problems.append(f"dense.scale: {self.dense.scale} is not a finite number of at least 0")
        if not 0 <= self.dense.rank <= self.d_in:
            problems.append(
                f"dense.rank: {self.dense.rank} is not between 0 and d_in = {self.d_in}"
            )
        return problems + self._problems_of_features()

    def _problems_of_features(self) -> list[str]:
        hierarchy = self.hierarchy
        if hierarchy.n_parents < 0 or hierarchy.children_per_parent < 1:
            return [
                f"hierarchy: {hierarchy.n_parents} parents of {hierarchy.children_per_parent} "
                "children each; expected at least 0 parents and at least 1 child"
            ]
        if self.n_roots < max(2, hierarchy.n_parents):
            return [
                f"hierarchy: {self.n_children} children leave {self.n_roots} of "
                f"{self.n_features} features as parents and others; expected at least "
                f"{max(2, hierarchy.n_parents)}"
            ]
        return self.support.problems(self.n_roots)

    @property
    def n_children(self) -> int:
        """Features that are active only where their parent is."""
        return self.hierarchy.n_parents * self.hierarchy.children_per_parent

    @property
    def n_roots(self) -> int:
        """Features that the support law draws: all but the children."""
        return self.n_features - self.n_children

    def parent_of(self, feature: int) -> int | None:
        """The parent of a feature; None for a root."""
        if feature < self.n_roots:
            return None
        return (feature - self.n_roots) // self.hierarchy.children_per_parent
