"""Metrics of a run: written while it is under way, and read back as curves.

They go to a JSONL file always, to Weights & Biases on request; wandb is imported only then.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from saelab.errors import ArtifactError, ResourceError

from .files import full_disk_said, parse_json, require_file, write_bytes

logger = logging.getLogger(__name__)
NOT_CURVES = ("step", "dictionary", "tokens")


@runtime_checkable
class RunLog(Protocol):
    """Takes one line of figures at a time."""

    def write(self, step: int, line: Mapping[str, Any]) -> None:
        """Log one line; `step` counts optimizer steps."""

    def close(self) -> None:
        """Nothing more will come."""


class JsonlLog:
    """One JSON object a line, flushed at once so that a live reader sees it.

    Args:
        path: appended to; created if missing.
        keep_up_to: on resuming, lines of later steps are dropped first: they will be written again.
    """

    def __init__(self, path: Path, *, keep_up_to: int | None = None):
        path.parent.mkdir(parents=True, exist_ok=True)
        if keep_up_to is not None and path.exists():
            kept = [
                line for line in read_log(path, skip_damaged=True) if line["step"] <= keep_up_to
            ]
            write_bytes(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        elif keep_up_to:
            logger.warning("%s is missing: the curves begin at step %d", path, keep_up_to)
        self._path, self._file = path, path.open("a", encoding="utf-8")

    def write(self, step: int, line: Mapping[str, Any]) -> None:
        """Append one line."""
        with full_disk_said(self._path):
            self._file.write(json.dumps({"step": step, **line}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with full_disk_said(self._path):
            self._file.close()


class WandbLog:
    """The same lines as a Weights & Biases run."""

    def __init__(self, project: str, name: str, config: Mapping[str, Any]):
        import wandb

        try:
            self._run = wandb.init(project=project, name=name, config=dict(config), reinit=True)
        except Exception as error:
            raise ResourceError(
                f"Weights & Biases could not start ({error}): set WANDB_MODE=offline, log in, or "
                "leave out --wandb-project"
            ) from error

    def write(self, step: int, line: Mapping[str, Any]) -> None:
        """Log one line, its figures grouped under the dictionary's name where it has one."""
        prefix = f"{line['dictionary']}/" if "dictionary" in line else ""
        figures = {f"{prefix}{key}": value for key, value in line.items() if key != "dictionary"}
        self._run.log(figures, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def read_log(path: Path, *, skip_damaged: bool = False) -> list[dict[str, Any]]:
    """The lines of a JSONL log; a last line cut short by a kill is left out.

    Args:
        path: the log.
        skip_damaged: leave out damaged lines, and those that name no step, with a warning.

    Raises:
        ArtifactError: no plain file; a line before the last is not JSON, or a line is no JSON
            object.
    """
    require_file(path, "log of training metrics")
    lines = path.read_bytes().splitlines()
    parsed: list[dict[str, Any]] = []
    damaged: list[int] = []
    for number, line in enumerate(lines, start=1):
        problem, content = "", None
        try:
            content = parse_json(line)
        except UnicodeDecodeError:
            problem = f"{path} is not a log of training metrics: line {number} is no text"
        except ValueError:
            if number < len(lines):
                problem = f"{path}, line {number}, is not JSON: it was damaged"
        else:
            if not isinstance(content, dict):
                problem = (
                    f"{path}, line {number}, is no JSON object: the file is not a log of metrics"
                )
        if problem and not skip_damaged:
            raise ArtifactError(problem)
        if isinstance(content, dict) and (not skip_damaged or _has_step(content)):
            parsed.append(content)
        else:
            damaged.append(number)
    if skip_damaged and set(damaged) - {len(lines)}:
        logger.warning("%s: damaged lines are left out (%s)", path, ", ".join(map(str, damaged)))
    return parsed


def _has_step(line: dict[str, Any]) -> bool:
    types = {"step": int, "dictionary": str, "tokens": int}
    return all(isinstance(line.get(name), kind) for name, kind in types.items())


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
        """Their names."""
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
    curves: dict[str, dict[str, Curve]] = {}
    for number, line in enumerate(lines, start=1):
        if not (isinstance(line.get("dictionary"), str) and isinstance(line.get("tokens"), int)):
            raise ArtifactError(
                f"{path}, line {number}, is not a line of training metrics (it names no dictionary "
                "and tokens): the file is of something else, or was edited"
            )
        of_dictionary = curves.setdefault(line["dictionary"], {})
        for key, value in line.items():
            if key not in NOT_CURVES and _is_number(value):
                curve = of_dictionary.setdefault(key, Curve([], []))
                curve.tokens.append(line["tokens"])
                curve.values.append(value)
    return TrainingHistory(curves)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
