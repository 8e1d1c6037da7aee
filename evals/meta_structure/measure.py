"""Learns a meta-dictionary of each decoder, and of two kinds of random rows of the same shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.dictionary import load_dictionary
from saelab.errors import ConfigError
from saelab.formats.chart import Axis, Chart, Series
from saelab.model.devices import resolve_device
from saelab.progress import progress_bar
from saelab.stats.cosines import unit_rows
from saelab.stats.seeds import seeded_generator

from ..recovery.given import record_of
from ..suite import Measurement
from .meta_dictionary import MetaTraining, explained, random_rows
from .suite import MetaStructureConfig

EDGES = [round(0.05 * step, 2) for step in range(21)]


def measure_meta_structure(
    folders: Sequence[Path], outs: Sequence[Path], config: MetaStructureConfig
) -> Iterator[Measurement]:
    """Measure dictionaries, each with random rows of its own shape.

    Raises:
        ConfigError: a dictionary with fewer decoder rows than a meta-dictionary needs, or one
            whose decoder is never held at once.
        ArtifactError: a folder that is no intact dictionary.
    """
    device = resolve_device(config.device)
    loaded = [load_dictionary(folder) for folder in folders]
    decoders = []
    for saved in loaded:
        saved.dictionary.require_whole()
        rows = saved.dictionary.W_dec
        kept = rows.norm(dim=1) > 0
        if int(kept.sum()) // config.latents_per_meta < config.k:
            raise ConfigError(
                f"{saved.folder} has {int(kept.sum())} decoder rows, which give a meta-dictionary "
                f"fewer latents than the k = {config.k} that are to be active: lower --k or "
                "--latents-per-meta"
            )
        decoders.append((kept, unit_rows(rows[kept]).to(device)))
    with progress_bar(3 * len(loaded), "learning", "meta-dictionaries") as bar:
        for saved, (kept, rows), out in zip(loaded, decoders, outs, strict=True):
            training = MetaTraining(
                width=len(rows) // config.latents_per_meta,
                k=config.k,
                n_steps=config.n_steps,
                batch_rows=config.batch_rows,
                learning_rate=config.learning_rate,
            )
            drawn = {
                name: random_rows(
                    rows, seeded_generator("meta rows", config.seed), same_covariance=same
                )
                for name, same in (("random", False), ("same_covariance", True))
            }
            numbers: dict[str, Any] = {}
            shares: dict[str, Float[Tensor, " rows"]] = {}
            columns: dict[str, Any] = {}
            for name, part in {"decoder": rows, **drawn}.items():
                meta = training.of(part, config.seed)
                share, errors, codes = explained(meta, part, config.k)
                deviation = (part - part.mean(0)).double().square().sum(1)
                shares[name] = 1 - errors / deviation.clamp(min=1e-300)
                if name == "decoder":
                    numbers["explained"] = share
                    numbers["meta_alive"] = float(codes.fired().double().mean())
                    numbers["well_explained"] = float((shares[name] >= 0.5).double().mean())
                    columns = {
                        "latent": kept.nonzero().flatten().tolist(),
                        "explained": shares[name].tolist(),
                        "n_meta_latents": codes.l0().tolist(),
                    }
                else:
                    numbers[f"explained_{name}"] = share
                bar.update(1)
            numbers["shared"] = numbers["explained"] - numbers["explained_same_covariance"]
            numbers["n_rows"] = len(rows)
            yield Measurement(
                name=saved.name,
                content_hash=saved.content_hash,
                out=out,
                numbers=numbers,
                made_from=record_of(saved),
                facts={
                    "n_rows": len(rows),
                    "width": training.width,
                    "k": config.k,
                    "n_steps": config.n_steps,
                },
                data={name: _histogram(values) for name, values in shares.items()},
                rows={"latents": columns},
                title=f"Structure among the decoder rows of {saved.name}",
                subtitle=f"{len(rows):,} decoder rows of width {rows.shape[1]:,}.",
            )


def _histogram(shares: Float[Tensor, " rows"]) -> list[int]:
    inside = shares.clamp(0, 1 - 1e-9).float().cpu()
    return [int(count) for count in torch.histc(inside, len(EDGES) - 1, 0, 1)]


def meta_structure_charts(data: Mapping[str, Any]) -> list[Chart]:
    """Rows by how much of each is explained."""
    names = {
        "decoder": "decoder rows",
        "random": "random rows",
        "same_covariance": "random rows of the same covariance",
    }
    return [
        Chart(
            name="explained_by_row",
            title="How much of each row a meta-dictionary explains",
            caption="Histogram of 1 - |w - ŵ|² / |w - mean|² over decoder rows, and over random "
            "rows that a meta-dictionary was learnt of in the same way; below 0 counts as 0.",
            x=Axis(title="share of the row explained", low=0, high=1),
            y=Axis(title="rows", low=0),
            series=tuple(
                Series(
                    name=names[name],
                    x=list(EDGES),
                    y=counts,
                    mark="histogram",
                    dashed=name != "decoder",
                )
                for name, counts in data.items()
            ),
        )
    ]
