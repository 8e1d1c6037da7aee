"""Greater-than: "The war lasted from the year 1732 to the year 17" is answered by a later year.

Attributes: the digits of the first year after its century, the century and the noun. Tokenizers
that write two digits as one token have the attribute `year`; those that write each digit alone have
`tens` and `ones`, and the model is asked for the tens of the later year: tens that a later and an
earlier year can share count for neither side. Metric: probability of the right answers minus that
of the wrong ones. Source: Makelov, Lange & Nanda, arXiv 2405.08366 (follow-up code); ordered values
get groupings "at least c".
"""

from __future__ import annotations

import random
from collections.abc import Mapping

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
    probability_difference,
    require_split,
    single_tokens,
)

EVENTS = listed(
    "war dispute trip mission siege study project journey voyage campaign conflict program "
    "marriage reign construction expedition strike famine tour trial occupation alliance contract "
    "treaty peace friendship rivalry operation experiment investigation"
)
"""What can last from one year to another, used with "the"."""

FRAMES = (
    "The {noun} lasted from the year {year} to the year {century}",
    "The {noun} began in the year {year} and ended in the year {century}",
    "The {noun} started in {year} and it went on until the year {century}",
)
UNSEEN_FRAME = "In the end, the {noun} went on from {year} until {century}"
CENTURIES = tuple(str(century) for century in range(11, 20))
YEARS = tuple(f"{year:02d}" for year in range(10, 90))
"""The first year: there is an earlier and a later ten."""
ALL_YEARS = tuple(f"{year:02d}" for year in range(100))


def greater_than_task(tokenizer: Tokenizer) -> Task:
    """The task for one model's tokenizer.

    Raises:
        ConfigError: a tokenizer that writes years neither by digits nor by pairs of digits, or
            too few nouns that are single tokens.
    """
    nouns = single_tokens(tokenizer, EVENTS, at_least=5, what="nouns", task="greater_than")
    writer = FrameWriter(tokenizer)
    by_digit = len(_continuation(writer, "17", "32")) == 2
    centuries = tuple(century for century in CENTURIES if _is_regular(writer, century, by_digit))
    if not centuries:
        raise ConfigError(
            f"task greater_than: {tokenizer.name} writes years neither by digits nor by pairs of "
            "digits: this task cannot be built for this model; choose another task or model"
        )
    task = _GreaterThan(writer, nouns, centuries, by_digit)
    ordered = "tens" if by_digit else "year"
    values = tuple(dict.fromkeys(year[:1] for year in YEARS)) if by_digit else YEARS
    digits = {"tens": values, "ones": tuple("0123456789")} if by_digit else {"year": values}
    steps = [value for value in values if value.endswith("0") or by_digit][1:]
    return Task(
        name="greater_than",
        title="complete a year that is later than another",
        attributes={**digits, "century": centuries, "noun": nouns},
        positions=("noun", "tens", "year", "end") if by_digit else ("noun", "year", "end"),
        answer_tokens=tuple(sorted({ids for year in ALL_YEARS for ids in task.answer(year)})),
        sample=task.sample,
        counterfactual=task.counterfactual,
        edits=tuple((name,) for name in (*digits, "noun")),
        groups={
            ordered: {
                f"at least {step}": {v: "yes" if v >= step else "no" for v in values}
                for step in steps
            }
        },
        roles=(
            Role(name="year reader", edit=(ordered,), position="end", n_heads=8),
            Role(name="year carrier", edit=(ordered,), position="year", n_heads=4),
        ),
        cross_sections=(
            CrossSectionTemplate(
                name="year reader out",
                roles=("year reader",),
                parts=(("z", "end"),),
                edits=((ordered,),),
            ),
            CrossSectionTemplate(
                name="year carrier out",
                roles=("year carrier",),
                parts=(("z", "year"),),
                edits=((ordered,),),
            ),
        ),
        metric=probability_difference,
    )


