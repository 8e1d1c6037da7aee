"""sae-lens: its TopK autoencoder under its own `SAETrainer.fit`, fed by a DataProvider.

Defaults of the library throughout: Adam at 3e-4 without schedule, AuxK, clipping, decoder norms
rescaled away, no normalisation of the input. Nothing is replaced. The weights are taken as it saves
them for inference.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from typing import Any

import sae_lens
import torch
from protocol import Clock, held_out_fvu, main, save_weights, step_batches, training_batches
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor


def trainer(
    arguments: argparse.Namespace, d_in: int, steps: int, batches: Iterator[Tensor]
) -> SAETrainer:
    """Build the library's trainer for exactly `steps` steps over `batches`."""
    torch.manual_seed(arguments.seed)
    dictionary = TopKTrainingSAE(
        TopKTrainingSAEConfig(d_in=d_in, d_sae=arguments.d_sae, k=arguments.k)
    )
    lr = getattr(arguments, "lr", None) or SAETrainerConfig.lr
    config = SAETrainerConfig(
        total_training_samples=steps * arguments.batch,
        train_batch_size_samples=arguments.batch,
        lr=lr,
        lr_end=lr / 10,  # as its runner sets it; its constant schedule does not use it
    )
    return SAETrainer(config, dictionary, batches)


def step(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time complete steps of `SAETrainer.fit`."""
    batches = step_batches(arguments)
    clock = Clock(arguments)
    trainer(arguments, arguments.d_in, clock.steps, clock.serve(batches)).fit()
    return {"library": f"sae-lens {sae_lens.__version__}", **clock.result()}


def quality(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, save what the library saves for inference, score it with the library's forward."""
    batches = islice(training_batches(arguments), arguments.steps)
    first = next(batches)
    run = trainer(arguments, first.shape[1], arguments.steps, _with_first(first, batches))
    dictionary = run.fit()
    fvu = held_out_fvu(dictionary, arguments.held_out)
    never_active = int((run.act_freq_scores == 0).sum())
    weights = {name: value.clone() for name, value in dictionary.state_dict().items()}
    dictionary.process_state_dict_for_saving_inference(weights)
    save_weights(
        arguments.out,
        w_enc=weights["W_enc"],
        b_enc=weights["b_enc"],
        w_dec=weights["W_dec"],
        b_dec=weights["b_dec"],
        k=arguments.k,
        subtract_b_dec=dictionary.cfg.apply_b_dec_to_input,
    )
    return {
        "library": f"sae-lens {sae_lens.__version__}",
        "fvu_own_forward": fvu,
        "lr": run.cfg.lr,
        "never_active_fraction": never_active / arguments.d_sae,
    }


def _with_first(first: Tensor, rest: Iterator[Tensor]) -> Iterator[Tensor]:
    yield first
    yield from rest


if __name__ == "__main__":
    main(step, quality)
