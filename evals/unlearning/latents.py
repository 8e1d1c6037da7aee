"""Which latents are clamped: densities on both texts, the choice, and a random choice beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.sparse import SparseCodes
from saelab.stats.seeds import seeded_generator

NEAREST = 10
"""A random latent is one of so many whose forget density is nearest."""


@dataclass(frozen=True, eq=False)
class Densities:
    """How often each latent fires on both texts, and how strongly; float64 on the CPU."""

    forget: Float[Tensor, " d_sae"]
    """Share of the forget text's rows with a positive code."""
    retain: Float[Tensor, " d_sae"]
    """Share of the retain text's rows."""
    strength: Float[Tensor, " d_sae"]
    """Mean code, in what multiplies the decoder row, where it fires on the forget text; 0 where it
    never does."""


@dataclass(frozen=True, eq=False)
class Clamp:
    """Latents, and the code that each is held at where it fires, in what multiplies its row."""

    latents: Int[Tensor, " n"]
    codes: Float[Tensor, " n"]


@dataclass
class Firing:
    """Counts and sums of codes of each latent over some rows."""

    n_rows: int
    counts: Int[Tensor, " d_sae"]
    sums: Float[Tensor, " d_sae"]

    @staticmethod
    def at_start(d_sae: int) -> Firing:
        """Nothing yet."""
        return Firing(0, torch.zeros(d_sae, dtype=torch.int64), torch.zeros(d_sae).double())

    def add(self, codes: SparseCodes) -> None:
        """Count the codes of further rows."""
        self.n_rows += codes.n_rows
        self.counts += codes.firing_counts().cpu()
        values = codes.scaled_values().cpu().double().clamp_min(0)
        self.sums.index_add_(0, codes.latent.cpu(), values)

    def density(self) -> Float[Tensor, " d_sae"]:
        """Share of the rows on which each latent fires."""
        return self.counts.double() / max(1, self.n_rows)


def densities_of(forget: Firing, retain: Firing) -> Densities:
    """What both texts say of every latent."""
    strength = forget.sums / forget.counts.clamp_min(1)
    return Densities(forget.density(), retain.density(), strength)


def choose_latents(
    densities: Densities, retain_density: float, n_latents: int
) -> Int[Tensor, " chosen"]:
    """The latents of the largest forget density among those that are quiet on the retain text.

    Returns:
        At most `n_latents`, falling; fewer where fewer fire on the one and are quiet on the other.
    """
    forget = densities.forget.where(densities.retain < retain_density, 0)
    order = forget.argsort(descending=True, stable=True)[:n_latents]
    return order[forget[order] > 0]


def random_latents(
    densities: Densities, chosen: Int[Tensor, " n"], seed: int
) -> Int[Tensor, " drawn"]:
    """For each chosen latent another one that fires about as often on the forget text.

    Each is drawn among the `NEAREST` in density that are neither chosen nor drawn; the retain text
    has no say.

    Returns:
        As many latents, fewer where no others fire.
    """
    generator = seeded_generator("unlearning", "random latents", seed)
    free = densities.forget > 0
    free[chosen] = False
    drawn: list[int] = []
    for latent in chosen.tolist():
        left = free.nonzero().flatten()
        if not len(left):
            break
        distance = (densities.forget[left].log() - densities.forget[latent].log()).abs()
        nearest = left[distance.argsort(stable=True)[:NEAREST]]
        drawn.append(int(nearest[torch.randint(len(nearest), (), generator=generator)]))
        free[drawn[-1]] = False
    return torch.tensor(drawn, dtype=torch.int64)


def clamp_of(densities: Densities, latents: Sequence[int] | Tensor, multiple: float) -> Clamp:
    """Latents held at minus a multiple of their mean code."""
    indices = torch.as_tensor(latents, dtype=torch.int64)
    return Clamp(indices, -multiple * densities.strength[indices])


def clamp_changes(
    codes: SparseCodes, W_dec: Float[Tensor, "d_sae d_out"], clamp: Clamp
) -> tuple[Int[Tensor, " hit"], Float[Tensor, "hit d_out"]]:
    """What clamping adds to each row: Σ of (clamped − f) · decoder row over latents that fire.

    With the error kept, x' = x + (f' − f) W_dec, which is that sum; f is the code in what
    multiplies the decoder row, a row's scale included.

    Returns:
        The rows on which a clamped latent fires, rising; what is added to each of them.
    """
    held = codes.value.new_full((codes.d_sae,), float("nan"))
    held[clamp.latents.to(held.device)] = clamp.codes.to(held)
    kept = codes.keep((codes.value > 0) & ~held[codes.latent].isnan())
    moved = held[kept.latent] - kept.scaled_values()
    hit, index = kept.pair_rows().unique_consecutive(return_inverse=True)
    changes = W_dec.new_zeros(len(hit), W_dec.shape[1])
    return hit, changes.index_add_(0, index, moved[:, None] * W_dec[kept.latent])
