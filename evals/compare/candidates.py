"""The dictionaries of a comparison: listed from the folders given, read, and named for people."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saelab.cache.config import DataOverrides
from saelab.config import flat
from saelab.dictionary import SavedDictionary, load_dictionary
from saelab.dictionary.data_spec import DataSpec, data_spec_of
from saelab.errors import ArtifactError, ConfigError
from saelab.formats.manifest import require_fields
from saelab.formats.run import NUMBER_OR_NONE, RUN_FILE, TrainedDictionary, read_run
from saelab.progress import progress_bar

from ..alike import differing, twins

DICTIONARY_FILE = "saelab.json"
UNKNOWN_SEED = -1
"""Where a dictionary from elsewhere stands among those with a seed."""
SITE = "site"
"""The setting that says what kind of dictionary it is, and what a transcoder reads."""
TELLING_SETTINGS = ("options", "optimizer", "n_tokens", "batch_rows", "product_dtype")
"""Settings by which dictionaries of a method differ, apart from d_sae, k and seed."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A dictionary to compare, without its weights."""

    folder: Path
    content_hash: str
    method: str
    label: str
    """The method for people, with what tells it from other settings of the method."""
    settings: dict[str, Any]
    """Training settings, flat, among which the label chooses."""
    d_sae: int
    k: float | None
    """Target L0; None where training had none."""
    seed: int | None
    n_tokens: int | None
    """Rows it was trained on; None where not recorded."""
    train_seconds: float | None
    """Time of its training steps; None where no run says."""
    state_bytes: int | None
    """Memory held between training steps; None where no run says."""
    weight_bytes: int
    origin: dict[str, Any]
    """What its activations were made from, as its manifest says."""
    spec: DataSpec
    """Which rows it is evaluated on."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def group(self) -> tuple[str, int, float | None]:
        """What it shares with its other seeds: label, width and target L0."""
        return self.label, self.d_sae, self.k


def read_candidates(folders: Sequence[Path], overrides: DataOverrides) -> list[Candidate]:
    """Every dictionary in the runs and dictionary folders given, in their order.

    Args:
        folders: runs of `saelab train`, or folders of dictionaries.
        overrides: settings that replace what a dictionary recorded about its rows.

    Raises:
        ArtifactError: a folder that is neither, a run that is not complete or whose record was
            damaged, a damaged dictionary, or one that does not say how it was trained.
    """
    listed = [entry for folder in folders for entry in _listed(folder)]
    candidates = []
    with progress_bar(len(listed), "read", "dictionaries") as bar:
        for folder, figures in listed:
            candidates.append(_read(folder, figures, overrides))
            bar.update(1)
    return [replace(each, label=_label(each, candidates)) for each in candidates]


def _listed(folder: Path) -> list[tuple[Path, TrainedDictionary | None]]:
    """The dictionary folders in a run, or the one given, each with what its run says of it."""
    if (folder / RUN_FILE).is_file():
        run = read_run(folder)
        if not run.complete:
            raise ArtifactError(
                f"the run {folder} is not complete (its status is {run.status!r}): finish it with "
                f"the command that started it and --resume (`saelab train … --out {folder} "
                "--resume`)"
            )
        if not (trained := run.dictionaries()):
            raise ArtifactError(f"{run.path} lists no dictionary: it was edited")
        return [(figures.folder, figures) for figures in trained.values()]
    if (folder / DICTIONARY_FILE).is_file():
        return [(folder, _figures_of(folder))]
    if not folder.exists():
        raise ArtifactError(f"{folder} does not exist")
    inside = sorted(child.parent for child in folder.glob(f"*/{RUN_FILE}")) or sorted(
        child.parent for child in folder.glob(f"*/{DICTIONARY_FILE}")
    )
    hint = f"; it holds {', '.join(map(str, inside[:3]))}" if inside else ""
    raise ArtifactError(
        f"{folder} is neither a run (no {RUN_FILE}) nor a dictionary (no {DICTIONARY_FILE}): give "
        f"folders that `saelab train` or `saelab import` wrote{hint}"
    )


def _figures_of(folder: Path) -> TrainedDictionary | None:
    """What its run records of a dictionary; None where the folder is in no run."""
    run = folder.resolve().parent.parent
    if not (run / RUN_FILE).is_file():
        return None
    manifest = read_run(run)
    trained = manifest.dictionaries() if manifest.complete else {}
    same = (figures for figures in trained.values() if figures.folder.resolve() == folder.resolve())
    return next(same, None)


def _read(folder: Path, figures: TrainedDictionary | None, overrides: DataOverrides) -> Candidate:
    saved = load_dictionary(folder)
    path = folder / DICTIONARY_FILE
    require_fields(
        saved.manifest, {"config": dict, "made_from": dict, "seed": (int, type(None))}, path
    )
    training = saved.manifest["config"]
    require_fields(training, {"method": str}, path)
    target = training.get("target_l0")
    optional = {"target_l0": target, "n_tokens": training.get("n_tokens")}
    require_fields(optional, {"target_l0": NUMBER_OR_NONE, "n_tokens": (int, type(None))}, path)
    return Candidate(
        folder=folder,
        content_hash=saved.content_hash,
        method=training["method"],
        label=training["method"],
        settings=flat({name: training.get(name) for name in TELLING_SETTINGS})
        | {SITE: _kind_of(saved), "finetuned": _finetuned_by(training)},
        d_sae=saved.dictionary.d_sae,
        k=None if target is None else float(target),
        seed=saved.manifest["seed"],
        n_tokens=training.get("n_tokens"),
        train_seconds=_train_seconds(figures, training),
        state_bytes=None if figures is None else figures.state_bytes,
        weight_bytes=sum(tensor.nbytes for tensor in saved.dictionary.tensors().values()),
        origin={name: value for name, value in saved.made_from.items() if name != "mean"},
        spec=data_spec_of(saved, overrides),
    )


def _kind_of(saved: SavedDictionary) -> str:
    """An autoencoder of what is written, or a transcoder of what is read."""
    if saved.site.is_autoencoder:
        return "autoencoder"
    skip = "" if saved.dictionary.W_skip is None else " with a skip"
    return f"transcoder{skip} from {' + '.join(saved.site.reads)}"


def _finetuned_by(training: dict[str, Any]) -> str:
    """The loss it was finetuned by, or no."""
    finetuned = training.get("finetuned")
    settings = finetuned.get("settings") if isinstance(finetuned, dict) else None
    return "no" if not isinstance(settings, dict) else f"by {settings.get('loss')}"


def _train_seconds(figures: TrainedDictionary | None, training: dict[str, Any]) -> float | None:
    per_step = None if figures is None else figures.seconds_per_step
    rows, batch = training.get("n_tokens"), training.get("batch_rows")
    if per_step is None or not isinstance(rows, int) or not isinstance(batch, int) or batch < 1:
        return None
    return per_step * math.ceil(rows / batch)


def _label(candidate: Candidate, candidates: Sequence[Candidate]) -> str:
    """The method, with the settings that tell it from others of the same method.

    Example: "topk" where all `topk` dictionaries were trained alike, else
    "topk (auxiliary.kind auxk)" and "topk (auxiliary.kind none)", or "topk (autoencoder)" and
    "topk (transcoder from blocks.3.mlp.hook_in)".
    """
    odd = differing([each.settings for each in candidates if each.method == candidate.method])
    told = ", ".join(
        f"{name.removeprefix('options.').removeprefix('optimizer.')} {candidate.settings.get(name)}"
        for name in sorted(set(odd) - {SITE})
    )
    if SITE in odd:
        told = ", ".join(filter(None, [candidate.settings[SITE], told]))
    return f"{candidate.method} ({told})" if told else candidate.method


def check_comparable(candidates: Sequence[Candidate]) -> None:
    """Refuse what cannot be compared, with the first two folders that clash for each reason.

    Raises:
        ConfigError: with every reason.
    """
    problems = [*_doubled(candidates), *_different(candidates)]
    if not problems:
        problems = _same_seed(candidates)
    if problems:
        raise ConfigError(problems)


def _doubled(candidates: Sequence[Candidate]) -> list[str]:
    once = "name {} once (a run stands for all its dictionaries)"
    return [
        f"{candidate.folder} is named twice: {once.format('it')}"
        if candidate.folder.resolve() == twin.folder.resolve()
        else f"{candidate.folder} is the same dictionary as {twin.folder}: {once.format('each')}"
        for twin, candidate in twins(candidates, lambda candidate: candidate.content_hash)
    ][:3]


def _different(candidates: Sequence[Candidate]) -> list[str]:
    """Clashes with the first dictionary."""
    keys: dict[str, tuple[Callable[[Candidate], Any], Callable[[Candidate], str]]] = {
        "models": (
            # Without the tokenizer's settings, which older dictionaries do not record.
            lambda c: str(c.origin.get("model_hash") or c.origin["model"]).partition(":")[0],
            lambda c: f"{c.origin['model']} ({str(c.origin.get('model_hash'))[:12]})",
        ),
        # A transcoder stands beside autoencoders of what it writes.
        "hook points": (lambda c: c.spec.site.writes, lambda c: str(c.spec.site)),
        "texts": (lambda c: (c.spec.text, c.origin.get("text_hash")), _text),
        "context lengths": (
            lambda c: c.spec.context_length,
            lambda c: f"{c.spec.context_length} tokens",
        ),
        "token filters": (
            lambda c: c.spec.token_filter,
            lambda c: json.dumps(c.origin["row_rule"]),
        ),
    }
    first = candidates[0]
    problems = []
    for name, (key, shown) in keys.items():
        odd = next((each for each in candidates if key(each) != key(first)), None)
        if odd is not None:
            problems.append(
                f"dictionaries of different {name} cannot be compared: {first.folder} has "
                f"{shown(first)}, {odd.folder} has {shown(odd)}; compare those of one at a time"
            )
    return problems


def _text(candidate: Candidate) -> str:
    described = ", ".join(f"{name} {value}" for name, value in candidate.origin["text"].items())
    content = candidate.origin.get("text_hash")
    return f"{described} (content {content[:12]})" if isinstance(content, str) else described


def _run_of(candidate: Candidate) -> tuple[Any, ...]:
    """What no two candidates may share; of one from elsewhere the seed is unknown."""
    seed = candidate.content_hash if candidate.seed is None else candidate.seed
    return (*candidate.group, seed)


def _same_seed(candidates: Sequence[Candidate]) -> list[str]:
    problems = []
    for twin, each in twins(candidates, _run_of):
        odd = differing([flat(twin.origin), flat(each.origin)])
        differ = f" (they differ in {', '.join(odd)})" if odd else ""
        problems.append(
            f"{twin.folder} and {each.folder} are both seed {each.seed} of {each.label}, "
            f"{each.d_sae:,} latents, k {each.k}, with the same settings{differ}: leave one away"
        )
    return problems[:3]


def notes_on(candidates: Sequence[Candidate]) -> list[str]:
    """What a reader should know of the dictionaries before comparing them, in sentences."""
    notes = []
    for what, values in {
        "numbers of training rows": {candidate.n_tokens for candidate in candidates},
        "batch sizes (rows)": {candidate.settings.get("batch_rows") for candidate in candidates},
        "norm ceilings of the rows": {candidate.spec.norm_ceilings for candidate in candidates},
        "model dtypes": {candidate.spec.model_dtype for candidate in candidates},
    }.items():
        if len(values) > 1:
            shown = ", ".join(sorted(f"{v:,}" if isinstance(v, int) else str(v) for v in values))
            notes.append(f"The dictionaries have different {what}: {shown}.")
    counts = Counter(candidate.group for candidate in candidates)
    alone = [group for group, count in counts.items() if count < 2]
    if alone:
        named = ", ".join(f"{label} d_sae {d_sae:,} k {k}" for label, d_sae, k in alone[:4])
        more = f" and {len(alone) - 4} more" if len(alone) > 4 else ""
        notes.append(f"Only one seed of {named}{more}: no spread and no consistency, shown as “—”.")
    if len(set(counts.values())) > 1:
        notes.append("Not every row has the same number of seeds; each row says how many.")
    return notes
