"""The suite "dark-matter": what dictionaries do not explain, taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from saelab.config import Within

from ..suite import HeldOutConfig, Suite, deferred

Analysis = Literal[
    "linear",
    "norm-test",
    "directions",
    "pursuit",
    "family",
    "downstream",
    "linear-maps",
    "synthetic",
    "components",
]
PURSUIT = "pursuit_"
"""Before the names of numbers with pursuit codes."""
SHOWN = (
    "fvu",
    "fvu_nonlinear",
    "error_r_squared",
    "error_explained",
    "norm_r_squared",
    "l0_mean",
    "shrinkage_gamma",
    "linear_norm_share",
    "nonlinear_norm_share",
    "norm_test_nonlinear_error",
)
"""The numbers that matter most; the parquet file of a family holds all."""
DEFAULT_ANALYSES: tuple[Analysis, ...] = ("linear", "norm-test", "directions", "pursuit", "family")


@dataclass(frozen=True, kw_only=True)
class DarkMatterConfig(HeldOutConfig):
    """Which analyses of a dictionary's error to run, on which rows, and where the results go.

    Text, context length, token filter and norm ceiling are the dictionary's own unless overridden.
    """

    analyses: tuple[Analysis, ...] = DEFAULT_ANALYSES
    """What to do beside the split of the error into parts, which is always done ("linear").
    "norm-test": the norm-prediction test; "directions": the norm probe against single latents;
    "pursuit": every number again with gradient-pursuit codes; "family": scaling, breakdown,
    contours over the dictionaries given; "downstream": what splicing each part in costs the model;
    "linear-maps": errors from other dictionaries' outputs (see `sources`); "synthetic": planted
    dense and introduced noise; "components": dictionaries trained on the parts (see
    `component_dictionaries`)."""
    cache: Path | None = None
    """Activation cache of the hook point to take rows from. None: the model on held-out text."""
    n_tokens: Annotated[int, Within(1)] = 250_000
    """Rows to evaluate, counted after the token filter and `first_position`; fewer where the text
    or the cache ends."""
    n_loss_tokens: Annotated[int, Within(0)] = 16_384
    """Tokens at the start of the text on which the model's loss is measured, for the baseline that
    predicts the error norm from it. 0: not at all, and with `cache` no model is loaded for it."""
    first_position: Annotated[int | None, Within(0)] = None
    """Rows at earlier positions of a context are left out. None: 200, as in the paper, in contexts
    of at least 400 tokens; in shorter ones 0."""
    train_fraction: Annotated[float, Within(0, 1, low_open=True, high_open=True)] = 0.6
    """Share of the contexts that probes are fitted on; the others are held out."""
    ridge: Annotated[float, Within(0, 1, high_open=True)] = 1e-6
    """Regularisation of every least-squares fit, in units of the mean variance of a regressor."""
    seed: Annotated[int, Within(0)] = 0
    """Draws the splits, the controls and planted noise."""
    breakdown_l0: Annotated[float | None, Within(0, low_open=True)] = None
    """L0 at which widths are compared. None: the one that most widths reach, nearest to 60."""
    n_downstream_tokens: Annotated[int, Within(1)] = 16_384
    """Tokens of held-out text for "downstream", rounded up to contexts."""
    n_synthetic_rows: Annotated[int, Within(1)] = 50_000
    """Rows for "synthetic"; all rows where there are fewer."""
    sources: tuple[Path, ...] = ()
    """Dictionaries of other hook points of the same model whose outputs "linear-maps" maps to the
    error: an earlier layer's, and the same layer's MLP and attention outputs."""
    component_dictionaries: tuple[Path, ...] = ()
    """Dictionaries that were trained on the parts of a dictionary's error, for "components"."""
    batch_contexts: Annotated[int, Within(1)] = 8
    """Contexts in one forward pass; memory grows with it, the numbers do not depend on it."""
    out: Path | None = None
    """Folder for the results; one folder per dictionary in it where there are several, and the
    family's report beside them. None: the folder `evals` in each dictionary, and the family's
    report in that of the first."""

    def problems(self) -> list[str]:
        """Settings that contradict one another, and analyses without what they need."""
        problems = []
        if self.cache is not None and self.context_length is not None:
            problems.append("context_length: a cache has its own; give one or the other")
        if self.wants("linear-maps") and not self.sources:
            problems.append(
                "sources: the analysis linear-maps needs dictionaries of other hook points, such "
                "as an earlier layer's: name their folders with --sources"
            )
        if self.wants("components") and not self.component_dictionaries:
            problems.append(
                "component_dictionaries: the analysis components needs dictionaries trained on the "
                "parts of the error: name their folders with --component-dictionaries"
            )
        return problems

    def wants(self, analysis: Analysis) -> bool:
        """Whether an analysis was asked for."""
        return analysis in self.analyses


SUITE = Suite(
    name="dark-matter",
    summary="Take apart what dictionaries do not explain: linear and nonlinear error, and what "
    "each is.",
    Config=DarkMatterConfig,
    measure=deferred(".dark_matter.judge", "measure_dark_matter"),
    headline=tuple(prefix + name for name in SHOWN for prefix in ("", PURSUIT)),
    shown={
        "l0_mean": "L0",
        "fvu": "FVU",
        "fvu_nonlinear": "FVU\nnonl.",
        "error_r_squared": "R²\nerror",
        "error_explained": "pooled",
        "norm_r_squared": "R²\nnorm",
        "norm_test_nonlinear_error": "norm\ntest",
        "pursuit_fvu": "pursuit\nFVU",
        "pursuit_fvu_nonlinear": "FVU\nnonl.",
    },
    groups=lambda dictionaries, _: [range(len(dictionaries))],
    together=deferred(".dark_matter.judge", "measure_family"),
)
FAMILY_SUITE = Suite(
    name="dark-matter-family",
    summary="What the dictionaries of one hook point show together.",
    Config=DarkMatterConfig,
    measure=SUITE.measure,
    headline=("asymptote", "asymptote_low", "asymptote_high", "mean_fvu_nonlinear"),
)
"""Defines the result of a family, which the suite writes beside those of its dictionaries."""
