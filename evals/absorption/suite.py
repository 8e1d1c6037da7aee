"""The suite "absorption": do the latents of first letters fire wherever a letter stands?

A latent that should fire on all words with S, but is silent on "snake" because a latent of snakes
carries the S as well, is absorbed there. Protocol of SAEBench (absorption_first_letter), after
"A is for Absorption" (arXiv 2409.14507); hedging after arXiv 2505.11756.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from saelab.config import Within

from ..suite import ControlledConfig, Suite, deferred


@dataclass(frozen=True, kw_only=True)
class AbsorptionConfig(ControlledConfig):
    """Which words, which probes, and what counts as absorbed; defaults are those of SAEBench's
    code unless a setting says otherwise.

    Words are of the model's vocabulary: settings of the text have no part in it.
    """

    words_per_letter: Annotated[int | None, Within(5)] = 250
    """Most words of a letter, so that rare letters count as much. SAEBench takes the whole
    vocabulary. None: all."""
    test_fraction: Annotated[float, Within(0, 1, low_open=True, high_open=True)] = 0.2
    """Share of each letter's words on which everything is measured; probes learn on the others."""
    n_examples: Annotated[int, Within(1)] = 10
    """Solved examples in the prompt before a word."""
    n_prompts: Annotated[int, Within(1)] = 4
    """Sets of examples, each computed once; SAEBench draws new ones for each word."""
    probe_l2: Annotated[float, Within(0, low_open=True)] = 1e-3
    """Weight of the squared norm in the probes of the activations, scaled to a mean variance of
    1. SAEBench has none, but stops after 50 epochs."""
    latent_l1: Annotated[float, Within(0, low_open=True)] = 0.01
    """Weight of the absolute sum in the probes that rank latents."""
    max_k: Annotated[int, Within(1)] = 10
    """Most latents in a sparse probe."""
    split_gain: float = 0.03
    """F1 that each further latent must add to be one of the main latents (tau_fs)."""
    least_share: float = 0.4
    """Share of the activation's projection that absorbing latents must carry (tau_pa). The
    paper's table says 0."""
    least_cosine: float = 0.1
    """Least cosine of an absorbing latent with the probe (tau_ps). The paper's table says -1."""
    max_absorbing: Annotated[int | None, Within(1)] = 3
    """Most latents that absorb together (A_max). None, as in the paper's table: all."""
    full_cosine: float = 0.025
    """Least cosine of the one latent of full absorption with the probe."""
    least_f1: float = 0.6
    """F1 that a letter's probe must exceed for the letter to count."""
    least_letters: Annotated[int, Within(1)] = 20
    """Letters that must count for means to be given; with fewer they are null."""
    batch_variants: Annotated[int, Within(1)] = 256
    """Words in one forward pass."""
    seed: int = 0
    """Decides examples, words, split and shuffled letters."""


SUITE = Suite(
    name="absorption",
    summary="Whether latents of first letters stay silent where other latents carry the letter.",
    Config=AbsorptionConfig,
    measure=deferred(".absorption.measure", "measure_absorption"),
    definitions=deferred(".absorption.numbers", "absorption_definitions"),
    charts=deferred(".absorption.charts", "absorption_charts"),
    tables=deferred(".absorption.charts", "absorption_tables"),
    headline=("main_f1", "absorption_fraction", "full_absorption"),
    skyline={"main_f1": "probe_f1", "absorption_fraction": 0.0, "full_absorption": 0.0},
    shown={
        "main_f1": "F1 of main latents",
        "probe_f1": "F1 of probes",
        "absorption_fraction": "absorption",
        "full_absorption": "full absorption",
        "main_latents": "main latents",
        "hedging": "hedging",
        "n_letters": "letters",
    },
)
run_absorption = SUITE.run
"""Judge dictionaries: (folders, config) -> results in the order of the folders."""
