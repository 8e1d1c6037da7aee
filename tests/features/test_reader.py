"""Reading a store: hostile tokens, search, and files that are not what they should be."""

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from saelab.errors import ArtifactError, ConfigError
from saelab.features.reader import FeatureStore, is_stale
from saelab.features.search import ABSENT
from saelab.formats.files import write_json

KINGS, SCRIPTS, EMOJIS = 2, 4, 6


def test_hostile_tokens_come_back_as_they_are(tiny_store):
    texts = {t for s in range(tiny_store.n_sequences) for t in tiny_store.context_pieces(s).texts}
    expected = {"<script>alert(1)</script>", " &amp; &", "\n", "\t", "\u200b", " שלום", "👑", '"'}
    assert expected <= texts
    assert "\x00" in texts
    assert "�" in texts


def test_halves_of_an_emoji_are_one_piece_with_the_larger_activation(toy, tiny_store):
    record = tiny_store.feature(EMOJIS, None)
    example = next(e for e in record.top_examples if e.texts[e.anchor] == "👑")
    assert len(example.token_ids[example.anchor]) == 2
    position = example.positions[example.anchor]
    assert example.activations[example.anchor] == toy.codes[example.sequence * 16 + position + 1, 6]


@pytest.mark.parametrize("window", [0, 1, 3, 100])
def test_windows_hold_the_anchor_and_cut_no_character(tiny_store, window):
    for feature in range(tiny_store.n_features):
        whole, part = tiny_store.feature(feature, None), tiny_store.feature(feature, window)
        for full, cut in zip(whole.top_examples, part.top_examples, strict=True):
            assert cut.texts[cut.anchor] == full.texts[full.anchor]
            assert cut.positions[cut.anchor] == full.positions[full.anchor]
            assert len(cut.texts) <= 2 * window + 1 + 4
            assert set(cut.texts) <= set(full.texts)


def test_search_finds_tokens_by_word_by_punctuation_and_by_script(tiny_store):
    def top_hits(query):
        places = tiny_store.search(query).places["top_tokens"]
        return set(np.flatnonzero(places < ABSENT).tolist())

    for query in ("king", "KING", "kin"):
        assert KINGS in top_hits(query)
    for query in ("<script>", "alert"):
        assert SCRIPTS in top_hits(query)
    assert EMOJIS in top_hits("👑")
    assert len(tiny_store.search("שלום").features)
    assert len(tiny_store.search("   ").features) == tiny_store.n_features, "nothing is asked for"
    assert not len(tiny_store.search('no" OR such*token').features)
    assert "top tokens" in tiny_store.search("king").where(KINGS)
    assert " king" in tiny_store.feature(KINGS).top_tokens


def test_arguments_out_of_range_are_refused(tiny_store):
    with pytest.raises(ConfigError, match=r"feature 99 does not exist.*0 to 23"):
        tiny_store.feature(99)
    with pytest.raises(ConfigError, match="window -1 is negative"):
        tiny_store.feature(0, -1)
    with pytest.raises(ConfigError, match="context 1000 does not exist"):
        tiny_store.tokens(1000)
    with pytest.raises(ConfigError, match="unknown flag 'deaf'"):
        tiny_store.flag("deaf")


def test_table_is_read_only_and_several_threads_may_read(tiny_store):
    with pytest.raises(ValueError, match="read-only"):
        tiny_store.table()["density"][0] = 1
    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(tiny_store.feature, list(range(24)) * 2))
    assert [record.id for record in records] == list(range(24)) * 2


def changed(path, tmp_path, *statements):
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(path.read_bytes())
    with sqlite3.connect(copy) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()
    return copy


