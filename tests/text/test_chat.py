"""Conversations: the tokenizer's own template, control tokens, and rows of chosen roles."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from saelab.errors import ModelError, TextError
from saelab.model.language_model import LanguageModel
from saelab.text.contexts import TextConfig, read_documents, text_batches
from saelab.text.tokens import COUNTED, OTHER_ROLE, Tokeniser

CASES = Path(__file__).with_name("cases")
TEMPLATE = (
    "{% for m in messages %}<|eos|>{{ m.role }}\n{{ m.content | trim }}<|endoftext|>\n{% endfor %}"
)


class TokenizerOnly(LanguageModel):
    """A language model's tokenizer without its weights."""

    def __init__(self, tokenizer, template=None):
        self.name, self.max_context, self.tokenizer = "tokenizer", 2048, tokenizer
        self.bos_id, self.separator_id = tokenizer.bos_token_id, 2
        self.control_strings = frozenset(tokenizer.all_special_tokens)
        self.tokenizer_size = len(tokenizer)
        if template is not None:
            self.tokenizer.chat_template = template


@pytest.fixture
def tiny(tiny_model_folder):
    from transformers import AutoTokenizer

    return TokenizerOnly(AutoTokenizer.from_pretrained(tiny_model_folder), TEMPLATE)


@pytest.fixture(scope="module")
def smollm2():
    """The embedded model's own tokenizer and template."""
    from transformers import AutoTokenizer

    from saelab.model.model_files import EMBEDDED_MODEL, resolve_model

    return TokenizerOnly(AutoTokenizer.from_pretrained(resolve_model(EMBEDDED_MODEL).folder))


def one(path, model, record, **settings):
    """The tokens of one record, what each is, and what was counted."""
    path.write_text(json.dumps(record) + "\n")
    config = TextConfig(source=str(path), **settings)
    counts = Counter()
    (document,) = read_documents(config)
    (found,) = Tokeniser(config, model, counts)([document])
    return found.ids, list(found.left_out), counts


TALK = [
    {"role": "user", "content": "user the king met"},
    {"role": "assistant", "content": " the queen "},
]


def test_the_embedded_models_own_template(smollm2):
    """The first conversation of the case file has the tokens that its template gives."""
    config = TextConfig(source=str(CASES / "chat.jsonl"))
    documents = list(read_documents(config))
    found = Tokeniser(config, smollm2, Counter())(documents)
    for document, tokens in zip(documents, found, strict=True):
        expected = smollm2.tokenizer.apply_chat_template(list(document.messages), tokenize=True)
        expected = expected["input_ids"] if hasattr(expected, "keys") else expected
        assert tokens.ids == expected
    start = smollm2.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert found[0].ids.count(start) == 3


def test_roles_of_the_embedded_models_template(smollm2):
    config = TextConfig(source=str(CASES / "chat.jsonl"), roles=("assistant",))
    documents = list(read_documents(config))
    for document, tokens in zip(
        documents, Tokeniser(config, smollm2, Counter())(documents), strict=True
    ):
        answer = document.messages[-1]["content"]
        pairs = zip(tokens.ids, tokens.left_out, strict=True)
        kept = [token for token, state in pairs if state == COUNTED]
        assert smollm2.text_of(kept) == answer
        assert kept == smollm2.tokenize([answer])[0]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": TALK},
        {
            "conversations": [
                {"from": "human", "value": TALK[0]["content"]},
                {"from": "gpt", "value": TALK[1]["content"]},
            ]
        },
        {"prompt": TALK[0]["content"], "response": TALK[1]["content"]},
        {"prompt": TALK[:1], "completion": TALK[1:]},
        {
            "messages": [
                {"role": m["role"], "content": [{"type": "text", "text": m["content"]}]}
                for m in TALK
            ]
        },
    ],
)
def test_every_way_to_write_a_conversation(tmp_path, tiny, record):
    ids, states, _ = one(tmp_path / "x.jsonl", tiny, record)
    text = "<|eos|>user\nuser the king met<|endoftext|>\n<|eos|>assistant\nthe queen<|endoftext|>\n"
    assert ids == tiny.tokenize([text], control_tokens=True)[0]
    assert ids.count(2) == 2 and ids.count(1) == 2
    assert set(states) == {COUNTED}
    ids, states, _ = one(tmp_path / "x.jsonl", tiny, record, roles=("assistant",))
    kept = [token for token, state in zip(ids, states, strict=True) if state == COUNTED]
    assert tiny.text_of(kept) == "the queen"
    _, states, _ = one(tmp_path / "x.jsonl", tiny, record, roles=("user", "assistant"))
    assert 0 < states.count(OTHER_ROLE) < len(states)


