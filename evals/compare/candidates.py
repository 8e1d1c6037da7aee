"""The dictionaries of a comparison: found in the folders given, read, and named for people."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saelab.dictionary import SavedDictionary, load_dictionary
from saelab.dictionary.data_spec import DataOverrides, DataSpec, data_spec_of
from saelab.errors import ArtifactError, ConfigError
from saelab.formats.manifest import require_fields
from saelab.formats.run import RUN_FILE, TrainedDictionary, read_run
from saelab.progress import progress_bar

DICTIONARY_FILE = "saelab.json"
TELLING_SETTINGS = ("options", "optimizer", "n_tokens", "batch_rows", "product_dtype")
"""Training settings that tell dictionaries of one method apart, beside d_sae, k and seed."""
NUMBER = (int, float)
NUMBER_OR_NONE = (int, float, type(None))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A dictionary to compare, without its weights."""

    folder: Path
    content_hash: str
    method: str
    """Training method."""
    label: str
    """The method for people, with what tells it from other settings of the method."""
    settings: dict[str, Any]
    """Training settings, flat, among which the label chooses."""
    d_sae: int
    k: float | None
    """Target L0; None where training had none."""
    seed: int
    n_tokens: int | None
    """Rows it was trained on; None where not recorded."""
    train_seconds: float | None
    """Time of its training steps; None where no run says."""
    state_bytes: int | None
    """Memory held between training steps; None where no run says."""
    weight_bytes: int
    """Size of its weights."""
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
        overrides: what decides the evaluated rows in place of what a dictionary recorded.

    Raises:
        ArtifactError: a folder that is neither, a run that is not complete or whose record was
            damaged, a damaged dictionary, or one that does not say how it was trained.
    """
    places = [place for folder in folders for place in _places(folder)]
    found = []
    with progress_bar(len(places), "read", "dictionaries") as bar:
        for folder, figures in places:
            found.append(_read(folder, figures, overrides))
            bar.update(1)
    labels = labels_of(found)
    return [replace(one, label=label) for one, label in zip(found, labels, strict=True)]


def _places(folder: Path) -> list[tuple[Path, TrainedDictionary | None]]:
    """The dictionary folders in a run, or the one given, each with what its run says of it."""
    if (folder / RUN_FILE).is_file():
        return _in_run(folder)
    if (folder / DICTIONARY_FILE).is_file():
        return [(folder, _figures_in_own_run(folder))]
    if not folder.exists():
        raise ArtifactError(f"{folder} does not exist")
    inside = sorted(child.parent for child in folder.glob(f"*/{RUN_FILE}")) or sorted(
        child.parent for child in folder.glob(f"*/{DICTIONARY_FILE}")
    )
    hint = f"; it holds {', '.join(str(child) for child in inside[:3])}" if inside else ""
    raise ArtifactError(
        f"{folder} is neither a run (no {RUN_FILE}) nor a dictionary (no {DICTIONARY_FILE}): give "
        f"folders that `saelab train` wrote{hint}"
    )


def _in_run(folder: Path) -> list[tuple[Path, TrainedDictionary | None]]:
    run = read_run(folder)
    if not run.complete:
        raise ArtifactError(
            f"the run {folder} is not complete (its status is {run.status!r}): finish it with "
            f"the command that started it and --resume (`saelab train … --out {folder} --resume`)"
        )
    trained = run.dictionaries()
    if not trained:
        raise ArtifactError(f"{run.path} lists no dictionary: it was edited")
    return [(figures.folder, figures) for figures in trained.values()]


def _figures_in_own_run(folder: Path) -> TrainedDictionary | None:
    """What the run that a dictionary lies in says of it; None where it lies in none."""
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
    require_fields(saved.manifest, {"config": dict, "made_from": dict, "seed": int}, path)
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
        settings=flat({name: training.get(name) for name in TELLING_SETTINGS}),
        d_sae=saved.dictionary.d_sae,
        k=None if target is None else float(target),
        seed=saved.manifest["seed"],
        n_tokens=training.get("n_tokens"),
        train_seconds=_train_seconds(figures, training),
        state_bytes=None if figures is None else figures.state_bytes,
        weight_bytes=sum(tensor.nbytes for tensor in saved.dictionary.tensors().values()),
        origin=_origin(saved),
        spec=data_spec_of(saved, overrides),
    )


def _origin(saved: SavedDictionary) -> dict[str, Any]:
    """What tells apart where activations come from; the mean is not wanted here."""
    return {name: value for name, value in saved.made_from.items() if name != "mean"}


def _train_seconds(figures: TrainedDictionary | None, training: dict[str, Any]) -> float | None:
    per_step = None if figures is None else figures.seconds_per_step
    rows, batch = training.get("n_tokens"), training.get("batch_rows")
    if per_step is None or not isinstance(rows, int) or not isinstance(batch, int) or batch < 1:
        return None
    return per_step * math.ceil(rows / batch)


def labels_of(candidates: Sequence[Candidate]) -> list[str]:
    """The method of each, with the settings that tell it from others of the same method.

    Example: "topk" where all `topk` dictionaries were trained alike, else
    "topk (auxiliary.kind auxk)" and "topk (auxiliary.kind none)".
    """
    labels = []
    for one in candidates:
        others = [other.settings for other in candidates if other.method == one.method]
        odd = [
            name
            for name in sorted(set().union(*others))
            if len({json.dumps(other.get(name), sort_keys=True) for other in others}) > 1
        ]
        told = ", ".join(
            f"{name.removeprefix('options.').removeprefix('optimizer.')} {one.settings.get(name)}"
            for name in odd
        )
        labels.append(f"{one.method} ({told})" if told else one.method)
    return labels


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, with dotted names."""
    result: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = value
    return result


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
    first: dict[str, Candidate] = {}
    problems = []
    for one in candidates:
        twin = first.setdefault(one.content_hash, one)
        if twin is not one:
            problems.append(
                f"{one.folder} is the same dictionary as {twin.folder}: name each once (a run "
                "stands for all its dictionaries)"
                if one.folder.resolve() != twin.folder.resolve()
                else f"{one.folder} is named twice: name it once (a run stands for all its "
                "dictionaries)"
            )
    return problems[:3]


