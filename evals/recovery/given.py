"""Recovery of true directions that are given: what cosines alone tell, of any dictionary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.cache.arrays import open_arrays
from saelab.dictionary import SavedDictionary, load_dictionary
from saelab.errors import ArtifactError, ConfigError
from saelab.stats.cosines import unit_rows
from saelab.synthetic.truth import chance_cosine, coherence

from ..suite import Measurement
from .matching import Matching, match
from .numbers import cosine_values
from .suite import RecoveryConfig

ALIKE = ("method", "options", "optimizer", "n_tokens", "batch_rows", "target_l0")
"""What of the training settings runs must share to be compared; the seed is not among it."""
BLOCK = 4096
NOTE = (
    "The true directions were given, not planted: what needs rows on which it is known which "
    "features are active (frequencies, precision of alive latents, purity, splitting, absorption, "
    "reconstruction) is not measured. `saelab eval core` measures reconstruction."
)


def measure_given(
    folders: Sequence[Path],
    outs: Sequence[Path],
    config: RecoveryConfig,
    file: Path,
    device: torch.device,
) -> Iterator[Measurement]:
    """Compare dictionaries, whatever they were trained on, with the directions in a file.

    Raises:
        ConfigError: the file holds no matrix of directions.
        ArtifactError: a dictionary that writes vectors of another width.
    """
    features = directions_in(file).to(device)
    largest = coherence(features)
    n_features, width = features.shape
    for folder, out in zip(folders, outs, strict=True):
        saved = load_dictionary(folder)
        dictionary = saved.dictionary.to(device)
        if dictionary.d_out != width:
            raise ArtifactError(
                f"{folder} writes vectors of width {dictionary.d_out}, but the directions in "
                f"{file} have width {width}: give those of its own activations"
            )
        matching = match(features, dictionary.W_dec, config.threshold)
        chance = chance_cosine(features, dictionary.d_sae)
        yield Measurement(
            name=saved.name,
            content_hash=saved.content_hash,
            out=out,
            numbers={
                **cosine_values(matching),
                "chance_cosine": chance,
                "n_features": n_features,
                "coherence": largest,
            },
            made_from={
                **record_of(saved),
                "truth": {"name": file.name, "sha256": config.truth_hash, "directions": n_features},
            },
            facts={
                "threshold": f"{config.threshold:g}",
                "n_features": n_features,
                "d_sae": dictionary.d_sae,
                "n_rows": 0,
                "n_others": 0,
            },
            data={"matching": matching, "threshold": config.threshold, "chance": chance},
            rows={"features": feature_rows(matching)},
            title=f"Recovery by {saved.name}",
            subtitle=f"{dictionary.architecture}, {dictionary.d_sae:,} latents, trained on "
            f"{saved.model_name}, against {n_features:,} directions given in {file.name}.",
            notes=(NOTE,),
        )


def directions_in(file: Path) -> Float[Tensor, "n_features d_in"]:
    """The one matrix of a file as unit rows, float32.

    Raises:
        ActivationError: the file cannot be read.
        ConfigError: no matrix or several; a row that is zero or not finite.
    """
    arrays = [array for array in open_arrays(file) if array.is_float and len(array.shape) == 2]
    if len(arrays) != 1 or 0 in arrays[0].shape:
        held = ", ".join(f"{each.name or 'one'} {[*each.shape]}" for each in arrays) or "none"
        raise ConfigError(
            f"truth: {file} must hold one matrix of floating-point numbers, a direction in each "
            f"row, but holds {held}"
        )
    rows = torch.cat([block.double() for block in arrays[0].blocks(BLOCK)])
    norm = rows.norm(dim=1)
    if len(bad := (~(norm.isfinite() & (norm > 0))).nonzero()):
        raise ConfigError(
            f"truth: row {int(bad[0])} of {file} is zero or not finite, which is no direction: "
            "leave it out"
        )
    return unit_rows(rows).float()


def record_of(saved: SavedDictionary) -> dict[str, Any]:
    """What a result records of the dictionary, for people and for the score card."""
    return {
        "model": saved.model_name,
        "model_hash": saved.made_from.get("model_hash"),
        "hook_point": " + ".join(saved.site.writes),
        "cache_hash": saved.made_from.get("cache_hash"),
        "training": training_of(saved),
        "training_seed": saved.manifest.get("seed"),
        "architecture": saved.dictionary.architecture,
        "d_in": saved.dictionary.d_in,
        "d_sae": saved.dictionary.d_sae,
    }


def training_of(saved: SavedDictionary) -> dict[str, Any]:
    """The training settings that make runs alike, as plain values."""
    recorded = saved.manifest.get("config", {})
    return {
        **{name: recorded[name] for name in ALIKE if name in recorded},
        "architecture": saved.dictionary.architecture,
        "d_sae": saved.dictionary.d_sae,
    }


def feature_rows(matching: Matching) -> dict[str, Tensor]:
    """One parquet row per true feature: feature, best_latent and cosine, one_to_one_latent and
    one_to_one_cosine; null where a number is undefined."""
    latent, cosine = matching.assigned_latent, matching.assigned_cosine
    if latent is None or cosine is None:
        latent = torch.full_like(matching.best_latent, -1)
        cosine = torch.full_like(matching.cosine, torch.nan)
    return {
        "feature": torch.arange(len(matching.cosine)),
        "best_latent": matching.best_latent,
        "cosine": matching.cosine,
        "one_to_one_latent": latent,
        "one_to_one_cosine": torch.where(latent >= 0, cosine, torch.nan),
    }
