"""From dictionary folders to their feature stores: what `saelab features` does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from saelab.activation_cache.row_rule import RowRule
from saelab.config import from_plain
from saelab.dictionary import SavedDictionary, load_dictionary
from saelab.errors import ArtifactError, ConfigError
from saelab.files import remove_leftovers
from saelab.language_model import LanguageModel, load_language_model
from saelab.synthetic.truth import ORIGIN_KEY
from saelab.text import TextConfig, describe_text

from .build import StoreSources, write_store
from .config import FeaturesConfig
from .schema import STORE_FILE
from .shards import Shards
from .text_pass import Reading, discard, read_text, subjects_of
from .token_text import Vocabulary

logger = logging.getLogger(__name__)

RECORDED = ("model", "hook_point", "text", "context_length", "row_rule", "norm_ceiling")
RUN_FILE = "run.json"
DICTIONARY_FILE = "saelab.json"


def dictionary_folders(paths: Sequence[Path]) -> list[Path]:
    """The dictionaries meant by some paths: of a run folder all, else the folder itself.

    Raises:
        ArtifactError: a run without dictionaries, or a path that is neither.
        ConfigError: no path, or a dictionary named twice.
    """
    if not paths:
        raise ConfigError("no run was given: name a run folder, or dictionary folders")
    folders: list[Path] = []
    for path in paths:
        if (path / DICTIONARY_FILE).is_file():
            folders.append(path)
            continue
        inside = sorted(file.parent for file in path.glob(f"dictionaries/*/{DICTIONARY_FILE}"))
        if not inside and (path / RUN_FILE).is_file():
            raise ArtifactError(
                f"{path} is a run without dictionaries yet: let `saelab train` finish it first"
            )
        if not inside:
            what = "neither a run nor a dictionary folder" if path.exists() else "not there"
            raise ArtifactError(
                f"{path} is {what}: expected {RUN_FILE} with dictionaries/, or {DICTIONARY_FILE}"
            )
        folders += inside
    doubled = [str(path) for path in folders if folders.count(path) > 1]
    if doubled:
        raise ConfigError(f"dictionaries named twice: {', '.join(dict.fromkeys(doubled))}")
    return folders


def build_features(folders: Sequence[Path], config: FeaturesConfig) -> list[Path]:
    """Build the store of every dictionary; those that read the same rows share the model's pass.

    Args:
        folders: saved dictionaries.
        config: text and settings.

    Returns:
        The stores, in the order of the folders.

    Raises:
        ArtifactError: a folder that is no dictionary, or one that does not say what it reads.
        ModelError: the model is missing or has no such hook point.
        TextError: no text.
        Stopped: a signal asked to stop; the same command goes on.
    """
    groups: dict[tuple[str, str, Reading], list[SavedDictionary]] = {}
    for folder in folders:
        saved = load_dictionary(folder)
        groups.setdefault(_reading_of(saved, config), []).append(saved)
    models: dict[tuple[str, str], LanguageModel] = {}
    for (name, dtype, reading), dictionaries in groups.items():
        if (name, dtype) not in models:
            models = {(name, dtype): load_language_model(name, dtype=dtype, device=config.device)}
        _build_group(models[name, dtype], reading, dictionaries, config)
    return [folder / STORE_FILE for folder in folders]


def _build_group(
    model: LanguageModel,
    reading: Reading,
    dictionaries: Sequence[SavedDictionary],
    config: FeaturesConfig,
) -> None:
    for saved in dictionaries:
        _check_fit(model, reading, saved)
        saved.dictionary.to(model.device)
    subjects = subjects_of(dictionaries, reading, model, config)
    shards = read_text(model, reading, subjects, config)
    vocabulary = Vocabulary(model.token_bytes())
    for subject, codes in zip(subjects, shards, strict=True):
        remove_leftovers(subject.saved.folder)
        sources = _sources(model, reading, subject.saved, codes, vocabulary, config)
        logger.info("building %s", subject.saved.folder / STORE_FILE)
        write_store(subject.saved.folder / STORE_FILE, sources)
        discard([subject])


def _sources(
    model: LanguageModel,
    reading: Reading,
    saved: SavedDictionary,
    shards: Shards,
    vocabulary: Vocabulary,
    config: FeaturesConfig,
) -> StoreSources:
    missed = _no_lens_because(model, reading.hook_point, saved.dictionary.d_in)
    training = saved.manifest["config"]
    text = describe_text(reading.text)
    return StoreSources(
        shards=shards,
        dictionary=saved.dictionary.to(torch.device("cpu")),
        vocabulary=vocabulary,
        lens=None if missed else model.logit_lens(),
        no_lens_because=missed,
        dictionary_facts={
            "name": saved.name,
            "architecture": saved.dictionary.architecture,
            "d_sae": saved.dictionary.d_sae,
            "k": saved.dictionary.k or None,
            "method": training.get("method"),
            "target_l0": training.get("target_l0"),
            "measured_l0": training.get("measured_l0"),
        },
        made_from={
            "dictionary": saved.name,
            "dictionary_hash": saved.content_hash,
            "weights_sha256": saved.manifest["files"]["sae_weights.safetensors"],
            "model": model.name,
            "model_hash": model.content_hash,
            "model_dtype": str(model.dtype).removeprefix("torch."),
            "bos_id": model.bos_id,
            "hook_point": reading.hook_point,
            "text": text,
            "text_split": reading.split,
            "context_length": reading.context_length,
            "row_rule": saved.row_rule,
            "norm_ceiling": reading.norm_ceiling,
        },
        options=config.store,
    )


def _no_lens_because(model: LanguageModel, hook_point: str, width: int) -> str:
    """Why a decoder row at this hook point says nothing of the logits; empty where it does."""
    writes = (
        "hook_resid_pre",
        "hook_resid_mid",
        "hook_resid_post",
        "hook_mlp_out",
        "hook_attn_out",
    )
    if hook_point.endswith(writes) and width == model.d_model:
        return ""
    return (
        f"{hook_point} does not write to the residual stream, so there is no direct way to logits"
    )


def _reading_of(saved: SavedDictionary, config: FeaturesConfig) -> tuple[str, str, Reading]:
    """Model, dtype and rows of a dictionary, with the overrides of the config."""
    origin = saved.made_from
    if ORIGIN_KEY in origin:
        raise ArtifactError(
            f"{saved.folder} was trained on planted features, so it has no text to be read on: "
            "`saelab eval recovery` judges it"
        )
    missing = [name for name in RECORDED if name not in origin]
    if missing:
        raise ArtifactError(
            f"{saved.folder} does not record its {', '.join(missing)}, so its features cannot be "
            "read on the rows it was trained for: train or save it again"
        )
    text = from_plain(TextConfig, saved.text, f"text settings of {saved.folder}")
    overrides: dict[str, Any] = {"source": config.text_source, "text_field": config.text_field}
    reading = Reading(
        hook_point=saved.hook_point,
        text=replace(text, **{key: value for key, value in overrides.items() if value is not None}),
        split=config.split,
        context_length=saved.context_length,
        row_rule=RowRule.from_json(saved.row_rule),
        norm_ceiling=saved.norm_ceiling,
    )
    dtype = config.model_dtype or origin.get("model_dtype", "bfloat16")
    return config.model or saved.model_name, dtype, reading


def _check_fit(model: LanguageModel, reading: Reading, saved: SavedDictionary) -> None:
    """Check that a dictionary belongs to the model."""
    expected = saved.made_from.get("model_hash")
    if expected is not None and expected != model.content_hash:
        raise ArtifactError(
            f"{saved.folder} was trained on {saved.model_name!r} with content hash "
            f"{expected[:12]}…, but {model.name!r} here has {model.content_hash[:12]}…: give the "
            "model it was trained on with --model"
        )
    width = model.width_at(reading.hook_point)
    if width != saved.dictionary.d_in:
        raise ArtifactError(
            f"{saved.folder} takes activations of width {saved.dictionary.d_in}, but "
            f"{reading.hook_point} of {model.name!r} has width {width}: it was saved for another "
            "model or hook point"
        )


def store_summary(path: Path) -> dict[str, Any]:
    """The manifest of a store and how many features carry each flag, for a table."""
    from .reader import FeatureStore
    from .schema import FLAGS

    with FeatureStore(path) as store:
        return {**store.manifest, **{name: int(store.flag(name).sum()) for name in FLAGS}}
