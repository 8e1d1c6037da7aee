"""Measures exchanges of attributes; dictionaries of one model and site share pairs and skyline."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.dictionary import Dictionary, Site, load_dictionary
from saelab.errors import ConfigError
from saelab.formats.files import hash_of
from saelab.memory import keep_freed_memory
from saelab.model.language_model import LanguageModel
from saelab.stats.spread import spread_of

from ..subjects import Subject, describe, load_models, origin_of, subjects_of
from ..suite import Measurement
from .exchange import (
    ExchangeBatch,
    LatentMask,
    exchange_batches,
    learn,
    rows_at_entities,
    scores,
)
from .facts import EntityFact, known_prompts, read_facts
from .pairs import draw_pairs, entities_with_two
from .skyline import directions_edit, directions_of_values
from .suite import RavelConfig

logger = logging.getLogger(__name__)
SCORES = ("cause", "isolation", "disentanglement")


@dataclass(frozen=True, eq=False)
class AttributeExchange:
    """One attribute: pairs to learn on, pairs to test on, and scores that need no dictionary."""

    attribute: str
    train: list[ExchangeBatch]
    test: list[ExchangeBatch]
    n_train: int
    n_test: int
    skyline: dict[str, float]
    whole_cause: float


@dataclass(frozen=True, eq=False)
class KnownFacts:
    """What dictionaries of one model and site share."""

    exchanges: list[AttributeExchange]
    counts: dict[str, int]
    note: str
    """How much the model knows, in a sentence."""


def measure_ravel(
    folders: Sequence[Path], outs: Sequence[Path], config: RavelConfig
) -> Iterator[Measurement]:
    """Measure dictionaries; everything that can be wrong is checked before the first pass.

    Raises:
        ConfigError: facts that cannot be read, or a dictionary that writes several hook points.
        ArtifactError: a folder that is no intact dictionary, or does not fit its model.
        ModelError: an unknown model or hook point, or one where nothing can be spliced in.
    """
    facts = read_facts(config.facts)
    asked = replace(config, model_dtype=config.model_dtype or "float32")
    subjects = subjects_of([load_dictionary(folder) for folder in folders], outs, asked)
    models = load_models(subjects, config.device)
    keep_freed_memory()
    groups: dict[Any, list[Subject]] = {}
    for subject in subjects:
        model, site = models[subject.spec.model_key], subject.spec.site
        model.require_next_token("answers")
        if len(site.writes) != 1:
            raise ConfigError(
                f"attributes are exchanged at one hook point; {subject.saved.folder} writes "
                f"{len(site.writes)}: give dictionaries that write one"
            )
        (written,) = site.writes
        model.require_spliceable(written)
        groups.setdefault((subject.spec.model_key, site), []).append(subject)
    for (key, site), group in groups.items():
        shared = know_facts(models[key], site, facts, config)
        for subject in group:
            yield _measurement(subject, shared, facts, config)


def know_facts(
    model: LanguageModel, site: Site, facts: Sequence[EntityFact], config: RavelConfig
) -> KnownFacts:
    """The facts that a model knows, as pairs, with the skyline of each attribute."""
    known = known_prompts(model, facts, site.writes[0], config.batch_variants)
    entities = entities_with_two(known)
    attributes = list(dict.fromkeys(fact.attribute for fact in facts))
    n_known = {name: sum(p.fact.attribute == name for p in known) for name in attributes}
    n_asked = {name: sum(fact.attribute == name for fact in facts) for name in attributes}
    said = ", ".join(f"{name} {n_known[name]} of {n_asked[name]}" for name in attributes)
    note = f"{model.name} answers rightly: {said}; {len(entities)} entities with two attributes."
    counts = {"n_entities": len(entities), "n_known": len(known), "n_facts": len(facts)}
    exchanges: list[AttributeExchange] = []
    if len(entities) < config.least_entities:
        note += f" {config.least_entities} are asked for (--least-entities), so scores are null."
    else:
        usable = [prompt for prompt in known if prompt.fact.entity in entities]
        rows = rows_at_entities(model, site, usable, config.batch_variants)
        for name in attributes:
            pairs = draw_pairs(usable, name, config.n_pairs, config.n_test_pairs, config.seed)
            if pairs[0]:
                train, test = (
                    exchange_batches(model, site, rows, each, config.batch_variants)
                    for each in pairs
                )
                written = {prompt: rows[prompt][1] for prompt in usable}
                start = directions_of_values(written, name, config.skyline_width)
                exchanges.append(_reference(name, train, test, start, config))
            else:
                note += f" Too few entities differ in {name} and in another: it is left out."
    return KnownFacts(exchanges, counts, note)


def _reference(
    attribute: str,
    train: list[ExchangeBatch],
    test: list[ExchangeBatch],
    directions: Float[Tensor, "d_out width"],
    config: RavelConfig,
) -> AttributeExchange:
    learn(
        directions,
        directions_edit(train, directions),
        train,
        epochs=config.skyline_epochs,
        learning_rate=config.skyline_learning_rate,
        last_temperature=1.0,
        seed=config.seed,
        name=f"skyline, {attribute}",
    )
    return AttributeExchange(
        attribute=attribute,
        train=train,
        test=test,
        n_train=sum(len(batch.answer) for batch in train),
        n_test=sum(len(batch.answer) for batch in test),
        skyline=scores(test, directions_edit(test, directions)),
        whole_cause=scores(test, lambda index, _: test[index].source)["cause"],
    )


def exchange_attribute(
    exchange: AttributeExchange, dictionary: Dictionary, config: RavelConfig
) -> dict[str, float]:
    """Learn a mask for an attribute; its scores beside those of random masks and of no exchange."""
    mask = LatentMask(dictionary, exchange.train, keep_error=config.keep_error)
    learn(
        mask.theta,
        mask.edit_of(mask.prepared(exchange.train), None),
        exchange.train,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        last_temperature=config.last_temperature,
        seed=config.seed,
        name=f"mask, {exchange.attribute}",
    )
    prepared = mask.prepared(exchange.test)
    hard = (mask.theta > 0).float()
    chosen = int(hard.sum())
    masks = {
        "": hard,
        "random_": mask.random(chosen, config.seed),
        "nothing_": torch.zeros_like(hard),
    }
    measured = {
        f"{kind}{name}": value
        for kind, one_mask in masks.items()
        for name, value in scores(exchange.test, mask.edit_of(prepared, one_mask)).items()
    }
    return {**measured, "n_exchanged": chosen, "n_candidates": len(mask.latents)}


def _measurement(
    subject: Subject, shared: KnownFacts, facts: Sequence[EntityFact], config: RavelConfig
) -> Measurement:
    rows: list[dict[str, Any]] = []
    for exchange in shared.exchanges:
        dictionary = subject.saved.dictionary.to(exchange.train[0].base.device)
        rows.append(
            {
                "attribute": exchange.attribute,
                **exchange_attribute(exchange, dictionary, config),
                **{f"skyline_{name}": value for name, value in exchange.skyline.items()},
                "whole_cause": exchange.whole_cause,
                "n_train": exchange.n_train,
                "n_test": exchange.n_test,
            }
        )
    if not rows:
        logger.warning("%s: %s", subject.saved.name, shared.note)
    names = [f"{kind}{name}" for kind in ("", "random_", "skyline_") for name in SCORES]
    names += ["whole_cause", "nothing_isolation", "n_exchanged", "n_candidates"]
    numbers: dict[str, Any] = {name: spread_of(row[name] for row in rows).mean for name in names}
    numbers |= shared.counts | {"n_attributes": len(rows)}
    numbers |= {name: sum(row[name] for row in rows) for name in ("n_train", "n_test")}
    origin = origin_of(subject)
    del origin["text"], origin["split"]
    origin["facts"] = hash_of([vars(fact) for fact in facts])
    return Measurement(
        name=subject.saved.name,
        content_hash=subject.saved.content_hash,
        out=subject.out,
        numbers=numbers,
        made_from=origin,
        settings={"model_dtype": subject.spec.model_dtype},
        facts={
            "epochs": config.epochs,
            "skyline_epochs": config.skyline_epochs,
            "skyline_width": config.skyline_width,
            "error": "with" if config.keep_error else "without",
            "least_entities": config.least_entities,
        },
        data={"rows": rows},
        rows={"attributes": {name: [row[name] for row in rows] for name in rows[0]}}
        if rows
        else {},
        title=f"Attributes exchanged with {subject.saved.name}",
        subtitle=f"{describe(subject.saved)}. At the last token of the entity.",
        notes=(shared.note,),
    )
