"""Settings of a feature store's build."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from saelab.cache.config import DataOverrides
from saelab.config import to_plain
from saelab.errors import ConfigError

DEFAULT_TOKENS = 500_000


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """What is stored of each feature; everything that decides a store's content beside its data."""

    n_top: int = 20
    """Top examples, at most."""
    n_strata: int = 5
    """Strata of equal numbers of contexts that the sequence maxima are divided into."""
    n_per_stratum: int = 5
    """Contexts drawn from each stratum."""
    n_random: int = 10
    """Active tokens drawn at random."""
    n_near_misses: int = 10
    """Contexts of decoder neighbours in which the feature is silent, at most."""
    n_random_silent: int = 10
    """Contexts drawn at random from all in which it is silent."""
    n_neighbours: int = 10
    """Entries of each list of neighbours."""
    n_logits: int = 10
    """Tokens promoted and suppressed most."""
    same_window: int = 8
    """Two top examples are alike if this many tokens on either side of their anchors are equal."""
    rare_below: float = 1e-5
    """Density below which a feature that is not dead is flagged "rare"."""
    dense_above: float = 0.1
    """Density above which a feature is flagged "dense"."""
    seed: int = 0
    """Decides which examples are drawn."""

    def __post_init__(self) -> None:
        lowest = dict.fromkeys(("n_strata", "n_top", "n_neighbours", "n_logits"), 1)
        counts = ("n_per_stratum", "n_random", "n_near_misses", "n_random_silent", "same_window")
        problems = []
        for name, bound in (lowest | dict.fromkeys(counts, 0)).items():
            value = getattr(self, name)
            if value < bound:
                problems.append(f"{name}: {value} is below {bound}")
            elif value > 1000:
                problems.append(f"{name}: {value} is above 1,000, more than a page can show")
        if not 0 <= self.rare_below < self.dense_above <= 1:
            problems.append(
                f"rare_below: {self.rare_below} and dense_above: {self.dense_above} must satisfy "
                "0 <= rare_below < dense_above <= 1"
            )
        if problems:
            raise ConfigError(problems)

    def to_json(self) -> dict[str, Any]:
        """As plain values, for the manifest."""
        return to_plain(self)


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(DataOverrides):
    """Which text features are read on, and how much of it.

    Text, context length, token filter and norm ceiling are those the dictionary recorded unless
    settings replace them, so that a density here means what it meant in training.
    """

    n_tokens: int = DEFAULT_TOKENS
    """Tokens of text, rounded up to contexts; all there is where there is less."""
    split: Literal["train", "held_out"] = "train"
    """Which part of the text. The training part by default: it is ten times as long, and rare
    features show in long text only."""
    labels: Path | None = None
    """What the rows of adopted activations are called: a .txt, .csv, .jsonl or .parquet file with
    a label for each row or context, such as a class, a sentence or the path of an image."""
    label_column: str | None = None
    """Column of `labels`. None: `label`, or the only one."""
    batch_contexts: int = 8
    """Contexts in one forward pass; memory grows with it, the numbers do not depend on it."""
    store: StoreOptions = field(default_factory=StoreOptions, metadata={"flatten": True})
    """What is stored of each feature."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {value} is below 1"
            for name in ("n_tokens", "batch_contexts")
            if (value := getattr(self, name)) < 1
        ]
        if self.label_column is not None and self.labels is None:
            problems.append("label_column: there is no file of labels: name it with --labels")
        if problems:
            raise ConfigError(problems)
