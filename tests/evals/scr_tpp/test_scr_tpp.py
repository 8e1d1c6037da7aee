"""SCR and TPP: planted answers, arithmetic written down once more, what is refused."""

import numpy as np
import pytest
from scipy import sparse

from saelab.errors import ConfigError, TextError
from saelab.evals.labelled.activations import ActivationStore, pooled_codes
from saelab.evals.labelled.examples import split_examples, take_examples
from saelab.evals.scr_tpp.ablation import Pooled, top_latents, without_direction
from saelab.evals.scr_tpp.numbers import numbers_of
from saelab.evals.scr_tpp.scores import scr_rows, tpp_rows
from saelab.evals.scr_tpp.suite import ScrTppConfig, run_scr_tpp
from saelab.text.labelled import LabelledText
from tests.conftest import WORDS

HOOK = "blocks.1.hook_resid_post"


def planted(columns, d=16, extra=4, seed=0):
    """Latents that are these columns, and a few of noise, on orthogonal decoder rows; with an
    error that no latent explains."""
    generator = np.random.default_rng(seed)
    n = len(columns[0])
    noise = generator.random((n, extra)) * 0.1
    codes = np.column_stack([*columns, noise])
    basis = np.linalg.qr(generator.standard_normal((d, d)))[0]
    decoder = basis[: codes.shape[1]]
    error = 0.05 * generator.standard_normal((n, d - codes.shape[1])) @ basis[codes.shape[1] :]
    return Pooled(codes @ decoder + error + 0.3, sparse.csr_array(codes), decoder)


def test_classes_of_disjoint_latents_have_the_known_tpp():
    of_class = np.repeat([0, 1, 2, 3], 40)
    pooled = planted([(of_class == c) * 3.0 for c in range(4)])
    split = split_examples(of_class, 0.6, 0)
    rows = tpp_rows(pooled, of_class, split, (1, 8), 30.0, np.random.default_rng(0))
    of_latents = [row for row in rows if row["ablated"] == "latents"]
    assert all(row["clean"] == 1 for row in rows)
    for row in of_latents:
        # Its one latent gone, a class is never told from the rest; no other probe needs that latent
        # to be there, though each learnt that it is not the class's own.
        assert row["intended"] == pytest.approx(0.5)
    numbers = numbers_of(rows_in("s", rows), [], (1, 8))
    assert numbers["tpp_1_intended"] == pytest.approx(0.5)
    assert numbers["tpp_1"] == pytest.approx(0.5 - numbers["tpp_1_unintended"])
    assert numbers["tpp_1"] > 0.3 > numbers["tpp_random_1"] and numbers["probe_accuracy"] == 1
    assert numbers["tpp_directions"] > 0.2


def rows_in(name, rows):
    return [{"set": name, "split": 0, **row} for row in rows]


def test_a_spurious_latent_is_removed_and_scr_is_near_one():
    generator = np.random.default_rng(1)
    first, second = (np.tile(side, 60) for side in ([0, 0, 1, 1], [0, 1, 0, 1]))
    noisy = first + 0.4 * generator.standard_normal(240)
    # A latent for each value of the second label: with one alone gone to zero, every example would
    # look like the other value.
    pooled = planted([noisy, second * 4.0, (1 - second) * 4.0])
    cells = 2 * first + second
    split = split_examples(cells, 0.6, 0)
    first, second = first.astype(bool), second.astype(bool)
    rows = scr_rows(pooled, first, second, split, (2,), 30.0)
    assert [row["agree"] for row in rows] == [True, False]
    for row in rows:
        # Direction 1 is the one of the lower base: the strong second label hides the first.
        assert row["biased_1"] < row["biased_2"] and row["scr"] == row["scr_dir1"]
        assert row["oracle_1"] > 0.8 and row["scr"] == pytest.approx(1, abs=0.25)
    numbers = numbers_of([], rows_in("p", rows), (2,))
    assert numbers["scr_2"] == pytest.approx(np.mean([row["scr"] for row in rows]))


def test_a_gap_too_small_is_undefined_not_zero():
    """SAEBench counts it as 0, which a mean over pairs then holds against the dictionary."""
    cells = np.repeat(np.arange(4), 30)
    first, second = cells // 2 == 1, cells % 2 == 1
    pooled = planted([first * 5.0, second * 0.0])
    rows = scr_rows(pooled, first, second, split_examples(cells, 0.6, 0), (1,), 30.0)
    assert all(row["scr_dir1"] is None for row in rows)
    both = [{"set": "p", "split": 0, **row, "scr": None} for row in rows]
    assert numbers_of([], both, (1,))["scr_1"] is None


def test_effects_are_those_of_the_formula_and_sets_are_ranked_by_them():
    generator = np.random.default_rng(2)
    codes = generator.random((30, 7)) * (generator.random((30, 7)) < 0.5)
    decoder = generator.standard_normal((7, 5))
    pooled = Pooled(codes @ decoder, sparse.csr_array(codes), decoder)
    train = np.arange(20)
    answers = generator.random(20) < 0.5
    probe = pooled.probe(train, answers, 30.0)
    means = [codes[:20][answers == side].mean(0) for side in (True, False)]
    expected = np.array(
        [(means[0] - means[1])[j] * sum(probe.weight * decoder[j]) for j in range(7)]
    )
    found = pooled.effects(probe, train, answers, signed=False)
    np.testing.assert_allclose(found, np.abs(expected), rtol=1e-10)
    found = pooled.effects(probe, train, answers, signed=True)
    np.testing.assert_allclose(found, np.where(means[0] > means[1], expected, 0), atol=1e-14)
    assert top_latents(np.array([0.0, 2, -1, 3, 0]), 5).tolist() == [3, 1, 2]
    assert top_latents(np.array([0.0, 2, -1, 3, 0]), 1).tolist() == [3]


