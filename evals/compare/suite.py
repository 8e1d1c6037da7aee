"""The suite "compare": training methods in one report, put together from the other suites.

What is missing is evaluated, what exists is used, so `saelab compare` goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from saelab.config import Within

from ..suite import HeldOutConfig, Suite, deferred, more_losses_than_tokens, not_positive
from ..terminal import run_command


@dataclass(frozen=True, kw_only=True)
class CompareConfig(HeldOutConfig):
    """What is measured of every dictionary, how methods are compared, and where it goes.

    Numbers come from the suites core, consistency and steering. A result that a dictionary already
    has from the same settings is used as it is, so that a comparison that was stopped goes on where
    it stopped when the same command is given again.
    """

    out: Path = Path("runs/comparison")
    """Folder for compare.json, compare.html and the tables of numbers (parquet)."""
    n_tokens: Annotated[int, Within(1)] = 16_384
    """Tokens of held-out text per dictionary for reconstruction, densities, and which latents are
    alive (suites core, consistency and steering), rounded up to contexts."""
    n_loss_tokens: Annotated[int, Within(1)] = 4_096
    """Tokens on which losses and KL are measured, as the suite core takes them."""
    consistency: bool = True
    """Compare the latents of the seeds of each method, width and k."""
    steering: bool = True
    """Steer with one dictionary per method and width (more with the two settings below)."""
    steering_k: tuple[int, ...] | None = None
    """Target L0 of the dictionaries that are steered with. None: the middle one of each width."""
    steering_seeds: Annotated[int, Within(1)] = 1
    """Seeds per method, width and k that are steered with: the lowest."""
    steering_latents: Annotated[int, Within(2)] = 128
    """Latents per dictionary that are steered with, drawn at random, and as many random directions
    that they are compared with."""
    steering_strength: Annotated[float, Within(0, low_open=True)] = 1.0
    """Length of what is added, in multiples of the mean norm of the held-out rows."""
    reference: str = "topk"
    """Method that differences are taken to. Where no dictionary is of it: the first one's."""
    common_l0: tuple[float, ...] | None = None
    """L0 values at which methods are compared, by interpolation between their own points. None:
    all target L0 but the lowest and the highest, and the geometric mean of each two neighbours."""
    overwrite: bool = False
    """Evaluate again where a result of other settings exists, and replace the comparison of other
    dictionaries in `out`. Results of the same settings are always used as they are."""

    def problems(self) -> list[str]:
        """More tokens for losses than there are, and L0 values that are none."""
        problems = more_losses_than_tokens(self.n_loss_tokens, self.n_tokens)
        for name in ("common_l0", "steering_k"):
            if (values := getattr(self, name)) is not None:
                problems += not_positive(name, values)
        return problems


CONFIG = CompareConfig
SUITE = Suite(
    name="compare",
    summary="Compare training methods in one report: what is missing is evaluated, what exists is "
    "used. Give runs of `saelab train`, or folders of single dictionaries: of one model and hook "
    "point.",
    Config=CompareConfig,
    measure=deferred(".compare.measure", "measure_comparison"),
    needs_dictionaries=False,
    folder=lambda config: config.out,
    gathers=True,
)
run_compare = SUITE.run
"""Compare methods: (runs or dictionaries, config) -> the one result in a list."""


def main(arguments: Sequence[str]) -> None:
    """Run `saelab compare` with the words after it.

    Raises:
        SaelabError: whatever the user can put right.
    """
    run_command(SUITE, arguments, "saelab compare")
