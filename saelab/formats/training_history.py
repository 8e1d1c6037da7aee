"""The metrics of a training run as curves, read while the run may still be writing them.

Reads `metrics.jsonl` only; needs no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.errors import ArtifactError

from .run_log import read_log

NOT_CURVES = ("step", "dictionary", "tokens")


@dataclass(frozen=True)
class Curve:
    """One number of one dictionary over training."""

    tokens: list[int]
    """Rows trained on at each logged step."""
    values: list[float | int]
    """The number there; steps where it was undefined are left out."""


@dataclass(frozen=True)
class TrainingHistory:
    """All curves of a run."""

    curves: dict[str, dict[str, Curve]]
    """By dictionary, in the order of the log, and then by the number's name."""

    @property
    def dictionaries(self) -> list[str]:
        """Names of the dictionaries."""
        return list(self.curves)

    @property
    def numbers(self) -> list[str]:
        """Every number that some dictionary logs, in the order of the log."""
        return list(dict.fromkeys(key for curves in self.curves.values() for key in curves))

    @property
    def last_tokens(self) -> int:
        """Rows trained on at the last logged step; 0 before the first."""
        ends = [c.tokens[-1] for curves in self.curves.values() for c in curves.values()]
        return max(ends, default=0)


def read_history(path: Path) -> TrainingHistory:
    """Read a log of training metrics; a last line cut short is left out.

    Raises:
        ArtifactError: the file is missing, or is not such a log.
    """
    try:
        lines = read_log(path)
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.strerror}): the run was moved, or has not begun"
        ) from None
    except UnicodeDecodeError:
        raise ArtifactError(
            f"{path} is not a log of training metrics: it holds bytes that are no text"
        ) from None
    curves: dict[str, dict[str, Curve]] = {}
    for number, line in enumerate(lines, start=1):
        _check(line, path, number)
        own = curves.setdefault(line["dictionary"], {})
        for key, value in line.items():
            if key not in NOT_CURVES and _is_number(value):
                curve = own.setdefault(key, Curve([], []))
                curve.tokens.append(line["tokens"])
                curve.values.append(value)
    return TrainingHistory(curves)


def _check(line: dict[str, Any], path: Path, number: int) -> None:
    known = isinstance(line.get("dictionary"), str) and isinstance(line.get("tokens"), int)
    if not known:
        raise ArtifactError(
            f"{path}, line {number}, is not a line of training metrics (it names no dictionary and "
            "tokens): the file is of something else, or was edited"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
