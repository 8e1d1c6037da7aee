"""The `topk` defaults against their neighbours: one setting changed at a time, same rows."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from protocol import held_out_fvu, load_rows, training_batches

from own.saelab_topk import RowStream, train
from saelab.cache.batch import RowSums
from saelab.training.config import TrainConfig
from saelab.training.loop import normalisation_of

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "default, seed 0": {},
    "default, seed 1": {"run": {"seeds": (1,)}},
    "learning_rate 1e-3": {"optimizer": {"learning_rate": 1e-3}},
    "learning_rate 4e-3": {"optimizer": {"learning_rate": 4e-3}},
    "learning_rate 6e-3": {"optimizer": {"learning_rate": 6e-3}},
    "beta2 0.999": {"optimizer": {"beta2": 0.999}},
    "decay_fraction 1": {"optimizer": {"decay_fraction": 1.0}},
    "encoder_scale 1": {"topk": {"encoder_scale": 1.0}},
    "auxk_weight 0": {"topk": {"auxiliary": {"weight": 0.0}}},
    "auxk_weight 0.1, dead_after 20,000": {
        "topk": {"auxiliary": {"weight": 0.1, "dead_after_tokens": 20_000}}
    },
    "product_dtype float32": {"run": {"product_dtype": "float32"}},
}


def changed(config: TrainConfig, variant: dict[str, dict[str, Any]]) -> TrainConfig:
    """The config with a variant's changes."""
    topk = dataclasses.replace(config.options.topk, **variant.get("topk", {}))
    return dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, **variant.get("optimizer", {})),
        options=dataclasses.replace(config.options, topk=topk),
        **variant.get("run", {}),
    )


def main() -> None:
    """Train every variant and print one JSON line with what each came to."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    for name in ("d-sae", "k", "batch", "passes", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.set_defaults(rows_limit=None, order_seed=0, seed=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = load_rows(arguments.rows)
    steps = -(-arguments.passes * len(rows) // arguments.batch)
    statistics = RowSums.of(rows).statistics(None)
    scores = {}
    for name, variant in VARIANTS.items():
        stream = RowStream(training_batches(arguments), statistics)
        _, learner = train(arguments, stream, steps, lambda config, v=variant: changed(config, v))
        normalisation = normalisation_of(stream, torch.device("cpu"))
        dictionary = learner.method.to_dictionary(normalisation)
        fvu = held_out_fvu(dictionary, arguments.held_out)
        scores[name] = {"fvu": fvu, **learner.method.metrics()}
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
