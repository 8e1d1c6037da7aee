"""Rows per second that a cache hands a trainer, from a pool of any number of rows.

The pool is a cache of Gaussian rows written by the library's own writer; it is kept for next time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from saelab.cache.cache_stream import CacheStream
from saelab.cache.config import HarvestConfig
from saelab.cache.harvest import Calibration, Harvest, Rows
from saelab.cache.hook_folder import HookFolder
from saelab.cache.reader import ActivationCache, open_cache
from saelab.errors import SaelabError

BATCHES = 128


def pool(folder: Path, n_rows: int, d_in: int) -> ActivationCache:
    """Open the cache of `n_rows` rows in the folder, made if need be; all of it is read once."""
    try:
        return open_cache(folder)
    except SaelabError:
        shutil.rmtree(folder, ignore_errors=True)
    config = HarvestConfig(n_tokens=n_rows)
    rows_per_shard = config.shard_contexts * config.context_length
    # What the manifest says of a model; no model is needed to write rows that come from none.
    model = SimpleNamespace(
        name=config.model,
        max_context=config.context_length,
        dtype=f"torch.{config.model_dtype}",
        width_at=lambda _: d_in,
        content_hash="",
        bos_id=None,
        separator_id=None,
        special_ids=[],
    )
    calibration = Calibration(contexts=0, rows=0, median_norm=0.0, mean_norm=0.0, norm_ceiling=None)
    manifest = Harvest(model, config).new_manifest(config.hook_points[0], calibration)
    writer = HookFolder(folder, manifest, config.shard_contexts)
    generator = torch.Generator().manual_seed(0)
    for start in range(0, n_rows, rows_per_shard):
        count = min(rows_per_shard, n_rows - start)
        index = torch.arange(count)
        writer.add(
            Rows(
                activations=torch.randn(count, d_in, generator=generator),
                gradients=None,
                tokens=index,
                sequence=(start + index) // config.context_length,
                position=index % config.context_length,
                excluded={},
            )
        )
        writer.commit(-(-count // config.context_length))
    writer.finish()
    return open_cache(folder)


def main() -> None:
    """Measure one pool and print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, required=True, help="rows in the pool")
    parser.add_argument("--d-in", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pool")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    stream = CacheStream(pool(arguments.out, arguments.rows, arguments.d_in), arguments.batch, 0)
    for _ in range(BATCHES // 8):
        stream.next_batch()
    start = time.perf_counter()
    for _ in range(BATCHES):
        stream.next_batch()
    seconds = time.perf_counter() - start
    rows = BATCHES * arguments.batch
    print(json.dumps({"seconds": seconds, "rows_per_second": rows / seconds}))


if __name__ == "__main__":
    main()
