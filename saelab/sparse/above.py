"""Selection by threshold, per batch and per latent: every pair above a floor, exactly.

All selections that are not a plain top-k start from the pairs whose pre-activation exceeds a floor
(one per latent). The floor is taken off the encoder bias, so the product itself gives the margin,
and a chunk is searched in strided groups whose maxima tell where to look. The global top of a batch
and the top rows of each latent need no full sort then: a floor from the batch before leaves little
more than what is sought, and where it leaves less, it is lowered and the search repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .backends import backend_of
from .codes import SparseCodes
from .selection import exact_pre_activations, pre_activation_chunks

GROUP_SIZES = (16, 8, 4)
SPARE = 1.25
"""Pairs that a floor should leave, as a multiple of those sought."""
SAMPLE_ROWS = 256
LATENTS_AT_A_TIME = 128
"""Latents searched again together: their pre-activations on all rows are held at once."""
SEARCHED_WHOLE = 1 << 18
"""Entries of a chunk up to which looking at all of them costs less than looking for groups."""


@runtime_checkable
class Processes(Protocol):
    """What a selection over a batch that several processes share asks of them.

    `saelab.training.world.World` is one; each process holds equally many rows.
    """

    @property
    def rank(self) -> int: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102
    def sum(self, tensor: Any) -> Tensor: ...  # noqa: D102
    def max(self, tensor: Any) -> Tensor: ...  # noqa: D102
    def gather(self, tensor: Any) -> list[Tensor]: ...  # noqa: D102


@dataclass(frozen=True)
class BatchTop:
    """The largest pairs of a batch, and where the next batch may start to look."""

    codes: SparseCodes
    """The chosen pairs with their pre-activations."""
    threshold: Float[Tensor, ""]
    """The smallest chosen pre-activation; 0 where fewer were positive than were asked for."""
    next_floor: Float[Tensor, ""]
    """A floor above which the next batch should hold a few more pairs than are sought."""


@dataclass(frozen=True)
class LatentTop:
    """The largest rows of each latent, and where the next batch may start to look."""

    codes: SparseCodes
    """The chosen pairs with their pre-activations."""
    thresholds: Float[Tensor, " d_sae"]
    """The smallest chosen pre-activation of each latent; 0 where its budget was not used up."""
    next_floors: Float[Tensor, " d_sae"]
    """Floors above which the next batch should hold a few more rows than each budget."""


@torch.no_grad()
def select_above(
    inputs: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    floor: Float[Tensor, " d_sae"] | Float[Tensor, ""],
    *,
    product_dtype: torch.dtype | None = None,
) -> SparseCodes:
    """Every pair whose pre-activation exceeds the floor, with that pre-activation as value.

    With a lower `product_dtype` pairs are found at that precision; their values are computed again
    at the precision of `inputs`, so one may lie below the floor by the rounding of the product.

    Args:
        inputs: what is encoded, centred by the decoder bias where that applies.
        W_enc: encoder weights.
        b_enc: encoder bias.
        floor: of each latent, or of all.
        product_dtype: dtype of the dense product; None means that of `inputs`.
    """
    rows, latents, start = [], [], 0
    chunks = pre_activation_chunks(inputs, W_enc, b_enc - floor, product_dtype=product_dtype)
    for part, chunk in chunks:
        row, latent = _above_zero(chunk)
        rows.append(row + part.start)
        latents.append(latent)
        start = part.stop
    row = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64, device=inputs.device)
    latent = torch.cat(latents) if latents else row
    # Rows come in order, so where each begins is a search, not a sort.
    row_pointer = torch.searchsorted(row, torch.arange(start + 1, device=row.device))
    found = SparseCodes(row_pointer, latent, inputs.new_zeros(latent.shape[0]), W_enc.shape[1])
    return found.with_value(exact_pre_activations(found, inputs, W_enc, b_enc))


def _above_zero(chunk: Float[Tensor, "rows d_sae"]) -> tuple[Tensor, Tensor]:
    """Row and latent of each positive entry, by row."""
    rows, width = chunk.shape
    group = next((size for size in GROUP_SIZES if width % size == 0), 1)
    if group > 1 and chunk.numel() > SEARCHED_WHOLE:
        grouped = chunk.view(rows, group, width // group)
        hit_row, hit_group = (grouped.amax(1) > 0).nonzero(as_tuple=True)
        # Where most groups hold an entry, looking at all of them once is cheaper.
        if hit_row.shape[0] * 4 < rows * width // group:
            hit, member = (grouped[hit_row, :, hit_group] > 0).nonzero(as_tuple=True)
            return hit_row[hit], member * (width // group) + hit_group[hit]
    return backend_of(chunk).set_entries(chunk > 0)


@torch.no_grad()
def select_batch_top(
    inputs: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    count: int,
    floor: Float[Tensor, ""] | None = None,
    *,
    product_dtype: torch.dtype | None = None,
    world: Processes | None = None,
) -> BatchTop:
    """The `count` largest positive pre-activations of the whole batch, or all where fewer are.

    Args:
        inputs: what is encoded, centred by the decoder bias where that applies.
        W_enc: encoder weights.
        b_enc: encoder bias.
        count: pairs to choose, over all of these rows together.
        floor: where to look first, as the batch before left it; decides the speed, never the
            result. None takes it from a sample of the rows.
        product_dtype: dtype of the dense product; None means that of `inputs`.
        world: processes that hold other rows of the same batch; the choice is over all of them,
            `count` for each. None: there are none.
    """
    if floor is None:
        floor = _sampled_floor(inputs, W_enc, b_enc, count, product_dtype)
        # Where to look must be the same for all.
        floor = floor if world is None else -world.max(-floor)
    total = count if world is None else count * world.size
    floor = floor.clamp_min(0.0)
    found = select_above(inputs, W_enc, b_enc, floor, product_dtype=product_dtype)
    while _number(found, world) < total and bool(floor > 0):
        # Half as high holds several times as many; from the second time on nothing is spared.
        floor = torch.where(floor > 1e-3, floor / 2, torch.zeros_like(floor))
        found = select_above(inputs, W_enc, b_enc, floor, product_dtype=product_dtype)
    # Values are exact and the floor was met at the product's precision: a few may not be positive.
    found = found.keep(found.value > 0)
    values, first = _of_all(found.value, world)
    n_found = values.shape[0]
    ranked, order = values.topk(min(n_found, int(SPARE * total)), sorted=True)
    kept = torch.zeros(n_found, dtype=torch.bool, device=inputs.device)
    kept[order[:total]] = True
    zero = inputs.new_zeros(())
    return BatchTop(
        found.keep(kept[first : first + found.value.shape[0]]),
        threshold=ranked[total - 1] if n_found >= total else zero,
        # Too few spare ones say nothing of what lies below: lower the floor.
        next_floor=ranked[-1] * (1.0 if n_found > SPARE * total else 0.95) if n_found else zero,
    )


def _number(codes: SparseCodes, world: Processes | None) -> int:
    """Pairs of all processes together."""
    number = codes.latent.shape[0]
    if world is None or world.size == 1:
        return number
    return int(world.sum(torch.tensor(number, device=codes.latent.device)))


def _of_all(tensor: Tensor, world: Processes | None) -> tuple[Tensor, int]:
    """The tensors of all processes one after another, and where this one's begins."""
    if world is None or world.size == 1:
        return tensor, 0
    parts = world.gather(tensor)
    return torch.cat(parts), sum(part.shape[0] for part in parts[: world.rank])


