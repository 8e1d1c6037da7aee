"""The suite "meta-structure": how much of a decoder a dictionary of its rows explains.

Latents whose decoder rows are sums of a few shared directions are no atoms (Bussmann et al., 2024,
Showing SAE Latents Are Not Atomic Using Meta-SAEs; SAEBench `meta_structure`). It needs weights
only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from saelab.config import Within, problems_in
from saelab.errors import ConfigError

from ..definitions import Definition, filled_in
from ..suite import Suite, deferred


@dataclass(frozen=True, kw_only=True)
class MetaStructureConfig:
    """How the meta-dictionary is learnt, and where results go; defaults are SAEBench's."""

    latents_per_meta: Annotated[int, Within(1)] = 4
    """Decoder rows for each latent of the meta-dictionary."""
    k: Annotated[int, Within(1)] = 4
    """Its active latents for a decoder row, on average."""
    n_steps: Annotated[int, Within(1)] = 1500
    """Steps of training."""
    batch_rows: Annotated[int, Within(1)] = 1024
    """Decoder rows in a batch."""
    learning_rate: Annotated[float, Within(0, low_open=True)] = 5e-4
    """Of Adam."""
    seed: Annotated[int, Within(0)] = 0
    """Of initial directions, batches and random rows."""
    device: str = "auto"
    """`auto` takes a GPU where there is one, `cpu`, `cuda`."""
    out: Path | None = None
    """Folder for the results, one in it for each of several. None: `evals` in each dictionary."""
    overwrite: bool = False
    """Replace an existing result."""

    def __post_init__(self) -> None:
        if problems := problems_in(self):
            raise ConfigError(problems)


_SAME = "rows brought to norm 1, by a meta-dictionary of {width} latents, {k} of them active in a "
MEANINGS = {
    "Explained by a meta-dictionary": {
        "explained": "1 - sum |w - ŵ|² / sum |w - mean|² over the {n_rows} decoder "
        + _SAME
        + "row on average (BatchTopK, {n_steps} steps). Higher: latents share more structure.",
        "explained_random": "The same of as many isotropic random rows of that width: what a "
        "meta-dictionary of this size explains of nothing.",
        "explained_same_covariance": "The same of Gaussian rows with the decoder's mean and "
        "covariance: what follows from rows filling a part of the space.",
        "shared": "explained - explained_same_covariance: what is explained by directions that "
        "rows share, beyond the covariance.",
    },
    "The meta-dictionary": {
        "meta_alive": "Share of meta-latents that are active on some row.",
        "well_explained": "Share of rows with |w - ŵ|² at most half of |w - mean|².",
        "n_rows": "Decoder rows, those that are zero left out.",
    },
}


def definitions(facts: Mapping[str, Any]) -> list[Definition]:
    """Every number with the facts of a measurement filled in."""
    return filled_in(
        MEANINGS,
        facts,
        units={"n_rows": "rows"},
        better={"explained": "lower", "shared": "lower", "well_explained": "lower"},
    )


SUITE = Suite(
    name="meta-structure",
    summary="How much of the decoder rows of dictionaries a dictionary of those rows explains, "
    "beside random rows.",
    Config=MetaStructureConfig,
    measure=deferred(".meta_structure.measure", "measure_meta_structure"),
    definitions=definitions,
    charts=deferred(".meta_structure.measure", "meta_structure_charts"),
    headline=("explained", "shared"),
    skyline={"explained": "explained_random", "shared": 0.0},
    shown={
        "explained": "explained",
        "explained_random": "random",
        "explained_same_covariance": "same cov.",
        "shared": "shared",
        "meta_alive": "alive",
    },
)
run_meta_structure = SUITE.run
"""Measure structure among decoder rows: (folders, config) -> results in their order."""
