"""The suite "description-length": bits per token that a dictionary's codes take at equal error.

A dictionary explains an activation in few bits or in many (Ayonrinde et al., 2024, Interpretability
as Compression, arXiv 2410.11179; SAEBench `mdl`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from saelab.config import Within

from ..suite import ControlledConfig, Suite, deferred


@dataclass(frozen=True, kw_only=True)
class DescriptionLengthConfig(ControlledConfig):
    """How much held-out text to send, what error bins may add, and where results go."""

    n_tokens: Annotated[int, Within(1)] = 65_536
    """Tokens of held-out text, rounded up to contexts."""
    tolerance: Annotated[float, Within(0, 1, low_open=True)] = 0.01
    """Share of its own error by which putting strengths into bins may raise a dictionary's error:
    bins are made as wide as that allows."""
    n_baseline_rows: Annotated[int, Within(2)] = 8192
    """Most rows, the first, of which the activations themselves are sent for comparison; they are
    held in memory."""


SUITE = Suite(
    name="description-length",
    summary="Bits per token that it takes to say the codes of dictionaries, beside the activations "
    "themselves at equal error.",
    Config=DescriptionLengthConfig,
    measure=deferred(".description_length.measure", "measure_description_length"),
    definitions=deferred(".description_length.numbers", "description_length_definitions"),
    charts=deferred(".description_length.numbers", "description_length_charts"),
    headline=("bits_per_token", "share_of_pca", "fvu"),
    skyline={"bits_per_token": 0.0, "share_of_pca": 0.0, "fvu": 0.0},
    shown={
        "fvu": "FVU",
        "l0_mean": "L0",
        "bits_which": "which",
        "bits_strength": "how much",
        "bits_per_token": "bits",
        "bits_pca": "PCA bits",
        "share_of_pca": "of PCA",
    },
)
run_description_length = SUITE.run
"""Measure description lengths: (folders, config) -> results in the order of the folders."""
