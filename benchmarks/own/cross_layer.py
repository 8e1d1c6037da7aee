"""A cross-layer transcoder: its training step against plain dense code, and its held-out errors.

`python -m own.cross_layer step`, run in `benchmarks`, takes steps of both in turn on random rows
and compares CPU seconds; `python -m own.cross_layer errors DICTIONARY` prints FVU of every layer
written and L0 of every source on held-out text. Both print JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from saelab.cache.config import DataOverrides
from saelab.dictionary import load_dictionary
from saelab.dictionary.data_spec import data_spec_of
from saelab.dictionary.site_rows import evaluated_rows
from saelab.memory import keep_freed_memory
from saelab.stats.metrics import ReconstructionStatistics
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


def step(layers: int, d: int, size: int, k: int, rows: int, steps: int) -> dict[str, object]:
    """CPU seconds of a step of each, medians of steps taken in turn."""
    keep_freed_memory()
    ours = Learner.build(
        DictionarySpec("batch_topk", layers * size, layers * k, 0),
        d_in=layers * d,
        d_out=layers * d,
        n_layers=layers,
        schedule=Schedule.of(steps),
        batch_rows=rows,
        options=MethodOptions(),
        optimizer=OptimizerConfig(),
        product_dtype=torch.float32,
        device=torch.device("cpu"),
    )
    dense = Dense(layers, d, size, layers * k)
    seconds: dict[str, list[float]] = {"ours": [], "dense": []}
    for index in range(steps):
        x, targets = torch.randn(rows, layers * d), torch.randn(rows, layers * d)
        for name in seconds:
            begun = time.process_time()
            if name == "ours":
                ours.step(TrainingBatch(x, targets, None, step=index))
            else:
                dense.step(x, targets)
            seconds[name].append(time.process_time() - begun)
    # The first step of each also makes Adam's moments.
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    return {
        "layers": layers,
        "d": d,
        "latents_of_a_layer": size,
        "k_of_a_layer": k,
        "rows": rows,
        **{f"{name}_seconds": round(value, 3) for name, value in medians.items()},
        "ratio": round(medians["ours"] / medians["dense"], 3),
    }


@torch.no_grad()
def errors(folder: Path, n_tokens: int) -> dict[str, object]:
    """FVU at every hook point written, each about its own mean, and mean L0 of every source."""
    saved = load_dictionary(folder)
    spec = data_spec_of(saved, DataOverrides())
    model = spec.load_model("cpu")
    writes, device = saved.site.writes, torch.device("cpu")
    width, n_rows = saved.dictionary.d_out // len(writes), 0
    by_layer = [ReconstructionStatistics(width) for _ in writes]
    counts = torch.zeros(saved.dictionary.d_sae, dtype=torch.int64)
    for rows in evaluated_rows(model, spec, n_tokens, 4, device):
        codes = saved.dictionary.encode(rows.inputs)
        counts, n_rows = counts + codes.firing_counts(), n_rows + codes.n_rows
        parts = (
            each.split(width, dim=1) for each in (rows.targets, saved.dictionary.decode(codes))
        )
        for layer, target, reconstruction in zip(by_layer, *parts, strict=True):
            layer.update(target, reconstruction)
    l0 = counts.view(len(writes), -1).sum(1) / n_rows
    return {
        "n_rows": n_rows,
        "fvu": {
            name: round(each.values()["fvu"], 4)
            for name, each in zip(writes, by_layer, strict=True)
        },
        "l0": {
            name: round(float(each), 2) for name, each in zip(saved.site.reads, l0, strict=True)
        },
        "never_active": int((counts == 0).sum()),
    }


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    shape = commands.add_parser("step")
    sizes = {"layers": 30, "d": 576, "size": 256, "k": 4, "rows": 512, "steps": 4}
    for name, default in sizes.items():
        shape.add_argument(f"--{name}", type=int, default=default)
    of_dictionary = commands.add_parser("errors")
    of_dictionary.add_argument("dictionary", type=Path)
    of_dictionary.add_argument("--tokens", type=int, default=8192)
    given = parser.parse_args()
    if given.command == "step":
        result = step(given.layers, given.d, given.size, given.k, given.rows, given.steps)
    else:
        result = errors(given.dictionary, given.tokens)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
