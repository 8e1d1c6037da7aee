"""Tokens per second of harvesting activations, with and without gradients, and of bare models.

`saelab` reads and tokenises text, captures, applies the row rule and writes hashed shards to disk;
`gradients` does the same with `gradients=True`. The others are Hugging Face's model over random
tokens, keeping nothing: see `own/bare_passes.py`. Loading the model is in none of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from own.bare_passes import BARE_PASSES, HOOK_POINT
from saelab.cache.config import HarvestConfig
from saelab.cache.writer import write_caches
from saelab.model.language_model import load_language_model

BATCH_TOKENS = HarvestConfig().batch_contexts * HarvestConfig().context_length


def bare(run_batch: Callable[[], None], arguments: argparse.Namespace) -> float:
    """Seconds for all tokens of one of the bare passes, a batch as large as saelab's at a time."""

    def run(n_tokens: int) -> None:
        for _ in range(n_tokens // BATCH_TOKENS):
            run_batch()

    return _timed(run, arguments.tokens)


def saelab(arguments: argparse.Namespace, *, gradients: bool) -> float:
    """Seconds for all tokens from text to verified files."""
    model = load_language_model(arguments.model, dtype=arguments.dtype, device="cpu")
    # Computed once per model and kept, so no part of harvesting.
    _ = model.content_hash

    def run(n_tokens: int) -> None:
        config = HarvestConfig(
            model=arguments.model,
            hook_points=(HOOK_POINT,),
            n_tokens=n_tokens,
            model_dtype=arguments.dtype,
            cache_dtype=arguments.dtype,
            device="cpu",
            gradients=gradients,
        )
        write_caches(arguments.out, config, overwrite=True, model=model)

    try:
        return _timed(run, arguments.tokens)
    finally:
        shutil.rmtree(arguments.out, ignore_errors=True)


def _timed(run: Callable[[int], None], n_tokens: int) -> float:
    run(BATCH_TOKENS)
    start = time.perf_counter()
    run(n_tokens)
    return time.perf_counter() - start


def main() -> None:
    """Measure one of them and print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("saelab", "gradients", *BARE_PASSES))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to and delete")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.mode in BARE_PASSES:
        seconds = bare(BARE_PASSES[arguments.mode](arguments.model, arguments.dtype), arguments)
    else:
        seconds = saelab(arguments, gradients=arguments.mode == "gradients")
    print(json.dumps({"seconds": seconds, "tokens_per_second": arguments.tokens / seconds}))


if __name__ == "__main__":
    main()
