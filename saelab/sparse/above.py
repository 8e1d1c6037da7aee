"""Selection by threshold, per batch and per latent: every pair above a floor, exactly.

All selections that are not a plain top-k start from the pairs whose pre-activation exceeds a floor
(one per latent). The floor is taken off the encoder bias, so the product itself gives the margin,
and a chunk is searched in strided groups whose maxima tell where to look. The global top of a batch
and the top rows of each latent need no full sort then: a floor from the batch before leaves little
more than what is sought, and where it leaves less, it is lowered and the search repeated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .backends import backend_of
from .codes import SparseCodes
from .selection import PreActivations
from .world import World, current_world

GROUP_SIZES = (16, 8, 4)
SPARE = 1.25
"""Pairs that a floor should leave, as a multiple of those sought."""
SAMPLE_ROWS = 256
LATENTS_AT_A_TIME = 128
"""Latents searched again together: their pre-activations on all rows are held at once."""
SEARCHED_WHOLE = 1 << 18
"""Entries of a chunk up to which looking at all of them costs less than looking for groups."""


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
    pre: PreActivations, floor: Float[Tensor, " d_sae"] | Float[Tensor, ""]
) -> SparseCodes:
    """Every pair whose pre-activation exceeds the floor of its latent, or the one of all.

    Pairs are found at the precision of the product and their values are exact, so a value may lie
    below the floor by the rounding of the product.
    """
    n_rows, d_sae = pre.shape
    rows, latents = [], []
    for part, chunk in replace(pre, b_enc=pre.b_enc - floor).chunks():
        row, latent = _above_zero(chunk)
        rows.append(row + part.start)
        latents.append(latent)
    none = torch.zeros(0, dtype=torch.int64, device=pre.inputs.device)
    row, latent = torch.cat([*rows, none]), torch.cat([*latents, none])
    # Rows come in order, so where each begins is a search, not a sort.
    row_pointer = torch.searchsorted(row, torch.arange(n_rows + 1, device=row.device))
    zeros = pre.inputs.new_zeros(latent.shape[0])
    return pre.exact(SparseCodes(row_pointer, latent, zeros, d_sae))


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
    pre: PreActivations, count: int, floor: Float[Tensor, ""] | None = None
) -> BatchTop:
    """The largest positive pre-activations of a whole batch, shared by all processes of the world.

    Args:
        pre: of this process's rows; each process holds equally many.
        count: pairs to choose for each process's rows on average; all where fewer are positive.
        floor: where to look first, as the batch before left it; decides the speed, never the
            result. None takes it from a sample of the rows.
    """
    world = current_world()
    if floor is None:
        # Where to look must be the same for all.
        floor = -world.max(-_sampled_floor(pre, count))
    total = count * world.size
    floor = floor.clamp_min(0.0)
    pairs = select_above(pre, floor)
    while _number(pairs, world) < total and bool(floor > 0):
        # Half as high holds several times as many; from the second time on nothing is spared.
        floor = torch.where(floor > 1e-3, floor / 2, torch.zeros_like(floor))
        pairs = select_above(pre, floor)
    # Values are exact and the floor was met at the product's precision: a few may not be positive.
    pairs = pairs.keep(pairs.value > 0)
    values, first = _of_all(pairs.value, world)
    n_pairs = values.shape[0]
    ranked, order = values.topk(min(n_pairs, int(SPARE * total)), sorted=True)
    kept = torch.zeros(n_pairs, dtype=torch.bool, device=values.device)
    kept[order[:total]] = True
    zero = values.new_zeros(())
    return BatchTop(
        pairs.keep(kept[first : first + pairs.value.shape[0]]),
        threshold=ranked[total - 1] if n_pairs >= total else zero,
        # Too few spare ones say nothing of those further down: lower the floor.
        next_floor=ranked[-1] * (1.0 if n_pairs > SPARE * total else 0.95) if n_pairs else zero,
    )


def _number(codes: SparseCodes, world: World) -> int:
    """Pairs of all processes together."""
    number = codes.latent.shape[0]
    if world.size == 1:
        return number
    return int(world.sum(torch.tensor(number, device=codes.latent.device)))


def _of_all(tensor: Tensor, world: World) -> tuple[Tensor, int]:
    """The tensors of all processes one after another, and where this one's begins."""
    parts = world.gather(tensor)
    if len(parts) == 1:
        return tensor, 0
    return torch.cat(parts), sum(part.shape[0] for part in parts[: world.rank])


