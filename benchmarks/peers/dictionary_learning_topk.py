"""dictionary-learning: its `TopKTrainer` under its own `trainSAE`, fed from an iterator.

Defaults of the library: Adam at 2e-4 / sqrt(d_sae / 2**14), AuxK, clipping, unit decoder norms,
activations not normalised. One default cannot be kept in a short run: it warms up over 1,000 steps
and refuses fewer steps in all, so the warm-up is then a tenth of the steps.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import dictionary_learning
import torch
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE
from protocol import Clock, held_out_fvu, main, save_weights, step_batches, training_batches
from torch import Tensor

LIBRARY = f"dictionary-learning {dictionary_learning.__version__}"
DEFAULT_WARMUP = 1000


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the one choice that its signature and its published example make differently."""
    parser.add_argument(
        "--normalize", action="store_true", help="normalize_activations=True, as in its demo"
    )


def train(
    arguments: argparse.Namespace,
    d_in: int,
    steps: int,
    schedule_steps: int,
    batches: Iterator[Tensor],
) -> tuple[AutoEncoderTopK, dict[str, Any]]:
    """Run `trainSAE` for `steps` steps and read back the autoencoder and the config it saved."""
    warmup = DEFAULT_WARMUP if schedule_steps > DEFAULT_WARMUP else schedule_steps // 10
    config = {
        "trainer": TopKTrainer,
        "steps": schedule_steps,
        "warmup_steps": warmup,
        "activation_dim": d_in,
        "dict_size": arguments.d_sae,
        "k": arguments.k,
        "layer": 0,
        "lm_name": "rows from a file",
        "lr": getattr(arguments, "lr", None),
        "seed": arguments.seed,
        "device": "cpu",
    }
    with tempfile.TemporaryDirectory() as folder:
        trainSAE(
            batches,
            [config],
            steps,
            save_dir=folder,
            normalize_activations=arguments.normalize,
            device="cpu",
        )
        state = torch.load(Path(folder) / "trainer_0" / "ae.pt", weights_only=True)
    dictionary = AutoEncoderTopK(d_in, arguments.d_sae, arguments.k)
    dictionary.load_state_dict(state)
    return dictionary, {"warmup_steps": warmup, "normalize_activations": arguments.normalize}


def step(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time complete steps of `trainSAE`."""
    batches = step_batches(arguments)
    if arguments.normalize:
        raise SystemExit("--normalize changes the batches in place: use it in quality mode only")
    clock = Clock(arguments)
    train(arguments, arguments.d_in, clock.steps - 1, 10_000, clock.serve(batches))
    return {"library": LIBRARY, **clock.result()}


def quality(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, save the final weights, and score them with the library's forward."""
    batches = training_batches(arguments)
    first = next(batches)
    dictionary, settings = train(
        arguments, first.shape[1], arguments.steps, arguments.steps, chain([first], batches)
    )
    save_weights(
        arguments.out,
        w_enc=dictionary.encoder.weight.T,
        b_enc=dictionary.encoder.bias,
        w_dec=dictionary.decoder.weight.T,
        b_dec=dictionary.b_dec,
        k=arguments.k,
        subtract_b_dec=True,
    )
    default_lr = 2e-4 / (arguments.d_sae / 2**14) ** 0.5
    return {
        "library": LIBRARY,
        "fvu_own_forward": held_out_fvu(dictionary, arguments.held_out),
        "lr": default_lr if arguments.lr is None else arguments.lr,
        **settings,
    }


if __name__ == "__main__":
    main(step, quality, add_options)
