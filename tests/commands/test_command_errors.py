"""What the system says of files reaches the user as one line; options offered are options taken."""

import importlib
import os
import re

import pytest

from saelab.cli import COMMANDS, main
from saelab.commands.completion import options_of
from saelab.config import option_strings
from saelab.formats.manifest import write_manifest


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--cache", "{cache}", "--out", "{file}"],
        ["train", "--cache", "{cache}", "--out", "{file}/below"],
        ["quickstart", "--out", "{file}"],
        ["quickstart", "--out", "{file}/below"],
        ["info", "{file}/below"],
        ["train", "{folder}.yaml"],
    ],
)
def test_a_file_in_the_way_is_one_line_and_exit_code_2(words, tmp_path, capsys):
    file = tmp_path / "a-file"
    file.write_text("mine")
    (tmp_path / "folder.yaml").mkdir()
    places = {"file": file, "cache": tmp_path / "nowhere", "folder": tmp_path / "folder"}
    code = main([word.format(**places) for word in words])
    err = capsys.readouterr().err
    assert code == 2, err
    assert err.startswith("saelab: ") and err.count("\n") == 1, err
    assert str(tmp_path) in err
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "x.bin"), "cannot use x.bin: No space left"),
        (PermissionError(13, "Permission denied", "x"), "cannot use x: Permission denied"),
        (
            OSError(24, "Too many open files", "x"),
            "Too many open files: raise the limit with `ulim",
        ),
        (
            ValueError("Cannot allocate memory (os error 12)"),
            "out of memory on this machine: lower",
        ),
        (ValueError("I/O error: No space left on device (os error 28)"), "disk full or quota used"),
        (OSError(5, "Input/output error"), "cannot use a file: Input/output error"),
        (OSError("only words"), "saelab: only words"),
    ],
)
def test_what_the_system_says_is_named_with_its_file(error, message, capsys, monkeypatch):
    def fail(name, arguments):
        raise error

    monkeypatch.setattr("saelab.cli.run_command", fail)
    assert main(["info", "x"]) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(type(error)):
        main(["info", "x", "--debug"])


def test_a_reader_that_left_is_no_error_message(capfd, monkeypatch):
    def fail(name, arguments):
        raise BrokenPipeError

    kept = os.dup(1)
    monkeypatch.setattr("saelab.cli.run_command", fail)
    try:
        assert main(["info", "x"]) == 1
    finally:
        os.dup2(kept, 1)
    assert capfd.readouterr().err == ""


def options_in_help(words, capsys):
    with pytest.raises(SystemExit) as leaving:
        main([*words, "--help"])
    assert leaving.value.code == 0
    listed = re.findall(r"^ +(?:-h, )?(--[a-z][\w.-]*)", capsys.readouterr().out, flags=re.M)
    return set(listed) - {"--help"}


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "eval"])
def test_completion_offers_exactly_the_options_of_a_command(name, capsys):
    module = importlib.import_module(COMMANDS[name].module)
    accepted = options_in_help([name], capsys)
    if name == "cache":
        accepted |= options_in_help([name, "adopt"], capsys)
    assert set(options_of(module)) == accepted


def test_completion_offers_the_options_of_every_suite(capsys):
    from saelab.evals.command import SUITES

    offered = set(options_of(importlib.import_module(COMMANDS["eval"].module)))
    accepted = set()
    for suite, (module, _) in SUITES.items():
        listed = options_in_help(["eval", suite], capsys)
        loaded = importlib.import_module(module).SUITE
        assert listed == set(option_strings(loaded.Command or loaded.Config))
        accepted |= listed
    assert offered == accepted and "--n-loss-tokens" in offered


