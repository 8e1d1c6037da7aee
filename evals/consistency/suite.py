"""The suite "consistency": whether several seeds, or several methods, learn the same latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from saelab.config import Within
from saelab.formats.evaluation_result import EvaluationResult

from ..suite import HeldOutConfig, Suite, deferred

if TYPE_CHECKING:
    from saelab.dictionary import SavedDictionary


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig(HeldOutConfig):
    """What counts as the same latent, on which rows latents are ranked, and where results go.

    Dictionaries are grouped by method and its options, architecture, d_sae, target L0, hook point
    and model; those of a group should differ in their seed alone and are compared with one another.
    """

    across: bool = False
    """Also compare each group with the others: methods, widths or sparsities with one another.
    Groups of one dictionary are then allowed."""
    threshold: Annotated[float, Within(0, 1, low_open=True, high_open=True)] = 0.9
    """Cosine of two decoder rows above which they count as the same latent."""
    top_fraction: Annotated[float, Within(0, 1, low_open=True)] = 0.01
    """Fraction of the alive latents, the highest of a ranking, that the numbers of the "most
    active" latents are about; the curves show every fraction."""
    activity: bool = True
    """Measure on held-out rows which latents are alive and how they rank (max activation,
    Z-score, density). Without it all latents count, nothing is ranked and no model is run."""
    n_tokens: Annotated[int, Within(1)] = 65_536
    """Tokens of held-out text for that, rounded up to contexts (rows, for planted features)."""
    seed: int = 0
    """Decides the random directions that the floor is measured with."""


def finish(results: Sequence[EvaluationResult], config: ConsistencyConfig) -> None:
    """Print what the columns mean, which run is which, and the matrix between groups."""
    from rich.console import Console

    console = Console()
    for result in results:
        console.print(
            f"{result.dictionary_name}: {result.settings['run']} of {result.settings['group']}",
            highlight=False,
        )
    console.print(
        f"above: share with MCS > {config.threshold:g}; top: the same among the top "
        f"{config.top_fraction:g} by max activation and Z-score; 1:1: cosine with the one-to-one "
        "partner; random: MCS of random directions",
        highlight=False,
    )
    for chart in results[0].charts:
        if chart.name == "across":
            console.print("mean MCS of the row's latents in the column's dictionaries")
            [matrix] = chart.series
            for label, cells in zip(matrix.y, matrix.z or [], strict=True):
                values = ["  -  " if value is None else f"{value:.3f}" for value in cells]
                console.print(f"{' '.join(values)}  {label}", highlight=False)


def _groups(
    dictionaries: Sequence[SavedDictionary], config: ConsistencyConfig
) -> list[Sequence[int]]:
    if config.across:
        return [range(len(dictionaries))]
    from .groups import form_groups

    return [group.members for group in form_groups(dictionaries, across=False)]


SUITE = Suite(
    name="consistency",
    summary="Compare the latents of several seeds, or of several methods, with one another.",
    Config=ConsistencyConfig,
    measure=deferred(".consistency.measure", "measure_consistency"),
    definitions=deferred(".consistency.scores", "consistency_definitions"),
    shown={
        "mcs_mean": "MCS",
        "mcs_share": "above",
        "mcs_share_top_max_activation": "top act.",
        "mcs_share_top_z_score": "top Z",
        "one_to_one_mean": "1:1",
        "one_to_one_share": "1:1 above",
        "mcs_random": "random",
    },
    groups=_groups,
    finish=finish,
)
run_consistency = SUITE.run
"""Compare dictionaries: (folders, config) -> results in the order of the folders."""
