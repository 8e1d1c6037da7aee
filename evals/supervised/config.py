"""Settings of the suite "supervised"."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from saelab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """Which task and sites dictionaries are judged on, on how many prompts, and by what."""

    task: str = "ioi"
    """Task: ioi, greater_than, subject_verb_agreement or gendered_pronoun."""
    sites: Path | None = None
    """File of cross-sections, as `--find-sites` writes it. None: every position of the task at the
    hook points of the dictionaries given."""
    cross_section: tuple[str, ...] = ()
    """Names of the cross-sections to judge at. Empty: all of the file's."""
    n_fit: int = 5000
    """Prompts that the supervised dictionary is fitted to (split "train")."""
    n_interpret: int = 3000
    """Prompts that latents are interpreted on (split "validation")."""
    n_eval: int = 2000
    """Prompts that scores are computed on, with their counterfactuals."""
    eval_split: Literal["test", "unseen_frame"] = "test"
    """Split of those: other combinations of values, or a sentence that no fit has seen."""
    k: tuple[int, ...] = (2, 4, 8, 16)
    """Numbers of latents that an edit may change."""
    greedy: Literal["joint", "free"] = "joint"
    """Moves of the greedy edit: a code goes to its value at the target (joint), or may also be only
    removed or only added (free)."""
    aware_active_only: bool = True
    """Whether edits by interpretation choose among active latents; else the literal first ones."""
    f1: tuple[float, ...] = (0.5, 0.6, 0.8)
    """F1 thresholds at which latents are counted."""
    f1_patch: float = 0.6
    """F1 from which latents count as interpretable when codes are exchanged between prompts."""
    sweep: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    """F1 thresholds of the sweep that removes latents below or above them."""
    union_values: int = 10
    """Predicates in a union, at most."""
    skylines: tuple[Literal["mse", "mean"], ...] = ("mse", "mean")
    """Supervised dictionaries; the first one is the ceiling and decides the gate."""
    parametrisations: tuple[str, ...] = ("independent",)
    """How prompts are described to them; the first one is the ceiling's."""
    save_skylines: bool = False
    """Also save the supervised dictionaries, as ordinary ones with linear probes for an encoder, to
    the folder `dictionaries` beside the results."""
    judge_anyway: bool = False
    """Judge dictionaries also where the supervised dictionary itself fails."""
    prompt_seeds: tuple[int, ...] = (0,)
    """Seeds of the prompts; everything is measured once for each."""
    resamples: int = 1000
    """Resamples of the prompts for the confidence intervals."""
    model: str = "smollm2-135m"
    """The language model."""
    model_dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    """Dtype the model computes in."""
    device: str = "auto"
    """Device of the model: `auto`, `cpu`, `cuda`."""
    batch_prompts: int = 128
    """Prompts in one forward pass; memory grows with it, the numbers do not depend on it."""
    out: Path | None = None
    """Folder of the results. None: runs/supervised-TASK."""
    overwrite: bool = False
    """Replace results that are there."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {getattr(self, name)} is below {least}"
            for name, least in (
                ("n_fit", 2),
                ("n_interpret", 2),
                ("n_eval", 2),
                ("batch_prompts", 1),
                ("resamples", 1),
                ("union_values", 1),
            )
            if getattr(self, name) < least
        ]
        if not self.k or min(self.k) < 1:
            problems.append(f"k: {list(self.k)} needs numbers of at least 1")
        for name in ("f1", "sweep"):
            if not all(0 < value <= 1 for value in getattr(self, name)):
                problems.append(f"{name}: {list(getattr(self, name))} is not within (0, 1]")
        if not 0 < self.f1_patch <= 1 or not math.isfinite(self.f1_patch):
            problems.append(f"f1_patch: {self.f1_patch} is not within (0, 1]")
        problems += [
            f"{name}: name at least one"
            for name in ("f1", "skylines", "parametrisations", "prompt_seeds")
            if not getattr(self, name)
        ]
        if self.cross_section and self.sites is None:
            problems.append(
                "cross_section: names are those of a file of sites; give it with --sites, or find "
                "sites with --find-sites"
            )
        if problems:
            raise ConfigError(problems)

    @property
    def folder(self) -> Path:
        """`out` with None resolved."""
        return self.out if self.out is not None else Path("runs") / f"supervised-{self.task}"
