"""What the README tells a newcomer to type is run, in its order, with small sizes appended."""

import json
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from saelab.cli import main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = {
    "quickstart": "--cache-tokens 16384 --train-tokens 65536 --eval-tokens 4096 "
    "--feature-tokens 4096",
    # A CPU without bfloat16 instructions takes 60 times as long as in float32.
    "cache": "--n-tokens 16384 --model-dtype float32",
    "train": "--n-tokens 16384 --d-sae 256 512 --k 8 --product-dtype float32",
    "train papers": "--methods topk gradient_topk --n-tokens 16384 --d-sae 128 --k 8 --seeds 0 1 "
    "--product-dtype float32",
    "compare": "--n-tokens 2048 --n-loss-tokens 1024 --steering-latents 4 --steering-seeds 1",
    "planted": "--n-steps 60 --seeds 0 1",
    "eval": "--n-tokens 2048 --n-loss-tokens 1024",
    "eval dark-matter": "--n-tokens 4096 --n-loss-tokens 1024 --analyses linear norm-test family",
    "features": "--n-tokens 8192",
    "explain": "--sample 64",
    "import": "--n-tokens 2048",
}
REPORT_FIELDS = [
    "model",
    "hook_point",
    "n_tokens_cached",
    "n_tokens_trained",
    "d_sae",
    "k",
    "fvu",
    "explained_variance",
    "l0",
    "loss_recovered_zero",
    "loss_recovered_mean",
    "kl",
    "dead_fraction",
    "seconds_cache",
    "seconds_train",
    "seconds_eval",
    "seconds_features",
    "seconds_explain",
]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def shell_lines():
    lines = [line.split(" #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


def run_as_typed(line, folder):
    """Run a `saelab` line in this process, shell patterns expanded."""
    words = shlex.split(line)[1:]
    words = [
        str(match)
        for word in words
        for match in (sorted(folder.glob(word)) if "*" in word else [word])
    ]
    sizes = SMALL.get(" ".join(words[:2]), SMALL.get(words[0], ""))
    small = [] if "--print-config" in words else shlex.split(sizes)
    return main([*words, *small])


def assert_serves(line, folder):
    """Start a server as typed, on a free port, and see it answer."""
    words = [sys.executable, "-m", "saelab.cli", *shlex.split(line)[1:], "--port", "0"]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = re.search(r"http://[\d.:]+", server.stdout.readline()).group()
            until = time.monotonic() + 60
            while True:
                try:
                    with urllib.request.urlopen(f"{address}/_stcore/health", timeout=5) as answer:
                        assert answer.read() == b"ok"
                        return
                except OSError:
                    assert time.monotonic() < until, "the dashboard does not answer"
                    time.sleep(0.2)
        finally:
            server.terminate()
            assert server.wait(timeout=20) == 0


def test_make_targets_named_in_the_readme_exist():
    targets = {line.split()[1] for line in shell_lines() if line.startswith("make ")}
    targets |= set(re.findall(r"`make ([a-z]+)`", README))
    assert {"quickstart", "test", "setup", "bench"} <= targets
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


def test_every_link_and_picture_of_the_readme_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.model
@pytest.mark.slow
def test_the_readme_works_as_typed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # `make quickstart` runs this line, as the Makefile says.
    assert "$(BIN)/saelab quickstart" in (ROOT / "Makefile").read_text(encoding="utf-8")
    # In a process of its own: checking every shape takes explaining ten times as long.
    typed = [sys.executable, "-m", "saelab.cli", "quickstart", *shlex.split(SMALL["quickstart"])]
    printed = subprocess.run(typed, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert "Next:" in printed and "saelab train sweep" in printed
    report = json.loads((tmp_path / "runs/quickstart/report.json").read_text())
    assert set(REPORT_FIELDS) <= set(report)
    assert report["model"] == "smollm2-135m" and report["k"] == 32
    assert 0.2 < report["fvu"] < 0.7
    assert report["explained_variance"] == pytest.approx(1 - report["fvu"])
    assert report["loss_recovered_zero"] > 0.7

    lines = [line for line in shell_lines() if line.startswith("saelab ")]
    assert len(lines) >= 7
    for line in lines:
        if line.startswith("saelab dashboard"):
            assert_serves(line, tmp_path)
        else:
            assert run_as_typed(line, tmp_path) == 0, line
        capsys.readouterr()
    assert len(list((tmp_path / "runs/sweep/dictionaries").glob("*/evals/core.json"))) == 2

    for code in blocks("python"):
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=120)

    assert run_as_typed("saelab quickstart", tmp_path) == 2
    assert "give --resume to go on with it, --overwrite" in capsys.readouterr().err
    assert run_as_typed("saelab quickstart --resume", tmp_path) == 0
    for artifact in ("cache/blocks.12.hook_resid_post", "train", "train/checkpoint"):
        assert main(["info", str(tmp_path / "runs/quickstart" / artifact)]) == 0
        assert "intact" in capsys.readouterr().out
    assert main(["info", report["dictionary"]]) == 0
    assert "self-test passes" in capsys.readouterr().out
