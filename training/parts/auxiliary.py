"""The auxiliary loss: latents that are hardly used learn to predict what the others left over.

With e the error of the reconstruction (held constant) and ê the decoding of each row's k_aux
largest pre-activations among the latents of a set, rectified and without b_dec, the loss is
‖e − ê‖² / ‖e − mean(e)‖², summed over the batch. The gradient reaches W_dec and the encoder alike.

* AuxK (Gao et al., 2024, arXiv 2406.04093, section 2.4): the set is the dead latents.
* aux-Zipf (after Ayonrinde, 2024, arXiv 2411.02124; its form is our choice): the set is the latents
  whose running density f_i is below τ times the target t_i = min(ρ, k · p(r_i)), with r_i the rank
  of f_i and p Zipf's law.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saelab.sparse import PreActivations, SparseCodes, select_top_k
from saelab.sparse.world import current_world
from saelab.stats.zipf import fit_zipf, zipf_shares

from ..options import AuxiliaryOptions
from .weights import AutoencoderWeights, UnitWeights

REFRESH_STEPS = 8
"""Steps between looks at which latents are dead; each look waits for the device once."""
REFIT_STEPS = 64
"""Steps between fits of Zipf's law to the densities; each costs a sort of them."""


class Auxiliary(nn.Module):
    """Which latents are dead or underused, and the loss that puts them to use.

    Args:
        d_sae: number of latents.
        k: target L0: densities sum to it.
        options: see `AuxiliaryOptions`.
        product_dtype: dtype of the encoder product among the set.
        lift_bias: for a gate that is the sign of p, whose dead latents have p ≤ 0 on every row:
            rectified, they would have no gradient and stay dead. Their biases count as zero and
            still get the gradient (our choice; SAELens leaves the rectifier out instead).
    """

    def __init__(
        self,
        d_sae: int,
        k: int,
        options: AuxiliaryOptions,
        product_dtype: torch.dtype | None,
        *,
        lift_bias: bool = False,
    ):
        super().__init__()
        self.lift_bias = lift_bias
        self.weight = options.weight if options.kind != "none" else 0.0
        self.k_aux, self.product_dtype = options.k_aux, product_dtype
        self.every_rows = options.every_rows
        self.dead_latents = DeadLatents(d_sae, dead_after_tokens=options.dead_after_tokens)
        self.underused = Underused(d_sae, k, options) if options.kind == "zipf" else None

    def loss(
        self,
        weights: AutoencoderWeights | UnitWeights,
        x: Float[Tensor, "rows d_in"],
        error: Float[Tensor, "rows d_out"],
    ) -> dict[str, Float[Tensor, ""]]:
        """The weighted loss by name, on normalised activations; nothing where no latent needs it.

        Args:
            weights: of the dictionary in training.
            x: what the encoder is given.
            error: the targets less their reconstruction; no gradient flows into it.
        """
        if self.weight == 0:
            return {}
        latents = (self.underused or self.dead_latents).listed_latents()
        if not latents.shape[0]:
            return {}
        x, error = x[:: self.every_rows], error[:: self.every_rows]
        b_enc = weights.b_enc
        if self.lift_bias:
            b_enc = b_enc - b_enc.detach()
        pre = weights.pre_activations(x, self.product_dtype, b_enc)
        selected = self.select(pre, latents)
        name = "auxk" if self.underused is None else "aux_zipf"
        return {name: self.weight * residual_loss(weights, x, error, selected, b_enc)}

    @torch.no_grad()
    def select(self, pre: PreActivations, latents: Int[Tensor, " n"]) -> SparseCodes:
        """The k_aux largest positive pre-activations of each row among some latents."""
        chosen = select_top_k(pre.of_latents(latents), self.k_aux)
        # A rectified zero has neither effect nor gradient, and rarely used latents are mostly that.
        chosen = chosen.keep(chosen.value > 0)
        return replace(chosen, latent=latents[chosen.latent], d_sae=pre.shape[1])

    @torch.no_grad()
    def update(self, codes: SparseCodes, *, step: int) -> None:
        """Count one batch; `step` is the number of steps taken before it."""
        self.dead_latents.update(codes, step=step)
        if self.underused is not None:
            self.underused.update(codes, step=step)

    def metrics(self) -> dict[str, float]:
        """Shares of latents that are dead, and underused where that is measured."""
        figures = {"dead_fraction": float(self.dead_latents.dead().float().mean())}
        if self.underused is not None:
            figures |= self.underused.metrics()
        return figures


class ListedLatents(nn.Module):
    """Latents that an auxiliary loss works on: a snapshot, refreshed every few steps.

    So the steps between never wait for the device.
    """

    listed: Bool[Tensor, " d_sae"]

    def __init__(self, d_sae: int):
        super().__init__()
        self.register_buffer("listed", torch.zeros(d_sae, dtype=torch.bool))
        self._list: Int[Tensor, " n"] | None = None
        self.register_load_state_dict_post_hook(lambda module, _: setattr(module, "_list", None))

    def refresh(self, listed: Bool[Tensor, " d_sae"]) -> None:
        """Take a new snapshot."""
        self.listed.copy_(listed)
        self._list = None

    def listed_latents(self) -> Int[Tensor, " n"]:
        """The latents as of the last refresh, ascending."""
        if self._list is None:
            self._list = self.listed.nonzero().squeeze(1)
        return self._list


