"""The dictionaries a suite was given: where results go, their data specs and models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.cache.aligned import AlignedCaches
from saelab.cache.config import DataOverrides
from saelab.dictionary import SavedDictionary
from saelab.dictionary.data_spec import DataSpec, ModelKey, check_fit, data_spec_of, needs_model
from saelab.dictionary.site_rows import open_adopted
from saelab.errors import ConfigError
from saelab.model.language_model import LanguageModel
from saelab.model.model_files import require_context


@dataclass(frozen=True)
class Subject:
    """A dictionary to evaluate, how, and where its results go."""

    saved: SavedDictionary
    spec: DataSpec
    out: Path


def subjects_of(
    dictionaries: Sequence[SavedDictionary], places: Sequence[Path], config: DataOverrides
) -> list[Subject]:
    """Put each dictionary together with its data spec.

    Args:
        places: where the results of each go, as `result_folders` says.

    Raises:
        ArtifactError: a dictionary that does not record its data spec.
        ConfigError: a recorded data spec that is not of this version.
    """
    return [
        Subject(saved, data_spec_of(saved, config), out)
        for saved, out in zip(dictionaries, places, strict=True)
    ]


def origin_of(subject: Subject) -> dict[str, Any]:
    """What a result about a dictionary on its held-out text was made from."""
    spec, dictionary = subject.spec, subject.saved.dictionary
    return {
        "model": spec.model,
        "model_hash": spec.model_hash,
        "hook_point": str(spec.site),
        "text": spec.text_described(),
        "split": "held_out",
        "architecture": dictionary.architecture,
        "d_in": dictionary.d_in,
        "d_out": dictionary.d_out,
        "d_sae": dictionary.d_sae,
    }


def describe(saved: SavedDictionary) -> str:
    """A dictionary in words: architecture, latents, hook point and model."""
    dictionary = saved.dictionary
    return (
        f"{dictionary.architecture}, {dictionary.d_sae:,} latents, at {saved.site} of "
        f"{saved.model_name}"
    )


def load_models(subjects: Sequence[Subject], device: str) -> dict[ModelKey, LanguageModel]:
    """Load the model of every subject once, and check that each subject belongs to its model.

    A suite that can do without one leaves out those of adopted activations.

    Returns:
        `model_key` of the data specs -> model.

    Raises:
        ModelError: an unknown model or hook point.
        ArtifactError: a dictionary that does not fit its model.
        ConfigError: contexts longer than the model's, or activations without a model.
    """
    without = [subject.saved for subject in subjects if subject.spec.adopted is not None]
    if without:
        raise ConfigError(needs_model(without[0]))
    models: dict[ModelKey, LanguageModel] = {}
    for subject in subjects:
        require_context(subject.spec.model, subject.spec.context_length)
    for subject in subjects:
        key = subject.spec.model_key
        if key not in models:
            models[key] = subject.spec.load_model(device)
        check_fit(models[key], subject.spec, subject.saved)
    return models


def widths_written(model: LanguageModel | None, spec: DataSpec) -> list[int]:
    """The widths of several hook points that are written; without a model, of the adopted rows."""
    if model is not None:
        return [model.width_at(name) for name in spec.site.writes]
    caches, _ = open_adopted(spec, held_out=True)
    assert isinstance(caches, AlignedCaches)  # which write several
    statistics = caches.target_statistics or caches.statistics
    return [len(part.mean) for part in statistics.by_hook_point]


def by_data_spec(subjects: Sequence[Subject]) -> dict[DataSpec, list[Subject]]:
    """The subjects that share a pass over the text, in the order of their first."""
    groups: dict[DataSpec, list[Subject]] = {}
    for subject in subjects:
        groups.setdefault(subject.spec, []).append(subject)
    return groups


def result_folders(folders: Sequence[Path], out: Path | None) -> list[Path]:
    """Where each dictionary's results go: a folder in `out`; None: `evals` in each dictionary.

    Raises:
        ConfigError: no folders, one that is no dictionary's, or two with one place for results.
    """
    if not folders:
        raise ConfigError("no dictionary was given: name at least one dictionary folder")
    resolved = [folder.resolve() for folder in folders]
    if out is None:
        outs = [folder / "evals" for folder in folders]
    elif len(resolved) == 1:
        outs = [out]
    else:
        outs = [out / folder.name for folder in resolved]
    problems = [
        f"{folder} is a file and a dictionary is a folder: give the folder it lies in; "
        "`saelab import` opens dictionaries of other libraries"
        for folder in folders
        if folder.is_file()
    ]
    problems += [
        f"dictionary folder {folder} does not exist" for folder in folders if not folder.exists()
    ]
    if len({path.resolve() for path in outs}) < len(outs):
        problems.append(
            f"dictionaries {[str(folder) for folder in folders]} would write to the same folder: "
            "name each once, and leave --out away where folder names are equal"
        )
    if problems:
        raise ConfigError(problems)
    return outs
