"""A store as Neuronpedia reads it: the files of its exports, and SAEDashboard's JSON batches.

An export is a folder MODEL/SOURCE of JSON lines whose keys are columns of Neuronpedia's database:
one line about release, model, set of sources and source, and gzipped batches of features,
activations and explanations. Its importer takes a file's columns from the first line and fails on
an empty file, so every line of a kind has the same keys, no list is null, and a batch without rows
has no file. Ids and bytes depend on store, labels and decoder alone.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from saelab.errors import ArtifactError, ConfigError
from saelab.formats.files import atomic_path, write_bytes
from saelab.progress import progress_bar

from .label_content import Label
from .labels import LabelBook
from .reader import FeatureStore, is_stale
from .records import Example, FeatureRecord, Histogram
from .schema import LABEL_FILE, STORE_FILE

if TYPE_CHECKING:
    from saelab.dictionary.storage import SavedDictionary

BATCH_FEATURES = 128
"""Features of a batch, which is how many SAEDashboard writes to one."""
SIGNIFICANT_DIGITS = 6
FLOAT32_DIGITS = 9
"""Digits that give a float32 back exactly."""
CREATOR = "clkht01d40000jv08hvalcvly"
"""The account that every Neuronpedia database is made with; imported rows need an owner."""
ORIGIN_MARK = "\nsaelab: "
"""In the notes of an explanation, before all that saelab knows of where it is from."""
UNMEASURED = (
    *("neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1"),
    *("correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson"),
    *("correlated_features_l1", "decoder_weights_dist"),
)
"""Lists of Neuronpedia's that a store does not hold: they are empty."""


class Binned(NamedTuple):
    """An example and the interval of activations that it stands for."""

    low: float
    high: float
    share: float
    """Of all activations; 0 for the top examples, which are a bin of their own there."""
    example: Example


def batches(n_features: int) -> Iterator[range]:
    """Features, `BATCH_FEATURES` at a time."""
    for start in range(0, n_features, BATCH_FEATURES):
        yield range(start, min(start + BATCH_FEATURES, n_features))


def export_neuronpedia(saved: SavedDictionary, out: Path, name: str | None = None) -> Path:
    """Write a dictionary's features as Neuronpedia's own export tool does.

    Args:
        saved: a dictionary with a feature store in its folder.
        out: folder; MODEL/SOURCE is made in it.
        name: of the set of sources; None: the dictionary's name.

    Returns:
        The folder MODEL/SOURCE.

    Raises:
        ArtifactError: there is no feature store, or it is not of this dictionary.
        ConfigError: a dictionary of several hook points, or of one without a layer.
    """
    site, path = saved.site, saved.folder / STORE_FILE
    set_name = identifier(name or saved.name)
    source = source_id(site.writes[0], set_name)
    if len(site.reads) > 1 or len(site.writes) > 1 or source == set_name:
        raise ConfigError(
            f"{saved.folder} cannot be exported to neuronpedia: its sources belong to one layer, "
            f"and this dictionary reads and writes {site}"
        )
    if not path.is_file():
        raise ArtifactError(
            f"{saved.folder} has no feature store, which everything on Neuronpedia's pages is "
            f"from: build it with `saelab features {saved.folder}` first"
        )
    with FeatureStore(path) as store:
        if stale := is_stale(store, saved.folder):
            raise ArtifactError(stale)
        keys = {"modelId": identifier(str(store.manifest["made_from"]["model"])), "layer": source}
        folder = out / keys["modelId"] / source
        written = [
            *_write_descriptions(folder, saved, store, keys, set_name),
            *_write_features(folder, saved, store, keys, set_name),
            *_write_explanations(folder, saved, store, keys),
        ]
    for file in folder.glob("*/batch-*.jsonl.gz"):
        if file not in written:  # of a longer export that was here before
            file.unlink()
    return folder


def identifier(name: str) -> str:
    """What is left of a name or path in an address."""
    return re.sub(r"[^a-z0-9.]+", "-", Path(name).name.lower()).strip("-")


def source_id(hook_point: str, set_name: str) -> str:
    """What Neuronpedia calls a dictionary, its layer first; the name of the set without one."""
    layer = re.search(r"\.(\d+)\.", hook_point)
    return f"{layer[1]}-{set_name}" if layer else set_name


