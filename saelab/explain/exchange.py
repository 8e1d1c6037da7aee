"""Explanations of Neuronpedia and delphi, read into a label file, and written as delphi's.

Neuronpedia's are JSON, a list or a line for each, with `index` and `description`: what its site
exports, and what `saelab export … neuronpedia` writes. delphi's are a folder with
`explanations/MODULE_latentN.txt`, a JSON string each, and `scores/SCORER/MODULE_latentN.txt`, a
list of judged examples each.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.errors import ArtifactError, shown
from saelab.features.label_content import LabelContent, Score, one_each, problems_of
from saelab.features.labels import LabelBook
from saelab.features.neuronpedia import ORIGIN_MARK
from saelab.features.reader import FeatureStore
from saelab.features.schema import LABEL_FILE
from saelab.formats.files import (
    odd_content_is_damage,
    parse_json,
    require_file,
    whole_folder,
    write_bytes,
)
from saelab.formats.lock import writer_lock

DELPHI_SCORERS = {"detection": "detection", "fuzz": "fuzzing"}
"""Folder of delphi's scores -> our name, where the definition is ours: balanced accuracy."""
_DELPHI_NAME = re.compile(r"(.+)_latent(\d+)")
_LAYER = re.compile(r"(?:layers|blocks|h)\.(\d+)|^(\d+)-")
PATTERNS = ("*.jsonl.gz", "*.jsonl", "*.json")


@dataclass(frozen=True)
class Imported:
    """What became of an import."""

    written: int
    refused: int
    """Explanations that are no label: too long, empty, or of a feature that is not there."""
    first_problem: str | None
    """What was wrong with the first of them."""


def import_explanations(folder: Path, source: Path) -> Imported:
    """Read explanations of Neuronpedia or delphi into the label file of a dictionary.

    Args:
        folder: the dictionary's, with its `features.sqlite`.
        source: delphi's folder of results, or Neuronpedia's file or a folder of them.

    Raises:
        ArtifactError: nothing to read, damaged, or of another dictionary.
    """
    with FeatureStore(folder) as store:
        content_hash, n_features = store.manifest["made_from"]["dictionary_hash"], store.n_features
        layer = _layer_of(str(store.manifest["made_from"].get("hook_point")))
    if not source.exists():
        raise ArtifactError(f"{source} does not exist: give a file or folder of explanations")
    is_delphi = (source / "explanations").is_dir() and any((source / "explanations").glob("*.txt"))
    read = _read_delphi if is_delphi else _read_neuronpedia
    contents, problems = [], []
    with odd_content_is_damage(source):
        entries = list(read(source, content_hash, layer))
    for content in entries:
        faults = problems_of(content)
        if not 0 <= content.feature < n_features:
            faults.append(f"there are features 0 to {n_features - 1}: is it of another dictionary?")
        if faults:
            problems.append(f"feature {content.feature}: {faults[0]}")
        else:
            contents.append(content)
    if not contents:
        why = f" ({problems[0]})" if problems else ""
        raise ArtifactError(f"{source} holds no explanation that can be read{why}")
    LabelBook(folder / LABEL_FILE, content_hash, n_features).add_many(contents)
    return Imported(len(contents), len(problems), problems[0] if problems else None)


def _read_neuronpedia(source: Path, content_hash: str, layer: int | None) -> Iterator[LabelContent]:
    files = [source] if source.is_file() else [f for p in PATTERNS for f in source.rglob(p)]
    # An export of everything has features and activations beside the explanations.
    files = [f for f in files if f.parent.name == "explanations"] or files
    for file in sorted(files):
        for number, row in enumerate(_rows_of(file), 1):
            where = f"{file}, entry {number}"
            if not isinstance(row, dict) or not {"index", "description"} <= set(row):
                raise ArtifactError(f"{where}: expected index and description, as Neuronpedia's")
            its_layer = _layer_of(str(row.get("layer")))
            if None not in (layer, its_layer) and layer != its_layer:
                raise ArtifactError(
                    f"{where}: it explains a dictionary of layer {its_layer}, and this one is of "
                    f"layer {layer}"
                )
            yield _from_neuronpedia(row, content_hash, where)


def _rows_of(file: Path) -> Iterator[Any]:
    require_file(file)
    try:
        content = file.read_bytes()
        text = gzip.decompress(content) if file.suffix == ".gz" else content
        if file.name.endswith((".jsonl", ".jsonl.gz")):
            yield from (parse_json(line) for line in text.splitlines() if line.strip())
            return
        rows = parse_json(text)
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise ArtifactError(f"{file} is no JSON of explanations ({error})") from None
    yield from rows if isinstance(rows, list) else [rows]


