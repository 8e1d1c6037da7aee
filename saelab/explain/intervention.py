"""The intervention score: does text written with a feature boosted lean to what it is said to be?

Each text with the feature boosted stands against one written from the same prompt, with the same
random numbers, that was boosted as strongly along a random direction. What any disturbance does to
a text then tells nothing; only what the feature stands for does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from saelab.dictionary import SavedDictionary
from saelab.features.label_content import Score
from saelab.features.records import Example
from saelab.features.token_text import Vocabulary
from saelab.features.unpacking import Windows, context_of
from saelab.live.edits import FeatureEdit
from saelab.live.lock import FairLock
from saelab.live.session import LiveSession, SharedModel
from saelab.model.language_model import LanguageModel
from saelab.stats.cosines import random_directions

from .scores import Measured, score_of, share_right

Text = TypeVar("Text")
Choices = Sequence[float | None]
"""Of each pair, 0 for the first, 1 for the second, 0.5 for neither; None where the answer could not
be read."""


@dataclass(frozen=True, eq=False)
class SteeredTexts:
    """What the model wrote after one prompt."""

    plain: Example
    """With nothing changed."""
    boosted: Example
    """With the feature boosted."""
    elsewhere: Example
    """Boosted as strongly along a random direction."""


class Steering:
    """Writes texts with features of a dictionary boosted, and with random directions.

    Args:
        model: the language model the dictionary was trained on.
        saved: the dictionary.
        vocabulary: of the model.
        seed: of the random directions and of what is written.
    """

    def __init__(
        self, model: LanguageModel, saved: SavedDictionary, vocabulary: Vocabulary, seed: int = 0
    ):
        elsewhere = deepcopy(saved.dictionary)
        rows = elsewhere.W_dec
        directions = random_directions(rows.shape[0], rows.shape[1], seed).to(rows)
        elsewhere.W_dec.data = directions * rows.norm(dim=1, keepdim=True)
        shared = SharedModel(model, FairLock())
        self._sessions = [
            LiveSession(shared, subject)
            for subject in (saved, replace(saved, dictionary=elsewhere))
        ]
        self._vocabulary = vocabulary
        self._seed = seed

    def texts(
        self,
        feature: int,
        maximum: float,
        prompts: Sequence[str],
        *,
        strength: float = 1.0,
        n_tokens: int = 30,
        temperature: float = 0.7,
    ) -> list[SteeredTexts]:
        """Write on from each prompt, without and with the boost.

        Args:
            feature: which.
            maximum: its largest activation in the store.
            prompts: what is written on from.
            strength: of the boost, in multiples of `maximum`, at every token.
            n_tokens: tokens to write, at most.
            temperature: at which they are drawn.

        Raises:
            ConfigError: a prompt without a token, or a feature that is never active.
        """
        edit = FeatureEdit(feature=feature, kind="add", strength=strength, maximum=maximum)
        written = []
        for number, prompt in enumerate(prompts):
            versions = []
            for session in self._sessions:
                steps = session.steer(
                    prompt,
                    [edit],
                    n_tokens=n_tokens,
                    temperature=temperature,
                    seed=self._seed + number,
                    max_tokens=session.model.max_context - n_tokens,
                )
                ids = torch.stack([step.tokens for step in steps], dim=1).numpy()
                versions.append([self._example(number, row) for row in ids])
            (plain, boosted), (_, elsewhere) = versions
            written.append(SteeredTexts(plain, boosted, elsewhere))
        return written

    def _example(self, number: int, ids: np.ndarray) -> Example:
        context = context_of(ids.astype(np.int64), np.ones(len(ids), bool), self._vocabulary)
        return Windows({number: context}, self._vocabulary, None).example(number, 0)


def intervention(
    choose: Callable[[Text, Sequence[tuple[Example, Example]]], Choices],
    written: Sequence[SteeredTexts],
    explanation: Text,
    *,
    shuffled: Text | None,
    seed: int = 0,
) -> Score | None:
    """How often an explanation tells which text was written with its feature boosted.

    The control `random` asks the same of texts boosted along the random direction, against plain
    ones: an explanation that fits whatever is disturbed is found out.

    Args:
        choose: says of each pair of texts which one a description fits better.
        written: the texts.
        own: the explanation.
        shuffled: another feature's explanation.
        seed: decides which text of a pair comes first.
    """
    in_place = (np.random.default_rng([seed, len(written)]).random(len(written)) < 0.5).tolist()

    def right(text: Text, pairs: Sequence[tuple[Example, Example]]) -> Measured:
        """How often the first of each pair was chosen, whichever place it was shown in."""
        shown = [(a, b) if keep else (b, a) for (a, b), keep in zip(pairs, in_place, strict=True)]
        chosen = zip(choose(text, shown), in_place, strict=True)
        return share_right(
            [
                None if choice is None else float(1 - choice if keep else choice)
                for choice, keep in chosen
            ]
        )

    pairs = [(texts.boosted, texts.elsewhere) for texts in written]
    return score_of(
        "intervention",
        [True] * len(written),
        right(explanation, pairs),
        shuffled=None if shuffled is None else right(shuffled, pairs),
        random=right(explanation, [(texts.elsewhere, texts.plain) for texts in written]),
    )
