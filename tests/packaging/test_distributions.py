"""The wheel and the sdist hold everything; the editable install is what the other tests run on."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*words, **options):
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=600, check=False, **options
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """A folder with the sdist and, made from that sdist alone, the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "saelab"
    run("git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(source))
    listing = ("ls-files", "--modified", "--others", "--exclude-standard")
    changed = run("git", "-C", str(ROOT), *listing)
    for name in changed.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source))
    return folder


@pytest.mark.slow
def test_the_wheel_made_from_the_sdist_works_when_installed(distributions, tmp_path):
    wheel = next(distributions.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "saelab/py.typed",
        "saelab/training/loop.py",
        "saelab/training/methods/topk.py",
        "saelab/training/recipes/quickstart.yaml",
        "saelab/evals/core/suite.py",
        "saelab/dashboards/__init__.py",
    ):
        assert needed in names
    top_level = {name.split("/")[0] for name in names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"saelab"}

    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    run(*pip, "--target", str(target), str(wheel))
    environment = {"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    where = run(
        sys.executable,
        "-c",
        "import saelab, saelab.training as t, saelab.evals as e; "
        "print(saelab.__file__, t.__file__, e.__file__)",
        cwd=tmp_path,
        env=environment,
    )
    assert all(place.startswith(str(target)) for place in where.split())
    recipes = run(sys.executable, "-m", "saelab.cli", "recipes", cwd=tmp_path, env=environment)
    assert "quickstart" in recipes
    assert (target / "bin" / "saelab").exists()


@pytest.mark.slow
def test_the_sdist_holds_tests_and_docs_too(distributions):
    import tarfile

    with tarfile.open(next(distributions.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    for needed in ("README.md", "LICENSE", "training/recipes/quickstart.yaml", "pyproject.toml"):
        assert needed in names
    for needed in ("Makefile", "constraints.txt", "docs/architecture.md", "benchmarks/run.py"):
        assert needed in names
    # Every tracked source of the tests and the benchmarks, this file among them.
    tracked = run("git", "-C", str(ROOT), "ls-files", "tests", "benchmarks").splitlines()
    sources = {n for n in tracked if n.endswith((".py", ".sh")) and (ROOT / n).is_file()}
    assert sources and sources <= names, sorted(sources - names)
    assert not any(name.startswith("benchmarks/results") for name in names)


def test_the_editable_install_works_outside_the_repository(tmp_path):
    program = (
        "import saelab.training, saelab.training.methods, saelab.evals, saelab.evals.core, "
        "saelab.dashboards; print(saelab.training.__file__, saelab.evals.__file__)"
    )
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    where = run(sys.executable, "-c", program, cwd=tmp_path, env=environment)
    assert where.split() == [str(ROOT / "training/__init__.py"), str(ROOT / "evals/__init__.py")]
