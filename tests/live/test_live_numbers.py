"""Ranking, contrast, edits and the lock, without a model."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.errors import ConfigError
from saelab.live.contrast import contrast
from saelab.live.edits import FeatureEdit, apply_edits
from saelab.live.lock import FairLock
from saelab.live.reading import SORTS, FeatureNumbers, Reading, feature_use, ranked

from .conftest import random_dictionary

D_SAE = 12


def reading_of(codes):
    """A reading with dense codes [seq d_sae]; its first position does not count."""
    codes = np.array(codes, dtype=np.float64)
    codes[0] = 0
    position, latent = codes.nonzero()
    counted = np.ones(len(codes), dtype=bool)
    counted[0] = False
    return Reading(
        ids=list(range(len(codes))),
        tokens=[f"t{i}" for i in range(len(codes))],
        counted=counted,
        excluded={"bos": 1},
        n_cut=0,
        position=position,
        latent=latent,
        value=codes[position, latent],
    )


def random_codes(generator, n_tokens):
    codes = generator.exponential(2.0, (n_tokens, D_SAE))
    return codes * (generator.random((n_tokens, D_SAE)) < 0.3)


NUMBERS = FeatureNumbers(
    density=np.array([0.5, 0.01, 0.2, 1e-5]), maximum=np.array([10.0, 1.0, 4.0, 0.0])
)


@pytest.mark.parametrize(
    ("sort", "order"),
    [("strength", [0, 2, 1, 3]), ("relative", [3, 1, 2, 0]), ("rarity", [3, 1, 2, 0])],
)
def test_sorts(sort, order):
    value = np.array([5.0, 0.8, 3.0, 0.1])
    assert ranked(np.arange(4), value, NUMBERS, sort).tolist() == order
    assert ranked(np.arange(4), value, NUMBERS, sort, 0.2).tolist() == [o for o in order if o != 0]


def test_unknown_sort_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"sort .size. is unknown.*relative"):
        ranked(np.arange(4), np.ones(4), NUMBERS, "size")


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.floats(0.01, 100, allow_nan=False)),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from(sorted(SORTS)),
    st.floats(1e-6, 1),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_ranking_keeps_exactly_what_is_rare_enough_and_ignores_the_order_given(
    pairs, sort, ceiling, seed
):
    generator = np.random.default_rng(seed)
    numbers = FeatureNumbers(10 ** -generator.uniform(0, 5, 31), generator.uniform(0, 9, 31))
    latent = np.array([latent for latent, _ in pairs])
    value = np.array([value for _, value in pairs])
    chosen = ranked(latent, value, numbers, sort, ceiling)
    assert sorted(chosen) == np.flatnonzero(numbers.density[latent] <= ceiling).tolist()
    mixed = generator.permutation(len(pairs))
    again = mixed[ranked(latent[mixed], value[mixed], numbers, sort, ceiling)]
    assert latent[again].tolist() == latent[chosen].tolist()
    assert value[again].tolist() == value[chosen].tolist()


def test_feature_use_by_hand():
    reading = reading_of([[9, 9, 9], [0, 2, 0], [1, 5, 0], [0, 5, 0]])
    use = feature_use(reading)
    assert use.latent.tolist() == [0, 1]
    assert use.peak.tolist() == [1, 5]
    assert use.peak_position.tolist() == [2, 2]
    assert use.n_positions.tolist() == [1, 3]


@pytest.mark.parametrize("shapes", [([6, 9, 4], [5, 8]), ([2], [2]), ([3], [30])])
def test_contrast_against_literal_float64(shapes):
    generator = np.random.default_rng(0)
    sets = [[random_codes(generator, n) for n in sizes] for sizes in shapes]
    found = contrast(*([reading_of(codes) for codes in side] for side in sets), D_SAE)
    a, b = (np.concatenate([codes[1:] for codes in side]) for side in sets)
    assert found.n_tokens == (len(a), len(b))
    expected = np.flatnonzero((a > 0).any(0) | (b > 0).any(0))
    assert found.latent.tolist() == expected.tolist()
    for place, latent in enumerate(expected):
        x, y = a[:, latent], b[:, latent]
        assert found.mean_a[place] == pytest.approx(x.mean())
        assert found.difference[place] == pytest.approx(x.mean() - y.mean())
        squares = ((x - x.mean()) ** 2).sum() + ((y - y.mean()) ** 2).sum()
        freedom = len(x) + len(y) - 2
        if squares > 1e-20 and freedom:
            d = (x.mean() - y.mean()) / np.sqrt(squares / freedom)
            assert found.effect[place] == pytest.approx(d)
        else:
            assert np.isnan(found.effect[place])
        assert found.texts_a[place] == sum((codes[1:, latent] > 0).any() for codes in sets[0])
        assert found.texts_b[place] == sum((codes[1:, latent] > 0).any() for codes in sets[1])


def test_contrast_needs_tokens_in_both_sets():
    full, empty = reading_of(np.ones((3, D_SAE))), reading_of(np.ones((1, D_SAE)))
    with pytest.raises(ConfigError, match="set B has no token that counts"):
        contrast([full], [empty], D_SAE)
    with pytest.raises(ConfigError, match="set A has no token that counts"):
        contrast([], [full], D_SAE)


def test_edits_leave_rows_that_do_not_count_alone():
    dictionary = random_dictionary(input_normalisation="constant_norm_rescale")
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    where = torch.tensor([True, False, True, True, False, True])
    codes = dictionary.encode_dense(x)
    feature = int(codes[0].argmax())
    changed = apply_edits(dictionary, x, [FeatureEdit(feature=feature, kind="ablate")], where)
    assert torch.equal(changed[~where], x[~where])
    scale = x.norm(dim=1) / 32**0.5
    expected = x - (scale * codes[:, feature])[:, None] * dictionary.W_dec[feature]
    torch.testing.assert_close(changed[where], expected[where])
    # Ablating is clamping at zero.
    zero = FeatureEdit(feature=feature, kind="clamp", strength=0, maximum=1.0)
    torch.testing.assert_close(apply_edits(dictionary, x, [zero], where), changed)
    assert torch.equal(apply_edits(dictionary, x, [], where), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature": 3, "kind": "add", "maximum": 0.0}, "feature 3 has no maximum"),
        ({"feature": -1, "kind": "ablate"}, "feature -1 is negative"),
        ({"feature": 1, "kind": "add", "maximum": 1.0, "strength": float("inf")}, "finite"),
        ({"feature": 1, "kind": "add", "maximum": 1.0, "strength": float("nan")}, "finite"),
    ],
)
def test_edits_that_make_no_sense(options, message):
    with pytest.raises(ConfigError, match=message):
        FeatureEdit(**options)


def test_a_feature_that_the_dictionary_does_not_have():
    with pytest.raises(ConfigError, match=r"features 0 to 47; \[99\] are none of them"):
        apply_edits(
            random_dictionary(),
            torch.zeros(1, 32),
            [FeatureEdit(feature=99, kind="ablate")],
            torch.ones(1, dtype=torch.bool),
        )


def test_the_lock_is_given_in_order_and_to_one_at_a_time():
    lock, order, inside = FairLock(), [], []

    def worker(number):
        with lock:
            inside.append(number)
            assert len(inside) == 1
            order.append(number)
            time.sleep(0.002)
            inside.remove(number)

    threads = []
    with lock:
        for number in range(8):
            threads.append(threading.Thread(target=worker, args=(number,)))
            threads[-1].start()
            deadline = time.monotonic() + 5
            while lock.queue_length < number + 2 and time.monotonic() < deadline:
                time.sleep(0.001)
    for thread in threads:
        thread.join(timeout=5)
    assert order == list(range(8))
    assert lock.queue_length == 0


def test_one_who_gives_up_waiting_blocks_nobody(monkeypatch):
    lock = FairLock()

    def interrupted(*_):
        raise KeyboardInterrupt

    with lock:
        monkeypatch.setattr(lock._changed, "wait_for", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lock.__enter__()
        monkeypatch.undo()
    with lock:
        assert lock.queue_length == 1
    assert lock.queue_length == 0
