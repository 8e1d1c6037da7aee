"""The rows of the quality section: a cache of training text, and held-out rows by the same rule.

Written beside the cache as plain safetensors, which every contestant reads: `train.safetensors` and
`held_out.safetensors`, each with `activations` [n, d_in] in bf16, in reading order.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from saelab.cache.config import HarvestConfig
from saelab.cache.reader import ActivationCache, open_cache
from saelab.cache.rows import select_rows
from saelab.cache.writer import write_caches
from saelab.formats.files import hash_of, sha256_of, write_tensors
from saelab.model.language_model import load_language_model
from saelab.text.contexts import text_batches

CHUNK_ROWS = 16_384


def main() -> None:
    """Harvest where that was not done yet and print the number of rows as one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, required=True, help="of training text")
    parser.add_argument("--held-out-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = HarvestConfig(n_tokens=arguments.tokens, device="cpu")
    write_caches(arguments.out / "cache", config, resume=True)
    cache = open_cache(arguments.out / "cache")
    train, held_out = arguments.out / "train.safetensors", arguments.out / "held_out.safetensors"
    if not train.is_file():
        rows = [batch.activations.bfloat16() for batch in cache.iterate(CHUNK_ROWS)]
        write_tensors(train, {"activations": torch.cat(rows)})
    if not held_out.is_file():
        rows = held_out_rows(config, cache, arguments.held_out_tokens)
        write_tensors(held_out, {"activations": rows})
    rows_hash = hash_of([sha256_of(train), sha256_of(held_out)])
    print(json.dumps({"rows": cache.n_rows, "d_in": cache.d_in, "hash": rows_hash}))


def held_out_rows(config: HarvestConfig, cache: ActivationCache, n_tokens: int) -> torch.Tensor:
    """Rows of the held-out text [n, d_in] that the cache's own rule and norm ceiling keep."""
    model = load_language_model(config.model, dtype=config.model_dtype, device="cpu")
    kept, seen = [], 0
    for batch in text_batches(
        config.text,
        model,
        split="held_out",
        context_length=config.context_length,
        batch_contexts=config.batch_contexts,
    ):
        tokens = batch.tokens
        activations = model.capture(tokens, [cache.hook_point])[cache.hook_point]
        selection = select_rows(
            cache.token_filter,
            tokens,
            activations,
            special_ids=model.special_ids,
            bos_id=model.bos_id,
            norm_ceiling=cache.norm_ceiling,
        )
        kept.append(activations[selection.keep])
        seen += tokens.numel()
        if seen >= n_tokens:
            break
    return torch.cat(kept)


if __name__ == "__main__":
    main()
