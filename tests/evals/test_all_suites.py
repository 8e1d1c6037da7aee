"""`saelab eval all`: every suite that can be run, reasons for the others, and rows read once."""

from __future__ import annotations

import pytest

from saelab.cli import main
from saelab.dictionary import load_dictionary
from saelab.dictionary.data_spec import data_spec_of
from saelab.dictionary.site_rows import held_out_rows, rows_kept
from saelab.evals.core.config import CoreConfig
from saelab.model.language_model import LanguageModel


def test_suites_that_refuse_are_named_and_the_others_go_on(save_trained, topk_dictionary, capsys):
    folder = save_trained(topk_dictionary(), "trained")
    words = ["eval", "all", str(folder), "--controls", "pca", "--device", "cpu"]
    assert main([*words, "--suites", "recovery", "core"]) == 0
    printed = capsys.readouterr().out
    assert "left out" in printed and "beside controls" in printed
    assert (folder / "evals/core.json").exists()
    assert not (folder / "evals/recovery.json").exists()
    before = (folder / "evals/core.json").stat().st_mtime_ns
    assert main([*words, "--suites", "core"]) == 0
    assert (folder / "evals/core.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["eval", "all"], "no dictionary was given"),
        (["eval", "all", "nowhere"], "dictionary folder nowhere does not exist"),
        (["eval", "all", "nowhere", "--skip", "cor"], "unknown evaluation suite 'cor'"),
    ],
)
def test_what_is_no_dictionary_or_suite_is_refused(words, expected, capsys):
    assert main(words) == 2
    assert expected in capsys.readouterr().err


def test_rows_that_were_read_are_not_read_again(
    save_trained, topk_dictionary, tiny_model, monkeypatch
):
    spec = data_spec_of(
        load_dictionary(save_trained(topk_dictionary(), "trained")), CoreConfig(device="cpu")
    )
    passes = []
    capture = LanguageModel.capture
    monkeypatch.setattr(
        LanguageModel, "capture", lambda *args, **kw: passes.append(0) or capture(*args, **kw)
    )

    def inputs(n_tokens):
        return [rows.inputs for rows in held_out_rows(tiny_model, spec, n_tokens, 2)]

    with rows_kept():
        first = inputs(192)
        n_passes = len(passes)
        assert all(a is b for a, b in zip(inputs(128), first, strict=False))
        assert len(inputs(128)) == 2
        assert len(passes) == n_passes
        inputs(160)  # does not end where a kept batch ends
        assert len(passes) > n_passes
    n_passes = len(passes)
    inputs(64)
    assert len(passes) > n_passes
