"""`saelab info PATH`: what an artifact is, from what it was made, and whether it is intact."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import tyro

from saelab.config import parse_arguments
from saelab.errors import ArtifactError
from saelab.features.reader import FeatureStore, is_stale
from saelab.features.schema import FLAGS
from saelab.formats.database import open_to_read
from saelab.formats.evaluation_result import read_evaluation_result
from saelab.formats.files import (
    is_sealed_tensors,
    odd_content_is_damage,
    read_json,
    require_file,
    sha256_of,
)
from saelab.formats.kinds import KINDS, Kind
from saelab.formats.manifest import (
    SEAL,
    check_item_files,
    is_sealed,
    new_manifest,
    read_manifest,
    require_fields,
)
from saelab.formats.run import read_run
from saelab.formats.run_log import read_history

NOT_CHECKED = "not checked: it was written before saelab hashed files of this kind"
WORK_FOLDER = "features.build"


@dataclass(frozen=True, kw_only=True)
class InfoCommand:
    """Say what an artifact is, from what it was made, and whether it is intact."""

    path: tyro.conf.Positional[Path]
    """A file or folder that any command of saelab wrote."""


CONFIG = InfoCommand


def main(arguments: Sequence[str]) -> None:
    """Print the facts, or fail in the words of the damage found."""
    command = parse_arguments(InfoCommand, arguments, program="saelab info")
    try:
        lines = describe(command.path)
    except NoArtifactError as error:
        lines = _describe_foreign(command.path, error)
    for line in lines:
        print(line)


class NoArtifactError(ArtifactError):
    """Something is there, and saelab did not write it."""


def describe(path: Path) -> list[str]:
    """The lines that `saelab info` prints.

    Raises:
        ArtifactError: the path holds no artifact of saelab, or a damaged or a newer one.
    """
    file, kind = _find(path)
    with odd_content_is_damage(file):
        return _describe(file, kind)


def _describe(file: Path, kind: Kind) -> list[str]:
    title = kind.name.replace("_", " ")
    if not kind.has_manifest:
        return [title, f"path: {file}", *DESCRIBERS[kind.name](file)]
    if file.suffix == ".sqlite":
        with FeatureStore(file) as store:
            manifest = store.manifest
    else:
        manifest = read_manifest(file, kind.name)
    lines = [f"{title} (schema version {manifest['schema_version']})", f"path: {file.parent}"]
    # The checkpoint's file only points to the newest checkpoint of a run, which has all this.
    if kind.name != "checkpoint":
        fields = {"created": str, "library_versions": dict, "made_from": dict}
        require_fields(manifest, fields, file)
        versions = ", ".join(f"{name} {v}" for name, v in manifest["library_versions"].items())
        lines.append(f"created: {manifest['created']} with {versions}")
        for key, value in manifest["made_from"].items():
            lines += _describe_import(value) if key == "imported" else [f"{key}: {_short(value)}"]
    return lines + DESCRIBERS[kind.name](file, manifest)


def _find(path: Path) -> tuple[Path, Kind]:
    """The file that says what an artifact is, and its kind."""
    if path.is_file():
        kind = _kind_of(path)
        if kind is None:
            raise NoArtifactError(f"{path} is not a file of saelab: {', '.join(KINDS)} are known")
        return path, kind
    if not path.exists():
        raise ArtifactError(f"{path} does not exist")
    if not path.is_dir():
        require_file(path)
    if path.name == WORK_FOLDER:
        return path, KINDS["feature_shards"]
    for candidate in _candidates(path):
        kind = _kind_of(candidate)
        if kind is not None and kind.has_manifest:
            return candidate, kind
    children = (child for child in sorted(path.iterdir()) if child.is_dir())
    inside = [str(child) for child in children if any(True for _ in _candidates(child))]
    hint = f"; try {', '.join(inside[:4])}" if inside else ""
    raise NoArtifactError(f"{path} holds no saelab artifact{hint}")


def _candidates(folder: Path) -> Iterator[Path]:
    for kind in KINDS.values():
        for pattern in kind.files if kind.has_manifest else ():
            yield from (file for file in sorted(folder.glob(pattern)) if file.is_file())


def _kind_of(file: Path) -> Kind | None:
    """What a file is: JSON says so itself, the rest is known by its name."""
    if file.suffix == ".json":
        try:
            content = read_json(file)
        except ArtifactError:
            if _has_our_name(file):
                raise
            return None
        if not isinstance(content, dict) or not {"kind", "schema_version"} <= set(content):
            return None
        name = content["kind"]
        if not isinstance(name, str) or name not in KINDS:
            raise ArtifactError(
                f"{file} describes a {str(name)[:60]!r}, which this saelab does not know: upgrade "
                "saelab"
            )
        return KINDS[name]
    if file.suffix == ".sqlite":
        if not _has_our_name(file) and not _holds_manifest(file):
            return None
        named = (kind for kind in KINDS.values() if file.name in kind.files)
        return next(named, KINDS["feature_store"])
    for kind in KINDS.values():
        if not kind.has_manifest and any(fnmatch(file.name, pattern) for pattern in kind.files):
            return kind
    return None


def _has_our_name(file: Path) -> bool:
    """Whether a file is called as saelab calls its own, so that unreadable means damaged."""
    patterns = (pattern for kind in KINDS.values() for pattern in kind.files)
    return any(fnmatch(file.name, pattern) for pattern in patterns if pattern != "*.sqlite")


def _holds_manifest(file: Path) -> bool:
    try:
        with closing(open_to_read(file)) as connection:
            connection.execute("SELECT content FROM manifest").fetchone()
    except sqlite3.Error:
        return False
    return True


def _verdict(file: Path, manifest: dict[str, Any]) -> str:
    """The last line: what is intact, or what was not checked."""
    if not is_sealed(manifest):
        return NOT_CHECKED
    if unchecked := check_item_files(manifest, file):
        return f"not checked: {', '.join(unchecked)}; the rest has the SHA-256 it was written with"
    return f"intact: {KINDS[manifest['kind']].intact}"


def _describe_cache(file: Path, manifest: dict[str, Any]) -> list[str]:
    from saelab.cache import format as cache_format
    from saelab.cache.reader import open_cache
    from saelab.text.contexts import what_was_read

    require_fields(manifest, {"status": str}, file)
    if manifest["status"] != "complete":
        entries = cache_format.shard_entries(cache_format.read_cache_manifest(file), file)
        cache_format.verify_shards(file.parent, entries)
        rows = sum(entry.rows for entry in entries)
        checked = (
            f"intact so far: {len(entries)} shards with {rows:,} rows, and the manifest, have the "
            "SHA-256 they were written with"
        )
        return [
            checked if is_sealed(manifest) else NOT_CHECKED,
            f"unfinished ({manifest['status']}): {cache_format.how_to_finish(manifest)}",
        ]
    cache = open_cache(file.parent, verify=True)
    read = what_was_read(manifest.get("text_read", {}))
    return [
        f"rows: {cache.n_rows:,} of width {cache.d_in}"
        + (" with gradients" if cache.has_gradients else ""),
        f"excluded: {_short(cache.excluded)}",
        *(f"text {line}" for line in (*manifest.get("text_files", ()), *read)),
        f"content hash: {cache.content_hash}",
        f"intact: {KINDS['activation_cache'].intact}",
    ]


def _describe_dictionary(file: Path, manifest: dict[str, Any]) -> list[str]:
    from saelab.dictionary import load_dictionary

    require_fields(manifest, {"config": dict}, file)
    saved = load_dictionary(file.parent)
    dictionary = saved.dictionary
    return [
        f"architecture: {dictionary.architecture}, d_in {dictionary.d_in}, d_sae {dictionary.d_sae}"
        + (f", k {dictionary.k}" if dictionary.k else ""),
        *(f"training {key}: {_short(value)}" for key, value in manifest["config"].items()),
        f"content hash: {saved.content_hash}",
        f"intact: {KINDS['dictionary'].intact}",
    ]


def _describe_run(file: Path, manifest: dict[str, Any]) -> list[str]:
    run = read_run(file.parent)
    lines = [f"status: {run.status}"]
    if not run.complete:
        checkpoint = file.parent / "checkpoint" / "checkpoint.json"
        if checkpoint.exists():
            lines += [f"checkpoint, {line}" for line in describe(checkpoint)[-2:]]
        return [*lines, "unfinished: continue with `saelab train … --resume`"]
    for name, figures in run.dictionaries().items():
        lines.append(f"{name}: FVU {_short(figures.fvu)}, L0 {_short(figures.l0)}")
        describe(figures.folder)
    return [*lines, _verdict(file, manifest)]


def _describe_checkpoint(file: Path, manifest: dict[str, Any]) -> list[str]:
    require_fields(manifest, {"file": str, "sha256": str, "step": int}, file)
    saved = file.parent / manifest["file"]
    if not saved.is_file() or sha256_of(saved) != manifest["sha256"]:
        raise ArtifactError(f"{saved} is missing or not the file that was saved: it was damaged")
    return [f"steps taken: {manifest['step']}", _verdict(file, manifest)]


def _describe_evaluation(file: Path, manifest: dict[str, Any]) -> list[str]:
    result = read_evaluation_result(file)
    return [
        f"suite: {result.suite}",
        f"dictionary: {result.dictionary_name} ({result.dictionary_hash})",
        *(f"{metric.name}: {_short(metric.value)}" for metric in result.metrics),
        _verdict(file, manifest),
    ]


def _describe_family(file: Path, manifest: dict[str, Any]) -> list[str]:
    require_fields(manifest, {"dictionaries": list, "notes": list}, file)
    entries = [entry for entry in manifest["dictionaries"] if isinstance(entry, dict)]
    names = ", ".join(str(entry.get("name")) for entry in entries)
    return [f"dictionaries: {names}", *map(str, manifest["notes"]), _verdict(file, manifest)]


def _describe_score_card(file: Path, manifest: dict[str, Any]) -> list[str]:
    require_fields(manifest, {"entries": list}, file)
    return [f"ways of training: {len(manifest['entries'])}", _verdict(file, manifest)]


def _describe_sites(file: Path, manifest: dict[str, Any]) -> list[str]:
    require_fields(manifest, {"task": str, "cross_sections": list}, file)
    return [
        f"task: {manifest['task']}",
        f"cross-sections: {len(manifest['cross_sections'])}",
        "not checked: people may write and edit the sites of a task",
    ]


def _describe_circuit(file: Path, manifest: dict[str, Any]) -> list[str]:
    require_fields(manifest, {"circuit": dict}, file)
    roles = manifest["circuit"].get("roles", [])
    return [f"roles: {len(roles)}", _verdict(file, manifest)]


def _describe_quickstart(file: Path, manifest: dict[str, Any]) -> list[str]:
    """A report: its dictionary and its cache must still be those it was made from."""
    from saelab.cache.reader import open_cache
    from saelab.dictionary import load_dictionary

    require_fields(manifest, {"dictionary": str}, file)
    name = Path(manifest["dictionary"]).name
    hashes = {
        "dictionary": load_dictionary(file.parent / "train" / "dictionaries" / name).content_hash,
        "cache": open_cache(file.parent / "cache", verify=True).content_hash,
    }
    for part, content_hash in hashes.items():
        if manifest["made_from"].get(f"{part}_hash") != content_hash:
            raise ArtifactError(f"{file} was made from another {part} than the one beside it now")
    known = (*new_manifest("quickstart_report", seed=0, config={}, made_from={}), SEAL)
    return [
        *(f"{key}: {_short(value)}" for key, value in manifest.items() if key not in known),
        _verdict(file, manifest),
    ]


def _describe_tuning(file: Path, manifest: dict[str, Any]) -> list[str]:
    require_fields(manifest, {"status": str, "rungs": list}, file)
    done = f"rungs done: {len(manifest['rungs'])}"
    if manifest["status"] == "complete":
        return [done, f"best: {manifest['best']}", _verdict(file, manifest)]
    return [done, _verdict(file, manifest), "unfinished: continue with `saelab tune … --resume`"]


def _describe_quickstart_state(file: Path, manifest: dict[str, Any]) -> list[str]:
    require_fields(manifest, {"finished": list}, file)
    return [
        f"finished: {', '.join(map(str, manifest['finished'])) or 'nothing'}",
        _verdict(file, manifest),
        "unfinished: continue with `saelab quickstart … --resume`",
    ]


def _describe_store(file: Path, manifest: dict[str, Any]) -> list[str]:
    """A feature store: its tables, every feature, and whether it still fits its dictionary."""
    with FeatureStore(file) as store:
        store.verify()
        for feature in range(store.n_features):
            store.feature(feature, 0)
        counts = ", ".join(f"{int(store.flag(name).sum()):,} {name}" for name in FLAGS)
        stale = is_stale(store, file.parent)
    return [
        f"features: {manifest['n_features']:,} ({counts})",
        f"tokens counted: {manifest['n_tokens']:,} in {manifest['n_sequences']:,} contexts",
        f"logit lens: {manifest['logit_lens']}",
        f"store id: {manifest['store_id']}",
        _verdict(file, manifest),
        "of the dictionary beside it" if stale is None else stale,
    ]


def _describe_labels(file: Path) -> list[str]:
    try:
        with closing(open_to_read(file)) as connection:
            (state,) = connection.execute("PRAGMA integrity_check").fetchone()
            (count,) = connection.execute("SELECT count(*) FROM label").fetchone()
    except sqlite3.Error as error:
        raise ArtifactError(f"{file} cannot be read ({error}): it was damaged") from None
    if state != "ok":
        raise ArtifactError(f"{file} was damaged: {str(state)[:200]}")
    return [f"labels: {count:,}", "not checked: people add to it; the database is consistent"]


def _describe_list(file: Path, manifest: dict[str, Any]) -> list[str]:
    from saelab.features.lists import read_list

    content = read_list(file)
    return [f"name: {content.name}", f"features: {len(content.features)}", _verdict(file, manifest)]


def _describe_shards(file: Path) -> list[str]:
    from saelab.features.shards import check_shard

    shards = sorted(file.glob("shard-*.safetensors")) if file.is_dir() else [file]
    for shard in shards:
        check_shard(shard)
    return [
        f"shards: {len(shards)}",
        f"intact: {KINDS['feature_shards'].intact}",
        "unfinished: continue with the same `saelab features` command",
    ]


def _describe_answers(file: Path) -> list[str]:
    from saelab.explain.answers import AnswerBook

    with AnswerBook(file) as answers:
        return [f"answers: {answers.verify():,}", f"intact: {KINDS['explanation_answers'].intact}"]


def _describe_meanings(file: Path) -> list[str]:
    from saelab.explain.meaning import read_meanings

    tensors = read_meanings(file)
    checked = f"intact: {KINDS['feature_meanings'].intact}"
    return [f"texts: {len(tensors['keys']):,}", checked]


def _describe_probe(file: Path) -> list[str]:
    from saelab.dictionary.decomposition import load_probe

    width = len(load_probe(file).bias)
    checked = f"intact: {KINDS['error_probe'].intact}"
    return [f"width: {width}", checked if is_sealed_tensors(file) else NOT_CHECKED]


def _describe_rows(file: Path) -> list[str]:
    """A parquet file: some result beside it must name its hash."""
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.ParquetFile(file).metadata
    except (ArrowException, OSError) as error:
        raise ArtifactError(f"{file} is not readable as parquet ({error})") from None
    lines = [f"rows: {table.num_rows:,}", f"columns: {table.num_columns}"]
    for candidate in sorted(file.parent.glob("*.json")):
        kind = _kind_of(candidate)
        content = {} if kind is None else read_manifest(candidate, kind.name)
        if file.name in content.get("item_files", {}).values():
            unchecked = file.name in check_item_files(content, candidate)
            checked = f"intact: it has the SHA-256 that {candidate.name} beside it names"
            return [*lines, NOT_CHECKED if unchecked else checked]
    return [*lines, "not checked: no result beside it names it"]


def _describe_log(file: Path) -> list[str]:
    history = read_history(file)
    return [
        f"dictionaries: {', '.join(history.dictionaries)}",
        f"rows trained on at the last line: {history.last_tokens:,}",
        "not checked: a run adds to it while it trains; every line is one of its kind",
    ]


# Files without a manifest are described by their path alone.
DESCRIBERS: dict[str, Callable[..., list[str]]] = {
    "activation_cache": _describe_cache,
    "dictionary": _describe_dictionary,
    "training_run": _describe_run,
    "checkpoint": _describe_checkpoint,
    "evaluation_result": _describe_evaluation,
    "comparison": _describe_evaluation,
    "dark_matter_family": _describe_family,
    "recovery_score_card": _describe_score_card,
    "supervised_sites": _describe_sites,
    "supervised_circuit": _describe_circuit,
    "quickstart_report": _describe_quickstart,
    "tuning": _describe_tuning,
    "quickstart_state": _describe_quickstart_state,
    "feature_store": _describe_store,
    "feature_labels": _describe_labels,
    "feature_list": _describe_list,
    "feature_shards": _describe_shards,
    "explanation_answers": _describe_answers,
    "feature_meanings": _describe_meanings,
    "error_probe": _describe_probe,
    "rows": _describe_rows,
    "training_log": _describe_log,
}


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and len(value) > 8:
        return f"{len(value)} values"
    return str(value)


def _describe_foreign(path: Path, error: NoArtifactError) -> list[str]:
    """A dictionary that others saved, and the command that opens it."""
    from saelab.dictionary.importers import FORMATS, recognise, resolve

    try:
        name = recognise(resolve(str(path)))
    except ArtifactError:
        raise error from None
    return [
        f"dictionary of another library: {FORMATS[name].title}",
        f"path: {path}",
        f"format: {name}",
        f"not opened yet: `saelab import {path}` reads it, measures it on text and keeps it",
    ]


def _describe_import(record: dict[str, Any]) -> list[str]:
    """Where an imported dictionary is from, how it was read, and whether it does what was said."""
    from .import_dictionary import record_remarks, record_rows

    rows = [("from", record["source"]), *record_rows(record)]
    return [*(f"imported, {name}: {words}" for name, words in rows), *record_remarks(record)]
