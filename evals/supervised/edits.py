"""Test 2's edits of an activation: greedy over latents, by interpretation, and in closed form.

All start from the real activation a_s of the prompt and aim at the real activation a_t of its
counterfactual (reconstructions as start and target give worse edits). An edit moves codes: latent
j's from α_j, its code at a_s, to another value, and the activation by the change times its decoder
row. Source: Makelov, Lange & Nanda, arXiv 2405.08366, sections 4.2, 5.1, A.12.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .contenders import SiteDictionaries, dense_chunks
from .dictionaries import SupervisedDictionary
from .predicates import Interpretations
from .section import Activations, EditedPrompts
from .sites import PromptSite
from .suite import SupervisedConfig

MOST_GATHERED = 1 << 23
"""Entries of the decoder rows gathered for one chunk of rows."""

GreedyVariant = Literal["joint", "free"]
"""`joint`: a latent's code moves to its value at the target, which counts once even where that both
removes and adds. `free`: each step may also only remove α_j or only add β_j, whichever helps
most."""


@dataclass(frozen=True, eq=False)
class GreedySteps:
    """What a greedy edit changed, in the order of its steps; it holds every smaller k too."""

    latent: Int[Tensor, "rows k"]
    """Latent moved in each step; −1 where no move would have come nearer."""
    change: Float[Tensor, "rows k"]
    """What was added to its code; 0 there."""

    def first(self, k: int) -> GreedySteps:
        """The edit of the first k steps, which is the greedy edit with that k."""
        return GreedySteps(self.latent[:, :k], self.change[:, :k])

    def apply(
        self, start: Float[Tensor, "rows d_in"], W_dec: Float[Tensor, "d_sae d_in"]
    ) -> Float[Tensor, "rows d_in"]:
        """The edited activations."""
        edited = start.clone()
        for step in range(self.latent.shape[1]):
            edited += self.change[:, step, None] * W_dec[self.latent[:, step].clamp_min(0)]
        return edited


def greedy_edit(
    start: Float[Tensor, "rows d_in"],
    target: Float[Tensor, "rows d_in"],
    start_codes: Float[Tensor, "rows d_sae"],
    target_codes: Float[Tensor, "rows d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    k: int,
    variant: GreedyVariant = "joint",
) -> GreedySteps:
    """Move at most k codes, one per step, each the one that brings `start` nearest to `target`.

    A latent is moved at most once; a row stops where no move comes nearer. With r what is still
    missing and c the change of a code, a move gains 2c·(r·u) − c²‖u‖². Only latents that are active
    on one side can move, so only their decoder rows are gathered, some rows of the batch at a time:
    O(k · rows · candidates · d_in), with no [rows, d_sae, d_in] tensor.

    Args:
        variant: which moves there are.
    """
    candidates, before, after = _candidates(start_codes, target_codes)
    moves = [after - before, -before, after] if variant == "free" else [after - before]
    n_candidates = max(1, candidates.shape[1])
    rows_at_once = max(1, MOST_GATHERED // (n_candidates * W_dec.shape[1]))
    parts = [
        _greedy_chunk(
            target[chunk] - start[chunk],
            candidates[chunk],
            # Changes that each candidate may undergo, [rows, candidates, moves].
            torch.stack([move[chunk] for move in moves], dim=2),
            W_dec,
            k,
        )
        for chunk in torch.arange(len(start), device=start.device).split(rows_at_once)
    ]
    return GreedySteps(*map(torch.cat, zip(*parts, strict=True)))


def _candidates(start_codes: Tensor, target_codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latents active on either side of each row, in rising order, with their two codes.

    Rows with fewer are filled up with latents whose codes are zero on both sides.
    """
    movable = (start_codes != 0) | (target_codes != 0)
    most = int(movable.sum(1).max()) if len(movable) else 0
    # Rank among the movable; the others share the last column, which is cut off.
    index = torch.where(movable, movable.cumsum(1) - 1, most)
    latents = torch.zeros(len(movable), most + 1, dtype=torch.int64, device=movable.device)
    order = torch.arange(movable.shape[1], device=movable.device).expand_as(index)
    latents = latents.scatter(1, index, order)[:, :most]
    filled = torch.arange(most, device=movable.device) < movable.sum(1, keepdim=True)
    before = torch.where(filled, start_codes.gather(1, latents), 0.0)
    after = torch.where(filled, target_codes.gather(1, latents), 0.0)
    return latents, before, after


