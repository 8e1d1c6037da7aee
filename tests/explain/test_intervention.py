"""The intervention score, with texts of a tiny model and judges that know or do not."""

from __future__ import annotations

import pytest

from saelab.explain.intervention import Steering, intervention
from saelab.features.token_text import Vocabulary
from tests.live.conftest import saved

__all__ = ["saved"]
PROMPTS = ["the king met the queen", "a small boat on the river", "congress shall meet"]
FEATURE = 3


@pytest.fixture(scope="module")
def written(tiny_model, saved):
    steering = Steering(tiny_model, saved, Vocabulary(tiny_model.token_bytes()), seed=1)
    return steering.texts(FEATURE, 30.0, PROMPTS * 4, strength=2.0, n_tokens=8)


def test_only_what_is_boosted_differs(tiny_model, saved, written):
    """The plain text is the model's own, and the feature's boost is not the random one's."""
    assert len(written) == 12
    texts = [["".join(text.texts) for text in vars(one).values()] for one in written]
    assert sum(boosted != plain for plain, boosted, _ in texts) > 6
    assert sum(boosted != elsewhere for _, boosted, elsewhere in texts) > 6
    again = Steering(tiny_model, saved, Vocabulary(tiny_model.token_bytes()), seed=1)
    first = again.texts(FEATURE, 30.0, PROMPTS[:1], strength=2.0, n_tokens=8)[0]
    assert first.boosted.token_ids == written[0].boosted.token_ids
    none = again.texts(FEATURE, 30.0, PROMPTS[:1], strength=0.0, n_tokens=8)[0]
    assert none.boosted.token_ids == none.plain.token_ids == none.elsewhere.token_ids


def test_judges_that_know_and_that_do_not(written):
    boosted = {id(one.boosted) for one in written}

    def choose(description, pairs):
        if description == "knows":
            return [1 if id(b) in boosted else 0 if id(a) in boosted else 0.5 for a, b in pairs]
        return [None if description == "silent" else 0] * len(pairs)

    known = intervention(choose, written, "knows", shuffled="first")
    assert known is not None and known.shuffled is not None
    assert (known.value, known.low, known.n, known.random) == (1.0, 1.0, 12, 0.5)
    assert 0.1 < known.shuffled < 0.9
    assert intervention(choose, written, "silent", shuffled=None) is None
