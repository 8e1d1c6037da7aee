"""A planted model whose activation is two attributes side by side: masks must tell them apart."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from saelab.dictionary import Dictionary, Site
from saelab.evals.ravel.exchange import (
    LatentMask,
    exchange_batches,
    learn,
    rows_at_entities,
    scores,
)
from saelab.evals.ravel.facts import EntityFact, EntityPrompt
from saelab.evals.ravel.measure import _reference, exchange_attribute
from saelab.evals.ravel.pairs import draw_pairs, entities_with_two
from saelab.evals.ravel.skyline import directions_of_values
from saelab.evals.ravel.suite import RavelConfig
from saelab.model.language_model import LanguageModel
from saelab.model.patched_runs import PatchedRuns

HOOK = "blocks.0.hook_resid_post"
SITE = Site.of(HOOK)
VALUES = 3
WIDTH = 2 * VALUES
ASKS = {"country": 100, "language": 101}
CONFIG = RavelConfig(
    n_pairs=60, n_test_pairs=60, epochs=12, learning_rate=0.1, skyline_width=2, batch_variants=20
)


def activation(entity):
    """[n] entity ids -> one-hot country and one-hot language, [n WIDTH]."""
    rows = torch.zeros(len(entity), WIDTH)
    index = torch.arange(len(entity))
    rows[index, entity % VALUES] = 1
    rows[index, VALUES + entity // VALUES % VALUES] = 1
    return rows


class AskedRuns(PatchedRuns):
    """Logits of the attribute that is asked for are the activation's part about it."""

    def __init__(self, tokens):
        self.first_position = 0
        self._tokens = tokens

    def logits(self, changes):
        x = torch.stack([activation(self._tokens[:, 0]), torch.zeros(len(self._tokens), WIDTH)], 1)
        for change in changes.values():
            x = change(x)
        asked = (self._tokens[:, 1] == ASKS["language"]).long()
        is_asked = torch.arange(WIDTH) // VALUES == asked[:, None]
        return torch.where(is_asked, 10 * x[:, 0], -100.0)


class AskedModel(LanguageModel):
    """Tokens (entity, what is asked)."""

    def __init__(self):
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def capture(self, tokens, hook_points, after=None):
        x = torch.stack([activation(tokens[:, 0]), torch.zeros(len(tokens), WIDTH)], 1)
        return dict.fromkeys(hook_points, x)

    def prepare_patches(self, tokens, end, hook_points, first_position=0):
        return AskedRuns(tokens)


