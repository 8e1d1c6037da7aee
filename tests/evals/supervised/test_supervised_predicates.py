"""F1 against predicates and unions, interpretations, occlusion measures: against literal counts."""

from __future__ import annotations

import itertools

import pytest
import torch

from saelab.evals.supervised.interpretation import attribute_use
from saelab.evals.supervised.predicates import (
    PredicateFamily,
    best_unions,
    exchanged_codes,
    f1_scores,
    families_of,
    histogram_by_kind,
    interpret,
    on_pairs,
    overlaps,
    without_latents,
)
from saelab.sparse import SparseCodes


def codes_of(on, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return SparseCodes.from_dense(on * (0.1 + torch.rand(on.shape, generator=generator)))


def f1(one, other):
    both, total = int((one & other).sum()), int(one.sum()) + int(other.sum())
    return 2 * both / total if total else 0.0


@pytest.mark.parametrize("columns", [1, 2])
def test_f1_and_unions_equal_the_literal_counts(columns):
    generator = torch.Generator().manual_seed(columns)
    n, d_sae, n_values = 80, 12, 7
    on = torch.rand(n, d_sae, generator=generator) < torch.rand(d_sae, generator=generator)
    holds = torch.stack(
        [torch.randperm(n_values + 1, generator=generator)[:columns] - 1 for _ in range(n)]
    )
    family = PredicateFamily("x is …", "value", tuple(map(str, range(n_values))), holds)
    row, latent = on_pairs(codes_of(on))
    n_on = on.sum(0)
    member = torch.stack([(holds == value).any(1) for value in range(n_values)], dim=1)
    overlap = overlaps(row, latent, d_sae, family)
    assert torch.equal(overlap, on.T.long() @ member.long())
    assert torch.equal(family.sizes(), member.sum(0))
    table = f1_scores(overlap, n_on, family.sizes())
    for j, value in itertools.product(range(d_sae), range(n_values)):
        assert table[j, value].item() == pytest.approx(f1(on[:, j], member[:, value]))
    found = best_unions(family, row, latent, n_on, 5)
    for j in range(d_sae):
        order = sorted(range(n_values), key=lambda value: (-float(table[j, value]), value))[:5]
        assert found.order[j].tolist() == order
        tried = [f1(on[:, j], member[:, order[:k]].any(1)) for k in range(1, 6)]
        assert found.f1[j].item() == pytest.approx(max(tried))
        assert tried[int(found.n_values[j]) - 1] == pytest.approx(max(tried))


def test_overlapping_predicates_need_a_real_or():
    # Both names are in every prompt: the union's size is 4, not 8.
    holds = torch.tensor([[0, 1], [1, 0], [0, 2], [1, 2]])
    family = PredicateFamily("either is …", "either", ("x", "y", "z"), holds)
    on = torch.ones(4, 1, dtype=torch.bool)
    row, latent = on_pairs(codes_of(on))
    found = best_unions(family, row, latent, on.sum(0), 2)
    assert found.f1.tolist() == [1.0]


def test_all_values_of_an_attribute_together_mean_nothing():
    label = torch.arange(60) % 3
    (family,) = families_of({"x": label}, {"x": ("p", "q", "r")})
    on = torch.ones(60, 1, dtype=torch.bool)
    row, latent = on_pairs(codes_of(on))
    found = best_unions(family, row, latent, on.sum(0), 10)
    assert found.n_values.tolist() == [2] and found.f1.item() == pytest.approx(2 * 40 / 100)


def test_families_of_a_task_with_names_a_position_and_genders():
    names = ("Ann", "Bob", "Cid", "Dot", "Eve")
    values = {"io": names, "s": names, "pos": ("ABB", "BAB")}
    labels = {
        "io": torch.tensor([0, 1, 2]),
        "s": torch.tensor([1, 2, 0]),
        "pos": torch.tensor([0, 1, 0]),
    }
    gender = {"Ann": "F", "Bob": "M", "Dot": "F", "Eve": "F"}
    families = families_of(labels, values, {"s": {"gender": gender}})
    named = {family.name: family for family in families}
    assert [family.name for family in families][:3] == ["io is …", "s is …", "pos is …"]
    assert named["io is … and pos is BAB"].holds.flatten().tolist() == [-1, 1, -1]
    assert named["io or s is …"].holds.tolist() == [[0, 1], [1, 2], [2, 0]]
    # Cid has no group.
    assert named["s has gender …"].holds.flatten().tolist() == [1, -1, 0]
    assert "pos is … and io is Ann" not in named


def test_an_always_on_latent_scores_two_p_over_one_plus_p_and_is_guarded():
    label = torch.arange(100) % 2
    families = families_of({"pos": label}, {"pos": ("ABB", "BAB")})
    on = torch.stack([torch.ones(100), (label == 1).float(), torch.zeros(100)], dim=1).bool()
    found = interpret(codes_of(on), families, ["pos"], most_values=1)
    assert found.f1[0].item() == pytest.approx(2 * 0.5 / 1.5)
    assert found.interpretable(0.6).tolist() == [False, True, False]
    assert found.n_always_on() == 1 and found.live().tolist() == [True, True, False]
    assert found.words == ("pos is ABB", "pos is BAB", "")
    assert sum(sum(counts) for counts in histogram_by_kind(found).values()) == 1
    use = attribute_use(found, "pos", families[0].sizes())
    assert [int((use.best_f1 >= limit).sum()) for limit in (0.5, 0.9)] == [1, 1]
    assert use.best_f1.max() == 1


def test_splinters_are_pure_but_partial():
    label = torch.arange(100) % 2
    families = families_of({"pos": label}, {"pos": ("ABB", "BAB")})
    whole = label == 1
    part = whole & (torch.arange(100) < 30)
    mixed = torch.arange(100) < 30
    found = interpret(codes_of(torch.stack([whole, part, mixed], dim=1)), families, ["pos"])
    assert attribute_use(found, "pos", families[0].sizes()).n_splinters == 1


def test_subtracting_and_exchanging_codes():
    generator = torch.Generator().manual_seed(0)
    mine, other = (
        torch.rand(5, 6, generator=generator) * (torch.rand(5, 6, generator=generator) < 0.5)
        for _ in range(2)
    )
    W_dec = torch.randn(6, 4, generator=generator)
    moved = torch.tensor([True, False, True, False, False, True])
    exchanged = exchanged_codes(SparseCodes.from_dense(mine), SparseCodes.from_dense(other), moved)
    assert torch.equal(exchanged.to_dense(), torch.where(moved, other, mine))
    rows = torch.randn(5, 4, generator=generator)
    left = without_latents(rows, mine, W_dec, moved)
    torch.testing.assert_close(left, rows - mine[:, moved] @ W_dec[moved])
