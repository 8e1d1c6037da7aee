"""saelab: several dictionaries trained on one stream straight from the model, timed whole."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from saelab.cache.config import HarvestConfig
from saelab.text.contexts import TextConfig
from saelab.training.config import TrainConfig
from saelab.training.run import train


def main() -> None:
    """Train as many dictionaries as asked for and print one JSON line with the seconds."""
    parser = argparse.ArgumentParser()
    for name in ("dictionaries", "tokens", "d-sae", "k", "batch", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        config = TrainConfig(
            out=Path(folder) / "run",
            stream=HarvestConfig(n_tokens=None, text=TextConfig(max_tokens_per_document=2048)),
            stream_pool_rows=4 * arguments.batch,
            d_sae=(arguments.d_sae,),
            k=(arguments.k,),
            seeds=tuple(range(arguments.dictionaries)),
            n_tokens=arguments.tokens,
            batch_rows=arguments.batch,
            checkpoint_every_steps=10_000,
        )
        start = time.perf_counter()
        train(config)
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
