"""What the analyses share: what they need, what they return, and the names of the parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from saelab.dictionary.decomposition import ErrorProbe
from saelab.dictionary.error_rows import ErrorComponent
from saelab.formats.chart import Axis, Chart, Series, Value
from saelab.formats.evaluation_result import Table
from saelab.model.language_model import LanguageModel

from ..subjects import Subject
from .config import DarkMatterConfig
from .rows import Rows

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
    unit: str
    """Unit of the value; "1" for ratios."""
    text: str
    """How it is computed."""


@dataclass(frozen=True)
class Context:
    """What an analysis of one dictionary may need."""

    subject: Subject
    """The dictionary, its data spec, and where its results go."""
    model: LanguageModel | None
    """None where no analysis that was asked for runs it."""
    rows: Rows
    """What is evaluated."""
    config: DarkMatterConfig
    """Settings."""
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


def bars_of_parts(
    parts: Mapping[str, Sequence[float | None]],
    categories: Sequence[str],
    digits: int | None = None,
) -> tuple[Series, ...]:
    """A series of bars for each part of the error, over the same categories.

    Args:
        parts: values by part, one per category.
        categories: what the bars stand over.
        digits: decimals of the number on each bar; None: no number.
    """
    return tuple(
        Series(
            name=PART_LABELS[part],
            x=list(categories),
            y=list(values),
            mark="bars",
            style=PART_STYLES[part],
            text=None
            if digits is None
            else ["" if value is None else f"{value:.{digits}f}" for value in values],
        )
        for part, values in parts.items()
    )


def horizontal_bars(
    name: str,
    categories: Iterable[str],
    values: Sequence[float],
    *,
    digits: int | None = None,
    style: int | None = None,
) -> Series:
    """A series of bars to the right, one per category.

    Args:
        name: of the series.
        categories: what the bars stand at.
        values: one per category.
        digits: decimals of the number on each bar; None: no number.
        style: index of its colour; None: its index in the chart.
    """
    text = None if digits is None else [f"{value:.{digits}f}" for value in values]
    return Series(
        name=name,
        x=list(values),
        y=list(categories),
        mark="bars",
        axis="x",
        style=style,
        text=text,
    )


def width_axis() -> Axis:
    """The horizontal axis of charts over dictionaries of several widths."""
    return Axis(title="width: number of latents (log)", log=True)


def in_words(value: float | None, digits: int = 3, unit: str = "") -> str:
    """A number in a sentence."""
    return "undefined" if value is None else f"{value:.{digits}f}{unit}"


def rounded(values: Iterable[float]) -> list[Value]:
    """Values of a chart to five significant digits."""
    return [float(f"{value:.5g}") for value in values]