def _write_descriptions(
    folder: Path, saved: SavedDictionary, store: FeatureStore, keys: dict[str, str], set_name: str
) -> Iterator[Path]:
    """One line each about release, model, set of sources and source."""
    model, source, made_from = keys["modelId"], keys["layer"], store.manifest["made_from"]
    dictionary = saved.dictionary
    title = f"{saved.name}: {dictionary.architecture}, {dictionary.d_sae:,} latents, {saved.site}"
    common = {"creatorId": CREATOR, "visibility": "PUBLIC", "createdAt": store.manifest["created"]}
    lines = {
        "release": {"name": set_name, "description": title, "creatorName": "saelab", "urls": []},
        "model": {
            "id": model,
            "displayName": model,
            "displayNameShort": model,
            "owner": "",
            "layers": 0,
            "neuronsPerLayer": 0,
        },
        "sourceset": {
            "modelId": model,
            "name": set_name,
            "description": title,
            "creatorName": "saelab",
            "releaseName": set_name,
            "hasDashboards": True,
            "urls": [],
        },
        "source": {
            "id": source,
            "modelId": model,
            "setName": set_name,
            "hasDashboards": True,
            "num_prompts": store.n_sequences,
            "num_tokens_in_prompt": store.manifest["context_length"],
            "dataset": _dataset(store),
            "notes": f"saelab {made_from['dictionary_hash']}",
        },
    }
    for kind, line in lines.items():
        path = folder / f"{kind}.jsonl"
        write_bytes(path, _json_lines([{**line, **common}]))
        yield path


def _write_features(
    folder: Path, saved: SavedDictionary, store: FeatureStore, keys: dict[str, str], set_name: str
) -> Iterator[Path]:
    """The batches of features, and beside each that of its activations."""
    decoder = saved.dictionary.W_dec.detach().float().cpu().numpy()
    with progress_bar(store.n_features, "exporting", "features") as bar:
        for number, indices in enumerate(batches(store.n_features)):
            records = [store.feature(index, None) for index in indices]
            features = [
                {
                    **_feature_row(record, keys, set_name, saved.site.writes[0]),
                    "hasVector": True,
                    "vector": _rounded(decoder[record.id].tolist(), FLOAT32_DIGITS),
                }
                for record in records
            ]
            activations = [
                row for record in records for row in _activation_rows(record, store, keys)
            ]
            yield from _write_batch(folder / "features", number, features)
            yield from _write_batch(folder / "activations", number, activations)
            bar.update(len(indices))


def _feature_row(
    record: FeatureRecord, keys: dict[str, str], set_name: str, hook_point: str
) -> dict[str, Any]:
    """A row of Neuronpedia's table of features, but for its decoder row."""
    return {
        **keys,
        "index": str(record.id),
        "sourceSetName": set_name,
        "creatorId": CREATOR,
        "maxActApprox": record.max_act,
        "vectorDefaultSteerStrength": record.max_act,
        "hookName": hook_point,
        "topkCosSimIndices": [near.feature for near in record.decoder_neighbours],
        "topkCosSimValues": _rounded(near.value for near in record.decoder_neighbours),
        **_feature_fields(record),
    }


def feature_as_served(
    store: FeatureStore, feature: int, labels: Iterable[Label], keys: dict[str, str]
) -> dict[str, Any]:
    """What Neuronpedia answers when it is asked for a feature; decoder rows are left out.

    Args:
        store: the features.
        feature: index of the latent.
        labels: what is said of it, what counts most first.
        keys: `modelId` and `layer`.
    """
    record, made_from = store.feature(feature, None), store.manifest["made_from"]
    content_hash = made_from["dictionary_hash"]
    set_name = re.sub(r"^\d+-", "", keys["layer"])
    return {
        **_feature_row(record, keys, set_name, str(made_from.get("hook_point"))),
        "hasVector": False,
        "vector": [],
        "activations": list(_activation_rows(record, store, keys)),
        "explanations": [_explanation_row(label, content_hash, keys) for label in labels],
    }


def _activation_rows(
    record: FeatureRecord, store: FeatureStore, keys: dict[str, str]
) -> Iterator[dict[str, Any]]:
    for order, (low, high, share, example) in enumerate(_binned_examples(record)):
        values = _rounded(example.activations.tolist())
        yield {
            "id": _row_id(store.store_id, record.id, order),
            **keys,
            "index": str(record.id),
            "creatorId": CREATOR,
            "dataSource": _dataset(store),
            "tokens": list(example.texts),
            "values": values,
            "maxValue": max(values),
            "maxValueTokenIndex": values.index(max(values)),
            "minValue": min(values),
            "binMin": low,
            "binMax": high,
            "binContains": share,
            "qualifyingTokenIndex": example.anchor,
            "dfaValues": [],
            "lossValues": [],
        }


def _write_explanations(
    folder: Path, saved: SavedDictionary, store: FeatureStore, keys: dict[str, str]
) -> Iterator[Path]:
    """Every label of every feature."""
    content_hash = store.manifest["made_from"]["dictionary_hash"]
    book = LabelBook(saved.folder / LABEL_FILE, content_hash, store.n_features)
    rows = [_explanation_row(label, content_hash, keys) for label in book.all()]
    for number, batch in enumerate(batches(len(rows))):
        yield from _write_batch(folder / "explanations", number, rows[batch.start : batch.stop])


