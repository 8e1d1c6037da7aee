"""From a run folder to stores: the model's pass, stopping and going on, exports, words."""

import gzip
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from saelab.cache.config import TokenFilter
from saelab.cli import main
from saelab.commands.features import main as features
from saelab.commands.info import describe
from saelab.config import to_plain
from saelab.dictionary import Dictionary, load_dictionary, save_dictionary
from saelab.errors import ArtifactError, ConfigError, SaelabError
from saelab.explain.exchange import import_explanations
from saelab.features import neuronpedia, pipeline, text_pass
from saelab.features.config import FeaturesConfig
from saelab.features.labels import LabelBook
from saelab.features.pipeline import build_features
from saelab.features.reader import FeatureStore
from saelab.features.schema import StoreWriter
from saelab.formats.lock import writer_lock
from saelab.formats.manifest import seal
from saelab.formats.run import dictionary_folders
from saelab.text.contexts import TextConfig
from tests.conftest import context_batches

LENGTH = 16
HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = ["the king", "met the queen", "👑", "<script>", "near the river", "שלום", "of corn"]
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(words, 12)) for _ in range(60)]
    path.write_text("\n<|endoftext|>\n".join(lines))
    return path


def save(folder, model, text_file, seed, **changes):
    torch.manual_seed(seed)
    decoder = torch.nn.functional.normalize(torch.randn(40, 32), dim=1)
    dictionary = Dictionary(
        "topk",
        W_enc=decoder.T.clone(),
        W_dec=decoder,
        b_dec=torch.zeros(32),
        b_enc=torch.zeros(40),
        k=4,
    )
    text = TextConfig(source=str(text_file), held_out_fraction=0.2)
    made_from = {
        "model": model.name,
        "model_hash": model.content_hash,
        "model_dtype": "float32",
        "hook_point": HOOK,
        "text": to_plain(text),
        "context_length": LENGTH,
        "row_rule": to_plain(TokenFilter()),
        "norm_ceiling": 1e6,
        **changes,
    }
    save_dictionary(
        folder,
        dictionary,
        self_test_inputs=torch.randn(4, 32),
        training={"method": "topk", "target_l0": 4},
        made_from=made_from,
    )
    return folder


@pytest.fixture
def run(tmp_path, tiny_model, text_file):
    """A run of two dictionaries."""
    for name, seed in (("a", 0), ("b", 1)):
        save(tmp_path / "run" / "dictionaries" / name, tiny_model, text_file, seed)
    return tmp_path / "run"


def test_stores_of_a_run_agree_with_the_model_and_the_dictionaries(run, tiny_model, capsys):
    features([str(run), "--n-tokens", "400", "--batch-contexts", "3", "--device", "cpu"])
    assert "features.sqlite" in capsys.readouterr().out
    for folder in dictionary_folders([run]):
        saved = load_dictionary(folder)
        text = TextConfig(**{**saved.text, "source": saved.text["source"]})
        batches = context_batches(
            text, tiny_model, split="train", context_length=LENGTH, batch_contexts=1
        )
        tokens = torch.cat([next(batches) for _ in range(25)])
        activations = tiny_model.capture(tokens, [HOOK])[HOOK]
        special = torch.tensor(sorted(tiny_model.special_ids))
        keep = ~torch.isin(tokens, special)
        keep[:, 0] = False
        codes = saved.dictionary.encode_dense(activations[keep]).double().numpy()
        with FeatureStore(folder) as store:
            assert store.n_sequences == 25
            assert store.n_tokens == int(keep.sum())
            excluded = store.manifest["excluded"]
            assert sum(excluded.values()) + store.n_tokens == 25 * LENGTH
            table = store.table()
            assert table["n_active"].tolist() == (codes > 0).sum(0).tolist()
            np.testing.assert_allclose(table["max_act"], codes.max(0), rtol=1e-5)
            assert np.array_equal(store.tokens(7), tokens[7].numpy())
            lens = store.feature(int(codes.max(0).argmax())).logit_lens
            assert lens is not None
        assert not (folder / text_pass.WORK_FOLDER).exists()


