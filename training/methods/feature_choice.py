"""Feature Choice: each latent keeps its largest pre-activations in the batch, within a budget.

Ayonrinde, 2024, arXiv 2411.02124; the schedule, the law's parameters and the calibration are our
choices. Phase one is Mutual Choice. At its end the latents are ranked by their density, once, and
latent i is given a budget m_i of tokens per batch by Zipf's law over ranks (or all the same), with
Σ m_i = k·B. From then on each latent keeps its m_i largest positive pre-activations of the batch.

Saved as `jumprelu` with one threshold per latent: its quantile on calibration rows, all times one
factor that makes the mean L0 k. Dead latents are counted on positive codes, never on selections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.config import Within
from saelab.errors import ConfigError
from saelab.sparse import SparseCodes, select_latent_top
from saelab.sparse.world import current_world
from saelab.stats.zipf import fit_zipf, zipf_budgets

from ..interface import DictionarySettings, TrainingBatch
from ..parts.bases import scaled_to_l0
from .mutual_choice import NEVER, MutualChoice, MutualChoiceOptions

SILENT = 1e30
"""Threshold of a latent that may never be active: above every activation, and finite when saved."""


@dataclass(frozen=True, kw_only=True)
class FeatureChoiceOptions(MutualChoiceOptions):
    """Settings of the `feature_choice` method."""

    mutual_choice_fraction: Annotated[float, Within(0, 1)] = 0.85
    """Share of the steps that are Mutual Choice; 0 trains Feature Choice from scratch, ranks being
    the latents' order."""
    budgets: Literal["zipf", "uniform"] = "zipf"
    """Budgets by Zipf's law over the ranks of phase one, or the same for all."""
    exponent: Annotated[float | None, Within(0, 100)] = None
    """Exponent of that law. None: exponent and offset are fitted to the densities of phase one;
    from scratch, where there are none, the exponent is 1."""
    offset: Annotated[float, Within(0, 1e9)] = 10.0
    """Offset added to the rank in that law."""
    smallest_budget: Annotated[int, Within(0, 1e9)] = 1
    """Least tokens per batch that a latent is given."""
    largest_share: Annotated[float, Within(1e-9, 1)] = 0.5
    """Most tokens that a latent is given, as a share of the batch."""

    def problems_with(self, *, d_sae: int, k: int, batch_rows: int, n_steps: int) -> list[str]:
        """Budgets that cannot be given, with the nearest settings for which they can."""
        if round(self.mutual_choice_fraction * n_steps) >= n_steps:
            return [
                f"mutual_choice_fraction = {self.mutual_choice_fraction} leaves none of the "
                f"{n_steps} steps to feature choice: lower it or train longer"
            ]
        total = k * batch_rows
        least, most = d_sae * self.smallest_budget, d_sae * self.most(batch_rows)
        if total < least:
            return [
                f"infeasible budgets: {d_sae} latents of at least {self.smallest_budget} tokens "
                f"per batch need {least}, and k · batch_rows is {total}: give batch_rows of at "
                f"least {-(-least // k)}, or smallest_budget {total // d_sae}"
            ]
        if total > most:
            return [
                f"infeasible budgets: {d_sae} latents of at most {self.largest_share:g} of a batch "
                f"can take {most} pairs, and k · batch_rows is {total}: give k of at most "
                f"{most // batch_rows}, or largest_share {min(1.0, total / d_sae / batch_rows):.3g}"
            ]
        return []

    def most(self, batch_rows: int) -> int:
        """Largest budget of a latent, in tokens of a batch."""
        return max(1, int(self.largest_share * batch_rows))


