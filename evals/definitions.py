"""What the numbers of a suite mean, in words that travel with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saelab.formats.evaluation_result import Better, Definition


def filled_in(
    meanings: Mapping[str, Mapping[str, str]],
    facts: Mapping[str, Any],
    *,
    units: Mapping[str, str],
    better: Mapping[str, Better],
) -> list[Definition]:
    """Definitions in reading order, from a table of texts.

    Args:
        meanings: heading -> number -> text, in which braces name facts.
        facts: of a measurement; integers are written with thousands apart.
        units: of the numbers that are no ratios.
        better: the better direction of the numbers that have one.

    Raises:
        KeyError: a fact that a text names was not given.
    """
    words = {name: f"{fact:,}" if isinstance(fact, int) else fact for name, fact in facts.items()}
    return [
        Definition(
            name=name,
            unit=units.get(name, "1"),
            text=text.format_map(words),
            group=group,
            better=better.get(name, "neither"),
        )
        for group, texts in meanings.items()
        for name, text in texts.items()
    ]
