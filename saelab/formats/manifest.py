"""What every artifact says of itself: kind, schema version, versions, seed, config, and origin."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from saelab.errors import ArtifactError

from .files import read_json

RECORDED_LIBRARIES = ("saelab", "torch", "transformer-lens", "transformers", "safetensors")


def library_versions() -> dict[str, str]:
    """Versions of the libraries that numbers can depend on, and of Python."""
    found = {"python": platform.python_version()}
    for name in RECORDED_LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def new_manifest(
    kind: str, schema_version: int, *, seed: int | None, config: Any, made_from: dict[str, Any]
) -> dict[str, Any]:
    """Start the manifest of an artifact.

    Args:
        kind: what the artifact is, such as "activation_cache".
        schema_version: of this kind of artifact; readers refuse a newer one.
        seed: the seed of everything random in it; None where nothing is.
        config: the settings that made it, as plain JSON values.
        made_from: names and content hashes of everything it was made from.
    """
    return {
        "kind": kind,
        "schema_version": schema_version,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "library_versions": library_versions(),
        "seed": seed,
        "config": config,
        "made_from": made_from,
    }


def check_manifest(content: Any, path: Path, kind: str, schema_version: int) -> dict[str, Any]:
    """Check that a parsed manifest is of the expected kind and not from the future.

    Raises:
        ArtifactError: another kind of file, or a newer schema version than this saelab reads.
    """
    if not isinstance(content, dict) or "kind" not in content or "schema_version" not in content:
        raise ArtifactError(f"{path} is not a saelab manifest: it names no kind and schema version")
    if content["kind"] != kind:
        raise ArtifactError(f"{path} describes a {content['kind']!r}; a {kind!r} was expected")
    found = content["schema_version"]
    if not isinstance(found, int) or found > schema_version:
        raise ArtifactError(
            f"{path} has schema version {found!r}; this saelab reads up to {schema_version}: "
            "upgrade saelab to read it"
        )
    return content


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


def read_manifest(path: Path, kind: str, schema_version: int) -> dict[str, Any]:
    """Read and check a manifest; see `check_manifest`."""
    return check_manifest(read_json(path), path, kind, schema_version)