def _explanation_row(label: Label, content_hash: str, keys: dict[str, str]) -> dict[str, Any]:
    return {
        "id": _row_id(content_hash, label.feature, label.id),
        **keys,
        "index": str(label.feature),
        "authorId": CREATOR,
        "description": label.text,
        "notes": _origin_of(label, content_hash),
    }


def _origin_of(label: Label, content_hash: str) -> str:
    """Where a label is from, in words and, for `saelab explain --import`, as JSON.

    Neuronpedia's columns for author, method and score name rows of its own tables.
    """
    score = "" if label.score is None else f", score {label.score:.4g}"
    facts = {name: getattr(label, name) for name in ("author", "method", "score", "model")}
    facts |= {"prompt_hash": label.prompt_hash, "dictionary": content_hash}
    facts["scores"] = [asdict(score) for score in label.scores]
    words = f"by {label.author}, {label.method}{score}, {label.created}"
    return f"{words}{ORIGIN_MARK}{json.dumps(facts)}"


def _row_id(origin: str, feature: int, order: int) -> str:
    """An id of the shape of a cuid, which is what Neuronpedia's rows have."""
    return "c" + hashlib.sha256(f"{origin} {feature} {order}".encode()).hexdigest()[:24]


def _dataset(store: FeatureStore) -> str:
    text = store.manifest["made_from"].get("text")
    return str((text.get("source") if isinstance(text, dict) else text) or "")


def _write_batch(folder: Path, number: int, rows: Sequence[dict[str, Any]]) -> Iterator[Path]:
    if rows:
        path = folder / f"batch-{number}.jsonl.gz"
        write_bytes(path, gzip.compress(_json_lines(rows), 6, mtime=0))
        yield path


def _json_lines(rows: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()


def write_dashboard_batches(store: FeatureStore, files: list[Path]) -> None:
    """SAEDashboard's JSON: a file for each `BATCH_FEATURES` features, examples inside.

    Args:
        store: the store.
        files: one for each batch.
    """
    made_from = store.manifest["made_from"]
    layer = re.search(r"\.(\d+)\.", str(made_from.get("hook_point")))
    head = {
        "model_id": made_from.get("model"),
        "layer": int(layer[1]) if layer else None,
        "sae_set": made_from.get("dictionary"),
    }
    with progress_bar(store.n_features, "exporting", "features") as bar:
        for file, features in zip(files, batches(store.n_features), strict=True):
            content = {**head, "features": [_dashboard_feature(store, index) for index in features]}
            with atomic_path(file) as temporary:
                temporary.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
            bar.update(len(features))


def _dashboard_feature(store: FeatureStore, feature: int) -> dict[str, Any]:
    record = store.feature(feature, None)
    return {
        "feature_index": feature,
        **_feature_fields(record),
        "n_prompts_total": store.n_sequences,
        "n_tokens_in_prompt": store.manifest["context_length"],
        "dataset": _dataset(store),
        "activations": [
            {
                "bin_min": low,
                "bin_max": high,
                "bin_contains": share,
                "tokens": list(example.texts),
                "values": _rounded(example.activations.tolist()),
            }
            for low, high, share, example in _binned_examples(record)
        ],
    }


def _feature_fields(record: FeatureRecord) -> dict[str, Any]:
    """What both layouts say of a feature, by Neuronpedia's names."""
    lens, correlated = record.logit_lens, record.coactive_pearson
    top, bottom = (lens.top, lens.bottom) if lens else ((), ())
    return {
        **{name: [] for name in UNMEASURED},
        "correlated_features_indices": [near.feature for near in correlated],
        "correlated_features_pearson": _rounded(near.value for near in correlated),
        "neg_str": [score.text for score in bottom],
        "neg_values": _rounded(score.value for score in bottom),
        "pos_str": [score.text for score in top],
        "pos_values": _rounded(score.value for score in top),
        "frac_nonzero": record.density or 0.0,
        **_bars("freq", record.histogram),
        **_bars("logits", lens.histogram if lens else None),
    }


def _binned_examples(record: FeatureRecord) -> Iterator[Binned]:
    """Top examples, then those drawn from each stratum."""
    tops = record.top_examples
    for example in tops:
        yield Binned(tops[-1].value, record.max_act, 0.0, example)
    for group in record.quantile_groups:
        for example in group.examples:
            yield Binned(group.low, group.high, group.share_of_activations, example)


def _bars(name: str, histogram: Histogram | None) -> dict[str, list[Any]]:
    """A histogram as bar middles and heights, which is how that layout stores one."""
    edges = [] if histogram is None else histogram.edges.tolist()
    return {
        f"{name}_hist_data_bar_heights": [] if histogram is None else histogram.counts.tolist(),
        f"{name}_hist_data_bar_values": _rounded((low + high) / 2 for low, high in pairwise(edges)),
    }


def _rounded(values: Iterable[float], digits: int = SIGNIFICANT_DIGITS) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in values]
