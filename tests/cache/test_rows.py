from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.cache.config import TokenFilter
from saelab.cache.rows import select_rows
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


def test_a_rule_that_cannot_be_meant_is_refused():
    with pytest.raises(ConfigError) as caught:
        TokenFilter(max_norm_ratio=1.0, exclude_positions=(-1, 2))
    assert len(caught.value.problems) == 2
    assert "max_norm_ratio" in str(caught.value) and "-1" in str(caught.value)
