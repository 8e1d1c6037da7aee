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
    n_pairs: Annotated[int, Within(2)] = 48
    """Pairs of prompts of each kind (cause, isolation) and attribute that masks learn on."""
    n_test_pairs: Annotated[int, Within(1)] = 64
    """The same that scores are measured on, of entities that no mask learnt on."""
    test_fraction: Annotated[float, Within(0, 1, low_open=True, high_open=True)] = 0.4
    """Share of the known entities that are tested on."""
    epochs: Annotated[int, Within(1)] = 6
    """Times each pair is learnt on. SAEBench: 2 of 7,000 pairs for masks, 10 for the skyline."""
    learning_rate: Annotated[float, Within(0, low_open=True)] = 0.05
    """Of Adam, for the mask. SAEBench: 0.001, in many more steps."""
    skyline_learning_rate: Annotated[float, Within(0, low_open=True)] = 0.01
    """Of Adam, for the skyline's directions."""
    last_temperature: Annotated[float, Within(0, 1, low_open=True)] = 0.01
    """The mask's sigmoid ends with this temperature and begins with 1. SAEBench: 0.0001."""
    skyline_width: Annotated[int, Within(1)] = 64
    """Directions that the skyline exchanges."""
    keep_error: bool = False
    """Add the base's error to what is spliced in. The paper leaves it out."""
    least_entities: Annotated[int, Within(2)] = 8
    """Entities that the model must know of at least two attributes; with fewer, scores are null."""
    batch_variants: Annotated[int, Within(1)] = 32
    """Prompts in one forward pass, and in one step of learning."""
    seed: int = 0
    """Decides split, pairs, their order and random masks."""


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
