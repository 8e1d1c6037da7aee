"""The numbers of each dictionary, gathered from its results, with their definitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from saelab.errors import ArtifactError
from saelab.formats.evaluation_result import EvaluationResult, MeasuredMetric

from ..steering.definitions import metric_name
from .candidates import Candidate
from .config import CompareConfig
from .definitions import CONSISTENCY, CORE, OWN, STEERING, Column
from .latent_use import latent_use, read_density
from .reuse import RESULTS_FOLDER

Results = Mapping[str, Mapping[str, EvaluationResult]]
"""Suite -> dictionary hash -> result."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A dictionary with everything that was measured of it."""

    candidate: Candidate
    values: dict[str, float | None]
    """By column; None where undefined or not measured."""
    density: Float[Tensor, " d_sae"]
    """Fraction of the evaluated rows on which each latent is active."""
    results: dict[str, EvaluationResult]
    """By suite."""


def measured(
    candidates: Sequence[Candidate], results: Results, config: CompareConfig
) -> list[Measured]:
    """Put each dictionary together with its numbers, in the order given.

    Raises:
        ArtifactError: a result lacks a number, or its table of latents is damaged.
    """
    found = []
    for one in candidates:
        own = {
            suite: by_hash[one.content_hash]
            for suite, by_hash in results.items()
            if one.content_hash in by_hash
        }
        folder = one.folder / RESULTS_FOLDER
        features = own["core"].item_files.get("features")
        if features is None:
            raise ArtifactError(
                f"the core result of {one.folder} names no table of latents: evaluate again with "
                "--overwrite"
            )
        density = read_density(folder / features, one.d_sae)
        found.append(Measured(one, _values(one, own, density, config), density, own))
    return found


def _values(
    one: Candidate,
    results: Mapping[str, EvaluationResult],
    density: Float[Tensor, " d_sae"],
    config: CompareConfig,
) -> dict[str, float | None]:
    core = results["core"]
    values: dict[str, float | None] = {name: number(core.value(name)) for name in CORE}
    l0 = values["l0_mean"]
    if l0 is None:
        raise ArtifactError(f"the core result of {one.folder} leaves L0 undefined: it was edited")
    values |= latent_use(density, l0)
    consistency, steering = results.get("consistency"), results.get("steering")
    for name in CONSISTENCY:
        values[name] = None if consistency is None else number(consistency.value(name))
    for name, (_, quantity, what) in STEERING.items():
        key = metric_name(quantity, what, config.steering_strength)
        values[name] = None if steering is None else number(steering.value(key))
    values["train_seconds"] = one.train_seconds
    values["state_mib"] = None if one.state_bytes is None else one.state_bytes / 2**20
    return values


def number(value: float | int | None) -> float | None:
    """A metric's value as a float: JSON does not tell 4.0 from 4."""
    return None if value is None else float(value)


def columns_of(found: Sequence[Measured], config: CompareConfig) -> dict[str, Column]:
    """Heading, unit and definition of every column that some dictionary has a number for.

    Definitions of the suites' metrics are those of the first dictionary that has the result: the
    settings are the same for all.
    """
    columns: dict[str, Column] = {}
    for name, heading in CORE.items():
        columns[name] = _column(heading, _metric(found, "core", name))
    for name, column in OWN.items():
        columns[name] = column
    for name, heading in CONSISTENCY.items():
        columns[name] = _column(heading, _metric(found, "consistency", name))
    for name, (heading, quantity, what) in STEERING.items():
        key = metric_name(quantity, what, config.steering_strength)
        columns[name] = _column(heading, _metric(found, "steering", key))
    return {
        name: column
        for name, column in columns.items()
        if any(one.values[name] is not None for one in found)
    }


def _metric(found: Sequence[Measured], suite: str, name: str) -> MeasuredMetric | None:
    for one in found:
        for metric in one.results[suite].metrics if suite in one.results else ():
            if metric.name == name:
                return metric
    return None


def _column(heading: str, metric: MeasuredMetric | None) -> Column:
    if metric is None:
        return Column(heading, "1", "Not measured.")
    return Column(heading, metric.unit, metric.definition)
