"""One pass over held-out rows for all dictionaries: which latents fire, and in which bins."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.dictionary import SavedDictionary, load_dictionary
from saelab.dictionary.site_rows import evaluated_rows
from saelab.model.devices import resolve_device
from saelab.progress import progress_bar
from saelab.stats.metrics import SparsityStatistics
from saelab.stats.moments import Moments

from ..alike import row_settings
from ..core.rows import blaming
from ..display import rounded
from ..subjects import Subject, by_data_spec, describe, load_models, origin_of, subjects_of
from ..suite import Measurement
from .baselines import BinnedChannels
from .bits import BinCounts, choose_bits, firing_bits, value_at
from .suite import DescriptionLengthConfig

LEVELS = 8
"""Widths of bins tried, each twice the one before."""
FINEST = 1 / 8
"""The first of them, in widths that would just use up the tolerance; a power of two below."""


class CodeBins:
    """Sums over rows of one dictionary: counts of bins, and the error with bins of each width.

    Args:
        saved: the dictionary.
        tolerance: share of its error that bins may add; sets which widths are tried.
    """

    def __init__(self, saved: SavedDictionary, tolerance: float):
        self.saved, self.tolerance = saved, tolerance
        self.norms = torch.linalg.vector_norm(saved.dictionary.W_dec, dim=1)
        self.sparsity = SparsityStatistics(saved.dictionary.d_sae, self.norms.device)
        self.counts = BinCounts(saved.dictionary.d_sae)
        self.widths: list[float] = []
        self.error = 0.0
        """Squared error of the codes as they are, summed over rows."""
        self.binned = [0.0] * LEVELS
        """The same with bins of each width."""

    @torch.no_grad()
    def update(
        self, inputs: Float[Tensor, "rows d_in"], targets: Float[Tensor, "rows d_out"]
    ) -> None:
        """Encode some rows and count."""
        dictionary = self.saved.dictionary
        with blaming(self.saved):
            codes = dictionary.encode(inputs)
            self.sparsity.update(codes)
        codes = codes.keep(codes.value > 0)
        error = _squared(targets - dictionary.decode(codes))
        self.error += error
        sizes = codes.contributions(self.norms)
        if not self.widths:
            self.widths = self._widths(error, targets, len(sizes))
        finest = (sizes / self.widths[0]).long()
        self.counts.add(codes.latent, finest)
        per_size = torch.where(sizes > 0, codes.value / sizes, 0.0)
        for level, width in enumerate(self.widths):
            index = torch.div(finest, 1 << level, rounding_mode="floor")
            middles = codes.with_value((index + 0.5) * width * per_size)
            self.binned[level] += _squared(targets - dictionary.decode(middles))

    def _widths(self, error: float, targets: Tensor, n_pairs: int) -> list[float]:
        """Widths around that which uses up the tolerance, if errors of pairs add up: powers of two,
        so that they hardly depend on how many rows come first."""
        allowed = self.tolerance * max(error, 1e-6 * _squared(targets))
        guess = math.sqrt(12 * allowed / max(n_pairs, 1)) or 1.0
        finest = 2.0 ** math.floor(math.log2(FINEST * guess))
        return [finest * 2**level for level in range(LEVELS)]

    def entropies(self) -> list[Float[Tensor, " d_sae"]]:
        """By width, the bits that a latent's strength takes when it fires."""
        counts, by_width = self.counts, []
        for _ in self.widths:
            by_width.append(counts.entropies())
            counts = counts.coarser()
        return by_width


