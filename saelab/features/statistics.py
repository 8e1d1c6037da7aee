"""Numbers about each latent: of its positive activations, and of what it adds to the logits.

The lens of a decoder row d is (γ ⊙ d) W_U with γ the gain of the final norm and W_U centred over
the vocabulary, which takes away what is added to all logits alike and changes no probability.
Where the final norm is a layer norm, d is centred first, as the norm does. The norm's division by
the size of the residual stream is left out: values are per unit of activation at unit scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Integer
from torch import Tensor

from saelab.model.logit_lens import Lens

from .schema import N_BINS, QUANTILE_LEVELS
from .shards import Pairs

CHUNK_ENTRIES = 1 << 23
"""Logits held at a time: small enough for the passes over them to stay in cache."""


class RangeMoments(NamedTuple):
    """Moments of a range of latents over their positive activations; NaN where undefined."""

    mean: Float[np.ndarray, " latents"]
    std: Float[np.ndarray, " latents"]
    """Square root of the mean squared deviation."""
    skewness: Float[np.ndarray, " latents"]
    """Third standardised moment; undefined where all activations are equal."""
    kurtosis: Float[np.ndarray, " latents"]
    """Fourth standardised moment, 3 for a normal distribution; undefined likewise."""


def range_moments(pairs: Pairs) -> RangeMoments:
    """Moments in float64, from deviations rather than from differences of raw moments."""
    counts = np.diff(pairs.pointer)
    activation = pairs.activation.astype(np.float64)
    mean = _means(activation, pairs.pointer)
    deviation = activation - np.repeat(mean, counts)
    squared = deviation * deviation
    variance = _means(squared, pairs.pointer)
    third = _means(squared * deviation, pairs.pointer)
    fourth = _means(squared * squared, pairs.pointer)
    std = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        # What rounding leaves of equal activations is no spread to divide by.
        spread = np.where(std > 1e-12 * mean, std, np.nan)
        return RangeMoments(mean, std, third / spread**3, fourth / spread**4)


def _means(
    values: Float[np.ndarray, " pairs"], pointer: Integer[np.ndarray, " latents_plus_one"]
) -> Float[np.ndarray, " latents"]:
    """Mean of each latent's values; NaN for a latent without any."""
    counts = np.diff(pointer)
    means = np.full(len(counts), np.nan)
    occupied = counts > 0
    if occupied.any():
        means[occupied] = np.add.reduceat(values, pointer[:-1][occupied]) / counts[occupied]
    return means


def quantiles_of(rising: Float[np.ndarray, " active"]) -> Float[np.ndarray, " levels"]:
    """Quantiles at `QUANTILE_LEVELS` of activations in rising order, interpolated linearly."""
    rank = np.array(QUANTILE_LEVELS) * (len(rising) - 1)
    below = np.floor(rank).astype(np.int64)
    above = np.minimum(below + 1, len(rising) - 1)
    share = rank - below
    low, high = rising[below].astype(np.float64), rising[above].astype(np.float64)
    return low + (high - low) * share


def histogram_of(rising: Float[np.ndarray, " active"]) -> Integer[np.ndarray, " bins"]:
    """Counts in equal bins from 0 to the largest of activations in rising order.

    An edge belongs to the bin above it, the last edge to the last bin.
    """
    edges = np.linspace(0.0, float(rising[-1]), N_BINS + 1)
    below = np.searchsorted(rising, edges[1:-1], side="left")
    return np.diff(np.concatenate([[0], below, [len(rising)]]))


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
    unembedding = lens.unembedding.float()
    unembedding = unembedding - unembedding.mean(dim=0)
    n_vocab = unembedding.shape[0]
    size = max(1, CHUNK_ENTRIES // n_vocab)
    n = min(n, n_vocab)
    for part in decoder.split(size):
        rows = part.float()
        if lens.centres_input:
            rows = rows - rows.mean(dim=1, keepdim=True)
        logits = (rows * lens.gain.float()) @ unembedding.T
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
