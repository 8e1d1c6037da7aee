"""The two scores of one split of one data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from .ablation import Pooled, accuracy, top_latents, without_direction

Row = dict[str, Any]
SMALLEST_GAP = 0.05
"""Gap between oracle and biased probe below which SCR is undefined: with a hundred test examples a
smaller one is noise, and a ratio to it is any number. SAEBench, with a thousand, has .001."""


def tpp_rows(
    pooled: Pooled,
    of_class: Int[np.ndarray, " examples"],
    split: tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]],
    ns: Sequence[int],
    penalty: float,
    generator: np.random.Generator,
) -> list[Row]:
    """Targeted probe perturbation: a row for each class whose latents are ablated and number.

    Every probe is tested on the same examples before and after; SAEBench draws new
    negative ones each time.

    Args:
        of_class: class of each example.
        split: training and test examples.
        ns: numbers of latents.
        penalty: C of the probes.
        generator: draws the control's latents among those that fire.
    """
    train, test = split
    classes = np.unique(of_class)
    probes = [pooled.probe(train, of_class[train] == c, penalty) for c in classes]

    def accuracies(activations: np.ndarray) -> np.ndarray:
        pairs = zip(probes, classes, strict=True)
        return np.array([accuracy(p, activations, of_class[test] == c) for p, c in pairs])

    clean = accuracies(pooled.activations[test])
    fired = np.unique(pooled.codes.indices)
    rows = []
    for index, probe in enumerate(probes):

        def drops(activations: np.ndarray, index: int = index) -> dict[str, float]:
            fallen = clean - accuracies(activations)
            others = float(np.delete(fallen, index).mean())
            return {"intended": float(fallen[index]), "unintended": others}

        effects = pooled.effects(probe, train, of_class[train] == classes[index], signed=True)
        middle = pooled.activations[train].mean(0)
        skyline = without_direction(pooled.activations[test], probe.weight, middle)
        named = {"class": int(classes[index]), "clean": float(clean[index])}
        rows.append({**named, "ablated": "directions", "n": 0, **drops(skyline)})
        for n in ns:
            random = generator.permutation(fired)[:n]
            for what, latents in (("latents", top_latents(effects, n)), ("random", random)):
                fallen = drops(pooled.ablated(test, latents))
                rows.append({**named, "ablated": what, "n": n, **fallen})
    return rows


def scr_rows(
    pooled: Pooled,
    first: Bool[np.ndarray, " examples"],
    second: Bool[np.ndarray, " examples"],
    split: tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]],
    ns: Sequence[int],
    penalty: float,
) -> list[Row]:
    """Spurious correlation removal: a row for each way the labels are tied together and number.

    A biased probe is trained where both labels agree (or, the second way, never do). Direction 1:
    latents of the second label's probe are ablated and the biased probe is tested on the first
    label; direction 2 the reverse. (A_ablated − A_biased) / (A_oracle − A_biased).

    Args:
        first: a label of each example.
        second: another label of it.
        split: training and test examples, in equal parts of the four combinations.
        ns: numbers of latents.
        penalty: C of the probes.
    """
    train, test = split
    labels = (first, second)
    oracles = [pooled.probe(train, label[train], penalty) for label in labels]
    clean = pooled.activations[test]
    best = [accuracy(p, clean, label[test]) for p, label in zip(oracles, labels, strict=True)]
    rows = []
    for agree in (True, False):
        tied = train[(first[train] == second[train]) == agree]
        # The biased probe's answer is the first label; the second is the same or its opposite.
        biased = pooled.probe(tied, first[tied], penalty)
        truths = [first[test], second[test] if agree else ~second[test]]
        bases = [accuracy(biased, clean, truth) for truth in truths]
        for n in ns:
            scores: list[float | None] = []
            for side in (0, 1):
                gap = best[side] - bases[side]
                other = 1 - side
                effects = pooled.effects(oracles[other], train, labels[other][train], signed=False)
                changed = pooled.ablated(test, top_latents(effects, n))
                gained = accuracy(biased, changed, truths[side]) - bases[side]
                scores.append(gained / gap if gap >= SMALLEST_GAP else None)
            chosen = 0 if bases[0] <= bases[1] else 1
            rows.append(
                {
                    "agree": agree,
                    "n": n,
                    "scr_dir1": scores[0],
                    "scr_dir2": scores[1],
                    "scr": scores[chosen],
                    "biased_1": bases[0],
                    "biased_2": bases[1],
                    "oracle_1": best[0],
                    "oracle_2": best[1],
                }
            )
    return rows
