"""`saelab info PATH`: what an artifact is, from what it was made, and whether it is intact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from saelab.config import parse_arguments
from saelab.errors import ArtifactError
from saelab.files import read_json, sha256_of

MANIFEST_FILES = ("saelab.json", "run.json", "manifest.json", "checkpoint.json", "report.json")


@dataclass(frozen=True, kw_only=True)
class InfoCommand:
    """Say what an artifact is, from what it was made, and whether it is intact."""

    path: tyro.conf.Positional[Path]
    """An activation cache, run, checkpoint, dictionary or evaluation result."""


CONFIG = InfoCommand


def main(arguments: Sequence[str]) -> None:
    """Print the facts, or fail in the words of the damage found."""
    command = parse_arguments(InfoCommand, arguments, program="saelab info")
    for line in describe(command.path):
        print(line)


def describe(path: Path) -> list[str]:
    """The lines that `saelab info` prints.

    Raises:
        ArtifactError: nothing of ours is there, or it is damaged.
    """
    folder, manifest = _find_manifest(path)
    lines = [
        f"{manifest['kind'].replace('_', ' ')} (schema version {manifest['schema_version']})",
        f"path: {folder}",
    ]
    if "created" in manifest:
        versions = ", ".join(f"{k} {v}" for k, v in manifest["library_versions"].items())
        lines.append(f"created: {manifest['created']} with {versions}")
    lines += [f"{key}: {_short(value)}" for key, value in manifest.get("made_from", {}).items()]
    describer = DESCRIBERS.get(manifest["kind"])
    return lines + (describer(folder, manifest) if describer else [])


def _find_manifest(path: Path) -> tuple[Path, dict[str, Any]]:
    candidates = [path] if path.is_file() else [path / name for name in MANIFEST_FILES]
    for candidate in candidates:
        if not candidate.is_file():
            continue
        content = read_json(candidate)
        if isinstance(content, dict) and {"kind", "schema_version"} <= set(content):
            return candidate.parent, content
    if not path.exists():
        raise ArtifactError(f"{path} does not exist")
    inside = sorted(
        child for name in MANIFEST_FILES for child in path.glob(f"*/{name}") if path.is_dir()
    )
    hint = f"; try {', '.join(str(child.parent) for child in inside[:4])}" if inside else ""
    raise ArtifactError(f"{path} holds no saelab artifact{hint}")


def _describe_cache(folder: Path, manifest: dict[str, Any]) -> list[str]:
    if manifest.get("status") != "complete":
        return [
            f"status: {manifest.get('status')}, {len(manifest.get('shards', []))} shards written; "
            "continue with `saelab cache … --resume`"
        ]
    from saelab.activation_cache import open_cache

    cache = open_cache(folder)
    return [
        f"rows: {cache.n_rows:,} of width {cache.d_in}"
        + (" with gradients" if cache.has_gradients else ""),
        f"excluded: {_short(cache.excluded)}",
        f"content hash: {cache.content_hash}",
        "intact: every shard has the size and SHA-256 it was written with",
    ]


def _describe_dictionary(folder: Path, manifest: dict[str, Any]) -> list[str]:
    from saelab.dictionary import load_dictionary

    saved = load_dictionary(folder)
    dictionary = saved.dictionary
    return [
        f"architecture: {dictionary.architecture}, d_in {dictionary.d_in}, d_sae {dictionary.d_sae}"
        + (f", k {dictionary.k}" if dictionary.architecture == "topk" else ""),
        *(f"training {key}: {_short(value)}" for key, value in manifest["config"].items()),
        f"content hash: {saved.content_hash}",
        "intact: every file has the SHA-256 it was saved with, and the self-test passes",
    ]


def _describe_run(folder: Path, manifest: dict[str, Any]) -> list[str]:
    lines = [f"status: {manifest['status']}"]
    for name, figures in manifest.get("dictionaries", {}).items():
        lines.append(f"{name}: FVU {figures['fvu']:.4f}, L0 {figures['l0']:.1f}")
        describe(folder / figures["folder"])
    if manifest["status"] == "complete":
        lines.append("intact: every dictionary passes its checks")
    else:
        lines.append("unfinished: continue with `saelab train … --resume`")
    return lines


def _describe_checkpoint(folder: Path, manifest: dict[str, Any]) -> list[str]:
    file = folder / manifest["file"]
    if not file.is_file() or sha256_of(file) != manifest["sha256"]:
        raise ArtifactError(f"{file} is missing or not the file that was saved: it was damaged")
    return [f"steps taken: {manifest['step']}", f"intact: {file.name} has its SHA-256"]


def _describe_evaluation(folder: Path, manifest: dict[str, Any]) -> list[str]:
    del folder
    return [
        f"suite: {manifest['suite']}",
        *(f"{metric['name']}: {_short(metric['value'])}" for metric in manifest["metrics"]),
    ]


DESCRIBERS: dict[str, Callable[[Path, dict[str, Any]], list[str]]] = {
    "activation_cache": _describe_cache,
    "dictionary": _describe_dictionary,
    "training_run": _describe_run,
    "checkpoint": _describe_checkpoint,
    "evaluation_result": _describe_evaluation,
}


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and len(value) > 8:
        return f"{len(value)} values"
    return str(value)
