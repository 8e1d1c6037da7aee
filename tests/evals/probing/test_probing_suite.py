"""The suite on a tiny model: planted labels, the store, both poolings, what is refused."""

import numpy as np
import pyarrow.parquet
import pytest
import torch

from saelab.cache.reader import open_cache
from saelab.cli import main
from saelab.dictionary import load_dictionary
from saelab.errors import ArtifactError, ConfigError, TextError
from saelab.evals.labelled.activations import ActivationStore, pooled_codes
from saelab.evals.labelled.examples import take_examples
from saelab.evals.probing.probes import mean_difference
from saelab.evals.probing.suite import ProbingConfig, run_probing
from saelab.text.labelled import LabelledText
from tests.conftest import WORDS

HOOK = "blocks.1.hook_resid_post"


def some_texts(n, seed=0):
    generator = np.random.default_rng(seed)
    drawn = {" ".join(generator.choice(WORDS, int(generator.integers(2, 12)))) for _ in range(n)}
    return sorted(drawn)


def write_set(path, labelled):
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in labelled))
    return str(path)


def store_of(model, folder, pooling="last", **changes):
    settings = {"max_tokens": 20, "batch_tokens": 64, **changes}
    return ActivationStore(folder=folder, model=model, pooling=pooling, **settings)


def examples_of(given, labels=None):
    labels = labels or ["a", "b"] * (len(given) // 2)
    given = given[: len(labels)]
    text = LabelledText(name="some texts", texts=tuple(given), labels=tuple(labels))
    return take_examples(text, len(given), 0)


def test_rows_are_those_of_each_text_alone(tiny_model, tmp_path):
    examples = examples_of(some_texts(30))
    for pooling in ("last", "mean"):
        store = store_of(tiny_model, tmp_path, pooling, max_tokens=9)
        found = store.rows_of(examples, [HOOK, "blocks.0.hook_resid_post"])
        assert found.rows.shape[1] == 64 and found.n_examples == len(examples.texts)
        for index, text in enumerate(examples.texts):
            (ids,) = tiny_model.tokenize([text])
            ids = ids[-8:] if pooling == "last" else ids[:8]
            tokens = torch.tensor([[tiny_model.bos_id, *ids]])
            alone = tiny_model.capture(tokens, [HOOK])[HOOK][0]
            expected = alone[-1:] if pooling == "last" else alone[1:]
            given = found.rows[found.example == index][:, :32]
            torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)
            pooled = expected.double().mean(0).numpy()
            np.testing.assert_allclose(found.pooled()[index, :32], pooled, rtol=1e-4, atol=1e-5)
    cache = open_cache(store.folder_of(examples, HOOK), verify=True)
    assert cache.manifest["made_from"]["labelled"] == {"pooling": "mean", "max_tokens": 9}


def test_codes_are_pooled_over_tokens_not_made_of_pooled_activations(
    tiny_model, tmp_path, topk_dictionary
):
    dictionary = topk_dictionary()
    found = store_of(tiny_model, tmp_path, "mean").rows_of(examples_of(some_texts(20)), [HOOK])
    codes = pooled_codes(dictionary, found).toarray()
    dense = dictionary.encode_dense(found.rows).double()
    for index in range(found.n_examples):
        expected = dense[found.example == index].mean(0)
        np.testing.assert_allclose(codes[index], expected.numpy(), rtol=1e-5, atol=1e-6)
    assert (codes > 0).sum(1).max() > dictionary.k


def test_the_model_runs_once_and_a_damaged_store_is_said(tiny_model, tmp_path, monkeypatch):
    examples = examples_of(some_texts(20))
    store = store_of(tiny_model, tmp_path)
    first = store.rows_of(examples, [HOOK])
    monkeypatch.setattr(tiny_model, "capture", None)
    again = store.rows_of(examples, [HOOK])
    assert torch.equal(first.rows, again.rows) and first.content_hash == again.content_hash
    shard = store.folder_of(examples, HOOK) / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4] + b"oops")
    with pytest.raises(ArtifactError, match="or delete its folder, and it is made again"):
        store.rows_of(examples, [HOOK])