def test_ablating_pooled_codes_is_ablating_every_token(tiny_model, tmp_path, topk_dictionary):
    dictionary = topk_dictionary()
    store = ActivationStore(
        folder=tmp_path, model=tiny_model, pooling="mean", max_tokens=16, batch_tokens=64
    )
    texts = tuple(f"the {w} met the {v}" for w in WORDS[:6] for v in WORDS[:6])
    text = LabelledText(name="t", texts=texts, labels=("a", "b") * 18)
    found = store.rows_of(take_examples(text, 36, 0), [HOOK])
    pooled = Pooled(
        found.pooled(), pooled_codes(dictionary, found), dictionary.W_dec.double().numpy()
    )
    latents = np.array([3, 7, 11, 30])
    codes = dictionary.encode_dense(found.rows)
    error = found.rows - dictionary.decode(codes)
    codes[:, latents] = 0
    changed = (dictionary.decode(codes) + error).double()
    expected = [changed[found.example == i].mean(0).numpy() for i in range(36)]
    given = pooled.ablated(np.arange(36), latents)
    np.testing.assert_allclose(given, np.array(expected), rtol=1e-4, atol=1e-5)
    assert np.abs(given - pooled.activations).max() > 0.01


def test_the_skyline_moves_nothing_but_the_direction():
    generator = np.random.default_rng(3)
    x, w = generator.standard_normal((9, 4)), generator.standard_normal(4)
    left = without_direction(x, w, x.mean(0))
    np.testing.assert_allclose(left @ w, np.full(9, x.mean(0) @ w), rtol=1e-9)
    other = generator.standard_normal(4)
    other -= other @ w / (w @ w) * w
    np.testing.assert_allclose(left @ other, x @ other, rtol=1e-9, atol=1e-12)


def write_texts(path, columns, rows):
    path.write_text("\n".join([columns, *rows]) + "\n")
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Texts labelled by their first word, and by that and the last."""
    classes = [f"{a} {b} {c},{a}" for a in WORDS[:3] for b in WORDS for c in WORDS[:3]]
    both = [f"{a} the {b} {c},{a},{c}" for a in WORDS[:2] for b in WORDS for c in WORDS[2:4]]
    return (
        write_texts(tmp_path / "classes.csv", "text,label", classes),
        write_texts(tmp_path / "both.csv", "text,label,last", both),
    )


def test_the_suite_measures_both_and_says_the_spread(
    files, save_trained, topk_dictionary, tmp_path
):
    folder = save_trained(topk_dictionary(), "some")
    config = ScrTppConfig(
        sets=(files[0],),
        pairs=(files[1],),
        second_label_column="last",
        ns=(2, 20),
        n_train=48,
        n_test=24,
        store=tmp_path / "store",
        device="cpu",
        controls=(),
    )
    (result,) = run_scr_tpp([folder], config, pages=False)
    assert result.headline == ("tpp_20", "scr_20")
    total = result.value("tpp_20_intended") - result.value("tpp_20_unintended")
    assert result.value("tpp_20") == pytest.approx(total)
    assert result.value("tpp_20_split_sd") >= 0 and result.value("probe_accuracy") > 0.6
    assert [chart.name for chart in result.charts] == ["tpp_by_n", "scr_by_n"]
    assert set(result.item_files) == {"tpp", "scr"} and "arXiv 2605.18229" in result.notes[0]
    (again,) = run_scr_tpp([folder], ScrTppConfig(**vars(config) | {"overwrite": True}))
    assert {m.name: m.value for m in again.metrics} == {m.name: m.value for m in result.metrics}


def test_what_cannot_be_measured_is_said_in_a_line(
    files, save_trained, topk_dictionary, tmp_path, capsys
):
    with pytest.raises(ConfigError, match="has one label and SCR needs two of each text"):
        ScrTppConfig(pairs=(files[1],))
    with pytest.raises(ConfigError, match="both are empty"):
        ScrTppConfig(sets=(), pairs=())
    folder = save_trained(topk_dictionary(), "some")

    def run(**changes):
        return run_scr_tpp([folder], ScrTppConfig(device="cpu", store=tmp_path / "s", **changes))

    two = write_texts(
        tmp_path / "two.csv",
        "text,label",
        [f"{w},{i % 2}" for i, w in enumerate(f"{a} {b}" for a in WORDS for b in WORDS)],
    )
    with pytest.raises(TextError, match="has 2 classes: TPP needs three or more"):
        run(sets=(two,), pairs=())
    with pytest.raises(TextError, match="labels of 3 and 3 values"):
        run(sets=(), pairs=(f"{files[0]}+{files[0]}",))
    with pytest.raises(TextError, match="have no text in common"):
        run(sets=(), pairs=(f"{files[0]}+{two}",))
