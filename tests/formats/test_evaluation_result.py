"""The evaluation result's file: read back as written, and never trusted."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from saelab.errors import ArtifactError
from saelab.formats.evaluation_result import (
    EvaluationResult,
    MeasuredMetric,
    read_evaluation_result,
    write_evaluation_result,
)
from saelab.formats.manifest import write_manifest

RESULT = EvaluationResult(
    suite="core",
    dictionary_name="sae",
    dictionary_hash="ab" * 32,
    settings={"n_tokens": 100},
    made_from={"model": "tiny"},
    metrics=(
        MeasuredMetric(name="fvu", value=0.25, unit="1", definition="what it says"),
        MeasuredMetric(name="n_rows", value=99, unit="rows", definition="counted"),
        MeasuredMetric(name="loss_recovered_zero", value=None, unit="1", definition="undefined"),
    ),
    item_files={"features": "core_features.parquet"},
)


def test_a_result_is_read_back_as_written(tmp_path):
    written = write_evaluation_result(tmp_path / "core.json", RESULT)
    read = read_evaluation_result(tmp_path / "core.json")
    assert read == written
    assert replace(read, created=None, library_versions={}) == RESULT
    assert read.library_versions["torch"]
    assert read.value("n_rows") == 99
    assert read.value("loss_recovered_zero") is None
    with pytest.raises(ArtifactError, match="has no metric 'l0'; it has fvu, n_rows"):
        read.value("l0")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_never_written(tmp_path, bad):
    metrics = (MeasuredMetric(name="fvu", value=bad, unit="1", definition=""),)
    with pytest.raises(ArtifactError, match=r"metric 'fvu' is (nan|inf), not a finite number"):
        write_evaluation_result(tmp_path / "core.json", replace(RESULT, metrics=metrics))
    with pytest.raises(ValueError, match="Out of range float"):
        write_evaluation_result(tmp_path / "core.json", replace(RESULT, settings={"x": bad}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "dictionary"}, "describes a 'dictionary'; a 'evaluation_result' was expected"),
        ({"schema_version": 3}, "has schema version 3; this saelab reads up to 2"),
        ({"metrics": None}, "'metrics' is missing or no list"),
        ({"dictionary": {"name": "a"}}, "dictionary 'hash' is missing or no text"),
        ({"metrics": [{"name": "fvu"}]}, "metric 0 needs exactly name, value, unit and definition"),
        ({"item_files": {"features": "../x"}}, "a file name beside it was expected"),
    ],
)
def test_a_foreign_or_edited_file_is_refused(tmp_path, change, message):
    path = tmp_path / "core.json"
    write_evaluation_result(path, RESULT)
    write_manifest(path, json.loads(path.read_text()) | change)
    with pytest.raises(ArtifactError, match=message):
        read_evaluation_result(path)


def test_every_problem_is_named_at_once(tmp_path):
    path = tmp_path / "core.json"
    write_evaluation_result(path, RESULT)
    content = json.loads(path.read_text())
    content["metrics"][0]["value"] = "low"
    content["metrics"][1]["name"] = "fvu"
    write_manifest(path, content)
    with pytest.raises(ArtifactError, match=r"'fvu' is 'low'.*'fvu' appears twice.*--overwrite"):
        read_evaluation_result(path)


def test_truncated_json_is_refused(tmp_path):
    path = tmp_path / "core.json"
    write_evaluation_result(path, RESULT)
    path.write_text(path.read_text()[:100])
    with pytest.raises(ArtifactError, match="not valid JSON"):
        read_evaluation_result(path)
