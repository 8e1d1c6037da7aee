"""Every reader of files on content that nobody's writer writes: a value or a SaelabError, at once.

The campaigns are seeded; `ROUNDS` mutations of each file keep them to seconds.
"""

from __future__ import annotations

import json
import os
import random
import time
from contextlib import contextmanager

import pytest
from hostile import BAD_JSON, damaged, json_text, mutated

from saelab.cache.format import content_hash as cache_hash
from saelab.cache.reader import open_cache
from saelab.cli import main
from saelab.commands.info import describe
from saelab.dictionary import load_dictionary
from saelab.dictionary.importers.files import load_weights, peek_shapes
from saelab.errors import LONGEST_MESSAGE, ArtifactError, SaelabError
from saelab.features.labels import LabelBook
from saelab.features.reader import FeatureStore
from saelab.formats.files import hash_of, parse_json, read_json, read_tensors, sha256_of
from saelab.formats.manifest import NOT_CONTENT, seal
from saelab.formats.run import read_run
from saelab.formats.run_log import read_history, read_log

ROUNDS = 12
SLOW = 5.0
"""Seconds of the processor that no reader may take; what waits for ever hangs the test."""


@contextmanager
def in_words():
    """Lets a SaelabError of one short message pass, and no other exception, in time."""
    started = time.process_time()
    try:
        yield
    except SaelabError as error:
        assert len(str(error)) <= LONGEST_MESSAGE + 10
    assert time.process_time() - started < SLOW


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A cache of planted features, a run on it, and a result, all by the real commands."""
    folder = tmp_path_factory.mktemp("world")
    cache = ["synthetic", "smoke", str(folder / "planted"), "--n-rows", "4000"]
    assert main(cache) == 0
    shape = ["--d-sae", "16", "--k", "4", "--n-tokens", "1024", "--batch-rows", "256"]
    run = str(folder / "run")
    assert main(["train", "--cache", str(folder / "planted"), "--out", run, *shape]) == 0
    dictionary = next((folder / "run" / "dictionaries").iterdir())
    assert main(["eval", "recovery", str(dictionary)]) == 0
    return folder


def sealed_again(content):
    """Edited content with the hashes it would have if saelab had written it, where it can have."""
    try:
        if content.get("kind") == "dictionary":
            kept = {key: value for key, value in content.items() if key not in NOT_CONTENT}
            return content | {"content_hash": hash_of(kept)}
        if content.get("kind") == "activation_cache":
            content["content_hash"] = cache_hash(content)
        return seal(content) if "self_hash" in content else content
    except (ValueError, AttributeError):
        return content


READERS = {
    "saelab.json": [load_dictionary],
    "manifest.json": [open_cache],
    "run.json": [lambda folder: read_run(folder).dictionaries()],
}


def test_manifests_that_were_edited_and_sealed_again(world):
    chance = random.Random(0)
    paths = sorted(path for path in world.rglob("*.json") if path.name != "cfg.json")
    assert len(paths) >= 5
    for path in paths:
        good = path.read_bytes()
        hostile = [
            json_text(sealed_again(mutated(json.loads(good), chance))) for _ in range(ROUNDS)
        ]
        for content in (*hostile, *BAD_JSON):
            path.write_bytes(content)
            with in_words():
                describe(path)
            for reader in READERS.get(path.name, ()):
                with in_words():
                    reader(path.parent)
        path.write_bytes(good)
        describe(path)


def test_settings_of_a_dictionary_that_were_edited_and_hashed_again(world):
    chance = random.Random(1)
    path = next(world.rglob("cfg.json"))
    manifest = path.with_name("saelab.json")
    good, good_manifest = path.read_bytes(), manifest.read_bytes()
    for _ in range(4 * ROUNDS):
        path.write_bytes(json_text(mutated(json.loads(good), chance)))
        content = json.loads(good_manifest)
        content["files"]["cfg.json"] = sha256_of(path)
        manifest.write_bytes(json_text(sealed_again(content)))
        with in_words():
            load_dictionary(path.parent)
    path.write_bytes(good)
    manifest.write_bytes(good_manifest)
    load_dictionary(path.parent)


def test_damaged_bytes_of_every_other_file(world):
    chance = random.Random(2)
    for path in sorted(world.rglob("*")):
        if path.suffix not in (".safetensors", ".jsonl", ".parquet"):
            continue
        good = path.read_bytes()
        for _ in range(ROUNDS):
            # Most of what decides is in front: headers, first lines.
            head = damaged(good[:1500], chance)
            path.write_bytes(head + good[1500:] if chance.random() < 0.8 else head)
            with in_words():
                describe(path)
            if path.suffix == ".safetensors":
                for reader in (read_tensors, load_weights, peek_shapes):
                    with in_words():
                        reader(path)
            if path.suffix == ".jsonl":
                with in_words():
                    read_history(path)
                with in_words():
                    read_log(path, skip_damaged=True)
        path.write_bytes(good)


@pytest.mark.parametrize("content", BAD_JSON, ids=range(len(BAD_JSON)))
def test_what_is_no_json_is_said_in_a_short_line(content, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with in_words():
        read_json(path)
    (tmp_path / "metrics.jsonl").write_bytes(content + b"\n" + content + b"\n{}\n")
    with in_words():
        read_history(tmp_path / "metrics.jsonl")


def test_json_of_any_depth_and_integers_of_any_length():
    assert parse_json('{"a": [1, [2]]}') == {"a": [1, [2]]}
    assert parse_json(b"[" * 90 + b"]" * 90) is not None
    assert parse_json("9" * 300) == int("9" * 300)
    for bad in ("[" * 101 + "]" * 101, "[" * 100_000, "9" * 301, "9" * 5_000, b'"\xff"'):
        with pytest.raises(ValueError, match=r"deep|digits|utf-8"):
            parse_json(bad)


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_not_opened(kind, tmp_path):
    """Opening a pipe without a writer would wait for ever."""
    make = os.mkfifo if kind == "pipe" else os.mkdir
    readers = {
        "a.json": read_json,
        "a.safetensors": read_tensors,
        "metrics.jsonl": read_log,
        "features.sqlite": lambda path: FeatureStore(path if kind == "pipe" else path / "x"),
        "feature_labels.sqlite": lambda path: LabelBook(path, "a", 1),
    }
    for name, reader in readers.items():
        path = tmp_path / name
        make(path)
        with pytest.raises(ArtifactError):
            reader(path)
        with pytest.raises(ArtifactError):
            describe(path)


def test_messages_are_cut_however_long_a_value_is(tmp_path):
    assert len(str(ArtifactError("x" * 100_000))) < 100
    assert len(str(ArtifactError("word " * 100_000))) <= LONGEST_MESSAGE + 10
    path = str(tmp_path / "some" / "folder" / "that" / "has" / "a" / "long" / "name.json")
    assert path in str(ArtifactError(f"{path} is missing"))