@torch.no_grad()
def select_latent_top(
    pre: PreActivations, budgets: Int[Tensor, " d_sae"], floors: Float[Tensor, " d_sae"]
) -> LatentTop:
    """Of each latent, the rows of its largest positive pre-activations, as many as its budget.

    Args:
        pre: of this process's rows.
        budgets: rows that each latent may keep, of those of all processes.
        floors: where to look first, as the batch before left them; they decide the speed, never
            the result. Zeros look at every positive entry.
    """
    world = current_world()
    floors = floors.clamp_min(0.0)
    pairs = select_above(pre, floors)
    short = (world.sum(pairs.pair_counts()) < budgets) & (floors > 0)
    again = short.nonzero().squeeze(1)
    if again.shape[0]:
        enough = pairs.keep(~short[pairs.latent])
        more = _largest_rows(pre, again, spare_ranks(budgets))
        pairs = SparseCodes.from_pairs(
            torch.cat([enough.pair_rows(), more.pair_rows()]),
            torch.cat([enough.latent, more.latent]),
            torch.cat([enough.value, more.value]),
            *pre.shape,
        )
    pairs = pairs.keep(pairs.value > 0)
    return _latent_top_of(pairs, budgets, torch.where(short, 0.0, floors), world)


def _latent_top_of(
    pairs: SparseCodes,
    budgets: Int[Tensor, " d_sae"],
    floors: Float[Tensor, " d_sae"],
    world: World,
) -> LatentTop:
    """Rank the pairs of each latent by value and keep as many as its budget."""
    counts = world.sum(pairs.pair_counts())
    first = torch.cumsum(counts, 0) - counts
    latent, start = _of_all(pairs.latent, world)
    value, _ = _of_all(pairs.value, world)
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
        pairs.keep(kept[start : start + pairs.latent.shape[0]]),
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
    pre: PreActivations, latents: Int[Tensor, " some"], wanted: Int[Tensor, " d_sae"]
) -> SparseCodes:
    """Of the listed latents alone, the rows of the largest: one more than is wanted of each."""
    dtype = pre.product_dtype or pre.inputs.dtype
    n_rows, d_sae = pre.shape
    # Those that want few are searched together, so that none pays for one that wants many.
    latents = latents[wanted[latents].argsort()]
    rows_last = pre.inputs.to(dtype).T
    row, latent = [], []
    for part in latents.split(LATENTS_AT_A_TIME):
        directions, bias = pre.W_enc.T[part].to(dtype), pre.b_enc[part].to(dtype)
        pre_activations = torch.addmm(bias.unsqueeze(1), directions, rows_last)
        most = min(int(wanted[part].max()) + 1, n_rows)
        indices = pre_activations.topk(most, dim=1).indices
        enough = torch.arange(most, device=part.device) <= wanted[part].unsqueeze(1)
        row.append(indices[enough])
        latent.append(part.unsqueeze(1).expand_as(indices)[enough])
    rows, latents = torch.cat(row), torch.cat(latent)
    zeros = pre.inputs.new_zeros(rows.shape[0])
    return pre.exact(SparseCodes.from_pairs(rows, latents, zeros, n_rows, d_sae))


def _sampled_floor(pre: PreActivations, count: int) -> Float[Tensor, ""]:
    """A floor that should leave a few more than `count` pairs, from evenly spaced rows."""
    n_rows = max(1, pre.shape[0])
    sample = pre.inputs[:: max(1, n_rows // SAMPLE_ROWS)]
    wanted = int(SPARE * count * sample.shape[0] / n_rows) + 1
    largest = sample.new_zeros(0)
    for _, chunk in replace(pre, inputs=sample).chunks():
        entries = torch.cat([largest, chunk.flatten().to(sample.dtype)])
        largest = entries.topk(min(wanted, entries.shape[0]), sorted=True).values
    return largest[-1] if largest.shape[0] else sample.new_zeros(())
