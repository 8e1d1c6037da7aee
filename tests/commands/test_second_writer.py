"""Of two processes that write to one folder the second is refused, and told who the first is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from saelab.cli import main
from saelab.formats.lock import writer_lock

WRITTEN = {
    "cache": "cache",
    "train": "run",
    "synthetic": "planted/planted",
    "eval": "evals/core.json",
    "features": "sae/features.sqlite",
    "compare": "compared/compare.json",
    "import": "imported/saelab.json",
    "quickstart": "quick",
    "planted": "toys",
    "export": "exported",
    "features export": "exported",
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["export", "features export"])
def test_a_killed_export_is_made_by_the_same_command(name, made, tmp_path):
    shutil.copytree(made["dictionary"], tmp_path / "sae")
    script = "import os, sys, saelab.formats.files as files\n"
    script += "from saelab.cli import main\n"
    # After the first file that is renamed into the export.
    script += "flush = files._flush_folder\n"
    script += "files._flush_folder = lambda f: os._exit(9) if 'exported' in f.name else flush(f)\n"
    script += "main(sys.argv[1:])"
    words = [word.format(out=tmp_path) for word in made[name]]
    killed = subprocess.run([sys.executable, "-c", script, *words], check=False)
    assert killed.returncode == 9 and not (tmp_path / "exported").exists()
    assert main(words) == 0
    assert len(list((tmp_path / "exported").iterdir())) == 2
    assert not list(tmp_path.glob("*exported*.partial"))
