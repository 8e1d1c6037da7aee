"""Whether a suite writes the page of a result: hundreds of them are megabytes nobody opens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def page_if(wanted: bool, path: Path, write: Callable[[Path], object]) -> None:
    """Write a page; where it is not wanted, remove the one of an older result that lies there."""
    if wanted:
        write(path)
    else:
        path.unlink(missing_ok=True)
