"""The suite "unlearning" on the tiny model, with a planted latent of a topic, and misuse."""

import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from saelab.cli import main
from saelab.dictionary import Dictionary, load_dictionary
from saelab.dictionary.data_spec import data_spec_of
from saelab.errors import ConfigError, TextError
from saelab.evals.unlearning.judged import JudgedText
from saelab.evals.unlearning.latents import Clamp
from saelab.evals.unlearning.suite import SUITE, UnlearningConfig, run_unlearning
from saelab.evals.unlearning.trials import Setting
from saelab.model.language_model import LanguageModel
from saelab.report.draw import draw
from saelab.text.config import TextConfig
from saelab.text.contexts import TextBatch
from saelab.text.windows import document_windows

HOOK = "blocks.1.hook_resid_post"
TOPIC = ("1846", "570", "29", "683", "15")
OTHERS = ("king", "queen", "mill", "river", "boat", "corn", "salt")
SMALL = {"device": "cpu", "controls": (), "n_tokens": 1024, "n_loss_tokens": 256}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A text of a topic and one without it, by name."""
    folder, generator, files = tmp_path_factory.mktemp("topics"), random.Random(0), {}
    for name, words, between in (("forget", TOPIC, ""), ("retain", OTHERS, " ")):
        documents = [between.join(generator.choices(words, k=30)) for _ in range(40)]
        lines = [json.dumps({"text": document}) for document in documents]
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("\n".join(lines))
    return files


def words_of(texts):
    return {name: str(file) for name, file in texts.items()}


@pytest.fixture(scope="module")
def planted(texts, tiny_model):
    """Latent 0 fires on the topic alone, and less of it raises the model's loss; others fire on
    all."""
    x, gradient = {}, {}
    for name, file in texts.items():
        config = TextConfig(source=str(file), held_out_fraction=0.5, span_characters=2000)
        batches = [
            document_windows(config, tiny_model, length=32, n_windows=64, split=split).text
            for split in ("train", "held_out")
        ]
        tokens = TextBatch.joined(batches).tokens
        captured = tiny_model.capture_with_gradients(tokens, [HOOK])[HOOK]
        counts = TextBatch.joined(batches).states() == 0
        counts[:, 0] = False
        x[name], gradient[name] = (each[counts].float() for each in captured)
    rows = torch.cat([x["forget"], x["retain"]]).double()
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    is_topic = torch.arange(len(rows)) < len(x["forget"])
    weight = torch.linalg.lstsq(rows, is_topic[:, None].double()).solution[:-1, 0].float()
    scores = {name: each @ weight for name, each in x.items()}
    threshold = float(scores["retain"].max()) + 1e-3
    fires = scores["forget"] > threshold
    assert fires.float().mean() > 0.05
    carried = -gradient["forget"][fires].mean(0)
    generator = torch.Generator().manual_seed(0)
    others = torch.randn(12, 32, generator=generator) / 32**0.5
    return Dictionary(
        "relu",
        W_enc=torch.cat([weight[None], others]).T.clone(),
        W_dec=torch.cat([carried[None] / carried.norm(), others]),
        b_enc=torch.cat([torch.tensor([-threshold]), torch.zeros(12)]),
        b_dec=torch.zeros(32),
    )


def test_a_planted_latent_of_the_topic_is_found_and_takes_it_away(planted, save_trained, texts):
    folders = [save_trained(planted, name, norm_ceiling=None) for name in ("planted", "again")]
    config = UnlearningConfig(**SMALL, **words_of(texts), n_latents=(1, 3))
    passes = []
    run = LanguageModel.run
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(LanguageModel, "run", lambda *a, **k: passes.append(a) or run(*a, **k))
        first, second = run_unlearning(folders, config)
    clean = [words for words in passes if len(words) == 2]
    assert len(clean) == 4  # two batches of windows of each text, for both dictionaries
    values = {metric.name: metric.value for metric in first.metrics}
    assert values == {metric.name: metric.value for metric in second.metrics}
    # It never fires on what is retained, so nothing changes there at all.
    assert values["rise_retain"] == 0 and values["n_within"] == 16
    assert values["rise_forget"] > 0.01 and values["rise_forget_low"] > 0
    assert values["n_clamped"] == 1
    assert values["rise_forget"] > values["random_rise_forget"]
    table = pq.read_table(folders[0] / "evals/unlearning_chosen_latents.parquet").to_pydict()
    assert table["latent"] == [0] and table["density_retain"] == [0]
    assert table["density_forget"][0] > 0.05 and table["held_at"][0] < 0
    settings = pq.read_table(folders[0] / "evals/unlearning_settings.parquet").to_pylist()
    assert len(settings) == 16 and {*settings[0]} == {*Setting.__dataclass_fields__}
    assert max(each["rise_forget"] for each in settings) == values["rise_forget"]
    for chart in first.charts:
        draw(chart)
    assert first.made_from["forget"]["source"] == str(texts["forget"])


def test_clamping_is_what_the_model_computes_with_the_changed_rows(
    planted, save_trained, tiny_model, texts
):
    saved = load_dictionary(save_trained(planted, "planted", norm_ceiling=None))
    spec = data_spec_of(saved, UnlearningConfig(**SMALL))
    text = TextConfig(source=str(texts["forget"]), held_out_fraction=0.5)
    windows = document_windows(text, tiny_model, length=32, n_windows=6).text
    judged = JudgedText(tiny_model, spec, windows, 4)
    clamp = Clamp(torch.tensor([0, 5]), torch.tensor([-3.0, -1.0]))
    got = judged.clamped(judged.encoded(saved), saved.dictionary.W_dec, clamp)

    keep = torch.cat([rows.keep for rows in judged.rows])
    assert not keep[:, 0].any()
    W_enc, W_dec, b_enc = (
        getattr(planted, name).double().numpy() for name in ("W_enc", "W_dec", "b_enc")
    )

    def change(x):
        rows = x.double().numpy()
        f = np.maximum(rows @ W_enc + b_enc, 0)
        clamped = f.copy()
        for latent, value in ((0, -3.0), (5, -1.0)):
            clamped[..., latent] = np.where(f[..., latent] > 0, value, 0)
        moved = rows + (clamped - f) @ W_dec
        return torch.tensor(np.where(keep[..., None], moved, rows)).float()

    loss = tiny_model.run(windows.tokens, {HOOK: change}).loss.double()
    expected = loss.where(windows.predicted(), 0).sum(1)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
    assert (got - judged.clean).abs().min() > 1e-3
    nothing = Clamp(torch.tensor([0]), torch.tensor([-1e9]))
    codes = [each.keep(each.latent != 0) for each in judged.encoded(saved)]
    assert judged.clamped(codes, saved.dictionary.W_dec, nothing).equal(judged.clean)


def test_questions_are_asked_of_the_clamped_model_too(planted, save_trained, texts, tmp_path):
    questions = [
        {"question": "congress shall", "choices": [one, two], "answer": n % 2}
        for n, (one, two) in enumerate(zip(TOPIC, OTHERS, strict=False))
    ]
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join(map(json.dumps, questions)))
    folder = save_trained(planted, "planted", norm_ceiling=None)
    config = UnlearningConfig(
        **SMALL, forget=str(texts["forget"]), questions=file, clamps=(1.0,), n_latents=(1,)
    )
    (result,) = run_unlearning([folder], config)
    assert result.value("accuracy_chance") == 0.5 and result.value("n_questions") == 5
    for name in ("accuracy", "accuracy_clean", "accuracy_random"):
        assert 5 * result.value(name) == pytest.approx(round(5 * result.value(name)))
    # Without --retain it is the dictionary's own text.
    assert result.made_from["retain"]["source"] == result.settings["text"]["source"]


def test_where_nothing_is_quiet_on_the_retained_text_nothing_is_clamped(
    save_trained, topk_dictionary, texts
):
    folder = save_trained(topk_dictionary(d_sae=8), "loud")
    config = UnlearningConfig(
        **SMALL, **words_of(texts), retain_densities=(1e-9,), most_retain_rise=0.0
    )
    (result,) = run_unlearning([folder], config)
    assert result.value("rise_forget") == 0 and result.value("n_clamped") == 0
    assert result.value("clamp") is None and "nothing is clamped" in result.notes[0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"clamps": (1.0, 1.0)}, "clamps"),
        ({"clamps": (-1.0,)}, "clamps: -1.0 is not a positive number"),
        ({"n_latents": ()}, "n_latents"),
        ({"retain_densities": (0.0,)}, "retain_densities"),
    ],
)
def test_settings_that_cannot_be_tried_are_refused(settings, expected):
    with pytest.raises(ConfigError, match=expected):
        UnlearningConfig(**settings)


def test_texts_that_cannot_serve_are_refused_in_a_line(planted, save_trained, texts, tmp_path):
    folder = save_trained(planted, "planted", norm_ceiling=None)
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": "congress shall meet"}))
    (tmp_path / "bad.jsonl").write_text("{not json\n")
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "who", "answer": 1}))
    for settings, expected in (
        ({"forget": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
        ({"forget": str(tmp_path / "bad.jsonl")}, "bad.jsonl"),
        ({"forget": str(tmp_path / "one.jsonl")}, "no document of .*one.jsonl is"),
        (
            {"forget": str(texts["forget"]), "questions": tmp_path / "q.jsonl"},
            "question 1 of .* has no choices",
        ),
    ):
        with pytest.raises(TextError, match=expected) as raised:
            run_unlearning([folder], UnlearningConfig(**SMALL, **settings))
        assert "\n" not in str(raised.value)


def test_without_a_text_to_forget_it_is_left_out_with_the_reason(planted, save_trained, capsys):
    folder = str(save_trained(planted, "planted", norm_ceiling=None))
    assert main(["eval", "unlearning", folder]) == 2
    assert "give --forget FILE" in capsys.readouterr().err
    words = ["--controls", "--device", "cpu", "--suites", "unlearning"]
    assert main(["eval", "all", folder, *words]) == 0
    assert "left out: no text to be forgotten was given: give --forget FILE" in " ".join(
        capsys.readouterr().out.split()
    )


def test_the_skyline_names_a_number_of_the_result():
    names = {definition.name for definition in SUITE.definitions({"bound": "0.01"})}
    assert set(SUITE.headline) <= names and set(SUITE.skyline.values()) <= names
