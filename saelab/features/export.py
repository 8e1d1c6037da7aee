"""A store in other programs' formats: parquet tables, and JSON with Neuronpedia's fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from saelab.errors import ConfigError
from saelab.formats.files import atomic_path
from saelab.progress import progress_bar

from .neuronpedia import batches, write_dashboard_batches
from .reader import FeatureStore
from .records import FeatureRecord
from .schema import FLAGS
from .unpacking import split_tokens


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
        store.verify()
        names = ["features.parquet", "examples.parquet"]
        if kind == "neuronpedia-json":
            names = [f"batch-{index}.json" for index, _ in enumerate(batches(store.n_features))]
        files = [out / name for name in names]
        existing = [file for file in files if file.exists()]
        if existing and not overwrite:
            raise ConfigError(f"{existing[0]} exists already: add --overwrite to replace it")
        if kind == "parquet":
            _write_feature_table(store, files[0])
            _write_examples(store, files[1])
        else:
            write_dashboard_batches(store, files)
    return files


def _write_feature_table(store: FeatureStore, path: Path) -> None:
    """One row per feature: the columns of the store's table, flags and tokens spelt out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = dict(store.table())
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
        for features in batches(store.n_features):
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
