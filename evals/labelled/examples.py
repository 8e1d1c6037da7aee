"""Which examples of a data set are taken, what is asked of them, and how they are split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from saelab.errors import TextError
from saelab.formats.files import hash_of
from saelab.text.labelled import LabelledText

MOST_CLASSES = 10
"""Different labels up to which each is a class; of more, numbers are cut at their median."""


@dataclass(frozen=True, kw_only=True)
class BinaryTask:
    """A question with two answers about each example."""

    name: str
    """Which label is asked for."""
    positive: Bool[np.ndarray, " examples"]
    """The answer for each example."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """The examples that are taken of a data set."""

    name: str
    """Of the data set."""
    set_hash: str
    """Its content hash."""
    texts: tuple[str, ...]
    """No two are equal."""
    classes: tuple[str, ...]
    """Names of the classes."""
    of_class: Int[np.ndarray, " examples"]
    """Class of each example."""

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over the texts."""
        return hash_of(self.texts)

    def tasks(self) -> list[BinaryTask]:
        """One task of two classes; of several, each against the rest."""
        asked = range(1, 2) if len(self.classes) == 2 else range(len(self.classes))
        return [
            BinaryTask(name=self.classes[index], positive=self.of_class == index) for index in asked
        ]


def classes_of(text: LabelledText) -> tuple[tuple[str, ...], Int[np.ndarray, " texts"]]:
    """Names of the classes, in the order of their names, and the class of each text.

    Raises:
        TextError: more than `MOST_CLASSES` labels that are no numbers.
    """
    names = sorted(set(text.labels))
    if len(names) <= MOST_CLASSES:
        index = {name: position for position, name in enumerate(names)}
        return tuple(names), np.array([index[label] for label in text.labels])
    try:
        numbers = np.array([float(label) for label in text.labels])
    except ValueError:
        raise TextError(
            f"labelled text {text.name} has {len(names)} different labels that are no numbers: a "
            f"probe needs at most {MOST_CLASSES} classes, or numbers, which are cut at their median"
        ) from None
    middle = float(np.median(numbers))
    return (f"up to {middle:g}", f"above {middle:g}"), (numbers > middle).astype(np.int64)


def take_examples(text: LabelledText, n: int, seed: int, *, least: int = 8) -> Examples:
    """Examples of a data set, as many of each class as there are, up to `n` in all.

    Which ones is decided by seed and text alone, so that data sets of the same texts share many.

    Args:
        text: the data set.
        n: most examples.
        seed: decides which.
        least: fewest of a class.

    Raises:
        TextError: a class has fewer than `least` texts.
    """
    names, classes = classes_of(text)
    keys = [hashlib.sha256(f"{seed}:{t}".encode("utf-8", "replace")).digest() for t in text.texts]
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__))
    chosen: list[int] = []
    for index, name in enumerate(names):
        members = order[classes[order] == index]
        if len(members) < least:
            raise TextError(
                f"labelled text {text.name} has {len(members)} different texts of label {name!r}: "
                f"at least {least} are needed"
            )
        chosen += members[: -(-n // len(names))].tolist()
    chosen.sort()
    return Examples(
        name=text.name,
        set_hash=text.content_hash,
        texts=tuple(text.texts[i] for i in chosen),
        classes=names,
        of_class=classes[chosen],
    )


def split_examples(
    of_class: Int[np.ndarray, " examples"], train_share: float, *purpose: object
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
    """A random split within each class.

    Args:
        of_class: class of each example.
        train_share: share of each class that is trained on.
        purpose: what the draw depends on.

    Returns:
        Indices of the examples for training, then of those for the test, in random order.
    """
    generator = np_generator("split", *purpose)
    train, test = [], []
    for index in np.unique(of_class):
        members = generator.permutation(np.flatnonzero(of_class == index))
        cut = min(max(round(train_share * len(members)), 1), len(members) - 1)
        train.append(members[:cut])
        test.append(members[cut:])
    return generator.permutation(np.concatenate(train)), np.concatenate(test)


def np_generator(*purpose: object) -> np.random.Generator:
    """A generator of its own for each purpose."""
    return np.random.default_rng(int(hash_of(list(purpose))[:15], 16))


def evenly(names: Sequence[str], most: int | None) -> list[str]:
    """At most so many, evenly chosen."""
    if most is None or most >= len(names):
        return list(names)
    return [names[i * len(names) // most] for i in range(most)]
