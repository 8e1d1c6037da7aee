"""eai-sparsify: its `SparseCoder` under its own `Trainer.fit`, on the CPU.

The library trains on what a language model computes while it runs. It is given a model whose only
layer looks rows up: a "token id" is the number of a row (or of a prepared batch). Nothing in its
loop is replaced. Its command line insists on CUDA, so the trainer is used directly; without Triton
the library itself takes its eager decoder, and on the CPU its bf16 autocast is off.

Defaults of the library: schedule-free Signum at 5e-3 / sqrt(d_sae / 2**14), FVU loss, no AuxK, unit
decoder norms, no clipping. The weights are the averaged ones, as it saves them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from protocol import (
    Clock,
    held_out_fvu,
    load_rows,
    main,
    save_weights,
    step_batches,
    training_order,
)
from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer
from torch import Tensor, nn

LIBRARY = f"eai-sparsify {version('eai-sparsify')}"


class RowLookup(nn.Module):
    """Stands where a transformer layer would: gives the activations of the "tokens" [1, batch]."""

    def __init__(self, rows: Tensor, clock: Clock | None) -> None:
        super().__init__()
        self.rows, self.clock = rows, clock

    def forward(self, tokens: Tensor) -> Tensor:
        """Look up rows [1, batch, d_in]; with a clock, `rows` are batches and are not copied."""
        if self.clock is None:
            return self.rows[tokens].float()
        self.clock.tick()
        return self.rows[tokens[0, 0]][None]


class RowModel(nn.Module):
    """As much of a language model as `Trainer` asks for."""

    def __init__(self, lookup: RowLookup, tokens: Tensor) -> None:
        super().__init__()
        self.layers = nn.ModuleList([lookup])
        self.config = SimpleNamespace(num_hidden_layers=1)
        self.device = torch.device("cpu")
        self.dummy_inputs = {"tokens": tokens[:1, :1]}

    @property
    def base_model(self) -> RowModel:
        """The part without a language-model head: all of it."""
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        """Run the one layer."""
        return self.layers[0](tokens)


def train(arguments: argparse.Namespace, lookup: RowLookup, tokens: Tensor) -> SparseCoder:
    """Run `Trainer.fit` over `tokens` [steps, batch] and read back what it saved."""
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            SparseCoderConfig(num_latents=arguments.d_sae, k=arguments.k),
            batch_size=1,
            lr=getattr(arguments, "lr", None),
            init_seeds=[arguments.seed],
            layers=[0],
            log_to_wandb=False,
            save_dir=folder,
            run_name="rows",
        )
        dataset = [{"input_ids": row} for row in tokens]
        trainer = Trainer(config, dataset, RowModel(lookup, tokens))  # type: ignore[arg-type]
        if lookup.clock is not None:
            lookup.clock.moments.clear()  # the trainer ran the model once to learn its width
        trainer.fit()
        return SparseCoder.load_from_disk(Path(folder) / "rows" / "layers.0")


def step(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time complete steps of `Trainer.fit`."""
    batches = torch.stack(step_batches(arguments))
    clock = Clock(arguments)
    numbers = torch.arange(clock.steps).remainder(len(batches))
    # The trainer counts tokens by the shape of the ids: each "token" is its batch's number.
    tokens = numbers[:, None].expand(-1, arguments.batch)
    train(arguments, RowLookup(batches, clock), tokens)
    return {"library": LIBRARY, **clock.result()}


def quality(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, save the averaged weights, and score them with the library's forward."""
    rows = load_rows(arguments.rows, arguments.rows_limit)
    order: Iterator[Tensor] = islice(training_order(len(rows), arguments), arguments.steps)
    coder = train(arguments, RowLookup(rows, None), torch.stack(list(order)))
    save_weights(
        arguments.out,
        w_enc=coder.encoder.weight.T,
        b_enc=coder.encoder.bias,
        w_dec=coder.W_dec,
        b_dec=coder.b_dec,
        k=arguments.k,
        subtract_b_dec=True,
    )
    default_lr = 5e-3 / (arguments.d_sae / 2**14) ** 0.5
    return {
        "library": LIBRARY,
        "fvu_own_forward": held_out_fvu(lambda x: coder(x).sae_out, arguments.held_out),
        "lr": default_lr if arguments.lr is None else arguments.lr,
    }


if __name__ == "__main__":
    main(step, quality)
