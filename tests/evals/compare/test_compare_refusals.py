"""What cannot be compared is refused in one line with exit code 2, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saelab.cli import main as cli
from saelab.errors import ArtifactError, ConfigError
from saelab.evals.compare.suite import CompareConfig, run_compare
from saelab.formats.evaluation_result import read_evaluation_result
from saelab.formats.files import read_json
from saelab.formats.manifest import write_manifest


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs the command and returns its one line; every file must be as it was."""

    def run(*words):
        out = tmp_path / "out"
        before = snapshot(tmp_path)
        assert cli(["compare", *map(str, words), "--out", str(out), "--device", "cpu"]) == 2
        assert snapshot(tmp_path) == before
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "Traceback" not in error
        return error

    return run


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ({"model": "gpt2", "model_hash": "f" * 64}, "different models cannot be compared"),
        ({"hook_point": "blocks.2.hook_resid_post"}, "different hook points"),
        ({"text": {"source": "elsewhere"}}, "different texts"),
        ({"text_hash": "9" * 64}, "different texts"),
        ({"context_length": 64}, "different context lengths"),
        ({"row_rule": {"exclude_bos": False}}, "different token filters"),
    ],
)
def test_runs_that_are_of_different_things(plant, refused, origin, message):
    one = plant.run("one", ks=(4,))
    other = plant.run("other", ks=(4,), origin=origin)
    error = refused(one, other)
    assert message in error
    assert str(one) in error and str(other) in error
    key, value = next(iter(origin.items()))
    if key in ("model", "hook_point"):
        assert value in error and f"{plant_origin(key)}" in error


def plant_origin(key):
    return {"model": "planted-model", "hook_point": "blocks.1.hook_resid_post"}[key]


def test_the_same_dictionary_twice(plant, refused):
    run = plant.run(ks=(4,))
    assert "is named twice" in refused(run, run)
    inside = next((run / "dictionaries").iterdir())
    assert "is named twice" in refused(run, inside)


def test_two_trainings_of_the_same_settings_and_seed(plant, refused):
    one = plant.run("one", ks=(4,))
    two = plant.run("two", ks=(4,), origin={"cache_hash": "d" * 64})
    error = refused(one, two)
    assert "are both seed 0 of topk" in error
    assert "they differ in cache_hash" in error


def test_a_run_that_is_not_complete(plant, refused):
    error = refused(plant.run(ks=(4,), status="running"))
    assert "run is not complete" in error
    assert "--resume" in error


@pytest.mark.parametrize("where", ["nowhere", "."])
def test_folders_that_are_no_runs(plant, refused, tmp_path, where):
    plant.run(ks=(4,))
    error = refused(tmp_path / where)
    if where == ".":
        assert "neither a run" in error and f"it holds {tmp_path / 'run'}" in error
    else:
        assert "nowhere does not exist" in error


def test_no_run_at_all(refused):
    assert "no run was given" in refused()


def test_a_result_of_other_settings_is_named_and_kept_without_overwrite(plant, refused):
    run = plant.run(ks=(4,))
    folder = run / "dictionaries" / "topk-d48-k4-s0"
    plant.core(folder, l0=4.0, fvu=0.3, n_tokens=65_536)
    error = refused(run)
    assert f"{folder / 'evals' / 'core.json'} exists already, of other settings" in error
    assert "n_tokens 65536, not 16384" in error
    assert "--overwrite" in error


def test_many_results_of_other_settings_are_counted(plant, refused):
    run = plant.run(ks=(4, 8))
    error = refused(run, "--n-tokens", "20000")
    assert "and 5 more" in error, "8 core results, of which 3 are named"
    assert "consistency.json exists already, of other settings" in error
    assert error.count("n_tokens 16384, not 20000") == 8, (
        "3 of core and of consistency are named, 2 of steering"
    )


def test_a_third_seed_makes_consistency_another_comparison(plant, refused):
    one = plant.run("one", methods=("topk",), ks=(4,))
    two = plant.run("two", methods=("topk",), ks=(4,), seeds=(2,))
    assert "it has dictionaries" in refused(one, two)


