"""What a number of the suite "dark_matter" is: a unit and a sentence that travels with it."""

from __future__ import annotations

from typing import NamedTuple


class Definition(NamedTuple):
    """A metric's unit and its sentence; braces hold facts of the run."""

    unit: str
    """Unit of the value; "1" for ratios."""
    text: str
    """How the number is computed."""