def measure_description_length(
    folders: Sequence[Path], outs: Sequence[Path], config: DescriptionLengthConfig
) -> Iterator[Measurement]:
    """Measure dictionaries; everything that can be wrong is checked before the first pass.

    Raises:
        ConfigError: a dictionary whose decoder is never held at once.
        SaelabError: as `measure_core` says.
    """
    subjects = subjects_of([load_dictionary(folder) for folder in folders], outs, config)
    for subject in subjects:
        subject.saved.dictionary.require_whole()
    models = load_models([s for s in subjects if s.spec.adopted is None], config.device)
    for spec, group in by_data_spec(subjects).items():
        model = models[spec.model_key] if spec.adopted is None else None
        device = resolve_device(config.device) if model is None else model.device
        for subject in group:
            subject.saved.dictionary.to(device)
        sums = [CodeBins(subject.saved, config.tolerance) for subject in group]
        moments, kept = Moments(group[0].saved.dictionary.d_out, device=device), []
        with progress_bar(config.n_tokens, "encode", "tokens") as bar:
            for rows in evaluated_rows(model, spec, config.n_tokens, config.batch_contexts, device):
                for each in sums:
                    each.update(rows.inputs, rows.targets)
                kept.append(rows.targets[: config.n_baseline_rows - sum(map(len, kept))])
                moments.update(rows.targets)
                bar.update(rows.keep.numel())
        channels = BinnedChannels.of(torch.cat(kept))
        ways = {"channels": channels, "pca": channels.principal()}
        deviation = float(moments.deviation().sum())
        for subject, each in zip(group, sums, strict=True):
            yield _measurement(subject, each, deviation, ways, config)


def _measurement(
    subject: Subject,
    sums: CodeBins,
    deviation: float,
    ways: dict[str, BinnedChannels],
    config: DescriptionLengthConfig,
) -> Measurement:
    saved, sparsity = subject.saved, sums.sparsity
    density = sparsity.density().cpu()
    which, by_width = firing_bits(density), sums.entropies()
    strength = [float(density @ bits) for bits in by_width]
    fvu, binned = sums.error / deviation, [error / deviation for error in sums.binned]
    allowed = (1 + config.tolerance) * fvu
    at_tolerance = {
        name: value_at(allowed, binned, values, fvu)
        for name, values in {
            "bits_strength": strength,
            "bin_width": [math.log2(width) for width in sums.widths],
        }.items()
    }
    bits, log_width = at_tolerance.values()
    in_all = None if bits is None else float(which.sum()) + bits
    numbers: dict[str, Any] = {
        "bits_per_token": in_all,
        "bits_which": float(which.sum()),
        "bits_strength": bits,
        "bin_width": None if log_width is None else 2**log_width,
        "fvu": fvu,
        "fvu_binned": allowed,
        "bits_which_sets": choose_bits(sparsity.l0_histogram, int((density > 0).sum())),
        "l0_mean": sparsity.values()["l0_mean"],
        "n_alive": int((density > 0).sum()),
        "n_rows": sparsity.n_rows,
    }
    for name, way in ways.items():
        others = way.bits(allowed)
        numbers[f"bits_{name}"] = others
        numbers[f"share_of_{name}"] = in_all / others if in_all is not None and others else None
    # What a latent costs, at the widest bins that the tolerance allows of those tried.
    level = max((i for i, error in enumerate(binned) if error <= allowed), default=0)
    return Measurement(
        name=saved.name,
        content_hash=saved.content_hash,
        out=subject.out,
        numbers=numbers,
        made_from=origin_of(subject),
        settings={**row_settings(subject.spec), "split": "held_out"},
        facts={
            "n_rows": sparsity.n_rows,
            "n_baseline_rows": len(ways["pca"].rows),
            "tolerance": f"{config.tolerance:g}",
        },
        data={
            "fvu": rounded(binned),
            "bits": rounded(float(which.sum()) + bits for bits in strength),
            "bits_pca": [ways["pca"].bits(error) for error in binned],
            "without": fvu,
        },
        rows={
            "latents": {
                "latent": range(len(density)),
                "density": density.tolist(),
                "bits_which": which.tolist(),
                "bits_strength": by_width[level].tolist(),
            }
        },
        title=f"Description length of {saved.name}",
        subtitle=f"{describe(saved)}. {subject.spec.in_words}.",
        notes=(_what_is_given(saved),),
    )


def _what_is_given(saved: SavedDictionary) -> str:
    dictionary = saved.dictionary
    row = torch.zeros(1, dictionary.d_in, device=dictionary.b_dec.device)
    given = [
        words
        for words, value in (
            ("its scale", dictionary.row_scale(row)),
            ("its mean or skip", dictionary.row_offset(row)),
        )
        if value is not None
    ]
    if not given:
        return "Nothing but codes is sent."
    return f"Not counted: each row's decoder is also given {' and '.join(given)}."


def _squared(rows: Tensor) -> float:
    return float(rows.square().sum(dtype=torch.float64))
