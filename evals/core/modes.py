"""The inference modes of dictionaries trained with `gradient_topk`, measured beside one another.

On the tokens on which losses are measured: plain top-k, the threshold mode, the gradient-assisted
mode, and a control of it. The gradient-assisted mode sees the labels: its gradient is of the loss
of the true next tokens, taken on the clean model at the very tokens it is judged on. Its numbers
therefore stand apart, under names of their own. The control gives each row the gradient of a row of
the context before, which knows nothing of the row's own next tokens (with a single context it is
one of the same context). It depends on a seed and not on how contexts are batched.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.cache.rows import capture_with_gradients
from saelab.dictionary import InferenceModes, SavedDictionary, has_inference_modes
from saelab.dictionary.data_spec import DataSpec
from saelab.dictionary.site_rows import select, splice_at
from saelab.errors import ArtifactError
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar
from saelab.sparse import SparseCodes
from saelab.stats.metric_definitions import INFERENCE_MODES
from saelab.stats.metrics import ReconstructionStatistics, kl_divergence, require_finite
from saelab.text.contexts import TextBatch

from .config import CoreConfig
from .losses import LossFindings, summed_loss
from .rows import blaming

logger = logging.getLogger(__name__)

PLAIN, THRESHOLD, ASSISTED, SHUFFLED = INFERENCE_MODES
SHUFFLE_SEED = 0
"""Seeds, with the index of the context, which row's gradient a row takes in the control."""


@dataclass
class ModeSums:
    """What one mode did, summed over rows or predicted positions."""

    reconstruction: ReconstructionStatistics
    """Errors on the evaluated rows."""
    active: int = 0
    """Positive codes on these rows."""
    spliced: float = 0.0
    """Summed loss with the reconstruction spliced in, nats."""
    kl: float = 0.0
    """Summed KL(clean || spliced), nats."""


@dataclass(frozen=True)
class ModeFindings:
    """What the modes of one dictionary did."""

    saved: SavedDictionary
    """The dictionary."""
    modes: InferenceModes
    """Its modes."""
    sums: dict[str, ModeSums]
    """By the names in `INFERENCE_MODES`."""

    @staticmethod
    def at_start(
        saved: SavedDictionary, modes: InferenceModes, losses: LossFindings, index: int
    ) -> ModeFindings:
        """Nothing yet, but for what splicing the plain mode was found to cost."""
        device = saved.dictionary.W_dec.device
        sums = {
            mode: ModeSums(ReconstructionStatistics(saved.dictionary.d_in, device=device))
            for mode in INFERENCE_MODES
        }
        sums[PLAIN].spliced = float(losses.spliced[index].sum())
        sums[PLAIN].kl = float(losses.kl[index].sum())
        return ModeFindings(saved, modes, sums)

    def codes(
        self,
        rows: Float[Tensor, "rows d_in"],
        gradients: Float[Tensor, "rows d_in"],
        others: Float[Tensor, "rows d_in"],
    ) -> dict[str, SparseCodes]:
        """The codes of each mode; `others` are the gradients of the control."""
        return {
            PLAIN: self.modes.plain(rows),
            THRESHOLD: self.modes.threshold(rows),
            ASSISTED: self.modes.gradient_assisted(rows, gradients),
            SHUFFLED: self.modes.gradient_assisted(rows, others),
        }


def measure_modes(
    model: LanguageModel,
    spec: DataSpec,
    dictionaries: Sequence[SavedDictionary],
    losses: LossFindings,
    config: CoreConfig,
) -> dict[int, ModeFindings]:
    """Measure the modes of those dictionaries that have them, in one more pass over the text.

    A dictionary whose recorded settings cannot be used is named in a warning and left out: what
    else is measured of it stands. One that reads and writes different hook points has no modes: its
    selection is by gradients at what is written, which the modes do not know.

    Args:
        losses: of the same dictionaries on the same tokens, the plain mode's among them.

    Returns:
        Place in `dictionaries` -> findings; empty, without a pass, where none has modes.

    Raises:
        ActivationError: activations, gradients or losses that are not finite.
        ArtifactError: a dictionary whose output is not finite.
    """
    findings = {
        index: ModeFindings.at_start(saved, modes, losses, index)
        for index, saved in enumerate(dictionaries)
        if (modes := _modes_of(saved)) is not None
    }
    if not findings:
        return {}
    text, step = losses.windows.text, config.batch_contexts
    batches = [text[start : start + step] for start in range(0, len(text), step)]
    donor = _last_gradients(model, spec, batches)
    first_context = 0
    with progress_bar(text.tokens.numel(), "inference modes", "tokens") as bar:
        for batch in batches:
            captured = _Captured.of(model, spec, batch, first_context)
            others, donor = captured.shuffled(donor, first_context)
            _add_batch([*findings.values()], model, spec, captured, others)
            first_context += len(batch)
            bar.update(batch.tokens.numel())
    return findings


