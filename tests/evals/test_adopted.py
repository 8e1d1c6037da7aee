"""Dictionaries of adopted activations: what needs no model works, what needs one says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pyarrow import parquet

from saelab.cache import adopt
from saelab.cache.adopt import adopt_activations
from saelab.cache.config import AdoptConfig
from saelab.dictionary import load_dictionary
from saelab.errors import ConfigError, SaelabError
from saelab.evals.command import evaluate
from saelab.features.config import FeaturesConfig
from saelab.features.pipeline import build_features
from saelab.features.reader import FeatureStore
from saelab.training.config import TrainConfig
from saelab.training.run import train

CONTEXTS, POSITIONS, D_IN = 240, 3, 8
VALUES = np.random.default_rng(1).normal(size=(CONTEXTS, POSITIONS, D_IN)).astype("f4")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two seeds trained on adopted contexts; the cache and the run lie beside one another."""
    folder = tmp_path_factory.mktemp("adopted")
    np.save(folder / "patches.npy", VALUES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adopt, "SHARD_ROWS", 160)
        adopt_activations([folder / "patches.npy"], folder / "cache", AdoptConfig(name="a camera"))
    config = TrainConfig(
        cache=folder / "cache",
        out=folder / "run",
        d_sae=(24,),
        k=(3,),
        seeds=(0, 1),
        batch_rows=64,
        n_tokens=640,
    )
    train(config)
    return folder


def dictionaries(folder):
    return sorted((folder / "run" / "dictionaries").iterdir())


def held_out_rows(folder):
    """The rows that no training cache holds, by their values."""
    from saelab.cache.reader import open_cache

    (training,) = open_cache(folder / "cache").iterate(10_000)
    seen = {row.numpy().tobytes() for row in training.activations}
    rows = VALUES.reshape(-1, D_IN)
    return np.array([row for row in rows if row.tobytes() not in seen])


def test_core_judges_the_held_out_rows_without_losses(trained):
    first, _ = dictionaries(trained)
    [result] = evaluate("core", first, overwrite=True)
    rows = torch.tensor(held_out_rows(trained))
    assert len(rows) == 24 * POSITIONS
    dictionary = load_dictionary(first).dictionary
    error = (rows - dictionary(rows)).double().square().sum()
    variance = (rows.double() - rows.double().mean(0)).square().sum()
    assert result.value("fvu") == pytest.approx(float(error / variance), rel=1e-5)
    assert result.value("l0_mean") == 3
    assert result.value("n_rows") == len(rows)
    assert "loss_recovered_mean" not in {metric.name for metric in result.metrics}
    assert any("No language model" in note for note in result.notes)
    [again] = evaluate("core", first)
    assert again.created == result.created


def test_the_caches_may_have_moved(trained, tmp_path):
    first, _ = dictionaries(trained)
    [here] = evaluate("core", first, overwrite=True)
    (trained / "cache").rename(tmp_path / "moved")
    try:
        with pytest.raises(SaelabError, match="--activations"):
            evaluate("core", first, out=tmp_path / "a")
        [there] = evaluate("core", first, out=tmp_path / "b", activations=tmp_path / "moved")
    finally:
        (tmp_path / "moved").rename(trained / "cache")
    assert there.value("fvu") == here.value("fvu")


def test_rows_of_other_files_are_refused(trained, tmp_path):
    np.save(tmp_path / "other.npy", VALUES + 1)
    adopt_activations([tmp_path / "other.npy"], tmp_path / "cache", AdoptConfig())
    with pytest.raises(SaelabError, match="other rows"):
        evaluate(
            "core", dictionaries(trained)[0], out=tmp_path / "a", activations=tmp_path / "cache"
        )


def test_consistency_ranks_latents_on_the_held_out_rows(trained):
    results = evaluate("consistency", dictionaries(trained), overwrite=True)
    assert [result.made_from["rows"] for result in results] == ["held-out adopted rows"] * 2


def test_a_comparison_leaves_what_a_model_would_tell_undefined(trained, tmp_path):
    from saelab.evals.compare.suite import CompareConfig, run_compare

    config = CompareConfig(out=tmp_path / "compared", steering=False, overwrite=True)
    (result,) = run_compare([trained / "run"], config)
    numbers = {metric.name.rsplit("/", 1)[1] for metric in result.metrics}
    assert "fvu" in numbers and "kl" not in numbers
    members = parquet.read_table(config.out / result.item_files["dictionaries"]).to_pylist()
    assert len(members) == 2
    for name in ("fvu", "dead_fraction", "l0_std", "mcs_share"):
        assert all(member[name] is not None for member in members)


