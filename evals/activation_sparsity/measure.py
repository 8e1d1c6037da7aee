"""The latents of dictionaries: spliced in with their smallest contributions dropped."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from saelab.dictionary import SavedDictionary, load_dictionary
from saelab.dictionary.data_spec import DataSpec
from saelab.dictionary.site_rows import SiteRows, site_rows, splice_at
from saelab.memory import keep_freed_memory
from saelab.model.language_model import LanguageModel
from saelab.sparse import SparseCodes
from saelab.stats.seeds import seeded_generator

from ..alike import row_settings
from ..core.losses import windows_of
from ..core.rows import blaming
from ..subjects import Subject, by_data_spec, describe, load_models, origin_of, subjects_of
from ..suite import Measurement
from .neurons import measure_neurons
from .runs import Splice, WindowRuns
from .search import largest_within, smallest
from .suite import ActivationSparsityConfig

NO_NEURONS = "The model's MLPs have no neurons that one linear layer reads: they are left out."
DROPS = {"threshold": "of all tokens together", "token": "of each token, the same share of each"}


def measure_activation_sparsity(
    folders: Sequence[Path], outs: Sequence[Path], config: ActivationSparsityConfig
) -> Iterator[Measurement]:
    """Measure dictionaries; the model's MLPs are searched once for all of one data spec.

    Raises:
        ConfigError: activations without a model, or a decoder that is never held at once.
        ModelError: a model that predicts no next token.
        SaelabError: as `measure_core` says.
    """
    asked = replace(config, model_dtype=config.model_dtype or "float32")
    subjects = subjects_of([load_dictionary(folder) for folder in folders], outs, asked)
    for subject in subjects:
        subject.saved.dictionary.require_whole()
    models = load_models(subjects, config.device)
    keep_freed_memory()
    for spec, group in by_data_spec(subjects).items():
        model = models[spec.model_key]
        model.require_next_token("perplexities")
        runs = WindowRuns(
            model, windows_of(model, spec, config.n_loss_tokens), config.batch_contexts
        )
        of_model = measure_neurons(model, spec, runs, config) if config.mlps else None
        rows = _rows_of(model, spec, runs)
        for subject in group:
            subject.saved.dictionary.to(model.device)
            spliced = SplicedCodes(subject.saved, spec, runs, rows)
            numbers = spliced.search(config)
            tables = []
            if of_model is not None:
                numbers |= of_model[0]
                tables.append(of_model[1])
            yield _measurement(subject, numbers, tables, config, missing=of_model is None)


@torch.no_grad()
def _rows_of(model: LanguageModel, spec: DataSpec, runs: WindowRuns) -> list[SiteRows]:
    rows, first = [], 0
    for batch in runs.batches:
        captured = model.capture(batch.tokens, spec.site.hook_points)
        rows.append(site_rows(model, spec, batch, captured, first))
        first += len(batch)
    return rows


class SplicedCodes:
    """A dictionary's codes on all windows, spliced in with any of them dropped.

    Args:
        saved: the dictionary.
        spec: where it is spliced in.
        runs: the windows.
        rows: what is read and written on each batch of them.
    """

    def __init__(
        self, saved: SavedDictionary, spec: DataSpec, runs: WindowRuns, rows: Sequence[SiteRows]
    ):
        self.saved, self.spec, self.runs, self.rows = saved, spec, runs, rows
        norms = saved.dictionary.W_dec.norm(dim=1)
        self.codes: list[SparseCodes] = []
        with torch.no_grad(), blaming(saved):
            for batch in rows:
                codes = saved.dictionary.encode(batch.inputs)
                self.codes.append(codes.keep(codes.value > 0))
        self.sizes = torch.cat([codes.contributions(norms) for codes in self.codes])
        self.n_rows = sum(codes.n_rows for codes in self.codes)

    def loss(self, dropped: Bool[Tensor, " pairs"]) -> float:
        """Mean loss with the reconstruction by all other pairs spliced in, nats."""
        parts = dropped.split([len(codes.value) for codes in self.codes])

        def splice(index: int) -> Splice:
            codes = self.codes[index].keep(~parts[index])
            written = self.saved.dictionary.decode(codes)
            return splice_at(self.runs.model, self.spec.site, self.rows[index].keep, written)

        return self.runs.loss(splice)

    def search(self, config: ActivationSparsityConfig) -> dict[str, Any]:
        """How many pairs can be dropped, by name."""
        starts = torch.tensor([0, *(codes.n_rows for codes in self.codes)]).cumsum(0)
        row = None
        if config.drop == "token":
            row = torch.cat(
                [
                    codes.pair_rows() + int(start)
                    for codes, start in zip(self.codes, starts, strict=False)
                ]
            )
        whole = self.loss(torch.zeros_like(self.sizes, dtype=torch.bool))

        def rise(share: float) -> float:
            return math.exp(self.loss(smallest(self.sizes, share, row)) - whole) - 1

        share = largest_within(rise, config.rise)
        dropped = smallest(self.sizes, share, row)
        order = torch.randperm(
            len(self.sizes), generator=seeded_generator("dropped latents", config.seed)
        )
        shuffled = dropped[order.to(dropped.device)]
        n_pairs, n_left = len(self.sizes), int((~dropped).sum())
        return {
            "droppable_share": 1 - n_left / max(n_pairs, 1),
            "functional_l0": n_left / self.n_rows,
            "l0_mean": n_pairs / self.n_rows,
            "threshold": float(self.sizes[~dropped].min()) if n_left else None,
            "loss_spliced": whole,
            "loss_dropped": self.loss(dropped),
            "rise_random": math.exp(self.loss(shuffled) - whole) - 1,
            "n_loss_positions": self.runs.n_positions,
            "n_rows": self.n_rows,
        }


def _measurement(
    subject: Subject,
    numbers: dict[str, Any],
    tables: Sequence[Any],
    config: ActivationSparsityConfig,
    *,
    missing: bool,
) -> Measurement:
    saved = subject.saved
    return Measurement(
        name=saved.name,
        content_hash=saved.content_hash,
        out=subject.out,
        numbers=numbers,
        made_from=origin_of(subject),
        settings=row_settings(subject.spec),
        facts={
            "drop": DROPS[config.drop],
            "rise": f"{config.rise:g}",
            "kept": f"{config.kept:.0%}",
            "lazy_below": f"{config.lazy_below:g}",
        },
        data={"tables": tables},
        title=f"Activation sparsity of {saved.name}",
        subtitle=f"{describe(saved)}. {subject.spec.in_words}.",
        notes=(NO_NEURONS,) if config.mlps and missing else (),
    )