def _different(candidates: Sequence[Candidate]) -> list[str]:
    """Clashes with the first dictionary."""
    what: dict[str, tuple[Callable[[Candidate], Any], Callable[[Candidate], str]]] = {
        "models": (
            lambda one: one.origin.get("model_hash") or one.origin["model"],
            lambda one: f"{one.origin['model']} ({str(one.origin.get('model_hash'))[:12]})",
        ),
        "hook points": (
            lambda one: one.spec.site,
            lambda one: str(one.spec.site),
        ),
        "texts": (lambda one: (one.spec.text, one.origin.get("text_hash")), _text),
        "context lengths": (
            lambda one: one.spec.context_length,
            lambda one: f"{one.spec.context_length} tokens",
        ),
        "token filters": (
            lambda one: one.spec.token_filter,
            lambda one: json.dumps(one.origin["row_rule"]),
        ),
    }
    first = candidates[0]
    problems = []
    for name, (key, shown) in what.items():
        odd = next((one for one in candidates if key(one) != key(first)), None)
        if odd is not None:
            problems.append(
                f"dictionaries of different {name} cannot be compared: {first.folder} has "
                f"{shown(first)}, {odd.folder} has {shown(odd)}; compare those of one at a time"
            )
    return problems


def _text(one: Candidate) -> str:
    text = one.origin["text"]
    described = ", ".join(f"{name} {value}" for name, value in text.items())
    content = one.origin.get("text_hash")
    return f"{described} (content {content[:12]})" if isinstance(content, str) else described


def _same_seed(candidates: Sequence[Candidate]) -> list[str]:
    first: dict[Any, Candidate] = {}
    problems = []
    for one in candidates:
        twin = first.setdefault((*one.group, one.seed), one)
        if twin is not one:
            problems.append(
                f"{twin.folder} and {one.folder} are both seed {one.seed} of {one.label}, "
                f"{one.d_sae:,} latents, k {one.k}, with the same settings"
                f"{_difference(twin, one)}: leave one away"
            )
    return problems[:3]


def _difference(one: Candidate, other: Candidate) -> str:
    sides = flat(one.origin), flat(other.origin)
    odd = [name for name in sides[0] if sides[0].get(name) != sides[1].get(name)]
    return f" (they differ in {', '.join(odd)})" if odd else ""


def notes_on(candidates: Sequence[Candidate]) -> list[str]:
    """What a reader should know of the dictionaries before comparing them, in sentences."""
    notes = []
    for what, values in {
        "numbers of training rows": {one.n_tokens for one in candidates},
        "batch sizes (rows)": {one.settings.get("batch_rows") for one in candidates},
        "norm ceilings of the rows": {one.spec.norm_ceilings for one in candidates},
        "model dtypes": {one.spec.model_dtype for one in candidates},
    }.items():
        if len(values) > 1:
            shown = ", ".join(sorted(f"{v:,}" if isinstance(v, int) else str(v) for v in values))
            notes.append(f"The dictionaries have different {what}: {shown}.")
    groups: dict[Any, list[int]] = {}
    for one in candidates:
        groups.setdefault(one.group, []).append(one.seed)
    alone = [group for group, seeds in groups.items() if len(seeds) < 2]
    if alone:
        named = ", ".join(f"{label} d_sae {d_sae:,} k {k}" for label, d_sae, k in alone[:4])
        more = f" and {len(alone) - 4} more" if len(alone) > 4 else ""
        notes.append(f"Only one seed of {named}{more}: no spread and no consistency, shown as “—”.")
    if len({len(seeds) for seeds in groups.values()}) > 1:
        notes.append("Not every row has the same number of seeds; each row says how many.")
    return notes