class DeadLatents(ListedLatents):
    """Tokens since each latent last had a positive code, and which latents count as dead.

    A latent that was selected with the value zero has not fired.
    """

    tokens_since_fired: Int[Tensor, " d_sae"]

    def __init__(self, d_sae: int, *, dead_after_tokens: int):
        super().__init__(d_sae)
        self.dead_after_tokens = dead_after_tokens
        self.register_buffer("tokens_since_fired", torch.zeros(d_sae, dtype=torch.int64))

    def update(self, codes: SparseCodes, *, step: int) -> None:
        """Count one batch; `step` is the number of steps taken before it."""
        world = current_world()
        self.tokens_since_fired += codes.n_rows * world.size
        self.tokens_since_fired.masked_fill_(world.any(codes.fired()), 0)
        if (step + 1) % REFRESH_STEPS == 0:
            self.refresh(self.dead())

    def dead(self) -> Bool[Tensor, " d_sae"]:
        """Which latents have been silent for `dead_after_tokens` tokens or more, as of now."""
        return self.tokens_since_fired >= self.dead_after_tokens


class Underused(ListedLatents):
    """Running densities of the latents, held against Zipf's law by rank."""

    rate: Float[Tensor, " d_sae"]
    weight: Float[Tensor, ""]
    targets_by_rank: Float[Tensor, " d_sae"]

    def __init__(self, d_sae: int, k: int, options: AuxiliaryOptions):
        super().__init__(d_sae)
        self.horizon, self.below = options.density_horizon_tokens, options.underused_below
        self.k, self.largest = k, options.largest_density
        self.refitted = options.zipf_exponent is None
        exponent = 1.0 if options.zipf_exponent is None else options.zipf_exponent
        self.register_buffer("rate", torch.zeros(d_sae))
        self.register_buffer("weight", torch.zeros(()))
        self.register_buffer("targets_by_rank", self._law(d_sae, exponent, options.zipf_offset))

    def density(self) -> Float[Tensor, " d_sae"]:
        """Share of recent tokens on which each latent had a positive code, bias-corrected."""
        return self.rate / self.weight.clamp_min(1e-30)

    def targets(self) -> Float[Tensor, " d_sae"]:
        """The density that Zipf's law gives each latent by its present rank."""
        order = torch.argsort(self.rate, descending=True, stable=True)
        return torch.empty_like(self.rate).index_put_((order,), self.targets_by_rank)

    def update(self, codes: SparseCodes, *, step: int) -> None:
        """Count one batch; `step` is the number of steps taken before it."""
        world = current_world()
        n_rows = codes.n_rows * world.size
        decay = max(0.0, 1 - n_rows / self.horizon)
        fired = world.sum(codes.firing_counts()).to(self.rate.dtype)
        self.rate.mul_(decay).add_(fired / n_rows, alpha=1 - decay)
        self.weight.mul_(decay).add_(1 - decay)
        if self.refitted and (step + 1) % REFIT_STEPS == 0:
            # Fitted to the head of ranks, so that it says what the tail should be.
            fit = fit_zipf(self.density().cpu())
            if fit is not None and fit.exponent >= 0:
                law = self._law(self.rate.shape[0], fit.exponent, fit.offset)
                self.targets_by_rank.copy_(law)
        if (step + 1) % REFRESH_STEPS == 0:
            self.refresh(self.density() < self.below * self.targets())

    def metrics(self) -> dict[str, float]:
        """How far densities are from their targets."""
        density, targets = self.density(), self.targets()
        ratio = (density.clamp_min(1 / self.horizon) / targets).log10()
        return {
            "underused_fraction": float((density < self.below * targets).float().mean()),
            "zipf_log10_gap": float(ratio.square().mean().sqrt()),
        }

    def _law(self, d_sae: int, exponent: float, offset: float) -> Float[Tensor, " d_sae"]:
        shares = zipf_shares(d_sae, exponent=exponent, offset=offset)
        return (self.k * shares).clamp_max(self.largest).float()


def residual_loss(
    weights: AutoencoderWeights | UnitWeights,
    x: Float[Tensor, "rows d_in"],
    error: Float[Tensor, "rows d_out"],
    selected: SparseCodes,
    b_enc: Float[Tensor, " d_sae"],
) -> Float[Tensor, ""]:
    """‖e − ê‖² / ‖e − mean(e)‖² for already selected pairs.

    Args:
        weights: of the dictionary in training.
        x: what the encoder is given.
        error: the targets less their reconstruction; no gradient flows into it.
        selected: pairs of the latents of the set with their pre-activations.
        b_enc: encoder bias that these have.

    Returns:
        The loss of this process's rows, about 1 while the set explains nothing; 0 where the error
        has no variance at all.
    """
    error, world = error.detach(), current_world()
    pairs = weights.pairs_of(selected)
    value = weights.encode(x, selected, pairs, b_enc).relu()
    prediction = weights.decode(selected, value, pairs)
    variance = world.mean((error - world.mean(error.mean(0))).square().sum())
    squared = (error - prediction).square().sum()
    # A safe divisor as well as a safe result: an unused division by zero still has a NaN gradient.
    varies = variance > 0
    divisor = torch.where(varies, variance, torch.ones_like(variance))
    return torch.where(varies, squared / divisor, torch.zeros_like(squared))
