"""Two tasks with given names: indirect object identification and the gendered pronoun.

Names and other words are single tokens of the model; the word lists and frames are our own.

* ioi: "Then, Mary and John … John gave a ring to" is answered "Mary". Attributes: `io`, the name
  that is asked for; `s`, the name that comes twice; `pos`, which of them comes first (ABB: the
  first name is `io`). Source: Makelov, Lange & Nanda, arXiv 2405.08366, A.4.
* gendered_pronoun: "So Mary is such a good doctor, isn't" is answered "she" rather than "he".
  Attributes: `name`, `gender` and `profession`. The name determines the gender (they are nested): a
  change of gender draws a name of the other gender, a change of name one of the same, which should
  leave the answer as it is. Source: arXiv 2405.08366's general interface.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

from saelab.errors import ConfigError

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
    single_tokens,
)

FEMALE = (
    "Mary Anna Emma Sarah Laura Julia Alice Kate Jane Amy Lisa Maria Linda Karen Susan Nancy Helen "
    "Rachel Rebecca Hannah Emily Sophie Lucy Claire Diana Ella Olivia Lily Ruth Naomi Esther "
    "Martha Alison Andrea Angela Anne Barbara Carol Caroline Catherine Charlotte Christina "
    "Christine Clara Daisy Dorothy Elizabeth Ellen Eleanor Florence Heather Holly Isabel Isabella "
    "Jackie Jennifer Jenny Jessica Jill Joan Judith Judy Julie Katherine Kathleen Katie Kelly "
    "Lauren Leslie Louise Margaret Marie Melissa Michelle Molly Monica Nicole Nina Patricia Sally "
    "Samantha Sandra Sara Sharon Shirley Sophia Stephanie Sue Teresa Victoria Virginia Wendy "
    "Abigail Agnes Amelia Bella Deborah Edith Erin Frances Lorraine Miranda Rosa Ruby"
)
"""Given names of women."""

MALE = (
    "John James Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Anthony "
    "Paul Andrew Joshua Kenneth Kevin Brian George Edward Ronald Timothy Jason Jeffrey Ryan Jacob "
    "Gary Nicholas Eric Jonathan Stephen Larry Justin Scott Benjamin Samuel Gregory Frank "
    "Alexander Raymond Patrick Jack Dennis Jerry Tyler Aaron Jose Adam Henry Nathan Douglas Peter "
    "Walter Ethan Jeremy Harold Keith Roger Noah Gerald Carl Terry Sean Arthur Lawrence Jesse "
    "Bryan Joe Albert Gabriel Alan Juan Wayne Roy Ralph Eugene Vincent Russell Louis Bobby Philip "
    "Simon Tom Tim Tony Luke Lucas Oliver Oscar Sam Steve Stuart Theodore Harry Hugh Ian Isaac "
    "Ivan Jim Julian Karl Leonard Martin Marcus Mario Neil Norman Owen"
)
"""Given names of men."""

OBJECTS = (
    "ring book drink bone computer necklace basketball snack ball pen pencil letter cup plate "
    "bottle map key coin ticket card box bag hat coat watch phone camera lamp chair blanket pillow "
    "towel brush mirror clock knife spoon bowl basket bucket rope hammer flower plant rock feather "
    "candle flag drum guitar violin bell toy doll puzzle kite balloon bicycle cake cookie pie "
    "banana lemon peach potato sandwich pizza salad newspaper magazine notebook photo picture "
    "poster gift present medal"
)
"""Things that one person can give to another, used with "a"."""

PLACES = (
    "store school park garden house hospital office restaurant library museum station airport "
    "market bank church hotel bar gym beach river lake farm zoo theater cinema stadium pool "
    "playground mall bakery factory warehouse harbor castle palace temple kitchen garage studio "
    "gallery shop pub club camp"
)
"""Places, used with "the"."""

PROFESSIONS = (
    "doctor nurse teacher lawyer chef baker writer singer dancer painter pilot driver farmer "
    "professor student manager coach player judge guard soldier cook poet dentist librarian "
    "secretary carpenter designer musician photographer reporter runner swimmer"
)
"""Professions, used with "a" and an adjective."""

ORDERS = ("ABB", "BAB")
NAME_MOVER = Role("name mover", edit=("io",), position="end", n_heads=8)
S_INHIBITION = Role(
    "S-inhibition", edit=("pos",), position="end", n_heads=4, not_in=("name mover",)
)
INDUCTION = Role("induction and duplicate token", edit=("pos",), position="s2", n_heads=6)
ALL_EDITS = (("io",), ("s",), ("pos",), ("s", "pos"))
S_EDITS = ALL_EDITS[1:]
IOI_CROSS_SECTIONS = tuple(
    CrossSectionTemplate(f"{role.name} {part}", (role.name,), parts, edits)
    for role, part, parts, edits in (
        (NAME_MOVER, "out", (("z", "end"),), (("io",),)),
        (NAME_MOVER, "q", (("q", "end"),), ALL_EDITS[:3]),
        (
            NAME_MOVER,
            "qk",
            (("q", "end"), ("k", "io"), ("k", "s1")),
            (*ALL_EDITS, ("io", "s", "pos")),
        ),
        (S_INHIBITION, "out", (("z", "end"),), S_EDITS),
        (S_INHIBITION, "v", (("v", "s2"),), S_EDITS),
        (INDUCTION, "out", (("z", "s2"),), S_EDITS),
    )
)


def ioi_task(tokenizer: Tokenizer) -> Task:
    """Indirect object identification for one model's tokenizer.

    Raises:
        ConfigError: too few of the names, objects or places are single tokens.
    """
    pick = partial(single_tokens, tokenizer, task="ioi")
    women = pick(FEMALE, at_least=12, what="female names")[:50]
    men = pick(MALE, at_least=12, what="male names")[:50]
    # Alternating genders make every quarter of the list half women, half men.
    names = tuple(chain.from_iterable(zip(women, men, strict=False)))
    genders = dict.fromkeys(women, "female") | dict.fromkeys(men, "male")
    objects = pick(OBJECTS, at_least=5, what="objects")
    prompts = _Ioi(tokenizer, names, objects, pick(PLACES, at_least=5, what="places"))
    by_gender = {"gender": {name: genders[name] for name in names}}
    return Task(
        name="ioi",
        title="name the one of two people who is not named again",
        attributes={"io": names, "s": names, "pos": ORDERS},
        positions=("io", "s1", "s1+1", "s2", "first", "second", "end"),
        answer_tokens=tuple(map(prompts.token, names)),
        sample=prompts.sample,
        counterfactual=prompts.counterfactual,
        edits=ALL_EDITS,
        exclusive=prompts.exclusive,
        groups={"io": by_gender, "s": by_gender},
        parametrisations={
            "coupled": {
                "io,pos": lambda labels: f"{labels['io']} {labels['pos']}",
                "s,pos": lambda labels: f"{labels['s']} {labels['pos']}",
            },
            "names": {
                "first": lambda labels: labels["io" if labels["pos"] == "ABB" else "s"],
                "second": lambda labels: labels["s" if labels["pos"] == "ABB" else "io"],
                "third": lambda labels: labels["s"],
            },
        },
        roles=(NAME_MOVER, S_INHIBITION, INDUCTION),
        cross_sections=IOI_CROSS_SECTIONS,
    )


class _Ioi(FramePrompts):
    """Base names of the test splits are of the first half of the list, the new names of
    counterfactuals of its third (`io`) and fourth quarter (`s`), so no edit is a no-op."""

    name = "ioi"
    frames = (
        "Then, {first} and {second} had a long argument at the {place}, and then {third} said to",
        "Then, {first} and {second} had a lot of fun at the {place}. {third} gave a {object} to",
        "Then, {first} and {second} were working at the {place}. "
        "{third} decided to give a {object} to",
    )
    unseen_frame = (
        "Then, {first} and {second} went to the {place} in the morning, "
        "and {third} handed a {object} to"
    )
    exclusive = (("io", "s"),)

    def __init__(
        self,
        tokenizer: Tokenizer,
        names: Sequence[str],
        objects: Sequence[str],
        places: Sequence[str],
    ):
        self.names, self.objects, self.places = names, objects, places
        half, quarter = len(names) // 2, len(names) // 4
        new = {"io": names[half : half + quarter], "s": names[half + quarter :]}
        first, second, *_ = names
        words = {"first": first, "second": second, "third": second}
        super().__init__(
            tokenizer,
            {**new, "pos": ORDERS},
            {**words, "object": objects[0], "place": places[0]},
        )

    def draw_labels(self, draw: random.Random, split: str, frames: Sequence[str]) -> Drawn:
        tested = split in ("test", "unseen_frame")
        io, s = draw.sample(self.names[: len(self.names) // 2] if tested else self.names, 2)
        place = draw.choice(self.places)
        # Names alone would make io and s dependent: each would meet few of the others.
        if not in_split(split, io, s, place):
            return None
        frame, thing = draw.choice(frames), draw.choice(self.objects)
        labels = {"io": io, "s": s, "pos": draw.choice(ORDERS)}
        return labels, {"frame": frame, "object": thing, "place": place}

    def build(self, labels: Labels, meta: Labels) -> Prompt:
        io, s, io_first = labels["io"], labels["s"], labels["pos"] == "ABB"
        first, second = (io, s) if io_first else (s, io)
        words = {"first": first, "second": second, "third": s, **meta}
        tokens, ends = self.write(meta["frame"], words)
        at = {slot: ends[slot][0] for slot in ("first", "second")}
        s1 = at["second" if io_first else "first"]
        positions = {
            "io": at["first" if io_first else "second"],
            "s1": s1,
            "s1+1": s1 + 1,
            "s2": ends["third"][0],
            **at,
            "end": len(tokens) - 1,
        }
        return Prompt(tokens, labels, positions, (self.token(io),), (self.token(s),), meta)


PRONOUNS = {"female": "she", "male": "he"}


def gendered_pronoun_task(tokenizer: Tokenizer) -> Task:
    """The gendered pronoun for one model's tokenizer.

    Raises:
        ConfigError: too few names or professions are single tokens, or a pronoun is not.
    """
    pick = partial(single_tokens, tokenizer, task="gendered_pronoun")
    pronouns = pick(" ".join(PRONOUNS.values()), at_least=2, what="pronouns")
    names = {
        "female": pick(FEMALE, at_least=5, what="female names")[:40],
        "male": pick(MALE, at_least=5, what="male names")[:40],
    }
    prompts = _Pronoun(tokenizer, names, pick(PROFESSIONS, at_least=5, what="professions"))
    edits = (("gender",), ("name",))
    return Task(
        name="gendered_pronoun",
        title="refer to a person by the pronoun that fits the name",
        attributes={
            "gender": tuple(names),
            "name": names["female"] + names["male"],
            "profession": prompts.professions,
        },
        positions=("name", "profession", "end"),
        answer_tokens=tuple(map(prompts.token, pronouns)),
        sample=prompts.sample,
        counterfactual=prompts.counterfactual,
        edits=(*edits, ("profession",)),
        nested={"name": "gender"},
        roles=(Role("gender reader", edit=("gender",), position="end", n_heads=8),),
        cross_sections=(
            CrossSectionTemplate("gender reader out", ("gender reader",), (("z", "end"),), edits),
            CrossSectionTemplate("gender reader v", ("gender reader",), (("v", "name"),), edits),
        ),
    )


class _Pronoun(FramePrompts):
    name = "gendered_pronoun"
    frames = (
        "So {name} is such a good {profession}, isn't",
        "I heard that {name} is a very busy {profession}, isn't",
        "It seems that {name} became a famous {profession} when",
    )
    unseen_frame = "Everyone knows {name} is a great {profession} because"

    def __init__(
        self,
        tokenizer: Tokenizer,
        names: Mapping[str, Sequence[str]],
        professions: tuple[str, ...],
    ):
        self.names, self.professions = names, professions
        self.genders = {name: gender for gender, of_gender in names.items() for name in of_gender}
        example = {"name": names["female"][0], "profession": professions[0]}
        super().__init__(tokenizer, {"profession": professions}, example)

    def draw_labels(self, draw: random.Random, split: str, frames: Sequence[str]) -> Drawn:
        gender = draw.choice(tuple(self.names))
        name, profession = draw.choice(self.names[gender]), draw.choice(self.professions)
        frame = draw.choice(frames)
        labels = {"gender": gender, "name": name, "profession": profession}
        return (labels, {"frame": frame}) if in_split(split, name, profession, frame) else None

    def build(self, labels: Labels, meta: Labels) -> Prompt:
        tokens, ends = self.write(meta["frame"], labels)
        positions = {slot: ends[slot][0] for slot in ("name", "profession")}
        she, he = map(self.token, PRONOUNS.values())
        right, wrong = (she, he) if labels["gender"] == "female" else (he, she)
        positions["end"] = len(tokens) - 1
        return Prompt(tokens, labels, positions, (right,), (wrong,), meta)

    def counterfactual(
        self, prompt: Prompt, changes: Mapping[str, str | None], draw: random.Random
    ) -> Prompt | None:
        """The prompt with another name, gender and name, or profession.

        Raises:
            ConfigError: a name was given together with a gender that it does not have.
        """
        labels = dict(prompt.labels)
        if "gender" in changes:
            opposite = "male" if labels["gender"] == "female" else "female"
            labels["gender"] = changes["gender"] or opposite
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
        more = {name: value for name, value in changes.items() if name == "profession"}
        return super().counterfactual(replace(prompt, labels=labels), more, draw)
