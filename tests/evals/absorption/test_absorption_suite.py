"""The suite "absorption" on planted activations and on a tiny model, and against misuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saelab.dictionary import Dictionary
from saelab.errors import ConfigError, ModelError
from saelab.evals.absorption.measure import probe_letters, score_letters
from saelab.evals.absorption.suite import SUITE, AbsorptionConfig, run_absorption
from saelab.evals.absorption.words import LETTERS, LetterWords, activations_at, draw_words
from saelab.evals.terminal import run_command
from saelab.formats.evaluation_result import read_evaluation_result
from saelab.report.draw import draw

SMALL = AbsorptionConfig(
    n_examples=1, n_prompts=2, test_fraction=0.4, batch_variants=7, least_f1=0.0, device="cpu"
)
N_LETTERS, PER_LETTER, WIDTH = 4, 40, 12


def planted():
    """Activations 4·e_letter, and 4·e_5 more on every fifth word of the letter A."""
    n = N_LETTERS * PER_LETTER
    letter, number = torch.arange(n) // PER_LETTER, torch.arange(n) % PER_LETTER
    words = LetterWords(
        [f" word{i}" for i in range(n)], torch.arange(n), letter, number % 4 == 0, 0 * letter, []
    )
    rows = 4 * torch.eye(WIDTH)[letter]
    special = (letter == 0) & (number % 5 == 0)
    rows[special] += 4 * torch.eye(WIDTH)[5]
    rows += 0.01 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
    return words, rows, special


def absorbing_dictionary():
    """One latent per letter; that of A is silent where the sixth fires, which carries A too."""
    encoder, decoder = torch.eye(WIDTH)[:6].clone(), torch.eye(WIDTH)[:6].clone()
    encoder[0, 5] = -2
    decoder[5, 0] = 1
    return Dictionary(
        "relu",
        W_enc=encoder.T.clone(),
        W_dec=decoder,
        b_enc=torch.full((6,), -0.1),
        b_dec=torch.zeros(WIDTH),
    )


def test_a_planted_absorption_is_measured_on_its_letter_alone():
    words, rows, special = planted()
    shared = probe_letters(words, rows, rows, 1e-3, seed=0)
    assert shared.f1.tolist() == [1] * N_LETTERS
    assert shared.f1_shuffled.max() < 0.8
    dictionary = absorbing_dictionary()
    letters, by_word = score_letters(shared, dictionary, AbsorptionConfig())
    a, *others = letters
    tested = words.test & (words.letter == 0)
    share = float((special & tested).sum() / tested.sum())
    # The sixth latent finds the words that the first one misses: it would be a second main one.
    assert a.main_latents == [0, 5] and a.sparse_f1[1] == 1
    assert 0 < share < 1
    config = AbsorptionConfig(split_gain=0.9)
    letters, by_word = score_letters(shared, dictionary, config)
    a, *others = letters
    assert a.main_latents == [0]
    assert a.full_absorption == pytest.approx(share)
    assert a.absorption_fraction == pytest.approx(share)
    # Without its special words the letter's best latent has all but these.
    assert a.main_f1 == pytest.approx(2 * (1 - share) / (2 - share))
    stands_in = {
        word: latent
        for word, full, latent in zip(
            by_word["word"],
            by_word["full_absorption"],
            by_word["strongest_other_latent"],
            strict=True,
        )
        if full
    }
    expected = {words.text[i]: 5 for i in (special & tested).nonzero().flatten().tolist()}
    assert stands_in == expected
    for other in others:
        assert other.full_absorption == other.absorption_fraction == 0
        assert other.main_f1 == 1
        assert other.main_cosine > 0.8


def test_words_are_single_tokens_split_by_spelling(tiny_model):
    words = draw_words(
        tiny_model, per_letter=None, test_fraction=0.4, n_examples=1, n_prompts=2, seed=0
    )
    assert words.text == tiny_model.token_strings(words.token.tolist())
    assert [LETTERS[i] for i in words.letter.tolist()] == [
        text.strip()[0].upper() for text in words.text
    ]
    sides = {}
    for text, test in zip(words.text, words.test.tolist(), strict=True):
        sides.setdefault(text.strip().lower(), set()).add(test)
    assert all(len(side) == 1 for side in sides.values())
    shown = [tiny_model.text_of(prompt[1:].tolist()) for prompt in words.prompts]
    for text in shown:
        word, _, letter = text.strip("\n").partition(" has the first letter: ")
        assert letter == word.strip()[0].upper()
        assert word.strip().lower() not in sides
    capped = draw_words(
        tiny_model, per_letter=5, test_fraction=0.4, n_examples=1, n_prompts=1, seed=0
    )
    assert capped.letter.bincount().max() == 5


def test_activations_are_those_of_the_whole_prompt(tiny_model):
    words = draw_words(
        tiny_model, per_letter=5, test_fraction=0.4, n_examples=2, n_prompts=2, seed=0
    )
    for name in ("blocks.1.hook_resid_post", "blocks.1.attn.hook_q"):
        rows = activations_at(tiny_model, words, [name], 3)[name]
        for index, row in enumerate(rows):
            prompt = words.prompts[words.prompt[index]]
            tokens = torch.cat([prompt, words.token[index : index + 1]])[None]
            whole = tiny_model.capture(tokens, [name])[name][0, -1]
            assert torch.allclose(row, whole, atol=1e-4)


def test_a_result_is_written_where_too_few_letters_count(save_trained, topk_dictionary):
    """SAEBench writes none, and reads the residual stream whatever the dictionary's hook point."""
    folder = save_trained(topk_dictionary(), "sae", hook_point="blocks.1.hook_mlp_out")
    [result] = run_absorption([folder], SMALL)
    assert result.value("absorption_fraction") is None
    assert "means over letters are null" in result.notes[1]
    assert result.value("n_letters") >= 0
    evals = folder / "evals"
    assert read_evaluation_result(evals / "absorption.json") == result
    assert result.made_from["hook_point"] == "blocks.1.hook_mlp_out"
    from pyarrow import parquet

    letters = parquet.read_table(evals / "absorption_letters.parquet").to_pydict()
    assert "probe_f1" in letters and len(letters["letter"]) >= 1
    for chart in result.charts:
        draw(chart)
    few = replace(SMALL, least_letters=1, overwrite=True)
    [other] = run_absorption([folder], few)
    if other.value("n_letters"):
        assert other.value("main_f1") is not None
    assert all("{" not in metric.definition for metric in other.metrics)


