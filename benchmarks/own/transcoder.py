"""A transcoder's step beside the TopK step of the same shape, in one process, in turn."""

from __future__ import annotations

import argparse
import json
import time

import torch

from saelab.memory import keep_freed_memory
from saelab.training.config import DictionarySpec, OptimizerConfig
from saelab.training.interface import TrainingBatch
from saelab.training.learner import Learner
from saelab.training.methods import MethodOptions
from saelab.training.schedule import Schedule

KINDS = {
    "topk": {},
    "transcoder": {"d_out": True},
    "transcoder with a skip": {"d_out": True, "skip": True},
}


def main() -> None:
    """Print one JSON line: CPU seconds of every step, by kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("d-in", "d-sae", "k", "batch", "steps", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    torch.manual_seed(0)
    learners = {
        kind: Learner.build(
            DictionarySpec("topk", given.d_sae, given.k, 0),
            d_in=given.d_in,
            d_out=given.d_in if "d_out" in settings else None,
            skip="skip" in settings,
            schedule=Schedule.of(1000),
            batch_rows=given.batch,
            options=MethodOptions(),
            optimizer=OptimizerConfig(),
            product_dtype=torch.float32,
            device=torch.device("cpu"),
        )
        for kind, settings in KINDS.items()
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for step in range(given.steps + 2):
        rows, targets = torch.randn(2, given.batch, given.d_in)
        for kind, learner in learners.items():
            inputs = TrainingBatch(rows, rows if kind == "topk" else targets, None, step=step)
            started = time.process_time()
            learner.step(inputs)
            if step >= 2:  # the first ones fill memory and find their thresholds
                seconds[kind].append(time.process_time() - started)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
