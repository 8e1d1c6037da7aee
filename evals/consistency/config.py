"""Settings of the suite "consistency"."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from saelab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig:
    """What counts as the same latent, on which rows latents are ranked, and where results go.

    Dictionaries are grouped by method and its options, architecture, d_sae, target L0, hook point
    and model; those of a group should differ in their seed alone and are compared with one another.
    """

    across: bool = False
    """Also compare each group with the others: methods, widths or sparsities with one another.
    Groups of one dictionary are then allowed."""
    threshold: float = 0.9
    """Cosine of two decoder rows above which they count as the same latent."""
    top_fraction: float = 0.01
    """Fraction of the alive latents, the highest of a ranking, that the numbers of the "most
    active" latents are about; the curves show every fraction."""
    activity: bool = True
    """Measure on held-out rows which latents are alive and how they rank (max activation,
    Z-score, density). Without it all latents count, nothing is ranked and no model is run."""
    n_tokens: int = 65_536
    """Tokens of held-out text for that, rounded up to contexts (rows, for planted features)."""
    batch_contexts: int = 4
    """Contexts in one forward pass; memory grows with it, the numbers do not depend on it."""
    text_source: str | None = None
    """Text in place of the dictionary's own (a source that `saelab.text` reads). None: its own."""
    text_field: str | None = None
    """Field that holds the text in `text_source`. None: as the dictionary recorded it."""
    context_length: int | None = None
    """Tokens in a context. None: as in training."""
    model: str | None = None
    """Where the dictionary's language model lies, if not under its recorded name. None: there."""
    model_dtype: Literal["bfloat16", "float32", "float16"] | None = None
    """Dtype the model computes in. None: as in training."""
    device: str = "auto"
    """Device of model and dictionaries: `auto`, `cpu`, `cuda`."""
    seed: int = 0
    """Decides the random directions that the floor is measured with."""
    out: Path | None = None
    """Folder for the results, with one folder per dictionary in it.
    None: the folder `evals` in each dictionary."""
    overwrite: bool = False
    """Replace an existing result."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {value} is below 1"
            for name in ("n_tokens", "batch_contexts")
            if (value := getattr(self, name)) < 1
        ]
        if not 0 < self.threshold < 1:
            problems.append(f"threshold: {self.threshold} is not between 0 and 1")
        if not 0 < self.top_fraction <= 1:
            problems.append(
                f"top_fraction: {self.top_fraction} is not above 0 and at most 1 (all latents)"
            )
        if self.context_length is not None and self.context_length < 2:
            problems.append(f"context_length: {self.context_length} is below 2 tokens")
        if problems:
            raise ConfigError(problems)