@pytest.mark.parametrize("suite", ["steering", "dark-matter"])
def test_what_needs_a_model_says_so(trained, suite):
    with pytest.raises(SaelabError, match="needs the language model"):
        evaluate(suite, dictionaries(trained)[:1])


def test_recovery_says_that_nobody_knows_true_features(trained):
    with pytest.raises(SaelabError, match="not on planted features, so there are no true features"):
        evaluate("recovery", dictionaries(trained)[:1])
    assert not (dictionaries(trained)[0] / "evals" / "recovery.json").exists()


def test_text_needs_a_model_and_a_model_needs_text(trained, tmp_path):
    first, _ = dictionaries(trained)
    with pytest.raises(ConfigError, match="name it with --model"):
        evaluate("core", first, text_source="sotu", out=tmp_path)
    with pytest.raises(ConfigError, match="--text-source too"):
        evaluate("core", first, model="smollm2-135m", out=tmp_path)


def test_features_are_shown_by_the_labels_of_their_rows(trained):
    first, _ = dictionaries(trained)
    labels = trained / "labels.csv"
    names = [f"photo {context} of {'cat' if context % 2 else 'dog'}" for context in range(CONTEXTS)]
    labels.write_text("id,label\n" + "".join(f"{i},{name}\n" for i, name in enumerate(names)))
    config = FeaturesConfig(labels=labels)
    [path] = build_features([first], config)
    codes = load_dictionary(first).dictionary.encode(torch.tensor(VALUES.reshape(-1, D_IN)))
    dense = codes.to_dense().numpy()
    held = {row.tobytes() for row in held_out_rows(trained)}
    kept = np.array([row.tobytes() not in held for row in VALUES.reshape(-1, D_IN)])
    dense[~kept] = 0
    with FeatureStore(path) as store:
        assert store.n_tokens == kept.sum()
        for feature in range(store.n_features):
            record = store.feature(feature)
            assert record.n_active == (dense[:, feature] > 0).sum()
            assert record.logit_lens is None
            if not record.n_active:
                continue
            best = int(dense[:, feature].argmax())
            context, position = divmod(best, POSITIONS)
            top = record.top_examples[0]
            assert top.texts == (f"{names[context]} · position {position}",)
            assert top.value == pytest.approx(dense[best, feature], rel=1e-5)
        assert store.search("photo")


def test_rows_without_labels_are_named_by_their_file(trained):
    _, second = dictionaries(trained)
    [path] = build_features([second], FeaturesConfig(split="held_out"))
    with FeatureStore(path) as store:
        assert store.n_tokens == 24 * POSITIONS
        texts = store.context_pieces(0).texts
    assert len(texts) == 1 and texts[0].endswith("of patches.npy")


def test_labels_that_do_not_fit_are_refused(trained, tmp_path):
    first, _ = dictionaries(trained)
    files = {
        "short.txt": ("a\nb\n", "has 2 labels"),
        "none.csv": ("x,y\n1,2\n", "name one with --label-column"),
        "broken.jsonl": ('{"label": "a"}\n{', "line 2 of"),
        "nested.jsonl": ('{"label": ["a"]}\n', "expected text or a number"),
        "labels.doc": ("a", "expected a .txt"),
    }
    for name, (content, words) in files.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(ConfigError) as refusal:
            build_features([first], FeaturesConfig(labels=tmp_path / name))
        assert words in str(refusal.value)


def test_tokens_are_shown_as_text_of_their_contexts(tmp_path):
    tokens = np.arange(CONTEXTS * POSITIONS).reshape(CONTEXTS, POSITIONS)
    np.savez(tmp_path / "a.npz", patches=VALUES, token_ids=tokens)
    adopt_activations([tmp_path / "a.npz"], tmp_path / "cache", AdoptConfig())
    config = TrainConfig(
        cache=tmp_path / "cache",
        out=tmp_path / "run",
        d_sae=(8,),
        k=(2,),
        batch_rows=64,
        n_tokens=128,
    )
    train(config)
    [path] = build_features(dictionaries(tmp_path), FeaturesConfig())
    with FeatureStore(path) as store:
        ids = store.tokens(0).tolist()
        assert ids in tokens.tolist()
        assert store.context_pieces(0).texts == tuple(f"[{token}]" for token in ids)
