"""Every kind of file in the table of formats: where a small one lies, and what its readers give."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

from trials import Child
from world import DICTIONARIES, HOOK, World

FIRST, SECOND = DICTIONARIES.split()
PROBE = "evals/dark_matter_probe.safetensors"
OTHER_HOOK = "blocks.0.hook_resid_post"


@dataclass(frozen=True)
class Artifact:
    """Something on disk that readers open."""

    kind: str
    """Its name in the table of formats."""
    of: str
    """The command that makes it."""
    folder: str
    """Where it is in the command's folder; its files are copied together."""
    files: str
    """Patterns of the files that are damaged, the first one being what `saelab info` is asked."""
    read: Callable[[Path], Any]
    """Folder -> what a reader of the kind gives, with every check it knows."""
    other: str = ""
    """A folder with files of the same names, for swaps."""
    without: tuple[str, ...] = ()
    """Damage that a reader cannot know of."""


def digest(content: Any) -> str:
    """A hash of anything readers return: tensors, arrays, tables, dataclasses, plain values."""
    sha = hashlib.sha256()
    _update(sha, content)
    return sha.hexdigest()


def _update(sha: Any, content: Any) -> None:
    if hasattr(content, "detach"):
        import torch

        flat = content.detach().contiguous().reshape(-1)
        sha.update(f"{content.dtype}{tuple(content.shape)}".encode())
        sha.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    elif hasattr(content, "tobytes") and content.dtype == object:
        _update(sha, content.tolist())
    elif hasattr(content, "tobytes"):
        sha.update(f"{content.dtype}{content.shape}".encode() + content.tobytes())
    elif isinstance(content, dict):
        for key in content:
            sha.update(repr(key).encode())
            _update(sha, content[key])
    elif isinstance(content, list | tuple):
        sha.update(f"[{len(content)}".encode())
        for item in content:
            _update(sha, item)
    elif dataclasses.is_dataclass(content):
        for field in dataclasses.fields(content):
            _update(sha, getattr(content, field.name))
    else:
        sha.update(repr(content).encode())


def _dictionary(folder: Path) -> Any:
    from saelab.dictionary import load_dictionary

    saved = load_dictionary(folder)
    weights = {n: v for n, v in vars(saved.dictionary).items() if not n.startswith("__")}
    return weights, dict(saved.dictionary.state_dict()), saved.manifest


def _cache(folder: Path) -> Any:
    from saelab.cache.reader import open_cache

    cache = open_cache(folder, verify=True)
    batches = [(batch.activations, batch.gradients) for batch in cache.iterate(4096)]
    columns = [cache.column(name, 0, cache.n_rows) for name in ("tokens", "sequence", "position")]
    return batches, columns, cache.provenance(), cache.statistics, cache.excluded


def _run(folder: Path) -> Any:
    from saelab.formats.run import read_run

    run = read_run(folder)
    saved = [_dictionary(trained.folder) for trained in run.dictionaries().values()]
    return run.content, saved


def _log(folder: Path) -> Any:
    from saelab.formats.run_log import read_history, read_log

    history = read_history(folder / "metrics.jsonl")
    return read_log(folder / "metrics.jsonl"), history.dictionaries, history.last_tokens


def _checkpoint(folder: Path) -> Any:
    from saelab.formats.files import read_json
    from saelab.training.checkpoint import load_checkpoint

    content = read_json(folder / "checkpoint.json")
    name = content.get("settings_hash") if isinstance(content, dict) else None
    return load_checkpoint(folder, str(name))