def test_logit_lens_applies_the_final_norms_gain(run, tiny_model, tiny_gpt2):
    lens = tiny_model.logit_lens()
    norm = tiny_model._forward.final_norm()
    torch.testing.assert_close(lens.gain, norm.weight.float(), rtol=1e-4, atol=1e-4)
    assert not lens.centres_input
    layer_norm = tiny_gpt2.logit_lens()
    expected = tiny_gpt2._forward.final_norm().weight.float()
    torch.testing.assert_close(layer_norm.gain, expected, rtol=1e-3, atol=1e-3)
    assert layer_norm.centres_input
    assert "centred (layer norm)" in layer_norm.describe()


def test_a_killed_pass_goes_on_and_gives_the_same_store(run, tiny_model_folder, monkeypatch):
    monkeypatch.setattr(text_pass, "LEAST_SHARD_TOKENS", 32)
    monkeypatch.setattr(text_pass, "BUFFERED_TOKENS", 32)
    folders = dictionary_folders([run])
    config = FeaturesConfig(n_tokens=320, batch_contexts=1, device="cpu")
    build_features(folders, config)
    ids = []
    for folder in folders:
        with FeatureStore(folder) as store:
            ids.append((store.store_id, store.table()["mean_act"].tolist()))
        (folder / "features.sqlite").unlink()
    written = []
    write = text_pass.write_shard

    def stop_soon(path, *rest):
        write(path, *rest)
        written.append(path)
        if len(written) == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(text_pass, "write_shard", stop_soon)
    with pytest.raises(Exception, match="the same command goes on from there"):
        build_features(folders, config)
    assert not (folders[0] / "features.sqlite").exists()
    monkeypatch.setattr(text_pass, "write_shard", write)
    built = []
    monkeypatch.setattr(
        text_pass, "write_shard", lambda path, *rest: (built.append(path), write(path, *rest))
    )
    build_features(folders, config)
    # The shard that was being written is finished for both dictionaries before it stops.
    assert len(built) == 2 * 10 - 2 * 4
    for folder, expected in zip(folders, ids, strict=True):
        with FeatureStore(folder) as store:
            assert (store.store_id, store.table()["mean_act"].tolist()) == expected


def test_killed_after_the_first_store_the_same_command_goes_on(
    run, tiny_model, text_file, monkeypatch
):
    # A shard is smaller where two dictionaries read together, and half of one is read again.
    monkeypatch.setattr(text_pass, "LEAST_SHARD_TOKENS", 16)
    monkeypatch.setattr(text_pass, "BUFFERED_TOKENS", 64)
    words = ["features", str(run), "--n-tokens", "320", "--device", "cpu"]
    first, second = (folder / "features.sqlite" for folder in dictionary_folders([run]))
    assert main(words) == 0
    with FeatureStore(second) as store:
        expected = store.manifest["tables_sha256"]
    second.unlink()
    write = pipeline.write_store

    def killed_at_the_second(path, sources):
        if path == second:
            raise KeyboardInterrupt
        return write(path, sources)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_store", killed_at_the_second)
        assert main([*words, "--overwrite"]) == 130
    finished = first.read_bytes()
    (first.parent / text_pass.WORK_FOLDER).mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(text_pass, "write_shard", None)  # the text is not read a second time
        assert main([*words, "--batch-contexts", "2"]) == 0
    assert first.read_bytes() == finished
    assert not (first.parent / text_pass.WORK_FOLDER).exists()
    with FeatureStore(second) as store:
        assert store.manifest["tables_sha256"] == expected
    assert main(words) == 0
    save(first.parent, tiny_model, text_file, 5)
    with pytest.raises(ConfigError, match="built from a different checkpoint"):
        features(words[1:])
    with closing(sqlite3.connect(second)) as connection, connection:
        (content,) = connection.execute("SELECT content FROM manifest").fetchone()
        older = {name: value for name, value in json.loads(content).items() if name != "asked"}
        connection.execute("UPDATE manifest SET content = ?", (json.dumps(seal(older)),))
    with pytest.raises(ConfigError, match="does not say with which settings it was made"):
        features([str(second.parent), *words[2:]])


