"""A cross-layer transcoder's training step beside plain dense code, step by step in turn.

The dense code computes what circuit-tracer's cross-layer transcoders do: codes of every source by
one product, and a decoder of every source over all its targets.
"""

from __future__ import annotations

import json
import time

import torch
from protocol import layer_arguments
from torch import Tensor, nn

from saelab.memory import keep_freed_memory
from saelab.training.config import DictionarySpec, OptimizerConfig
from saelab.training.interface import TrainingBatch
from saelab.training.learner import Learner
from saelab.training.methods import MethodOptions
from saelab.training.schedule import Schedule


class Dense(nn.Module):
    """BatchTopK with dense codes: every source's decoder is one product over all its targets."""

    def __init__(self, layers: int, d: int, size: int, k: int):
        super().__init__()
        self.layers, self.k = layers, k
        self.W_enc = nn.Parameter(torch.randn(layers, d, size) * 0.5 / d**0.5)
        self.b_enc = nn.Parameter(torch.zeros(layers, 1, size))
        self.b_dec = nn.Parameter(torch.zeros(layers, d))
        decoders = [torch.randn(size, (layers - index) * d) for index in range(layers)]
        self.W_dec = nn.ParameterList(each / each.norm(dim=1, keepdim=True) for each in decoders)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=3e-3, betas=(0.9, 0.99), fused=True)

    def step(self, x: Tensor, targets: Tensor) -> None:
        """One step with the same loss, clipping and norms."""
        self.optimizer.zero_grad()
        by_layer = x.unflatten(1, (self.layers, -1)).transpose(0, 1)
        codes = (by_layer @ self.W_enc + self.b_enc).relu()
        smallest = codes.detach().flatten().topk(self.k * len(x), sorted=False).values.min()
        codes = torch.where(codes >= smallest, codes, 0.0)
        out = self.b_dec.expand(len(x), -1, -1).clone()
        for source, W_dec in enumerate(self.W_dec):
            out[:, source:] += (codes[source] @ W_dec).unflatten(1, (self.layers - source, -1))
        (targets - out.flatten(1)).square().mean().backward()
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for W_dec in self.W_dec:
                W_dec /= W_dec.norm(dim=1, keepdim=True)


def main() -> None:
    """Print one JSON line: CPU seconds of every step of each."""
    given = layer_arguments()
    keep_freed_memory()
    layers, d, rows = given.layers, given.d, given.rows
    ours = Learner.build(
        DictionarySpec("batch_topk", layers * given.size, layers * given.k, 0),
        d_in=layers * d,
        d_out=layers * d,
        n_layers=layers,
        schedule=Schedule.of(given.steps),
        batch_rows=rows,
        options=MethodOptions(),
        optimizer=OptimizerConfig(),
        product_dtype=torch.float32,
        device=torch.device("cpu"),
    )
    dense = Dense(layers, d, given.size, layers * given.k)
    seconds: dict[str, list[float]] = {"ours": [], "dense": []}
    for index in range(given.steps):
        x, targets = torch.randn(2, rows, layers * d)
        for name, times in seconds.items():
            begun = time.process_time()
            if name == "ours":
                ours.step(TrainingBatch(x, targets, None, step=index))
            else:
                dense.step(x, targets)
            times.append(time.process_time() - begun)
    # The first step of each also makes Adam's moments.
    print(json.dumps({name: times[1:] for name, times in seconds.items()}))


if __name__ == "__main__":
    main()
