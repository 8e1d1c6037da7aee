"""Gendered pronoun: "So Mary is such a good doctor, isn't" is answered "she" rather than "he".

Attributes: `name`, `gender` and `profession`. The name determines the gender (they are nested): a
change of gender draws a name of the other gender, a change of name one of the same, which should
leave the answer as it is. Source: arXiv 2405.08366's general interface; lists and frames our own.
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
    require_split,
    single_tokens,
)
from .ioi import FEMALE, MALE

PROFESSIONS = listed(
    "doctor nurse teacher lawyer chef baker writer singer dancer painter pilot driver farmer "
    "professor student manager coach player judge guard soldier cook poet dentist librarian "
    "secretary carpenter designer musician photographer reporter runner swimmer"
)
"""Professions, used with "a" and an adjective."""

FRAMES = (
    "So {name} is such a good {profession}, isn't",
    "I heard that {name} is a very busy {profession}, isn't",
    "It seems that {name} became a famous {profession} when",
)
UNSEEN_FRAME = "Everyone knows {name} is a great {profession} because"
PRONOUNS = {"female": "she", "male": "he"}
MOST_NAMES = 40


def gendered_pronoun_task(tokenizer: Tokenizer) -> Task:
    """The task for one model's tokenizer.

    Raises:
        ConfigError: too few names or professions are single tokens, or a pronoun is not.
    """
    pick = partial(single_tokens, tokenizer, task="gendered_pronoun")
    pick(tuple(PRONOUNS.values()), at_least=2, what="pronouns")
    names = {
        "female": pick(FEMALE, at_least=5, what="female names")[:MOST_NAMES],
        "male": pick(MALE, at_least=5, what="male names")[:MOST_NAMES],
    }
    professions = pick(PROFESSIONS, at_least=5, what="professions")
    task = _Pronoun(FrameWriter(tokenizer), names, professions)
    return Task(
        name="gendered_pronoun",
        title="refer to a person by the pronoun that fits the name",
        attributes={
            "gender": ("female", "male"),
            "name": names["female"] + names["male"],
            "profession": professions,
        },
        positions=("name", "profession", "end"),
        answer_tokens=tuple(task.writer.token(word) for word in PRONOUNS.values()),
        sample=task.sample,
        counterfactual=task.counterfactual,
        edits=(("gender",), ("name",), ("profession",)),
        nested={"name": "gender"},
        roles=(Role(name="gender reader", edit=("gender",), position="end", n_heads=8),),
        cross_sections=(
            CrossSectionTemplate(
                name="gender reader out",
                roles=("gender reader",),
                parts=(("z", "end"),),
                edits=(("gender",), ("name",)),
            ),
            CrossSectionTemplate(
                name="gender reader v",
                roles=("gender reader",),
                parts=(("v", "name"),),
                edits=(("gender",), ("name",)),
            ),
        ),
    )


class _Pronoun:
    """The words of one tokenizer, and how prompts are made from them."""

    def __init__(
        self,
        writer: FrameWriter,
        names: dict[str, tuple[str, ...]],
        professions: tuple[str, ...],
    ):
        self.writer = writer
        self.names = names
        self.professions = professions
        self.genders = {name: gender for gender, list_ in names.items() for name in list_}
        for frame in (*FRAMES, UNSEEN_FRAME):
            writer.check(frame, {"name": names["female"][0], "profession": professions[0]})

    def sample(self, n: int, split: str, seed: int) -> list[Prompt]:
        """Prompts with frame, gender, name and profession drawn uniformly."""
        require_split(split)
        draw = random.Random(f"gendered_pronoun {split} {seed}")
        frames = frames_of(split, FRAMES, UNSEEN_FRAME)
        prompts = []
        while len(prompts) < n:
            gender = draw.choice(tuple(self.names))
            name, profession = draw.choice(self.names[gender]), draw.choice(self.professions)
            frame = draw.choice(frames)
            if in_split(split, name, profession, frame):
                labels = {"gender": gender, "name": name, "profession": profession}
                prompts.append(self.build(labels, {"frame": frame, "split": split}))
        return prompts

    def build(self, labels: Mapping[str, str], meta: Mapping[str, str]) -> Prompt:
        """The prompt of labels in a frame."""
        tokens, ends = self.writer.write(meta["frame"], labels)
        right = PRONOUNS[labels["gender"]]
        wrong = next(word for word in PRONOUNS.values() if word != right)
        return Prompt(
            tokens=tokens,
            labels=dict(labels),
            positions={
                "name": ends["name"][0],
                "profession": ends["profession"][0],
                "end": len(tokens) - 1,
            },
            correct=(self.writer.token(right),),
            incorrect=(self.writer.token(wrong),),
            meta=dict(meta),
        )

    def counterfactual(
        self, prompt: Prompt, changes: Mapping[str, str | None], draw: random.Random
    ) -> Prompt | None:
        """The prompt with another name, gender and name, or profession.

        Raises:
            ConfigError: a name was given together with a gender that it does not have.
        """
        labels = dict(prompt.labels)
        if "gender" in changes:
            other = "male" if labels["gender"] == "female" else "female"
            labels["gender"] = changes["gender"] or other
            if labels["gender"] != prompt.labels["gender"]:
                labels["name"] = draw.choice(self.names[labels["gender"]])
        if "name" in changes:
            left = [name for name in self.names[labels["gender"]] if name != labels["name"]]
            labels["name"] = changes["name"] or draw.choice(left)
            gender = self.genders[labels["name"]]
            if changes.get("gender") not in (None, gender):
                raise ConfigError(
                    f"task gendered_pronoun: {labels['name']} is {gender}, not "
                    f"{changes['gender']}: give one or the other"
                )
            labels["gender"] = gender
        if "profession" in changes:
            left = [word for word in self.professions if word != labels["profession"]]
            labels["profession"] = changes["profession"] or draw.choice(left)
        return self.build(labels, prompt.meta)
