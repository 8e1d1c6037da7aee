"""What makes a language model the same one: hashes of its files and its BOS token, compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.errors import ModelError
from saelab.formats.files import hash_of, read_json, sha256_of

if TYPE_CHECKING:
    from .language_model import LanguageModel

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
OLD_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
CHAT_TEMPLATES = ("chat_template*", "*chat_templates/*")
# Written differently by different library versions without changing what the model computes.
VOLATILE_CONFIG = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")
CODE_ALLOWED = "SAELAB_TRUST_REMOTE_CODE"
"""Environment variable that is 1 where models may run code of their own; `--trust-remote-code` sets
it. It is a permission and no setting: no file can give it, and no artifact records it."""
VOLATILE_TOKENIZER_CONFIG = ("name_or_path", "backend", "is_local", "local_files_only")


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
    present = identity_of(model)
    if recorded.get("model_hash") is None:
        recorded = {**recorded, "model_hash": present["model_hash"]}
    return model_mismatch(recorded, present)


def weights_hash(folder: Path, *, code: bool = False) -> str:
    """Hash of a model folder's config, weights and vocabulary, and of its Python files if asked."""
    parts = {"config.json": _hash_without(folder / "config.json", VOLATILE_CONFIG)}
    vocabulary = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "*.model")
    for pattern in (WEIGHTS[0], OLD_WEIGHTS[0], *vocabulary, *(["*.py"] if code else [])):
        for path in folder.glob(pattern):
            parts[path.name] = sha256_of(path)
    return hash_of(parts)


def settings_hash(folder: Path) -> str:
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
