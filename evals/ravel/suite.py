"""The suite "ravel": can a dictionary's latents exchange one attribute of an entity and no other?

Put what carries "country" of Tokyo into "Paris": the model should answer Japan, and still French.
Protocol of SAEBench's RAVEL (arXiv 2402.17700): a binary mask over latents is learnt for each
attribute.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from saelab.config import Within

from ..suite import ControlledConfig, Suite, deferred


@dataclass(frozen=True, kw_only=True)
class RavelConfig(ControlledConfig):
    """Which facts, how many pairs, and how masks are learnt.

    Facts come with their prompts: settings of the text have no part in it.
    """

    facts: Path | None = None
    """CSV or JSONL with entity, attribute, value and prompt, in which {entity} stands for the
    entity. None: 75 cities with country, continent and language."""
    n_pairs: Annotated[int, Within(2)] = 120
    """Pairs of prompts of each kind (cause, isolation) and attribute that are learnt on, at least:
    each base gets equally many sources. SAEBench: 3,500."""
    n_test_pairs: Annotated[int, Within(1)] = 48
    """The same, other pairs, that scores are measured on, at most: each with another base."""
    epochs: Annotated[int, Within(1)] = 1
    """Times masks are learnt on each pair. SAEBench: 2."""
    learning_rate: Annotated[float, Within(0, low_open=True)] = 0.2
    """Of Adam, for the mask. SAEBench: 0.001, in many more steps."""
    last_temperature: Annotated[float, Within(0, 1, low_open=True)] = 0.01
    """The mask's sigmoid ends with this temperature and begins with 1. SAEBench: 0.0001."""
    skyline_width: Annotated[int, Within(1)] = 32
    """Directions that the skyline exchanges."""
    skyline_epochs: Annotated[int, Within(1)] = 3
    """Times the skyline's directions are learnt on each pair. SAEBench: 10."""
    skyline_learning_rate: Annotated[float, Within(0, low_open=True)] = 0.002
    """Of Adam, for the skyline's directions."""
    keep_error: bool = False
    """Add the base's error to what is spliced in. The paper leaves it out."""
    least_entities: Annotated[int, Within(2)] = 8
    """Entities that the model must know of at least two attributes; with fewer, scores are null."""
    batch_variants: Annotated[int, Within(1)] = 16
    """Prompts in one forward pass, and in one step of learning."""
    seed: int = 0
    """Decides pairs, their order and random masks."""


SUITE = Suite(
    name="ravel",
    summary="Whether masks over latents exchange one attribute of an entity and no other.",
    Config=RavelConfig,
    measure=deferred(".ravel.measure", "measure_ravel"),
    definitions=deferred(".ravel.numbers", "ravel_definitions"),
    charts=deferred(".ravel.numbers", "ravel_charts"),
    tables=deferred(".ravel.numbers", "ravel_tables"),
    headline=("disentanglement", "cause", "isolation"),
    skyline={
        "disentanglement": "skyline_disentanglement",
        "cause": "skyline_cause",
        "isolation": "skyline_isolation",
    },
    shown={
        "disentanglement": "disentanglement",
        "cause": "cause",
        "isolation": "isolation",
        "skyline_disentanglement": "skyline",
        "random_disentanglement": "random mask",
        "n_entities": "entities",
    },
)
run_ravel = SUITE.run
"""Judge dictionaries: (folders, config) -> results in the order of the folders."""
