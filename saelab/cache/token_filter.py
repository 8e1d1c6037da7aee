"""The rule that says which positions of a text count as rows.

It is recorded in every artifact and applied alike in training and in every metric. Its application
to activations is in `rows`; this module imports no torch, so that settings load at once.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from saelab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TokenFilter:
    """Which positions count as rows: the one rule for training and for every metric.

    A few positions hold massive activations that would decide every loss and metric; the defaults
    exclude them, and what was excluded is counted by the first reason that applies.
    """

    exclude_bos: bool = True
    """Exclude position 0 of every context, whatever its token, and BOS tokens anywhere."""
    exclude_separators: bool = True
    """Exclude the tokenizer's other special tokens, such as those between documents."""
    exclude_positions: tuple[int, ...] = ()
    """Positions in the context to exclude, counted from 0 (the BOS token is at 0)."""
    max_norm_ratio: float | None = 10.0
    """Exclude rows whose norm is above this many times the median norm. None: keep them."""

    def __post_init__(self) -> None:
        problems = self.problems()
        if problems:
            raise ConfigError(problems)

    def problems(self) -> list[str]:
        """Everything wrong with the rule by itself."""
        problems = [
            f"exclude_positions: {position} is negative; positions are counted from 0"
            for position in self.exclude_positions
            if position < 0
        ]
        if self.max_norm_ratio is not None and not self.max_norm_ratio > 1:
            problems.append(
                f"max_norm_ratio: {self.max_norm_ratio} would exclude half of the rows or more; "
                "give a number above 1, or none"
            )
        return problems

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> TokenFilter:
        """The rule that a manifest recorded.

        Raises:
            ConfigError: a field of the rule is unknown to this version.
        """
        unknown = set(content) - {f.name for f in fields(cls)}
        if unknown:
            raise ConfigError(f"token filter with unknown fields {sorted(unknown)}: upgrade saelab")
        positions = tuple(content.get("exclude_positions", ()))
        return cls(**{**content, "exclude_positions": positions})