def test_quickstart_checks_its_folder_before_it_touches_it(tmp_path, capsys, monkeypatch):
    from saelab.commands.quickstart import STATE_FILE, prepare

    def refused(*words):
        assert main(["quickstart", "--out", str(out), *words]) == 2
        return capsys.readouterr().err

    assert "k = 64 is more than d_sae = 32" in (
        main(["quickstart", "--k", "64", "--d-sae", "32"]) == 2 and capsys.readouterr().err
    )
    out = tmp_path / "mine"
    (out / "cache").mkdir(parents=True)
    assert "give --resume to go on with it" in refused()
    assert "was not made by quickstart" in refused("--overwrite")
    assert "was not made by quickstart" in refused("--resume")
    assert list(out.iterdir()) == [out / "cache"]

    out = tmp_path / "ours"
    settings = {"d_sae": 4608, "k": 32}
    prepare(out, settings, resume=False, overwrite=False)
    prepare(out, settings, resume=False, overwrite=False)  # only the state: nothing to lose
    (out / "cache").mkdir()
    (out / "notes.txt").write_text("precious")
    assert "also holds 'notes.txt'" in refused("--overwrite")
    assert (out / "cache").exists() and (out / "notes.txt").exists()
    err = refused("--resume", "--k", "16")
    assert "k was 32, is 16" in err and "cache_tokens was None" in err and "d_sae" not in err
    (out / STATE_FILE).write_text("{")
    assert "not valid JSON" in refused("--resume")

    (out / "notes.txt").unlink()
    (out / "report.json").write_text("{}")
    again = prepare(out, settings, resume=False, overwrite=True)
    assert again.state["finished"] == []
    assert [path.name for path in out.iterdir()] == [STATE_FILE]


def test_seconds_of_an_interrupted_stage_accumulate(tmp_path):
    from saelab.commands.quickstart import prepare

    out, settings = tmp_path / "q", {"k": 32}
    folder = prepare(out, settings, resume=False, overwrite=False)
    with pytest.raises(KeyboardInterrupt), folder.stage("cache"):
        raise KeyboardInterrupt
    first = folder.seconds["cache"]
    (out / "cache").mkdir()
    folder = prepare(out, settings, resume=True, overwrite=False)
    assert folder.state["finished"] == [] and folder.seconds["cache"] == first
    with folder.stage("cache"):
        pass
    assert folder.seconds["cache"] > first
    folder = prepare(out, settings, resume=True, overwrite=False)
    assert folder.state["finished"] == ["cache"]
    assert 0.01 < folder.state["peak_memory_gb"] < 1000
    write_manifest(out / "quickstart.json", folder.state | {"finished": ["train"]})
    from saelab.errors import ArtifactError

    with pytest.raises(ArtifactError, match=r"quickstart\.json.*'train' is missing"):
        prepare(out, settings, resume=True, overwrite=False)


def test_quickstart_runs_its_stages_in_order_and_resumes_where_it_stopped(
    tmp_path, capsys, monkeypatch
):
    from saelab.commands import quickstart
    from saelab.errors import Stopped
    from saelab.formats.run import write_run

    out, ran = tmp_path / "q", []
    dictionary = out / "train" / "dictionaries" / "a-name-of-its-own"

    def stage(name, words):
        ran.append([name, *words])
        if name == "cache":
            (out / "cache").mkdir(exist_ok=True)
        if name == "train":
            figures = {"x": {"folder": "dictionaries/a-name-of-its-own", "fvu": 1, "l0": 1}}
            about = {"seed": 0, "config": {}, "made_from": {}, "settings_hash": ""}
            write_run(out / "train", "complete", **about, excluded={}, dictionaries=figures)
            if "--resume" not in words:
                raise Stopped("stopped by SIGINT")

    def report(command, folder):
        shown = dict.fromkeys(quickstart.SHOWN + quickstart.SHOWN_OF_THE_RUN, 0.5)
        return shown | {
            "kl": None,
            "n_rows_excluded": {"bos": 1562, "norm": 3},
            "dictionary": str(dictionary),
            "evaluation_page": "page",
            "features": "store",
            "seconds_total": sum(folder.seconds.values()),
        }

    monkeypatch.setattr(quickstart, "run_command", stage)
    monkeypatch.setattr(quickstart, "_report", report)
    assert main(["quickstart", "--out", str(out)]) == 130
    assert main(["info", str(out / "quickstart.json")]) == 0
    assert "finished: cache" in capsys.readouterr().out
    assert main(["quickstart", "--out", str(out), "--resume"]) == 0
    stages = ["cache", "train", "train", "eval", "features", "explain"]
    assert [words[0] for words in ran] == stages
    assert ran[2][-1] == "--resume" and ran[3][2] == ran[4][1] == str(dictionary)
    printed = capsys.readouterr().out
    assert f"dashboard {out}" in printed
    assert "undefined" in printed and "rows excluded (bos)" in printed and "1,562" in printed
