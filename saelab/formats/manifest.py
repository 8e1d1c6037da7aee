"""What every artifact says of itself: kind, schema version, versions, seed, config, and origin.

The manifests of kinds that are sealed hold a SHA-256 of all their content, written by
`write_manifest` and checked by `check_manifest`; with the files that `item_files` names beside
them. A hash without a key finds damage and careless edits; it is no signature.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from saelab.errors import ArtifactError

from .files import hash_of, read_json, sha256_of, write_json
from .kinds import KINDS

SEAL = "self_hash"
"""Key of the hash over everything else in a manifest."""
ITEM_HASHES = "item_hashes"
"""Key of the SHA-256 of each file that `item_files` names."""
NOT_CONTENT = ("created", "library_versions", "content_hash", SEAL)
"""Facts about the writing: artifacts that differ only in these have the same content hash."""
RECORDED_LIBRARIES = ("saelab", "torch", "transformer-lens", "transformers", "safetensors")


def library_versions() -> dict[str, str]:
    """Versions of the libraries that numbers can depend on, and of Python."""
    versions = {"python": platform.python_version()}
    for name in RECORDED_LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def new_manifest(
    kind: str,
    schema_version: int | None = None,
    *,
    seed: int | None,
    config: Any,
    made_from: dict[str, Any],
) -> dict[str, Any]:
    """Start the manifest of an artifact.

    Args:
        kind: what the artifact is, such as "activation_cache".
        schema_version: None: what the table of kinds says.
        seed: the seed of everything random in it; None where nothing is.
        config: the settings that made it, as plain JSON values.
        made_from: names and content hashes of everything it was made from.
    """
    return {
        "kind": kind,
        "schema_version": KINDS[kind].schema_version if schema_version is None else schema_version,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "library_versions": library_versions(),
        "seed": seed,
        "config": config,
        "made_from": made_from,
    }


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """The manifest as JSON gives it back, with the hash over everything in it."""
    plain = json.loads(json.dumps(content, allow_nan=False))
    plain.pop(SEAL, None)
    return plain | {SEAL: hash_of(plain)}


def write_manifest(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Seal a manifest and write it atomically, after the files that it names as `item_files`.

    Returns:
        What was written.

    Raises:
        ResourceError: the disk is full.
    """
    items: dict[str, str] = content.get("item_files", {})
    if items:
        paths = {name: path.parent / name for name in items.values()}
        hashes = {name: sha256_of(file) for name, file in paths.items() if file.is_file()}
        content = content | {ITEM_HASHES: hashes}
    content = seal(content)
    write_json(path, content)
    return content


def read_manifest(path: Path, kind: str, schema_version: int | None = None) -> dict[str, Any]:
    """Read and check a manifest; see `check_manifest`."""
    return check_manifest(read_json(path), path, kind, schema_version)


def check_manifest(
    content: Any, path: Path, kind: str, schema_version: int | None = None
) -> dict[str, Any]:
    """Check that a parsed manifest is of the expected kind, not from the future, and not changed.

    Raises:
        ArtifactError: another kind of file, a newer schema version than this saelab reads, or
            content that is not what was written.
    """
    if not isinstance(content, dict) or "kind" not in content or "schema_version" not in content:
        raise ArtifactError(f"{path} is not a saelab manifest: it names no kind and schema version")
    if content["kind"] != kind:
        given = str(content["kind"])[:60]
        raise ArtifactError(f"{path} describes a {given!r}; a {kind!r} was expected")
    known = KINDS[kind]
    latest = known.schema_version if schema_version is None else schema_version
    version = content["schema_version"]
    if isinstance(version, bool) or not isinstance(version, int) or version > latest:
        raise ArtifactError(
            f"{path} has schema version {str(version)[:60]}; this saelab reads up to {latest}: "
            "upgrade saelab to read it"
        )
    if version < 1:
        raise ArtifactError(f"{path} was damaged or edited: its schema version is {version}")
    must_match = SEAL in content or known.sealed(version)
    if must_match and content.get(SEAL) != _hash_of_rest(content):
        raise ArtifactError(
            f"{path} is incomplete or was edited: its content no longer has the hash it was "
            f"written with; restore it from a copy, or make it again with `{known.made_by}`"
        )
    return content


def _hash_of_rest(content: dict[str, Any]) -> str:
    try:
        return hash_of({key: value for key, value in content.items() if key != SEAL})
    except ValueError:  # NaN or infinity, which no writer of ours writes
        return "none"


def is_sealed(content: dict[str, Any]) -> bool:
    """Whether a manifest that `check_manifest` let through was checked against its own hash."""
    return SEAL in content


def check_item_files(
    content: dict[str, Any], path: Path, *, may_be_missing: bool = False
) -> list[str]:
    """Check the files that a manifest names beside it.

    Args:
        content: the manifest.
        path: where it lies.
        may_be_missing: whether files that are not there are passed over.

    Returns:
        Those whose SHA-256 was not recorded, so that they could not be checked.

    Raises:
        ArtifactError: one is missing or was changed since.
    """
    hashes = content.get(ITEM_HASHES, {})
    for name in content.get("item_files", {}).values():
        if not isinstance(name, str) or Path(name).name != name:
            raise ArtifactError(
                f"{path} names {str(name)[:60]!r}; a file name beside it was expected"
            )
        file = path.parent / name
        if not file.is_file():
            if may_be_missing:
                continue
            raise ArtifactError(f"{path} names {name} beside it: missing; evaluate again")
        if name in hashes and sha256_of(file) != hashes[name]:
            raise ArtifactError(
                f"{file} is not the file that {path.name} was written with (its SHA-256 differs): "
                "it was damaged or changed; evaluate again"
            )
    return [name for name in content.get("item_files", {}).values() if name not in hashes]


def require_fields(
    content: dict[str, Any], fields: Mapping[str, type | tuple[type, ...]], path: Path
) -> dict[str, Any]:
    """Check that parsed JSON has the fields that its reader needs, of the right types.

    Args:
        content: a manifest, or an object inside one.
        fields: by name, the type or the types allowed.
        path: the file it was read from, for the error.

    Raises:
        ArtifactError: naming every field that is missing or of another type.
    """
    wrong = [f"{name!r} is missing" for name in fields if name not in content]
    wrong += [
        f"{name!r} is of type {type(content[name]).__name__}"
        for name, kind in fields.items()
        if name in content and not isinstance(content[name], kind)
    ]
    if wrong:
        raise ArtifactError(f"{path} was damaged or edited: {', '.join(wrong)}")
    return content
