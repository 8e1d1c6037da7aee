"""The rows a dictionary is measured on: of held-out text or of adopted caches; and the splice.

Which positions count is decided by the dictionary's own data spec, as in training.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.cache.aligned import AlignedCaches, open_caches
from saelab.cache.batch import ActivationBatch
from saelab.cache.format import HELD_OUT
from saelab.cache.reader import ActivationCache, open_cache
from saelab.cache.rows import select_rows
from saelab.errors import ArtifactError
from saelab.model.language_model import LanguageModel
from saelab.text.contexts import TextBatch, text_batches

from .data_spec import DataSpec
from .site import Site

AnyCache = ActivationCache | AlignedCaches
MOST_KEPT = 2 << 30
"""Bytes of rows that are kept of one data spec."""


def held_out_batches(
    model: LanguageModel, spec: DataSpec, n_tokens: int, batch_contexts: int
) -> Iterator[TextBatch]:
    """The first contexts of the held-out text, `n_tokens` rounded up to whole contexts.

    Raises:
        TextError: the held-out text does not fill one context.
    """
    contexts = text_batches(
        spec.text,
        model,
        split="held_out",
        context_length=spec.context_length,
        batch_contexts=1,
    )
    # Batched here rather than there, so that text shorter than one batch is evaluated too.
    wanted = islice(contexts, -(-n_tokens // spec.context_length))
    while batch := list(islice(wanted, batch_contexts)):
        yield TextBatch.joined(batch)


@dataclass(frozen=True, eq=False)
class SiteRows:
    """The rows of some contexts that count, as a dictionary reads them and is to write them."""

    keep: Bool[Tensor, "batch seq"]
    """True where a position is a row."""
    excluded: dict[str, int]
    """Positions excluded, by the first reason that applies."""
    inputs: Float[Tensor, "rows d_in"]
    """What is read, at least float32; several hook points side by side."""
    targets: Float[Tensor, "rows d_out"]
    """What is to be written, at least float32: for a sparse autoencoder the same tensor."""


_KEPT: ContextVar[dict[Hashable, list[SiteRows]] | None] = ContextVar("kept_rows", default=None)


def select(
    model: LanguageModel,
    spec: DataSpec,
    batch: TextBatch,
    captured: Mapping[str, Float[Tensor, "batch seq _"]],
    first_context: int = 0,
) -> tuple[Bool[Tensor, "batch seq"], dict[str, int]]:
    """Which positions count, by the dictionary's own filter, and how many do not for what reason.

    As in training, a row excluded at one hook point of the site is excluded at all.

    Raises:
        ActivationError: activations that are not finite.
    """
    keep, excluded = None, {}
    for name, ceiling in zip(spec.site.hook_points, spec.norm_ceilings, strict=True):
        selection = select_rows(
            spec.token_filter,
            batch.tokens,
            captured[name],
            special_ids=model.special_ids,
            bos_id=model.bos_id,
            norm_ceiling=ceiling,
            first_context=first_context,
            left_out=batch.left_out,
        )
        if keep is None:
            keep, excluded = selection.keep, dict(selection.excluded)
        else:
            # Tokens and positions are the same everywhere, so only a norm can tell them apart.
            excluded["norm"] += int((keep & ~selection.keep).sum())
            keep = keep & selection.keep
    assert keep is not None  # a site names at least one hook point
    return keep, excluded


def site_rows(
    model: LanguageModel,
    spec: DataSpec,
    batch: TextBatch,
    captured: Mapping[str, Float[Tensor, "batch seq _"]],
    first_context: int = 0,
) -> SiteRows:
    """The rows of some contexts that count, from what their hook points hold.

    Args:
        model: whose special tokens the filter knows.
        spec: site and token filter.
        batch: the contexts.
        captured: activations at every hook point of the site.
        first_context: index of the first context in the text, for messages.

    Raises:
        ActivationError: activations that are not finite.
    """
    keep, excluded = select(model, spec, batch, captured, first_context)
    rows = {}
    for name in spec.site.hook_points:
        x = captured[name][keep]
        rows[name] = x.to(torch.promote_types(x.dtype, torch.float32))
    inputs = side_by_side([rows[name] for name in spec.site.reads])
    if spec.site.is_autoencoder:
        return SiteRows(keep, excluded, inputs, inputs)
    return SiteRows(keep, excluded, inputs, side_by_side([rows[name] for name in spec.site.writes]))


def side_by_side(parts: Sequence[Float[Tensor, "rows _"]]) -> Float[Tensor, "rows width"]:
    """Rows of several hook points as one; those of one as they are."""
    return parts[0] if len(parts) == 1 else torch.cat([*parts], dim=1)


def splice_at(
    model: LanguageModel,
    site: Site,
    keep: Bool[Tensor, "batch seq"],
    rows: Float[Tensor, "rows d_out"],
) -> dict[str, Callable[[Tensor], Tensor]]:
    """What `LanguageModel.run` takes to put rows in place of what a site writes.

    Args:
        model: gives the width of each hook point.
        site: whose written hook points are replaced.
        keep: the positions that are replaced; all others keep their activation.
        rows: what replaces them, hook points side by side.
    """
    ends = [*accumulate(model.width_at(name) for name in site.writes)]

    def replacing(part: Tensor) -> Callable[[Tensor], Tensor]:
        def change(activations: Tensor) -> Tensor:
            replaced = activations.clone()
            replaced[keep] = part.to(activations)
            return replaced

        return change

    return {
        name: replacing(rows[:, start:end])
        for name, start, end in zip(site.writes, [0, *ends], ends, strict=False)
    }


def open_adopted(spec: DataSpec, *, held_out: bool) -> tuple[AnyCache, ActivationCache]:
    """The adopted caches of a data spec, those of several hook points side by side.

    The second of what is returned is the first cache, for tokens and positions.

    Raises:
        ArtifactError: they are not there, or were adopted from other files than the dictionary's.
    """
    assert spec.adopted is not None
    folder = spec.adopted.folder / HELD_OUT if held_out else spec.adopted.folder
    if not folder.is_dir():
        where = spec.adopted.folder
        raise ArtifactError(
            f"{where} has no {HELD_OUT}: adopt with a --held-out-fraction above 0"
            if where.is_dir()
            else f"{where}, which the dictionary was trained on, is not there: say where its "
            "caches are with --activations"
        )
    caches = open_caches(folder, spec.site)
    first = caches
    if not isinstance(first, ActivationCache):
        first = open_cache(folder, spec.site.hook_points[0], verify=False)
    if first.manifest["made_from"].get("text_hash") != spec.adopted.text_hash:
        raise ArtifactError(
            f"{first.folder} holds other rows than the dictionary was trained on: name the folder "
            "of its own with --activations"
        )
    return caches, first


def adopted_shards(
    spec: DataSpec, n_tokens: int, device: torch.device, *, held_out: bool
) -> Iterator[tuple[SiteRows, ActivationBatch]]:
    """The rows of adopted caches, shard by shard until `n_tokens` are reached.

    Returns:
        The rows on the device, and for each its token, context and position in the files.

    Raises:
        ArtifactError: as `open_adopted` says.
        ActivationError: a row that is not finite.
    """
    caches, first = open_adopted(spec, held_out=held_out)
    done = 0
    shards = zip(pairwise(first.shard_starts), first.manifest["shards"], strict=True)
    for (start, stop), entry in shards:
        if done >= n_tokens:
            return
        origin = first.rows(torch.arange(start, stop), with_context=True, with_gradients=False)
        assert origin.sequence is not None and origin.position is not None
        _, context = origin.sequence.unique_consecutive(return_inverse=True)
        keep = torch.zeros(entry["contexts"], spec.context_length, dtype=torch.bool)
        keep[context, origin.position.long()] = True
        excluded: dict[str, int] = {}
        for reason, count in entry["excluded"].items():
            name = reason.partition("_at:")[0]
            excluded[name] = excluded.get(name, 0) + count
        batch = origin if caches is first else caches.rows(torch.arange(start, stop))
        inputs = batch.activations.to(device)
        targets = inputs if batch.targets is None else batch.targets.to(device)
        yield SiteRows(keep.to(device), excluded, inputs, targets), origin
        done += keep.numel()


def evaluated_rows(
    model: LanguageModel | None,
    spec: DataSpec,
    n_tokens: int,
    batch_contexts: int,
    device: torch.device,
) -> Iterator[SiteRows]:
    """The held-out rows of a data spec: of the model's text, or without one of adopted caches.

    `n_tokens` of text are rounded up to contexts, of adopted rows up to shards; see
    `held_out_rows` and `adopted_shards`.
    """
    if model is None:
        return (rows for rows, _ in adopted_shards(spec, n_tokens, device, held_out=True))
    return held_out_rows(model, spec, n_tokens, batch_contexts)


@torch.no_grad()
def held_out_rows(
    model: LanguageModel, spec: DataSpec, n_tokens: int, batch_contexts: int
) -> Iterator[SiteRows]:
    """The evaluated rows themselves, on the model's device, one batch at a time.

    Raises:
        ActivationError: activations that are not finite.
        TextError: the held-out text does not fill one context.
    """
    kept, n_contexts = _KEPT.get(), -(-n_tokens // spec.context_length)
    key = (spec, model.device, batch_contexts)
    if kept is not None and key in kept:
        ends = [*accumulate(len(rows.keep) for rows in kept[key])]
        if n_contexts in ends:
            yield from kept[key][: ends.index(n_contexts) + 1]
            return
    first_context, held = 0, list[SiteRows]()
    for batch in held_out_batches(model, spec, n_tokens, batch_contexts):
        captured = model.capture(batch.tokens, spec.site.hook_points)
        rows = site_rows(model, spec, batch, captured, first_context)
        first_context += len(batch)
        if kept is not None:
            held.append(rows)
        yield rows
    if kept is not None and sum(rows.inputs.nbytes for rows in held) <= MOST_KEPT:
        kept[key] = held


@contextmanager
def rows_kept() -> Iterator[None]:
    """Let `held_out_rows` keep what it computes, for others that ask for the same meanwhile."""
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)
