"""Designs: the values of a task's attributes as numbered columns of a 0/1 matrix.

A design has one column per attribute value, and every prompt is in exactly one column of each
attribute. The matrix itself never exists: a prompt is a row of column numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.errors import ConfigError

from .tasks.interface import Labels, Parametrisation, Prompt, Task


@dataclass(frozen=True)
class Design:
    """Attributes and their values, numbered through.

    Attributes:
        attributes: design attribute -> its values, in the order of the columns.
        nested: attribute -> the coarser attribute that it determines.
        parametrisation: how to read a prompt's labels; None where labels name the design's
            attributes themselves.
    """

    attributes: Mapping[str, tuple[str, ...]]
    nested: Mapping[str, str]
    parametrisation: Parametrisation | None = None

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Attribute -> number of its first column."""
        offsets, total = {}, 0
        for name, values in self.attributes.items():
            offsets[name] = total
            total += len(values)
        return offsets

    @property
    def n_features(self) -> int:
        """Columns in all."""
        return sum(len(values) for values in self.attributes.values())

    @property
    def feature_names(self) -> list[str]:
        """Every column as "attribute=value"."""
        return [f"{name}={value}" for name, values in self.attributes.items() for value in values]

    @cached_property
    def _numbers(self) -> dict[str, dict[str, int]]:
        return {
            name: {value: self.offsets[name] + place for place, value in enumerate(values)}
            for name, values in self.attributes.items()
        }

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

    def column(self, attribute: str, value: str) -> int:
        """The column of a value.

        Raises:
            ConfigError: there is no such attribute or value.
        """
        self.columns(attribute)
        if value not in self._numbers[attribute]:
            raise ConfigError(f"attribute {attribute!r} has no value {value!r} in this design")
        return self._numbers[attribute][value]

    def index(self, labels: Sequence[Labels]) -> Int[Tensor, "prompts attributes"]:
        """The column of each attribute's value for each prompt; −1: none of the design's."""
        rows = []
        for row in labels:
            read = self.parametrisation
            values = row if read is None else {name: value(row) for name, value in read.items()}
            rows.append([self._numbers[name].get(values[name], -1) for name in self.attributes])
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), len(self.attributes))


def design_of(
    task: Task, parametrisation: str = "independent", prompts: Sequence[Prompt] = ()
) -> Design:
    """The design of a task.

    Args:
        task: the task.
        parametrisation: one of the task's.
        prompts: where an attribute of the parametrisation is none of the task's, its values are
            those that occur in these prompts, in alphabetical order.

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
