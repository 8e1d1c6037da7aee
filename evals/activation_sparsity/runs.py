"""The held-out windows, run again and again with other activations in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.model.language_model import LanguageModel
from saelab.text.windows import DocumentWindows

from ..core.losses import summed_loss

Splice = Mapping[str, Callable[[Tensor], Tensor]]


class WindowRuns:
    """Passes over the same windows.

    Args:
        model: the model.
        windows: the text.
        batch_contexts: windows in one pass.
    """

    def __init__(self, model: LanguageModel, windows: DocumentWindows, batch_contexts: int):
        self.model = model
        self.n_contexts = len(windows.text)
        starts = range(0, self.n_contexts, batch_contexts)
        self.batches = [windows.text[start : start + batch_contexts] for start in starts]
        self.n_positions = sum(
            int(batch.of_text(torch.ones(len(batch), batch.tokens.shape[1] - 1)).numel())
            for batch in self.batches
        )

    @torch.no_grad()
    def loss(self, splice: Callable[[int], Splice]) -> float:
        """Mean next-token loss over predicted positions, nats.

        Args:
            splice: index of the batch -> what `LanguageModel.run` takes.
        """
        total = 0.0
        for index, batch in enumerate(self.batches):
            total += summed_loss(batch.of_text(self.model.run(batch.tokens, splice(index)).loss))
        return total / self.n_positions

    def capture(
        self, model: LanguageModel, names: Sequence[str], n_tokens: int
    ) -> dict[str, Float[Tensor, "tokens _"]]:
        """Activations of the first tokens, of another model too, without the first of a window."""
        kept: dict[str, list[Tensor]] = {name: [] for name in names}
        for batch in self.batches:
            text = batch.tokens[:, 1:].clone()
            counts = torch.ones_like(text, dtype=torch.bool)
            if batch.left_out is not None:
                counts = batch.left_out[:, 1:] == 0
            for name, x in model.capture(batch.tokens, names).items():
                kept[name].append(x[:, 1:][counts].float())
            if sum(map(len, kept[names[0]])) >= n_tokens:
                break
        return {name: torch.cat(parts)[:n_tokens] for name, parts in kept.items()}
