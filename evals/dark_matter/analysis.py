"""What the analyses share: what they need, what they return, and the names of the parts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from saelab.dictionary.decomposition import ErrorComponent, ErrorProbe
from saelab.formats.chart import Axis, Chart, Series
from saelab.formats.evaluation_result import Table
from saelab.model.language_model import LanguageModel

from ..subjects import Subject
from .rows import EvaluatedRows
from .suite import DarkMatterConfig

PART_LABELS = {"linear": "linear error", "nonlinear": "nonlinear error", "error": "whole error"}
COMPONENT_WORDS: dict[ErrorComponent, str] = {
    "error": "the error",
    "linear": "the linear error",
    "nonlinear": "the nonlinear error",
}
PART_STYLES = {"linear": 0, "nonlinear": 1, "error": 2}
VECTOR_LABELS = {
    "activation": "activation x",
    "reconstruction": "reconstruction",
    "error": "error",
    "linear_error": "linear error",
    "nonlinear_error": "nonlinear error",
    "reconstruction_plus_nonlinear": "reconstruction + nonlinear",
}
ERROR = (
    "error = activation - reconstruction; linear error = its least-squares prediction from the "
    "activation, fitted with a constant on the training contexts; nonlinear error = the rest."
)

Values = dict[str, float | int | None]
"""Numbers by name; None: undefined."""


class Finding(NamedTuple):
    """A number of an analysis, which is named by its key."""

    value: float | int | None
    text: str
    """How it is computed."""
    unit: str = "1"


@dataclass(frozen=True)
class AnalysisContext:
    """What an analysis of one dictionary may need."""

    subject: Subject
    """The dictionary, its data spec, and where its results go."""
    model: LanguageModel | None
    """None where no analysis that was asked for runs it."""
    rows: EvaluatedRows
    config: DarkMatterConfig
    probe: ErrorProbe
    """Fitted on the training contexts."""


@dataclass
class AnalysisResult:
    """What an analysis beside the two passes adds to a dictionary's result."""

    group: str
    """Heading of its numbers."""
    numbers: dict[str, Finding]
    """By name, in reading order."""
    charts: list[Chart] = field(default_factory=list)
    """In reading order."""
    tables: list[Table] = field(default_factory=list)
    """What has no chart of its own."""


def bars(
    name: str,
    categories: Iterable[str],
    values: Iterable[float | None],
    *,
    axis: Literal["x", "y"] = "y",
    digits: int | None = None,
    style: int | None = None,
) -> Series:
    """A bar per category, along an axis; with `digits`, each with its number."""
    names, numbers = list(categories), list(values)
    text = ["" if value is None else f"{value:.{digits or 0}f}" for value in numbers]
    x, y = (numbers, names) if axis == "x" else (names, numbers)
    text = None if digits is None else text
    return Series(name=name, x=[*x], y=[*y], mark="bars", axis=axis, style=style, text=text)


def bars_of_parts(
    parts: Mapping[str, Sequence[float | None]],
    categories: Sequence[str],
    digits: int | None = None,
) -> tuple[Series, ...]:
    """`bars` for each part of the error, over the same categories."""
    return tuple(
        bars(PART_LABELS[part], categories, values, digits=digits, style=PART_STYLES[part])
        for part, values in parts.items()
    )


WIDTH_AXIS = Axis(title="width: number of latents (log)", log=True)
"""The horizontal axis of charts over dictionaries of several widths."""


def in_words(value: float | None, digits: int = 3, unit: str = "") -> str:
    """A number in a sentence."""
    return "undefined" if value is None else f"{value:.{digits}f}{unit}"


def slug(name: str) -> str:
    """A name as part of a number's name."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name)
