"""The suite "recovery": which planted features a dictionary recovered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

from saelab.config import Within, problems_in
from saelab.errors import ConfigError
from saelab.formats.evaluation_result import EvaluationResult
from saelab.formats.files import sha256_of

from ..suite import Suite, deferred
from ..terminal import terminal_table

BESIDES = {
    "match_f1": "F1",
    "absorption_rate": "absorbed",
    "split_share": "split",
    "nmse": "NMSE",
    "l0_mean": "L0",
    "dead_fraction": "dead",
}
EXPLANATION = (
    "FRR@c: share of true features with a latent of cosine c or more; own: by a latent of its "
    "own; prec: share of alive latents that are a feature; F1, absorbed and split are of matched "
    "features. The reports define every number."
)


@dataclass(frozen=True, kw_only=True)
class RecoveryConfig:
    """How many held-out rows to evaluate on, what counts as a match, and where results go.

    The true features are regenerated from the dictionary's own manifest, or given in a file.
    """

    truth: Path | None = None
    """File of the true directions, one in each row (.npy, .npz, .safetensors), of any norm, for
    activations from elsewhere: only what cosines tell is measured. None: the planted features."""
    n_rows: Annotated[int, Within(2)] = 8192
    """Rows of the stream "held_out" of the planted dictionary; training never sees them."""
    threshold: float = 0.9
    """Cosine from which a decoder row matches a true feature, wherever no other is named."""
    device: str = "auto"
    """Device of the dictionary: `auto` takes a GPU where there is one, `cpu`, `cuda`."""
    out: Path | None = None
    """Folder for the results; one folder per dictionary in it where there are several.
    None: the folder `evals` in each dictionary."""
    card: Path | None = None
    """Folder for the score card over all dictionaries given: `score_card.json` and
    `score_card.html`. None: it is only printed."""
    overwrite: bool = False
    """Replace an existing result."""

    def __post_init__(self) -> None:
        problems = problems_in(self)
        if self.truth is not None and not self.truth.is_file():
            problems.append(f"truth: {self.truth} is no file: give one of directions")
        if not 0.5 <= self.threshold <= 1:
            problems.append(
                f"threshold: {self.threshold} is not between 0.5, below which latents match "
                "several features by chance, and 1"
            )
        if problems:
            raise ConfigError(problems)

    @cached_property
    def truth_hash(self) -> str | None:
        """SHA-256 of the file of directions; None where there is none."""
        return None if self.truth is None else sha256_of(self.truth)

    @property
    def PROTOCOL(self) -> str | None:
        """What results of other directions are told apart by, wherever the file lies."""
        return self.truth and f"directions given, of content hash {self.truth_hash}"


def finish(results: Sequence[EvaluationResult], config: RecoveryConfig) -> None:
    """Print what else was measured and the score card of several; write the card if asked to."""
    from rich.console import Console

    from .scorecard import score_card, score_card_table, write_card

    console = Console()
    if config.truth is None:
        rows = [[r.dictionary_name, *(r.value(name) for name in BESIDES)] for r in results]
        console.print(terminal_table("", ["dictionary", *BESIDES.values()], rows))
    entries = score_card(results)
    if len(results) > 1 or config.card is not None:
        console.print(score_card_table(entries))
    console.print(EXPLANATION, highlight=False)
    if config.card is not None:
        page = write_card(config.card, entries, results)
        console.print(f"score card: {page}", soft_wrap=True, highlight=False)


SUITE = Suite(
    name="recovery",
    summary="Compare saved dictionaries with the planted features that they were trained on, or "
    "with true directions that are known.",
    Config=RecoveryConfig,
    measure=deferred(".recovery.measure", "measure_recovery"),
    definitions=deferred(".recovery.numbers", "recovery_definitions"),
    charts=deferred(".recovery.charts", "recovery_charts"),
    headline=(
        "frr_080",
        "frr_090",
        "frr_one_to_one_090",
        "mean_max_cosine_features",
        "chance_cosine",
        "precision_090",
        "match_f1",
        "absorption_rate",
        "split_share",
        "nmse",
        "l0_mean",
        "true_l0",
        "dead_fraction",
    ),
    shown={
        "frr_080": "FRR@.8",
        "frr_090": "@.9",
        "frr_095": "@.95",
        "frr_099": "@.99",
        "frr_one_to_one_090": "own@.9",
        "precision_090": "prec@.9",
    },
    groups=lambda dictionaries, _: [range(len(dictionaries))],
    finish=finish,
)
run_recovery = SUITE.run
"""Evaluate dictionaries: (folders, config) -> results in the order of the folders."""