class FeatureChoice(MutualChoice):
    """One dictionary being learnt, first by Mutual Choice, then with a budget for each latent."""

    crosses_layers = False

    budgets: Int[Tensor, " d_sae"]
    floors: Float[Tensor, " d_sae"]
    fired: Int[Tensor, " d_sae"]
    thresholds: Float[Tensor, " d_sae"]
    batch_l0: Float[Tensor, ""]

    def __init__(self, settings: DictionarySettings, options: FeatureChoiceOptions):
        super().__init__(settings, options)
        self.first_step = round(options.mutual_choice_fraction * settings.n_steps)
        self.batch_rows = settings.batch_rows
        self.exponent = 0.0 if options.budgets == "uniform" else options.exponent
        self.offset = options.offset
        self.limits = {
            "smallest": options.smallest_budget,
            "largest": options.most(settings.batch_rows),
        }
        # Densities of the last third of phase one: the ranks are those of a nearly finished one.
        self.count_from = self.first_step - self.first_step // 3
        d_sae = settings.d_sae
        self.register_buffer("budgets", torch.zeros(d_sae, dtype=torch.int64))
        self.register_buffer("fired", torch.zeros(d_sae, dtype=torch.int64))
        self.register_buffer("floors", torch.zeros(d_sae))
        self.register_buffer("thresholds", torch.full((d_sae,), NEVER))
        self.register_buffer("batch_l0", torch.zeros(()))

    @torch.no_grad()
    def select(self, batch: TrainingBatch) -> SparseCodes:
        """Mutual Choice in phase one; each latent's largest within its budget in phase two."""
        if batch.step < self.first_step:
            codes = super().select(batch)
            if batch.step >= self.count_from:
                self.fired += current_world().sum(codes.firing_counts())
            return codes
        if batch.step == self.first_step:
            self._give_budgets()
        top = select_latent_top(self.pre_activations(batch.inputs), self.budgets, self.floors)
        self.floors.copy_(top.next_floors)
        self.batch_l0.fill_(top.codes.latent.shape[0] / batch.inputs.shape[0])
        self.batch_l0.copy_(current_world().mean(self.batch_l0))
        return top.codes

    def _give_budgets(self) -> None:
        """Rank the latents by how often they fired and hand out the budgets, once for all."""
        exponent, offset = self.exponent, self.offset
        if exponent is None:
            fit = fit_zipf(self.fired.cpu().double())
            exponent, offset = (1.0, offset) if fit is None else (fit.exponent, fit.offset)
        by_rank = zipf_budgets(
            self.fired.shape[0],
            self.k * self.batch_rows,
            exponent=max(0.0, exponent),
            offset=offset,
            **self.limits,
        )
        order = torch.argsort(self.fired, descending=True, stable=True)
        self.budgets[order] = by_rank.to(self.budgets.device)
        # Half of Mutual Choice's threshold is low enough for most; those it is not are searched in
        # full. From scratch nothing is known, and every positive entry is looked at once.
        self.floors.fill_(float(self.floor.clamp_min(0)) / 2)

    @torch.no_grad()
    def calibrate(self, rows: Float[Tensor, "rows d_in"]) -> None:
        """Fit each latent's threshold to its budget, then all by one factor to the mean L0 k.

        Raises:
            ConfigError: no budgets were ever given.
        """
        if not bool(self.budgets.any()):
            raise ConfigError(
                "feature_choice ended before its second phase began: lower "
                "mutual_choice_fraction or train longer"
            )
        pre, world = self.pre_activations(rows), current_world()
        n_rows = rows.shape[0] * world.size
        wanted = (self.budgets.double() * n_rows / self.batch_rows).ceil().long()
        top = select_latent_top(pre, wanted, self.floors / 2)
        # A latent without a budget was never active in training and must not be now.
        quantiles = torch.where(self.budgets > 0, top.thresholds, SILENT)
        scaled = scaled_to_l0(pre, quantiles, self.k)
        self.thresholds.copy_(torch.where(self.budgets > 0, scaled, SILENT))

    def fitted_threshold(self) -> Float[Tensor, "*latents"]:
        """A threshold for each latent."""
        return self.thresholds

    def metrics(self) -> dict[str, float]:
        """Mutual Choice's, and how the budgets are used."""
        figures = super().metrics()
        if bool(self.budgets.any()):
            ranks = self.budgets.sort(descending=True).values
            figures |= {
                "budget_largest": float(ranks[0]),
                "budget_median": float(ranks[len(ranks) // 2]),
                "budget_used": float(self.batch_l0) / self.k,
            }
        return figures
