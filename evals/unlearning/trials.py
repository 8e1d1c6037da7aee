"""What every way of clamping one dictionary's latents does, the best, and random ones beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.dictionary import SavedDictionary
from saelab.progress import progress_bar
from saelab.stats.bootstrap import UNDEFINED, Bootstrap, Estimate
from saelab.text.windows import DocumentWindows

from ..core.rows import blaming
from .judged import JudgedText
from .latents import Clamp, Densities, choose_latents, clamp_of, random_latents
from .questions import AskedQuestions
from .suite import UnlearningConfig

TEXTS = ("forget", "retain")


@dataclass(frozen=True)
class Setting:
    """One way of clamping and what it does: a row of the parquet file."""

    retain_density: float
    n_latents: int
    clamp: float
    n_clamped: int
    """Latents clamped: fewer than `n_latents` where fewer are quiet on the retain text."""
    rise_forget: float
    """Rise of the loss, nats per token."""
    rise_retain: float
    within: bool
    """Whether the retain text's perplexity rises by no more than the bound."""


@dataclass(frozen=True, eq=False)
class SharedTexts:
    """What dictionaries of one data spec share: the texts, and the untouched model's loss."""

    judged: dict[str, JudgedText]
    windows: dict[str, DocumentWindows]
    switched: Float[Tensor, " windows"]
    """Loss of the forget text's windows with the retain text's mean row in place of all rows."""
    asked: tuple[JudgedText, AskedQuestions] | None


class ClampJudge:
    """One dictionary on the judged texts: what clamping some of its latents does.

    Args:
        saved: the dictionary.
        shared: the texts.
    """

    def __init__(self, saved: SavedDictionary, shared: SharedTexts):
        self.saved, self.shared = saved, shared
        self.codes = {name: text.encoded(saved) for name, text in shared.judged.items()}

    def losses(self, name: str, clamp: Clamp) -> Float[Tensor, " windows"]:
        """Loss of each window of a text with latents clamped."""
        with blaming(self.saved):
            return self.shared.judged[name].clamped(
                self.codes[name], self.saved.dictionary.W_dec, clamp
            )

    def rise(self, name: str, losses: Float[Tensor, " windows"]) -> Estimate:
        """Mean rise of a text's loss, nats per token, with its interval over documents."""
        text, document = self.shared.judged[name], self.shared.windows[name].document
        sums = torch.zeros(int(document.max()) + 1, 2, dtype=torch.float64)
        sums.index_add_(0, document, torch.stack([losses - text.clean, text.positions], 1))
        value = float((losses - text.clean).sum() / text.positions.sum())
        if len(sums) < 2:
            return replace(UNDEFINED, value=value)
        interval = Bootstrap(len(sums)).estimate(sums, lambda means: means[..., 0] / means[..., 1])
        return replace(interval, value=value)

    def both(self, clamp: Clamp) -> dict[str, Estimate]:
        """Rise on both texts."""
        return {name: self.rise(name, self.losses(name, clamp)) for name in TEXTS}

    def accuracy(self, clamp: Clamp | None) -> float | None:
        """Share of the questions answered rightly; None without questions."""
        if self.shared.asked is None:
            return None
        text, questions = self.shared.asked
        losses = text.clean
        if clamp is not None:
            with blaming(self.saved):
                codes = text.encoded(self.saved)
                losses = text.clamped(codes, self.saved.dictionary.W_dec, clamp)
        return float(questions.correct(losses).double().mean())


def try_settings(
    judge: ClampJudge, densities: Densities, config: UnlearningConfig
) -> list[Setting]:
    """Every way of clamping; those that clamp the same latents alike are run once."""
    tried = [*product(config.retain_densities, config.n_latents, config.clamps)]
    bound = math.log1p(config.most_retain_rise)
    known: dict[tuple[tuple[int, ...], float], tuple[float, float]] = {}
    settings = []
    with progress_bar(len(tried), f"clamp latents of {judge.saved.name}", "settings") as bar:
        for density, n_latents, multiple in tried:
            latents = choose_latents(densities, density, n_latents)
            key = (tuple(latents.tolist()), multiple)
            if key not in known:
                both = judge.both(clamp_of(densities, latents, multiple))
                forget, retain = (float(both[name].value or 0) for name in TEXTS)
                known[key] = forget, retain
            forget, retain = known[key]
            settings.append(
                Setting(density, n_latents, multiple, len(latents), forget, retain, retain <= bound)
            )
            bar.update(1)
    return settings


def best_setting(settings: Sequence[Setting]) -> Setting | None:
    """The greatest rise of the forget loss within the bound; None where nothing rises there."""
    within = [each for each in settings if each.within and each.rise_forget > 0]
    return max(within, key=lambda each: each.rise_forget, default=None)


def numbers_of(
    judge: ClampJudge,
    densities: Densities,
    latents: Sequence[int] | Tensor,
    multiple: float,
    seed: int,
) -> tuple[dict[str, Any], dict[str, Clamp]]:
    """The chosen latents beside random ones, by number; and both clamps."""
    chosen = clamp_of(densities, latents, multiple)
    clamps = {
        "chosen_latents": chosen,
        "random_latents": clamp_of(
            densities, random_latents(densities, chosen.latents, seed), multiple
        ),
    }
    numbers: dict[str, Any] = {}
    for prefix, clamp in (("", chosen), ("random_", clamps["random_latents"])):
        for text, estimate in judge.both(clamp).items():
            numbers[f"{prefix}rise_{text}"] = estimate.value
            if not prefix:
                numbers[f"rise_{text}_low"] = estimate.low
                numbers[f"rise_{text}_high"] = estimate.high
    shared = judge.shared
    numbers["rise_switch"] = judge.rise("forget", shared.switched).value
    for name, text in shared.judged.items():
        numbers[f"loss_{name}"] = float(text.clean.sum() / text.positions.sum())
        numbers[f"n_positions_{name}"] = int(text.positions.sum())
    numbers["n_clamped"] = len(chosen.latents)
    if shared.asked is not None:
        questions = shared.asked[1]
        numbers |= {
            "accuracy": judge.accuracy(chosen),
            "accuracy_clean": judge.accuracy(None),
            "accuracy_random": judge.accuracy(clamps["random_latents"]),
            "accuracy_chance": questions.chance,
            "n_questions": len(questions.questions),
        }
    return numbers, clamps
