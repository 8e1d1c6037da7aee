"""What `import saelab` offers: every name is there, and the examples in its docstring hold."""

import doctest
import subprocess
import sys

import pytest
import torch

import saelab
from saelab.cli import main

OFFERED = (
    "Dictionary",
    "evaluate",
    "load_dictionary",
    "load_language_model",
    "open_cache",
    "train",
)
"""Names whose examples run here; that of `open_features` runs beside the stores' tests."""


@pytest.fixture(scope="module")
def given(tiny_model_folder, tmp_path_factory):
    """What the examples start from: a folder, a model, a planted cache and a dictionary on it."""
    folder = tmp_path_factory.mktemp("public")
    main(["synthetic", "smoke", str(folder / "planted"), "--n-rows", "4096"])
    cache = folder / "planted" / "planted"
    config = saelab.TrainConfig(
        cache=cache, out=folder / "trained", d_sae=(32,), k=(4,), batch_rows=64, n_tokens=640
    )
    [name] = saelab.train(config)["dictionaries"]
    return {
        "saelab": saelab,
        "torch": torch,
        "folder": folder,
        "model_folder": str(tiny_model_folder),
        "planted_cache": cache,
        "planted_dictionary": folder / "trained" / "dictionaries" / name,
    }


@pytest.mark.parametrize("name", OFFERED)
def test_the_example_of_a_public_name_holds(name, given):
    [example] = doctest.DocTestFinder(recurse=False).find(getattr(saelab, name), name, globs=given)
    assert example.examples, f"saelab.{name} shows no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    failed = []
    runner.run(example, out=failed.append)
    assert not runner.failures, "".join(failed)


def test_every_offered_name_is_found_and_others_are_refused():
    for name in (*saelab.__all__, *OFFERED, "TrainConfig"):
        assert getattr(saelab, name) is not None
        assert name in dir(saelab)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        saelab.nothing  # noqa: B018


def test_a_wrong_width_is_one_line_that_names_both(tmp_path):
    """In a process of its own, where no type checker looks at shapes first."""
    program = (
        "import saelab, torch\n"
        "eye = torch.eye(3)\n"
        "zeros = torch.zeros(3)\n"
        "d = saelab.Dictionary('topk', W_enc=eye, W_dec=eye, b_enc=zeros, b_dec=zeros, k=1)\n"
        "try:\n"
        "    d.encode(torch.zeros(2, 5))\n"
        "except saelab.SaelabError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "width 3" in done.stdout and "(2, 5)" in done.stdout
    assert len(done.stdout.splitlines()) == 1
