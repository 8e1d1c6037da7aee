"""The suite "probing": what linear probes read off latents of labelled text.

Protocols: k-sparse probes of sae-probes (Kantamneni et al., 2025, arXiv 2502.16681) and of SAEBench
(Karvonen et al., 2025, arXiv 2503.09532); docs/suites.md says where this one differs and why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from saelab.config import Within

from ..labelled.config import LabelledConfig
from ..suite import Suite, deferred

Setting = Literal["normal", "scarce", "imbalanced", "label-noise"]


@dataclass(frozen=True, kw_only=True)
class ProbingConfig(LabelledConfig):
    """Which labelled text is probed, how many examples are trained on, and which probes."""

    PROTOCOL = "probes on k standardised features with C 1, on all standardised channels or latents"
    """What settings do not say, and what tells results apart that were measured otherwise."""

    sets: tuple[str, ...] = ("sae-probes",)
    """Data sets: `sae-probes` (the 155 of the wheel), one of them by name or number, a CSV, JSONL
    or parquet file, one of SAEBench's, or a `datasets` name."""
    pooling: Literal["last", "mean"] = "last"
    """What stands for a text: its last token, or the mean over its tokens (latents: of codes)."""
    n_train: Annotated[int, Within(8)] = 128
    """Most training examples of a data set."""
    n_test: Annotated[int, Within(4)] = 72
    """Most test examples of a data set."""
    n_splits: Annotated[int, Within(1)] = 2
    """Random splits into training and test examples."""
    ks: Annotated[tuple[int, ...], Within(1)] = (1, 2, 5, 16, 128)
    """Numbers of latents that probes read."""
    settings: tuple[Setting, ...] = ("normal",)
    """`normal`; `scarce`: few training examples; `imbalanced`: few positive ones; `label-noise`:
    wrong answers in training."""
    n_scarce: Annotated[int, Within(4)] = 16
    """Training examples in the setting `scarce`."""
    positive_share: Annotated[float, Within(0, 1, low_open=True, high_open=True)] = 0.1
    """Share of positive training examples in the setting `imbalanced`."""
    noise_share: Annotated[float, Within(0, 0.5, high_open=True)] = 0.2
    """Share of training answers that are wrong in the setting `label-noise`."""
    inverse_penalty: Annotated[float, Within(0, low_open=True)] = 30.0
    """C of the probes on all features, whose training rows have a mean squared norm of one."""

    def problems(self) -> list[str]:
        """Nothing asked for, or something twice."""
        problems = []
        for name in ("sets", "ks", "settings"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                problems.append(f"{name}: {list(values)} must be one or more different ones")
        return problems


SUITE = Suite(
    name="probing",
    summary="What linear probes read off a few latents of labelled text, and whether latents add "
    "anything to probes on activations.",
    Config=ProbingConfig,
    measure=deferred(".probing.measure", "measure_probing"),
    definitions=deferred(".probing.numbers", "probing_definitions"),
    charts=deferred(".probing.charts", "probing_charts"),
    tables=deferred(".probing.charts", "probing_tables"),
    headline=("auc_k1", "auc_k16", "auc_all", "gain"),
    skyline={
        "auc_k1": "channels_auc_all",
        "auc_k16": "channels_auc_all",
        "auc_all": "channels_auc_all",
        "gain": "gain_possible",
    },
    shown={
        "auc_k1": "AUC, k 1",
        "auc_k16": "k 16",
        "auc_all": "all latents",
        "channels_auc_k16": "16 channels",
        "channels_auc_all": "all channels",
        "shuffled_auc_k16": "k 16, shuffled labels",
        "gain": "gain",
    },
)
run_probing = SUITE.run
"""Probe dictionaries: (folders, config) -> results in the order of the folders."""