@pytest.fixture
def planted(tiny_model, tmp_path, topk_dictionary, save_trained):
    """A dictionary, and a file of texts labelled by whether one of its latents fires at the end."""
    folder = save_trained(topk_dictionary(), "planted")
    candidates = examples_of(some_texts(400))
    found = store_of(tiny_model, tmp_path / "look", max_tokens=32).rows_of(candidates, [HOOK])
    dictionary = load_dictionary(folder).dictionary
    codes = pooled_codes(dictionary, found).toarray()
    fires = codes > 0

    def margin(latent):
        """By how much it is the latent whose means differ most by whether it fires."""
        if not 0.2 < fires[:, latent].mean() < 0.8:
            return -1.0
        difference = mean_difference(codes, fires[:, latent])
        return difference[latent] / np.delete(difference, latent).max()

    latent = max(range(codes.shape[1]), key=margin)
    assert margin(latent) > 1
    labelled = list(zip(candidates.texts, fires[:, latent].astype(int), strict=True))
    return folder, latent, write_set(tmp_path / "planted.csv", labelled)


def test_a_planted_label_is_found_by_one_latent_and_kept_results_are_reused(
    planted, tmp_path, monkeypatch
):
    folder, latent, path = planted
    config = ProbingConfig(
        sets=(path,),
        n_train=80,
        n_test=60,
        ks=(1, 4),
        settings=("normal", "scarce", "imbalanced", "label-noise"),
        store=tmp_path / "store",
        device="cpu",
        controls=(),
    )
    (result,) = run_probing([folder], config, pages=False)
    assert result.value("auc_k1") == result.value("auc_k4") == 1
    assert result.value("accuracy_k1") == 1 and result.value("imbalanced_auc_k1") == 1
    assert result.value("channels_auc_k1") < 1
    assert abs(result.value("shuffled_auc_k4") - 0.5) < 0.35
    assert result.value("gain") >= 0 and result.value("gain_possible") >= 0
    rows = pyarrow.parquet.read_table(folder / "evals" / "probing_probes.parquet").to_pylist()
    picked = [r["latent"] for r in rows if r["features"] == "latents" and r["k"] == "1"]
    assert picked.count(latent) >= 0.75 * len(picked)
    # Probes on activations are kept: a second dictionary of the model trains none of them again.
    probes = {p: p.stat().st_mtime_ns for p in (tmp_path / "store" / "probes").iterdir()}
    assert len([p for p in probes if p.suffix == ".json"]) == 1
    (again,) = run_probing([folder], ProbingConfig(**vars(config) | {"overwrite": True}))
    assert {p: p.stat().st_mtime_ns for p in probes} == probes
    assert {m.name: m.value for m in again.metrics} == {m.name: m.value for m in result.metrics}
    assert [chart.name for chart in again.charts] == [
        "auc_by_k",
        "latents_and_activations",
        "gain_by_set",
    ]
    assert (folder / "evals" / "probing.html").stat().st_size > 10_000


def test_what_cannot_be_probed_is_said_in_a_line(planted, tmp_path, capsys):
    folder, _, path = planted
    few = write_set(tmp_path / "few.csv", [(f"text {i}", i % 2) for i in range(6)])
    command = ["eval", "probing", str(folder), "--sets"]
    assert main([*command, few])
    assert "has 3 different texts of label '0': at least 8 are needed" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "none.csv")])
    assert "does not exist" in capsys.readouterr().err
    assert main([*command, path, "--max-tokens", "500"])
    assert "max_tokens: 500 is more than the 128 tokens" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"ks: .* must be one or more different"):
        ProbingConfig(ks=(2, 2))
    with pytest.raises(TextError, match="163"):
        run_probing([folder], ProbingConfig(sets=("999",)))
