"""Whether a store still belongs to the dictionary on disk, in words; loads no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saelab.errors import ArtifactError
from saelab.formats.files import read_json

from .reader import FeatureStore

# Of the dictionary's folder; repeated here because its own module loads torch.
DICTIONARY_MANIFEST = "saelab.json"
WEIGHTS_FILE = "sae_weights.safetensors"


def is_stale(store: FeatureStore, dictionary: Path) -> str | None:
    """Compare a store with the dictionary it lies beside.

    Args:
        store: the store.
        dictionary: the dictionary's folder.

    Returns:
        None where they belong together; else a sentence that says what differs and what to do.
    """
    made_from = store.manifest["made_from"]
    remedy = f"build it again with `saelab features {dictionary} --overwrite`"
    try:
        manifest = read_json(dictionary / DICTIONARY_MANIFEST)
        content_hash, weights = _hashes(manifest)
    except ArtifactError as error:
        return f"The dictionary of these features cannot be read: {error}."
    if weights != made_from.get("weights_sha256"):
        return (
            f"These features were built from a different checkpoint: the weights in {dictionary} "
            f"have SHA-256 {_short(weights)}, those the features were read with had "
            f"{_short(made_from.get('weights_sha256'))}; {remedy}."
        )
    if content_hash != made_from.get("dictionary_hash"):
        return (
            f"The dictionary in {dictionary} was saved again with other settings since these "
            f"features were built, though with the same weights; {remedy}."
        )
    if store.manifest["schema_version"] < 2:
        return (
            "These features were built by an earlier saelab, which listed a feature's top tokens "
            f"in a wrong order; {remedy}."
        )
    return None


def _hashes(manifest: Any) -> tuple[str, str]:
    """Content hash of a dictionary, and that of its weights."""
    try:
        return str(manifest["content_hash"]), str(manifest["files"][WEIGHTS_FILE])
    except (KeyError, TypeError):
        raise ArtifactError(f"its {DICTIONARY_MANIFEST} names no hashes") from None


def _short(content_hash: Any) -> str:
    return f"{str(content_hash)[:12]}…"