def _from_neuronpedia(row: Mapping[str, Any], content_hash: str, where: str) -> LabelContent:
    feature, text = int(row["index"]), " ".join(str(row["description"] or "").split())
    _, _, origin = str(row.get("notes") or "").partition(ORIGIN_MARK)
    if origin:  # written by saelab, which says all that it knew
        facts = parse_json(origin)
        if facts.pop("dictionary") != content_hash:
            raise ArtifactError(f"{where}: it explains another dictionary")
        facts["scores"] = tuple(Score(**score) for score in facts["scores"])
        return LabelContent(feature=feature, text=text, **facts)
    scores = tuple(
        Score(str(score["explanationScoreTypeName"]), float(score["value"]))
        for score in row.get("scores") or []
    )
    author = row.get("authorName") or "neuronpedia"
    model = row.get("explanationModelName")
    return LabelContent(
        feature=feature,
        text=text,
        author=str(author),
        method=str(row.get("typeName") or "neuronpedia"),
        model=None if model is None else str(model),
        scores=scores,
    )


def _read_delphi(source: Path, content_hash: str, layer: int | None) -> Iterator[LabelContent]:
    del content_hash  # delphi names no weights
    named = {file: _DELPHI_NAME.fullmatch(file.stem) for file in source.glob("explanations/*.txt")}
    modules = sorted({match[1] for match in named.values() if match})
    fitting = [m for m in modules if layer is None or _layer_of(m) in (layer, None)]
    if len(fitting) != 1:
        raise ArtifactError(
            f"{source} explains the modules {', '.join(modules) or 'none'}, and this dictionary is "
            f"of layer {layer}: move the explanations of one module into a folder of their own"
        )
    for file, match in sorted(named.items()):
        if match and match[1] == fitting[0]:
            text = next(_rows_of(file))
            if not isinstance(text, str):
                raise ArtifactError(f"{file}: expected a JSON string, got {shown(text)}")
            scores = tuple(_delphi_scores(source / "scores", file.name))
            yield LabelContent(
                feature=int(match[2]),
                text=" ".join(text.split()),
                author="delphi",
                method="delphi",
                scores=scores,
            )


def _delphi_scores(folder: Path, name: str) -> Iterator[Score]:
    for scorer, ours in DELPHI_SCORERS.items():
        file = folder / scorer / name
        if not file.is_file():
            continue
        rates = []
        judged = [row for row in _rows_of(file) if _delphi_answer(row, file) is not None]
        for firing in (True, False):
            right = [_delphi_answer(r, file) == firing for r in judged if r["activating"] == firing]
            rates.append(sum(right) / len(right) if right else None)
        if None not in rates:
            yield Score(ours, sum(rates) / 2, n=len(judged))


def _delphi_answer(row: Any, file: Path) -> bool | None:
    """What the judge said of an example; None where its answer could not be read."""
    if not isinstance(row, dict) or not isinstance(row.get("activating"), bool):
        raise ArtifactError(f"{file}: expected examples with activating and prediction")
    prediction = row.get("prediction")
    return None if not isinstance(prediction, int | float) else prediction >= 0.5


def export_delphi(folder: Path, out: Path) -> int:
    """Write the explanation of each feature as delphi does, and return how many there are.

    delphi's score files list judged examples, which it sums itself and a label file does not hold:
    none are written.

    Args:
        folder: the dictionary's, with its `features.sqlite`.
        out: folder; `explanations/` is made in it.

    Raises:
        ArtifactError: there is no explanation.
        ConfigError: another process writes there.
    """
    with FeatureStore(folder) as store:
        made_from, n_features = store.manifest["made_from"], store.n_features
    book = LabelBook(folder / LABEL_FILE, made_from["dictionary_hash"], n_features)
    best = one_each(book.all())
    if not best:
        raise ArtifactError(f"{folder} has no explanations: write some with `saelab explain` first")
    module = str(made_from.get("hook_point", "module")).replace("/", "--")
    with writer_lock(out), whole_folder(out) as whole:
        for feature, label in best.items():
            path = whole / "explanations" / f"{module}_latent{feature}.txt"
            write_bytes(path, json.dumps(label.text, ensure_ascii=False).encode())
    return len(best)


def _layer_of(name: str) -> int | None:
    match = _LAYER.search(name)
    return None if match is None else int(match[1] or match[2])