def prompts(n_entities=27):
    made = []
    for entity in range(n_entities):
        values = {"country": entity % VALUES, "language": VALUES + entity // VALUES % VALUES}
        for name, ask in ASKS.items():
            fact = EntityFact(f"e{entity}", name, f"v{values[name]}", f"{{entity}} {name}")
            made.append(EntityPrompt(fact, (entity, ask), 0, values[name]))
    return made


def identity():
    """One latent for each value of each attribute."""
    return Dictionary(
        "relu",
        W_enc=torch.eye(WIDTH),
        W_dec=torch.eye(WIDTH),
        b_enc=torch.zeros(WIDTH),
        b_dec=torch.zeros(WIDTH),
    )


@lru_cache
def exchange(attribute):
    every = prompts()
    rows = rows_at_entities(AskedModel(), SITE, every, 40)
    written = {prompt: rows[prompt][1] for prompt in every}
    start = directions_of_values(written, attribute, CONFIG.skyline_width)
    pairs = draw_pairs(every, attribute, CONFIG.n_pairs, CONFIG.n_test_pairs, 0)
    train, test = (exchange_batches(AskedModel(), SITE, rows, each, 40) for each in pairs)
    return _reference(attribute, train, test, start, CONFIG)


@pytest.mark.parametrize("attribute", list(ASKS))
def test_latents_of_one_attribute_are_exchanged_without_fault(attribute):
    ready = exchange(attribute)
    measured = exchange_attribute(ready, identity(), CONFIG)
    assert (measured["cause"], measured["isolation"]) == (1, 1)
    assert measured["disentanglement"] == 1
    assert measured["n_exchanged"] == VALUES and measured["n_candidates"] == WIDTH
    assert measured["random_disentanglement"] < 1
    assert measured["nothing_cause"] == 0 and measured["nothing_isolation"] == 1
    assert ready.whole_cause == 1
    # The two attributes lie in two planes, and the skyline may exchange one.
    assert ready.skyline["disentanglement"] == 1


def test_a_dictionary_that_merges_both_attributes_cannot_tell_them_apart():
    merged = torch.ones(WIDTH, 1)
    dictionary = Dictionary(
        "relu",
        W_enc=merged,
        W_dec=merged.T.clone(),
        b_enc=torch.zeros(1),
        b_dec=torch.zeros(WIDTH),
    )
    measured = exchange_attribute(exchange("country"), dictionary, CONFIG)
    assert measured["disentanglement"] < 0.7


def test_the_error_is_kept_where_it_is_asked_for():
    """A dictionary of countries alone: without its error, every language is lost."""
    countries = torch.eye(WIDTH)[:VALUES]
    dictionary = Dictionary(
        "relu",
        W_enc=countries.T.clone(),
        W_dec=countries,
        b_enc=torch.zeros(VALUES),
        b_dec=torch.zeros(WIDTH),
    )
    ready = exchange("country")
    without = exchange_attribute(ready, dictionary, CONFIG)
    with_error = exchange_attribute(ready, dictionary, replace(CONFIG, keep_error=True))
    assert without["cause"] == with_error["cause"] == 1
    assert without["nothing_isolation"] < 0.6
    assert with_error["isolation"] == with_error["nothing_isolation"] == 1


def test_pairs_differ_in_what_is_exchanged_and_in_what_is_asked():
    every = prompts()
    train, test = draw_pairs(every, "country", 60, 20, 0)
    assert [sum(pair.is_cause is kind for pair in test) for kind in (True, False)] == [20, 20]
    # Each of 27 bases three times.
    assert [sum(pair.is_cause is kind for pair in train) for kind in (True, False)] == [81, 81]
    assert not {(p.base, p.source) for p in train} & {(p.base, p.source) for p in test}
    for pair in (*train, *test):
        base, source = pair.base.fact, pair.source.fact
        assert base.prompt == source.prompt
        ids = [int(name[1:]) for name in (base.entity, source.entity)]
        assert ids[0] % VALUES != ids[1] % VALUES
        assert pair.base.answer != pair.source.answer
        assert pair.is_cause == (base.attribute == "country")
        assert pair.answer == (pair.source if pair.is_cause else pair.base).answer
    alone = [prompt for prompt in every if prompt.fact.attribute == "country"]
    assert len(entities_with_two(every)) == 27 and entities_with_two(alone) == set()
    assert draw_pairs(alone, "country", 30, 30, 0) == ([], [])


def test_directions_of_values_are_those_of_one_attribute():
    """Countries and languages that go together partly: the sum of both is told apart."""
    made = [prompt for prompt in prompts() if int(prompt.fact.entity[1:]) % 9 not in (2, 6)]
    ids = torch.tensor([prompt.tokens[0] for prompt in made])
    rows = dict(zip(made, activation(ids), strict=True))
    directions = directions_of_values(rows, "country", 2)
    assert directions.shape == (WIDTH, 2)
    assert torch.allclose(directions.T @ directions, torch.eye(2), atol=1e-5)
    assert directions[VALUES:].norm() < 0.2 < directions[:VALUES].norm()


def test_masks_are_learnt_on_the_runs_of_a_real_model(tiny_model):
    """Logits are those of the whole pass with the same row put in, and gradients flow."""
    site = Site.of("blocks.1.hook_resid_post")
    made = []
    for entity in range(6):
        for name, ask in ASKS.items():
            fact = EntityFact(f"e{entity}", name, f"v{entity % 2}", f"{{entity}} {name}")
            tokens = (0, 50 + entity, 60, 61, ask) if name == "country" else (0, 50 + entity, ask)
            made.append(EntityPrompt(fact, tokens, 1, 70 + entity % 2 + 2 * (name == "country")))
    pairs, _ = draw_pairs(made, "country", 8, 1, 0)
    batches = exchange_batches(
        tiny_model, site, rows_at_entities(tiny_model, site, made, 5), pairs, 5
    )
    for batch in batches:
        rows = batch.source + 1
        logits = batch.logits(rows)
        for index, row in enumerate(rows):
            pair = batch.pairs[index]

            def splice(x, row=row):
                x = x.clone()
                x[0, 1] = row
                return x

            whole = tiny_model.run(
                torch.tensor([pair.base.tokens]), {"blocks.1.hook_resid_post": splice}
            )
            assert torch.allclose(logits[index], whole.logits[0, -1], atol=1e-4)
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(40, 32, generator=generator), dim=1)
    dictionary = Dictionary(
        "topk",
        W_enc=W_dec.T.clone(),
        W_dec=W_dec,
        b_enc=torch.zeros(40),
        b_dec=torch.zeros(32),
        k=8,
    )
    mask = LatentMask(dictionary, batches, keep_error=True)
    prepared = mask.prepared(batches)
    before = [p.grad for p in tiny_model._forward.plain.parameters()]
    settings = {"epochs": 2, "learning_rate": 0.1, "last_temperature": 0.5, "seed": 0, "name": "m"}
    learn(mask.theta, mask.edit_of(prepared, None), batches, **settings)
    assert mask.theta.abs().max() > 0.05
    assert [p.grad for p in tiny_model._forward.plain.parameters()] == before
    measured = scores(batches, mask.edit_of(prepared, (mask.theta > 0).float()))
    assert all(0 <= value <= 1 for value in measured.values())
