"""What the numbers of a "ravel" result mean; its chart and table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from saelab.formats.chart import Axis, Chart, Series
from saelab.formats.evaluation_result import Table

from ..definitions import Definition, filled_in
from ..display import rounded

SOURCE = "SAEBench 0.6.0, RAVEL (MDBM, MDAS); arXiv 2402.17700"
_MEAN = "mean over attributes"
_MASKED = {
    "cause": "Share of tested pairs at which the model gives the source's answer after the masked "
    "latents took the source's codes, where the exchanged attribute is asked for; spliced in "
    "{error} the base's error; {_MEAN}.",
    "isolation": "Share of tested pairs at which it still gives the base's answer, where another "
    "attribute is asked for in which the source differs too; {_MEAN}.",
    "disentanglement": "(cause + isolation) / 2; {_MEAN}.",
}
MEANINGS = {
    "Exchanged by latents": {
        **_MASKED,
        "n_exchanged": "Latents in the mask, learnt in {epochs} epochs; {_MEAN}.",
        "n_candidates": "Latents that fire at any entity learnt on, which masks are over; {_MEAN}.",
    },
    "Controls": {
        **{f"random_{name}": f"{name} with as many latents at random." for name in _MASKED},
        "nothing_isolation": "isolation with no latent exchanged: what the reconstruction alone "
        "costs.",
    },
    "What could be reached": {
        **{
            f"skyline_{name}": f"{name} where {{skyline_width}} learnt directions of the "
            "activation are exchanged, without any dictionary (MDAS); {skyline_epochs} epochs."
            for name in _MASKED
        },
        "whole_cause": "cause with the source's whole activation: what this hook point can carry.",
    },
    "What was counted": {
        "n_entities": "Entities of which the model knows at least two attributes; below "
        "{least_entities}, scores are null.",
        "n_known": "Prompts that it answers rightly.",
        "n_facts": "Prompts.",
        "n_attributes": "Attributes with pairs of both kinds.",
        "n_train": "Pairs learnt on, all attributes together.",
        "n_test": "Other pairs of the same entities, tested on.",
    },
}


def ravel_definitions(facts: Mapping[str, Any]) -> list[Definition]:
    """What every number means, in reading order."""
    higher = [*_MASKED, *(f"skyline_{name}" for name in _MASKED), "whole_cause"]
    filled = filled_in(
        MEANINGS,
        {**facts, "_MEAN": _MEAN},
        units={
            **dict.fromkeys(("n_exchanged", "n_candidates"), "latents"),
            **dict.fromkeys(("n_known", "n_facts"), "prompts"),
            **dict.fromkeys(("n_train", "n_test"), "pairs"),
            "n_entities": "entities",
            "n_attributes": "attributes",
        },
        better={**dict.fromkeys(higher, "higher"), "nothing_isolation": "higher"},
    )
    return [replace(each, source=SOURCE) for each in filled]


def ravel_charts(data: Mapping[str, Any]) -> list[Chart]:
    """Scores by attribute; `data` has `rows`."""
    rows = data["rows"]
    kinds = {"": "latents", "random_": "random latents", "skyline_": "learnt directions"}
    series = [
        Series(
            name=f"{name}, {words}",
            x=[row["attribute"] for row in rows],
            y=[row[f"{kind}{name}"] for row in rows],
            mark="bars",
            dashed=kind == "random_",
        )
        for name in ("cause", "isolation")
        for kind, words in kinds.items()
    ]
    if not rows:
        return []
    return [
        Chart(
            name="exchange_by_attribute",
            title="Cause and isolation by attribute",
            caption="Share of tested pairs with the right answer. Cause: the exchanged attribute "
            "is asked for and the source's value is right. Isolation: another is asked for and "
            "the base's value is right.",
            x=Axis(title="attribute that is exchanged"),
            y=Axis(title="share of pairs", low=0, high=1),
            series=tuple(series),
            wide=True,
        )
    ]


def ravel_tables(data: Mapping[str, Any]) -> list[Table]:
    """Every score of every attribute."""
    if not data["rows"]:
        return []
    columns = list(data["rows"][0])
    return [
        Table(
            title="By attribute",
            columns=tuple(name.replace("_", " ") for name in columns),
            rows=tuple(
                (row["attribute"], *rounded([row[name] for name in columns[1:]], 3))
                for row in data["rows"]
            ),
            section="Attributes",
        )
    ]
