"""Reconstruction and sparsity: one pass over the held-out text for all dictionaries at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.cache.aligned import open_caches
from saelab.dictionary import SavedDictionary
from saelab.dictionary.data_spec import DataSpec
from saelab.dictionary.site_rows import SiteRows, evaluated_rows
from saelab.errors import ActivationError, ArtifactError, SaelabError
from saelab.formats.run import read_run
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar
from saelab.stats.metrics import ReconstructionStatistics, SparsityStatistics, require_finite

from ..subjects import widths_written
from .config import CoreConfig

POSITION_BINS = 64
MOST_TRAINING_ROWS = 16_384
TRAINING_BATCH = 4096


@dataclass
class RowFindings:
    """Statistics of the evaluated rows, per dictionary in the order given."""

    reconstruction: list[ReconstructionStatistics]
    """Errors of each dictionary, grouped by position bin."""
    sparsity: list[SparsityStatistics]
    """Codes of each dictionary."""
    position_bin: Int[Tensor, " seq"]
    """The bin of each position in the context."""
    by_hook_point: list[list[ReconstructionStatistics]] = field(default_factory=list)
    """Errors of each dictionary at each hook point that is written, where there are several."""
    n_contexts: int = 0
    """Contexts run."""
    n_tokens: int = 0
    """Tokens run, excluded rows included; padding is none."""
    excluded: dict[str, int] = field(default_factory=dict)
    """Rows excluded, by the first reason that applies."""

    def mean(self) -> Float[Tensor, " d_out"]:
        """Mean of what is to be written on the evaluated rows, float64."""
        return self.reconstruction[0].moments.mean()


def measure_rows(
    model: LanguageModel | None,
    spec: DataSpec,
    dictionaries: Sequence[SavedDictionary],
    config: CoreConfig,
    device: torch.device,
) -> RowFindings:
    """Run the model once over the text, up to the last hook point, and reconstruct every row.

    Without a model the rows are those of adopted caches.

    Raises:
        ActivationError: activations that are not finite, or no row is left.
        ArtifactError: a dictionary whose output is not finite.
        TextError: too little text.
    """
    n_bins = min(POSITION_BINS, spec.context_length)
    widths = widths_written(model, spec) if len(spec.site.writes) > 1 else []
    positions = torch.arange(spec.context_length, device=device)
    findings = RowFindings(
        reconstruction=[
            ReconstructionStatistics(saved.dictionary.d_out, n_bins, device)
            for saved in dictionaries
        ],
        sparsity=[SparsityStatistics(saved.dictionary.d_sae, device) for saved in dictionaries],
        position_bin=positions * n_bins // spec.context_length,
        by_hook_point=[
            [ReconstructionStatistics(width, device=device) for width in widths]
            for _ in dictionaries
        ],
    )
    with progress_bar(config.n_tokens, "reconstruct", "tokens") as bar:
        for rows in evaluated_rows(model, spec, config.n_tokens, config.batch_contexts, device):
            _add_batch(findings, dictionaries, rows)
            bar.update(rows.keep.numel())
    return findings


@torch.no_grad()
def _add_batch(
    findings: RowFindings, dictionaries: Sequence[SavedDictionary], rows: SiteRows
) -> None:
    group = findings.position_bin.expand(rows.keep.shape)[rows.keep]
    for saved, reconstruction, sparsity, parts in zip(
        dictionaries,
        findings.reconstruction,
        findings.sparsity,
        findings.by_hook_point,
        strict=True,
    ):
        with blaming(saved):
            codes = saved.dictionary.encode(rows.inputs)
            sparsity.update(codes)
            written = saved.dictionary.decode(codes)
            reconstruction.update(rows.targets, written, group)
            if parts:
                widths = [part.moments.mean_by_group.shape[1] for part in parts]
                columns = (each.split(widths, dim=1) for each in (rows.targets, written))
                for part, target, hat in zip(parts, *columns, strict=True):
                    part.update(target, hat)
    findings.n_contexts += rows.keep.shape[0]
    findings.n_tokens += rows.keep.numel() - rows.excluded.get("padding", 0)
    for reason, count in rows.excluded.items():
        findings.excluded[reason] = findings.excluded.get(reason, 0) + count


def training_fvu(saved: SavedDictionary, device: torch.device) -> tuple[float, int] | None:
    """FVU on rows it was trained on, at even distances in its cache, and how many they are.

    None where the cache that its run names is not there or has changed, or where training ended
    before it had read all of it.
    """
    try:
        run = read_run(saved.folder.resolve().parent.parent)
        caches = open_caches(Path(run.config["cache"]), saved.site, verify=False)
        if (
            caches.content_hash != saved.made_from["cache_hash"]
            or saved.manifest["config"]["n_tokens"] < caches.n_rows
        ):
            return None
    except (SaelabError, KeyError, TypeError):
        return None
    n_rows = min(MOST_TRAINING_ROWS, caches.n_rows)
    errors = ReconstructionStatistics(saved.dictionary.d_out, device=device)
    for rows in (torch.arange(n_rows) * caches.n_rows // n_rows).split(TRAINING_BATCH):
        batch = caches.rows(rows, with_gradients=False)
        targets = batch.activations if batch.targets is None else batch.targets
        errors.update(targets.to(device), reconstruct(saved, batch.activations.to(device)))
    return float(errors.values()["fvu"]), n_rows


def reconstruct(
    saved: SavedDictionary, rows: Float[Tensor, "batch d_in"]
) -> Float[Tensor, "batch d_out"]:
    """A dictionary's reconstruction, refused where it is not finite.

    Raises:
        ArtifactError: the reconstruction holds NaN or infinity.
    """
    with blaming(saved):
        reconstruction = saved.dictionary(rows)
        require_finite(reconstruction, "the reconstruction")
    return reconstruction


@contextmanager
def blaming(saved: SavedDictionary) -> Iterator[None]:
    """Name the dictionary in errors about its output."""
    try:
        yield
    except ActivationError as error:
        raise ArtifactError(
            f"dictionary {saved.folder} cannot be evaluated: {error}; train it again or check its "
            "weights"
        ) from error
