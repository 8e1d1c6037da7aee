"""One document per context, and mixtures."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict

import pytest
import torch

from saelab.errors import ConfigError, TextError
from saelab.text.contexts import (
    TextBatch,
    TextConfig,
    describe_text,
    read_documents,
    text_batches,
    what_was_read,
)
from saelab.text.tokens import PADDING

from .test_text import ByteModel, write_jsonl

BOS = 256


def batches_of(config, length=8, batch=1, split="train", **settings):
    return list(
        text_batches(
            config,
            ByteModel(),
            split=split,
            context_length=length,
            batch_contexts=batch,
            **settings,
        )
    )


def test_one_document_per_context(tmp_path):
    texts = ["short", "sevenof", "a text of more than fourteen"]
    path = write_jsonl(tmp_path / "x.jsonl", texts)
    config = TextConfig(source=str(path), held_out_fraction=0.0, one_document_per_context=True)
    counts = defaultdict(Counter)
    whole = TextBatch.joined(batches_of(config, counts=counts))
    found = defaultdict(str)
    for row, states in zip(whole.tokens.tolist(), whole.states(), strict=True):
        n = int((states != PADDING).sum())
        assert row[0] == BOS and not (states[:n] == PADDING).any()
        text = bytes(row[1:n]).decode()
        (owner,) = [one for one in texts if text in one]
        found[owner] += text
    assert dict(found) == {one: one for one in texts}
    assert counts[str(path)]["divided"] == 1 and counts[str(path)]["contexts"] == 6
    assert whole.lengths().sum() == 5 + 7 + 28 + 6
    assert "one document per context" in describe_text(config)["packing"]


def test_what_is_dropped_at_the_end_is_counted(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", ["a" * 10, "b" * 8])  # 20 with their separators
    counts = defaultdict(Counter)
    config = TextConfig(source=str(path), held_out_fraction=0.0)
    assert len(batches_of(config, counts=counts)) == 2
    assert counts[str(path)]["dropped"] == 20 - 2 * 7
    assert "6 tokens dropped at the end" in what_was_read(counts)[0]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv"])
def test_the_first_record_of_every_file_is_looked_at_before_any_is_read(tmp_path, suffix):
    write_jsonl(tmp_path / "a.jsonl", ["text"] * 50)
    bad = "body\nx\n" if suffix == ".csv" else '{"text": null}\n\n{"body": "x"}\n'
    content = bad.encode()
    (tmp_path / f"b{suffix}").write_bytes(
        gzip.compress(content) if suffix.endswith("gz") else content
    )
    with pytest.raises(TextError, match=rf"b\{suffix}"):
        next(read_documents(TextConfig(source=str(tmp_path))))


def test_a_document_that_fits_is_not_padded(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", ["sevenof"])
    config = TextConfig(source=str(path), held_out_fraction=0.0, one_document_per_context=True)
    (batch,) = batches_of(config)
    assert batch.left_out is None


def test_bos_is_not_doubled(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"input_ids": [BOS, 1, 2]}) + "\n")
    config = TextConfig(
        source=str(tmp_path / "x.jsonl"), held_out_fraction=0.0, one_document_per_context=True
    )

    class Sized(ByteModel):
        tokenizer_size = 258

    (batch,) = text_batches(config, Sized(), split="train", context_length=4, batch_contexts=1)
    assert batch.tokens[0, :3].tolist() == [BOS, 1, 2]


# Mixtures.


@pytest.fixture
def three(tmp_path):
    """Three sources whose documents say which they are of."""
    for name in "abc":
        write_jsonl(tmp_path / f"{name}.jsonl", [f"{name * 40}{i}" for i in range(60)])
    shares = tuple(
        (str(tmp_path / f"{name}.jsonl"), share) for name, share in [("b", 0.3), ("c", 0.1)]
    )
    return TextConfig(source=str(tmp_path / "a.jsonl"), mixture=shares, held_out_fraction=0.25)


def sources_in(batches):
    """Which source each context is of: the letter that it mostly holds."""
    rows = [row[1:].tolist() for batch in batches for row in batch.tokens]
    return [max("abc", key=lambda letter: row.count(ord(letter))) for row in rows]


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_shares_hold_after_any_number_of_contexts(three, split):
    drawn = sources_in(batches_of(three, 16, split=split))
    assert len(drawn) > 50
    for n in range(1, len(drawn)):
        taken = Counter(drawn[:n])
        for name, share in zip("abc", (0.6, 0.3, 0.1), strict=True):
            assert abs(taken[name] - share * n) <= 1


def test_a_mixture_goes_on_where_it_was_stopped(three):
    whole = torch.cat([batch.tokens for batch in batches_of(three, 16)])
    rest = torch.cat([batch.tokens for batch in batches_of(three, 16, batch=4, skip_contexts=37)])
    assert torch.equal(rest, whole[37:])


def test_each_source_of_a_mixture_is_as_it_would_be_alone(three):
    """Contexts of one source stand in the order they have without the others: split, seed, all."""
    alone = torch.cat(
        [b.tokens for b in batches_of(TextConfig(source=three.source, held_out_fraction=0.25), 16)]
    )
    mixed = batches_of(three, 16)
    of_a = torch.cat(
        [b.tokens for b, name in zip(mixed, sources_in(mixed), strict=True) if name == "a"]
    )
    assert torch.equal(of_a, alone[: len(of_a)])


def test_what_a_mixture_is_made_of_is_recorded(three):
    described = describe_text(three)
    assert described["kind"] == "mixture" and len(described["sources"]) == 3
    assert described["mixture"] == [list(part) for part in three.mixture]
    json.dumps(described)
    counts = defaultdict(Counter)
    batches_of(three, 16, counts=counts)
    assert list(counts) == [three.source, *(name for name, _ in three.mixture)]
    assert counts[three.source]["contexts"] > 2 * counts[three.mixture[1][0]]["contexts"]


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ((("x", 0.5), ("y", 0.5)), "leave some for sotu"),
        ((("x", 0.0),), "between 0 and 1"),
        ((("sotu", 0.5),), "name one twice"),
        ((("x", float("nan")),), "between 0 and 1"),
    ],
)
def test_shares_that_do_not_fit(mixture, message):
    with pytest.raises(ConfigError, match=message):
        TextConfig(mixture=mixture)
