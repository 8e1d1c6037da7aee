"""docs/dictionaries.md: every format is in it, its commands parse, and its importer imports."""

import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from saelab.cli import COMMANDS
from saelab.config import parse_arguments
from saelab.dictionary.importers import FORMATS, Source
from saelab.dictionary.importers.sources import find_release, releases

PAGE = (Path(__file__).resolve().parents[2] / "docs/dictionaries.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.S)


LINES = [line.split(" #")[0].strip() for block in blocks("bash") for line in block.splitlines()]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_in_the_table(name):
    assert re.search(rf"^\| `{name}` \|", PAGE, flags=re.M)


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("saelab ")])
def test_every_command_of_the_page_parses(line):
    _, name, *words = shlex.split(line)
    module = import_module(COMMANDS[name].module)
    command = parse_arguments(module.CONFIG, words, program=f"saelab {name}")
    source = getattr(command, "source", "")
    if source.split("/")[0] in releases()["releases"]:
        assert find_release(source) is not None


def test_the_numbers_of_the_table_of_releases():
    table = releases()["releases"]
    assert f"{len(table)} releases" in PAGE
    assert sum(len(release["saes"]) for release in table.values()) // 100 == 138


def test_the_importer_of_the_page_imports(tmp_path):
    (code,) = blocks("python")
    importer = {}
    exec(code, importer)
    generator = np.random.default_rng(0)
    held = {
        "encoder": generator.normal(size=(6, 4)),
        "bias": generator.normal(size=6),
        "decoder": generator.normal(size=(6, 4)),
        "mean": generator.normal(size=4),
    }
    np.savez(tmp_path / "tiny.npz", **held)
    config = {"tiny_version": 1, "model": "gpt2", "hook_point": "blocks.1.hook_resid_post"}
    (tmp_path / "tiny.json").write_text(json.dumps(config))
    format_ = importer["FORMAT"]
    assert format_.matches(tmp_path)
    assert not any(known.matches(tmp_path) for known in FORMATS.values())
    (foreign,) = format_.read(Source(tmp_path, "tiny"))
    x = generator.normal(size=(5, 4))
    codes = np.maximum((x - held["mean"]) @ held["encoder"].T + held["bias"], 0)
    expected = codes @ held["decoder"] + held["mean"]
    ours = foreign.dictionary(torch.tensor(x, dtype=torch.float32))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    assert (foreign.model, str(foreign.site)) == ("gpt2", config["hook_point"])
