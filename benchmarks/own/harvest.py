"""Tokens per second of harvesting activations: the bare truncated model, and saelab's cache writer.

`bare` runs the Hugging Face model cut off behind the hook point's block, with no head and no final
norm, over random tokens, and keeps nothing. `saelab` reads and tokenises text, captures, applies
the row rule and writes hashed shards to disk. Loading the model is in neither.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from saelab.activation_cache import HarvestConfig, write_caches
from saelab.language_model import load_language_model
from saelab.model_files import resolve_model

HOOK_POINT = "blocks.12.hook_resid_post"
BLOCKS = 13  # those up to and with the hook point's
WARMUP_TOKENS = 16 * 256


def bare(arguments: argparse.Namespace) -> float:
    """Seconds for all tokens through the truncated Hugging Face model."""
    from transformers import AutoModelForCausalLM

    folder = resolve_model(arguments.model).folder
    dtype = getattr(torch, arguments.dtype)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    body = model.eval().model
    body.layers = body.layers[:BLOCKS]
    body.norm = torch.nn.Identity()
    config = HarvestConfig()
    size = (config.batch_contexts, config.context_length)
    tokens = torch.randint(
        model.config.vocab_size, size, generator=torch.Generator().manual_seed(0)
    )

    def run(n_tokens: int) -> None:
        with torch.inference_mode():
            for _ in range(n_tokens // tokens.numel()):
                body(input_ids=tokens, use_cache=False)

    return _timed(run, arguments.tokens)


def saelab(arguments: argparse.Namespace) -> float:
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
        )
        write_caches(arguments.out, config, overwrite=True, model=model)

    try:
        return _timed(run, arguments.tokens)
    finally:
        shutil.rmtree(arguments.out, ignore_errors=True)


def _timed(run: Callable[[int], None], n_tokens: int) -> float:
    run(WARMUP_TOKENS)
    start = time.perf_counter()
    run(n_tokens)
    return time.perf_counter() - start


def main() -> None:
    """Measure one of the two and print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("bare", "saelab"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to and delete")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seconds = {"bare": bare, "saelab": saelab}[arguments.mode](arguments)
    print(json.dumps({"seconds": seconds, "tokens_per_second": arguments.tokens / seconds}))


if __name__ == "__main__":
    main()