@torch.no_grad()
def select_latent_top(
    inputs: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    budgets: Int[Tensor, " d_sae"],
    floors: Float[Tensor, " d_sae"],
    *,
    product_dtype: torch.dtype | None = None,
    world: Processes | None = None,
) -> LatentTop:
    """Of each latent, the rows of its largest positive pre-activations, as many as its budget.

    Args:
        inputs: what is encoded, centred by the decoder bias where that applies.
        W_enc: encoder weights.
        b_enc: encoder bias.
        budgets: rows that each latent may keep, of those of all processes.
        floors: where to look first, as the batch before left them; they decide the speed, never
            the result. Zeros look at every positive entry.
        product_dtype: dtype of the dense product; None means that of `inputs`.
        world: processes that hold other rows of the same batch. None: there are none.
    """
    floors = floors.clamp_min(0.0)
    found = select_above(inputs, W_enc, b_enc, floors, product_dtype=product_dtype)
    counts = found.pair_counts() if world is None else world.sum(found.pair_counts())
    short = (counts < budgets) & (floors > 0)
    again = short.nonzero().squeeze(1)
    if again.shape[0]:
        found = _joined(
            found.keep(~short[found.latent]),
            _largest_rows(inputs, W_enc, b_enc, again, spare_ranks(budgets), product_dtype),
        )
    found = found.keep(found.value > 0)
    return _latent_top_of(found, budgets, torch.where(short, 0.0, floors), world)


