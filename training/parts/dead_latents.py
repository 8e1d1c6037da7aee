"""Counting, in tokens, how long each latent has had no positive code."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from saelab.sparse import SparseCodes

REFRESH_STEPS = 8
"""Steps between looks at which latents are dead; each look waits for the device once."""


class DeadLatents(nn.Module):
    """Tokens since each latent last had a positive code, and which latents count as dead.

    A latent that was selected with the value zero has not fired. The list that auxiliary losses
    work on is a snapshot, refreshed every few steps, so that the steps between never wait for the
    device.
    """

    tokens_since_fired: Int[Tensor, " d_sae"]
    listed: Bool[Tensor, " d_sae"]

    def __init__(self, d_sae: int, *, dead_after_tokens: int):
        super().__init__()
        self.dead_after_tokens = dead_after_tokens
        self.register_buffer("tokens_since_fired", torch.zeros(d_sae, dtype=torch.int64))
        self.register_buffer("listed", torch.zeros(d_sae, dtype=torch.bool))
        self._list: Int[Tensor, " n_dead"] | None = None
        self.register_load_state_dict_post_hook(lambda module, _: module._forget_list())

    def update(self, codes: SparseCodes, *, step: int) -> None:
        """Count one batch; `step` is the number of steps taken before it."""
        self.tokens_since_fired += codes.n_rows
        self.tokens_since_fired.masked_fill_(codes.fired(), 0)
        if (step + 1) % REFRESH_STEPS == 0:
            self.listed.copy_(self.dead())
            self._forget_list()

    def dead(self) -> Bool[Tensor, " d_sae"]:
        """Which latents have been silent for `dead_after_tokens` tokens or more, as of now."""
        return self.tokens_since_fired >= self.dead_after_tokens

    def listed_latents(self) -> Int[Tensor, " n_dead"]:
        """The dead latents as of the last refresh, ascending."""
        if self._list is None:
            self._list = self.listed.nonzero().squeeze(1)
        return self._list

    def _forget_list(self) -> None:
        self._list = None
