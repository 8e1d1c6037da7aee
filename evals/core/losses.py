"""What replacing an activation costs the model: next-token loss and KL under four conditions.

Measured on short windows of as many held-out documents as there are, and summed by document: loss
recovered differs more between documents than between seeds. Rows that the rule excludes keep their
original activation in every condition, spliced and ablated alike, so that the conditions differ in
nothing but the replacement of the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.dictionary import SavedDictionary
from saelab.dictionary.data_spec import DataSpec
from saelab.dictionary.site_rows import site_rows, splice_at
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar
from saelab.stats.metrics import kl_divergence, loss_recovered, require_finite
from saelab.text.windows import DocumentWindows, document_windows

from ..document_sums import SUMS, intervals
from .config import WINDOW, CoreConfig
from .rows import reconstruct


@dataclass
class LossFindings:
    """Losses summed over the predicted positions of each document, in float64.

    Where there is one for each dictionary, in the order given.
    """

    windows: DocumentWindows
    """The text."""
    positions: Float[Tensor, " documents"]
    """Predicted positions summed over."""
    clean: Float[Tensor, " documents"]
    """Loss of the untouched model, nats."""
    zero_ablation: Float[Tensor, " documents"]
    """Loss with zero in place of the rows, nats."""
    spliced: Float[Tensor, "dictionaries documents"]
    """Loss with the reconstruction spliced in, nats."""
    mean_ablation: Float[Tensor, "dictionaries documents"]
    """Loss with the dictionary's mean in place of the rows, nats."""
    kl: Float[Tensor, "dictionaries documents"]
    """KL(clean || spliced), nats."""
    n_replaced: int = 0
    """Rows replaced in each condition but the clean one."""
    excluded: dict[str, int] = field(default_factory=dict)
    """Rows that kept their activation, by the first reason that applies."""

    @staticmethod
    def at_start(windows: DocumentWindows, n_dictionaries: int) -> LossFindings:
        """Nothing yet."""
        n_documents = len(windows.names)
        positions, clean, zero = torch.zeros(3, n_documents, dtype=torch.float64)
        spliced, mean, kl = torch.zeros(3, n_dictionaries, n_documents, dtype=torch.float64)
        return LossFindings(windows, positions, clean, zero, spliced, mean, kl)

    @property
    def n_positions(self) -> int:
        """Predicted positions of all documents."""
        return int(self.positions.sum())

    def sums(self, index: int) -> dict[str, Float[Tensor, " documents"]]:
        """The sums of one dictionary, as `document_sums` reads them."""
        of_all = (self.positions, self.clean, self.zero_ablation)
        of_dictionary = (self.spliced[index], self.mean_ablation[index], self.kl[index])
        return dict(zip(SUMS, (*of_all, *of_dictionary), strict=True))

    def values(self, index: int) -> dict[str, float | None]:
        """The group "Effect on the model" for one dictionary, by metric name."""
        positions, *sums = (float(column.sum()) for column in self.sums(index).values())
        clean, zero, spliced, mean, kl = (column / positions for column in sums)
        return {
            "loss_clean": clean,
            "loss_spliced": spliced,
            "loss_zero_ablation": zero,
            "loss_mean_ablation": mean,
            "loss_recovered_zero": loss_recovered(clean, spliced, zero),
            "loss_recovered_mean": loss_recovered(clean, spliced, mean),
            "kl": kl,
            **intervals(torch.stack([*self.sums(index).values()], dim=1)),
        }


def windows_of(model: LanguageModel, spec: DataSpec, n_tokens: int) -> DocumentWindows:
    """The held-out windows that losses are measured on, `n_tokens` rounded up to windows."""
    length = min(WINDOW, spec.context_length)
    return document_windows(spec.text, model, length=length, n_windows=-(-n_tokens // length))


def measure_losses(
    model: LanguageModel,
    spec: DataSpec,
    dictionaries: Sequence[SavedDictionary],
    means: Sequence[Float[Tensor, " d_in"]],
    config: CoreConfig,
) -> LossFindings:
    """Run the model clean, ablated and with every dictionary spliced in.

    The clean and zero-ablated passes are shared by all dictionaries, the mean-ablated one by those
    with the same mean.

    Args:
        means: per dictionary, what mean ablation puts in place of the rows.

    Raises:
        ActivationError: activations or losses that are not finite.
        ArtifactError: a dictionary whose output is not finite.
        TextError: nothing is held out.
    """
    windows = windows_of(model, spec, config.loss_tokens)
    findings = LossFindings.at_start(windows, len(dictionaries))
    with progress_bar(windows.text.tokens.numel(), "splice", "tokens") as bar:
        for start in range(0, len(windows.text), config.batch_contexts):
            _add_batch(findings, model, spec, dictionaries, means, start, config.batch_contexts)
            bar.update(windows.text[start : start + config.batch_contexts].tokens.numel())
    return findings


@torch.no_grad()
def _add_batch(
    findings: LossFindings,
    model: LanguageModel,
    spec: DataSpec,
    dictionaries: Sequence[SavedDictionary],
    means: Sequence[Float[Tensor, " d_in"]],
    start: int,
    n_windows: int,
) -> None:
    batch = findings.windows.text[start : start + n_windows]
    clean = model.run(batch.tokens, capture=spec.site.hook_points)
    rows = site_rows(model, spec, batch, clean.activations, start)
    clean_logits, clean_loss = batch.of_text(clean.logits[:, :-1]), batch.of_text(clean.loss)
    of_windows = findings.windows.document[start : start + n_windows, None]
    document = batch.of_text(of_windows.expand(clean.loss.shape)).flatten()

    def add(sums: Tensor, per_position: Tensor) -> None:
        require_finite(per_position, "the model's loss")
        sums.index_add_(0, document, per_position.flatten().cpu().double())

    def run(replacement: Tensor) -> tuple[Tensor, Tensor]:
        output = model.run(batch.tokens, splice_at(model, spec.site, rows.keep, replacement))
        return batch.of_text(output.logits[:, :-1]), batch.of_text(output.loss)

    add(findings.positions, torch.ones(len(document)))
    add(findings.clean, clean_loss)
    add(findings.zero_ablation, run(torch.zeros_like(rows.targets))[1])
    # Equal means give equal losses: run each once, whichever dictionaries share it.
    mean_loss: dict[bytes, Tensor] = {}
    for index, (saved, mean) in enumerate(zip(dictionaries, means, strict=True)):
        key = mean.cpu().numpy().tobytes()
        if key not in mean_loss:
            mean_loss[key] = run(mean.expand_as(rows.targets))[1]
        add(findings.mean_ablation[index], mean_loss[key])
        logits, loss = run(reconstruct(saved, rows.inputs))
        add(findings.spliced[index], loss)
        add(findings.kl[index], kl_divergence(clean_logits, logits))
    findings.n_replaced += len(rows.targets)
    for reason, count in rows.excluded.items():
        findings.excluded[reason] = findings.excluded.get(reason, 0) + count


def summed_loss(loss: Float[Tensor, "*positions"]) -> float:
    """Losses added up in float64, nats.

    Raises:
        ActivationError: a loss is not finite.
    """
    require_finite(loss, "the model's loss")
    return loss.sum(dtype=torch.float64).item()
