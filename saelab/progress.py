"""Progress bars with a rate and the time left; silent where nobody is watching."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress_bar(total: int | None, description: str, unit: str, initial: int = 0) -> Iterator[Any]:
    """A bar on standard error, drawn only where that is a terminal.

    Call `.update(n)` with the units done since the last call and `.set_postfix_str(text)` for the
    figures beside it. `total=None` means unknown; `initial` is what an earlier run had done.
    """
    from tqdm import tqdm

    with tqdm(
        total=total,
        desc=description,
        unit=f" {unit}",
        unit_scale=True,
        initial=initial,
        disable=not sys.stderr.isatty(),
        dynamic_ncols=True,
        smoothing=0.05,
    ) as bar:
        yield bar
