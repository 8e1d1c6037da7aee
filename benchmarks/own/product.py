"""The yardstick of a training step: the encoder's dense product alone."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from protocol import Clock, main, step_batches


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the dtype of the product."""
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")


def step(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time `x @ W`, x [batch, d_in] and W [d_in, d_sae] of one dtype, a new output each time."""
    dtype = getattr(torch, arguments.dtype)
    batches = [batch.to(dtype) for batch in step_batches(arguments)]
    clock = Clock(arguments)
    weight = torch.randn(arguments.d_in, arguments.d_sae).to(dtype)
    for x in clock.serve(batches):
        x @ weight
    return clock.result()


if __name__ == "__main__":
    main(step, None, add_options)
