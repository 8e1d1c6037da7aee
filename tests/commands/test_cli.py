"""The command line as a person meets it: help, one-line errors with exit code 2, completion."""

import subprocess
import sys

import pytest

from saelab.cli import COMMANDS, main


def run(capsys, *words):
    code = main(words)
    return code, *capsys.readouterr()


def test_help_names_every_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name, command in COMMANDS.items():
        assert name in out and command.summary in out
    assert run(capsys)[0] == 0
    assert run(capsys, "--version")[1].startswith("saelab ")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "eval"])
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as leaving:
        main([name, "--help"])
    assert leaving.value.code == 0
    assert f"saelab {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["train", "--optimizer.learning-rat", "1"], "did you mean --optimizer.learning-rate?"),
        (["train", "--k", "abc"], "Error parsing --k"),
        (["cache", "a", "--rows.max-norm-ratio", "x"], "'x' is no number, nor bulk, nor none"),
        (["train", "--seeds", "1", "--out", "x", "sweep"], "first word: saelab train sweep"),
        (["train", "--k", "64", "--d-sae", "32"], "k = 64 is more than d_sae = 32"),
        (["train", "--methods", "topp"], "unknown method 'topp'; did you mean 'topk'?"),
        (["train", "quickstrat"], "neither a file nor shipped; did you mean 'quickstart'?"),
        (["train", "--device", "abacus", "--cache", "nowhere"], "abacus"),
        (["train", "--cache", "nowhere"], "nowhere"),
        (["cache", "somewhere", "--model", "./no-such-folder"], "no-such-folder"),
        (["cache", "somewhere", "--text.source", "./no-such-text.txt"], "no-such-text"),
        (["cache", "somewhere", "--context-length", "9000"], "9000"),
        (["cache", "somewhere", "--hook-points", "blocks.12.hook_resid_pots"], "hook_resid_post"),
        (["cache"], "Missing from saelab cache: PATH"),
        (["eval", "cor"], "unknown evaluation suite 'cor'; did you mean 'core'"),
        (["eval", "core", "nowhere"], "nowhere"),
        (["info", "nowhere"], "nowhere does not exist"),
        (["quickstart", "--k", "0"], "k is 0; it must be at least 1"),
        (["completion", "fish"], "invalid choice 'fish'"),
    ],
)
def test_mistakes_get_one_line_exit_code_2_and_leave_nothing(
    words, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *words)
    lines = [line for line in err.splitlines() if line.startswith("saelab: ")]
    assert code == 2
    assert len(lines) == 1 and message in lines[0], err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("*")), "something was written"


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "saelab.cli", "info", "nowhere", "--debug"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_a_recipe_with_unknown_fields_lists_them_all(capsys, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("n_token: 5\noptimizer:\n  beta3: 0.1\nk: many\n")
    code, _, err = run(capsys, "train", str(recipe))
    assert code == 2
    assert "unknown field 'n_token'; did you mean 'n_tokens'" in err
    assert "unknown field 'optimizer.beta3'; did you mean" in err
    assert "k" in err and "many" in err
    recipe.write_text("a: [")
    code, _, err = run(capsys, "train", str(recipe))
    assert code == 2 and "is not valid YAML" in err


def test_recipes_are_listed_printed_and_read_back(capsys, tmp_path):
    from saelab.training.recipe import load_recipe
    from saelab.training.recipes import shipped_recipes

    listed = run(capsys, "recipes")[1]
    for name, path in shipped_recipes().items():
        assert name in listed
        code, printed, _ = run(capsys, "train", name, "--print-config", "--seeds", "7", "8")
        assert code == 0
        copy = tmp_path / f"{name}.yaml"
        copy.write_text(printed)
        parts, shipped = load_recipe(copy), load_recipe(path)
        assert list(parts) == list(shipped)
        for part, config in parts.items():
            assert config.seeds == (7, 8)
            assert config.d_sae == shipped[part].d_sae


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_scripts_know_commands_and_options(shell, capsys):
    code, script, _ = run(capsys, "completion", shell)
    assert code == 0
    for word in ("quickstart", "--optimizer.learning-rate", "--hook-points", "--print-config"):
        assert word in script


def test_bash_completes_with_the_script(capsys, tmp_path):
    script = tmp_path / "completion.sh"
    script.write_text(run(capsys, "completion", "bash")[1])

    def complete(*words):
        listed = " ".join(f"'{word}'" for word in words)
        program = (
            f"source {script}; COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _saelab; "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
        )
        return done.stdout.split()

    assert complete("saelab", "qu") == ["quickstart"]
    assert "--optimizer.learning-rate" in complete("saelab", "train", "--optimizer.l")
    assert complete("saelab", "train", "quick") == ["quickstart"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:115] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate)"
        ),
        type("OutOfMemoryError", (RuntimeError,), {})(
            "CUDA out of memory. Tried to allocate 9 GiB"
        ),
    ],
    ids=["python", "cpu", "gpu"],
)
def test_out_of_memory_is_one_line_that_says_what_to_lower(error, monkeypatch, capsys):
    from saelab import cli

    def run_out(name, arguments):
        raise error

    monkeypatch.setattr(cli, "run_command", run_out)
    assert cli.main(["train"]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and printed.startswith("saelab: out of memory on ")
    assert "--batch-rows" in printed and "--d-sae" in printed
    assert ("the GPU" in printed) == ("CUDA" in str(error))
    with pytest.raises(type(error)):
        cli.main(["train", "--debug"])


def test_other_runtime_errors_are_no_lack_of_memory(monkeypatch):
    from saelab import cli

    def fail(name, arguments):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(cli, "run_command", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        cli.main(["train"])


@pytest.mark.parametrize(
    "message, signal_name, code",
    [("a text called SIGTERM.txt was left", "SIGINT", 130), ("stopped", "SIGTERM", 143)],
)
def test_the_exit_code_of_a_stop_is_its_signals_not_its_words(
    message, signal_name, code, monkeypatch
):
    from saelab import cli
    from saelab.errors import Stopped

    def stop(name, arguments):
        raise Stopped(message, signal_name)

    monkeypatch.setattr(cli, "run_command", stop)
    assert cli.main(["train"]) == code
