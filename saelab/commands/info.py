"""`saelab info PATH`: what an artifact is, from what it was made, and whether it is intact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from saelab.config import parse_arguments
from saelab.errors import ArtifactError
from saelab.formats.evaluation_result import read_evaluation_result
from saelab.formats.files import read_json, sha256_of
from saelab.formats.manifest import check_manifest, require_fields

# In the order they are looked for in a folder.
MANIFEST_FILES = (
    "saelab.json",
    "run.json",
    "manifest.json",
    "checkpoint.json",
    "report.json",
    "quickstart.json",
    "core.json",
    "recovery.json",
    "compare.json",
)
# Repeated from the rooms that write them: the library may not import those.
SCHEMA_VERSIONS = {
    "activation_cache": 1,
    "dictionary": 1,
    "training_run": 1,
    "checkpoint": 1,
    "evaluation_result": 1,
    "comparison": 1,
    "quickstart_report": 1,
    "quickstart_state": 1,
    "feature_store": 2,
}
STORE_SUFFIX = ".sqlite"
NUMBER_OR_NONE = (int, float, type(None))


@dataclass(frozen=True, kw_only=True)
class InfoCommand:
    """Say what an artifact is, from what it was made, and whether it is intact."""

    path: tyro.conf.Positional[Path]
    """An activation cache, run, checkpoint, dictionary, evaluation result, comparison, feature
    store or quickstart."""


CONFIG = InfoCommand


def main(arguments: Sequence[str]) -> None:
    """Print the facts, or fail in the words of the damage found."""
    command = parse_arguments(InfoCommand, arguments, program="saelab info")
    for line in describe(command.path):
        print(line)


def describe(path: Path) -> list[str]:
    """The lines that `saelab info` prints.

    Raises:
        ArtifactError: nothing of ours is there, it is damaged, or from a newer saelab.
    """
    file, manifest = _find_manifest(path)
    kind = manifest["kind"]
    if not isinstance(kind, str) or kind not in SCHEMA_VERSIONS:
        raise ArtifactError(
            f"{file} describes a {kind!r}, which this saelab does not know: upgrade saelab"
        )
    check_manifest(manifest, file, kind, SCHEMA_VERSIONS[kind])
    lines = [
        f"{kind.replace('_', ' ')} (schema version {manifest['schema_version']})",
        f"path: {file.parent}",
    ]
    # The checkpoint's file only points to the newest checkpoint of a run, which has all this.
    if kind != "checkpoint":
        require_fields(
            manifest, {"created": str, "library_versions": dict, "made_from": dict}, file
        )
        versions = ", ".join(f"{name} {v}" for name, v in manifest["library_versions"].items())
        lines.append(f"created: {manifest['created']} with {versions}")
        lines += [f"{key}: {_short(value)}" for key, value in manifest["made_from"].items()]
    return lines + DESCRIBERS[kind](file, manifest)


def _find_manifest(path: Path) -> tuple[Path, dict[str, Any]]:
    if path.suffix == STORE_SUFFIX and path.is_file():
        return path, _store_manifest(path)
    candidates = [path] if path.is_file() else [path / name for name in MANIFEST_FILES]
    for candidate in candidates:
        if not candidate.is_file():
            continue
        content = read_json(candidate)
        if isinstance(content, dict) and {"kind", "schema_version"} <= set(content):
            return candidate, content
    if not path.exists():
        raise ArtifactError(f"{path} does not exist")
    inside = sorted(
        child for name in MANIFEST_FILES for child in path.glob(f"*/{name}") if path.is_dir()
    )
    hint = f"; try {', '.join(str(child.parent) for child in inside[:4])}" if inside else ""
    raise ArtifactError(f"{path} holds no saelab artifact{hint}")


def _describe_cache(file: Path, manifest: dict[str, Any]) -> list[str]:
    from saelab.cache import open_cache
    from saelab.cache.format import (
        how_to_finish,
        read_cache_manifest,
        shard_entries,
        verify_shards,
    )

    require_fields(manifest, {"status": str}, file)
    if manifest["status"] != "complete":
        entries = shard_entries(read_cache_manifest(file), file)
        verify_shards(file.parent, entries)
        return [
            f"intact so far: {len(entries)} shards with {sum(e.rows for e in entries):,} rows have "
            "the size and SHA-256 they were written with",
            f"unfinished ({manifest['status']}): {how_to_finish(manifest)}",
        ]
    cache = open_cache(file.parent)
    return [
        f"rows: {cache.n_rows:,} of width {cache.d_in}"
        + (" with gradients" if cache.has_gradients else ""),
        f"excluded: {_short(cache.excluded)}",
        f"content hash: {cache.content_hash}",
        "intact: every shard has the size and SHA-256 it was written with",
    ]


def _describe_dictionary(file: Path, manifest: dict[str, Any]) -> list[str]:
    from saelab.dictionary import load_dictionary

    require_fields(manifest, {"config": dict}, file)
    saved = load_dictionary(file.parent)
    dictionary = saved.dictionary
    return [
        f"architecture: {dictionary.architecture}, d_in {dictionary.d_in}, d_sae {dictionary.d_sae}"
        + (f", k {dictionary.k}" if dictionary.architecture == "topk" else ""),
        *(f"training {key}: {_short(value)}" for key, value in manifest["config"].items()),
        f"content hash: {saved.content_hash}",
        "intact: every file has the SHA-256 it was saved with, and the self-test passes",
    ]


def _describe_run(file: Path, manifest: dict[str, Any]) -> list[str]:
    require_fields(manifest, {"status": str}, file)
    lines = [f"status: {manifest['status']}"]
    if manifest["status"] != "complete":
        checkpoint = file.parent / "checkpoint" / "checkpoint.json"
        if checkpoint.exists():
            lines += [f"checkpoint, {line}" for line in describe(checkpoint)[-2:]]
        return [*lines, "unfinished: continue with `saelab train … --resume`"]
    require_fields(manifest, {"dictionaries": dict}, file)
    require_fields(manifest["dictionaries"], dict.fromkeys(manifest["dictionaries"], dict), file)
    for name, figures in manifest["dictionaries"].items():
        require_fields(figures, {"folder": str, "fvu": NUMBER_OR_NONE, "l0": NUMBER_OR_NONE}, file)
        lines.append(f"{name}: FVU {_short(figures['fvu'])}, L0 {_short(figures['l0'])}")
        describe(file.parent / figures["folder"])
    return [*lines, "intact: every dictionary passes its checks"]


def _describe_checkpoint(file: Path, manifest: dict[str, Any]) -> list[str]:
    require_fields(manifest, {"file": str, "sha256": str, "step": int}, file)
    saved = file.parent / manifest["file"]
    if not saved.is_file() or sha256_of(saved) != manifest["sha256"]:
        raise ArtifactError(f"{saved} is missing or not the file that was saved: it was damaged")
    return [f"steps taken: {manifest['step']}", f"intact: {saved.name} has its SHA-256"]


def _describe_evaluation(file: Path, manifest: dict[str, Any]) -> list[str]:
    del manifest
    result = read_evaluation_result(file)
    missing = [name for name in result.item_files.values() if not (file.parent / name).is_file()]
    if missing:
        raise ArtifactError(f"{file} names {', '.join(missing)} beside it: missing; evaluate again")
    return [
        f"suite: {result.suite}",
        f"dictionary: {result.dictionary_name} ({result.dictionary_hash})",
        *(f"{metric.name}: {_short(metric.value)}" for metric in result.metrics),
        "intact: every field is there, every number is finite, and so are the files it names",
    ]


def _describe_comparison(file: Path, manifest: dict[str, Any]) -> list[str]:
    """A comparison: its figures must still be drawn from its data."""
    from saelab.report.compare_figures import comparison_figures

    require_fields(manifest, {"dictionaries": list, "rows": list, "figure_data": dict}, file)
    figures = comparison_figures(manifest["figure_data"], str(file))
    lines = [f"dictionaries: {len(manifest['dictionaries'])}"]
    for place, row in enumerate(manifest["rows"]):
        require_fields({f"row {place}": row}, {f"row {place}": dict}, file)
        require_fields(row, {"label": str, "d_sae": int, "seeds": list, "values": dict}, file)
        fvu = row["values"].get("fvu")
        mean = fvu.get("mean") if isinstance(fvu, dict) else None
        lines.append(
            f"{row['label']}, {row['d_sae']:,} latents, k {_short(row.get('k'))}: "
            f"FVU {_short(mean)}, {len(row['seeds'])} seeds"
        )
    return [*lines, f"intact: {len(figures)} figures can be drawn from its data"]


def _describe_quickstart(file: Path, manifest: dict[str, Any]) -> list[str]:
    """A report: its dictionary and its cache must still be those it was made from."""
    from saelab.cache import open_cache
    from saelab.dictionary import load_dictionary

    require_fields(manifest, {"dictionary": str}, file)
    name = Path(manifest["dictionary"]).name
    found = {
        "dictionary": load_dictionary(file.parent / "train" / "dictionaries" / name).content_hash,
        "cache": open_cache(file.parent / "cache").content_hash,
    }
    for part, content_hash in found.items():
        if manifest["made_from"].get(f"{part}_hash") != content_hash:
            raise ArtifactError(f"{file} was made from another {part} than lies beside it now")
    known = ("kind", "schema_version", "created", "library_versions", "made_from", "config", "seed")
    return [
        *(f"{key}: {_short(value)}" for key, value in manifest.items() if key not in known),
        "intact: its dictionary and its cache pass their checks and are those it was made from",
    ]


def _describe_quickstart_state(file: Path, manifest: dict[str, Any]) -> list[str]:
    require_fields(manifest, {"finished": list}, file)
    return [
        f"finished: {', '.join(map(str, manifest['finished'])) or 'nothing'}",
        "unfinished: continue with `saelab quickstart … --resume`",
    ]


def _store_manifest(path: Path) -> dict[str, Any]:
    from saelab.features.reader import FeatureStore

    with FeatureStore(path) as store:
        return store.manifest


def _describe_store(file: Path, manifest: dict[str, Any]) -> list[str]:
    """A feature store: every feature must be readable; whether it still fits its dictionary."""
    from saelab.features.reader import FeatureStore
    from saelab.features.schema import FLAGS
    from saelab.features.staleness import is_stale

    with FeatureStore(file) as store:
        for feature in range(store.n_features):
            store.feature(feature, 0)
        counts = ", ".join(f"{int(store.flag(name).sum()):,} {name}" for name in FLAGS)
        stale = is_stale(store, file.parent)
    return [
        f"features: {manifest['n_features']:,} ({counts})",
        f"tokens counted: {manifest['n_tokens']:,} in {manifest['n_sequences']:,} contexts",
        f"logit lens: {manifest['logit_lens']}",
        f"store id: {manifest['store_id']}",
        f"intact: all {manifest['n_features']:,} features can be read",
        "of the dictionary beside it" if stale is None else stale,
    ]


DESCRIBERS: dict[str, Callable[[Path, dict[str, Any]], list[str]]] = {
    "activation_cache": _describe_cache,
    "dictionary": _describe_dictionary,
    "training_run": _describe_run,
    "checkpoint": _describe_checkpoint,
    "evaluation_result": _describe_evaluation,
    "comparison": _describe_comparison,
    "quickstart_report": _describe_quickstart,
    "quickstart_state": _describe_quickstart_state,
    "feature_store": _describe_store,
}


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and len(value) > 8:
        return f"{len(value)} values"
    return str(value)
