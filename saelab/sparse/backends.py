"""The kernels behind sparse codes: one table by device, chosen in one function by the tensor.

A backend is five functions on plain tensors and one number (`Kernels` says what each computes);
pairs come in compressed-sparse-row form. All of them pass `tests/sparse/test_backends.py`.
`cpu` and `cuda` are PyTorch's functions: sums are taken in an order fixed by the pairs, without
atomics on the CPU, so repeated runs agree bit for bit; there numpy finds set entries twice as fast
and sorts integers several times as fast as PyTorch. A module of Triton kernels registers itself as
`BACKENDS["triton"] = Kernels(...)`, and from then on serves every tensor that is not on the CPU;
what it does not write by hand it takes from `cuda`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

CUDA_PAIRS_PER_GATHER = 1 << 20
"""Bounds the temporary of the sampled product on a GPU to this many gathered rows."""
GROUP_SIZES = (32, 16, 8, 4)
GROUPS_PER_K = 4
"""A row is searched in groups where there are at least this many groups per entry sought."""


@dataclass(frozen=True)
class Kernels:
    """One backend. Row r of a sparse matrix owns the pairs pointer[r] to pointer[r + 1]."""

    weighted_sums: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """(pointer, index, weight, rows) → for each sparse row the sum of `weight` · `rows[index]`:
    decoding, and, with the pairs ordered by latent, both weight gradients."""
    sampled_product: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """(pointer, latent, rows, latents) → ⟨rows[r], latents[latent]⟩ of every pair of row r."""
    top_k: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    """(scores, k) → values and indices of the k largest of each row, in no particular order; all
    of them where there are fewer. Among equal ones any may be taken."""
    set_entries: Callable[[Tensor], tuple[Tensor, Tensor]]
    """(mask) → row and column of each set entry, by row."""
    stable_order: Callable[[Tensor], Tensor]
    """(keys) → the indices that sort non-negative integers, equal ones in the order they came."""
    chunk_rows: int
    """Rows of the encoder's dense product taken at a time."""


def weighted_sums(
    pointer: Int[Tensor, " rows_plus_one"],
    index: Int[Tensor, " pairs"],
    weight: Float[Tensor, " pairs"],
    rows: Float[Tensor, "n d"],
) -> Float[Tensor, "rows d"]:
    """Weighted sums by `embedding_bag`."""
    return functional.embedding_bag(
        index,
        rows,
        pointer,
        mode="sum",
        per_sample_weights=weight.to(rows.dtype),
        include_last_offset=True,
    )


def top_k(
    scores: Float[Tensor, "rows d_sae"], k: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest entries of each row and their indices, in no particular order.

    Exact: the k strided groups with the largest maxima contain every one of the k largest entries,
    so only their members are searched, and groups and members are in turn searched in
    groups. Among equal entries any may be taken, as with `torch.topk`.
    """
    rows, width = scores.shape
    group = _group_size(width, k)
    if group == 1:
        values, indices = scores.topk(min(k, width), dim=1, sorted=False)
        return values, indices
    n_groups = width // group
    grouped = scores.view(rows, group, n_groups)
    _, best_groups = top_k(grouped.amax(1), k)
    members = grouped.gather(2, best_groups.unsqueeze(1).expand(rows, group, k))
    values, inside = top_k(members.view(rows, group * k), k)
    indices = best_groups.gather(1, inside % k) + (inside // k) * n_groups
    return values, indices


def _group_size(width: int, k: int) -> int:
    for group in GROUP_SIZES:
        if width % group == 0 and width // group >= GROUPS_PER_K * k:
            return group
    return 1


def _sampled_product_on_cpu(
    pointer: Tensor, latent: Tensor, rows: Tensor, latents: Tensor
) -> Tensor:
    with warnings.catch_warnings():
        # PyTorch calls its CSR layout beta and its unchecked invariants a risk; ours hold by
        # construction and are tested.
        warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)")
        pattern = torch.sparse_csr_tensor(
            pointer,
            latent,
            torch.zeros(latent.shape[0], dtype=rows.dtype),
            size=(rows.shape[0], latents.shape[0]),
        )
        return torch.sparse.sampled_addmm(pattern, rows, latents.T, beta=0.0).values()


def _sampled_product(pointer: Tensor, latent: Tensor, rows: Tensor, latents: Tensor) -> Tensor:
    row = torch.arange(rows.shape[0], device=rows.device).repeat_interleave(
        pointer.diff(), output_size=latent.shape[0]
    )
    parts = [
        (rows[part_row] * latents[part_latent]).sum(1)
        for part_row, part_latent in zip(
            row.split(CUDA_PAIRS_PER_GATHER), latent.split(CUDA_PAIRS_PER_GATHER), strict=True
        )
    ]
    return torch.cat(parts)


def _set_entries_on_cpu(mask: Bool[Tensor, "rows columns"]) -> tuple[Tensor, Tensor]:
    flat = torch.from_numpy(np.flatnonzero(mask.numpy()))
    row = torch.div(flat, mask.shape[1], rounding_mode="floor")
    return row, flat - row * mask.shape[1]


def _set_entries(mask: Bool[Tensor, "rows columns"]) -> tuple[Tensor, Tensor]:
    row, column = mask.nonzero(as_tuple=True)
    return row, column


def _stable_order_on_cpu(keys: Int[Tensor, " pairs"]) -> Int[Tensor, " pairs"]:
    if keys.dtype == torch.int64 and keys.shape[0] and int(keys.max()) >= 1 << 31:
        return torch.from_numpy(np.argsort(keys.numpy(), kind="stable"))
    # Key and index in one number: numpy sorts plain integers several times as fast as PyTorch
    # sorts keys with their indices, and no two are equal, so the order is that of a stable sort.
    indices = torch.arange(keys.shape[0])
    ordered = np.sort(((keys.long() << 32) | indices).numpy())
    return torch.from_numpy(ordered & 0xFFFFFFFF)


def _stable_order(keys: Int[Tensor, " pairs"]) -> Int[Tensor, " pairs"]:
    return torch.sort(keys, stable=True).indices


BACKENDS: dict[str, Kernels] = {
    "cpu": Kernels(
        weighted_sums,
        _sampled_product_on_cpu,
        top_k,
        _set_entries_on_cpu,
        _stable_order_on_cpu,
        chunk_rows=512,
    ),
    "cuda": Kernels(
        weighted_sums, _sampled_product, top_k, _set_entries, _stable_order, chunk_rows=8192
    ),
}
"""Every backend by name."""


def backend_of(tensor: Tensor) -> Kernels:
    """The kernels for tensors that lie where this one does."""
    if tensor.device.type == "cpu":
        return BACKENDS["cpu"]
    return BACKENDS.get("triton", BACKENDS["cuda"])
