"""Evidence: shown, held out and silent examples of a planted store, written by the real builder."""

from __future__ import annotations

import numpy as np
import pytest

from saelab.errors import ConfigError
from saelab.explain.evidence import EvidenceSettings, gather
from tests.features.conftest import ALWAYS, DEAD, KINGS, ONCE

SMALL = EvidenceSettings(window=2, n_shown=6, n_held_out=5, n_quiet=4)


def contexts(examples):
    return [example.sequence for example in examples]


def test_shown_and_held_out_are_other_contexts_and_quiet_ones_are_silent(tiny_store):
    for feature in range(tiny_store.n_features):
        evidence = gather(tiny_store, feature, SMALL, seed=3)
        firing = contexts(evidence.shown + evidence.held_out)
        assert len(set(firing)) == len(firing)
        assert len(evidence.shown) <= 6 and len(evidence.held_out) <= 5
        for example in evidence.shown + evidence.held_out:
            assert example.activations[example.anchor] == np.float32(example.value) > 0
        for example in evidence.contrast + evidence.quiet:
            assert not example.activations.any()


def test_both_halves_hold_weak_and_strong_examples(tiny_store):
    record = tiny_store.feature(KINGS)
    edges = [group.low for group in record.quantile_groups]
    evidence = gather(tiny_store, KINGS, EvidenceSettings(), seed=0)
    for half in (evidence.shown, evidence.held_out):
        strata = {sum(example.value < edge for edge in edges) for example in half}
        assert len(strata) >= len(edges) - 1
        assert [e.value for e in half] == sorted((e.value for e in half), reverse=True)


def test_the_seed_decides_and_nothing_else(tiny_store):
    def described(seed):
        evidence = gather(tiny_store, KINGS, SMALL, seed)
        return [contexts(getattr(evidence, name)) for name in ("shown", "held_out", "quiet")]

    assert described(1) == described(1)
    assert any(described(1) != described(seed) for seed in range(2, 6))


def test_features_with_little_or_too_much_to_show(tiny_store):
    assert not any(vars(gather(tiny_store, DEAD, SMALL))[name] for name in ("shown", "held_out"))
    once = gather(tiny_store, ONCE, SMALL)
    assert len(once.shown) == 1 and not once.held_out
    assert gather(tiny_store, ALWAYS, SMALL).quiet == ()


def test_a_feature_in_every_context_is_silent_in_stretches(tiny_store):
    spoken = [
        feature
        for feature in range(tiny_store.n_features)
        if tiny_store.feature(feature).n_sequences == tiny_store.n_sequences
        and tiny_store.feature(feature).density < 0.2
    ]
    narrow = EvidenceSettings(window=1, n_quiet=8)
    for feature in spoken:
        evidence = gather(tiny_store, feature, narrow)
        assert evidence.quiet
        held_out = set(contexts(evidence.held_out))
        for example in evidence.quiet:
            assert example.sequence in held_out
            assert not example.activations.any() and len(example.texts) == 3
    assert spoken


def test_settings_that_ask_for_nothing_are_refused():
    with pytest.raises(ConfigError, match="window is 0; it must be at least 1"):
        EvidenceSettings(window=0)
