"""Dictionaries on the Hugging Face Hub: what is uploaded, the model card, and fetching one.

Nothing is sent unless the caller says so; `plan_push` only looks.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.errors import ArtifactError, ConfigError
from saelab.formats.evaluation_result import EvaluationResult, read_evaluation_result
from saelab.formats.files import read_json, whole_folder
from saelab.formats.lock import writer_lock

from .importers.sources import HubPath, fetch, hub_refusal
from .storage import CONFIG_FILE, HASHED_FILES, MANIFEST_FILE, SavedDictionary, load_dictionary

CARD_FILE = "README.md"
RESULTS_FOLDER = "evals"
HEADLINE = ("fvu", "l0_mean", "dead_fraction", "loss_recovered_zero", "kl")
"""Numbers of the core suite that the card shows first."""


@dataclass(frozen=True)
class Upload:
    """What would be uploaded."""

    where: HubPath
    """Repository and folder."""
    files: Sequence[Path]
    """Files, inside the dictionary's folder."""
    card: str
    """Content of the model card."""

    @property
    def n_bytes(self) -> int:
        """Size of the files."""
        return sum(file.stat().st_size for file in self.files)


def plan_push(folder: Path, where: HubPath) -> Upload:
    """What uploading a dictionary would send: its files, its evaluation results, a model card.

    Labels, notes, feature stores and whatever else lies in the folder stay here.

    Raises:
        ArtifactError: no intact dictionary, or an evaluation result that is not.
    """
    if (folder / CONFIG_FILE).is_file() and not (folder / MANIFEST_FILE).exists():
        raise ArtifactError(
            f"{folder} was not saved by saelab: open it with `saelab import {folder}`, then push it"
        )
    saved = load_dictionary(folder)
    results = [
        path for path in sorted((folder / RESULTS_FOLDER).glob("*.json")) if _is_result(path)
    ]
    files = [folder / name for name in (MANIFEST_FILE, *HASHED_FILES) if (folder / name).exists()]
    for path in results:
        files += [path, *(page for page in [path.with_suffix(".html")] if page.exists())]
    read = [read_evaluation_result(path) for path in results]
    other = [result for result in read if result.dictionary_hash != saved.content_hash]
    if other:
        raise ArtifactError(
            f"{folder / RESULTS_FOLDER} holds a {other[0].suite} result of another dictionary: "
            "make it again with --overwrite, or take it away"
        )
    return Upload(where, tuple(files), model_card(saved, read, where))


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
        CommitOperationAdd(prefix + str(file.relative_to(folder)), str(file))
        for file in upload.files
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
    # Where it lay on this machine is nobody's business.
    source = Path(source).name if Path(source).expanduser().is_absolute() else source
    doubts = [f"Note: {note}." for note in imported["notes"]]
    doubts += [f"Warning: {sentence}." for sentence in imported.get("disagreements", ())]
    if "measured" not in imported:
        doubts.append("Not proved: nothing was measured when it was imported.")
    origin = (
        f"Trained by others, and imported by saelab from `{source}` ({imported['format']}): "
        "authors and licence are theirs."
    )
    return "\n\n".join([origin, *doubts])
