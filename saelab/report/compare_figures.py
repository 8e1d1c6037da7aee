"""Every figure of a comparison of training methods, drawn from the data in its file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from saelab.errors import ArtifactError

from .compare_l0_figures import costs, dead_and_underused, differences, pareto
from .compare_latent_figures import consistency_curves, density_by_rank, steering_distribution
from .figure import Figure

COMPARE_FIGURES: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "pareto": pareto,
    "differences": differences,
    "dead_and_underused": dead_and_underused,
    "density_by_rank": density_by_rank,
    "consistency": consistency_curves,
    "steering": steering_distribution,
    "costs": costs,
}
"""By the name in a comparison's figure data, in reading order; each entry there is one figure."""


def comparison_figures(figure_data: dict[str, list[dict[str, Any]]], origin: str) -> list[Figure]:
    """Draw the figures of a comparison from the data in its file.

    Args:
        figure_data: by figure name, the data of each figure of that kind.
        origin: where the data is from, for the error.

    Raises:
        ArtifactError: the data of a figure is not what a comparison writes.
    """
    figures = []
    for name, draw in COMPARE_FIGURES.items():
        try:
            figures += [draw(data) for data in figure_data.get(name, [])]
        except (KeyError, TypeError, ValueError, IndexError, ArithmeticError) as error:
            raise ArtifactError(
                f"figure {name!r} of {origin} cannot be drawn from its data ({error!r}): the "
                "file was edited; compare again"
            ) from error
    return figures
