"""The explanations that need no language model, on a store with planted triggers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from saelab.explain.evidence import EvidenceSettings, gather
from saelab.explain.rules import Condition, Rule, TokenTable, best_rule, text_of
from saelab.explain.token_context import explanations
from saelab.explain.words import Lexicon, quoted
from saelab.features.labels import LabelBook
from saelab.features.reader import FeatureStore
from tests.explain.planted import N_NOISE, TRIGGERS


@pytest.fixture
def planted(planted_path):
    with FeatureStore(planted_path) as store:
        yield store


@pytest.fixture(scope="module")
def explained(planted_path):
    with FeatureStore(planted_path) as store:
        found = explanations(store, range(store.n_features), EvidenceSettings(), seed=0)
        return {content.feature: content for content in found}


def same(text, expected):
    """Lists of words say the same in any order."""
    return sorted(text.replace(" or ", ", ").split(", ")) == sorted(
        expected.replace(" or ", ", ").split(", ")
    )


def test_nine_of_ten_planted_triggers_are_named(explained):
    said = {expected: explained[i].text for i, expected in enumerate(TRIGGERS)}
    missed = {expected: text for expected, text in said.items() if not same(text, expected)}
    assert len(missed) <= 0.1 * len(TRIGGERS), missed


def test_known_explanations_score_near_one_and_controls_at_chance(explained):
    chance = {"detection": 0.5, "fuzzing": 0.5, "simulation": 0.0}
    for name, expected in chance.items():
        scores = [explained[i].score_named(name) for i in range(len(TRIGGERS))]
        values = np.array([score.value for score in scores])
        assert np.median(values) > 0.93 and (values > 0.75).mean() > 0.9, (name, values)
        for control in ("shuffled", "random"):
            controls = np.array([getattr(score, control) for score in scores])
            error = controls.std(ddof=1) / np.sqrt(len(controls))
            assert abs(controls.mean() - expected) < max(3 * error, 0.06), (name, control)
        for score in scores:
            assert score.low <= score.value <= score.high
            assert 20 <= score.n <= 30


def test_features_that_fire_at_random_score_near_chance(explained):
    for feature in range(len(TRIGGERS), len(TRIGGERS) + N_NOISE):
        assert explained[feature].score_named("simulation").value < 0.35
        assert explained[feature].score_named("detection").value < 0.7


def test_the_same_seed_says_the_same(planted, explained):
    again = explanations(planted, range(planted.n_features), EvidenceSettings(), seed=0)
    assert {content.feature: content for content in again} == explained


def test_explanations_go_into_the_label_book(explained, tmp_path):
    book = LabelBook(tmp_path / "labels.sqlite", "d" * 64, len(explained))
    for _ in range(2):
        book.add_many(explained.values())
    assert {label.feature: label.text for label in book.all()} == {
        feature: content.text for feature, content in explained.items()
    }


def test_neither_help_nor_explanations_by_tokens_load_torch(toy_folder):
    code = (
        "import sys; from saelab.commands.explain import main\n"
        "assert 'numpy' not in sys.modules\n"
        "main(sys.argv[1:])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(toy_folder)], check=True, timeout=120)
    assert (toy_folder / "feature_labels.sqlite").exists()


def test_dead_features_are_left_out_and_single_examples_are_unscored(tiny_store):
    found = {c.feature: c for c in explanations(tiny_store, range(7), EvidenceSettings(), 0)}
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    assert found[5].scores == () and found[5].score is None
    assert found[2].text == '"king"' and found[4].text == '"<script>alert(1)</script>"'


def test_a_rule_is_the_best_of_all_by_f1(planted):
    """The products of matrices find what trying the token rules one by one finds."""
    lexicon = Lexicon()
    for feature in (0, 1, len(TRIGGERS)):
        evidence = gather(planted, feature, EvidenceSettings(), 0)
        table = TokenTable(lexicon, evidence.shown + evidence.contrast)
        weight = table.activations() / table.activations()[table.activations() > 0].mean()
        silent = table.counted() & (weight == 0)

        def f1(rule, table=table, weight=weight, silent=silent):
            said = table.matches(rule) & table.counted()
            right = weight[said].sum()
            return 2 * right / (right + (said & silent).sum() + weight.sum())

        best = f1(best_rule(table))
        tokens = np.unique(table.attributes("is")[:, 0])
        assert best >= max(f1(Rule((Condition("is", (int(token),)),))) for token in tokens) - 0.05


def test_rules_in_words():
    lexicon = Lexicon()
    texts = [" the", " United", " States", "ment", ' "', "\n\n", "\x07", " 12", " govern"]
    numbers = dict(zip(texts, lexicon.table(texts)[:, 0].tolist(), strict=True))

    def said(*conditions):
        table = TokenTable(lexicon, [])
        return text_of(Rule(tuple(Condition(*one) for one in conditions)), table)

    def pair(first, second):
        return (numbers[first] + 1) * (1 << 32) + numbers[second]

    assert said() == "every token"
    assert said(("is", (numbers[" the"],))) == '"the"'
    both = ("after both", (pair(" the", " United"),))
    assert said(("is", (numbers[" States"],)), both) == '"States" after "the United"'
    inside = ("after", (numbers[" govern"],))
    assert said(("is", (numbers["ment"],)), inside) == '"ment" in "government"'
    assert said(("before", (numbers["\n\n"],))) == "the token before an empty line"
    assert said(("is", (numbers[' "'],))) == '“"”'
    assert said(("is", (numbers["\x07"],))).isprintable()
    assert quoted(" " + "x" * 100) == '"' + "x" * 39 + '…"'


def test_what_is_said_of_a_feature_does_not_depend_on_the_others_asked_for(planted, explained):
    """Neither by ties, by how words are written, nor by the controls."""
    some = range(planted.n_features - 1, 0, -5)
    alone = explanations(planted, some, EvidenceSettings(), seed=0)
    assert {content.feature: content for content in alone} == {i: explained[i] for i in some}
