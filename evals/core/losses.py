"""What replacing an activation costs the model: next-token loss and KL under four conditions.

Rows that the rule excludes keep their original activation in every condition, spliced and ablated
alike, so that the conditions differ in nothing but the replacement of the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.dictionary import SavedDictionary
from saelab.dictionary.data_spec import DataSpec
from saelab.dictionary.site_rows import held_out_batches, site_rows, splice_at
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar
from saelab.stats.metrics import kl_divergence, loss_recovered, require_finite
from saelab.text.contexts import TextBatch

from .config import CoreConfig
from .rows import reconstruct


@dataclass
class LossFindings:
    """Summed losses over predicted positions; lists are per dictionary in the order given."""

    spliced: list[float]
    """Summed loss with the reconstruction spliced in, nats."""
    mean_ablation: list[float]
    """Summed loss with the dictionary's mean in place of the rows, nats."""
    kl: list[float]
    """Summed KL(clean || spliced), nats."""
    clean: float = 0.0
    """Summed loss of the untouched model, nats."""
    zero_ablation: float = 0.0
    """Summed loss with zero in place of the rows, nats."""
    n_contexts: int = 0
    """Contexts run."""
    n_positions: int = 0
    """Predicted positions summed over."""
    n_replaced: int = 0
    """Rows replaced in each condition but the clean one."""
    excluded: dict[str, int] = field(default_factory=dict)
    """Rows that kept their activation, by the first reason that applies."""

    def values(self, index: int) -> dict[str, float | None]:
        """The group "Effect on the model" for one dictionary, by metric name."""
        n = self.n_positions
        clean, spliced = self.clean / n, self.spliced[index] / n
        zero, mean = self.zero_ablation / n, self.mean_ablation[index] / n
        return {
            "loss_clean": clean,
            "loss_spliced": spliced,
            "loss_zero_ablation": zero,
            "loss_mean_ablation": mean,
            "loss_recovered_zero": loss_recovered(clean, spliced, zero),
            "loss_recovered_mean": loss_recovered(clean, spliced, mean),
            "kl": self.kl[index] / n,
        }


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
    """
    zeros = [0.0] * len(dictionaries)
    findings = LossFindings(spliced=[*zeros], mean_ablation=[*zeros], kl=[*zeros])
    batches = held_out_batches(model, spec, config.loss_tokens, config.batch_contexts)
    with progress_bar(config.loss_tokens, "splice", "tokens") as bar:
        for batch in batches:
            _add_batch(findings, model, spec, dictionaries, means, batch)
            bar.update(batch.tokens.numel())
    return findings


@torch.no_grad()
def _add_batch(
    findings: LossFindings,
    model: LanguageModel,
    spec: DataSpec,
    dictionaries: Sequence[SavedDictionary],
    means: Sequence[Float[Tensor, " d_in"]],
    batch: TextBatch,
) -> None:
    clean = model.run(batch.tokens, capture=spec.site.hook_points)
    rows = site_rows(model, spec, batch, clean.activations, findings.n_contexts)
    clean_logits, clean_loss = batch.of_text(clean.logits[:, :-1]), batch.of_text(clean.loss)

    def run(replacement: Tensor) -> tuple[Tensor, float]:
        output = model.run(batch.tokens, splice_at(model, spec.site, rows.keep, replacement))
        return batch.of_text(output.logits[:, :-1]), summed_loss(batch.of_text(output.loss))

    findings.clean += summed_loss(clean_loss)
    findings.zero_ablation += run(torch.zeros_like(rows.targets))[1]
    # Equal means give equal losses: run each once, whichever dictionaries share it.
    mean_loss: dict[bytes, float] = {}
    for index, (saved, mean) in enumerate(zip(dictionaries, means, strict=True)):
        key = mean.cpu().numpy().tobytes()
        if key not in mean_loss:
            mean_loss[key] = run(mean.expand_as(rows.targets))[1]
        findings.mean_ablation[index] += mean_loss[key]
        logits, loss = run(reconstruct(saved, rows.inputs))
        findings.spliced[index] += loss
        findings.kl[index] += kl_divergence(clean_logits, logits).sum().item()
    findings.n_contexts += len(batch)
    findings.n_positions += clean_loss.numel()
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
