"""Inference-time gradient pursuit: sparse codes found by descent on the reconstruction itself.

An encoder that any dictionary can use in place of its own (arXiv 2410.14670, section 6.1): with
s = x − b_dec, D = W_dec and w = 0, each step of a row takes r = s − w D, q = r Dᵀ, the active set
A = {w ≠ 0} ∪ {argmax q}, g = q on A, c = g D, and w ← max(0, w + g ⟨c, r⟩ / ⟨c, c⟩); a row stops
after as many steps as it may have active latents. `PursuitEncoder` finds the same codes as this
written out with dense float64 matrices, but keeps nothing of [rows, d_sae] except one product:

* ⟨c, r⟩ = Σ g² and ⟨c, c⟩ = g (D Dᵀ) g over active latents, so steps work on inner products of
  active latents alone, in float64 (`pursuit_state`);
* argmax q is found among few candidates from a half-precision product (`strongest_latent`).

A row stops early where no latent points along its residual (max q ≤ 0 but for rounding) or the
residual lies within rounding of zero; the published code divides 0 by 0 there.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError
from saelab.sparse import SparseCodes

from .architectures import Dictionary
from .pursuit_state import InnerProducts, PursuitState
from .strongest_latent import LatentScreen

STATE_ENTRIES = 1 << 22
"""Inner products of active latents held at once: bounds a batch's memory to 32 MiB or so."""


class PursuitEncoder:
    """Encodes rows by gradient pursuit with a dictionary's decoder.

    Args:
        dictionary: whose W_dec and b_dec are used; its encoder only says how many latents a row may
            have where the caller does not.
        mask_active: never pick an active latent again, so that a row reaches the L0 it may have;
            the published code may pick one again, and then the L0 stays below.
        batch_rows: rows worked on at once; fewer where rows have many active latents.
    """

    def __init__(
        self, dictionary: Dictionary, *, mask_active: bool = False, batch_rows: int = 2048
    ):
        if batch_rows < 1:
            raise ConfigError(f"batch_rows: {batch_rows} is below 1")
        self.dictionary, self.mask_active = dictionary, mask_active
        self.batch_rows = batch_rows
        self._inner_products = InnerProducts(dictionary.W_dec)
        self._screen = LatentScreen(self._inner_products.latents)

    @torch.no_grad()
    def encode(
        self,
        activations: Float[Tensor, "rows d_in"],
        counts: Int[Tensor, " rows"] | None = None,
    ) -> SparseCodes:
        """Codes of each row with at most as many active latents as it may have.

        Args:
            activations: rows, in the units the dictionary takes.
            counts: how many latents each row may have; None: as many as the dictionary's own
                encoder gives it. More than d_sae counts as d_sae.

        Returns:
            Positive codes in the dtype of the decoder, with the rows' scales.

        Raises:
            ConfigError: counts that are negative, or not one for each row.
        """
        x = activations.to(self.dictionary.W_dec.dtype)
        counts = self.dictionary.encode(x).l0() if counts is None else counts.to(x.device).long()
        if counts.shape != x.shape[:1] or bool((counts < 0).any()):
            raise ConfigError(
                f"counts: one number of latents, at least 0, is needed for each of {x.shape[0]} "
                f"rows; {counts.shape[0]} were given, the smallest "
                f"{int(counts.min()) if len(counts) else 'missing'}"
            )
        signal = x.double() - self.dictionary.baseline(x.double())
        scale = self.dictionary.row_scale(x.double())
        if scale is not None:
            signal = signal / torch.where(scale > 0, scale, 1.0)[:, None]
        counts = counts.clamp(max=self.dictionary.d_sae)
        # Rows of like counts share a batch, so that few steps are taken for few rows.
        order = torch.sort(counts, descending=True, stable=True).indices
        parts = [
            self._encode_batch(signal[rows], counts[rows], rows)
            for rows in self._batches(counts, order)
        ]
        row, latent, value = (torch.cat(column) for column in zip(*parts, strict=True))
        d_sae = self.dictionary.d_sae
        codes = SparseCodes.from_pairs(row, latent, value.to(x.dtype), x.shape[0], d_sae)
        return replace(
            codes, row_scale=self.dictionary.row_scale(x), row_offset=self.dictionary.row_offset(x)
        )

    def _batches(self, counts: Tensor, order: Tensor) -> list[Tensor]:
        batches, start = [], 0
        while start < len(order) or not batches:
            most = int(counts[order[start]]) if len(order) else 0
            size = max(1, min(self.batch_rows, STATE_ENTRIES // max(1, most * most)))
            batches.append(order[start : start + size])
            start += size
        return batches

    def _encode_batch(
        self, signal: Tensor, counts: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs (row, latent, value) of rows sorted by falling counts."""
        n_slots = int(counts[0]) if len(counts) else 0
        rounded_latents = self.dictionary.W_dec.float()
        state = PursuitState(signal, self._inner_products, rounded_latents, n_slots)
        steps_left = counts.cpu()
        for step in range(state.n_slots):
            n_rows = int((steps_left > step).sum())
            taken = state.active_codes(n_rows) if self.mask_active else None
            candidates = self._screen(*state.residual(n_rows), state.going[:n_rows], taken)
            if not state.step(state.strongest_of(candidates, taken)):
                break
        row, latent, value = state.pairs()
        return rows[row], latent, value
