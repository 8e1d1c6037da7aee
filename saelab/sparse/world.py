"""The processes that train together: which of them this is, and sums and maxima over all of them.

Whatever is counted over a batch goes through `current_world()`. With one process every method gives
back what it was given: no copy, no wait for the device. With several, launched by `torchrun`,
`torch.distributed` does the work; each process then holds an equal share of every batch's rows, in
the order of the ranks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, distributed


@dataclass(frozen=True)
class World:
    """The processes of a training, seen from one of them."""

    rank: int = 0
    """Which process this is, from 0."""
    size: int = 1
    """How many there are."""

    def sum(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The sum over all processes."""
        return tensor if self.size == 1 else self._reduced(tensor, distributed.ReduceOp.SUM)

    def max(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The elementwise maximum over all processes."""
        return tensor if self.size == 1 else self._reduced(tensor, distributed.ReduceOp.MAX)

    def mean(self, tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The mean over all processes, which hold equally many rows."""
        return tensor if self.size == 1 else self.sum(tensor) / self.size

    def any(self, mask: Bool[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """Where any process has a true entry."""
        return mask if self.size == 1 else self.max(mask.to(torch.uint8)).bool()

    def gather(self, tensor: Shaped[Tensor, "n *rest"]) -> list[Tensor]:
        """The tensors of all processes by rank; their first axes may differ in length."""
        if self.size == 1:
            return [tensor]
        length = torch.tensor([tensor.shape[0]], device=tensor.device)
        lengths = [torch.zeros_like(length) for _ in range(self.size)]
        distributed.all_gather(lengths, length)
        longest = int(torch.cat(lengths).max())
        padded = tensor.new_zeros(longest, *tensor.shape[1:])
        padded[: tensor.shape[0]] = tensor
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(parts, padded)
        return [part[: int(n)] for part, n in zip(parts, lengths, strict=True)]

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Make each gradient that of the mean loss over all processes; clipping comes after it."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                # Another process may have one: all must take part in the sum.
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.copy_(self.mean(parameter.grad))

    @staticmethod
    def _reduced(tensor: Tensor, operation: Any) -> Tensor:
        result = tensor.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(result, operation)
        return result


ALONE = World()


def current_world() -> World:
    """The processes of this training: one, unless `torch.distributed` was initialised."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return ALONE
    return World(distributed.get_rank(), distributed.get_world_size())
