"""The suite "core": how well a dictionary reconstructs, how sparsely, at what cost to the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from saelab.stats.metric_definitions import METRICS, define

from ..suite import Definition, Suite, deferred
from .charts import core_charts, core_tables
from .config import CoreConfig


def definitions(facts: Mapping[str, Any]) -> list[Definition]:
    """Every shared metric, with the facts of a measurement filled in."""
    return [replace(metric, text=define(name, **facts)) for name, metric in METRICS.items()]


SUITE = Suite(
    name="core",
    summary="Judge saved dictionaries on held-out text: reconstruction, sparsity, effect on the "
    "model.",
    Config=CoreConfig,
    measure=deferred(".core.measure", "measure_core"),
    definitions=definitions,
    charts=core_charts,
    tables=core_tables,
    headline=(
        "fvu",
        "explained_variance",
        "l0_mean",
        "loss_recovered_zero",
        "loss_recovered_mean",
        "kl",
        "dead_fraction",
    ),
    skyline={
        "fvu": 0,
        "explained_variance": 1,
        "loss_recovered_zero": 1,
        "loss_recovered_mean": 1,
        "kl": 0,
    },
    shown={
        "fvu": "FVU",
        "l0_mean": "L0",
        "loss_recovered_zero": "recovered (zero)",
        "loss_recovered_mean": "recovered (mean)",
        "kl": "KL (nats)",
        "dead_fraction": "dead",
    },
)


run_core = SUITE.run
