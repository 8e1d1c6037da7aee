"""Subject-verb agreement: "Everyone knows that the boys beside the teacher" goes on "are".

Attributes: `number` of the subject, its `noun`, and number and noun of another noun in between, the
attractor. The verb asked for is drawn per prompt and is not in it, so it is no attribute; the
prediction is the likeliest of all the verb forms, because what follows a noun is often no verb.
Source: arXiv 2405.08366's general interface; the frames are our own, the idea is that of
"Sparse feature circuits" (Marks et al. 2024).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial

from saelab.errors import ConfigError

from . import (
    CrossSectionTemplate,
    FrameWriter,
    Prompt,
    Role,
    Task,
    Tokenizer,
    frames_of,
    in_split,
    listed,
    most_likely_of,
    require_split,
)

NOUNS = tuple(
    (word, word + "s")
    for word in listed(
        "boy girl king queen doctor teacher student farmer driver writer author singer "
        "actor artist lawyer judge nurse officer pilot soldier worker manager engineer chef dancer "
        "painter poet priest guard guest hunter sailor parent friend neighbor player leader "
        "senator president minister professor scientist customer client patient visitor tourist"
    )
)
"""Nouns of people: (singular, plural)."""

VERBS = (
    ("is", "are"),
    ("was", "were"),
    ("has", "have"),
    ("needs", "need"),
    ("does", "do"),
    ("knows", "know"),
)
"""Verbs: (form of a singular subject, form of a plural one)."""

FRAMES = (
    "Everyone knows that the {subject} beside the {attractor}",
    "It is true that the {subject} behind the {attractor}",
    "These days the {subject} with the {attractor}",
)
UNSEEN_FRAME = "The {subject} on the left of the {attractor}"
NUMBERS = ("singular", "plural")
MOST_NOUNS = 40
FEWEST_NOUNS = 5


def subject_verb_agreement_task(tokenizer: Tokenizer) -> Task:
    """The task for one model's tokenizer.

    Raises:
        ConfigError: too few nouns or verbs have single tokens for both forms.
    """
    forms = _single_pairs(tokenizer, NOUNS, FEWEST_NOUNS, "nouns")[:MOST_NOUNS]
    verbs = _single_pairs(tokenizer, VERBS, 2, "verbs")
    task = _Agreement(FrameWriter(tokenizer), dict(forms), dict(verbs))
    nouns = tuple(singular for singular, _ in forms)
    answers = tuple(task.writer.token(form) for pair in verbs for form in pair)
    return Task(
        name="subject_verb_agreement",
        title="give the verb the number of its subject",
        attributes={
            "number": NUMBERS,
            "noun": nouns,
            "attractor_number": NUMBERS,
            "attractor": nouns,
        },
        positions=("subject", "attractor", "end"),
        answer_tokens=answers,
        predict=partial(most_likely_of, tokens=answers),
        sample=task.sample,
        counterfactual=task.counterfactual,
        edits=(("number",), ("attractor_number",), ("noun",)),
        exclusive=(("noun", "attractor"),),
        roles=(
            Role(name="number reader", edit=("number",), position="end", n_heads=8),
            Role(
                name="attractor reader",
                edit=("attractor_number",),
                position="end",
                n_heads=4,
                not_in=("number reader",),
            ),
        ),
        cross_sections=(
            CrossSectionTemplate(
                name="number reader out",
                roles=("number reader",),
                parts=(("z", "end"),),
                edits=(("number",), ("attractor_number",)),
            ),
            CrossSectionTemplate(
                name="number reader v",
                roles=("number reader",),
                parts=(("v", "subject"),),
                edits=(("number",), ("noun",)),
            ),
        ),
    )


def _single_pairs(
    tokenizer: Tokenizer, pairs: tuple[tuple[str, str], ...], at_least: int, what: str
) -> tuple[tuple[str, str], ...]:
    """The pairs of which both forms are single tokens after a space."""
    tokens = tokenizer.tokenize([f" {form}" for pair in pairs for form in pair])
    kept = tuple(
        pair
        for index, pair in enumerate(pairs)
        if len(tokens[2 * index]) == 1 and len(tokens[2 * index + 1]) == 1
    )
    if len(kept) < at_least:
        raise ConfigError(
            f"task subject_verb_agreement: only {len(kept)} of its {len(pairs)} {what} have single "
            f"tokens for both forms in {tokenizer.name}, and {at_least} are needed: this task "
            "cannot be built for this model; choose another task or model"
        )
    return kept


class _Agreement:
    """The words of one tokenizer, and how prompts are made from them."""

    def __init__(self, writer: FrameWriter, nouns: dict[str, str], verbs: dict[str, str]):
        self.writer = writer
        self.nouns = nouns
        self.verbs = verbs
        first, second, *_ = nouns
        for frame in (*FRAMES, UNSEEN_FRAME):
            writer.check(frame, {"subject": first, "attractor": second})

    def sample(self, n: int, split: str, seed: int) -> list[Prompt]:
        """Prompts with frame, nouns, numbers and verb drawn uniformly; the nouns differ."""
        require_split(split)
        draw = random.Random(f"subject_verb_agreement {split} {seed}")
        frames = frames_of(split, FRAMES, UNSEEN_FRAME)
        prompts = []
        while len(prompts) < n:
            noun, attractor = draw.sample(list(self.nouns), 2)
            labels = {
                "number": draw.choice(NUMBERS),
                "noun": noun,
                "attractor_number": draw.choice(NUMBERS),
                "attractor": attractor,
            }
            if in_split(split, *labels.values()):
                verb = draw.choice(list(self.verbs))
                meta = {"frame": draw.choice(frames), "verb": verb, "split": split}
                prompts.append(self.build(labels, meta))
        return prompts

    def build(self, labels: Mapping[str, str], meta: Mapping[str, str]) -> Prompt:
        """The prompt of labels in a frame."""

        def form(noun: str, number: str) -> str:
            return noun if number == "singular" else self.nouns[noun]

        words = {
            "subject": form(labels["noun"], labels["number"]),
            "attractor": form(labels["attractor"], labels["attractor_number"]),
        }
        tokens, ends = self.writer.write(meta["frame"], words)
        answers = [
            (self.writer.token(meta["verb"]),),
            (self.writer.token(self.verbs[meta["verb"]]),),
        ]
        if labels["number"] == "plural":
            answers.reverse()
        return Prompt(
            tokens=tokens,
            labels=dict(labels),
            positions={
                "subject": ends["subject"][0],
                "attractor": ends["attractor"][0],
                "end": len(tokens) - 1,
            },
            correct=answers[0],
            incorrect=answers[1],
            meta=dict(meta),
        )

    def counterfactual(
        self, prompt: Prompt, changes: Mapping[str, str | None], draw: random.Random
    ) -> Prompt | None:
        """The prompt with the number or the noun of subject or attractor changed."""
        labels = dict(prompt.labels)
        for attribute, value in changes.items():
            if attribute in ("number", "attractor_number"):
                labels[attribute] = value or NUMBERS[labels[attribute] == "singular"]
                continue
            taken = {labels["noun"], labels["attractor"], prompt.labels[attribute]}
            left = [noun for noun in self.nouns if noun not in taken]
            if value is None and not left:
                return None
            labels[attribute] = value or draw.choice(left)
        if labels["noun"] == labels["attractor"]:
            return None
        return self.build(labels, prompt.meta)
