"""Dictionaries on the Hugging Face Hub: what is uploaded, the model card, and fetching one.

Nothing is sent unless the caller says so; `plan_push` only looks.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.errors import ArtifactError, ConfigError
from saelab.formats.evaluation_result import EvaluationResult, read_evaluation_result
from saelab.formats.files import json_bytes, read_json, whole_folder
from saelab.formats.lock import writer_lock
from saelab.formats.manifest import seal

from .importers.sources import HubPath, fetch, hub_refusal
from .storage import (
    CONFIG_FILE,
    MANIFEST_FILE,
    SavedDictionary,
    content_hash_of,
    load_dictionary,
)

CARD_FILE = "README.md"
RESULTS_FOLDER = "evals"
HEADLINE = ("fvu", "l0_mean", "dead_fraction", "loss_recovered_zero", "kl")
"""Numbers of the core suite that the card shows first."""


@dataclass(frozen=True)
class Upload:
    """What would be uploaded."""

    where: HubPath
    """Repository and folder."""
    files: Mapping[str, Path | bytes]
    """By name in the folder: the file, or its content where it is not sent as it lies here."""
    card: str
    """Content of the model card."""

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file by name."""
        return {
            name: len(file) if isinstance(file, bytes) else file.stat().st_size
            for name, file in self.files.items()
        }


def plan_push(folder: Path, where: HubPath) -> Upload:
    """What uploading a dictionary would send: its files, its evaluation results, a model card.

    Labels, notes, feature stores and whatever else lies in the folder stay here. Of a model, text
    or source that is named by a path of this machine, the last part alone is sent.

    Raises:
        ArtifactError: no intact dictionary, or an evaluation result that is not.
    """
    if (folder / CONFIG_FILE).is_file() and not (folder / MANIFEST_FILE).exists():
        raise ArtifactError(
            f"{folder} was not saved by saelab: open it with `saelab import {folder}`, then push it"
        )
    saved = load_dictionary(folder)
    paths = [path for path in sorted((folder / RESULTS_FOLDER).glob("*.json")) if _is_result(path)]
    results = {path: read_evaluation_result(path) for path in paths}
    other = [each for each in results.values() if each.dictionary_hash != saved.content_hash]
    if other:
        raise ArtifactError(
            f"{folder / RESULTS_FOLDER} holds a {other[0].suite} result of another dictionary: "
            "make it again with --overwrite, or take it away"
        )
    sent = [folder / name for name in (MANIFEST_FILE, *saved.manifest["files"])]
    for path in results:
        sent += [path, *(page for page in [path.with_suffix(".html")] if page.exists())]
    files: dict[str, Path | bytes] = {str(path.relative_to(folder)): path for path in sent}
    card = model_card(saved, list(results.values()), where)
    told = [saved.made_from, saved.manifest["config"]]
    told += [part for each in results.values() for part in (each.asked, each.settings)]
    local: set[str] = set()
    _each_string(told, lambda text: local.add(text) if text.startswith(("/", "~/")) else None)
    if not local:
        return Upload(where, files, card)
    rewritten, public = _without_paths(saved, paths, local)
    return Upload(where, files | rewritten, public(card))


def _without_paths(
    saved: SavedDictionary, results: Sequence[Path], local: Collection[str]
) -> tuple[dict[str, bytes], Callable[[str], str]]:
    """The files that may hold paths, with their last parts instead, and what changes any text so.

    Its content hash names the manifest too, so the dictionary and its results get another.
    """
    names = {path: Path(path).name for path in sorted(local, key=len, reverse=True)}

    def public(text: str) -> str:
        for path, name in names.items():
            text = text.replace(path, name)
        return text

    config = json_bytes(_each_string(saved.config, public))
    manifest = _each_string(saved.manifest, public)
    manifest["files"][CONFIG_FILE] = hashlib.sha256(config).hexdigest()
    manifest["content_hash"] = names[saved.content_hash] = content_hash_of(manifest)
    files = {CONFIG_FILE: config, MANIFEST_FILE: json_bytes(seal(manifest))}
    for path in results:
        content = seal(_each_string(read_json(path), public))
        files[f"{RESULTS_FOLDER}/{path.name}"] = json_bytes(content)
        if (page := path.with_suffix(".html")).exists():
            files[f"{RESULTS_FOLDER}/{page.name}"] = public(page.read_text("utf-8")).encode()
    return files, public


def _each_string(content: Any, change: Callable[[str], Any]) -> Any:
    """Plain values with every string in them changed."""
    if isinstance(content, Mapping):
        return {name: _each_string(value, change) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_each_string(value, change) for value in content]
    return change(content) if isinstance(content, str) else content


