"""Subject-verb agreement: "Everyone knows that the boys beside the teacher" goes on "are".

Attributes: `number` of the subject, its `noun`, and number and noun of another noun in between, the
attractor. The verb asked for is drawn per prompt and is not in it, so it is no attribute; the
prediction is the likeliest of all the verb forms, because what follows a noun is often no verb.
Source: arXiv 2405.08366's general interface; the frames are our own, the idea is that of
"Sparse feature circuits" (Marks et al. 2024).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

from . import (
    CrossSectionTemplate,
    Drawn,
    FramePrompts,
    Labels,
    Prompt,
    Role,
    Task,
    Tokenizer,
    in_split,
    most_likely_of,
    single_tokens,
)

PEOPLE = (
    "boy girl king queen doctor teacher student farmer driver writer author singer "
    "actor artist lawyer judge nurse officer pilot soldier worker manager engineer chef dancer "
    "painter poet priest guard guest hunter sailor parent friend neighbor player leader "
    "senator president minister professor scientist customer client patient visitor tourist"
)
VERBS = "is/are was/were has/have needs/need does/do knows/know"
"""Forms of a singular and of a plural subject."""
NUMBERS = ("singular", "plural")


def subject_verb_agreement_task(tokenizer: Tokenizer) -> Task:
    """The task for one model's tokenizer.

    Raises:
        ConfigError: too few nouns or verbs have single tokens for both forms.
    """
    pick = partial(single_tokens, tokenizer, task="subject_verb_agreement")
    people = " ".join(f"{word}/{word}s" for word in PEOPLE.split())
    nouns = dict(pair.split("/") for pair in pick(people, at_least=5, what="nouns")[:40])
    verbs = dict(pair.split("/") for pair in pick(VERBS, at_least=2, what="verbs"))
    prompts = _Agreement(tokenizer, nouns, verbs)
    answers = tuple(prompts.token(form) for pair in verbs.items() for form in pair)
    number, attractor, noun = ("number",), ("attractor_number",), ("noun",)
    reader = ("number reader",)
    return Task(
        name="subject_verb_agreement",
        title="give the verb the number of its subject",
        attributes={
            "number": NUMBERS,
            "noun": tuple(nouns),
            "attractor_number": NUMBERS,
            "attractor": tuple(nouns),
        },
        positions=("subject", "attractor", "end"),
        answer_tokens=answers,
        predict=partial(most_likely_of, tokens=answers),
        sample=prompts.sample,
        counterfactual=prompts.counterfactual,
        edits=(number, attractor, noun),
        exclusive=prompts.exclusive,
        roles=(
            Role("number reader", edit=number, position="end", n_heads=8),
            Role("attractor reader", edit=attractor, position="end", n_heads=4, not_in=reader),
        ),
        cross_sections=(
            CrossSectionTemplate(
                "number reader out", reader, (("z", "end"),), edits=(number, attractor)
            ),
            CrossSectionTemplate("number reader v", reader, (("v", "subject"),), (number, noun)),
        ),
    )


class _Agreement(FramePrompts):
    name = "subject_verb_agreement"
    frames = (
        "Everyone knows that the {subject} beside the {attractor}",
        "It is true that the {subject} behind the {attractor}",
        "These days the {subject} with the {attractor}",
    )
    unseen_frame = "The {subject} on the left of the {attractor}"
    exclusive = (("noun", "attractor"),)

    def __init__(self, tokenizer: Tokenizer, nouns: dict[str, str], verbs: dict[str, str]):
        self.nouns, self.verbs = nouns, verbs
        words = list(nouns)
        pools = {"number": NUMBERS, "attractor_number": NUMBERS, "noun": words, "attractor": words}
        super().__init__(tokenizer, pools, {"subject": words[0], "attractor": words[1]})

    def draw_labels(self, draw: random.Random, split: str, frames: Sequence[str]) -> Drawn:
        noun, attractor = draw.sample(list(self.nouns), 2)
        numbers = draw.choice(NUMBERS), draw.choice(NUMBERS)
        labels = {
            "number": numbers[0],
            "noun": noun,
            "attractor_number": numbers[1],
            "attractor": attractor,
        }
        if not in_split(split, *labels.values()):
            return None
        verb = draw.choice(list(self.verbs))
        return labels, {"frame": draw.choice(frames), "verb": verb}

    def build(self, labels: Labels, meta: Labels) -> Prompt:
        words = {
            slot: labels[noun] if labels[number] == "singular" else self.nouns[labels[noun]]
            for slot, noun, number in (
                ("subject", "noun", "number"),
                ("attractor", "attractor", "attractor_number"),
            )
        }
        tokens, ends = self.write(meta["frame"], words)
        positions = {slot: ends[slot][0] for slot in words} | {"end": len(tokens) - 1}
        forms = (self.token(meta["verb"]),), (self.token(self.verbs[meta["verb"]]),)
        right, wrong = forms if labels["number"] == "singular" else forms[::-1]
        return Prompt(tokens, labels, positions, right, wrong, meta)
