"""What each decoder row adds to the logits directly: top and bottom tokens, histogram, moments.

The lens of a decoder row d is (γ ⊙ d) W_U with γ the gain of the final norm and W_U centred over
the vocabulary, which takes away what is added to all logits alike and changes no probability.
Where the final norm is a layer norm, d is centred first, as the norm does. The norm's division by
the size of the residual stream is left out: values are per unit of activation at unit scale.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from saelab.model.logit_lens import Lens

from .schema import N_BINS

CHUNK_ENTRIES = 1 << 23
"""Logits held at a time: small enough for the passes over them to stay in cache."""


@torch.no_grad()
def logit_chunks(
    decoder: Float[Tensor, "d_sae d_model"], lens: Lens, n: int
) -> Iterator[list[dict[str, np.ndarray]]]:
    """The arrays of table `logits`, a chunk of latents at a time, in order.

    Args:
        decoder: decoder rows.
        lens: of the model.
        n: tokens at either end.
    """
    rows = decoder.float()
    if lens.centres_input:
        rows = rows - rows.mean(dim=1, keepdim=True)
    rows = rows * lens.gain.float()
    unembedding = lens.unembedding.float()
    unembedding = unembedding - unembedding.mean(dim=0)
    n_vocab = unembedding.shape[0]
    size = max(1, CHUNK_ENTRIES // n_vocab)
    n = min(n, n_vocab)
    for start in range(0, rows.shape[0], size):
        logits = rows[start : start + size] @ unembedding.T
        top, bottom = logits.topk(n, dim=1), logits.topk(n, dim=1, largest=False)
        ends = torch.stack([bottom.values[:, 0], top.values[:, 0]], dim=1).double()
        arrays = {
            "top_token": top.indices,
            "top_value": top.values,
            "bottom_token": bottom.indices,
            "bottom_value": bottom.values,
            "ends": ends,
            "histogram": row_histograms(logits, ends),
            "moments": _row_moments(logits),
        }
        by_name = {name: tensor.cpu().numpy() for name, tensor in arrays.items()}
        yield [{name: array[row] for name, array in by_name.items()} for row in range(len(logits))]


def row_histograms(logits: Float[Tensor, "rows d_vocab"], ends: Float[Tensor, "rows 2"]) -> Tensor:
    """Counts [rows, N_BINS] of each row in equal bins between its two ends."""
    low, width = ends[:, :1], (ends[:, 1:] - ends[:, :1]).clamp_min(1e-30)
    scale = (N_BINS / width).float()
    bins = ((logits - low.float()) * scale).to(torch.int32).clamp_(0, N_BINS - 1)
    bins += N_BINS * torch.arange(len(logits), dtype=torch.int32, device=logits.device)[:, None]
    flat = rearrange(bins, "row vocab -> (row vocab)")
    counts = torch.bincount(flat, minlength=N_BINS * len(logits))
    return rearrange(counts, "(row bin) -> row bin", bin=N_BINS)


def _row_moments(logits: Float[Tensor, "rows d_vocab"]) -> Float[Tensor, "rows 4"]:
    """Mean, standard deviation, skewness and kurtosis of each row."""
    n_vocab = logits.shape[1]
    mean = logits.mean(dim=1)
    deviation = logits - mean[:, None]
    squared = deviation * deviation
    # Products of rows with rows need no matrix of cubes or fourth powers.
    variance = squared.mean(dim=1).double()
    third = _row_products(squared, deviation) / n_vocab
    fourth = _row_products(squared, squared) / n_vocab
    std = variance.sqrt()
    spread = torch.where(std > 0, std, torch.full_like(std, torch.nan))
    return torch.stack([mean.double(), std, third / spread**3, fourth / spread**4], dim=1)


def _row_products(
    a: Float[Tensor, "rows width"], b: Float[Tensor, "rows width"]
) -> Float[Tensor, " rows"]:
    return (a[:, None, :] @ b[:, :, None])[:, 0, 0].double()
