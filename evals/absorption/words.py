"""Single-token words, the prompts they stand in, and what the model holds at their tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.errors import ModelError
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar
from saelab.stats.seeds import seeded_generator

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LEAST_WORDS = 5
"""Words a letter must have to be looked at: one of them is tested."""
_WORD = re.compile(r" ?[A-Za-z]+")


@dataclass(frozen=True, eq=False)
class LetterWords:
    """The words that probes are trained and tested on, and the prompts before them."""

    text: list[str]
    """Each word as its token spells it, with a leading space or without."""
    token: Int[Tensor, " words"]
    letter: Int[Tensor, " words"]
    """Index of the first letter in the alphabet."""
    test: Bool[Tensor, " words"]
    """Whether a word is tested on; probes are trained on the others."""
    prompt: Int[Tensor, " words"]
    """Which of the prompts a word follows."""
    prompts: list[Int[Tensor, " seq"]]
    """Tokens of the examples before a word."""

    def __len__(self) -> int:
        return len(self.text)


def draw_words(
    model: LanguageModel,
    *,
    per_letter: int | None,
    test_fraction: float,
    n_examples: int,
    n_prompts: int,
    seed: int,
) -> LetterWords:
    """Draw words, divide them and make prompts.

    Words are tokens of the letters A to Z, with or without a leading space. Those that differ only
    in case or space are drawn together, so that none is trained on in one spelling and tested in
    another. The examples in the prompts are no words that are drawn.

    Args:
        model: whose vocabulary it is.
        per_letter: most words of a letter; None: all.
        test_fraction: of the words of each letter.
        n_examples: solved examples before each word.
        n_prompts: sets of examples; each word follows one of them.
        seed: decides examples, words and split.

    Raises:
        ModelError: the vocabulary has too few words.
    """
    groups = _spellings(model)
    generator = seeded_generator("absorption", "words", seed)
    ordered = sorted(groups)
    names = [ordered[index] for index in torch.randperm(len(groups), generator=generator).tolist()]
    n_shown = n_examples * n_prompts
    if len(names) < n_shown + LEAST_WORDS:
        raise ModelError(
            f"the vocabulary of {model.name} has {len(names)} words of the letters A to Z; "
            f"{n_shown} examples and words to test need more: lower --n-examples or --n-prompts, "
            "or evaluate another model"
        )
    shown, rest = names[:n_shown], names[n_shown:]
    prompts = [
        _prompt(model, [groups[name][0][1] for name in shown[start : start + n_examples]])
        for start in range(0, n_shown, n_examples)
    ]
    chosen: list[tuple[int, str, int, bool]] = []
    for index, letter in enumerate(LETTERS):
        spellings = [groups[name] for name in rest if name[0] == letter.lower()]
        total = sum(map(len, spellings))
        limit = total if per_letter is None else min(total, per_letter)
        if limit < LEAST_WORDS:
            continue
        taken = [(*each, n) for n, group in enumerate(spellings) for each in group][:limit]
        n_test = max(1, round(test_fraction * limit))
        last = taken[n_test - 1][2]
        chosen += [(id_, text, index, group <= last) for id_, text, group in taken]
    if not chosen:
        raise ModelError(
            f"no letter has {LEAST_WORDS} words in the vocabulary of {model.name}: evaluate a "
            "model with a vocabulary of words"
        )
    which = torch.randint(len(prompts), (len(chosen),), generator=generator)
    ids, texts, letters, tested = zip(*chosen, strict=True)
    return LetterWords(
        [*texts], torch.tensor(ids), torch.tensor(letters), torch.tensor(tested), which, prompts
    )


def _spellings(model: LanguageModel) -> dict[str, list[tuple[int, str]]]:
    """Lower-case word -> its tokens with their spellings."""
    groups: dict[str, list[tuple[int, str]]] = {}
    ids = [id_ for id_ in range(model.tokenizer_size) if id_ not in model.special_ids]
    for id_, text in zip(ids, model.token_strings(ids), strict=True):
        if _WORD.fullmatch(text):
            groups.setdefault(text.strip().lower(), []).append((id_, text))
    return groups


def _prompt(model: LanguageModel, words: Sequence[str]) -> Int[Tensor, " seq"]:
    """The start token and a line for each example; the next word follows a line end."""
    lines = [f"{word} has the first letter: {word.strip()[0].upper()}" for word in words]
    (ids,) = model.tokenize(["\n".join(["", *lines, ""])])
    return torch.tensor(([] if model.bos_id is None else [model.bos_id]) + ids)


def activations_at(
    model: LanguageModel, words: LetterWords, hook_points: Sequence[str], batch_words: int
) -> dict[str, Float[Tensor, "words _"]]:
    """What hook points hold at each word's token, float32 on the model's device."""
    rows = {
        name: torch.empty(len(words), model.width_at(name), device=model.device)
        for name in hook_points
    }
    with progress_bar(len(words), "read words", "words") as bar:
        for index, prompt in enumerate(words.prompts):
            for part in (words.prompt == index).nonzero().flatten().split(batch_words):
                captured = model.capture(words.token[part, None], hook_points, after=prompt)
                for name, x in captured.items():
                    rows[name][part.to(model.device)] = x[:, 0].float()
                bar.update(len(part))
    return rows
