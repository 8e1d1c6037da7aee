"""Every kind of file through its real writer: described, and never called intact when changed."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import pytest
import torch
from safetensors.torch import load

from saelab.commands.info import describe
from saelab.errors import SaelabError
from saelab.formats.evaluation_result import (
    EvaluationResult,
    MeasuredMetric,
    write_evaluation_result,
)
from saelab.formats.files import read_json
from saelab.formats.kinds import KINDS
from saelab.formats.manifest import new_manifest, write_manifest
from saelab.formats.run import write_run


def training_run(folder):
    write_run(folder, "running", seed=0, config={}, made_from={"m": 1}, settings_hash="x")
    return folder / "run.json"


def complete_run(folder):
    write_run(
        folder,
        "complete",
        seed=0,
        config={},
        made_from={},
        settings_hash="x",
        excluded={},
        dictionaries={},
    )
    return folder / "run.json"


def checkpoint(folder):
    from saelab.training.checkpoint import Checkpoint, save_checkpoint

    save_checkpoint(folder, Checkpoint(3, "x", {"epoch": 1}, {"d": {"w": torch.ones(2)}}))
    return folder / "checkpoint.json"


def evaluation_result(folder):
    (folder / "core_features.parquet").write_bytes(b"rows")
    metric = MeasuredMetric(name="fvu", value=0.25, unit="1", definition="…")
    result = EvaluationResult(
        suite="core",
        dictionary_name="d",
        dictionary_hash="abc",
        settings={"n": 1},
        made_from={"model": "m"},
        metrics=(metric,),
        item_files={"features": "core_features.parquet"},
    )
    write_evaluation_result(folder / "core.json", result)
    return folder / "core.json"


def comparison(folder):
    """As written until comparisons became results: one with another kind, and more."""
    (folder / "compare.json").write_bytes(evaluation_result(folder).read_bytes())
    content = read_json(folder / "compare.json") | {"kind": "comparison", "rows": []}
    write_manifest(folder / "compare.json", content)
    return folder / "compare.json"


def rows(folder):
    import pyarrow
    from pyarrow import parquet

    evaluation_result(folder)
    table = pyarrow.table({"latent": list(range(9))})
    parquet.write_table(table, folder / "core_features.parquet")
    write_manifest(folder / "core.json", read_json(folder / "core.json"))
    return folder / "core_features.parquet"


def manifest_of(kind, **content):
    def write(folder):
        path = folder / KINDS[kind].files[0].replace("*", "x")
        write_manifest(path, new_manifest(kind, seed=0, config={}, made_from={}) | content)
        return path

    return write


def feature_shards(folder):
    from saelab.features.shards import ShardText, write_shard

    tokens = np.arange(6, dtype=np.int64).reshape(2, 3)
    text = ShardText(0, tokens, np.ones((2, 3), bool), {"bos": 2})
    path = folder / "features.build" / "shard-00000.safetensors"
    values = np.array([0.5, 0.25], np.float32)
    write_shard(path, text, np.array([0, 4]), np.array([3, 1]), values, 5, "build")
    return path


def error_probe(folder):
    from saelab.dictionary.decomposition import ErrorProbe, save_probe

    path = folder / "dark_matter_probe.safetensors"
    save_probe(path, ErrorProbe(torch.eye(3), torch.ones(3)), {"fitted to": "errors"})
    return path


def feature_list(folder):
    from saelab.features.lists import ENDING, FeatureList, ListedFeature, ListShelf

    item = ListedFeature(dictionary="a" * 64, name="d", feature=3, note="a note")
    shelf = ListShelf(folder)
    return folder / f"{shelf.add(FeatureList(name='n', features=(item,))).id}{ENDING}"


WRITERS = {
    "training_run": training_run,
    "training_run, complete": complete_run,
    "checkpoint": checkpoint,
    "evaluation_result": evaluation_result,
    "rows": rows,
    "comparison": comparison,
    "recovery_score_card": manifest_of("recovery_score_card", entries=[]),
    "supervised_circuit": manifest_of("supervised_circuit", circuit={"roles": []}),
    "quickstart_state": manifest_of("quickstart_state", finished=["cache"]),
    "feature_list": feature_list,
    "feature_shards": feature_shards,
    "error_probe": error_probe,
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_no_flipped_bit_is_called_intact(writer, tmp_path):
    path = writer(tmp_path)
    described = describe(path)
    assert described[0].startswith(path_kind(path))
    assert any(line.startswith(("intact: ", "unfinished: ")) for line in described)
    good = path.read_bytes()
    chance = np.random.default_rng(0)
    silent = []
    for bit in chance.choice(8 * len(good), size=min(150, 8 * len(good)), replace=False).tolist():
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            lines = describe(path)
        except SaelabError as error:
            assert "\n" not in str(error).replace(str(changed), "")[:40]
        else:
            if lines != described or not same_content(path, good):
                silent.append((bit, lines))
    assert silent == []
    path.write_bytes(good)
    for cut in (0, 1, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:cut])
        with suppress(SaelabError):
            assert describe(path) == described
            assert same_content(path, good)


def same_content(path, good):
    """White space of JSON, or padding of a header, is no content."""
    if path.suffix == ".json":
        return json.loads(path.read_bytes()) == json.loads(good)
    if path.suffix == ".safetensors":
        first, second = load(path.read_bytes()), load(good)
        return all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())
    return path.read_bytes() == good


def path_kind(path):
    if path.name == "compare.json":
        return "comparison"
    for kind in KINDS.values():
        if any(path.match(pattern) for pattern in kind.files):
            return kind.name.replace("_", " ")
    raise AssertionError(path)


def test_a_file_beside_a_result_is_checked(tmp_path):
    path = evaluation_result(tmp_path)
    (tmp_path / "core_features.parquet").write_bytes(b"rowz")
    with pytest.raises(SaelabError, match=r"core_features\.parquet is not the file"):
        describe(path)


def test_results_of_before_the_hash_are_not_called_intact(tmp_path):
    from saelab.formats.files import read_json, write_json

    path = evaluation_result(tmp_path)
    content = read_json(path)
    del content["self_hash"], content["item_hashes"]
    write_json(path, content | {"schema_version": 1})
    assert describe(path)[-1].startswith("not checked: it was written before")
