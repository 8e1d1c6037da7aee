from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.cache.config import TokenFilter
from saelab.cache.rows import excluded_in_words, find_norm_ceiling, select_rows
from saelab.config import Within
from saelab.errors import ActivationError, ConfigError

BOS, SEPARATOR = 0, 1


def expected_reason(rule, token, position, norm, ceiling):
    """The rule, position by position, as its text says it."""
    if rule.exclude_bos and (position == 0 or token == BOS):
        return "bos"
    is_first_bos = position == 0 and token == BOS
    if rule.exclude_separators and token in (BOS, SEPARATOR) and not is_first_bos:
        return "separator"
    if position in rule.exclude_positions:
        return "position"
    if ceiling is not None and norm > ceiling:
        return "norm"
    return None


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    exclude_bos=st.booleans(),
    exclude_separators=st.booleans(),
    positions=st.lists(st.integers(0, 5), max_size=3),
    ceiling=st.none() | st.floats(0.5, 5),
)
def test_agrees_with_the_rule_position_by_position(
    seed, exclude_bos, exclude_separators, positions, ceiling
):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 5, (3, 6), generator=generator)
    activations = torch.randn(3, 6, 4, generator=generator)
    rule = TokenFilter(
        exclude_bos=exclude_bos,
        exclude_separators=exclude_separators,
        exclude_positions=tuple(positions),
    )
    found = select_rows(
        rule, tokens, activations, special_ids={BOS, SEPARATOR}, bos_id=BOS, norm_ceiling=ceiling
    )
    counts = {"bos": 0, "separator": 0, "position": 0, "norm": 0}
    for context in range(3):
        for position in range(6):
            norm = float(activations[context, position].double().norm().float())
            token = int(tokens[context, position])
            reason = expected_reason(rule, token, position, norm, ceiling)
            assert bool(found.keep[context, position]) == (reason is None)
            if reason is not None:
                counts[reason] += 1
    assert found.excluded == counts
    assert int(found.keep.sum()) + sum(found.excluded.values()) == tokens.numel()


def test_a_model_without_bos_loses_its_first_position():
    tokens = torch.full((1, 4), 7)
    rule = TokenFilter()
    found = select_rows(
        rule, tokens, torch.ones(1, 4, 2), special_ids=set(), bos_id=None, norm_ceiling=None
    )
    assert found.keep.tolist() == [[False, True, True, True]]
    assert found.excluded == {"bos": 1, "separator": 0, "position": 0, "norm": 0}


def test_norms_of_bfloat16_are_taken_in_float32():
    activations = torch.full((1, 1, 4096), 1.0, dtype=torch.bfloat16)
    found = select_rows(
        TokenFilter(exclude_bos=False),
        torch.full((1, 1), 7),
        activations,
        special_ids=set(),
        bos_id=None,
        norm_ceiling=None,
    )
    assert found.norms.dtype == torch.float32
    assert float(found.norms) == 64.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_named(value):
    activations = torch.zeros(2, 3, 4)
    activations[1, 2, 3] = value
    with pytest.raises(ActivationError, match="context 11 at position 2 hold a NaN or an infinity"):
        select_rows(
            TokenFilter(),
            torch.zeros(2, 3, dtype=torch.int64),
            activations,
            special_ids=set(),
            bos_id=None,
            norm_ceiling=None,
            first_context=10,
        )


def test_a_norm_that_overflows_is_not_an_error():
    activations = torch.full((1, 2, 4), 3e38)
    found = select_rows(
        TokenFilter(),
        torch.zeros(1, 2, dtype=torch.int64) + 7,
        activations,
        special_ids=set(),
        bos_id=None,
        norm_ceiling=10.0,
    )
    assert found.excluded["norm"] == 1


@pytest.mark.parametrize("ratio", [1.0, float("nan")])
def test_a_rule_that_cannot_be_meant_is_refused(ratio):
    with pytest.raises(ConfigError) as caught:
        TokenFilter(max_norm_ratio=ratio, exclude_positions=(-1, 2))
    assert len(caught.value.problems) == 2
    assert "must be above 1, finite or 'bulk'" in str(caught.value) and "-1" in str(caught.value)
    assert not Within(1, words=("bulk",)).admits("sparkle")


