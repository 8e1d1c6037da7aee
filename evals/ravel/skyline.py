"""What learnt directions of the activation exchange, which no dictionary limits (MDAS)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .exchange import Edit, ExchangeBatch
from .facts import EntityPrompt

RIDGE = 1.0
"""Prompts' worth of evidence that a value has no direction of its own."""


def directions_of_values(
    rows: Mapping[EntityPrompt, Float[Tensor, " d_out"]], attribute: str, width: int
) -> Float[Tensor, "d_out width"]:
    """Where entities with another value of an attribute lie, all other attributes being equal.

    Rows are explained as a sum of one vector for each value of each attribute (ridge regression,
    rows centred by prompt); the main directions of this attribute's vectors are returned.

    Args:
        rows: what is written at each prompt's entity.
        attribute: whose directions are asked for.
        width: directions at most; there are no more than values.
    """
    values: dict[str, set[tuple[str, str]]] = {}
    for prompt in rows:
        fact = prompt.fact
        values.setdefault(fact.entity, set()).add((fact.attribute, fact.value))
    columns = sorted(set().union(*values.values()))
    has = torch.tensor(
        [[column in values[prompt.fact.entity] for column in columns] for prompt in rows]
    )
    centred = torch.stack([*rows.values()]).double()
    has = has.to(centred)
    texts = [prompt.fact.prompt for prompt in rows]
    for text in set(texts):
        same = torch.tensor([each == text for each in texts], device=centred.device)
        centred[same] -= centred[same].mean(dim=0)
    evidence = has.T @ has + RIDGE * torch.eye(len(columns)).to(has)
    vectors = torch.linalg.solve(evidence, has.T @ centred)
    chosen = torch.tensor([name == attribute for name, _ in columns], device=vectors.device)
    spanned = torch.linalg.svd(vectors[chosen], full_matrices=False).Vh
    return spanned[:width].T.float().contiguous()


def directions_edit(
    batches: Sequence[ExchangeBatch], parameter: Float[Tensor, "d_out width"]
) -> Edit:
    """Edits that exchange what lies in the span of a parameter's columns."""

    def edit(index: int, temperature: float) -> Tensor:
        del temperature
        basis = torch.linalg.qr(parameter).Q
        batch = batches[index]
        return batch.base + (batch.source - batch.base) @ basis @ basis.T

    return edit