def _modes_of(saved: SavedDictionary) -> InferenceModes | None:
    if not has_inference_modes(saved) or len(saved.site.hook_points) > 1:
        return None
    try:
        return InferenceModes(saved)
    except ArtifactError as error:
        logger.warning("inference modes are left out of the result: %s", error)
        return None


@dataclass(frozen=True)
class _Captured:
    """The evaluated rows of some contexts and the gradients that belong to them."""

    text: TextBatch
    keep: Bool[Tensor, "batch seq"]
    rows: Float[Tensor, "rows d_in"]
    gradients: Float[Tensor, "rows d_in"]

    @staticmethod
    def of(
        model: LanguageModel,
        spec: DataSpec,
        batch: TextBatch,
        first_context: int,
    ) -> _Captured:
        hook_point = spec.hook_point
        activations, gradients = capture_with_gradients(model, batch, [hook_point])[hook_point]
        keep, _ = select(model, spec, batch, {hook_point: activations}, first_context)
        require_finite(gradients[keep], "the gradient of the model's loss")
        return _Captured(batch, keep, activations[keep].float(), gradients[keep].float())

    def shuffled(
        self, donor: Float[Tensor, "others d_in"], first_context: int
    ) -> tuple[Float[Tensor, "rows d_in"], Float[Tensor, "some d_in"]]:
        """For each row a gradient of the context before its own, and the donor of the next batch.

        Args:
            donor: the gradients of the context before the first of these.
            first_context: index of the first of these in the text.
        """
        parts = []
        for index, of_context in enumerate(self.gradients.split(self.keep.sum(1).tolist())):
            generator = torch.Generator().manual_seed(SHUFFLE_SEED + first_context + index)
            order = torch.randperm(len(donor), generator=generator)
            # Contexts differ in their number of rows: a shorter donor gives some gradients twice.
            order = order.repeat(-(-len(of_context) // max(1, len(donor))))[: len(of_context)]
            parts.append(donor[order.to(donor.device)])
            donor = of_context if len(of_context) else donor
        return torch.cat(parts), donor


def _last_gradients(
    model: LanguageModel, spec: DataSpec, batches: Sequence[TextBatch]
) -> Float[Tensor, "rows d_in"]:
    """The gradients of the last context that has evaluated rows; none where no context has."""
    gradients = torch.zeros(0, model.width_at(spec.hook_point), device=model.device)
    contexts = [batch[at : at + 1] for batch in batches for at in range(len(batch))]
    for index in reversed(range(len(contexts))):
        gradients = _Captured.of(model, spec, contexts[index], index).gradients
        if len(gradients):
            break
    return gradients


@torch.no_grad()
def _add_batch(
    findings: Sequence[ModeFindings],
    model: LanguageModel,
    spec: DataSpec,
    captured: _Captured,
    others: Float[Tensor, "rows d_in"],
) -> None:
    text = captured.text
    clean_logits = text.of_text(model.run(text.tokens).logits[:, :-1])
    for finding in findings:
        codes_of = finding.codes(captured.rows, captured.gradients, others)
        for mode, codes in codes_of.items():
            sums = finding.sums[mode]
            with blaming(finding.saved):
                reconstruction = finding.modes.dictionary.decode(codes)
                sums.reconstruction.update(captured.rows, reconstruction)
            sums.active += int(codes.l0().sum())
            if mode == PLAIN:
                # Its splice was run where losses are measured.
                continue
            splice = splice_at(model, spec.site, captured.keep, reconstruction)
            output = model.run(text.tokens, splice)
            sums.spliced += summed_loss(text.of_text(output.loss))
            logits = text.of_text(output.logits[:, :-1])
            sums.kl += kl_divergence(clean_logits, logits).sum().item()
