"""Settings of methods against one another, on planted features or on rows of a cache.

    cd benchmarks && python -m own.variants STUDY [--cache CACHE] [--only NAME…]

All variants and seeds of a study learn side by side from one stream. On planted features they are
scored by what they find; on a cache (`--cache`) by its last rows in reading order, which none of
them trains on. Results go to `results/variants/STUDY.json`, variant by variant.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from own.saelab_topk import RowStream
from own.studies import STUDIES
from saelab.cache.batch import ActivationBatch, RowStatistics, RowSums
from saelab.cache.reader import open_cache
from saelab.config import from_plain
from saelab.stats.cosines import nearest, unit_rows
from saelab.stats.metrics import batch_fvu, mean_l0
from saelab.stats.spread import spread_of
from saelab.synthetic.cache import planted_gradients
from saelab.synthetic.generator import HELD_OUT, TRAIN, PlantedSource
from saelab.synthetic.presets import LATENTS_PER_FEATURE, find_preset
from saelab.synthetic.streams import feature_frequencies
from saelab.training.config import TrainConfig
from saelab.training.interface import Method, Normalisation
from saelab.training.loop import TrainingLoop, normalisation_of
from saelab.training.run import build_learners

RESULTS = Path(__file__).parent.parent / "results" / "variants"
POOL_ROWS, HELD_OUT_ROWS, CALIBRATION_ROWS = 100_000, 8192, 32_768


class Rows:
    """Training rows in a random order, and held-out rows."""

    def __init__(self, train: Tensor, held_out: Tensor, gradients: Tensor | None) -> None:
        self.train, self.held_out, self.gradients = train, held_out, gradients
        self.features: Tensor | None = None
        self.frequencies: Tensor | None = None

    @staticmethod
    def planted(preset: str) -> Rows:
        """Rows of a preset, as `saelab planted` makes them."""
        source = PlantedSource(find_preset(preset))
        made = source.rows(POOL_ROWS, stream=TRAIN)
        gradients = planted_gradients(made.rows, source.features, made.coefficients)
        rows = Rows(made.rows, source.rows(HELD_OUT_ROWS, stream=HELD_OUT).rows, gradients)
        rows.features, rows.frequencies = source.features, feature_frequencies(source.config)
        return rows

    @staticmethod
    def of_cache(folder: Path) -> Rows:
        """The first rows of a cache in reading order; its last ones are held out."""
        cache = open_cache(folder, verify=False)
        train = cache.rows(torch.arange(min(POOL_ROWS, cache.n_rows - HELD_OUT_ROWS)))
        held_out = cache.rows(torch.arange(cache.n_rows - HELD_OUT_ROWS, cache.n_rows))
        return Rows(train.activations, held_out.activations, train.gradients)

    def stream(self, batch_rows: int) -> RowStream:
        """Endless batches, the same for every study."""
        return Stream(self.batches(batch_rows), RowSums.of(self.train).statistics(None))

    def batches(self, batch_rows: int) -> Iterator[ActivationBatch]:
        """Batches of one random order after another."""
        generator, gradients = torch.Generator().manual_seed(0), self.gradients
        while True:
            for index in torch.randperm(len(self.train), generator=generator).split(batch_rows):
                if len(index) == batch_rows:
                    some = None if gradients is None else gradients[index]
                    yield ActivationBatch(activations=self.train[index], gradients=some)


class Stream(RowStream):
    """Batches that may carry gradients of their own."""

    def __init__(self, rows: Iterator[ActivationBatch], statistics: RowStatistics) -> None:
        super().__init__(iter(()), statistics)
        self.rows = rows

    def next_batch(self) -> ActivationBatch:
        """Hand out the next rows."""
        return next(self.rows)


class L0Log:
    """L0 of each dictionary at the logged steps."""

    def __init__(self, dictionaries: int) -> None:
        self.of: list[dict[int, float]] = [{} for _ in range(dictionaries)]
        self.lines = 0

    def write(self, step: int, line: dict[str, Any]) -> None:
        """Take the line of the next dictionary: they come in turn."""
        self.of[self.lines % len(self.of)][step] = line["l0"]
        self.lines += 1

    def close(self) -> None:
        """Nothing is open."""


@torch.no_grad()
def score(method: Method, rows: Rows, normalisation: Normalisation) -> dict[str, Any]:
    """What a finished dictionary comes to on held-out rows, and which true features it found."""
    if method.needs_calibration:
        method.calibrate(normalisation.apply(rows.train[:CALIBRATION_ROWS]))
    dictionary = method.to_dictionary(normalisation)
    codes = dictionary.encode(rows.held_out)
    fired = codes.firing_counts()
    figures: dict[str, Any] = {
        "fvu": batch_fvu(rows.held_out, dictionary.decode(codes)),
        "l0": mean_l0(codes),
        "silent": float((fired == 0).double().mean()),
    }
    if rows.features is not None and rows.frequencies is not None:
        directions = unit_rows(dictionary.W_dec.double())
        cosine = nearest(unit_rows(rows.features.double()), directions)[0]
        order = rows.frequencies.argsort(descending=True, stable=True)
        figures |= {
            "found_at_0.8": float((cosine >= 0.8).double().mean()),
            "found_at_0.9": float((cosine >= 0.9).double().mean()),
            "found_at_0.9_by_quarter": [
                float((part >= 0.9).double().mean()) for part in cosine[order].chunk(4)
            ],
        }
    return {**figures, "last": method.metrics()}


def run(study: dict[str, Any], rows: Rows, only: list[str]) -> dict[str, Any]:
    """Train and score every variant of a study; the seeds' figures by variant."""
    configs = {
        name: from_plain(TrainConfig, _merged(study["base"], changes), name)
        for name, changes in study["variants"].items()
        if not only or name in only
    }
    first = next(iter(configs.values()))
    stream, device = rows.stream(first.batch_rows), torch.device("cpu")
    learners = {name: build_learners(each, stream, device) for name, each in configs.items()}
    together = list(itertools.chain.from_iterable(learners.values()))
    log = L0Log(len(together))
    TrainingLoop(first, stream, together, (log,), lambda step: None).run()  # noqa: ARG005
    normalisation = normalisation_of(stream, device)
    return {
        name: {
            "settings": study["variants"][name],
            "seconds_per_step": sum(each.clock.seconds_per_step() or 0 for each in group),
            "seeds": [
                score(each.method, rows, normalisation)
                | {"l0_by_step": log.of[together.index(each)]}
                for each in group
            ],
        }
        for name, group in learners.items()
    }


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    inner = {k: _merged(base[k], v) for k, v in changes.items() if isinstance(base.get(k), dict)}
    return {**base, **changes, **inner}


