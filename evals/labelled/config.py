"""Settings of suites on labelled text; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from saelab.cache.config import DataOverrides
from saelab.config import Within, problems_in
from saelab.errors import ConfigError

from ..suite import WithControls


@dataclass(frozen=True, kw_only=True)
class LabelledConfig(WithControls):
    """Which labelled text is read and how, and where results go."""

    max_sets: Annotated[int | None, Within(1)] = None
    """Most data sets, evenly chosen of those named. None: all."""
    text_column: str | None = None
    """Column of the text in files of your own. None: text, prompt, sentence or content."""
    label_column: str | None = None
    """Column of the label in files of your own. None: label, target or class."""
    dataset_split: str = "train"
    """Split of a `datasets` name."""
    max_tokens: Annotated[int, Within(2)] = 32
    """Tokens of a text that the model reads, its start token included."""
    batch_tokens: Annotated[int, Within(1)] = 1536
    """Tokens in one forward pass."""
    seed: int = 0
    """Decides which examples are taken, and how they are split."""
    store: Path | None = None
    """Folder that keeps activations and what probes on them come to, for every dictionary and for
    later runs. None: `labelled` in the user's cache folder."""
    model: str | None = None
    """Where the dictionary's language model lies, if not under its recorded name. None: there."""
    model_kwargs: tuple[str, ...] | None = None
    """For transformers' loading, each `name=value` or a JSON object. None: as in training."""
    model_dtype: Literal["bfloat16", "float32", "float16"] | None = None
    """Dtype the model computes in. None: as in training."""
    device: str = "auto"
    """Device of model and dictionary: `auto`, `cpu`, `cuda`."""
    out: Path | None = None
    """Folder for the results, one in it for each of several. None: `evals` in each dictionary."""
    overwrite: bool = False
    """Replace an existing result."""

    def __post_init__(self) -> None:
        if problems := [*problems_in(self), *self.problems()]:
            raise ConfigError(problems)

    def problems(self) -> list[str]:
        """What is wrong with settings beside one another, in words."""
        return []

    def overrides(self) -> DataOverrides:
        """What stands in for what a dictionary recorded of its model."""
        return DataOverrides(
            model=self.model,
            model_kwargs=self.model_kwargs,
            model_dtype=self.model_dtype,
            device=self.device,
        )
