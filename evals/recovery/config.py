"""Settings of the suite "recovery"."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saelab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RecoveryConfig:
    """How many held-out rows to evaluate on, what counts as a match, and where results go.

    The true features are regenerated from the dictionary's own manifest.
    """

    n_rows: int = 8192
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
        problems = []
        if self.n_rows < 2:
            problems.append(f"n_rows: {self.n_rows} is below 2")
        if not 0.5 <= self.threshold <= 1:
            problems.append(
                f"threshold: {self.threshold} is not between 0.5, below which latents match "
                "several features by chance, and 1"
            )
        if problems:
            raise ConfigError(problems)
