"""Facts about entities as prompts: the embedded cities, or a file's; which of them a model knows.

A fact is known where the model's likeliest next token is the first token of the value.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from saelab.errors import ConfigError
from saelab.model.language_model import LanguageModel
from saelab.model.patched_runs import PatchedRuns
from saelab.progress import progress_bar

TEMPLATES = {
    "country": "Naples is a city in the country of Italy. Osaka is a city in the country of Japan. "
    "{entity} is a city in the country of",
    "continent": "Naples is a city on the continent of Europe. Osaka is a city on the continent of "
    "Asia. {entity} is a city on the continent of",
    "language": "People in Naples speak Italian. People in Osaka speak Japanese. People in "
    "{entity} speak",
}
COLUMNS = ("entity", "attribute", "value", "prompt")
MARK = "{entity}"


@dataclass(frozen=True)
class EntityFact:
    """A prompt about one attribute of an entity, and its answer."""

    entity: str
    attribute: str
    value: str
    prompt: str
    """With {entity} where the entity stands."""


@dataclass(frozen=True)
class EntityPrompt:
    """A fact as tokens."""

    fact: EntityFact
    tokens: tuple[int, ...]
    position: int
    """Of the entity's last token."""
    answer: int
    """First token of the value."""


def read_facts(path: Path | None) -> list[EntityFact]:
    """The facts of a CSV or JSONL file, or the embedded ones.

    Raises:
        ConfigError: no such file, a missing column, or a prompt without one {entity}.
    """
    if path is None:
        embedded = Path(__file__).with_name("cities.csv")
        with embedded.open(encoding="utf-8", newline="") as handle:
            cities = list(csv.DictReader(handle))
        return [
            EntityFact(city["city"], attribute, city[attribute], template)
            for city in cities
            for attribute, template in TEMPLATES.items()
        ]
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = list(csv.DictReader(text.splitlines()))
        facts = [EntityFact(*(str(row[name]).strip() for name in COLUMNS)) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"facts: {path} cannot be read ({error!r}): give a CSV or JSONL file with the columns "
            f"{', '.join(COLUMNS)}"
        ) from None
    odd = [fact for fact in facts if fact.prompt.count(MARK) != 1 or not fact.value]
    if odd or not facts:
        shown = f"the prompt {odd[0].prompt!r} of {odd[0].entity!r}" if odd else "no row"
        raise ConfigError(
            f"facts: {path} has {shown}: each row needs a value and a prompt with {MARK} in it once"
        )
    return facts


def prompt_of(model: LanguageModel, fact: EntityFact) -> EntityPrompt | None:
    """A fact as tokens; None where the entity's end falls within a token."""
    before, _, after = fact.prompt.partition(MARK)
    upto, whole, answer = model.tokenize(
        [before + fact.entity, before + fact.entity + after, f" {fact.value}"]
    )
    if whole[: len(upto)] != upto or not answer or not after:
        return None
    start = [] if model.bos_id is None else [model.bos_id]
    tokens = (*start, *whole)
    return EntityPrompt(fact, tokens, len(start) + len(upto) - 1, answer[0])


@torch.no_grad()
def known_prompts(
    model: LanguageModel, facts: Sequence[EntityFact], hook_point: str, batch: int
) -> list[EntityPrompt]:
    """The prompts that the model answers with the value, in runs that can be patched there."""
    prompts = [prompt for fact in facts if (prompt := prompt_of(model, fact)) is not None]
    known = []
    with progress_bar(len(prompts), "ask facts", "prompts") as bar:
        for part in alike(prompts, batch):
            said = prepared_runs(model, part, hook_point).logits({}).argmax(1).tolist()
            known += [p for p, token in zip(part, said, strict=True) if token == p.answer]
            bar.update(len(part))
    return known


def alike(prompts: Iterable[EntityPrompt], batch: int) -> Iterator[list[EntityPrompt]]:
    """Batches of one prompt about several entities each, so that its beginning runs once."""
    groups: dict[str, list[EntityPrompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.fact.prompt, []).append(prompt)
    for group in groups.values():
        group.sort(key=lambda prompt: len(prompt.tokens))
        yield from (group[start : start + batch] for start in range(0, len(group), batch))


def prepared_runs(
    model: LanguageModel, prompts: Sequence[EntityPrompt], hook_point: str
) -> PatchedRuns:
    """Runs that may differ from the earliest end of an entity on."""
    end = torch.tensor([len(prompt.tokens) - 1 for prompt in prompts])
    first = min(prompt.position for prompt in prompts)
    return model.prepare_patches(padded(prompts), end, [hook_point], first)


def padded(prompts: Sequence[EntityPrompt]) -> torch.Tensor:
    """Tokens of prompts side by side, [prompts seq], padded behind."""
    longest = max(len(prompt.tokens) for prompt in prompts)
    return torch.tensor([[*p.tokens, *[p.tokens[-1]] * (longest - len(p.tokens))] for p in prompts])
