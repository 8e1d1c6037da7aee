"""The suite "crosscoder": at which hook points, or in which models, each latent lies.

Relative decoder norms say which latents are shared and which dedicated (Lindsey et al., 2024,
https://transformer-circuits.pub/2024/crosscoders); latent scaling tells which of the dedicated ones
are so in truth (Minder et al., 2025, arXiv 2504.02922).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from saelab.config import Within

from ..suite import HeldOutConfig, Suite, deferred


@dataclass(frozen=True, kw_only=True)
class CrosscoderConfig(HeldOutConfig):
    """How much held-out text to read, what counts as shared and as dedicated, and where results
    go."""

    n_tokens: Annotated[int, Within(1)] = 65_536
    """Tokens of held-out text, rounded up to contexts."""
    shared_from: Annotated[float, Within(0, 1)] = 0.8
    """Least relative decoder norm at every hook point of a shared latent; of two models the paper's
    range of .4 to .6 of its own scale."""
    dedicated_below: Annotated[float, Within(0, 1)] = 0.2
    """Relative decoder norm that a dedicated latent has at most everywhere but at one hook point;
    of two models the paper's ranges below .1 and above .9."""
    most_nu_error: Annotated[float, Within(0)] = 0.2
    """ν of the error up to which a dedicated latent is taken for one."""
    most_nu_reconstruction: Annotated[float, Within(0)] = 0.5
    """ν of the reconstruction up to which a dedicated latent is taken for one."""

    def problems(self) -> list[str]:
        """Classes that overlap."""
        if self.dedicated_below < self.shared_from:
            return []
        return [
            f"dedicated_below: {self.dedicated_below} is not below shared_from = "
            f"{self.shared_from}, so a latent could be both"
        ]


SUITE = Suite(
    name="crosscoder",
    summary="Which latents of crosscoders are shared by their hook points or models, which are "
    "dedicated to one.",
    Config=CrosscoderConfig,
    measure=deferred(".crosscoder.measure", "measure_crosscoders"),
    definitions=deferred(".crosscoder.numbers", "crosscoder_definitions"),
    charts=deferred(".crosscoder.numbers", "crosscoder_charts"),
    headline=("fvu", "shared_share", "dedicated_share", "unmasked_share"),
    shown={
        "fvu": "FVU",
        "l0_mean": "L0",
        "shared_share": "shared",
        "dedicated_share": "dedicated",
        "unmasked_share": "unmasked",
        "confirmed_latents": "confirmed",
    },
)
run_crosscoder = SUITE.run
"""Judge crosscoders: (folders, config) -> results in the order of the folders."""
