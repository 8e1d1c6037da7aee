"""Texts whose next-token loss is measured again and again, each time with other latents clamped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.dictionary import SavedDictionary
from saelab.dictionary.data_spec import DataSpec
from saelab.dictionary.site_rows import SiteRows, site_rows, splice_at
from saelab.model.language_model import LanguageModel
from saelab.sparse import SparseCodes
from saelab.stats.metrics import require_finite
from saelab.text.contexts import TextBatch

from ..core.rows import blaming
from .latents import Clamp, clamp_changes

Splice = Mapping[str, Callable[[Tensor], Tensor]]


class JudgedText:
    """Windows of text, the model's rows on them, and its loss as it is.

    Args:
        model: the model.
        spec: site and token filter; rows that it leaves out (BOS, special tokens, huge norms) keep
            their activation.
        text: the windows.
        counted: [windows seq-1], the positions whose loss counts; None: all that predict text.
        batch_contexts: windows in one pass.

    Attributes:
        clean: [windows], the untouched model's loss summed over counted positions, nats, float64.
        positions: [windows], how many these are.
    """

    def __init__(
        self,
        model: LanguageModel,
        spec: DataSpec,
        text: TextBatch,
        batch_contexts: int,
        counted: Bool[Tensor, "windows predictions"] | None = None,
    ):
        self.model, self.spec = model, spec
        self.text, self.counted = text, text.predicted() if counted is None else counted
        self.positions = self.counted.sum(1).double()
        self.slices = [
            slice(start, start + batch_contexts) for start in range(0, len(text), batch_contexts)
        ]
        self.rows: list[SiteRows] = []
        clean = []
        for part in self.slices:
            batch, loss = text[part], None
            output = model.run(batch.tokens, capture=spec.site.hook_points)
            loss = self._summed(output.loss, self.counted[part])
            clean.append(loss)
            self.rows.append(site_rows(model, spec, batch, output.activations, part.start))
        self.clean = torch.cat(clean)

    @torch.no_grad()
    def encoded(self, saved: SavedDictionary) -> list[SparseCodes]:
        """A dictionary's codes of the rows of each pass.

        Raises:
            ArtifactError: codes that are not finite.
        """
        with blaming(saved):
            return [saved.dictionary.encode(rows.inputs) for rows in self.rows]

    @torch.no_grad()
    def clamped(
        self, codes: Sequence[SparseCodes], W_dec: Float[Tensor, "d_sae d_out"], clamp: Clamp
    ) -> Float[Tensor, " windows"]:
        """Loss of each window with latents clamped, summed as `clean` is.

        Windows in which none of them fires have the untouched model's loss and are not run.

        Args:
            codes: of the rows of each pass, as `encoded` gives them.
            W_dec: the decoder.
            clamp: which latents, and what they are held at.

        Raises:
            ActivationError: losses that are not finite.
        """
        losses = self.clean.clone()
        for part, rows, of_pass in zip(self.slices, self.rows, codes, strict=True):
            hit, changes = clamp_changes(of_pass, W_dec, clamp)
            if not len(hit):
                continue
            at = torch.zeros_like(rows.keep)
            at[tuple(rows.keep.nonzero()[hit].T)] = True
            touched = at.any(1)
            splice = splice_at(self.model, self.spec.site, at[touched], rows.targets[hit] + changes)
            windows = torch.arange(len(self.clean))[part][touched.cpu()]
            loss = self.model.run(self.text.tokens[windows], splice).loss
            losses[windows] = self._summed(loss, self.counted[windows])
        return losses

    @torch.no_grad()
    def replaced(self, row: Float[Tensor, " d_out"]) -> Float[Tensor, " windows"]:
        """Loss of each window with one row in place of all, summed as `clean` is."""
        losses = []
        for part, rows in zip(self.slices, self.rows, strict=True):
            splice = splice_at(
                self.model, self.spec.site, rows.keep, row.to(rows.targets).expand_as(rows.targets)
            )
            loss = self.model.run(self.text.tokens[part], splice).loss
            losses.append(self._summed(loss, self.counted[part]))
        return torch.cat(losses)

    @staticmethod
    def _summed(
        loss: Float[Tensor, "windows predictions"], counted: Bool[Tensor, "windows predictions"]
    ) -> Float[Tensor, " windows"]:
        loss = loss.cpu().double().where(counted, 0)
        require_finite(loss, "the model's loss")
        return loss.sum(1)
