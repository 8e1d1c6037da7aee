"""Of two processes that write to one folder the second is refused, and told who the first is."""

from __future__ import annotations

import os
import shutil

import pytest

from saelab.cli import main
from saelab.formats.lock import writer_lock

WRITTEN = {
    "cache": "cache",
    "train": "run",
    "synthetic": "planted/planted",
    "eval": "evals/core.json",
    "features": "sae/features.sqlite",
    "compare": "compared",
    "import": "imported/saelab.json",
    "quickstart": "quick",
    "planted": "toys",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_second_is_refused_in_one_line(name, made, tmp_path, capsys):
    shutil.copytree(made["dictionary"], tmp_path / "sae")
    words = [word.format(out=tmp_path) for word in made[name]]
    with writer_lock(tmp_path / WRITTEN[name]):
        before = sorted(path for path in tmp_path.rglob("*"))
        capsys.readouterr()
        assert main(words) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"is being written by process {os.getpid()} on " in said
        assert "wait until it has finished, stop it, or write elsewhere" in said
        assert sorted(path for path in tmp_path.rglob("*")) == before