def test_shards_of_another_build_are_not_used(run, monkeypatch):
    folder = dictionary_folders([run])[0]
    work = folder / text_pass.WORK_FOLDER
    work.mkdir()
    (work / "shard-00000.safetensors").write_bytes(b"half a file")
    build_features([folder], FeaturesConfig(n_tokens=100, device="cpu"))
    with FeatureStore(folder) as store:
        assert store.n_sequences == 7


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_bit_flipped_between_kill_and_rerun_changes_nothing(run, monkeypatch, overwrite):
    monkeypatch.setattr(text_pass, "LEAST_SHARD_TOKENS", 32)
    monkeypatch.setattr(text_pass, "BUFFERED_TOKENS", 32)
    folder = dictionary_folders([run])[0]
    config = FeaturesConfig(n_tokens=160, batch_contexts=1, device="cpu")
    monkeypatch.setattr(pipeline, "discard", lambda subjects: None)
    build_features([folder], config)
    with FeatureStore(folder) as store:
        expected = store.manifest["tables_sha256"]
    shards = sorted((folder / text_pass.WORK_FOLDER).iterdir())
    good = [shard.read_bytes() for shard in shards]
    chance = np.random.default_rng(0)
    for number in range(12):
        shard = shards[number % len(shards)]
        content = bytearray(good[number % len(shards)])
        content[int(chance.integers(len(content)))] ^= 1 << int(chance.integers(8))
        shard.write_bytes(content)
        if overwrite:
            features([str(folder), "--overwrite", "--n-tokens", "160", "--device", "cpu"])
        else:
            (folder / "features.sqlite").unlink()
            build_features([folder], config)
        with FeatureStore(folder) as store:
            assert store.manifest["tables_sha256"] == expected
        for path, whole in zip(shards, good, strict=True):
            path.write_bytes(whole)


def test_a_flipped_bit_in_a_store_is_never_called_intact(run):
    folder = dictionary_folders([run])[0]
    build_features([folder], FeaturesConfig(n_tokens=100, device="cpu"))
    path = folder / "features.sqlite"
    lines = describe(path)
    assert any(line.startswith("intact: every table") for line in lines)
    good = path.read_bytes()
    chance, unnoticed = np.random.default_rng(0), 0
    for _ in range(40):
        content = bytearray(good)
        content[int(chance.integers(len(content)))] ^= 1 << int(chance.integers(8))
        path.write_bytes(content)
        try:
            assert describe(path) == lines
            unnoticed += 1  # in the unused end of a page, which holds no content
        except SaelabError:
            pass
    assert unnoticed < 30
    path.write_bytes(good)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE feature SET density = density * 2")
    with pytest.raises(ArtifactError, match="SHA-256 of its tables differs"):
        describe(path)
    with pytest.raises(ArtifactError, match="SHA-256 of its tables differs"):
        features([str(folder), "--n-tokens", "100", "--device", "cpu"])
    from saelab.dashboards.context import open_store

    with pytest.raises(ArtifactError, match="SHA-256 of its tables differs"):
        open_store(path)


def test_a_full_disk_while_the_store_is_written_is_one_line(run, monkeypatch, capsys):
    folder = dictionary_folders([run])[0]

    def full(self, content):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(StoreWriter, "manifest", full)
    assert main(["features", str(folder), "--n-tokens", "50", "--device", "cpu"]) == 2
    assert "free some space and give the same command again" in capsys.readouterr().err


def test_a_file_where_shards_go_is_replaced_by_overwrite(run):
    folder = dictionary_folders([run])[0]
    (folder / "features.build").write_text("")
    words = [str(folder), "--n-tokens", "50", "--device", "cpu"]
    with pytest.raises(ConfigError, match=r"features\.build is a file .* --overwrite"):
        features(words)
    features([*words, "--overwrite"])
    assert not (folder / "features.build").exists()


def test_a_second_process_is_told_who_builds(run):
    folder = dictionary_folders([run])[0]
    with (
        writer_lock(folder / "features.sqlite"),
        pytest.raises(ConfigError, match="is being written by process"),
    ):
        build_features([folder], FeaturesConfig(n_tokens=50, device="cpu"))


def test_all_the_text_there_is_and_the_held_out_part(run):
    folder = dictionary_folders([run])[0]
    build_features([folder], FeaturesConfig(n_tokens=10**9, device="cpu"))
    with FeatureStore(folder) as store:
        whole = store.n_sequences
    config = FeaturesConfig(n_tokens=10**9, split="held_out", device="cpu")
    build_features([folder], config)
    with FeatureStore(folder) as store:
        assert 0 < store.n_sequences < whole
        assert store.manifest["made_from"]["text_split"] == "held_out"


