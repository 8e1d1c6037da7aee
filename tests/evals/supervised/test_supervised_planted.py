"""A planted task on which every score of the suite has a known value."""

from __future__ import annotations

import json

import pytest


def value(planted, judged, contender, measure, edit="", mode="", k=None, threshold=None, attr=""):
    scores = planted.scores_by(judged[0])
    return scores[contender, measure, edit, mode, k, threshold, attr]


def test_identity_dictionary_is_sufficient_and_necessary(planted, judged):
    for measure in ("sufficiency", "necessity", "recovered"):
        assert value(planted, judged, "identity", measure) == pytest.approx(1)
    assert value(planted, judged, "identity", "l0") == 2


def test_empty_dictionary_has_the_floor_as_sufficiency_and_no_necessity(planted, judged):
    clean = value(planted, judged, "clean", "metric", mode="clean")
    ablated = value(planted, judged, "mean ablation", "metric", mode="mean ablation")
    assert clean == 2 and abs(ablated) < 1e-6
    assert value(planted, judged, "empty", "sufficiency") == pytest.approx(
        ablated / clean, abs=1e-6
    )
    assert value(planted, judged, "empty", "necessity") == pytest.approx(0, abs=1e-6)
    assert value(planted, judged, "empty", "recovered") == pytest.approx(0, abs=1e-6)


def test_supervised_dictionaries_are_perfect_here(planted, judged):
    for name in ("supervised mse", "supervised mean"):
        assert value(planted, judged, name, "sufficiency") == pytest.approx(1, abs=1e-5)
        assert value(planted, judged, name, "necessity") == pytest.approx(1, abs=1e-5)
        for edit in ("a", "b"):
            assert value(planted, judged, name, "accuracy", edit, "supervised") == 1
            assert value(planted, judged, name, "distance", edit, "supervised") < 1e-5
    # e_a − 1/6: squared norms 4·(5/6) of a and 3/4 of b, orthogonal to one another.
    share = (4 * 5 / 6) / (4 * 5 / 6 + 3 / 4)
    found = value(planted, judged, "supervised mse", "weight_removed", "a", "supervised")
    assert found == pytest.approx(share, abs=1e-5)


def test_edits_of_the_identity_dictionary_by_k(planted, judged):
    accuracy = {
        (mode, k): value(planted, judged, "identity", "accuracy", "a", mode, k)
        for mode, k in (("agnostic", 1), ("agnostic", 2), ("agnostic", 10), ("aware", 2))
    }
    # One move leaves two directions level or none; two moves are the whole edit.
    assert accuracy["agnostic", 2] == accuracy["agnostic", 10] == accuracy["aware", 2] == 1
    weight = value(planted, judged, "identity", "weight_removed", "a", "agnostic", 2)
    assert weight == pytest.approx(4 / 5)
    assert value(planted, judged, "identity", "weight_removed", "b", "aware", 2) == pytest.approx(
        1 / 5
    )
    assert value(planted, judged, "identity", "distance", "a", "agnostic", 2) == 0
    assert ("identity", "accuracy", "a", "aware", 1, None, "") not in planted.scores_by(judged[0])


def test_cause_and_isolation_are_told_apart(planted, judged):
    assert value(planted, judged, "identity", "cause", "a", "agnostic", 2) == 1
    assert value(planted, judged, "identity", "isolation", "a", "agnostic", 2) is None
    assert value(planted, judged, "identity", "isolation", "b", "agnostic", 2) == 1
    assert value(planted, judged, "identity", "cause", "b", "agnostic", 2) is None
    assert value(planted, judged, "clean", "accuracy", "a", "clean") == 0
    assert value(planted, judged, "clean", "accuracy", "b", "clean") == 1
    assert value(planted, judged, "ground truth", "accuracy", "a", "ground truth") == 1


def test_weights_of_a_dictionary_without_active_latents_are_counted_not_averaged(planted, judged):
    assert value(planted, judged, "empty", "weight_removed", "a", "agnostic", 2) is None
    assert value(planted, judged, "empty", "n_without_weight", "a", "agnostic", 2) == 96
    assert value(planted, judged, "empty", "accuracy", "a", "agnostic", 10) == 0


def test_trade_off_is_relative_to_the_supervised_edit_and_guarded(planted, judged):
    w_sup = value(planted, judged, "supervised mse", "weight_removed", "a", "supervised")
    found = value(planted, judged, "identity", "tradeoff_weight", "a", "agnostic", 2)
    assert found == pytest.approx((0.8 - w_sup) / (1 - w_sup))
    assert value(planted, judged, "identity", "tradeoff_accuracy", "a", "agnostic", 2) == 1
    # Editing b changes no prediction, so there is nothing to be relative to.
    assert value(planted, judged, "identity", "tradeoff_accuracy", "b", "agnostic", 2) is None


def test_interpretable_latents_and_their_removal(planted, judged):
    assert value(planted, judged, "identity", "n_live") == 10
    assert value(planted, judged, "identity", "n_interpretable", threshold=0.8) == 10
    for threshold in (0.2, 0.8):
        kept = value(planted, judged, "identity", "kept_sufficiency", threshold=threshold)
        removed = value(planted, judged, "identity", "removed_necessity", threshold=threshold)
        assert kept == pytest.approx(1)
        # All directions are taken away, so nothing tells the answers apart.
        assert removed == pytest.approx(1, abs=1e-6)
    assert value(planted, judged, "identity", "codes_sufficient", "a", threshold=0.6) == 1
    assert value(planted, judged, "identity", "codes_complete", "a", threshold=0.6) == 1


def test_an_always_on_latent_is_not_interpretable(planted, judged):
    assert value(planted, judged, "always", "n_live") == 4
    assert value(planted, judged, "always", "n_always_on") == 1
    assert value(planted, judged, "always", "n_interpretable", threshold=0.5) == 3


def test_occlusion_counts_values_with_latents(planted, judged):
    for attribute, found in (("a", 3), ("b", 0)):
        assert (
            value(planted, judged, "always", "values_found", threshold=0.8, attr=attribute) == found
        )
    assert value(planted, judged, "identity", "values_found", threshold=0.8, attr="a") == 6
    assert value(planted, judged, "identity", "n_values", attr="b") == 4
    assert value(planted, judged, "identity", "missing_f1", attr="b") == 0
    assert value(planted, judged, "empty", "missing_f1", attr="b") == 1


def test_files_of_a_run(judged):
    from pyarrow import parquet

    _, result, out = judged
    content = json.loads((out / "supervised.json").read_text())
    assert content["suite"] == "supervised" and len(content["metrics"]) == len(result.metrics)
    prompts = parquet.read_table(out / result.item_files["prompts"]).to_pylist()
    truth = [row for row in prompts if row["variant"].startswith("ground truth")]
    assert len(truth) == 2 * 96 and all(row["kl"] < 1e-6 for row in truth)
    latents = parquet.read_table(out / result.item_files["latents"]).to_pylist()
    words = {row["interpretation"] for row in latents if row["dictionary"] == "identity"}
    assert "a is a0" in words and "b is b3" in words
    page = (out / "supervised.html").read_text()
    for title in ("Test 1:", "Test 2:", "Test 3:", "Occlusion:"):
        assert title in page
