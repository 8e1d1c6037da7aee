"""From dictionary folders to their feature stores: what `saelab features` does."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from saelab.config import to_plain
from saelab.dictionary import SavedDictionary, load_dictionary
from saelab.dictionary.data_spec import DataSpec, ModelKey, check_fit, data_spec_of
from saelab.errors import ConfigError
from saelab.formats.files import remove_leftovers, sha256_of
from saelab.formats.lock import writer_lock
from saelab.model.devices import resolve_device
from saelab.model.identity import identity_of
from saelab.model.language_model import LanguageModel
from saelab.model.model_files import require_context

from .adopted_rows import encode_rows, read_rows
from .build import StoreSources, write_store
from .config import FeaturesConfig
from .reader import FeatureStore, is_stale
from .schema import FLAGS, STORE_FILE
from .shards import Shards
from .text_pass import WORK_FOLDER, discard, read_text, subjects_of
from .token_text import Vocabulary

logger = logging.getLogger(__name__)


def build_features(
    folders: Sequence[Path],
    config: FeaturesConfig,
    *,
    existing: Literal["replace", "compare", "keep"] = "replace",
) -> list[Path]:
    """Build the store of every dictionary; those that read the same rows share the model's pass.

    Args:
        folders: saved dictionaries.
        config: text and settings.
        existing: what becomes of stores that are there: they are replaced, kept as they are, or
            kept where these settings make the same and refused where not.

    Returns:
        The stores, in the order of the folders.

    Raises:
        ArtifactError: a folder that is no dictionary, or one that does not say what it reads; or a
            store to be compared that was damaged.
        ConfigError: stores of other settings, or another process that builds one.
        ModelError: the model is missing or has no such hook point.
        TextError: no text.
        Stopped: a signal asked to stop; the same command goes on.
    """
    stores = [folder / STORE_FILE for folder in folders]
    with ExitStack() as locks:
        # Before looking at what is there: another process may be about to write it.
        for store in stores:
            locks.enter_context(writer_lock(store))
        complete = [folder for folder in folders if (folder / STORE_FILE).exists()]
        if existing == "replace":
            complete = []
        _require_place_for_shards(folders, replace=existing == "replace")
        if existing == "compare":
            _require_same(complete, config)
        if len(complete) < len(folders):
            groups: dict[DataSpec, list[SavedDictionary]] = {}
            for folder in folders:
                saved = load_dictionary(folder)
                # Nearest latents are sought among all: said before the text is read.
                saved.dictionary.require_whole()
                groups.setdefault(data_spec_of(saved, config), []).append(saved)
            _build_groups(groups, config, complete)
    return stores


def _require_place_for_shards(folders: Sequence[Path], *, replace: bool) -> None:
    for work in (folder / WORK_FOLDER for folder in folders):
        if work.is_file() and not replace:
            raise ConfigError(
                f"{work} is a file and the folder of an unfinished build is expected: add "
                "--overwrite to replace it"
            )
        if work.is_file():
            work.unlink()


def _require_same(folders: Sequence[Path], config: FeaturesConfig) -> None:
    reasons = {folder: made_otherwise(folder, config) for folder in folders}
    problems = [
        f"{folder / STORE_FILE} exists already: add --overwrite to replace it ({reason})"
        for folder, reason in reasons.items()
        if reason
    ]
    if problems:
        raise ConfigError(problems)


def _build_groups(
    groups: dict[DataSpec, list[SavedDictionary]],
    config: FeaturesConfig,
    complete: Collection[Path],
) -> None:
    models: dict[ModelKey, LanguageModel] = {}
    for spec, dictionaries in groups.items():
        if all(saved.folder in complete for saved in dictionaries):
            continue
        if spec.adopted is None and config.labels is not None:
            raise ConfigError(
                f"labels: {dictionaries[0].folder} reads text, whose tokens are its labels: leave "
                "--labels out"
            )
        key = spec.model_key
        # Adopted rows need a model only to show tokens and logits, where it is known.
        if key not in models and (spec.adopted is None or spec.model_hash is not None):
            require_context(spec.model, spec.context_length)
            models = {key: spec.load_model(config.device)}
        _build_group(models.get(key), spec, dictionaries, config, complete)


def _build_group(
    model: LanguageModel | None,
    spec: DataSpec,
    dictionaries: Sequence[SavedDictionary],
    config: FeaturesConfig,
    complete: Collection[Path],
) -> None:
    device = resolve_device(config.device) if model is None else model.device
    for saved in dictionaries:
        if model is not None:
            check_fit(model, spec, saved)
        saved.dictionary.to(device)
    # All of them, because how many read the text together decides where a shard ends.
    subjects = subjects_of(dictionaries, spec, model, config)
    rows = None if spec.adopted is None else read_rows(spec, config, model)
    discard([subject for subject in subjects if subject.saved.folder in complete])
    subjects = [subject for subject in subjects if subject.saved.folder not in complete]
    if rows is not None:
        vocabulary, shards = rows.vocabulary, encode_rows(rows, subjects, device)
    else:
        assert model is not None
        shards = read_text(model, spec, subjects, config)
        vocabulary = Vocabulary(model.token_bytes())
    for subject, codes in zip(subjects, shards, strict=True):
        remove_leftovers(subject.saved.folder)
        sources = _sources(model, spec, subject.saved, codes, vocabulary, config)
        logger.info("building %s", subject.saved.folder / STORE_FILE)
        write_store(subject.saved.folder / STORE_FILE, sources)
        discard([subject])


def _sources(
    model: LanguageModel | None,
    spec: DataSpec,
    saved: SavedDictionary,
    shards: Shards,
    vocabulary: Vocabulary,
    config: FeaturesConfig,
) -> StoreSources:
    missed = "the activations are from elsewhere, and no language model is known"
    if model is not None:
        missed = _no_lens_because(model, spec.site.writes, saved.dictionary.d_out)
    training = saved.manifest["config"]
    return StoreSources(
        shards=shards,
        dictionary=saved.dictionary,
        vocabulary=vocabulary,
        lens=None if missed or model is None else model.logit_lens(),
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
            "model": spec.model if model is None else model.name,
            **({"model_hash": None, "bos_id": None} if model is None else identity_of(model)),
            "model_dtype": spec.model_dtype
            if model is None
            else str(model.dtype).removeprefix("torch."),
            "hook_point": str(spec.site),
            "text": spec.text_described(),
            "text_split": config.split,
            "context_length": spec.context_length,
            "row_rule": saved.token_filter,
            "norm_ceiling": spec.norm_ceiling,
            **({} if spec.adopted is None else {"labels": _labels_described(config)}),
        },
        asked=_asked(config),
        options=config.store,
    )


def made_otherwise(folder: Path, config: FeaturesConfig) -> str:
    """Why the store of a dictionary is not what these settings make; empty where it is.

    Raises:
        ArtifactError: the store was damaged or edited.
    """
    with FeatureStore(folder) as store:
        store.verify()
        asked, now = store.manifest.get("asked"), _asked(config)
        stale = is_stale(store, folder)
    if asked is None or stale:
        return stale or "it does not say with which settings it was made"
    different = [name for name in now if asked.get(name) != now[name]]
    return "; ".join(f"{name} was {asked.get(name)}, is {now[name]}" for name in different)


def _asked(config: FeaturesConfig) -> dict[str, Any]:
    """The settings by which a command knows its stores again: all that decide their content."""
    plain = to_plain(config)
    del plain["batch_contexts"], plain["device"], plain["activations"]
    plain["labels"] = _labels_described(config)
    return plain | plain.pop("store")


def _labels_described(config: FeaturesConfig) -> dict[str, str] | None:
    """A file of labels by its content; None where rows have none."""
    if config.labels is None:
        return None
    return {"file": config.labels.name, "sha256": sha256_of(config.labels)}


def _no_lens_because(model: LanguageModel, written: Sequence[str], width: int) -> str:
    """Why a decoder row at these hook points says nothing of the logits; empty where it does."""
    writing = (
        "hook_resid_pre",
        "hook_resid_mid",
        "hook_resid_post",
        "hook_mlp_out",
        "hook_attn_out",
    )
    if model.is_encoder:
        return f"{model.name} is an encoder, which predicts no next token"
    if len(written) > 1:
        return f"a latent writes {len(written)} hook points, so there is no one way to logits"
    if written[0].endswith(writing) and width == model.d_model:
        return ""
    return (
        f"{written[0]} does not write to the residual stream, so there is no direct way to logits"
    )


def store_summary(path: Path) -> dict[str, Any]:
    """The manifest of a store and how many features carry each flag, for a table."""
    with FeatureStore(path) as store:
        return {**store.manifest, **{name: int(store.flag(name).sum()) for name in FLAGS}}
