"""The parts of unlearning: clamping in float64, the choice of latents, questions and bad ones."""

import json

import numpy as np
import pytest
import torch

from saelab.errors import TextError
from saelab.evals.unlearning.latents import (
    NEAREST,
    Clamp,
    Densities,
    Firing,
    choose_latents,
    clamp_changes,
    clamp_of,
    densities_of,
    random_latents,
)
from saelab.evals.unlearning.questions import ask, read_questions
from saelab.evals.unlearning.trials import Setting, best_setting
from saelab.sparse import SparseCodes


def sparse_codes(n_rows, d_sae, *, scaled=False, seed=0):
    """Codes, a fifth of them positive, and the same dense with rows scaled, float64."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(n_rows, d_sae, generator=generator, dtype=torch.float64) - 0.8
    codes = SparseCodes.from_dense(dense.relu())
    scale = torch.rand(n_rows, generator=generator, dtype=torch.float64) + 0.5
    if scaled:
        codes = SparseCodes(codes.row_pointer, codes.latent, codes.value, d_sae, scale)
    return codes, (dense.relu() * (scale[:, None] if scaled else 1)).numpy()


@pytest.mark.parametrize("scaled", [False, True])
def test_clamping_adds_what_the_formula_says(scaled):
    codes, f = sparse_codes(40, 30, scaled=scaled)
    W_dec = torch.randn(30, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    latents, values = [3, 17, 8], [-2.0, -0.5, -10.0]
    clamped = f.copy()
    for latent, value in zip(latents, values, strict=True):
        clamped[f[:, latent] > 0, latent] = value
    expected = (clamped - f) @ W_dec.numpy()

    clamp = Clamp(torch.tensor(latents), torch.tensor(values, dtype=torch.float64))
    hit, changes = clamp_changes(codes, W_dec, clamp)
    assert hit.tolist() == np.flatnonzero((f[:, latents] > 0).any(1)).tolist()
    assert 0 < len(hit) < 40
    got = torch.zeros(40, 7, dtype=torch.float64).index_add_(0, hit, changes)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_nothing_is_added_where_nothing_is_clamped():
    codes, _ = sparse_codes(10, 6)
    nothing = Clamp(torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    hit, changes = clamp_changes(codes, torch.ones(6, 4).double(), nothing)
    assert len(hit) == 0 and changes.shape == (0, 4)


def test_densities_and_strengths_are_those_of_dense_codes():
    counted = []
    for seed in (0, 1):
        firing = Firing.at_start(12)
        batches = [sparse_codes(30, 12, scaled=True, seed=10 * seed + part) for part in (1, 2)]
        for codes, _ in batches:
            firing.add(codes)
        counted.append((firing, np.concatenate([dense for _, dense in batches])))
    (forget, f), (retain, r) = counted
    densities = densities_of(forget, retain)
    np.testing.assert_allclose(densities.forget.numpy(), (f > 0).mean(0))
    np.testing.assert_allclose(densities.retain.numpy(), (r > 0).mean(0))
    strength = f.sum(0) / np.maximum((f > 0).sum(0), 1)
    np.testing.assert_allclose(densities.strength.numpy(), strength)
    clamp = clamp_of(densities, [4, 2], 3.0)
    np.testing.assert_allclose(clamp.codes.numpy(), -3 * strength[[4, 2]])


def test_the_loud_on_one_text_and_quiet_on_the_other_are_chosen():
    forget = torch.tensor([0.5, 0.2, 0.3, 0.0, 0.4, 0.1]).double()
    retain = torch.tensor([0.9, 0.0, 0.001, 0.0, 0.009, 0.01]).double()
    densities = Densities(forget, retain, torch.ones(6).double())
    assert choose_latents(densities, 0.01, 2).tolist() == [4, 2]
    assert choose_latents(densities, 0.001, 9).tolist() == [1]  # 3 never fires, 2 is at the bound
    assert choose_latents(densities, 1e-9, 1).tolist() == [1]


def test_random_latents_fire_about_as_often_and_are_others():
    generator = torch.Generator().manual_seed(0)
    forget = torch.rand(500, generator=generator).double()
    forget[::7] = 0
    densities = Densities(forget, torch.zeros(500).double(), torch.ones(500).double())
    chosen = choose_latents(densities, 0.01, 20)
    drawn = random_latents(densities, chosen, 0)
    assert len(set(drawn.tolist())) == 20 and not {*drawn.tolist()} & {*chosen.tolist()}
    assert forget[drawn].min() > sorted(forget.tolist())[-(40 + NEAREST)]
    assert drawn.tolist() == random_latents(densities, chosen, 0).tolist()
    assert drawn.tolist() != random_latents(densities, chosen, 1).tolist()
    few = Densities(torch.tensor([0.5, 0.4, 0.0]).double(), torch.zeros(3), torch.ones(3))
    assert random_latents(few, torch.tensor([0]), 0).tolist() == [1]
    assert random_latents(few, torch.tensor([0, 1]), 0).tolist() == []


def test_the_best_setting_is_the_greatest_rise_within_the_bound():
    def setting(forget, within):
        return Setting(0.01, 10, 1.0, 10, forget, 0.0, within)

    settings = [setting(3.0, False), setting(0.2, True), setting(0.5, True)]
    assert best_setting(settings) is settings[2]
    assert best_setting([setting(3.0, False), setting(-0.1, True), setting(0.0, True)]) is None


GOOD = {"question": "who met the queen", "choices": ["the king", "salt"], "answer": 0}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"answer": None}, "has no answer"),
        ({"question": ""}, "has no question"),
        ({"choices": "the king|salt"}, "which are no list"),
        ({"choices": {"a": 1}}, "which are no list"),
        ({"choices": ["salt", "salt"]}, "two or more different texts"),
        ({"choices": ["salt"]}, "two or more different texts"),
        ({"answer": 2}, "none of its choices"),
        ({"answer": "C"}, "none of its choices"),
        ({"answer": "corn"}, "none of its choices"),
    ],
)
def test_what_is_no_question_is_named_with_its_number(tmp_path, changed, expected):
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join(json.dumps(each) for each in (GOOD, {**GOOD, **changed})))
    with pytest.raises(TextError, match=r"question 2 of .*q\.jsonl") as raised:
        read_questions(file)
    assert expected in str(raised.value) and "\n" not in str(raised.value)


def test_a_line_that_is_no_record_and_an_empty_file_are_refused(tmp_path):
    (tmp_path / "q.jsonl").write_text(json.dumps(GOOD) + "\n{not json\n")
    with pytest.raises(TextError, match=r"q\.jsonl"):
        read_questions(tmp_path / "q.jsonl")
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(TextError, match="holds no questions"):
        read_questions(tmp_path / "none.jsonl")
    with pytest.raises(TextError, match="no file of records"):
        read_questions(tmp_path / "missing.jsonl")


def test_answers_are_indices_letters_or_choices_in_jsonl_and_csv(tmp_path):
    answers = [1, "1", "B", "salt"]
    lines = [json.dumps({**GOOD, "answer": answer}) for answer in answers]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    rows = ["question,choices,answer"]
    rows += [f'"who","[""the king"", ""salt""]",{answer}' for answer in answers]
    (tmp_path / "q.csv").write_text("\n".join(rows))
    for name in ("q.jsonl", "q.csv"):
        questions = read_questions(tmp_path / name)
        assert [each.answer for each in questions] == [1] * 4
        assert {each.choices for each in questions} == {("the king", "salt")}


def test_a_choice_is_scored_by_its_own_tokens(tmp_path, tiny_model):
    questions = read_jsonl(
        tmp_path, [GOOD, {"question": "a", "choices": ["corn", "b", "river"], "answer": "b"}]
    )
    asked = ask(tiny_model, questions)
    losses, best = [], []
    for each in questions:
        scores = []
        for choice in each.choices:
            prompt, ending = tiny_model.tokenize([f"{each.question}\nAnswer:", f" {choice}"])
            tokens = torch.tensor([[tiny_model.bos_id, *prompt, *ending]])
            loss = tiny_model.run(tokens).loss[0, -len(ending) :].double().sum()
            losses.append(float(loss))
            scores.append(float(loss) / len(choice))
        best.append(int(np.argmin(scores)) == each.answer)
    run = tiny_model.run(asked.text.tokens).loss.double()
    got = run.where(asked.counted, 0).sum(1)
    np.testing.assert_allclose(got, losses, rtol=1e-5)
    assert asked.correct(got).tolist() == best
    assert asked.chance == pytest.approx((1 / 2 + 1 / 3) / 2)
    long = read_jsonl(tmp_path, [{**GOOD, "question": "king " * 200}])
    with pytest.raises(TextError, match="more than the 128"):
        ask(tiny_model, long)


def read_jsonl(folder, records):
    file = folder / "read.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    return read_questions(file)
