"""saelab: its methods (`topk`, or another) under its own training loop, on the peers' batches.

Defaults of the library throughout. Rows come from a stream in memory, so that their order is the
peers'; everything behind `next_batch` is what `saelab train` runs.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from protocol import (
    Clock,
    held_out_fvu,
    load_rows,
    main,
    save_weights,
    step_batches,
    training_batches,
)
from torch import Tensor

from saelab.cache.batch import ActivationBatch, RowStatistics, RowSums
from saelab.formats.manifest import library_versions
from saelab.stats.metrics import mean_l0
from saelab.training.config import TrainConfig
from saelab.training.interface import TrainingBatch
from saelab.training.learner import Learner
from saelab.training.loop import TrainingLoop, normalisation_of
from saelab.training.methods import METHODS
from saelab.training.run import build_learners

LIBRARY = f"saelab {library_versions()['saelab']}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the method, and the dtype of the product: the one switch between speed and digits."""
    parser.add_argument("--product-dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--method", choices=tuple(METHODS), default="topk")


class RowStream:
    """Batches from an iterator as the training loop takes them.

    Args:
        batches: of activations.
        statistics: of all rows.
        gradients: handed out beside every batch; None where the method needs none.
    """

    def __init__(
        self,
        batches: Iterator[Tensor],
        statistics: RowStatistics,
        gradients: Tensor | None = None,
    ) -> None:
        self.batches, self.statistics, self.gradients = batches, statistics, gradients
        self.d_in = len(statistics.mean)
        self.target_statistics: RowStatistics | None = None

    def next_batch(self) -> ActivationBatch:
        """Hand out the next rows."""
        return ActivationBatch(activations=next(self.batches), gradients=self.gradients)

    def provenance(self) -> dict[str, Any]:
        """Say nothing: the benchmark keeps its own record."""
        return {}

    def state(self) -> dict[str, Any]:
        """Give nothing: a benchmark is not resumed."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take nothing."""


def train(
    arguments: argparse.Namespace,
    stream: RowStream,
    steps: int,
    change: Callable[[TrainConfig], TrainConfig] = lambda config: config,
) -> tuple[TrainConfig, Learner]:
    """Run `TrainingLoop` for `steps` steps and return its settings and its learner."""
    config = TrainConfig(
        out=Path("unused"),
        methods=(getattr(arguments, "method", "topk"),),
        d_sae=(arguments.d_sae,),
        k=(arguments.k,),
        seeds=(arguments.seed,),
        n_tokens=steps * arguments.batch,
        batch_rows=arguments.batch,
        device="cpu",
    )
    if getattr(arguments, "product_dtype", None):
        config = dataclasses.replace(config, product_dtype=arguments.product_dtype)
    lr = getattr(arguments, "lr", None)
    if lr is not None:
        optimizer = dataclasses.replace(config.optimizer, learning_rate=lr)
        config = dataclasses.replace(config, optimizer=optimizer)
    config = change(config)
    learners = build_learners(config, stream, torch.device("cpu"))
    save: Callable[[int], None] = lambda step: None  # noqa: E731, ARG005
    TrainingLoop(config, stream, learners, (), save).run()
    return config, learners[0]


def step(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time complete steps of `TrainingLoop`."""
    batches = step_batches(arguments)
    statistics = RowSums.of(batches[0]).statistics(None)
    # What the gradients are plays no part in how long a step takes.
    wanted = METHODS[arguments.method].needs_gradients
    gradients = torch.randn_like(batches[0]) if wanted else None
    clock = Clock(arguments)
    stream = RowStream(clock.serve(batches), statistics, gradients)
    _, learner = train(arguments, stream, clock.steps, _into_the_second_phase)
    normalisation = normalisation_of(stream, torch.device("cpu"))
    rows = normalisation.apply(batches[0])
    batch = TrainingBatch(
        rows,
        rows,
        gradients,
        step=clock.steps,
        normalisation=normalisation,
    )
    l0 = mean_l0(learner.method.losses(batch).codes)
    return {"library": LIBRARY, "l0": l0, **clock.result()}


def _into_the_second_phase(config: TrainConfig) -> TrainConfig:
    """Have Feature Choice timed in the phase that bears its name."""
    early = dataclasses.replace(config.options.feature_choice, mutual_choice_fraction=0.5)
    options = dataclasses.replace(config.options, feature_choice=early)
    return dataclasses.replace(config, options=options)


def quality(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, fold the normalisation in, save the weights, and score them with the library."""
    rows = load_rows(arguments.rows, arguments.rows_limit)
    stream = RowStream(training_batches(arguments), RowSums.of(rows).statistics(None))
    del rows
    config, learner = train(arguments, stream, arguments.steps)
    normalisation = normalisation_of(stream, torch.device("cpu"))
    dictionary = learner.method.to_dictionary(normalisation)
    save_weights(
        arguments.out,
        w_enc=dictionary.W_enc,
        b_enc=dictionary.b_enc,
        w_dec=dictionary.W_dec,
        b_dec=dictionary.b_dec,
        k=dictionary.k,
        subtract_b_dec=True,
    )
    return {
        "library": LIBRARY,
        "fvu_own_forward": held_out_fvu(dictionary, arguments.held_out),
        "lr": config.optimizer.learning_rate,
        "product_dtype": config.product_dtype,
        **learner.method.metrics(),
    }


if __name__ == "__main__":
    main(step, quality, add_options)
