"""Settings of methods whose sparsity comes from a weighted penalty."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..options import CommonOptions, outside


@dataclass(frozen=True, kw_only=True)
class SparsityOptions(CommonOptions):
    """Settings that methods with a sparsity penalty share."""

    sparsity_weight: float | None = None
    """Weight λ of the sparsity penalty, held for the whole run: what one unit of the penalty costs
    in squared error of normalised activations. None: controlled so that L0 reaches k."""
    start_l0_factor: float = 1.0
    """L0 of the first batch as a multiple of k: thresholds or biases are set to it once."""
    encoder_scale: float = 0.5
    """Norm of each latent's encoder weights at the start; 1 would tie them to the decoder's."""

    def problems(self) -> list[str]:
        """Everything wrong with the settings by themselves."""
        weight = [] if self.sparsity_weight is None else [self.sparsity_weight]
        return [
            *super().problems(),
            *(p for w in weight for p in outside("sparsity_weight", w, 0, math.inf)),
            *outside("start_l0_factor", self.start_l0_factor, 0.1, math.inf),
            *outside("encoder_scale", self.encoder_scale, 1e-6, math.inf),
        ]

    def problems_with(self, *, d_sae: int, k: int, batch_rows: int, n_steps: int) -> list[str]:
        """Everything wrong with the settings for a dictionary of this shape in a run this long."""
        found = super().problems_with(d_sae=d_sae, k=k, batch_rows=batch_rows, n_steps=n_steps)
        if self.sparsity_weight is None and k > d_sae // 2:
            found.append(
                f"target L0 not reachable: a penalty can only lower L0, and without one about half "
                f"of the d_sae = {d_sae} pre-activations of a token are positive; take k = "
                f"{d_sae // 2} or less, or d_sae = {2 * k} or more"
            )
        return found
