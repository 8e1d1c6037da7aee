"""What the scan finds, what it refuses to follow, and that no address reaches a path."""

import json
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_store import write_toy_store

from saelab.dashboards.command import DashboardCommand, server_options, usable_port
from saelab.dashboards.run_index import scan
from saelab.errors import ConfigError, ResourceError


def test_a_run_with_its_dictionaries(world):
    index = scan([world])
    (run,) = index.runs
    assert run.id == "all/demo" and run.status == "complete" and run.problem is None
    first, second = run.dictionaries
    assert (first.name, second.name) == ("first", "second")
    assert first.facts["method"] == "relu" and first.facts["fvu"] == 0.25
    assert first.model == "toy-model" and first.content_hash == "toyhash"
    assert first.store_path == world / "demo" / "dictionaries" / "first" / "features.sqlite"
    assert first.evaluations == {"core": first.folder / "evals" / "core.json"}


def test_the_run_itself_or_a_dictionary_or_a_store_can_be_given(world, tmp_path):
    assert [run.id for run in scan([world / "demo"]).runs] == ["demo"]
    alone = scan([world / "demo" / "dictionaries" / "second"]).runs[0]
    assert [entry.name for entry in alone.dictionaries] == ["second"]
    store = write_toy_store(tmp_path / "mine.sqlite")
    (entry,) = scan([store]).runs[0].dictionaries
    assert (entry.name, entry.folder, entry.store_path) == ("mine", None, store)
    (entry,) = scan([tmp_path]).runs[0].dictionaries
    assert entry.store_path == store


def test_equal_names_are_told_apart(tmp_path):
    for place in ("a", "b"):
        write_toy_store(tmp_path / place / "runs" / "features.sqlite")
    runs = scan([tmp_path / "a" / "runs", tmp_path / "b" / "runs"]).runs
    assert sorted(run.id for run in runs) == ["runs", "runs~2"]


def test_links_are_not_followed(tmp_path, world):
    outside = write_toy_store(tmp_path / "outside" / "features.sqlite")
    root = tmp_path / "root"
    inside = root / "dictionary"
    (inside / "evals").mkdir(parents=True)
    (inside / "cfg.json").write_text("{}")
    (inside / "features.sqlite").symlink_to(outside)
    (inside / "evals" / "core.json").symlink_to(
        world / "demo" / "dictionaries" / "first" / "evals" / "core.json"
    )
    (root / "folder").symlink_to(outside.parent)
    (root / "bare.sqlite").symlink_to(outside)
    index = scan([root])
    (entry,) = index.dictionaries
    assert entry.name == "dictionary" and entry.store_path is None and entry.evaluations == {}


def test_label_databases_and_unfinished_files_are_not_stores(tmp_path):
    write_toy_store(tmp_path / "features.sqlite.123.partial")
    (tmp_path / "feature_labels.sqlite").write_bytes(b"")
    assert scan([tmp_path]).dictionaries == ()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"kind": "cache"}', "\ufeff\x00"])
@pytest.mark.parametrize("name", ["run.json", "saelab.json", "cfg.json"])
def test_damaged_manifests_are_problems(tmp_path, name, content):
    (tmp_path / "cfg.json").write_text("{}")
    (tmp_path / name).write_text(content)
    index = scan([tmp_path])
    found = [run.problem for run in index.runs] + [e.problem for e in index.dictionaries]
    assert any(problem and name in problem for problem in found) or content == '{"kind": "cache"}'


def test_one_hostile_file_hides_no_other_run(world, tmp_path):
    """Whatever lies beside them, all good runs are listed, and at once."""
    shutil.copytree(world, tmp_path / "good")
    whole = scan([tmp_path])
    hostile = [
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5_000 + b"}",
        b"\xff\xfe",
        b'{"kind": "dictionary", "schema_version": 1, "config": [], "made_from": {"model": [1]}}',
        b'{"architecture": {}, "d_sae": 1e999, "k": NaN, "metadata": 3}',
        b'{"architecture": "\\ud800", "d_in": "x", "d_sae": ' + b"9" * 200 + b"}",
        b"null",
    ]
    for number, content in enumerate(hostile):
        for name in ("run.json", "cfg.json", "saelab.json", "features.sqlite"):
            folder = tmp_path / f"bad{number}-{name}"
            folder.mkdir()
            (folder / "cfg.json").write_bytes(b"{}")
            (folder / name).write_bytes(content)
    for name in ("run.json", "cfg.json", "saelab.json", "features.sqlite", "compare.json"):
        folder = tmp_path / f"pipe-{name}"
        folder.mkdir()
        os.mkfifo(folder / name)
    index = scan([tmp_path])
    found = {run.id: run for run in index.runs}
    assert all(
        found[run.id] == run for run in whole.runs if run.problem is None and run.dictionaries
    )
    for entry in index.dictionaries:
        for value in entry.facts.values():
            assert value is None or isinstance(value, str) or abs(value) < 2**53


def test_an_edited_manifest_is_read_again(tmp_path):
    (tmp_path / "run.json").write_text(
        json.dumps({"kind": "training_run", "schema_version": 1, "status": "running"})
    )
    assert scan([tmp_path]).runs[0].status == "running"
    (tmp_path / "run.json").write_text(
        json.dumps({"kind": "training_run", "schema_version": 1, "status": "complete"})
    )
    assert scan([tmp_path]).runs[0].status == "complete"


@given(st.text())
def test_any_text_finds_an_entry_or_nothing(text):
    index = scan([])
    assert index.run(text) is None


def test_missing_folders_are_refused_by_the_command_and_sentences_in_the_index(tmp_path):
    missing = tmp_path / "missing"
    with pytest.raises(ConfigError, match="missing does not exist: give a folder with runs"):
        DashboardCommand(runs=(missing,))
    with pytest.raises(ConfigError, match="--port must be 0 to 65535"):
        DashboardCommand(runs=(tmp_path,), port=70000)
    assert "missing does not exist" in scan([missing]).problems[0]


def test_the_server_listens_here_alone_and_reports_nothing():
    options = server_options(8501)
    assert options["server.address"] == options["browser.serverAddress"] == "127.0.0.1"
    assert options["browser.gatherUsageStats"] is False and options["server.headless"] is True
    assert options["client.toolbarMode"] == "minimal"
    assert options["server.fileWatcherType"] == "none"
    assert options["runner.magicEnabled"] is False, "pages would show their constants' docstrings"
    from streamlit import config

    assert set(options) <= set(config.get_config_options())


def test_a_taken_port_is_a_sentence():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ResourceError, match="give another --port"):
            usable_port(taken.getsockname()[1])


def test_an_imported_dictionary_shows_what_was_measured_on_import(tmp_path):
    import torch

    from saelab.dictionary import Dictionary, save_dictionary

    eye = torch.eye(4)
    measured = {"l0": 3.0, "fvu": 0.25, "dead_fraction": 0.5}
    save_dictionary(
        tmp_path / "sae",
        Dictionary("relu", W_enc=eye, W_dec=eye, b_enc=torch.zeros(4), b_dec=torch.zeros(4)),
        self_test_inputs=torch.randn(16, 4),
        training={},
        made_from={
            "model": "m",
            "hook_point": "blocks.1.hook_resid_post",
            "imported": {"format": "sparsify", "measured": measured},
        },
    )
    (run,) = scan([tmp_path]).runs
    (entry,) = run.dictionaries
    shown = {name: entry.facts[name] for name in ("method", "l0", "fvu", "dead")}
    assert shown == {"method": "sparsify", "l0": 3.0, "fvu": 0.25, "dead": 0.5}