def _continuation(writer: FrameWriter, century: str, year: str) -> tuple[int, ...]:
    """The tokens that a year adds to those of its century; empty where they change the century."""
    start, whole = writer.piece(f" {century}"), writer.piece(f" {century}{year}")
    return whole[len(start) :] if whole[: len(start)] == start else ()


def _is_regular(writer: FrameWriter, century: str, by_digit: bool) -> bool:
    """Whether every year of a century is written in the same way, and as in other centuries."""
    parts = {year: _continuation(writer, century, year) for year in ALL_YEARS}
    other = {year: _continuation(writer, "17", year) for year in ALL_YEARS}
    return all(len(ids) == 1 + by_digit for ids in parts.values()) and parts == other


class _GreaterThan:
    """The words of one tokenizer, and how prompts are made from them."""

    def __init__(
        self,
        writer: FrameWriter,
        nouns: tuple[str, ...],
        centuries: tuple[str, ...],
        by_digit: bool,
    ):
        self.writer = writer
        self.nouns = nouns
        self.centuries = centuries
        self.by_digit = by_digit
        self._prefix = len(writer.piece(f" {centuries[0]}"))
        for frame in (*FRAMES, UNSEEN_FRAME):
            year = f"{centuries[0]}32"
            writer.check(frame, {"noun": nouns[0], "year": year, "century": centuries[0]})

    def answer(self, year: str) -> tuple[int, ...]:
        """The token that begins a year after its century."""
        return self.writer.piece(f" {self.centuries[0]}{year}")[self._prefix :][:1]

    def sample(self, n: int, split: str, seed: int) -> list[Prompt]:
        """Prompts with frame, noun, century and year drawn uniformly."""
        require_split(split)
        draw = random.Random(f"greater_than {split} {seed}")
        frames = frames_of(split, FRAMES, UNSEEN_FRAME)
        prompts = []
        while len(prompts) < n:
            noun, year, century = map(draw.choice, (self.nouns, YEARS, self.centuries))
            if in_split(split, noun, year, century):
                labels = {**self._digits(year), "century": century, "noun": noun}
                prompts.append(self.build(labels, {"frame": draw.choice(frames), "split": split}))
        return prompts

    def _digits(self, year: str) -> dict[str, str]:
        return {"tens": year[0], "ones": year[1]} if self.by_digit else {"year": year}

    def build(self, labels: Mapping[str, str], meta: Mapping[str, str]) -> Prompt:
        """The prompt of labels in a frame."""
        year = labels["tens"] + labels["ones"] if self.by_digit else labels["year"]
        century = labels["century"]
        words = {"noun": labels["noun"], "year": century + year, "century": century}
        tokens, ends = self.writer.write(meta["frame"], words)
        at_year = ends["year"][0]
        tens = {"tens": at_year - 1} if self.by_digit else {}
        later = {self.answer(candidate)[0] for candidate in ALL_YEARS if candidate > year}
        earlier = {self.answer(candidate)[0] for candidate in ALL_YEARS if candidate <= year}
        return Prompt(
            tokens=tokens,
            labels=dict(labels),
            positions={"noun": ends["noun"][0], **tens, "year": at_year, "end": len(tokens) - 1},
            correct=tuple(sorted(later - earlier)),
            incorrect=tuple(sorted(earlier - later)),
            meta=dict(meta),
        )

    def counterfactual(
        self, prompt: Prompt, changes: Mapping[str, str | None], draw: random.Random
    ) -> Prompt | None:
        """The prompt with another year, tens, ones, century or noun."""
        tens = tuple(dict.fromkeys(year[0] for year in YEARS))
        pools = {
            "year": YEARS,
            "tens": tens,
            "ones": tuple("0123456789"),
            "century": self.centuries,
            "noun": self.nouns,
        }
        labels = dict(prompt.labels)
        for attribute, value in changes.items():
            left = [word for word in pools[attribute] if word != labels[attribute]]
            if value is None and not left:
                return None
            labels[attribute] = value or draw.choice(left)
        return self.build(labels, prompt.meta)