def test_two_columns_of_other_names(tmp_path, tiny):
    record = {"question": "the king", "answer": "the queen", "id": 3}
    ids, _, _ = one(tmp_path / "x.jsonl", tiny, record, text_field="question,answer")
    assert tiny.text_of(ids).startswith("<|eos|>user\nthe king<|endoftext|>")


def test_a_message_cannot_end_itself(tmp_path, tiny):
    """What a message spells stays text, unless the settings say otherwise; and it is counted."""
    talk = [{"role": "user", "content": "a <|endoftext|> b"}, TALK[1]]
    ids, _, counts = one(tmp_path / "x.jsonl", tiny, {"messages": talk})
    assert ids.count(2) == 2 and counts["control_strings"] == 1
    assert "a <|endoftext|> b" in tiny.text_of(ids)
    ids, states, _ = one(tmp_path / "x.jsonl", tiny, {"messages": talk}, roles=("user",))
    kept = [token for token, state in zip(ids, states, strict=True) if state == COUNTED]
    assert tiny.text_of(kept) == "a <|endoftext|> b" and 2 not in kept
    ids, _, counts = one(tmp_path / "x.jsonl", tiny, {"messages": talk}, control_tokens=True)
    assert ids.count(2) == 3 and counts["control_strings"] == 1


def test_control_strings_in_plain_text(tmp_path, tiny, caplog):
    record = {"text": "a<|endoftext|>b"}
    ids, _, counts = one(tmp_path / "x.jsonl", tiny, record)
    assert 2 not in ids and counts["control_strings"] == 1
    assert caplog.text.count("spells control tokens; it is read as ordinary text") == 1
    ids, _, counts = one(tmp_path / "x.jsonl", tiny, record, control_tokens=True)
    assert ids.count(2) == 1 and counts["control_strings"] == 1


def test_without_a_template_in_one_line(tmp_path, tiny):
    tiny.tokenizer.chat_template = None
    with pytest.raises(ModelError, match=r"no chat template.*instruct") as caught:
        one(tmp_path / "x.jsonl", tiny, {"messages": TALK})
    assert "\n" not in str(caught.value)


def test_a_template_that_refuses_names_the_conversation(tmp_path, tiny):
    tiny.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ModelError, match=r"refuses .*roles must alternate.*x.jsonl@0"):
        one(tmp_path / "x.jsonl", tiny, {"messages": TALK})


def test_a_template_that_rewrites_messages_cannot_tell_roles(tmp_path, tiny):
    tiny.tokenizer.chat_template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    ids, _, _ = one(tmp_path / "x.jsonl", tiny, {"messages": TALK})
    assert "KING" in tiny.text_of(ids)
    with pytest.raises(TextError, match="rewrites the messages"):
        one(tmp_path / "x.jsonl", tiny, {"messages": TALK}, roles=("user",))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [{"speaker": "a", "content": "b"}]}, "line 1 has fields speaker, content"),
        ({"messages": [{"role": "user", "content": 3}]}, "role and content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "role and content"),
        ({"messages": "text"}, None),
        ({"messages": [3, "a"]}, r"is list, expected text, a list of messages"),
    ],
)
def test_what_is_no_conversation(tmp_path, tiny, record, message):
    if message is None:
        assert one(tmp_path / "x.jsonl", tiny, record)
        return
    with pytest.raises(TextError, match=message):
        one(tmp_path / "x.jsonl", tiny, record)


def test_roles_along_the_packed_stream(tmp_path, tiny):
    """A context that begins inside a message knows whose it is."""
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"messages": TALK}) + "\n" for _ in range(9)))
    config = TextConfig(source=str(path), held_out_fraction=0.0, roles=("assistant",))
    batches = text_batches(config, tiny, split="train", context_length=5, batch_contexts=1)
    tokens, states = zip(*((b.tokens[0, 1:], b.states()[0, 1:]) for b in batches), strict=True)
    kept = torch.cat(tokens)[torch.cat(states) == COUNTED].tolist()
    separators = kept.count(2)
    words = tiny.text_of([token for token in kept if token != 2])
    assert words.startswith("the queenthe queen") and separators >= 7