def test_dictionaries_share_words_and_probes(
    save_trained, topk_dictionary, tiny_model, monkeypatch
):
    folders = [save_trained(topk_dictionary(seed), f"sae{seed}") for seed in range(2)]
    config = replace(SMALL, least_letters=1)
    alone = [run_absorption([folder], config)[0] for folder in folders]
    calls = []
    original = type(tiny_model).capture

    def counted(self, tokens, hook_points, after=None):
        calls.append(len(tokens))
        return original(self, tokens, hook_points, after)

    monkeypatch.setattr(type(tiny_model), "capture", counted)
    together = run_absorption(folders, replace(config, overwrite=True))
    assert sum(calls) == together[0].value("n_words")
    assert [r.metrics for r in together] == [r.metrics for r in alone]


def test_misuse_is_refused_and_the_command_shows_a_table(save_trained, topk_dictionary, capsys):
    folder = save_trained(topk_dictionary(), "sae")
    with pytest.raises(ModelError, match=r"has \d+ words of the letters A to Z; 4000 examples"):
        run_absorption([folder], replace(SMALL, n_examples=1000, n_prompts=4))
    with pytest.raises(ConfigError, match="test_fraction is 1"):
        AbsorptionConfig(test_fraction=1.0)
    words = "--n-examples 1 --n-prompts 1 --device cpu --least-letters 1"
    run_command(SUITE, [str(folder), *words.split()])
    assert "absorption.html" in capsys.readouterr().out
