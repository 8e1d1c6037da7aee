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
from collections.abc import Sequence

from saelab.errors import ConfigError

from . import (
    CrossSectionTemplate,
    Drawn,
    FramePrompts,
    FrameWriter,
    Labels,
    Prompt,
    Role,
    Task,
    Tokenizer,
    in_split,
    probability_difference,
    single_tokens,
)

EVENTS = (
    "war dispute trip mission siege study project journey voyage campaign conflict program "
    "marriage reign construction expedition strike famine tour trial occupation alliance contract "
    "treaty peace friendship rivalry operation experiment investigation"
)
"""What can last from one year to another, used with "the"."""

CENTURIES = tuple(str(century) for century in range(11, 20))
YEARS = tuple(f"{year:02d}" for year in range(10, 90))
"""The first year: there is an earlier and a later ten."""
ALL_YEARS = tuple(f"{year:02d}" for year in range(100))
DIGITS = tuple("0123456789")


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
    digits = {"tens": DIGITS[1:9], "ones": DIGITS} if by_digit else {"year": YEARS}
    prompts = _GreaterThan(tokenizer, nouns, centuries, digits)
    ordered, values = next(iter(digits.items()))
    steps = [value for value in values if value.endswith("0") or by_digit][1:]
    edit = (ordered,)
    return Task(
        name="greater_than",
        title="complete a year that is later than another",
        attributes={**digits, "century": centuries, "noun": nouns},
        positions=("noun", "tens", "year", "end") if by_digit else ("noun", "year", "end"),
        answer_tokens=tuple(sorted(set(map(prompts.answer, ALL_YEARS)))),
        sample=prompts.sample,
        counterfactual=prompts.counterfactual,
        edits=tuple((name,) for name in (*digits, "noun")),
        groups={
            ordered: {
                f"at least {step}": {v: "yes" if v >= step else "no" for v in values}
                for step in steps
            }
        },
        roles=(
            Role("year reader", edit=edit, position="end", n_heads=8),
            Role("year carrier", edit=edit, position="year", n_heads=4),
        ),
        cross_sections=(
            CrossSectionTemplate("year reader out", ("year reader",), (("z", "end"),), (edit,)),
            CrossSectionTemplate("year carrier out", ("year carrier",), (("z", "year"),), (edit,)),
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
    usual = {year: _continuation(writer, "17", year) for year in ALL_YEARS}
    return all(len(ids) == 1 + by_digit for ids in parts.values()) and parts == usual


class _GreaterThan(FramePrompts):
    name = "greater_than"
    frames = (
        "The {noun} lasted from the year {year} to the year {century}",
        "The {noun} began in the year {year} and ended in the year {century}",
        "The {noun} started in {year} and it went on until the year {century}",
    )
    unseen_frame = "In the end, the {noun} went on from {year} until {century}"

    def __init__(
        self,
        tokenizer: Tokenizer,
        nouns: Sequence[str],
        centuries: Sequence[str],
        digits: dict[str, tuple[str, ...]],
    ):
        self.nouns, self.centuries = nouns, centuries
        self.by_digit = "tens" in digits
        century = centuries[0]
        example = {"noun": nouns[0], "year": f"{century}32", "century": century}
        super().__init__(tokenizer, {**digits, "century": centuries, "noun": nouns}, example)

    def answer(self, year: str) -> int:
        """The token that begins a year after its century."""
        return _continuation(self, self.centuries[0], year)[0]

    def draw_labels(self, draw: random.Random, split: str, frames: Sequence[str]) -> Drawn:
        noun, year, century = map(draw.choice, (self.nouns, YEARS, self.centuries))
        if not in_split(split, noun, year, century):
            return None
        digits = {"tens": year[0], "ones": year[1]} if self.by_digit else {"year": year}
        return {**digits, "century": century, "noun": noun}, {"frame": draw.choice(frames)}

    def build(self, labels: Labels, meta: Labels) -> Prompt:
        year = labels["tens"] + labels["ones"] if self.by_digit else labels["year"]
        tokens, ends = self.write(meta["frame"], {**labels, "year": labels["century"] + year})
        at_year = ends["year"][0]
        tens = {"tens": at_year - 1} if self.by_digit else {}
        positions = {"noun": ends["noun"][0], **tens, "year": at_year, "end": len(tokens) - 1}
        later = {self.answer(candidate) for candidate in ALL_YEARS if candidate > year}
        earlier = {self.answer(candidate) for candidate in ALL_YEARS if candidate <= year}
        right, wrong = sorted(later - earlier), sorted(earlier - later)
        return Prompt(tokens, labels, positions, tuple(right), tuple(wrong), meta)
