"""From probes to numbers: means over data sets with intervals, and what they mean."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from saelab.stats.bootstrap import Bootstrap
from saelab.stats.spread import spread_of

from ..definitions import Definition, filled_in
from .probes import FULL

Row = dict[str, Any]
FEATURES = {
    "latents": "latents",
    "channels": "channels (entries of the activation)",
    "shuffled": "latents, chosen and fitted on training labels in random order, the control,",
}
PREFIX = {"latents": "", "channels": "channels_", "shuffled": "shuffled_"}
MEASURES = ("auc", "accuracy")


@dataclass
class Findings:
    """What probes on one dictionary's latents, and on activations, came to."""

    rows: list[Row]
    """A row for each probe."""
    by_set: dict[str, dict[str, float]]
    """By setting and data set, numbers by their names: means over tasks and splits."""
    numbers: dict[str, float | int | None] = field(default_factory=dict)
    """Means over data sets."""

    @property
    def set_names(self) -> list[str]:
        """The data sets."""
        return list(dict.fromkeys(row["set"] for row in self.rows))

    def columns(self) -> dict[str, list[Any]]:
        """The rows by column."""
        return {name: [row[name] for row in self.rows] for name in self.rows[0]}

    def chart_data(self) -> dict[str, Any]:
        """What charts and tables are drawn from: numbers of the first setting, by data set."""
        setting = self.rows[0]["setting"]
        return {
            "setting": setting,
            "ks": [k for k in dict.fromkeys(row["k"] for row in self.rows) if k != FULL],
            "numbers": self.numbers,
            "sets": {
                name.split("/", 1)[1]: values
                for name, values in self.by_set.items()
                if name.split("/", 1)[0] == setting
            },
        }


def findings_of(rows: Sequence[Row], ks: Sequence[int]) -> Findings:
    """Put together what probes came to.

    Args:
        rows: of every probe.
        ks: numbers of features.
    """
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    by_question: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    by_split: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        of_set = values[f"{row['setting']}/{row['set']}"]
        suffix = FULL if row["k"] == FULL else f"k{row['k']}"
        for measure in MEASURES:
            name = f"{PREFIX[row['features']]}{measure}_{suffix}"
            of_set[name].append(row[measure])
            by_split[_prefixed(row["setting"], name)][row["split"]].append(row[measure])
        by_question[row["set"], row["task"], row["setting"], row["split"]].append(row)
    for (name, _, setting, _), group in by_question.items():
        for number, value in _chosen(group).items():
            values[f"{setting}/{name}"][number].append(value)
    by_set = {
        name: {number: sum(each) / len(each) for number, each in of_set.items()}
        for name, of_set in values.items()
    }
    return Findings(list(rows), by_set, _numbers(by_set, by_split, ks))


def _chosen(group: Sequence[Row]) -> dict[str, float]:
    """The test AUC of the probe that is best on folds of the training examples: of those on
    channels, and of those and those on latents."""

    def best(of: Sequence[str]) -> float | None:
        known = [r for r in group if r["features"] in of and r["validation_auc"] is not None]
        return max(known, key=lambda row: row["validation_auc"])["auc"] if known else None

    channels, both = best(["channels"]), best(["channels", "latents"])
    if channels is None or both is None:
        return {}
    return {
        "channels_auc_best": channels,
        "auc_best": both,
        "gain": both - channels,
        "gain_possible": 1 - channels,
    }


def _numbers(
    by_set: Mapping[str, Mapping[str, float]],
    by_split: Mapping[str, Mapping[int, Sequence[float]]],
    ks: Sequence[int],
) -> dict[str, float | int | None]:
    numbers: dict[str, float | int | None] = {}
    settings = list(dict.fromkeys(name.split("/", 1)[0] for name in by_set))
    for setting in settings:
        of_sets = [v for name, v in by_set.items() if name.split("/", 1)[0] == setting]
        bootstrap = Bootstrap(len(of_sets))
        for name in dict.fromkeys(name for values in of_sets for name in values):
            column = [[values.get(name, float("nan"))] for values in of_sets]
            estimate = bootstrap.estimate(torch.tensor(column, dtype=torch.float64))
            number = _prefixed(setting, name)
            numbers[number] = estimate.value
            if not name.startswith("gain_"):
                numbers |= {f"{number}_low": estimate.low, f"{number}_high": estimate.high}
        gains = [values["gain"] for values in of_sets if "gain" in values]
        if gains:
            share = sum(gain > 0 for gain in gains) / len(gains)
            numbers[_prefixed(setting, "gain_share")] = share
        name = _prefixed(setting, f"auc_k{min(ks)}")
        means = [sum(values) / len(values) for values in by_split[name].values()]
        numbers[f"{name}_split_sd"] = spread_of(means).sd
        numbers[_prefixed(setting, "n_sets")] = len(of_sets)
    return numbers