def _result(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from pyarrow import parquet

        from saelab.formats.evaluation_result import read_evaluation_result
        from saelab.formats.manifest import check_item_files, read_manifest

        result = read_evaluation_result(folder / name)
        check_item_files(read_manifest(folder / name, "evaluation_result"), folder / name)
        rows = {
            file: parquet.read_table(folder / file).to_pydict()
            for file in result.item_files.values()
            if file.endswith(".parquet")
        }
        return result, rows

    return read


def _rows(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from pyarrow import parquet

        from saelab.commands.info import describe

        return describe(folder / name), parquet.read_table(folder / name).to_pydict()

    return read


def _old_comparison(folder: Path) -> Any:
    from saelab.formats.evaluation_result import read_evaluation_result

    return read_evaluation_result(folder / "compare.json")


def _manifest(kind: str, name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from saelab.formats.manifest import read_manifest

        return read_manifest(folder / name, kind)

    return read


def _sites(folder: Path) -> Any:
    from saelab.evals.supervised.sites import read_cross_sections

    return read_cross_sections(folder / "sites.json", task="ioi")


def _store(folder: Path) -> Any:
    from saelab.features.reader import is_stale, open_features

    with open_features(folder) as store:
        store.verify()
        features = [store.feature(index) for index in range(0, store.n_features, 8)]
        return features, dict(store.table()), store.manifest, is_stale(store, folder)


def _labels(folder: Path) -> Any:
    from saelab.features.labels import LabelBook

    book = LabelBook(folder / "feature_labels.sqlite", "a" * 64, 10)
    return book.all(), book.notes()


def _list(folder: Path) -> Any:
    from saelab.features.lists import read_list

    return read_list(folder / "war.list.json")


def _answers(folder: Path) -> Any:
    from saelab.explain.answers import AnswerBook

    with AnswerBook(folder / "explanation_answers.sqlite") as answers:
        return answers.verify(), [answers.get(f"key {number}") for number in range(10)]


def _meanings(folder: Path) -> Any:
    from saelab.explain.meaning import read_meanings

    return read_meanings(folder / "feature_meanings.safetensors")


def _shards(folder: Path) -> Any:
    from saelab.features.shards import Shards, check_shard

    paths = sorted(folder.glob("shard-*.safetensors"))
    return (
        [path.name for path in paths],
        [check_shard(path) for path in paths],
        [vars(pairs) for pairs in [Shards(paths, 48).pairs(0, 48)]],
    )


def _probe(folder: Path) -> Any:
    from saelab.dictionary.decomposition import ErrorRows

    return ErrorRows.load(folder, folder / PROBE, "linear").probe


def _unfinished_cache(folder: Path) -> Any:
    from saelab.cache.format import read_cache_manifest, shard_entries, verify_shards

    manifest = read_cache_manifest(folder / "manifest.json")
    verify_shards(folder, shard_entries(manifest, folder / "manifest.json"))
    return manifest


def _of_suite(suite: str, of: str, folder: str = f"{FIRST}/evals") -> Artifact:
    other = folder.replace(FIRST, SECOND) if FIRST in folder else ""
    files = f"{suite}.json {suite}_*.parquet"
    return Artifact("evaluation_result", of, folder, files, _result(f"{suite}.json"), other)


ARTIFACTS = (
    Artifact(
        "dictionary",
        "train",
        FIRST,
        "saelab.json cfg.json sae_weights.safetensors self_test.safetensors",
        _dictionary,
        SECOND,
    ),
    Artifact(
        "activation_cache",
        "cache",
        f"cache/{HOOK}",
        "manifest.json shard-*.safetensors",
        _cache,
        f"cache/{OTHER_HOOK}",
    ),
    Artifact(
        "activation_cache",
        "unfinished cache",
        f"cache/{HOOK}",
        "manifest.json shard-*.safetensors",
        _unfinished_cache,
        f"cache/{OTHER_HOOK}",
    ),
    Artifact("training_run", "train", "run", "run.json", _run, "../train-stream/streamed"),
    Artifact("training_log", "train", "run", "metrics.jsonl", _log),
    Artifact(
        "checkpoint",
        "train",
        "run/checkpoint",
        "checkpoint.json checkpoint-*.safetensors",
        _checkpoint,
        "../train-stream/streamed/checkpoint",
    ),
    _of_suite("core", "eval core"),
    _of_suite("consistency", "eval consistency"),
    _of_suite("dark_matter", "eval dark-matter"),
    _of_suite("dark_matter_family", "eval dark-matter"),
    _of_suite("steering", "eval steering"),
    _of_suite("recovery", "eval recovery", "recovery"),
    _of_suite("supervised", "eval supervised", "supervised"),
    Artifact(
        "rows",
        "eval core",
        f"{FIRST}/evals",
        "core_features.parquet core.json",
        _rows("core_features.parquet"),
        f"{SECOND}/evals",
    ),
    _of_suite("compare", "compare", "comparison"),
    Artifact("comparison", "by hand", "old", "compare.json", _old_comparison),
    Artifact(
        "recovery_score_card",
        "eval recovery",
        "card",
        "score_card.json",
        _manifest("recovery_score_card", "score_card.json"),
    ),
    Artifact("tuning", "tune", "tuned", "tuning.json", _manifest("tuning", "tuning.json")),
    Artifact(
        "quickstart_report",
        "quickstart",
        "quickstart",
        "report.json",
        _manifest("quickstart_report", "report.json"),
    ),
    Artifact(
        "quickstart_state",
        "quickstart",
        "quickstart",
        "quickstart.json",
        _manifest("quickstart_state", "quickstart.json"),
    ),
    Artifact("feature_store", "features", FIRST, "features.sqlite saelab.json", _store, SECOND),
    Artifact(
        "feature_shards",
        "unfinished features",
        f"{FIRST}/features.build",
        "shard-*.safetensors",
        _shards,
        # A shard that is lost is one that was not made yet; the command makes it (`mending.py`).
        without=("missing",),
    ),
    Artifact(
        "error_probe",
        "eval dark-matter",
        FIRST,
        PROBE,
        _probe,
        SECOND,
    ),
    Artifact("feature_labels", "by hand", ".", "feature_labels.sqlite", _labels),
    Artifact("feature_list", "by hand", ".", "war.list.json", _list),
    Artifact(
        "explanation_answers",
        "by hand",
        ".",
        "explanation_answers.sqlite",
        _answers,
        # Where it is lost, nobody knows that there was one; the questions are asked again.
        without=("missing",),
    ),
    Artifact("feature_meanings", "by hand", ".", "feature_meanings.safetensors", _meanings),
    Artifact("supervised_sites", "by hand", ".", "sites.json", _sites),
    Artifact(
        "supervised_circuit",
        "by hand",
        ".",
        "ioi.circuit.json",
        _manifest("supervised_circuit", "ioi.circuit.json"),
    ),
    Artifact(
        "dark_matter_family",
        "by hand",
        "old",
        "dark_matter_family.json",
        _manifest("dark_matter_family", "dark_matter_family.json"),
    ),
)


def make_by_hand(folder: Path) -> None:
    """The kinds that no command of the campaign writes, by their own writers."""
    import numpy

    from saelab.config import to_plain
    from saelab.evals.supervised.circuit import CIRCUIT_KIND, Circuit, RoleEffects
    from saelab.evals.supervised.sites import CrossSection, PromptSite, write_cross_sections
    from saelab.explain.answers import AnswerBook
    from saelab.explain.endpoint import Answer
    from saelab.explain.meaning import MEANING_FILE, _write
    from saelab.features.label_content import Score
    from saelab.features.labels import LabelBook
    from saelab.features.lists import FeatureList, ListedFeature
    from saelab.formats.evaluation_result import (
        EvaluationResult,
        MeasuredMetric,
        write_evaluation_result,
    )
    from saelab.formats.files import read_json, write_json
    from saelab.formats.manifest import new_manifest, write_manifest

    folder.mkdir(parents=True, exist_ok=True)
    book = LabelBook(folder / "feature_labels.sqlite", "a" * 64, 10)
    for feature in range(10):
        book.add(feature, f"words about {feature}", author="Ada", score=feature / 10)
        book.write_note(feature, "a note", author="Ada")
        score = Score("detection", feature / 10, 0.0, 1.0, 20, shuffled=0.5, random=0.4)
        about: Any = {"author": "saelab", "method": "token-context", "scores": (score,)}
        label = book.add(feature, f"the word {feature}", **about)
        book.vote(label.id, 1, author="Ada")
    items = [
        ListedFeature(dictionary="a" * 64, name="d", feature=feature, note=f"note {feature}")
        for feature in range(10)
    ]
    chosen = FeatureList(name="War", description="words").with_features(items)
    write_manifest(folder / "war.list.json", chosen.as_manifest())
    rows = numpy.random.default_rng(0).standard_normal((20, 8), dtype=numpy.float32)
    _write(
        folder / MEANING_FILE, Mock(sha256="ab" * 32), [bytes([n] * 16) for n in range(20)], rows
    )
    with AnswerBook(folder / "explanation_answers.sqlite") as answers:
        for number in range(10):
            answers.put(f"key {number}", "model", Answer(f"answer {number}", number, 1))
    sections = [
        CrossSection(name, (PromptSite.parse(f"resid_post.{layer}@end"),), (("io",),))
        for layer, name in enumerate(("early", "late"))
    ]
    write_cross_sections(folder / "sites.json", sections, model="m", task="ioi")
    role = RoleEffects("reader", ("io",), "end", 8, 0.9, [[0.0, 0.1], [-0.4, 0.02]], ((1, 0),))
    circuit = {"circuit": to_plain(Circuit("ioi", "m", 2.0, (role,)))}
    origin: Any = {"seed": 0, "config": {"n_prompts": 8}, "made_from": {"model": "m"}}
    write_manifest(folder / "ioi.circuit.json", new_manifest(CIRCUIT_KIND, **origin) | circuit)
    (folder / "old").mkdir(exist_ok=True)
    metric = MeasuredMetric(name="fvu", value=0.25, unit="1", definition="of the variance")
    family = {"dictionaries": [{"name": "d", "fvu": 0.25}], "notes": ["a note"]}
    old = new_manifest("dark_matter_family", 1, **origin) | family
    write_json(folder / "old" / "dark_matter_family.json", old)
    result = EvaluationResult(
        suite="compare",
        dictionary_name="d",
        dictionary_hash="",
        settings={"n": 1},
        made_from={"model": "m"},
        metrics=(metric,),
    )
    write_evaluation_result(folder / "old" / "compare.json", result)
    comparison = read_json(folder / "old" / "compare.json") | {"kind": "comparison", "rows": []}
    write_manifest(folder / "old" / "compare.json", comparison)


UNFINISHED = {
    "cache": ("cache/*/shard-*.safetensors", 4),
    "features": (f"{FIRST}/features.build/shard-*.safetensors", 3),
    "train": ("run/checkpoint/checkpoint-0000002*.safetensors", 1),
    "tune": ("tuned/checkpoint/*/checkpoint.json", 2),
}
"""Commands that are stopped halfway: the files by which that is known, and how many of them."""


def stop_halfway(world: World, name: str) -> Path:
    """A command's folder after it was killed when enough of the files were there."""
    command = next(command for command in world.commands if command.name == name)
    pattern, enough = UNFINISHED[name]
    folder = world.result(f"unfinished {name}")
    for _ in range(20):
        world.prepare(command, folder)
        child = Child(command.words, folder)
        while child.running() and len(list(folder.glob(pattern))) < enough:
            time.sleep(0.001)
        child.kill()
        if child.wait().killed and len(list(folder.glob(pattern))) >= enough:
            return folder
    raise SystemExit(f"{name} was never stopped halfway")
