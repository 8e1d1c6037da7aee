"""Gradient pursuit of saelab, or the same algorithm written out with dense matrices, timed.

The dense version is the published one with its division by zero mended: [rows, d_sae] weights and
three products with all latents in every step, 256 rows at a time.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from saelab.dictionary import Dictionary
from saelab.dictionary.pursuit import PursuitEncoder
from saelab.memory import keep_freed_memory

LITERAL_BATCH = 256
WARM_ROWS = 256
"""Rows that are encoded before the clock starts, so that nobody pays for first calls."""
POOL_ROWS = 8192
"""Rows that are drawn, of which each contestant takes the first so many."""


def literal(
    latents: torch.Tensor, signal: torch.Tensor, counts: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Dense codes of every row, in the dtype that everything is computed in."""
    latents, signal = latents.to(dtype), signal.to(dtype)
    parts = [
        _literal_batch(latents, *part)
        for part in zip(signal.split(LITERAL_BATCH), counts.split(LITERAL_BATCH), strict=True)
    ]
    return torch.cat(parts)


def _literal_batch(
    latents: torch.Tensor, signal: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    weight = signal.new_zeros(len(signal), len(latents))
    rows = torch.arange(len(signal))
    for step in range(int(counts.max())):
        residual = signal - weight @ latents
        product = residual @ latents.T
        active = weight != 0
        active[rows, product.argmax(1)] = True
        direction = torch.where(active, product, 0.0)
        change = direction @ latents
        square = change.square().sum(1)
        size = (change * residual).sum(1) / torch.where(square > 0, square, 1.0)
        size = torch.where((counts > step) & (square > 0), size, 0.0)
        weight = (weight + size[:, None] * direction).clamp(min=0)
    return weight


def planted(d_in: int, d_sae: int, l0: int) -> tuple[Dictionary, torch.Tensor]:
    """A dictionary of random directions and rows that are mixtures of them with noise."""
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
    dictionary = Dictionary(
        "topk",
        W_enc=W_dec.T.contiguous(),
        W_dec=W_dec,
        b_dec=torch.zeros(d_in),
        b_enc=torch.zeros(d_sae),
        k=l0,
    )
    latent = torch.randint(0, d_sae, (POOL_ROWS, l0), generator=generator)
    strength = torch.rand(POOL_ROWS, l0, generator=generator)
    rows = torch.nn.functional.embedding_bag(latent, W_dec, per_sample_weights=strength, mode="sum")
    return dictionary, rows + 0.02 * torch.randn(POOL_ROWS, d_in, generator=generator)


def main() -> None:
    """Encode, print one JSON line, and keep the codes for the other contestants to compare."""
    parser = argparse.ArgumentParser()
    for name in ("d-in", "d-sae", "l0", "rows", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--how", choices=["saelab", "literal64", "literal32"], required=True)
    parser.add_argument("--codes", type=Path, required=True, help="where the codes are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    dictionary, rows = planted(arguments.d_in, arguments.d_sae, arguments.l0)
    rows = rows[: arguments.rows]
    counts = torch.full((arguments.rows,), arguments.l0)
    dense = torch.zeros(0)
    start = time.perf_counter()
    if arguments.how == "saelab":
        encoder = PursuitEncoder(dictionary)
        encoder.encode(rows[-WARM_ROWS:], counts[-WARM_ROWS:])
        prepared = time.perf_counter()
        codes = encoder.encode(rows, counts)
        seconds = time.perf_counter() - prepared
        dense = codes.to_dense()
    else:
        dtype = torch.float64 if arguments.how == "literal64" else torch.float32
        signal = rows - dictionary.b_dec
        literal(dictionary.W_dec, signal[-WARM_ROWS:], counts[-WARM_ROWS:], dtype)
        prepared = time.perf_counter()
        dense = literal(dictionary.W_dec, signal, counts, dtype)
        seconds = time.perf_counter() - prepared
    result = {
        "seconds": seconds,
        "preparation_seconds": prepared - start,
        "microseconds_per_row": 1e6 * seconds / arguments.rows,
    }
    exact = arguments.codes / f"exact-{arguments.d_sae}.safetensors"
    if arguments.how == "literal64":
        arguments.codes.mkdir(parents=True, exist_ok=True)
        save_file({"codes": dense.contiguous()}, exact)
    else:
        expected = load_file(exact)["codes"]
        dense = dense[: len(expected)].double()
        result["rows_with_other_latents"] = int(((dense > 0) != (expected > 0)).any(1).sum())
        result["largest_difference"] = float((dense - expected).abs().max())
        result["rows_compared"] = len(expected)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
