"""Kinds of text that people bring, in small files: every one is read, or refused in a line."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from saelab.errors import TextError
from saelab.model.language_model import LanguageModel
from saelab.text.contexts import (
    TextConfig,
    check_text,
    describe_text,
    is_held_out,
    read_documents,
    require_held_out,
    text_batches,
    what_was_read,
)
from saelab.text.listing import split_of, text_files

CASES = Path(__file__).with_name("cases")


class ByteModel(LanguageModel):
    """Tokenises to UTF-8 bytes; has no weights."""

    def __init__(self):
        self.name, self.max_context, self.tokenizer_size = "bytes", 64, 258
        self.bos_id, self.separator_id = 256, 257

    def tokenize(self, texts):
        return [list(text.encode()) for text in texts]


def texts_of(source, counts=None, **settings):
    config = TextConfig(source=str(source), **settings)
    return [document.text for document in read_documents(config, counts)]


def expected(name: str) -> list[str]:
    lines = (CASES / name).read_text(encoding="utf-8-sig").splitlines()
    return sorted(json.loads(line)["text"] for line in lines if line.strip())


def test_half_a_surrogate_pair_is_replaced_and_counted():
    counts = Counter()
    texts = texts_of(CASES / "surrogate.jsonl", counts)
    assert len(texts) == counts["documents"]
    assert sum("a broken \ufffd half" in text for text in texts) == 1
    assert counts["surrogates"] == 1
    lines = what_was_read({"surrogate.jsonl": counts})
    assert "1 lone surrogates replaced by U+FFFD" in lines[0]
    for text in texts:
        text.encode("utf-8")


def test_a_byte_order_mark_is_no_text():
    assert sorted(texts_of(CASES / "bom.jsonl")) == expected("bom.jsonl")


def test_a_byte_order_mark_in_front_of_plain_text(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "y.csv").write_bytes(b"\xef\xbb\xbftext\nhello\n")
    (tmp_path / "z.json").write_bytes(b'\xef\xbb\xbf[{"text": "hello"}]')
    assert texts_of(tmp_path) == ["hello"] * 3


def test_a_mixed_folder_reads_what_is_text_and_says_so():
    inside = [
        json.loads(line)["text"] for line in (CASES / "mixed/a/one.jsonl").read_text().splitlines()
    ]
    packed = gzip.decompress((CASES / "mixed/a/b/two.jsonl.gz").read_bytes())
    inside += [json.loads(line)["text"] for line in packed.splitlines()]
    assert sorted(texts_of(CASES / "mixed")) == sorted(inside)
    (line,) = check_text(TextConfig(source=str(CASES / "mixed")))
    assert line.endswith("reads two.jsonl.gz, one.jsonl; leaves out README.md (card)")


def test_a_lone_document_is_found_out_before_anything_is_run():
    lone = TextConfig(source=str(CASES / "one_book.txt"))
    with pytest.raises(TextError, match=r"(none of the 1 documents .* is|every document of .*)"):
        check_text(lone)
    # Whichever side it falls on.
    for seed in range(12):
        with pytest.raises(TextError, match="span-characters"):
            check_text(TextConfig(source=str(CASES / "one_book.txt"), seed=seed))


def test_spans_of_a_lone_document_can_be_held_out():
    source = CASES / "one_book.txt"
    config = TextConfig(source=str(source), span_characters=400, held_out_fraction=0.3)
    check_text(config)
    require_held_out(config, ByteModel(), 32)
    documents = list(read_documents(config))
    in_order = sorted(documents, key=lambda d: int(d.id.split("+")[1]))
    assert "".join(d.text for d in in_order) == source.read_text()
    assert max(len(d.text) for d in documents) <= 400
    sides = [is_held_out(config, d.text) for d in documents]
    assert 0 < sum(sides) < len(sides)


def test_spans_without_a_line_end(tmp_path):
    (tmp_path / "x.txt").write_text("ab cd ef gh" + "x" * 9)
    config = TextConfig(source=str(tmp_path / "x.txt"), span_characters=6)
    found = sorted(read_documents(config), key=lambda d: int(d.id.split("+")[1]))
    assert [d.text for d in found] == ["ab cd ", "ef ", "ghxxxx", "xxxxx"]


def test_held_out_text_shorter_than_a_context_is_found_out():
    config = TextConfig(source=str(CASES / "one_book.txt"), span_characters=400)
    with pytest.raises(TextError, match=r"less than one context of 10000000"):
        require_held_out(config, ByteModel(), 10_000_000)


# Tokens.


def test_tokens_are_read_as_they_are():
    source = CASES / "pretokenised.jsonl"
    lists = [json.loads(line)["input_ids"] for line in source.read_text().splitlines()]
    documents = list(read_documents(TextConfig(source=str(source))))
    assert sorted(list(d.tokens) for d in documents) == sorted(lists)


def write_tokens(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TextConfig(source=str(path), held_out_fraction=0.0)


def stream_of(config, model=None, **settings):
    batches = text_batches(
        config, model or ByteModel(), split="train", context_length=2, batch_contexts=1, **settings
    )
    return [int(batch.tokens[0, 1]) for batch in batches]


def test_padding_that_a_mask_names_is_left_out_and_no_separator_is_doubled(tmp_path):
    rows = [{"input_ids": [7, 8, 257, 0, 0], "attention_mask": [1, 1, 1, 0, 0]}]
    assert stream_of(write_tokens(tmp_path / "x.jsonl", rows)) == [7, 8, 257]


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    config = write_tokens(tmp_path / "x.jsonl", [{"input_ids": [7, 258]}])
    with pytest.raises(TextError, match=r"token id 258, and the tokenizer of bytes has 258"):
        stream_of(config)


def test_tokens_in_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    column = pyarrow.array([[5, 6], [7]], pyarrow.list_(pyarrow.int32()))
    parquet.write_table(pyarrow.table({"input_ids": column}), tmp_path / "x.parquet")
    config = TextConfig(source=str(tmp_path / "x.parquet"), held_out_fraction=0.0)
    assert sorted(stream_of(config)) == [5, 6, 7, 257, 257]


# Formats.

TEXTS = [f'text number {i}, with "quotes", a\nline end and é' for i in range(30)]


def write_as(folder: Path, name: str) -> Path:
    """The texts in a format that the name says."""
    import pyarrow

    records = [{"n": i, "text": text} for i, text in enumerate(TEXTS)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    plain = name.removesuffix(".gz").removesuffix(".zst")
    if plain.endswith(".csv"):
        rows = [f'{i},"{text.replace(chr(34), chr(34) * 2)}"\r\n' for i, text in enumerate(TEXTS)]
        content = "n,text\r\n" + "".join(rows)
    elif plain.endswith("array.json"):
        content = json.dumps(records, indent=1)
    elif plain.endswith((".jsonl", ".json")):
        content = lines
    else:
        content = "\n<|endoftext|>\n".join(TEXTS)
    path = folder / name
    compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    with pyarrow.output_stream(str(path), compression=compression) as stream:
        stream.write(content.encode())
    return path


@pytest.mark.parametrize("end", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", ["x.jsonl", "lines.json", "array.json", "x.csv", "x.txt"])
def test_every_format_plain_and_compressed(tmp_path, name, end):
    path = write_as(tmp_path, name + end)
    found = [text.removesuffix("\n") for text in texts_of(path)]
    assert sorted(found) == sorted(TEXTS)
    assert found != TEXTS
    assert found == [text.removesuffix("\n") for text in texts_of(path)]


def test_blocks_bound_what_is_held_of_a_compressed_file(tmp_path, monkeypatch):
    from saelab.text import sources

    monkeypatch.setattr(sources, "BLOCK_CHARACTERS", 200)
    found = texts_of(write_as(tmp_path, "x.jsonl.gz"))
    assert sorted(found) == sorted(TEXTS)
    # Shuffled within a block of a few, in the file's order over blocks.
    assert all(abs(TEXTS.index(text) - place) < 10 for place, text in enumerate(found))


@pytest.mark.parametrize("end", [".gz", ".zst"])
def test_a_truncated_or_foreign_compressed_file_is_refused(tmp_path, end):
    path = write_as(tmp_path, "x.jsonl" + end)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TextError, match=r"cannot be read .*damaged"):
        texts_of(path)
    path.write_bytes(b'{"text": "not compressed"}\n' * 9)
    with pytest.raises(TextError, match=r"cannot be read .*damaged"):
        texts_of(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", 'a,text\n1,"x\n', "cannot be read"),
        ("x.csv", "a,text\n1,x,3\n", r"line 2 has more fields than the 2 of the header"),
        ("x.csv", "a,b\n1,x\n", r"record 1 has no field 'text': known: a, b"),
        ("x.json", '{"a": \n', "is not JSON"),
        ("x.json", '[{"text": "a"}, 3]', "record 2 is not a JSON object"),
        ("x.json", '{"body": "a"}', "record 1 has no field 'text': known: body"),
        ("x.json", "[" * 100_000, "is not JSON"),
        ("x.jsonl", '{"text": ' + "[" * 100_000 + "\n", "line 1 is not JSON"),
        ("x.jsonl", '{"text": ' + "1" * 6000 + "}\n", "line 1 is not JSON"),
        ("x.arrow", "no arrow", "cannot be read"),
        ("x.parquet.gz", "x", "unknown type"),
    ],
)
def test_bad_files_are_refused_in_a_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(TextError, match=message) as caught:
        texts_of(tmp_path / name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_columns_of_every_type_that_holds_text(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {
        "large": pa.array(TEXTS, pa.large_string()),
        "view": pa.array(TEXTS, pa.string_view()),
        "binary": pa.array([text.encode() for text in TEXTS], pa.binary()),
        "words": pa.array(TEXTS).dictionary_encode(),
    }
    parquet.write_table(pa.table(kinds), tmp_path / "x.parquet", row_group_size=8)
    for name in kinds:
        assert sorted(texts_of(tmp_path / "x.parquet", text_field=name)) == sorted(TEXTS)
    bad = pa.array([b"\xff\xfe"], pa.binary())
    parquet.write_table(pa.table({"text": bad}), tmp_path / "bad.parquet")
    with pytest.raises(TextError, match="not UTF-8"):
        texts_of(tmp_path / "bad.parquet")


def test_a_save_to_disk_folder(tmp_path):
    from datasets import Dataset, DatasetDict

    train = Dataset.from_dict({"text": TEXTS, "n": list(range(30))})
    train.save_to_disk(str(tmp_path / "one"))
    assert sorted(texts_of(tmp_path / "one")) == sorted(TEXTS)
    test = Dataset.from_dict({"text": ["of the test split"]})
    DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "two"))
    assert sorted(texts_of(tmp_path / "two")) == sorted(TEXTS)
    assert texts_of(tmp_path / "two", dataset_split="test") == ["of the test split"]
    # A split that was selected and shuffled is saved as it is seen.
    train.select(range(3)).shuffle(seed=0).save_to_disk(str(tmp_path / "three"))
    assert sorted(texts_of(tmp_path / "three")) == sorted(TEXTS[:3])


# Folders.


def test_a_snapshot_gives_one_split_and_no_card(tmp_path):
    names = ("data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl")
    others = ("data/test-00000-of-00001.jsonl", "data/validation-00000-of-00001.jsonl")
    (tmp_path / "data").mkdir()
    (tmp_path / ".cache").mkdir()
    for name in (*names, *others, ".cache/x.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "logo.png").write_bytes(b"png")
    assert sorted(texts_of(tmp_path)) == sorted(names)
    assert texts_of(tmp_path, dataset_split="val") == [others[1]]
    left_out = text_files(tmp_path, "train").left_out
    assert left_out == {
        "hidden": [".cache/x.jsonl"],
        "card": ["README.md"],
        "description of the data": ["dataset_info.json"],
        "not of a known type": ["logo.png"],
        "split test": [others[0]],
        "split validation": [others[1]],
    }


def test_a_folder_with_other_splits_only_names_them(tmp_path):
    for name in ("train_sft-00000-of-00001.jsonl", "test_sft-00000-of-00001.jsonl"):
        (tmp_path / name).write_text('{"text": "x"}\n')
    with pytest.raises(
        TextError, match=r"no split 'train', but test_sft, train_sft.*dataset-split"
    ):
        texts_of(tmp_path)
    assert texts_of(tmp_path, dataset_split="train_sft") == ["x"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("valid/part1.txt", "validation"),
        ("my-dev.txt", "validation"),
        ("test/train-notes.txt", "train"),
        ("contest.txt", None),
        ("evaluation_2.csv", "test"),
        ("data/de-00000-of-00003.parquet", "de"),
    ],
)
def test_splits_are_told_by_whole_words(name, split):
    assert split_of(name) == split


def test_a_pipe_in_place_of_a_file_is_refused(tmp_path):
    import os

    os.mkfifo(tmp_path / "x.jsonl")
    with pytest.raises(TextError, match="neither a file nor a folder"):
        texts_of(tmp_path / "x.jsonl")


# Before a model is loaded, and what stays as it was.


def test_a_missing_column_is_found_out_before_the_model_is_loaded(tmp_path, monkeypatch, capsys):
    from saelab import cli
    from saelab.cache import harvest

    def load(*args, **kwargs):
        raise AssertionError("loaded")

    monkeypatch.setattr(harvest, "load_language_model", load)
    source = ["--text.source", str(CASES / "bom.jsonl")]
    out = str(tmp_path / "cache")
    assert cli.main(["cache", out, *source, "--text.text-field", "body"]) == 2
    assert "no field 'body': known: text" in capsys.readouterr().err
    assert cli.main(["cache", out, "--text.source", str(CASES / "one_book.txt")]) == 2
    assert "--text.span-characters" in capsys.readouterr().err
    assert cli.main(["cache", out, *source, "--text.roles", "assistant"]) == 2
    assert "holds no conversations" in capsys.readouterr().err


def test_a_context_too_long_is_found_out_before_the_model_is_loaded(
    tmp_path, monkeypatch, capsys, tiny_model_folder
):
    from saelab import cli
    from saelab.cache import harvest

    monkeypatch.setattr(harvest, "load_language_model", None)
    words = ["--model", str(tiny_model_folder), "--context-length", "500"]
    source = ["--text.source", str(CASES / "bom.jsonl")]
    assert cli.main(["cache", str(tmp_path / "cache"), *words, *source]) == 2
    assert "500 is longer than the 128 tokens" in capsys.readouterr().err


def test_settings_of_today_keep_their_hashes(tmp_path):
    """Settings that were added leave no trace where they have their default."""
    from saelab.config import from_plain, to_plain

    plain = {
        "source": "sotu",
        "text_field": "text",
        "held_out_fraction": 0.1,
        "seed": 0,
        "max_tokens_per_document": None,
    }
    assert to_plain(TextConfig()) == plain
    assert from_plain(TextConfig, plain, "here") == TextConfig()
    described = describe_text(TextConfig())
    assert set(described) == {
        *plain,
        "kind",
        "version",
        "content_hash",
        "order",
        "split",
        "packing",
    }
    changed = TextConfig(
        mixture=(("x.jsonl", 0.25),), roles=("user",), one_document_per_context=True
    )
    again = from_plain(TextConfig, json.loads(json.dumps(to_plain(changed))), "here")
    assert again == changed and hash(again) == hash(changed)


def test_counts_do_not_depend_on_what_is_skipped():
    config = TextConfig(source=str(CASES / "surrogate.jsonl"))
    found = []
    for skip in (0, 20):
        counts = defaultdict(Counter)
        batches = text_batches(
            config,
            ByteModel(),
            split="train",
            context_length=16,
            batch_contexts=5,
            skip_contexts=skip,
            counts=counts,
        )
        found.append([dict(counts[config.source]) for _ in batches])
    assert found[0][4:] == found[1]
    last = found[0][-1]
    assert last["documents"] == 121 and 0 < last["other_split"] < 40
