"""The numbers of SCR and TPP, what they mean, and their charts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from saelab.formats.chart import Axis, Chart, ReferenceLine, Series
from saelab.stats.bootstrap import Bootstrap
from saelab.stats.spread import spread_of

from ..definitions import Definition, filled_in
from .scores import SMALLEST_GAP, Row

SCORES = {"tpp": "TPP", "scr": "SCR"}


def numbers_of(
    tpp: Sequence[Row], scr: Sequence[Row], ns: Sequence[int]
) -> dict[str, float | int | None]:
    """Means over classes or pairs, with 95 % intervals over them and the spread over splits."""
    numbers: dict[str, float | int | None] = {}
    if tpp:
        rows = [{**row, "total": row["intended"] - row["unintended"]} for row in tpp]
        kinds = {"latents": "tpp_{n}", "random": "tpp_random_{n}", "directions": "tpp_directions"}
        for what, pattern in kinds.items():
            for n in ns if what != "directions" else (0,):
                chosen = [row for row in rows if row["ablated"] == what and row["n"] == n]
                name = pattern.format(n=n)
                numbers |= _summary(chosen, name, "total", ("set", "class"))
                for part in ("intended", "unintended") if what != "random" else ():
                    numbers[f"{name}_{part}"] = spread_of(row[part] for row in chosen).mean
        numbers["probe_accuracy"] = spread_of(
            row["clean"] for row in rows if row["ablated"] == "directions"
        ).mean
    for n in ns if scr else ():
        chosen = [row for row in scr if row["n"] == n]
        numbers |= _summary(chosen, f"scr_{n}", "scr", ("set", "agree"))
        for direction in ("scr_dir1", "scr_dir2"):
            numbers[f"{direction}_{n}"] = spread_of(row[direction] for row in chosen).mean
    if scr:
        defined = [row["scr"] is not None for row in scr]
        numbers["scr_defined_share"] = sum(defined) / len(defined)
        for name in ("biased", "oracle"):
            both = (row[f"{name}_{side}"] for row in scr for side in (1, 2))
            numbers[f"{name}_accuracy"] = spread_of(both).mean
    return numbers


def _summary(
    rows: Sequence[Row], name: str, column: str, item: Sequence[str]
) -> dict[str, float | None]:
    """A score: its mean over items, the interval over them, and its spread over splits."""
    by_item: dict[Any, list[float | None]] = defaultdict(list)
    by_split: dict[int, list[float | None]] = defaultdict(list)
    for row in rows:
        by_item[tuple(row[key] for key in item)].append(row[column])
        by_split[row["split"]].append(row[column])
    means = [spread_of(values).mean for values in by_item.values()]
    columns = torch.tensor([[float("nan") if m is None else m] for m in means]).double()
    estimate = Bootstrap(len(means)).estimate(columns)
    splits = [spread_of(values).mean for values in by_split.values()]
    return {
        name: estimate.value,
        f"{name}_low": estimate.low,
        f"{name}_high": estimate.high,
        f"{name}_split_sd": spread_of(splits).sd,
    }


def scr_tpp_definitions(facts: Mapping[str, Any]) -> list[Definition]:
    """What every number of a measurement means."""
    texts = {"Targeted probe perturbation": _tpp_texts(facts["ns"])}
    texts["Spurious correlation removal"] = _scr_texts(facts["ns"])
    measured = set(facts["numbers"])
    kept = {
        group: {name: text for name, text in given.items() if name in measured}
        for group, given in texts.items()
    }
    better: dict[str, Any] = {}
    for n in facts["ns"]:
        better |= {f"tpp_{n}": "higher", f"tpp_{n}_intended": "higher"}
        better |= {f"tpp_{n}_unintended": "lower", f"scr_{n}": "higher"}
        better |= {f"scr_dir1_{n}": "higher", f"scr_dir2_{n}": "higher"}
    plain = {name: fact for name, fact in facts.items() if name not in ("ns", "numbers")}
    return filled_in(kept, plain, units={}, better=better)


def _tpp_texts(ns: Sequence[int]) -> dict[str, str]:
    texts = {
        "probe_accuracy": "Mean accuracy on positive and on negative test examples of the probes "
        "of every class against the rest, on the mean of a text's activations."
    }
    what = "Mean over classes of {n_sets} data sets and {n_splits} splits of the fall"
    for n in ns:
        name = f"tpp_{n}"
        texts[name] = (
            f"{name}_intended less {name}_unintended, with the error kept and the {n} latents of "
            "the largest (mean code of positive - of negative examples, at least 0) x (probe "
            "weight . decoder row) set to zero (SAEBench, arXiv 2503.09532)."
        )
        texts[f"{name}_intended"] = f"{what} in accuracy of the probe of the class itself."
        texts[f"{name}_unintended"] = f"{what} in accuracy of the other classes' probes."
        texts |= _ends(name)
        texts[f"tpp_random_{n}"] = f"{name} with {n} random latents that fire: the control."
        texts |= _ends(f"tpp_random_{n}")
    texts["tpp_directions"] = (
        "The same with the probe's own direction put to its mean in place of latents: the skyline."
    )
    for part, whose in (("intended", "the class's own probe"), ("unintended", "the others")):
        texts[f"tpp_directions_{part}"] = f"Its fall in accuracy of {whose}."
    return texts | _ends("tpp_directions")


def _scr_texts(ns: Sequence[int]) -> dict[str, str]:
    texts = {
        "scr_defined_share": f"Share of measurements with a gap of at least {SMALLEST_GAP}: SCR is "
        "of these, and says nothing where there are few.",
        "biased_accuracy": "Mean accuracy of probes trained where two labels go together, on each "
        "label where they do not.",
        "oracle_accuracy": "Mean accuracy of probes trained where all four combinations are alike.",
    }
    for n in ns:
        texts[f"scr_{n}"] = (
            "(accuracy with latents ablated - biased accuracy) / (oracle accuracy - biased "
            f"accuracy), with the error kept and the {n} latents of the largest |(mean code of "
            "positive - of negative examples) x (probe weight . decoder row)| for the other label "
            "set to zero; of both directions the one of the lower biased accuracy; mean over "
            "{n_pairs} data sets, both ways of tying their labels and {n_splits} splits. "
            f"Gaps below {SMALLEST_GAP} are left out; without any other it is null. 1 is as good "
            "as a probe without bias, 0 as bad as the biased one (SAEBench, arXiv 2503.09532)."
        )
        texts |= _ends(f"scr_{n}")
        texts[f"scr_dir1_{n}"] = f"scr_{n} of direction 1: tested on the first label."
        texts[f"scr_dir2_{n}"] = f"scr_{n} of direction 2: tested on the second label."
    return texts


def _ends(name: str) -> dict[str, str]:
    return {
        f"{name}_low": f"Lower end of the 95 % interval of {name} over classes or pairs.",
        f"{name}_high": f"Upper end of the 95 % interval of {name} over classes or pairs.",
        f"{name}_split_sd": f"Standard deviation of {name} over splits: differences below twice "
        "that are noise of the split.",
    }


def scr_tpp_charts(data: Mapping[str, Any]) -> list[Chart]:
    """Both scores by how many latents are ablated."""
    numbers, ns = data["numbers"], data["ns"]

    def series(words: str, pattern: str, *, bars: bool = False, dashed: bool = False) -> Series:
        def of(end: str) -> list[Any]:
            return [numbers[pattern.format(n) + end] for n in ns]

        return Series(
            name=words,
            x=list(ns),
            y=of(""),
            low=of("_low") if bars else None,
            high=of("_high") if bars else None,
            mark="lines+dots",
            dashed=dashed,
        )

    x = Axis(title="latents ablated (log)", log=True)
    charts = []
    if "tpp_directions" in numbers:
        charts.append(
            Chart(
                name="tpp_by_n",
                title="What ablating a class's latents costs its probe and others",
                caption="Fall in balanced accuracy on test examples, mean over classes. TPP is "
                "intended less unintended. Across: the probe's own direction removed. Dashed: "
                "random latents that fire.",
                x=x,
                y=Axis(title="fall in accuracy (1)"),
                series=(
                    series("TPP", "tpp_{}", bars=True),
                    series("intended", "tpp_{}_intended"),
                    series("unintended", "tpp_{}_unintended"),
                    series("TPP, random latents", "tpp_random_{}", dashed=True),
                ),
                lines=(ReferenceLine(value=numbers["tpp_directions"], label="probe directions"),),
            )
        )
    if "oracle_accuracy" in numbers:
        charts.append(
            Chart(
                name="scr_by_n",
                title="How much of a spurious correlation ablation removes",
                caption="Share of the way from the biased probe's accuracy to the oracle's; 1 is "
                "all of it. SCR is the direction of the lower biased accuracy.",
                x=x,
                y=Axis(title="share of the gap (1)"),
                series=(
                    series("SCR", "scr_{}", bars=True),
                    series("direction 1", "scr_dir1_{}"),
                    series("direction 2", "scr_dir2_{}"),
                ),
                lines=(ReferenceLine(value=0, label="biased probe"),),
            )
        )
    return charts
