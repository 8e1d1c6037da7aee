"""The suite "scr-tpp": spurious correlation removal and targeted probe perturbation.

Protocols of SAEBench (Karvonen et al., 2025, arXiv 2503.09532). "Are SAE Benchmarks Reliable?"
(arXiv 2605.18229) advises against ranking dictionaries by either: more splits and their spread are
part of every result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from saelab.config import Within

from ..labelled.config import LabelledConfig
from ..suite import Suite, deferred

TPP_SETS = ("97_news_class", "99_sci_cat", "101_disease_class", "102_twt_emotion", "103_it_tick")
PAIRS = (
    "56_wikidatasex_or_gender+57_wikidatais_alive",
    "56_wikidatasex_or_gender+59_wikidata_occupation_isjournalist",
    "56_wikidatasex_or_gender+61_wikidata_occupation_isactor",
)


@dataclass(frozen=True, kw_only=True)
class ScrTppConfig(LabelledConfig):
    """Which labelled text is used, how many latents are ablated, and where results go."""

    PROTOCOL = "logistic regression on pooled activations; balanced accuracy on the same examples"
    """What settings do not say, and what tells results apart that were measured otherwise."""

    sets: tuple[str, ...] = TPP_SETS
    """Data sets of three classes or more, for TPP: of `sae-probes` by name, a file, one of
    SAEBench's, a `datasets` name. None given: no TPP."""
    pairs: tuple[str, ...] = PAIRS
    """Data sets of two labels of two values each, for SCR: A+B, the texts that the data sets A and
    B both hold; or one whose second label `second_label_column` names. None given: no SCR."""
    second_label_column: str | None = None
    """Column of the second label in files of your own."""
    ns: Annotated[tuple[int, ...], Within(1)] = (2, 5, 10, 20, 50, 100, 500)
    """Numbers of latents that are ablated."""
    n_train: Annotated[int, Within(8)] = 240
    """Most training examples of a data set, in equal parts of every class."""
    n_test: Annotated[int, Within(8)] = 160
    """Most test examples of a data set."""
    n_splits: Annotated[int, Within(1)] = 3
    """Random splits into training and test examples."""
    inverse_penalty: Annotated[float, Within(0, low_open=True)] = 30.0
    """C of the probes, whose training rows have a mean squared norm of one."""

    def problems(self) -> list[str]:
        """Nothing asked for, or two-label data without a second label."""
        problems = []
        if not self.sets and not self.pairs:
            problems.append("sets, pairs: both are empty: name data sets for one of the two")
        if not self.ns or len(set(self.ns)) < len(self.ns):
            problems.append(f"ns: {list(self.ns)} must be one or more different numbers")
        return problems + [
            f"pairs: {name} has one label and SCR needs two of each text: name two data sets of "
            "the same texts as A+B, or the column of the other label with --second-label-column"
            for name in self.pairs
            if "+" not in name and self.second_label_column is None
        ]


SUITE = Suite(
    name="scr-tpp",
    summary="Whether ablating the latents of a concept removes it from probes, and only it: "
    "spurious correlation removal and targeted probe perturbation.",
    Config=ScrTppConfig,
    measure=deferred(".scr_tpp.measure", "measure_scr_tpp"),
    definitions=deferred(".scr_tpp.numbers", "scr_tpp_definitions"),
    charts=deferred(".scr_tpp.numbers", "scr_tpp_charts"),
    headline=("tpp_20", "scr_20"),
    skyline={"tpp_20": "tpp_directions", "scr_20": 1.0},
    shown={
        "tpp_20": "TPP, 20 latents",
        "tpp_20_intended": "intended",
        "tpp_20_unintended": "unintended",
        "tpp_random_20": "20 random",
        "tpp_directions": "probe directions",
        "scr_20": "SCR, 20 latents",
        "scr_defined_share": "SCR defined",
    },
)
run_scr_tpp = SUITE.run
"""Measure dictionaries: (folders, config) -> results in the order of the folders."""