def test_foreign_missing_and_newer_files_are_refused_in_words(tiny_store_path, tmp_path):
    with pytest.raises(ArtifactError, match="does not exist: build it with `saelab features`"):
        FeatureStore(tmp_path)
    text = tmp_path / "text.sqlite"
    text.write_text("no database at all")
    with pytest.raises(ArtifactError, match="not a readable feature store"):
        FeatureStore(text)
    sqlite3.connect(empty := tmp_path / "empty.sqlite").close()
    with pytest.raises(ArtifactError, match="not a readable feature store"):
        FeatureStore(empty)
    newer = """UPDATE manifest SET content = json_set(content, '$.schema_version', 99)"""
    with pytest.raises(ArtifactError, match=r"schema version 99.*upgrade saelab"):
        FeatureStore(changed(tiny_store_path, tmp_path, newer))
    other = """UPDATE manifest SET content = json_set(content, '$.kind', 'dictionary')"""
    with pytest.raises(ArtifactError, match="'feature_store' was expected"):
        FeatureStore(changed(tiny_store_path, tmp_path, other))
    unfinished = changed(tiny_store_path, tmp_path, "DELETE FROM manifest")
    with pytest.raises(ArtifactError, match="unfinished or damaged"):
        FeatureStore(unfinished)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE examples SET data = substr(data, 1, 60) WHERE feature = 2",
        "UPDATE statistics SET data = data || x'00' WHERE feature = 2",
        "DELETE FROM silent WHERE feature = 2",
        "DELETE FROM sequence",
        "DELETE FROM feature WHERE id = 2",
        "DROP TABLE neighbours",
    ],
)
def test_damage_is_said_in_words(tiny_store_path, tmp_path, statement):
    copy = changed(tiny_store_path, tmp_path, statement)
    with FeatureStore(copy) as store, pytest.raises(ArtifactError, match=r"copy\.sqlite.*build"):
        store.feature(2)


def test_truncated_file_is_said_in_words(tiny_store_path, tmp_path):
    copy = tmp_path / "half.sqlite"
    copy.write_bytes(tiny_store_path.read_bytes()[:20_000])
    with pytest.raises(ArtifactError, match=r"half.sqlite"):  # noqa: SIM117
        with FeatureStore(copy) as store:
            for feature in range(store.n_features):
                store.feature(feature)


def test_staleness_is_a_sentence(tiny_store, tmp_path):
    def save(weights, content_hash):
        files = {"sae_weights.safetensors": weights}
        write_json(tmp_path / "saelab.json", {"content_hash": content_hash, "files": files})

    save("e" * 64, "d" * 64)
    assert is_stale(tiny_store, tmp_path) is None
    save("f" * 64, "d" * 64)
    assert "built from a different checkpoint" in is_stale(tiny_store, tmp_path)
    save("e" * 64, "c" * 64)
    assert "saved again with other settings" in is_stale(tiny_store, tmp_path)
    write_json(tmp_path / "saelab.json", [])
    assert "cannot be read" in is_stale(tiny_store, tmp_path)
    assert "does not exist" in is_stale(tiny_store, tmp_path / "gone")


def test_a_store_with_top_tokens_in_the_old_order_says_that_it_is_stale(tiny_store_path, tmp_path):
    files = {"sae_weights.safetensors": "e" * 64}
    write_json(tmp_path / "saelab.json", {"content_hash": "d" * 64, "files": files})
    old = """UPDATE manifest SET content =
        json_remove(json_set(content, '$.schema_version', 1), '$.self_hash')"""
    with FeatureStore(changed(tiny_store_path, tmp_path, old)) as store:
        assert store.feature(KINGS).id == KINGS
        sentence = is_stale(store, tmp_path)
    assert sentence is not None and "top tokens in a wrong order" in sentence
    assert "`saelab features" in sentence and "--overwrite`" in sentence


def test_reading_needs_no_heavy_library(tiny_store_path):
    program = (
        "import sys; from pathlib import Path\n"
        "from saelab.features.reader import FeatureStore\n"
        "import saelab.features.labels, saelab.features.reader\n"
        "store = FeatureStore(Path(sys.argv[1])); store.feature(2); store.table()\n"
        "print([m for m in ('torch', 'transformers', 'transformer_lens', 'pyarrow') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_store_path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_positions_and_counts_fit(tiny_store):
    example = tiny_store.context_pieces(0)
    assert not example.counted[0]
    assert example.counted[1:].all()
    assert np.array_equal(tiny_store.tokens(0)[:1], [0])
