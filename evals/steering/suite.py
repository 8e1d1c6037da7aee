"""The suite "steering": what adding a latent's direction does to the logits in any context.

After "Features that Make a Difference" (arXiv 2411.10397): are a dictionary's latents good for
steering wherever they are added, and not only where they are active by themselves?
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from saelab.formats.evaluation_result import EvaluationResult

from ..suite import Measurement, Suite, evaluate
from .charts import steering_charts, steering_tables
from .config import SteeringConfig
from .definitions import steering_definitions

RESULT_FILE = "steering.json"


def measure(
    folders: Sequence[Path], outs: Sequence[Path], config: SteeringConfig
) -> Iterator[Measurement]:
    """Steer with dictionaries; see `measure_steering`."""
    from .measure import measure_steering

    return measure_steering(folders, outs, config)


SUITE = Suite(
    name="steering",
    summary="Add latents in arbitrary contexts: size and consistency of their effect on the "
    "logits.",
    Config=SteeringConfig,
    measure=measure,
    definitions=steering_definitions,
    charts=steering_charts,
    tables=steering_tables,
)


def run_steering(
    folders: Sequence[Path], config: SteeringConfig, *, pages: bool = True
) -> list[EvaluationResult]:
    """Steer with dictionaries; the results in the order of the folders. See `evaluate`."""
    return [result for _, result in evaluate(SUITE, folders, config, pages=pages)]
