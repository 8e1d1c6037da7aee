"""Biases that only measured activation frequencies move, towards ceilings that differ by group.

The rule of Chen et al. (2025, arXiv 2506.14002), with y the pre-activations including the bias, p_m
the share of rows on which latent m fired since its group's last update, r_m = max(0, max y_m) over
those rows, f_k the target frequency of group k and T_k the mean of r_m over the latents of k with
r_m > 0 (else over those of all groups, else 1):

    p_m > f_k:   b_m ← max(b_m − γ₋ r_m, −1)
    p_m < ε:     b_m ← min(b_m + γ₊ T_k, 0)
    otherwise:   b_m stays

So f_k is a ceiling and not a set point. p and r need no buffer of pre-activations: a count and a
maximum per latent, over the firing pairs alone, are all the rule asks of the rows.

Each group has a period of its own (our choice): long enough that a latent at its ceiling fires a
given number of times in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saelab.sparse import SparseCodes
from saelab.sparse.world import current_world

WANTED_UPDATES = 500
"""Updates of a group below which a run counts as short."""
MOST_STEPS = 50
"""Longest period chosen for the sake of `WANTED_UPDATES`; the paper's."""
LOWEST_BIAS = -1.0
LATENTS_AT_A_TIME = 1024
"""Bounds the pre-activations that starting at the targets holds at a time."""


