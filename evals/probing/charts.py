"""The charts and the table of the suite "probing"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saelab.formats.chart import Axis, Chart, ReferenceLine, Series
from saelab.formats.evaluation_result import Table

from .numbers import PREFIX, _prefixed
from .probes import FULL

NAMES = {"latents": "latents", "channels": "channels", "shuffled": "latents, shuffled labels"}
SHOWN_SETS = 10


def probing_charts(data: Mapping[str, Any]) -> list[Chart]:
    """AUC by k; latents against activations by data set; what latents add by data set."""
    charts = [_by_k(data), _by_set(data)]
    return charts + ([_gains(data)] if any("gain" in v for v in data["sets"].values()) else [])


def _by_k(data: Mapping[str, Any]) -> Chart:
    numbers, ks = data["numbers"], data["ks"]

    def of(features: str, end: str = "") -> list[Any]:
        names = [f"{PREFIX[features]}auc_k{k}{end}" for k in ks]
        return [numbers[_prefixed(data["setting"], name)] for name in names]

    series = [
        Series(
            name=name,
            x=[int(k) for k in ks],
            y=of(features),
            low=of(features, "_low"),
            high=of(features, "_high"),
            mark="lines+dots",
            dashed=features == "shuffled",
        )
        for features, name in NAMES.items()
    ]
    full = {
        "all channels": numbers[_prefixed(data["setting"], f"channels_auc_{FULL}")],
        "all latents": numbers[_prefixed(data["setting"], f"auc_{FULL}")],
    }
    return Chart(
        name="auc_by_k",
        title="What probes on k features tell",
        caption=f"Test AUC of logistic regression on the k latents or channels that differ most "
        f"between the classes, mean over {len(data['sets'])} data sets with its 95 % interval. "
        "Lines across: probes on all. Dashed: the same on training labels in random order.",
        x=Axis(title="k: features that a probe reads (log)", log=True),
        y=Axis(title="area under the ROC curve (1)"),
        series=tuple(series),
        lines=tuple(ReferenceLine(value=v, label=n) for n, v in full.items() if v is not None),
    )


def _by_set(data: Mapping[str, Any]) -> Chart:
    largest = max(map(int, data["ks"]))
    names = list(data["sets"])
    x = [data["sets"][name][f"channels_auc_{FULL}"] for name in names]
    series = [
        Series(
            name=words,
            x=x,
            y=[data["sets"][name][f"auc_{suffix}"] for name in names],
            mark="dots",
            labels=names,
        )
        for suffix, words in (
            (f"k{min(map(int, data['ks']))}", "one latent" if "1" in data["ks"] else "fewest"),
            (f"k{largest}", f"{largest} latents"),
            (FULL, "all latents"),
        )
    ]
    return Chart(
        name="latents_and_activations",
        title="Latents against activations, by data set",
        caption="A dot is a data set: test AUC of a probe on all channels to the right, of one on "
        "latents upwards. On the diagonal a dictionary keeps all that a probe can read.",
        x=Axis(title="AUC of a probe on all channels (1)"),
        y=Axis(title="AUC of a probe on latents (1)"),
        series=tuple(series),
    )


def _gains(data: Mapping[str, Any]) -> Chart:
    ordered = _by_gain(data)
    ends = [(v["channels_auc_best"], v["auc_best"]) for _, v in ordered]
    return Chart(
        name="gain_by_set",
        title="What latents add to the best probe on activations",
        caption="A bar is a data set, in the order of the gain: from the test AUC of the best "
        "probe on channels to that of the best of both (the dot), each chosen on folds of the "
        "training examples. A dot at the lower end is a loss.",
        x=Axis(title="data sets, by gain"),
        y=Axis(title="area under the ROC curve (1)"),
        series=(
            Series(
                name="best of both",
                x=list(range(1, len(ordered) + 1)),
                y=[both for _, both in ends],
                low=[min(pair) for pair in ends],
                high=[max(pair) for pair in ends],
                mark="dots",
                labels=[name for name, _ in ordered],
            ),
        ),
    )


def _by_gain(data: Mapping[str, Any]) -> Sequence[tuple[str, Mapping[str, float]]]:
    known = [(name, values) for name, values in data["sets"].items() if "gain" in values]
    return sorted(known, key=lambda item: -item[1]["gain"])


def probing_tables(data: Mapping[str, Any]) -> list[Table]:
    """The data sets to which latents add most, and those where they cost most."""
    ordered = _by_gain(data)
    shown = ordered
    if len(ordered) > 2 * SHOWN_SETS:
        shown = [*ordered[:SHOWN_SETS], *ordered[-SHOWN_SETS:]]
    ks = [f"k{k}" for k in data["ks"]]
    return [
        Table(
            title="Data sets with the largest gains and losses",
            columns=(
                "data set",
                *(f"AUC, {k.replace('k', 'k ')}" for k in ks),
                "all latents",
                "all channels",
                "gain",
            ),
            rows=tuple(
                (
                    name,
                    *(round(values[f"auc_{k}"], 3) for k in ks),
                    round(values[f"auc_{FULL}"], 3),
                    round(values[f"channels_auc_{FULL}"], 3),
                    round(values["gain"], 3),
                )
                for name, values in shown
            ),
            note="Every probe stands in the parquet file beside the result.",
        )
    ]
