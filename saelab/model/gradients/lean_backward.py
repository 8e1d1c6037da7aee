"""The backward passes by hand that hold for one model; forward values stay the model's own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from .attention_backward import AttentionByHand
from .norm_backward import closed_form, rms_epsilon

logger = logging.getLogger(__name__)


class LeanBackward:
    """Attention and RMS norms of one model, differentiated with respect to activations only.

    Args:
        model: a model with frozen weights.
    """

    def __init__(self, model: nn.Module):
        epsilons = ((module, rms_epsilon(module)) for module in model.modules())
        self._norms = {module: epsilon for module, epsilon in epsilons if epsilon is not None}
        logger.debug("%d RMS norms are differentiated in closed form", len(self._norms))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within, the model's forward pass records these backward passes."""
        with ExitStack() as stack:
            stack.enter_context(AttentionByHand())
            for module, epsilon in self._norms.items():
                stack.enter_context(closed_form(module, epsilon))
            yield
