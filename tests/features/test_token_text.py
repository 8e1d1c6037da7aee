"""Token bytes as text: whole characters, whatever tokens they are split over."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saelab.features.token_text import Vocabulary

BYTES = Vocabulary([bytes([byte]) for byte in range(256)])


@given(st.text())
def test_any_text_in_single_bytes_is_shown_as_it_is(text):
    pieces = BYTES.pieces(list(text.encode()))
    assert "".join(pieces.texts) == text
    assert len(pieces.texts) == len(text)


@given(st.binary())
def test_any_bytes_lose_no_token(content):
    pieces = BYTES.pieces(list(content))
    assert pieces.starts[0] == 0
    assert pieces.starts[-1] == len(content)
    assert list(pieces.starts) == sorted(set(pieces.starts)) or not content
    assert len(pieces.texts) == len(pieces.starts) - 1


@given(st.text(min_size=1), st.data())
def test_cutting_a_text_anywhere_in_bytes_shows_the_same_text(text, data):
    content = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(content)), max_size=6)) | {len(content)})
    parts = [content[a:b] for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
    vocabulary = Vocabulary(parts)
    assert "".join(vocabulary.pieces(range(len(parts))).texts) == text


def test_vocabulary_round_trip_and_unknown_tokens():
    vocabulary = Vocabulary([b" king", b"", "👑".encode()[:2]])
    again = Vocabulary.from_arrays(*vocabulary.to_arrays())
    assert [again.text(i) for i in range(3)] == [" king", "", "�"]
    assert again.is_fragment(2)
    assert again.text(7) == "[token 7]"
    assert again.pieces([0, 7]).texts == (" king", "[token 7]")
    assert len(Vocabulary.from_arrays(*Vocabulary([]).to_arrays())) == 0


@pytest.mark.parametrize("text", ["the king 👑 met\n\tשלום <|eos|>", "naïve 日本語 \u200b"])
def test_a_models_token_bytes_spell_what_was_tokenised(tiny_model, text):
    token_bytes = tiny_model.token_bytes()
    assert len(token_bytes) == tiny_model.d_vocab
    (ids,) = tiny_model.tokenize([text])
    assert b"".join(token_bytes[id_] for id_ in ids).decode() == text
    assert token_bytes[tiny_model.bos_id] == b"<|bos|>"
