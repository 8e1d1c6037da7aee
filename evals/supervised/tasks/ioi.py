"""Indirect object identification: "Then, Mary and John … John gave a ring to" is answered "Mary".

Attributes: `io`, the name that is asked for; `s`, the name that comes twice; `pos`, which of them
comes first (ABB: the first name is `io`). Names, objects and places are single tokens of the model.
Source: Makelov, Lange & Nanda, arXiv 2405.08366, A.4; the word lists and frames are our own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial

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

FEMALE = listed(
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

MALE = listed(
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

OBJECTS = listed(
    "ring book drink bone computer necklace basketball snack ball pen pencil letter cup plate "
    "bottle map key coin ticket card box bag hat coat watch phone camera lamp chair blanket pillow "
    "towel brush mirror clock knife spoon bowl basket bucket rope hammer flower plant rock feather "
    "candle flag drum guitar violin bell toy doll puzzle kite balloon bicycle cake cookie pie "
    "banana lemon peach potato sandwich pizza salad newspaper magazine notebook photo picture "
    "poster gift present medal"
)
"""Things that one person can give to another, used with "a"."""

PLACES = listed(
    "store school park garden house hospital office restaurant library museum station airport "
    "market bank church hotel bar gym beach river lake farm zoo theater cinema stadium pool "
    "playground mall bakery factory warehouse harbor castle palace temple kitchen garage studio "
    "gallery shop pub club camp"
)
"""Places, used with "the"."""

FRAMES = (
    "Then, {first} and {second} had a long argument at the {place}, and then {third} said to",
    "Then, {first} and {second} had a lot of fun at the {place}. {third} gave a {object} to",
    "Then, {first} and {second} were working at the {place}. {third} decided to give a {object} to",
)
UNSEEN_FRAME = (
    "Then, {first} and {second} went to the {place} in the morning, "
    "and {third} handed a {object} to"
)
NAMES_PER_GENDER = 50
FEWEST_NAMES = 12
ROLES = (
    Role(name="name mover", edit=("io",), position="end", n_heads=8),
    Role(name="S-inhibition", edit=("pos",), position="end", n_heads=4, not_in=("name mover",)),
    Role(name="induction and duplicate token", edit=("pos",), position="s2", n_heads=6),
)
ALL_EDITS = (("io",), ("s",), ("pos",), ("s", "pos"))
S_EDITS = (("s",), ("pos",), ("s", "pos"))
CROSS_SECTIONS = (
    CrossSectionTemplate(
        name="name mover out", roles=("name mover",), parts=(("z", "end"),), edits=(("io",),)
    ),
    CrossSectionTemplate(
        name="name mover q", roles=("name mover",), parts=(("q", "end"),), edits=ALL_EDITS[:3]
    ),
    CrossSectionTemplate(
        name="name mover qk",
        roles=("name mover",),
        parts=(("q", "end"), ("k", "io"), ("k", "s1")),
        edits=(*ALL_EDITS, ("io", "s", "pos")),
    ),
    CrossSectionTemplate(
        name="S-inhibition out", roles=("S-inhibition",), parts=(("z", "end"),), edits=S_EDITS
    ),
    CrossSectionTemplate(
        name="S-inhibition v", roles=("S-inhibition",), parts=(("v", "s2"),), edits=S_EDITS
    ),
    CrossSectionTemplate(
        name="induction and duplicate token out",
        roles=("induction and duplicate token",),
        parts=(("z", "s2"),),
        edits=S_EDITS,
    ),
)


def ioi_task(tokenizer: Tokenizer) -> Task:
    """The task for one model's tokenizer.

    Raises:
        ConfigError: too few of the names, objects or places are single tokens.
    """
    pick = partial(single_tokens, tokenizer, task="ioi")
    women = pick(FEMALE, at_least=FEWEST_NAMES, what="female names")[:NAMES_PER_GENDER]
    men = pick(MALE, at_least=FEWEST_NAMES, what="male names")[:NAMES_PER_GENDER]
    # Alternating genders make every quarter of the list half women, half men.
    count = min(len(women), len(men))
    names = tuple(name for pair in zip(women[:count], men[:count], strict=True) for name in pair)
    genders = dict.fromkeys(women, "female") | dict.fromkeys(men, "male")
    ioi = _Ioi(
        FrameWriter(tokenizer),
        names,
        pick(OBJECTS, at_least=5, what="objects"),
        pick(PLACES, at_least=5, what="places"),
    )
    return Task(
        name="ioi",
        title="name the one of two people who is not named again",
        attributes={"io": names, "s": names, "pos": ("ABB", "BAB")},
        positions=("io", "s1", "s1+1", "s2", "first", "second", "end"),
        answer_tokens=tuple(ioi.writer.token(name) for name in names),
        sample=ioi.sample,
        counterfactual=ioi.counterfactual,
        edits=ALL_EDITS,
        exclusive=(("io", "s"),),
        groups={
            name: {"gender": {value: genders[value] for value in names}} for name in ("io", "s")
        },
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
        roles=ROLES,
        cross_sections=CROSS_SECTIONS,
    )


class _Ioi:
    """The word lists of one tokenizer, and how prompts are made from them."""

    def __init__(
        self,
        writer: FrameWriter,
        names: tuple[str, ...],
        objects: tuple[str, ...],
        places: tuple[str, ...],
    ):
        self.writer = writer
        self.names = names
        self.objects = objects
        self.places = places
        for frame in (*FRAMES, UNSEEN_FRAME):
            words = {"first": names[0], "second": names[1], "third": names[1]}
            writer.check(frame, {**words, "object": objects[0], "place": places[0]})

    def sample(self, n: int, split: str, seed: int) -> list[Prompt]:
        """Prompts with frame, names, order, object and place drawn uniformly.

        Base names of the test splits are of the first half of the list, the new names of
        counterfactuals of the second, so no edit is a no-op.
        """
        require_split(split)
        draw = random.Random(f"ioi {split} {seed}")
        tested = split in ("test", "unseen_frame")
        names = self.names[: len(self.names) // 2] if tested else self.names
        frames = frames_of(split, FRAMES, UNSEEN_FRAME)
        prompts = []
        while len(prompts) < n:
            io, s = draw.sample(names, 2)
            place = draw.choice(self.places)
            # Names alone would make io and s dependent: each would meet few of the others.
            if not in_split(split, io, s, place):
                continue
            meta = {
                "frame": draw.choice(frames),
                "object": draw.choice(self.objects),
                "place": place,
                "split": split,
            }
            labels = {"io": io, "s": s, "pos": draw.choice(("ABB", "BAB"))}
            prompts.append(self.build(labels, meta))
        return prompts

    def build(self, labels: Mapping[str, str], meta: Mapping[str, str]) -> Prompt:
        """The prompt of labels in a frame."""
        io, s = labels["io"], labels["s"]
        first, second = (io, s) if labels["pos"] == "ABB" else (s, io)
        words = {"first": first, "second": second, "third": s, **meta}
        tokens, ends = self.writer.write(meta["frame"], words)
        at_first, at_second = ends["first"][0], ends["second"][0]
        at_io, at_s = (at_first, at_second) if labels["pos"] == "ABB" else (at_second, at_first)
        positions = {
            "io": at_io,
            "s1": at_s,
            "s1+1": at_s + 1,
            "s2": ends["third"][0],
            "first": at_first,
            "second": at_second,
            "end": len(tokens) - 1,
        }
        return Prompt(
            tokens=tokens,
            labels=dict(labels),
            positions=positions,
            correct=(self.writer.token(io),),
            incorrect=(self.writer.token(s),),
            meta=dict(meta),
        )

    def counterfactual(
        self, prompt: Prompt, changes: Mapping[str, str | None], draw: random.Random
    ) -> Prompt | None:
        """The prompt with a new `io` (third quarter of the names), a new `s` at both places
        (fourth quarter), or the first two names swapped."""
        half = len(self.names) // 2
        pools = {"io": self.names[half : half + half // 2], "s": self.names[half + half // 2 :]}
        labels = dict(prompt.labels)
        for attribute, value in changes.items():
            if attribute == "pos":
                labels["pos"] = value or ("BAB" if labels["pos"] == "ABB" else "ABB")
                continue
            taken = {prompt.labels["io"], prompt.labels["s"], labels["io"], labels["s"]}
            left = [name for name in pools[attribute] if name not in taken]
            labels[attribute] = value or draw.choice(left)
        if labels["io"] == labels["s"]:
            return None
        return self.build(labels, prompt.meta)