def _greedy_chunk(
    missing: Tensor, latents: Tensor, moves: Tensor, W_dec: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    rows = torch.arange(len(missing), device=missing.device)
    directions = W_dec[latents]
    cost = moves.square() * W_dec.square().sum(1)[latents].unsqueeze(2)
    blocked = moves == 0
    missing = missing.clone()
    latent = torch.full((len(missing), k), -1, dtype=torch.int64, device=missing.device)
    change = missing.new_zeros(len(missing), k)
    for step in range(min(k, latents.shape[1])):
        agreement = torch.bmm(directions, missing.unsqueeze(2))
        gain = (2 * moves * agreement - cost).masked_fill(blocked, -torch.inf)
        best_move, which = gain.max(2)
        best, index = best_move.max(1)
        helps = best > 0
        if not bool(helps.any()):
            break
        moved = torch.where(helps, moves[rows, index, which[rows, index]], 0.0)
        missing -= moved.unsqueeze(1) * directions[rows, index]
        latent[:, step] = torch.where(helps, latents[rows, index], -1)
        change[:, step] = moved
        blocked[rows, index] = True
    return latent, change


def aware_edit(
    start_codes: Float[Tensor, "rows d_sae"],
    target_codes: Float[Tensor, "rows d_sae"],
    scores: Sequence[Float[Tensor, "d_sae _"]],
    start_values: Sequence[Int[Tensor, " rows"]],
    target_values: Sequence[Int[Tensor, " rows"]],
    each: int,
    *,
    active_only: bool = True,
) -> tuple[Float[Tensor, "rows d_sae"], Float[Tensor, "rows d_sae"]]:
    """Choose latents by what they mean: remove the best for the old value, add those for the new.

    For every edited attribute the `each` latents with the highest F1 for the prompt's value are
    removed and the `each` highest for the counterfactual's value added, so 2·each latents change.
    Latents with an F1 of zero are never chosen. A latent chosen twice on one side counts once.

    Args:
        start_codes: codes of the prompts' activations.
        target_codes: codes of the counterfactuals' activations.
        scores: per edited attribute, F1 of every latent for every value, measured on other prompts.
        start_values: per edited attribute, the value's index at each prompt.
        target_values: the same at each counterfactual.
        each: latents per list.
        active_only: choose among latents active on the list's side (as the authors' code does);
            False takes the literal first ones.

    Returns:
        Codes removed from and codes added to the prompts' activations, zero elsewhere.
    """
    removed = torch.zeros_like(start_codes, dtype=torch.bool)
    added = torch.zeros_like(removed)
    for table, before, after in zip(scores, start_values, target_values, strict=True):
        for chosen, value, codes in ((removed, before, start_codes), (added, after, target_codes)):
            ranked = table.T[value]
            if active_only:
                ranked = torch.where(codes > 0, ranked, 0.0)
            best, latent = ranked.topk(min(each, ranked.shape[1]), dim=1)
            # A zero must not switch off what another attribute chose, hence the addition.
            chosen |= torch.zeros_like(removed).scatter(1, latent, best > 0)
    return torch.where(removed, start_codes, 0.0), torch.where(added, target_codes, 0.0)


def weights(
    codes: Float[Tensor, "rows d_sae"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "rows d_sae"]:
    """Each latent's signed share of the reconstruction: (f_j u_j)·v / ‖v‖² with v = Σ f_j u_j.

    They sum to one in every row; NaN where v is zero, as it is where nothing is active.
    """
    explained = codes @ W_dec
    return codes * (explained @ W_dec.T) / explained.square().sum(1, keepdim=True)


def weight_removed(
    share: Float[Tensor, "rows d_sae"], steps: GreedySteps
) -> Float[Tensor, "rows k"]:
    """Summed weight, at the start, of the latents changed up to each step.

    Latents that were only added have a code of zero there and so a weight of zero. NaN where the
    weights are.
    """
    each = share.gather(1, steps.latent.clamp_min(0))
    undefined = share.isnan().any(1, keepdim=True)
    return torch.where(steps.latent >= 0, each, 0.0).cumsum(1).masked_fill(undefined, torch.nan)


@dataclass(eq=False)
class EditVariant:
    """One way to edit, at every site of a cross-section."""

    contender: str
    mode: str
    """`supervised`, `agnostic` or `aware`."""
    k: int | None
    """Latents that may be changed; None: one out and one in per attribute."""
    edited: dict[PromptSite, Float[Tensor, "pairs _"]] = field(default_factory=dict)
    """What is patched."""
    weight: list[Float[Tensor, " pairs"]] = field(default_factory=list)
    """Per site, the weight removed; NaN where weights are undefined."""
    distance: list[Float[Tensor, " pairs"]] = field(default_factory=list)
    """Per site, the distance left over the distance before."""

    @property
    def name(self) -> str:
        """Key of its outcome."""
        return f"{self.contender}|{self.mode}|{self.k}"

    def add(
        self, site: PromptSite, start: Tensor, target: Tensor, edited: Tensor, weight: Tensor
    ) -> None:
        """Take in the edit of one site."""
        self.edited[site] = edited
        self.weight.append(weight)
        gap = (target - start).norm(dim=1)
        self.distance.append(torch.where(gap > 0, (target - edited).norm(dim=1) / gap, torch.nan))


def supervised_edit(
    name: str,
    dictionaries: Mapping[PromptSite, SupervisedDictionary],
    sites: Sequence[PromptSite],
    start: Activations,
    pairs: EditedPrompts,
) -> EditVariant:
    """The closed-form edit of a supervised dictionary: one feature out, one in per attribute."""
    before = [prompt.labels for prompt in pairs.prompts]
    after = [prompt.labels for prompt in pairs.targets]
    variant = EditVariant(name, "supervised", None)
    for site in sites:
        dictionary, rows = dictionaries[site], start[site][pairs.rows]
        codes, new = dictionary.codes(before), dictionary.codes(after)
        share = weights(codes, dictionary.W_dec)
        removed = torch.where((codes != 0) & (new == 0), share, 0.0).sum(1)
        edited = dictionary.edit(rows, before, after)
        variant.add(site, rows, pairs.target_activations[site], edited, removed)
    return variant


def candidate_edits(
    candidate: SiteDictionaries,
    sites: Sequence[PromptSite],
    start: Activations,
    pairs: EditedPrompts,
    interpretations: Mapping[PromptSite, Interpretations],
    labels: Mapping[str, tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]],
    config: SupervisedConfig,
) -> list[EditVariant]:
    """The greedy edits with every k, and the edits by interpretation with the k that fit.

    Args:
        interpretations: per site.
        labels: attribute -> index of its value at the prompts and at the counterfactuals, of those
            that differ.
    """
    variants = [EditVariant(candidate.name, "agnostic", k) for k in config.k]
    # As many latents out as in, and equally many for each attribute.
    shared = 2 * max(1, len(labels))
    variants += [EditVariant(candidate.name, "aware", k) for k in config.k if k % shared == 0]
    for site in sites:
        rows, target = start[site][pairs.rows], pairs.target_activations[site]
        W_dec = candidate.W_dec(site)
        scores = [interpretations[site].value_f1[name].float() for name in labels]
        parts: dict[str, list[tuple[Tensor, Tensor]]] = {variant.name: [] for variant in variants}
        both = (dense_chunks(candidate.encode(site, x)) for x in (rows, target))
        for (chunk, codes), (_, new) in zip(*both, strict=True):
            share = weights(codes, W_dec)
            steps = greedy_edit(
                rows[chunk], target[chunk], codes, new, W_dec, max(config.k), config.greedy
            )
            greedy_removed = weight_removed(share, steps)
            for variant in variants:
                assert variant.k is not None
                if variant.mode == "agnostic":
                    edited = steps.first(variant.k).apply(rows[chunk], W_dec)
                    removed = greedy_removed[:, variant.k - 1]
                else:
                    out, into = aware_edit(
                        codes,
                        new,
                        scores,
                        [before[chunk] for before, _ in labels.values()],
                        [after[chunk] for _, after in labels.values()],
                        variant.k // shared,
                        active_only=config.aware_active_only,
                    )
                    edited = rows[chunk] + (into - out) @ W_dec
                    removed = torch.where(out != 0, share, 0.0).sum(1)
                    removed = removed.masked_fill(share.isnan().any(1), torch.nan)
                parts[variant.name].append((edited, removed))
        for variant in variants:
            edited, removed = map(torch.cat, zip(*parts[variant.name], strict=True))
            variant.add(site, rows, target, edited, removed)
    return variants