def test_existing_stores_are_kept_unless_told(run, capsys):
    folder = dictionary_folders([run])[0]
    features([str(folder), "--n-tokens", "50", "--device", "cpu"])
    with pytest.raises(ConfigError, match=r"already: add --overwrite .*n_tokens was 50, is 9"):
        features([str(folder), "--n-tokens", "90"])
    with pytest.raises(ConfigError, match=r"already: add --overwrite .*n_top was 20, is 3"):
        features([str(folder), "--n-tokens", "50", "--n-top", "3"])
    features([str(folder), "--n-tokens", "90", "--device", "cpu", "--overwrite"])
    with FeatureStore(folder) as store:
        assert store.n_sequences == 6
    assert main(["info", str(folder / "features.sqlite")]) == 0
    shown = capsys.readouterr().out
    assert "feature store (schema version 2)" in shown
    assert "intact: every table has the SHA-256 it was written with, and every feature" in shown
    assert "of the dictionary beside it" in shown


def test_exports(run, tmp_path, capsys):
    folder = dictionary_folders([run])[0]
    out = tmp_path / "out"
    settings = [str(folder), "--n-tokens", "200", "--device", "cpu"]
    features([*settings, "--export", "parquet", str(out)])
    table = pq.read_table(out / "features.parquet")
    examples = pq.read_table(out / "examples.parquet")
    with FeatureStore(folder) as store:
        assert table.column("n_active").to_pylist() == store.table()["n_active"].tolist()
        record = store.feature(int(store.table()["n_active"].argmax()), None)
        rows = [row for row in examples.to_pylist() if row["feature"] == record.id]
        tops = [row for row in rows if row["list"] == "top"]
        assert [row["value"] for row in tops] == [e.value for e in record.top_examples]
        assert tops[0]["tokens"] == list(record.top_examples[0].texts)
        features([*settings, "--export", "neuronpedia-json", str(out)])
        batch = json.loads((out / "batch-0.json").read_text())
        assert (batch["layer"], len(batch["features"])) == (1, 40)
        feature = batch["features"][record.id]
        assert feature["frac_nonzero"] == record.density
        assert feature["pos_str"] == [score.text for score in record.logit_lens.top]
        assert sum(feature["freq_hist_data_bar_heights"]) == record.n_active
        assert all(max(entry["values"]) > 0 for entry in feature["activations"])
    with pytest.raises(ConfigError, match="exists already"):
        features([*settings, "--export", "parquet", str(out)])


