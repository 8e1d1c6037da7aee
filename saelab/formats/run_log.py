"""Where metrics go while a run is under way: a JSONL file always, Weights & Biases on request.

The only module that imports wandb, and only when asked to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from saelab.errors import ArtifactError, ResourceError

from .files import write_bytes


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
            kept = [line for line in read_log(path) if line["step"] <= keep_up_to]
            write_bytes(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, line: Mapping[str, Any]) -> None:
        """Append one line."""
        self._file.write(json.dumps({"step": step, **line}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
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


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL log; a last line cut short by a kill is left out.

    Raises:
        ArtifactError: a line before the last is not JSON, or a line is no JSON object.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    parsed = []
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            if number < len(lines):
                raise ArtifactError(f"{path}, line {number}, is not JSON: it was damaged") from None
            continue
        if not isinstance(content, dict):
            raise ArtifactError(
                f"{path}, line {number}, is no JSON object: the file is not a log of metrics"
            )
        parsed.append(content)
    return parsed
