"""The suite "activation-sparsity": what neurons and latents a model can do without at 1 % more
perplexity.

The same search on the neurons of every MLP (CETT-PPL-p %, Luo et al., 2024, Sparsing Law, arXiv
2411.02335) and on the firing latents of a dictionary, whose smallest contributions are dropped: a
functional L0 that compares architectures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from saelab.config import Within

from ..core.config import WINDOW
from ..suite import HeldOutConfig, Suite, deferred


@dataclass(frozen=True, kw_only=True)
class ActivationSparsityConfig(HeldOutConfig):
    """How much held-out text to run, how far perplexity may rise, and where results go."""

    PROTOCOL = f"losses in float32, on windows of {WINDOW} tokens by document"
    """What settings do not say, and what tells results apart that were measured otherwise."""

    n_loss_tokens: Annotated[int, Within(1)] = 2048
    """Tokens of held-out text, in windows that every document gives in turn; a search runs the
    model on them about eight times."""
    rise: Annotated[float, Within(0, low_open=True)] = 0.01
    """Share by which perplexity may rise."""
    drop: Literal["threshold", "token"] = "threshold"
    """Which latents go: those with contributions below one threshold, or the same share of each
    token's."""
    mlps: bool = True
    """Also search the neurons of the model's MLPs, once for all dictionaries of a model."""
    n_calibration_tokens: Annotated[int, Within(1)] = 256
    """Tokens, of the same windows, on which thresholds of neurons are fitted to an error."""
    kept: Annotated[float, Within(0, 1, low_open=True)] = 0.5
    """Share of each token's neurons that is kept where WINA's score is compared with magnitude."""
    lazy_below: Annotated[float, Within(0)] = 0.1
    """Neurons of at most this, in root mean squares of their layer, count as zero; 0: exact zeros,
    for ReLU."""
    seed: Annotated[int, Within(0)] = 0
    """Of the random choice of latents."""


SUITE = Suite(
    name="activation-sparsity",
    summary="How many firing latents of dictionaries, and neurons of their model's MLPs, can be "
    "dropped at 1 % more perplexity.",
    Config=ActivationSparsityConfig,
    measure=deferred(".activation_sparsity.measure", "measure_activation_sparsity"),
    definitions=deferred(".activation_sparsity.numbers", "activation_sparsity_definitions"),
    headline=("functional_l0", "droppable_share", "rise_random"),
    shown={
        "l0_mean": "L0",
        "functional_l0": "needed",
        "droppable_share": "droppable",
        "rise_random": "at random",
        "mlp_sparsity": "MLPs",
        "mlp_sparsity_random": "control",
    },
)
run_activation_sparsity = SUITE.run
"""Measure what can be dropped: (folders, config) -> results in the order of the folders."""