def test_bad_input_in_words(tmp_path, run, tiny_model, text_file):
    with pytest.raises(ConfigError, match="no run was given"):
        features([])
    with pytest.raises(ArtifactError, match="gone does not exist: give a run"):
        features([str(tmp_path / "gone")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="neither a run nor a dictionary folder"):
        features([str(tmp_path / "empty")])
    (tmp_path / "empty" / "run.json").write_text("{}")
    with pytest.raises(ArtifactError, match="a run without dictionaries yet"):
        features([str(tmp_path / "empty")])
    folder = dictionary_folders([run])[0]
    with pytest.raises(ConfigError, match="named twice"):
        features([str(folder), str(folder)])
    changed = save(tmp_path / "other", tiny_model, text_file, 0, model_hash="0" * 64)
    with pytest.raises(ArtifactError, match="give the model it was trained on with --model"):
        features([str(changed), "--device", "cpu"])
    width = save(tmp_path / "width", tiny_model, text_file, 0, hook_point="blocks.1.mlp.hook_post")
    with pytest.raises(ArtifactError, match="has width 64"):
        features([str(width), "--device", "cpu"])
    planted = save(tmp_path / "planted", tiny_model, text_file, 0, planted={"seed": 0})
    with pytest.raises(ArtifactError, match="planted features"):
        features([str(planted), "--device", "cpu"])


@pytest.mark.slow
def test_sigkill_leaves_no_half_store_and_the_next_command_finishes(run):
    folder = dictionary_folders([run])[0]
    command = [sys.executable, "-m", "saelab.cli", "features", str(folder)]
    command += ["--n-tokens", "300", "--batch-contexts", "1", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    work = folder / text_pass.WORK_FOLDER
    deadline = time.monotonic() + 120
    while not work.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (folder / "features.sqlite").exists() or process.returncode == 0
    features([*command[4:], "--overwrite"])
    with FeatureStore(folder) as store:
        assert store.n_sequences == 19
    assert list(folder.glob("*.partial")) == []


NEURONPEDIA_COLUMNS = {
    "release": "name visibility description urls creatorName creatorId createdAt",
    "model": "id displayNameShort displayName creatorId layers neuronsPerLayer owner visibility "
    "createdAt",
    "sourceset": "modelId name hasDashboards visibility description creatorName urls creatorId "
    "releaseName createdAt",
    "source": "id modelId hasDashboards visibility setName creatorId num_prompts "
    "num_tokens_in_prompt dataset notes createdAt",
    "features": "modelId layer index sourceSetName creatorId maxActApprox hasVector vector "
    "vectorDefaultSteerStrength hookName topkCosSimIndices topkCosSimValues "
    "neuron_alignment_indices neuron_alignment_values neuron_alignment_l1 "
    "correlated_neurons_indices correlated_neurons_pearson correlated_neurons_l1 "
    "correlated_features_indices correlated_features_pearson correlated_features_l1 neg_str "
    "neg_values pos_str pos_values frac_nonzero freq_hist_data_bar_heights "
    "freq_hist_data_bar_values logits_hist_data_bar_heights logits_hist_data_bar_values "
    "decoder_weights_dist",
    "activations": "id tokens index layer modelId dataSource maxValue maxValueTokenIndex minValue "
    "values dfaValues creatorId lossValues binMin binMax binContains qualifyingTokenIndex",
    "explanations": "id modelId layer index description authorId notes",
}
"""Of the tables that Neuronpedia imports each file into; it knows no others."""


def read_neuronpedia(folder):
    """The rows of each kind, of single files and of batches in the order of their numbers."""
    rows = {path.stem: path.read_text().splitlines() for path in folder.glob("*.jsonl")}
    for path in sorted(folder.glob("*/batch-*.jsonl.gz"), key=lambda path: (len(path.name), path)):
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        assert lines, f"Neuronpedia fails on the empty {path}"
        rows.setdefault(path.parent.name, []).extend(lines)
    return {kind: [json.loads(line) for line in lines] for kind, lines in rows.items()}


def test_an_export_to_neuronpedia_holds_what_the_store_holds(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(neuronpedia, "BATCH_FEATURES", 16)
    folder = dictionary_folders([run])[0]
    given = ["export", str(folder), "--to", "neuronpedia", "--out", str(tmp_path / "out")]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert f"build it with `saelab features {folder}` first" in error and error.count("\n") == 1
    build_features([folder], FeaturesConfig(n_tokens=300, device="cpu"))
    saved = load_dictionary(folder)
    book = LabelBook(folder / "feature_labels.sqlite", saved.content_hash, 40)
    for feature, text in ((7, "kings"), (30, "rivers"), (7, "royalty")):
        book.add(feature, text, author="Ada", score=0.5)
    assert main(given) == 0
    (source,) = (tmp_path / "out").glob("*/*")
    rows = read_neuronpedia(source)
    assert {name: set(names.split()) for name, names in NEURONPEDIA_COLUMNS.items()} == {
        kind: set(lines[0]) for kind, lines in rows.items()
    }
    for lines in rows.values():
        assert all(line.keys() == lines[0].keys() for line in lines)
    assert source.name == "1-a" == rows["source"][0]["id"] == rows["features"][0]["layer"]
    assert source.parent.name == rows["model"][0]["id"] == rows["activations"][0]["modelId"]
    assert rows["sourceset"][0]["releaseName"] == rows["release"][0]["name"] == "a"
    assert sorted(path.name for path in (source / "features").iterdir()) == [
        f"batch-{number}.jsonl.gz" for number in range(3)
    ]
    assert [row["index"] for row in rows["features"]] == [str(index) for index in range(40)]
    with FeatureStore(folder) as store:
        for row in rows["features"]:
            assert_row_is_the_features(row, store, saved, rows["activations"])
    ids = [row["id"] for kind in ("activations", "explanations") for row in rows[kind]]
    assert len(set(ids)) == len(ids) and all(len(each) == 25 for each in ids)
    explained = [(row["index"], row["description"]) for row in rows["explanations"]]
    assert explained == [("7", "kings"), ("7", "royalty"), ("30", "rivers")]
    assert "by Ada, by hand, score 0.5" in rows["explanations"][0]["notes"]
    for label in book.all():
        book.delete(label.id)
    assert import_explanations(folder, source).written == 3
    assert [label.text for label in book.all()] == ["kings", "royalty", "rivers"]


def assert_row_is_the_features(row, store, saved, activations):
    record = store.feature(int(row["index"]), None)
    decoder = saved.dictionary.W_dec[record.id]
    assert torch.equal(torch.tensor(row["vector"]), decoder)
    assert row["hookName"] == HOOK
    assert row["topkCosSimIndices"] == [near.feature for near in record.decoder_neighbours]
    others = saved.dictionary.W_dec[row["topkCosSimIndices"]]
    cosines = torch.nn.functional.cosine_similarity(others, decoder[None])
    np.testing.assert_allclose(row["topkCosSimValues"], cosines, rtol=1e-4, atol=1e-6)
    assert row["maxActApprox"] == record.max_act
    assert row["frac_nonzero"] == record.density
    assert sum(row["freq_hist_data_bar_heights"]) == record.n_active
    assert row["pos_str"] == [score.text for score in record.logit_lens.top]
    examples = list(record.top_examples)
    examples += [example for group in record.quantile_groups for example in group.examples]
    mine = [each for each in activations if each["index"] == row["index"]]
    assert [each["tokens"] for each in mine] == [list(example.texts) for example in examples]
    for each, example in zip(mine, examples, strict=True):
        np.testing.assert_allclose(each["values"], example.activations, rtol=1e-5)
        assert each["values"][each["maxValueTokenIndex"]] == each["maxValue"] > 0
        assert each["values"][each["qualifyingTokenIndex"]] > 0
        assert each["binMin"] <= each["binMax"] <= row["maxActApprox"]


def test_neuronpedia_gets_the_same_bytes_again_and_nothing_of_before(
    run, tiny_model, text_file, tmp_path, capsys
):
    folder, out = dictionary_folders([run])[0], tmp_path / "out"
    build_features([folder], FeaturesConfig(n_tokens=200, device="cpu"))
    given = ["export", str(folder), "--to", "neuronpedia", "--name", "My set", "--out", str(out)]
    assert main(given) == 0
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (source,) = out.glob("*/*")
    assert source.name == "1-my-set"
    (source / "activations" / "batch-9.jsonl.gz").write_bytes(b"of a wider dictionary")
    assert main(given) == 2
    assert main([*given, "--overwrite"]) == 0
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files
    save(folder, tiny_model, text_file, seed=5)
    capsys.readouterr()
    assert main([*given, "--overwrite"]) == 2
    assert "built from a different checkpoint" in capsys.readouterr().err


def test_contexts_too_long_are_refused_before_the_model_is_loaded(run, monkeypatch):
    monkeypatch.setattr(pipeline.DataSpec, "load_model", lambda *given: pytest.fail("was loaded"))
    with pytest.raises(ConfigError, match="is longer than the 128 tokens"):
        build_features(dictionary_folders([run]), FeaturesConfig(context_length=4096))


def test_padding_is_read_by_no_feature(tmp_path, tiny_model):
    path = tmp_path / "x.jsonl"
    texts = [" ".join(["the king met the queen"] * (1 + i % 3)) + f" {i}" for i in range(20)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    text = TextConfig(source=str(path), held_out_fraction=0.0, one_document_per_context=True)
    folder = save(tmp_path / "d", tiny_model, path, 0, text=to_plain(text))
    [store_path] = build_features([folder], FeaturesConfig(device="cpu", batch_contexts=3))
    rows = []
    for document in texts:
        (ids,) = tiny_model.tokenize([document])
        for start in range(0, len(ids), LENGTH - 1):
            tokens = torch.tensor([[tiny_model.bos_id, *ids[start : start + LENGTH - 1]]])
            rows.append(tiny_model.capture(tokens, [HOOK])[HOOK][0, 1:])
    codes = load_dictionary(folder).dictionary.encode_dense(torch.cat(rows))
    with FeatureStore(store_path) as store:
        assert store.n_tokens == len(codes)
        padding = store.manifest["excluded"]["padding"]
        assert padding == len(rows) * (LENGTH - 1) - len(codes) > 0
        for feature in range(store.n_features):
            record = store.feature(feature)
            assert record.n_active == int((codes[:, feature] > 0).sum())
            assert record.max_act == pytest.approx(float(codes[:, feature].max()), rel=1e-4)
