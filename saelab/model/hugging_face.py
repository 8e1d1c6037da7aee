"""A model folder through transformers: what it is given, what is loaded, and which kind it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saelab.errors import ConfigError, ModelError, first_line, panics_as_errors, shown
from saelab.formats.files import read_json

from .identity import CODE_ALLOWED

OWN_OPTIONS = {
    "dtype": "give --model-dtype",
    "torch_dtype": "give --model-dtype",
    "revision": "write it after the name, as in owner/model@revision",
    "local_files_only": "files are looked up before the model is loaded",
    "gguf_file": "give the .gguf file as the model",
    "trust_remote_code": "give --trust-remote-code with the command, which no file can",
    "allow_all_kernels": "saelab runs no code that is fetched while a model is loaded",
}
"""Options of transformers that saelab sets itself, and what to give instead."""


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
    name: str, folder: Path, dtype: torch.dtype, device: torch.device, options: Sequence[str] = ()
) -> tuple[Any, Any]:
    """Model (frozen, eval mode) and tokenizer from a local folder, never from the network.

    Args:
        folder: its files. An encoder comes with its masked-token head, drawn at random where the
            folder has none.
        device: where it goes, unless the options say so.
        options: for transformers, as `model_options` reads them.

    Raises:
        ModelError: the folder holds no language model that transformers can read.
        ConfigError: options that saelab or this machine does not take.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    def load(kind: Any, **options: Any) -> Any:
        # Off where transformers would ask on the terminal whether to run a model's own code; and
        # only what does not load without it gets to run it.
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            return kind.from_pretrained(folder, **local, **options)
        except (ValueError, OSError) as error:
            if "trust_remote_code" not in str(error):
                raise
        _require_permission(name, folder)
        return kind.from_pretrained(folder, **{**local, "trust_remote_code": True}, **options)

    given = model_options(options)
    try:
        kind = AutoModelForMaskedLM if is_encoder(folder) else AutoModelForCausalLM
        _require_layers(folder)
        with quiet_transformers(), panics_as_errors():
            model: Any = load(kind, dtype=dtype, **given)
            tokenizer = load(AutoTokenizer)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"model {name!r} in {folder} cannot be loaded "
            f"({first_line(error)}): it must be a causal language model or an encoder that "
            "transformers can read"
        ) from error
    if "device_map" not in given and getattr(model, "hf_quantizer", None) is None:
        model = model.to(device)
    return model.eval().requires_grad_(False), tokenizer


def runs_own_code(*loaded: Any) -> bool:
    """Whether a model or tokenizer is of a class that came with its files."""
    return any(type(each).__module__.startswith("transformers_modules.") for each in loaded)


def _require_permission(name: str, folder: Path) -> None:
    """Refuse to run a model's own code unless the person at the command said so.

    Raises:
        ModelError: nobody said so; or the code does not lie in the folder, where it can be read
            and is part of the model's hash.
    """
    references: list[Any] = []
    for file in ("config.json", "tokenizer_config.json"):
        wanted = read_json(folder / file).get("auto_map") if (folder / file).is_file() else None
        values = wanted.values() if isinstance(wanted, dict) else wanted or ()
        references += [r for v in values for r in (v if isinstance(v, list) else [v]) if r]
    code = sorted({str(reference).partition(".")[0] + ".py" for reference in references})
    # "owner/repository--module" and paths name code elsewhere.
    missing = [f for f in code if "/" in f or "--" in f or not (folder / f).is_file()]
    if missing:
        raise ModelError(
            f"model {name!r} needs Python code of its own, {shown(missing[0])}, which is not in "
            f"{folder}: get the whole model with its code (`hf download`), and give its folder"
        )
    if os.environ.get(CODE_ALLOWED) != "1":
        raise ModelError(
            f"model {name!r} needs Python code of its own, which saelab runs only when told to: "
            f"read {', '.join(code)} in {folder}, then give --trust-remote-code with the command "
            f"(in Python, set {CODE_ALLOWED}=1 in the environment)"
        )


def _require_layers(folder: Path) -> None:
    """Refuse settings of more layers than there are tensors, before transformers makes them all."""
    from safetensors import SafetensorError, safe_open

    config = read_json(folder / "config.json")
    inner = config.get("text_config")
    named = [each.get("num_hidden_layers") for each in (config, inner) if isinstance(each, dict)]
    claimed = max((n for n in named if isinstance(n, int)), default=0)
    n_tensors = 0
    try:
        for path in folder.glob("*.safetensors"):
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


@torch.no_grad()
def shuffle_weights(model: nn.Module) -> None:
    """Put the entries of each matrix of a model in random order, always the same.

    Scales stay as they are, vectors (biases, norms) too, so activations neither vanish nor explode.
    """
    for index, weights in enumerate(model.parameters()):
        if weights.ndim > 1:
            generator = torch.Generator().manual_seed(index)
            order = torch.randperm(weights.numel(), generator=generator).to(weights.device)
            weights.copy_(weights.flatten()[order].view_as(weights))
