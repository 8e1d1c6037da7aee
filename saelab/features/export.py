"""A store in other programs' formats: parquet tables, and JSON with Neuronpedia's fields."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from saelab.errors import ConfigError
from saelab.formats.files import atomic_path
from saelab.progress import progress_bar

from .reader import FeatureStore
from .records import FeatureRecord, Histogram
from .schema import FLAGS
from .unpacking import split_tokens

BATCH_FEATURES = 128
"""Features of a JSON file or of a parquet row group."""
SIGNIFICANT_DIGITS = 6
UNMEASURED = (
    *("neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1"),
    *("correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson"),
    *("correlated_features_l1", "decoder_weights_dist"),
)
"""Fields of Neuronpedia's that a store has no numbers for."""


def export_store(
    store_path: Path,
    kind: Literal["parquet", "neuronpedia-json"],
    out: Path,
    *,
    overwrite: bool = False,
) -> list[Path]:
    """Write a store's features to a folder in another format.

    Args:
        store_path: the store.
        kind: "parquet" writes features.parquet and examples.parquet; "neuronpedia-json" writes
            batch-0.json and so on, of 128 features each, with the fields of Neuronpedia's batches.
        out: folder, made if need be.
        overwrite: whether files that exist may be replaced.

    Returns:
        The files.

    Raises:
        ArtifactError: the store cannot be read.
        ConfigError: files that exist and may not be replaced.
    """
    with FeatureStore(store_path) as store:
        names = ["features.parquet", "examples.parquet"]
        if kind == "neuronpedia-json":
            names = [f"batch-{index}.json" for index, _ in enumerate(_batches(store.n_features))]
        files = [out / name for name in names]
        existing = [file for file in files if file.exists()]
        if existing and not overwrite:
            raise ConfigError(f"{existing[0]} exists already: add --overwrite to replace it")
        if kind == "parquet":
            _write_feature_table(store, files[0])
            _write_examples(store, files[1])
        else:
            _write_batches(store, files)
    return files


def _write_feature_table(store: FeatureStore, path: Path) -> None:
    """One row per feature: the columns of the store's table, flags and tokens spelt out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = store.table()
    tokens = {name: table.pop(name) for name in ("top_tokens", "promoted_tokens")}
    del table["flags"]
    columns = table | {flag: store.flag(flag) for flag in FLAGS}
    arrays = {name: pa.array(values, from_pandas=True) for name, values in columns.items()}
    for name, texts in tokens.items():
        arrays[name] = pa.array([list(split_tokens(text)) for text in texts], pa.list_(pa.string()))
    metadata = {"saelab.formats.manifest": json.dumps(store.manifest)}
    with atomic_path(path) as temporary:
        pq.write_table(
            pa.table(arrays).replace_schema_metadata(metadata), temporary, compression="zstd"
        )


def _write_examples(store: FeatureStore, path: Path) -> None:
    """One row per example, whole contexts: tokens and the feature's activation on each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        {
            "feature": pa.int32(),
            "list": pa.string(),
            "sequence": pa.int32(),
            "anchor": pa.int32(),
            "value": pa.float32(),
            "other_feature": pa.int32(),
            "tokens": pa.list_(pa.string()),
            "activations": pa.list_(pa.float32()),
        },
        metadata={"saelab.store_id": store.store_id},
    )
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
        progress_bar(store.n_features, "exporting", "features") as bar,
    ):
        for features in _batches(store.n_features):
            rows = [
                row for feature in features for row in _example_rows(store.feature(feature, None))
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            bar.update(len(features))


def _example_rows(record: FeatureRecord) -> Iterator[dict[str, Any]]:
    """Every example with the name of its list; strata are counted from the highest."""
    strata = enumerate(record.quantile_groups)
    lists = {
        "top": record.top_examples,
        **{f"stratum {index}": group.examples for index, group in strata},
        "random positive": record.random_positives,
        "near miss": record.near_misses,
        "random silent": record.random_silent,
    }
    for name, examples in lists.items():
        for example in examples:
            yield {
                "feature": record.id,
                "list": name,
                "sequence": example.sequence,
                "anchor": example.anchor,
                "value": example.value,
                "other_feature": example.other_feature,
                "tokens": list(example.texts),
                "activations": example.activations,
            }


def _write_batches(store: FeatureStore, files: list[Path]) -> None:
    made_from = store.manifest["made_from"]
    layer = re.search(r"\.(\d+)\.", str(made_from.get("hook_point")))
    head = {
        "model_id": made_from.get("model"),
        "layer": int(layer[1]) if layer else None,
        "sae_set": made_from.get("dictionary"),
    }
    with progress_bar(store.n_features, "exporting", "features") as bar:
        for file, features in zip(files, _batches(store.n_features), strict=True):
            content = {**head, "features": [_neuronpedia(store, feature) for feature in features]}
            with atomic_path(file) as temporary:
                temporary.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
            bar.update(len(features))


def _neuronpedia(store: FeatureStore, feature: int) -> dict[str, Any]:
    """A feature with Neuronpedia's field names; what was not measured is an empty list."""
    record = store.feature(feature, None)
    lens = record.logit_lens
    correlated = record.coactive_pearson
    tops = record.top_examples
    # Neuronpedia puts the top examples in a separate bin, which holds no share of the activations.
    activations = [(tops[-1].value, record.max_act, 0.0, example) for example in tops]
    for group in record.quantile_groups:
        activations += [
            (group.low, group.high, group.share_of_activations, example)
            for example in group.examples
        ]
    top, bottom = (lens.top, lens.bottom) if lens else ((), ())
    return {
        "feature_index": feature,
        **{name: [] for name in UNMEASURED},
        "correlated_features_indices": [neighbour.feature for neighbour in correlated],
        "correlated_features_pearson": _rounded([neighbour.value for neighbour in correlated]),
        "neg_str": [score.text for score in bottom],
        "neg_values": _rounded([score.value for score in bottom]),
        "pos_str": [score.text for score in top],
        "pos_values": _rounded([score.value for score in top]),
        "frac_nonzero": record.density,
        **_bars("freq", record.histogram),
        **_bars("logits", lens.histogram if lens else None),
        "n_prompts_total": store.n_sequences,
        "n_tokens_in_prompt": store.manifest["context_length"],
        "dataset": store.manifest["made_from"].get("text", {}).get("source", ""),
        "activations": [
            {
                "bin_min": low,
                "bin_max": high,
                "bin_contains": share,
                "tokens": list(example.texts),
                "values": _rounded(example.activations.tolist()),
            }
            for low, high, share, example in activations
        ],
    }


def _bars(name: str, histogram: Histogram | None) -> dict[str, list[Any]]:
    """A histogram as bar middles and heights, which is how that layout stores one."""
    edges = [] if histogram is None else histogram.edges.tolist()
    return {
        f"{name}_hist_data_bar_heights": [] if histogram is None else histogram.counts.tolist(),
        f"{name}_hist_data_bar_values": _rounded([(a + b) / 2 for a, b in pairwise(edges)]),
    }


def _rounded(values: list[float]) -> list[float]:
    return [float(f"{value:.{SIGNIFICANT_DIGITS}g}") for value in values]


def _batches(n_features: int) -> Iterator[range]:
    for start in range(0, n_features, BATCH_FEATURES):
        yield range(start, min(start + BATCH_FEATURES, n_features))
