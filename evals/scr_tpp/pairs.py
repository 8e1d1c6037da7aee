"""Texts with two labels of two values each, for SCR."""

from __future__ import annotations

from collections import Counter

from saelab.errors import TextError
from saelab.text.labelled import Columns, LabelledText, read_labelled, set_names

from ..labelled.examples import Examples, take_examples
from .suite import ScrTppConfig

TIE = " & "


def paired_examples(source: str, config: ScrTppConfig) -> Examples:
    """The examples of two labels, as many of each of the four combinations.

    Raises:
        TextError: as `read_labelled` says; or a label that has not two values.
    """
    text = _both(source, config)
    cells = Counter(text.labels)
    sides = [{cell.split(TIE)[side] for cell in cells} for side in (0, 1)]
    if [len(side) for side in sides] != [2, 2]:
        raise TextError(
            f"labelled text {text.name} has labels of {len(sides[0])} and {len(sides[1])} values: "
            "SCR needs two labels of two values each"
        )
    if len(cells) < 4:
        raise TextError(
            f"labelled text {text.name} has only the combinations {', '.join(sorted(cells))}: SCR "
            "needs texts of all four"
        )
    n = min(config.n_train + config.n_test, 4 * min(cells.values()))
    return take_examples(text, n, config.seed)


def _both(source: str, config: ScrTppConfig) -> LabelledText:
    """A data set whose labels are both labels tied together."""
    if "+" in source:
        names = [set_names([part])[0] for part in source.split("+", 1)]
        columns = Columns(text=config.text_column, label=config.label_column)
        first, second = (read_labelled(name, columns, config.dataset_split) for name in names)
        other = dict(zip(second.texts, second.labels, strict=True))
        given = {
            text: label + TIE + other[text]
            for text, label in zip(first.texts, first.labels, strict=True)
            if text in other
        }
        if not given:
            raise TextError(
                f"{names[0]} and {names[1]} have no text in common: SCR needs both "
                "labels of the same texts"
            )
        return LabelledText(name=source, texts=tuple(given), labels=tuple(given.values()))
    columns = Columns(
        text=config.text_column,
        label=config.label_column,
        second_label=config.second_label_column,
    )
    text = read_labelled(source, columns, config.dataset_split)
    tied = zip(text.labels, text.second_labels, strict=True)
    return LabelledText(name=text.name, texts=text.texts, labels=tuple(TIE.join(t) for t in tied))
