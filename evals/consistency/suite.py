"""The suite "consistency": whether several seeds, or several methods, find the same latents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from saelab.formats.evaluation_result import EvaluationResult

from ..suite import Measurement, Suite, evaluate
from .charts import consistency_charts, consistency_tables
from .config import ConsistencyConfig
from .definitions import consistency_definitions

RESULT_FILE = "consistency.json"


def measure(
    folders: Sequence[Path], outs: Sequence[Path], config: ConsistencyConfig
) -> Iterator[Measurement]:
    """Compare dictionaries; see `measure_consistency`."""
    from .measure import measure_consistency

    return measure_consistency(folders, outs, config)


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


SUITE = Suite(
    name="consistency",
    summary="Compare the latents of several seeds, or of several methods, with one another.",
    Config=ConsistencyConfig,
    measure=measure,
    definitions=consistency_definitions,
    charts=consistency_charts,
    tables=consistency_tables,
    shown={
        "mcs_mean": "MCS",
        "mcs_share": "above",
        "mcs_share_top_max_activation": "top act.",
        "mcs_share_top_z_score": "top Z",
        "one_to_one_mean": "1:1",
        "one_to_one_share": "1:1 above",
        "mcs_random": "random",
    },
    jointly=True,
    finish=finish,
)


def run_consistency(
    folders: Sequence[Path], config: ConsistencyConfig, *, pages: bool = True
) -> list[EvaluationResult]:
    """Compare dictionaries; the results in the order of the folders. See `evaluate`."""
    return [result for _, result in evaluate(SUITE, folders, config, pages=pages)]