def beyond_bulk(norms):
    """The ceiling, norm by norm, as its text says it."""
    logs = np.log(np.sort(norms.numpy()))
    median = logs[(len(logs) - 1) // 2]
    logs -= median
    bulk, tail, middle = logs, int(0.9 * (len(logs) - 1)), np.inf
    for index in range(tail, len(logs) - 1):
        if logs[index + 1] - logs[index] > np.log(4):
            bulk, middle = bulk[: index + 1], (logs[index] + logs[index + 1]) / 2
            break
    quantile = bulk[int(np.ceil(0.99 * (len(bulk) - 1)))]
    return np.exp(median + min(middle, max(quantile + min(2 * quantile, np.log(4)), np.log(2))))


def planted(name, n=8000, seed=0):
    """A sample of norms, those of another 400,000 rows of the same kind, and which are massive."""
    generator = torch.Generator().manual_seed(seed)
    total = n + 400_000
    normal = torch.randn(total, generator=generator, dtype=torch.float64)
    uniform = torch.rand(total, generator=generator, dtype=torch.float64)
    massive = torch.zeros(total, dtype=torch.bool)
    if name == "rows of a Gaussian":  # in 576 dimensions
        norms = 24 + normal * 0.707
    elif name == "lognormal":
        norms = (0.7 * normal).exp()
    elif name == "power law":
        norms = uniform ** -(1 / 3)
    elif name == "two clusters":
        norms = torch.where(uniform < 0.3, 50.0, 10.0) * (0.1 * normal).exp()
    elif name == "zeros":
        norms = torch.where(uniform < 0.4, 0.0, 10.0) * (0.1 * normal).exp()
    elif name == "all equal":
        norms = torch.full_like(uniform, 10.0)
    else:
        share, factor = {"rare": (1e-4, 5), "unseen": (1e-5, 5), "many": (0.05, 100)}[name]
        massive = uniform < share
        norms = 140 * (0.12 * normal).exp() * torch.where(massive, float(factor), 1.0)
    return norms[:n], norms[n:], massive[n:]


def bulk_ceiling(norms, hook_point="here"):
    ceiling = find_norm_ceiling(TokenFilter(), norms, hook_point)
    assert ceiling is not None
    return ceiling


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("rows of a Gaussian", 0),
        ("lognormal", 2e-5),
        ("power law", 2e-4),
        ("two clusters", 0),
        ("zeros", 0),
        ("all equal", 0),
        ("rare", 0),
        ("unseen", 0),
        ("many", 0),
    ],
)
def test_the_ceiling_lies_between_the_bulk_and_what_is_massive(name, lost):
    sample, rows, massive = planted(name)
    ceiling = bulk_ceiling(sample)
    above = rows > ceiling
    assert bool(above[massive].all())
    assert float((above & ~massive).double().mean()) <= lost


@pytest.mark.parametrize("name", ["lognormal", "rare", "many"])
def test_the_ceiling_is_that_of_its_text(name):
    for n in (1, 2, 3, 10, 99, 1000):
        sample, *_ = planted(name, n, seed=n)
        found = bulk_ceiling(sample)
        assert found == pytest.approx(beyond_bulk(sample), rel=1e-9)


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 500),
    spread=st.floats(0.01, 3),
    scale=st.floats(1e-6, 1e6),
)
def test_the_ceiling_scales_with_the_norms_and_leaves_nine_rows_of_ten(seed, n, spread, scale):
    normal = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    norms = (spread * normal).exp()
    ceiling = bulk_ceiling(norms)
    assert bulk_ceiling(norms * scale) == pytest.approx(ceiling * scale)
    assert ceiling >= 2 * float(norms.median()) * (1 - 1e-9)
    assert int((norms > ceiling).sum()) <= 0.1 * n + 1


@pytest.mark.parametrize("family", ["tiny_model", "tiny_gpt2"])
def test_random_models_have_no_massive_rows(family, request):
    model = request.getfixturevalue(family)
    tokens = torch.randint(3, 300, (48, 48), generator=torch.Generator().manual_seed(0))
    for hook_point, activations in model.capture(tokens, model.hook_points()).items():
        norms = activations[:, 1:].flatten(2).norm(dim=-1).flatten()
        ceiling = bulk_ceiling(norms[: 16 * 47], hook_point)
        assert float(norms.max()) <= ceiling, hook_point


def test_a_multiple_of_the_median_is_that_and_none_is_no_ceiling():
    sample, *_ = planted("rare")
    tenfold = find_norm_ceiling(TokenFilter(max_norm_ratio=10.0), sample, "here")
    assert tenfold == 10 * float(sample.median())
    assert find_norm_ceiling(TokenFilter(max_norm_ratio=None), sample, "here") is None


@pytest.mark.parametrize("ratio", ["bulk", 10.0])
def test_a_sample_that_says_nothing_is_refused(ratio):
    rule = TokenFilter(max_norm_ratio=ratio)
    with pytest.raises(ActivationError, match="excludes every row of the sample: relax"):
        find_norm_ceiling(rule, torch.zeros(0), "here")
    with pytest.raises(ActivationError, match="half of the rows of here are zero"):
        find_norm_ceiling(rule, torch.tensor([0.0, 0.0, 1.0]), "here")


def test_exclusions_at_many_hook_points_are_said_together():
    excluded = {"bos": 1300, "norm_at:a": 1, "norm_at:b": 2, "norm_at:c": 0}
    assert excluded_in_words(excluded) == "1,300 bos, up to 2 norm at each of 2 other hook points"
    assert excluded_in_words({"bos": 3, "norm_at:a": 0}) == "3 bos"