def test_overwrite_evaluates_those_again_and_no_others(plant, tmp_path, monkeypatch, caplog):
    run = plant.run(ks=(4,))
    folder = run / "dictionaries" / "topk-d48-k4-s0"
    plant.core(folder, l0=4.0, fvu=0.3, n_tokens=65_536)
    called = []

    def run_suite(suite, folders, config, *, pages):
        assert suite.name == "core"
        called.extend(folders)
        for one in folders:
            plant.core(one, l0=4.0, fvu=0.5)
        return [read_evaluation_result(one / "evals" / "core.json") for one in folders]

    monkeypatch.setattr("saelab.evals.suite.Suite.run", run_suite)
    run_compare([run], CompareConfig(out=tmp_path / "out", overwrite=True))
    assert called == [folder]
    assert "evaluated again" in caplog.text


def test_a_result_about_another_dictionary(plant, refused):
    run = plant.run(ks=(4,))
    one, other = sorted((run / "dictionaries").iterdir())[:2]
    (one / "evals" / "core.json").write_bytes((other / "evals" / "core.json").read_bytes())
    assert "of another dictionary" in refused(run)


@pytest.mark.parametrize("suite", ["core", "consistency", "steering"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"metrics"', '"metricks"'),
        lambda text: text.replace('"evaluation_result"', '"dictionary"'),
        lambda text: text.replace('"schema_version": 2', '"schema_version": 99'),
        lambda text: text.replace('"unit": "1"', '"unit": "2"', 1),
    ],
)
def test_a_damaged_result_is_named(plant, refused, suite, damage):
    run = plant.run(methods=("topk",), ks=(4,))
    path = run / "dictionaries" / "topk-d48-k4-s0" / "evals" / f"{suite}.json"
    path.write_text(damage(path.read_text()))
    assert str(path) in refused(run)


@pytest.mark.parametrize("suite", ["core", "consistency"])
def test_a_changed_table_of_latents(plant, refused, suite):
    run = plant.run(methods=("topk",), ks=(4,))
    path = run / "dictionaries" / "topk-d48-k4-s0" / "evals" / f"{suite}_features.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1
    path.write_bytes(content)
    error = refused(run)
    assert f"{path} is not the file that {suite}.json was written with" in error
    assert "add --overwrite" in error


def test_a_lost_table_of_latents(plant, refused):
    run = plant.run(methods=("topk",), ks=(4,))
    (run / "dictionaries" / "topk-d48-k4-s0" / "evals" / "core_features.parquet").unlink()
    assert "core_features.parquet beside it: missing" in refused(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run.pop("dictionaries"), "'dictionaries' is missing"),
        (lambda run: run.update(dictionaries={}), "lists no dictionary"),
        (lambda run: first(run).pop("folder"), "'folder' is missing"),
        (lambda run: first(run).update(folder="../../elsewhere"), "outside the run"),
        (lambda run: first(run).update(seconds_per_step="1"), "'seconds_per_step' is of type str"),
        (lambda run: first(run).update(seconds_per_step=-1), "'seconds_per_step' is -1"),
        (lambda run: first(run).update(state_bytes=[]), "'state_bytes' is of type list"),
        (lambda run: run.pop("status"), "'status' is missing"),
    ],
)
def test_a_damaged_record_of_a_run(plant, refused, change, message):
    folder = plant.run(methods=("topk",), ks=(4,))
    content = read_json(folder / "run.json")
    change(content)
    write_manifest(folder / "run.json", content)
    assert message in refused(folder)


def first(run):
    return next(iter(run["dictionaries"].values()))