def group_sizes(d_sae: int, groups: int) -> list[int]:
    """Latents of each group: equal, or nearly where d_sae is no multiple."""
    return [(i + 1) * d_sae // groups - i * d_sae // groups for i in range(groups)]


def group_shares(groups: int, ratio: float) -> list[float]:
    """Target frequencies over the first group's: geometric from 1 down to 1 / ratio."""
    return [ratio ** (-i / max(1, groups - 1)) for i in range(groups)]


def target_frequencies(
    d_sae: int, groups: int, ratio: float, *, highest: float | None, budget: float
) -> list[float]:
    """The target frequency of each group, falling by `ratio` from the first to the last.

    The first is `highest`; None: such that L0 is `budget` where every latent fires at its target.
    """
    shares = group_shares(groups, ratio)
    if highest is None:
        sizes = group_sizes(d_sae, groups)
        highest = budget / sum(n * share for n, share in zip(sizes, shares, strict=True))
    return [highest * share for share in shares]


def update_periods(
    frequencies: Sequence[float],
    *,
    every: int | None,
    firings: float,
    batch_rows: int,
    n_steps: int,
) -> list[int]:
    """Steps between two updates of each group: `every`, or until a latent at its target has fired
    `firings` times. With `every` None a run has 500 updates, at most 50 steps apart.
    """
    if every is None:
        every = min(MOST_STEPS, max(1, n_steps // WANTED_UPDATES))
    return [max(every, math.ceil(firings / (f * batch_rows))) for f in frequencies]


@dataclass(frozen=True, kw_only=True)
class FiringRule:
    """The numbers of the rule."""

    frequencies: tuple[float, ...]
    """Target activation frequency of each group: a share of rows."""
    periods: tuple[int, ...]
    """Steps between two updates of each group."""
    dead_below: float
    """ε: frequency below which a latent is brought back."""
    gamma_down: float
    """γ₋: step down, as a share of the latent's peak."""
    gamma_up: float
    """γ₊: step up, as a share of the group's mean peak."""
    short_run_boost: float
    """Largest factor on both where a group's updates are fewer than 500."""
    n_steps: int
    """Steps of the whole run."""

    def boosts(self) -> list[float]:
        """The factor on γ₊ and γ₋ of each group."""
        updates = [max(1, self.n_steps // period) for period in self.periods]
        return [min(self.short_run_boost, max(1.0, WANTED_UPDATES / n)) for n in updates]


class FiringBias(nn.Module):
    """One bias in [−1, 0] per latent and what has been seen of it since its last update.

    Latents are in groups in their order: the first ones have the highest target. That is as good as
    any other assignment, since initial weights are drawn alike.
    """

    bias: Float[Tensor, " d_sae"]
    fired: Int[Tensor, " d_sae"]
    peak: Float[Tensor, " d_sae"]
    rows: Int[Tensor, " groups"]
    updates: Int[Tensor, " groups"]
    frequency: Float[Tensor, " d_sae"]
    group: Int[Tensor, " d_sae"]
    target: Float[Tensor, " d_sae"]
    boost: Float[Tensor, " d_sae"]
    period: Int[Tensor, " groups"]

    def __init__(self, d_sae: int, rule: FiringRule):
        super().__init__()
        self.rule = rule
        groups = len(rule.frequencies)
        sizes = torch.tensor(group_sizes(d_sae, groups))
        self.register_buffer("bias", torch.zeros(d_sae))
        self.register_buffer("fired", torch.zeros(d_sae, dtype=torch.int64))
        self.register_buffer("peak", torch.zeros(d_sae))
        self.register_buffer("rows", torch.zeros(groups, dtype=torch.int64))
        self.register_buffer("updates", torch.zeros(groups, dtype=torch.int64))
        # As of each latent's last update; −1 before the first.
        self.register_buffer("frequency", torch.full((d_sae,), -1.0))

        def constant(name: str, tensor: Tensor) -> None:
            self.register_buffer(name, tensor, persistent=False)

        group = torch.arange(groups).repeat_interleave(sizes)
        constant("group", group)
        constant("target", torch.tensor(rule.frequencies, dtype=torch.float64)[group])
        constant("boost", torch.tensor(rule.boosts(), dtype=torch.float64)[group])
        constant("period", torch.tensor(rule.periods))

    @torch.no_grad()
    def start_at_targets(
        self,
        inputs: Float[Tensor, "rows d_in"],
        directions: Float[Tensor, "d_sae d_in"],
        factor: float,
    ) -> None:
        """Set each bias so that its latent fires on `factor` times its target of these rows."""
        starts, world = [], current_world()
        for group, latents in enumerate(directions.split(self._sizes())):
            rows = inputs.shape[0] * world.size
            wanted = min(rows, max(1, round(factor * self.rule.frequencies[group] * rows)))
            for part in latents.split(LATENTS_AT_A_TIME):
                projections = part @ inputs.T
                if world.size > 1:
                    held = min(wanted, inputs.shape[0])
                    largest = projections.topk(held, dim=1, sorted=False).values
                    projections = torch.cat(world.gather(largest.T)).T
                largest = projections.topk(wanted, dim=1, sorted=False).values
                starts.append(-largest.amin(1))
        self.bias.copy_(torch.cat(starts).clamp(LOWEST_BIAS, 0.0))

    @torch.no_grad()
    def count(self, codes: SparseCodes) -> None:
        """Add a batch of firing pairs, with their pre-activations without the bias as values."""
        world = current_world()
        self.fired += world.sum(codes.pair_counts())
        largest = torch.full_like(self.peak, -math.inf).scatter_reduce_(
            0, codes.latent, codes.value.detach(), "amax"
        )
        # Adding the bias never changes an order, so once per latent is as good as once per pair.
        torch.maximum(self.peak, world.max(largest) + self.bias, out=self.peak)
        self.rows += codes.n_rows * world.size

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Apply the rule to the groups that are due after this many steps."""
        if not any(steps % period == 0 for period in self.rule.periods):
            return
        group, rule = self.group, self.rule
        due_groups = steps % self.period == 0
        due = due_groups[group]
        frequency = self.fired / self.rows.double()[group]
        down = self.bias - rule.gamma_down * self.boost * self.peak
        up = self.bias + rule.gamma_up * self.boost * self.baselines()[group]
        moved = torch.where(frequency < rule.dead_below, up.clamp_max(0.0), self.bias)
        moved = torch.where(frequency > self.target, down.clamp_min(LOWEST_BIAS), moved)
        self.bias.copy_(torch.where(due, moved, self.bias))
        self.frequency.copy_(torch.where(due, frequency.to(self.frequency.dtype), self.frequency))
        self.fired.masked_fill_(due, 0)
        self.peak.masked_fill_(due, 0.0)
        self.rows.masked_fill_(due_groups, 0)
        self.updates += due_groups

    def baselines(self) -> Float[Tensor, " groups"]:
        """T_k: the mean positive peak of each group, where there is none that of all, or 1."""
        positive = (self.peak > 0).to(self.peak.dtype)
        zeros = self.peak.new_zeros(self.rows.shape[0])
        total = zeros.index_add(0, self.group, self.peak)
        number = zeros.index_add(0, self.group, positive)
        overall = torch.where(positive.sum() > 0, self.peak.sum() / positive.sum(), 1.0)
        return torch.where(number > 0, total / number, overall)

    def metrics(self) -> dict[str, float]:
        """How frequencies stand against their targets, and where the thresholds are."""
        quantiles = torch.tensor([0.1, 0.5, 0.9], device=self.bias.device)
        low, middle, high = (-self.bias).float().quantile(quantiles).tolist()
        figures = {"threshold_q10": low, "threshold_q50": middle, "threshold_q90": high}
        updates = self.updates.tolist()
        figures |= {"bias_updates_most": max(updates), "bias_updates_fewest": min(updates)}
        figures["l0_budget"] = float(self.target.sum())
        if min(updates) == 0:
            return figures
        figures["fraction_above_target"] = float((self.frequency > self.target).float().mean())
        figures["fraction_silent"] = float((self.frequency < self.rule.dead_below).float().mean())
        means = [float(part.mean()) for part in self.frequency.split(self._sizes())]
        return figures | {f"frequency_group_{i:02}": mean for i, mean in enumerate(means)}

    def _sizes(self) -> list[int]:
        return group_sizes(self.bias.shape[0], len(self.rule.frequencies))
