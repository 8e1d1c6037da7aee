"""Reads held-out rows once for all crosscoders of a data spec, and sorts their latents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.dictionary import SavedDictionary, load_dictionary
from saelab.dictionary.site_rows import evaluated_rows
from saelab.errors import ConfigError
from saelab.formats.evaluation_result import Table
from saelab.model.devices import resolve_device
from saelab.progress import progress_bar
from saelab.stats.cosines import unit_rows

from ..alike import row_settings
from ..subjects import (
    Subject,
    by_data_spec,
    describe,
    load_models,
    origin_of,
    subjects_of,
    widths_written,
)
from ..suite import Measurement
from .numbers import NORM_EDGES
from .scaling import HookPointSums
from .suite import CrosscoderConfig

CLASSES = ("shared", "dedicated", "neither", "dead")
SHARED, DEDICATED, NEITHER, DEAD = range(4)


def measure_crosscoders(
    folders: Sequence[Path], outs: Sequence[Path], config: CrosscoderConfig
) -> Iterator[Measurement]:
    """Measure crosscoders; everything that can be wrong is checked before the first pass.

    Raises:
        ConfigError: a dictionary that does not write several hook points.
        SaelabError: as `measure_core` says.
    """
    subjects = subjects_of([load_dictionary(folder) for folder in folders], outs, config)
    for subject in subjects:
        if len(subject.spec.site.writes) < 2:
            raise ConfigError(
                f"{subject.saved.folder} writes {', '.join(subject.spec.site.writes)} alone: this "
                "needs a crosscoder, which `saelab train --reads A B --writes A B` learns; "
                "`saelab eval core` judges the rest"
            )
    models = load_models([s for s in subjects if s.spec.adopted is None], config.device)
    for spec, group in by_data_spec(subjects).items():
        model = models[spec.model_key] if spec.adopted is None else None
        widths = widths_written(model, spec)
        device = resolve_device(config.device) if model is None else model.device
        sums = [HookPointSums(subject.saved.dictionary.to(device), widths) for subject in group]
        with progress_bar(config.n_tokens, "reading", "tokens") as bar:
            for rows in evaluated_rows(model, spec, config.n_tokens, config.batch_contexts, device):
                for each in sums:
                    each.update(rows.inputs, rows.targets)
                bar.update(rows.keep.numel())
        for subject, each in zip(group, sums, strict=True):
            yield _measurement(subject, each, config)


@dataclass(frozen=True, eq=False)
class SortedLatents:
    """What became of each latent."""

    kind: Int[Tensor, " d_sae"]
    """Index into `CLASSES`."""
    strongest: Int[Tensor, " d_sae"]
    """Hook point of its largest relative norm."""
    tables: dict[str, Float[Tensor, "hook_points d_sae"]]
    """Relative norm and both ν at each hook point; NaN where undefined."""
    most: dict[str, Float[Tensor, " d_sae"]]
    """The largest of each at another hook point than the strongest."""
    tested: Bool[Tensor, " d_sae"]
    """Dedicated ones of which ν is defined."""
    confirmed: Bool[Tensor, " d_sae"]
    """Those of them that are so in truth."""

    @classmethod
    def of(cls, sums: HookPointSums, config: CrosscoderConfig) -> SortedLatents:
        """Sort the latents of a crosscoder."""
        norms, count = sums.relative_norms(), sums.sparsity.count
        strongest = norms.argmax(0)
        nu_error, nu_reconstruction = sums.nu(strongest)
        tables = {"norm": norms, "nu_error": nu_error, "nu_reconstruction": nu_reconstruction}
        elsewhere = torch.ones_like(norms, dtype=torch.bool).scatter_(0, strongest[None], False)
        # What is undefined at every other hook point stays so; a NaN is no maximum.
        most = {
            name: torch.where(elsewhere & table.isfinite(), table, -torch.inf).amax(0)
            for name, table in tables.items()
        }
        kind = torch.full_like(count, NEITHER)
        kind[norms.amin(0) >= config.shared_from] = SHARED
        kind[most["norm"] <= config.dedicated_below] = DEDICATED
        kind[count == 0] = DEAD
        tested = (kind == DEDICATED) & most["nu_error"].isfinite()
        tested &= most["nu_reconstruction"].isfinite()
        confirmed = tested & (most["nu_error"] <= config.most_nu_error)
        confirmed &= most["nu_reconstruction"] <= config.most_nu_reconstruction
        return cls(kind, strongest, tables, most, tested, confirmed)

    def numbers(self, sums: HookPointSums) -> dict[str, Any]:
        """The numbers of all hook points together."""
        n_alive, n_tested = int((self.kind != DEAD).sum()), int(self.tested.sum())
        n_confirmed = int(self.confirmed.sum())
        counts = [int((self.kind == index).sum()) for index in range(DEAD)]
        return {
            "fvu": sums.joint.values()["fvu"],
            "l0_mean": sums.sparsity.values()["l0_mean"],
            "n_alive": n_alive,
            **{
                f"{CLASSES[index]}_share": count / n_alive if n_alive else None
                for index, count in enumerate(counts)
            },
            "shared_cosine": _median(_least_cosines(sums)[self.kind == SHARED]),
            "dedicated_latents": counts[DEDICATED],
            "tested_latents": n_tested,
            "confirmed_latents": n_confirmed,
            "unmasked_share": 1 - n_confirmed / n_tested if n_tested else None,
            **{
                f"{name}_median": _median(self.most[name][self.tested])
                for name in ("nu_error", "nu_reconstruction")
            },
        }

    def counts_at(self, h: int) -> tuple[int, int]:
        """Dedicated and confirmed latents of a hook point."""
        at_h = self.strongest == h
        dedicated = (self.kind == DEDICATED) & at_h
        return int(dedicated.sum()), int((self.confirmed & at_h).sum())

    def columns(self, names: Sequence[str], count: Tensor) -> dict[str, Any]:
        """A row for each latent."""
        columns: dict[str, Any] = {
            "latent": range(len(self.kind)),
            "count": count.tolist(),
            "kind": [CLASSES[index] for index in self.kind.tolist()],
            "strongest": [names[h] for h in self.strongest.tolist()],
            "confirmed": self.confirmed.tolist(),
        }
        for what, table in self.tables.items():
            for name, row in zip(names, table.tolist(), strict=True):
                columns[f"{what}_at_{name}"] = [v if v == v else None for v in row]
        return columns

    def chart_data(self, names: Sequence[str]) -> dict[str, Any]:
        """What `crosscoder_charts` draws."""
        alive, histograms, nu = self.kind != DEAD, {}, {}
        for h, name in enumerate(names):
            norms = self.tables["norm"][h, alive].cpu()
            histograms[name] = torch.histc(norms, len(NORM_EDGES) - 1, 0, 1).tolist()
            shown = (self.tested & (self.strongest == h)).nonzero().flatten()
            nu[name] = {
                "latent": shown.tolist(),
                "error": self.most["nu_error"][shown].tolist(),
                "reconstruction": self.most["nu_reconstruction"][shown].tolist(),
            }
        return {"norms": histograms, "nu": nu}


def _measurement(subject: Subject, sums: HookPointSums, config: CrosscoderConfig) -> Measurement:
    """Everything about one crosscoder."""
    saved, spec, names = subject.saved, subject.spec, subject.spec.site.writes
    latents = SortedLatents.of(sums, config)
    numbers, rows = latents.numbers(sums), []
    for h, (name, errors) in enumerate(zip(names, sums.reconstruction, strict=True)):
        dedicated, confirmed = latents.counts_at(h)
        row = {
            f"fvu_at_{name}": errors.values()["fvu"],
            f"dedicated_to_{name}": dedicated,
            f"confirmed_at_{name}": confirmed,
        }
        numbers |= row
        rows.append((name, sums.widths[h], sums.spreads()[h], *row.values()))
    bounds = _bounds(config)
    return Measurement(
        name=saved.name,
        content_hash=saved.content_hash,
        out=subject.out,
        numbers=numbers,
        made_from=origin_of(subject),
        settings={**row_settings(spec), "split": "held_out"},
        facts={"n_rows": sums.joint.n_rows, "hook_points": names, **bounds},
        data={**latents.chart_data(names), **bounds, "tables": [_table(rows)]},
        rows={"latents": latents.columns(names, sums.sparsity.count)},
        title=f"Crosscoder evaluation of {saved.name}",
        subtitle=f"{describe(saved)}. {spec.in_words}.",
        notes=(_selected_by(saved),),
    )


def _bounds(config: CrosscoderConfig) -> dict[str, str]:
    names = ("shared_from", "dedicated_below", "most_nu_error", "most_nu_reconstruction")
    return {name: f"{getattr(config, name):g}" for name in names}


def _least_cosines(sums: HookPointSums) -> Tensor:
    """The least cosine of each latent's decoder rows at two hook points of one width, or NaN."""
    units = [unit_rows(decoder) for decoder in sums.decoders]
    cosines = [
        (a * b).sum(1)
        for index, a in enumerate(units)
        for b in units[index + 1 :]
        if a.shape == b.shape
    ]
    nothing = torch.full_like(units[0][:, 0], torch.nan)
    return torch.stack(cosines).amin(0) if cosines else nothing


def _median(values: Tensor) -> float | None:
    values = values[values.isfinite()]
    return float(values.double().quantile(0.5)) if len(values) else None


def _selected_by(saved: SavedDictionary) -> str:
    """In units of which norm its latents were selected in training."""
    config = saved.manifest.get("config", {})
    options = config.get("options", {}) if isinstance(config, dict) else {}
    norm = options.get("decoder_norm", "joint")
    what = "the sum of its norms at each hook point" if norm == "summed" else "its whole norm"
    return f"Latents were selected in units of {what} (`decoder_norm`: {norm})."


def _table(rows: Sequence[tuple[Any, ...]]) -> Table:
    return Table(
        title="By hook point",
        columns=("hook point", "width", "spread", "FVU", "dedicated", "confirmed"),
        rows=tuple(rows),
    )