def _latent_top_of(
    found: SparseCodes,
    budgets: Int[Tensor, " d_sae"],
    floors: Float[Tensor, " d_sae"],
    world: Processes | None,
) -> LatentTop:
    """Rank the pairs of each latent by value and keep as many as its budget."""
    counts = found.pair_counts() if world is None else world.sum(found.pair_counts())
    first = torch.cumsum(counts, 0) - counts
    latent, start = _of_all(found.latent, world)
    value, _ = _of_all(found.value, world)
    order = _by_latent_then_value(latent, value)
    latent, value = latent[order], value[order]
    rank = torch.arange(order.shape[0], device=order.device) - first[latent]
    kept = torch.zeros_like(rank, dtype=torch.bool)
    kept[order] = rank < budgets[latent]

    def at_rank(wanted: Tensor, otherwise: Tensor) -> Tensor:
        enough = counts > wanted
        if not value.shape[0]:
            return otherwise
        index = (first + wanted).clamp_max(value.shape[0] - 1)
        return torch.where(enough, value[index], otherwise)

    zeros = torch.zeros_like(floors)
    return LatentTop(
        found.keep(kept[start : start + found.latent.shape[0]]),
        thresholds=torch.where(budgets > 0, at_rank((budgets - 1).clamp_min(0), zeros), zeros),
        next_floors=at_rank(spare_ranks(budgets), floors * 0.9),
    )


def _by_latent_then_value(
    latent: Int[Tensor, " pairs"], value: Float[Tensor, " pairs"]
) -> Int[Tensor, " pairs"]:
    """The order of the pairs by latent and, within one, from the largest value down.

    The bits of a positive float32 rise with it, so one integer holds both keys.
    """
    bits = value.float().contiguous().view(torch.int32).long()
    key = (latent.long() << 32) | (0x7FFFFFFF - bits)
    return backend_of(key).stable_order(key)


def spare_ranks(budgets: Int[Tensor, " d_sae"]) -> Int[Tensor, " d_sae"]:
    """How many rows of each latent a floor should leave.

    Numbers of rows above a floor vary by about their root from batch to batch; a floor that leaves
    too few has its latent searched again.
    """
    return budgets + (1.5 * budgets.double().sqrt()).ceil().long() + 1


def _largest_rows(
    inputs: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    latents: Int[Tensor, " some"],
    wanted: Int[Tensor, " d_sae"],
    product_dtype: torch.dtype | None,
) -> SparseCodes:
    """Of the listed latents alone, the rows of the largest: one more than is wanted of each."""
    dtype = product_dtype or inputs.dtype
    # Those that want few are searched together, so that one that wants many costs no other.
    latents = latents[wanted[latents].argsort()]
    rows_last = inputs.to(dtype).T
    row, latent = [], []
    for part in latents.split(LATENTS_AT_A_TIME):
        directions = W_enc.T[part].to(dtype)
        pre_activations = torch.addmm(b_enc[part].to(dtype).unsqueeze(1), directions, rows_last)
        most = min(int(wanted[part].max()) + 1, inputs.shape[0])
        indices = pre_activations.topk(most, dim=1).indices
        enough = torch.arange(most, device=part.device) <= wanted[part].unsqueeze(1)
        row.append(indices[enough])
        latent.append(part.unsqueeze(1).expand_as(indices)[enough])
    rows, latents = torch.cat(row), torch.cat(latent)
    zeros = inputs.new_zeros(rows.shape[0])
    found = SparseCodes.from_pairs(rows, latents, zeros, inputs.shape[0], W_enc.shape[1])
    return found.with_value(exact_pre_activations(found, inputs, W_enc, b_enc))


def _joined(found: SparseCodes, rest: SparseCodes) -> SparseCodes:
    """Two sets of pairs of the same rows as one."""
    return SparseCodes.from_pairs(
        torch.cat([found.pair_rows(), rest.pair_rows()]),
        torch.cat([found.latent, rest.latent]),
        torch.cat([found.value, rest.value]),
        found.n_rows,
        found.d_sae,
    )


def _sampled_floor(
    inputs: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    count: int,
    product_dtype: torch.dtype | None,
) -> Float[Tensor, ""]:
    """A floor that should leave a few more than `count` pairs, from evenly spaced rows."""
    step = max(1, inputs.shape[0] // SAMPLE_ROWS)
    sample = inputs[::step]
    wanted = int(SPARE * count * sample.shape[0] / max(1, inputs.shape[0])) + 1
    largest = inputs.new_zeros(0)
    for _, chunk in pre_activation_chunks(sample, W_enc, b_enc, product_dtype=product_dtype):
        entries = torch.cat([largest, chunk.flatten().to(inputs.dtype)])
        largest = entries.topk(min(wanted, entries.shape[0]), sorted=True).values
    return largest[-1] if largest.shape[0] else inputs.new_zeros(())