def test_a_result_that_lacks_a_number(plant, tmp_path):
    run = plant.run(methods=("topk",), ks=(4,), seeds=(0,))
    path = next((run / "dictionaries").iterdir()) / "evals" / "core.json"
    content = read_json(path)
    content["metrics"] = [metric for metric in content["metrics"] if metric["name"] != "kl"]
    write_manifest(path, content)
    with pytest.raises(ArtifactError, match="has no metric 'kl'"):
        run_compare([run], CompareConfig(out=tmp_path / "out"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"compared": [True], "max_activation": [1.0]}, "not a readable table of latents"),
        ({"compared": [True], "max_activation": [1.0], "mcs": [2.0]}, "cosines beyond 1"),
        ({"compared": [False], "max_activation": [1.0], "mcs": [0.5]}, "no compared latents"),
    ],
)
def test_rows_of_a_suite_that_were_edited(plant, tmp_path, columns, message):
    import pyarrow
    from pyarrow import parquet

    run = plant.run(methods=("topk",), ks=(4,))
    for folder in (run / "dictionaries").iterdir():
        path = folder / "evals" / "consistency_features.parquet"
        parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(ConfigError, match=r"consistency_features\.parquet is not the file"):
        run_compare([run], CompareConfig(out=tmp_path / "out"))
    for path in run.glob("dictionaries/*/evals/consistency.json"):
        write_manifest(path, read_json(path))
    with pytest.raises(ArtifactError, match=message):
        run_compare([run], CompareConfig(out=tmp_path / "out"))


def test_a_comparison_without_charts_is_replaced_by_the_command_its_refusal_names(plant, tmp_path):
    """Version 1 held data that only its own figures could draw."""
    run, out = plant.run(methods=("topk",), ks=(4,), seeds=(0,)), tmp_path / "out"
    config = CompareConfig(out=out)
    run_compare([run], config)
    content = read_json(out / "compare.json") | {"kind": "comparison"}
    write_manifest(out / "compare.json", content | {"schema_version": 1, "figure_data": {}})
    with pytest.raises(
        ArtifactError, match=f"stored no charts: .*saelab compare RUN … --out {out}"
    ):
        read_evaluation_result(out / "compare.json")
    run_compare([run], config)
    assert read_evaluation_result(out / "compare.json").charts


def test_a_comparison_from_before_it_was_a_result_opens_is_drawn_and_replaced(
    plant, tmp_path, capsys
):
    """Version 2 was a kind of its own, with everything that a result has."""
    run, out = plant.run(methods=("topk",), ks=(4,), seeds=(0,)), tmp_path / "out"
    run_compare([run], CompareConfig(out=out))
    content = read_json(out / "compare.json") | {"kind": "comparison", "rows": [], "metrics": []}
    write_manifest(out / "compare.json", content)
    assert read_evaluation_result(out / "compare.json").charts
    (out / "compare.html").unlink()
    assert cli(["report", str(out)]) == 0
    assert "Training memory" in (out / "compare.html").read_text()
    assert cli(["info", str(out)]) == 0
    assert "comparison (schema version 2)" in capsys.readouterr().out
    other = plant.run("other", methods=("gated",), ks=(4,), seeds=(0,))
    with pytest.raises(ConfigError, match="compares 1 dictionaries that are not given now"):
        run_compare([other], CompareConfig(out=out))
    run_compare([run, other], CompareConfig(out=out))
    assert read_json(out / "compare.json")["kind"] == "evaluation_result"


def test_a_comparison_of_other_dictionaries_is_not_replaced(plant, refused, tmp_path):
    one, other = plant.run("one"), plant.run("other", methods=("gated",))
    out = tmp_path / "out"
    run_compare([one, other], CompareConfig(out=out), pages=False)
    error = refused(one)
    assert "compares 6 dictionaries that are not given now" in error
    run_compare([one], CompareConfig(out=out, overwrite=True), pages=False)
    [result] = run_compare([one, other], CompareConfig(out=out), pages=False)
    assert len(result.made_from["dictionaries"]) == 18


def test_another_file_called_compare_json_is_not_replaced(plant, refused, tmp_path):
    run = plant.run(ks=(4,))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "compare.json").write_text(json.dumps({"kind": "mine"}))
    assert "not a saelab manifest" in refused(run)


def test_a_file_in_place_of_the_folder(plant, refused, tmp_path):
    run = plant.run(ks=(4,))
    (tmp_path / "out").write_text("")
    assert "is a file, not a folder" in refused(run)


def test_settings_that_do_not_fit_are_named_together():
    with pytest.raises(ConfigError) as error:
        CompareConfig(n_tokens=0, steering_latents=1, common_l0=(4.0, -1.0), steering_k=())
    text = str(error.value)
    for part in ("n_tokens is 0;", "steering_latents is 1;", "common_l0: -1.0", "steering_k"):
        assert part in text