def _prefixed(setting: str, name: str) -> str:
    return name if setting == "normal" else f"{setting.replace('-', '_')}_{name}"


WORDS = {
    "auc": "area under the ROC curve on test examples",
    "accuracy": "mean of the accuracies on positive and on negative test examples",
}
GAIN = {
    "channels_auc_best": "Test AUC of the probe on channels (each k, or all) that has the highest "
    "AUC on folds of the training examples, mean over {n_sets} data sets.",
    "auc_best": "The same, chosen among those on channels and those on latents.",
    "gain": "auc_best less channels_auc_best: what latents add where one chooses without looking "
    "at the test (sae-probes' question). A choice among more probes costs a little by itself.",
    "gain_possible": "1 less channels_auc_best: the most that could be gained.",
    "gain_share": "Share of data sets with a positive gain.",
}
IN_WORDS = {
    "normal": "up to {n_train} training examples",
    "scarce": "{n_scarce} training examples",
    "imbalanced": "a share of {positive} of training examples positive",
    "label-noise": "a share of {noise} of training answers wrong",
}


def probing_definitions(facts: Mapping[str, Any]) -> list[Definition]:
    """What every number means.

    Args:
        facts: of a measurement.
    """
    meanings: dict[str, dict[str, str]] = {}
    better: dict[str, Any] = {}
    units: dict[str, str] = {}
    for setting in facts["settings"]:
        texts: dict[str, str] = {}
        for name, text in _probe_texts(facts["ks"], IN_WORDS[setting]).items():
            number = _prefixed(setting, name)
            texts |= {number: text} | _interval(number)
            better[number] = "neither" if name.startswith("shuffled") else "higher"
        for name, text in GAIN.items():
            number = _prefixed(setting, name)
            texts |= {number: text} | ({} if name.startswith("gain_") else _interval(number))
            better[number] = "neither" if name == "gain_possible" else "higher"
        first = _prefixed(setting, f"auc_k{min(facts['ks'])}")
        texts[f"{first}_split_sd"] = (
            f"Standard deviation, over {{n_splits}} splits, of the mean over data sets of {first}: "
            "differences between dictionaries below twice that are noise of the split."
        )
        texts[_prefixed(setting, "n_sets")] = "Data sets; equal ones count once."
        units[_prefixed(setting, "n_sets")] = "data sets"
        meanings[f"Probes, {setting}"] = texts
    plain = {name: fact for name, fact in facts.items() if name not in ("ks", "settings")}
    return filled_in(meanings, plain, units=units, better=better)


def _probe_texts(ks: Sequence[int], examples: str) -> dict[str, str]:
    texts = {}
    for features, words in FEATURES.items():
        for measure, measured in WORDS.items():
            for k in ks:
                texts[f"{PREFIX[features]}{measure}_k{k}"] = (
                    f"Mean over {{n_sets}} data sets (of tasks and {{n_splits}} splits of each) of "
                    f"the {measured}, of logistic regression on the {k} {words} with the largest "
                    f"|mean of positive - mean of negative|, {examples}."
                )
            if features != "shuffled":
                texts[f"{PREFIX[features]}{measure}_{FULL}"] = (
                    f"The same of logistic regression on all {words}."
                )
    return texts


def _interval(name: str) -> dict[str, str]:
    return {
        f"{name}_{end}": f"{which} end of the 95 % interval of {name} over data sets (bootstrap)."
        for end, which in (("low", "Lower"), ("high", "Upper"))
    }