def _is_result(path: Path) -> bool:
    content = read_json(path)
    return isinstance(content, dict) and content.get("kind") == "evaluation_result"


def push(folder: Path, upload: Upload, *, private: bool) -> str:
    """Upload; the repository is made if need be.

    Returns:
        Its address.

    Raises:
        ArtifactError: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    prefix = f"{upload.where.path}/" if upload.where.path else ""
    operations = [
        CommitOperationAdd(prefix + name, file if isinstance(file, bytes) else str(file))
        for name, file in upload.files.items()
    ]
    operations.append(CommitOperationAdd(prefix + CARD_FILE, upload.card.encode()))
    api = HfApi()
    try:
        api.create_repo(upload.where.repo, private=private, exist_ok=True)
        commit = api.create_commit(
            upload.where.repo,
            operations,
            commit_message=f"Add the dictionary {folder.resolve().name}",
            revision=upload.where.revision,
        )
    except Exception as error:
        raise hub_refusal(upload.where, error, "written") from None
    return str(commit.commit_url)


def pull(where: HubPath, out: Path) -> SavedDictionary:
    """Fetch a dictionary of saelab's from the Hub, and check it.

    Raises:
        ConfigError: `out` exists.
        ArtifactError: it is not there, or no intact dictionary of saelab's.
    """
    with writer_lock(out):
        if out.exists():
            raise ConfigError(f"{out} exists: give another --out")
        source = fetch(where)
        if not (source / MANIFEST_FILE).is_file():
            raise ArtifactError(
                f"{where.repo}/{where.path} was not saved by saelab: open it with `saelab import "
                f"hf:{where.repo}/{where.path}`"
            )
        load_dictionary(source)
        # A copy, since what lies in the Hub's cache must not be written to.
        with whole_folder(out) as whole:
            shutil.copytree(source, whole, symlinks=False, dirs_exist_ok=True)
        return load_dictionary(out)


def model_card(saved: SavedDictionary, results: Sequence[EvaluationResult], where: HubPath) -> str:
    """The card that the Hub shows: what it is, how to open it, and every result's numbers."""
    dictionary, training = saved.dictionary, saved.manifest.get("config", {})
    address = "/".join(part for part in (where.repo, where.path) if part)
    imported = saved.made_from.get("imported")
    facts = {
        "Architecture": dictionary.architecture,
        "Latents": f"{dictionary.d_sae:,}",
        "Width": f"{dictionary.d_in:,}",
        "Language model": saved.made_from.get("model"),
        "Hook point": str(saved.site),
        "Training method": None if imported else training.get("method"),
        "Training tokens": training.get("n_tokens"),
        "Target L0": training.get("target_l0"),
        "Context length": saved.made_from.get("context_length"),
        "Text": (saved.made_from.get("text") or {}).get("source"),
        "Content hash": saved.content_hash,
    }
    lines = [
        *("---", "library_name: saelens", "tags:", "- sparse-autoencoder", "- saelab", "---", ""),
        f"# {saved.name}",
        "",
        f"A sparse dictionary of a language model's activations. {_origin(imported)}",
        "",
        *("```", f"saelab pull hf:{address} --out {saved.name}", f"saelab info {saved.name}"),
        *("```", "", "| | |", "|---|---|"),
        *(f"| {name} | {value} |" for name, value in facts.items() if value is not None),
    ]
    for result in results:
        lines += ["", f"## {result.title or result.suite}", ""]
        lines += [result.subtitle, ""] if result.subtitle else []
        lines += ["| | | unit | definition |", "|---|---:|---|---|"]
        first = result.headline or HEADLINE
        shown = [metric for metric in result.metrics if metric.name in first] or result.metrics[:8]
        for metric in shown:
            value = "undefined" if metric.value is None else f"{metric.value:.4g}"
            lines.append(f"| {metric.name} | {value} | {metric.unit} | {metric.definition} |")
        lines += ["", f"All numbers and charts: `{RESULTS_FOLDER}/{result.suite}.html`."]
    return "\n".join(lines) + "\n"


def _origin(imported: Mapping[str, Any] | None) -> str:
    """Whose a dictionary is, and what is known of how well it was read, in sentences."""
    if imported is None:
        return "Trained with saelab."
    source = imported["source"]
    doubts = [f"Note: {note}." for note in imported["notes"]]
    doubts += [f"Warning: {sentence}." for sentence in imported.get("disagreements", ())]
    if "measured" not in imported:
        doubts.append("Not proved: nothing was measured when it was imported.")
    origin = (
        f"Trained by others, and imported by saelab from `{source}` ({imported['format']}): "
        "authors and licence are theirs."
    )
    return "\n\n".join([origin, *doubts])
