"""Which suite's figures are drawn by which function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from saelab.errors import ArtifactError
from saelab.formats.evaluation_result import EvaluationResult

from .draw import draw
from .figure import Figure

FIGURES: dict[str, dict[str, Callable[[dict[str, Any]], Figure]]] = {}


def figures_of(result: EvaluationResult) -> list[Figure]:
    """Draw the figures of an evaluation result from the data in it; none for an unknown suite.

    Raises:
        ArtifactError: the data of a figure is not what its suite writes.
    """
    figures = [draw(chart) for chart in result.charts]
    for name, draw_legacy in FIGURES.get(result.suite, {}).items():
        if name not in result.figure_data:
            continue
        try:
            figures.append(draw_legacy(result.figure_data[name]))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ArtifactError(
                f"figure {name!r} of the {result.suite} result of {result.dictionary_name} cannot "
                "be "
                f"drawn from its data ({error!r}): the file was edited; evaluate again with "
                "--overwrite"
            ) from error
    return figures