def show(results: dict[str, Any]) -> None:
    """Print a line for each variant: means and spreads over seeds."""
    for name, result in results.items():
        parts = [f"{name:44}"]
        for figure, value in result["seeds"][0].items():
            values = [seed[figure] for seed in result["seeds"]]
            if isinstance(value, list):
                means = [spread_of(each).mean or 0.0 for each in zip(*values, strict=True)]
                parts.append("[" + " ".join(f"{mean:.2f}" for mean in means) + "]")
            elif not isinstance(value, dict):
                spread = spread_of(values)
                parts.append(f"{figure} {spread.mean:.4f} ± {spread.sd or 0:.4f}")
        print("  ".join(parts), flush=True)


def main() -> None:
    """Run one study, keep what was measured of it before, write and print everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=tuple(STUDIES))
    parser.add_argument("--cache", type=Path, help="of the study's rows, where they are real")
    parser.add_argument("--only", nargs="*", default=[], help="variants; none given: all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study, started = STUDIES[arguments.study], time.monotonic()
    preset = study.get("preset")
    rows = Rows.of_cache(arguments.cache) if preset is None else Rows.planted(preset)
    if preset is not None:
        d_sae = LATENTS_PER_FEATURE[preset] * find_preset(preset).n_features
        study["base"].setdefault("d_sae", [d_sae])
    if study.get("noise"):
        assert rows.gradients is not None
        rows.gradients = torch.randn(
            rows.gradients.shape, generator=torch.Generator().manual_seed(9)
        )
    results = run(study, rows, arguments.only)
    show(results)
    file = RESULTS / f"{arguments.study}.json"
    known = json.loads(file.read_text())["variants"] if file.exists() else {}
    content = {"preset": preset, "base": study["base"], "variants": known | results}
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{time.monotonic() - started:.0f} s; {file}")


if __name__ == "__main__":
    main()
