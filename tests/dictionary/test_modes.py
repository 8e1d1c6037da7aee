"""The modes of gradient_topk dictionaries: literally, against training's selection, refusals."""

import pytest
import torch

from saelab.dictionary import (
    Dictionary,
    InferenceModes,
    has_inference_modes,
    load_dictionary,
    save_dictionary,
)
from saelab.errors import ArtifactError
from saelab.training.interface import DictionarySettings, Normalisation, TrainingBatch
from saelab.training.methods.gradient_topk import GradientTopK, GradientTopKOptions

D_IN, D_SAE, K = 12, 64, 5
INFERENCE = {
    "beta": 0.8,
    "gradient_rms": 2e-3,
    "gradient_scale_per_token": 0.0,
    "threshold": 1.5,
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_topk(**changes):
    W_dec = torch.nn.functional.normalize(draw(D_SAE, D_IN, seed=1), dim=1)
    tensors = {"W_enc": W_dec.T + 0.1 * draw(D_IN, D_SAE, seed=2), "W_dec": W_dec}
    tensors |= {"b_dec": draw(D_IN, seed=3), "b_enc": 0.1 * draw(D_SAE, seed=4)}
    return Dictionary(**({"architecture": "topk", "k": K} | tensors | changes))


@pytest.fixture
def saved(tmp_path):
    """A function that saves a dictionary with what training recorded, and loads it again."""

    def save(dictionary=None, method="gradient_topk", **changes):
        inference = {k: v for k, v in (INFERENCE | changes).items() if v != "left out"}
        training = {"method": method, "inference": inference if method == "gradient_topk" else {}}
        save_dictionary(
            tmp_path / "sae",
            dictionary or random_topk(),
            self_test_inputs=draw(16, D_IN),
            training=training,
            made_from={"model": "tiny", "hook_point": "blocks.1.hook_resid_post"},
        )
        return load_dictionary(tmp_path / "sae")

    return save


def inputs(rows=700):
    """More rows than one chunk, and gradients of which one row is zero."""
    x, gradients = draw(rows, D_IN, seed=5), 2e-3 * draw(rows, D_IN, seed=6)
    gradients[3] = 0
    return x, gradients


def literal(dictionary, x, gradients, mode, per_token=False):
    """The formulas of the module docstring, dense and in float64."""
    t = {name: tensor.double() for name, tensor in dictionary.tensors().items()}
    z = (x.double() - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    if mode == "threshold":
        return torch.where(z > INFERENCE["threshold"], z, 0.0)
    g = gradients.double()
    rms = g.square().mean(1, keepdim=True).sqrt().clamp_min(1e-30) if per_token else 2e-3
    score = z if mode == "plain" else z * (1 + 0.8 * (g / rms @ t["W_dec"].T).abs())
    chosen = score.topk(K, dim=1).indices
    return torch.zeros_like(z).scatter(1, chosen, z.gather(1, chosen).relu())


@pytest.mark.parametrize("per_token", [False, True])
def test_each_mode_is_its_formula(saved, per_token):
    dictionary = saved(gradient_scale_per_token=float(per_token))
    modes, (x, gradients) = InferenceModes(dictionary), inputs()
    found = {
        "plain": modes.plain(x),
        "gradient_assisted": modes.gradient_assisted(x, gradients),
        "threshold": modes.threshold(x),
    }
    for mode, codes in found.items():
        expected = literal(dictionary.dictionary, x, gradients, mode, per_token)
        assert torch.equal(codes.to_dense() > 0, expected > 0), mode
        torch.testing.assert_close(codes.to_dense().double(), expected, rtol=1e-4, atol=1e-5)
        assert bool((codes.value > 0).all()), mode
    plain, assisted = found["plain"].to_dense(), found["gradient_assisted"].to_dense()
    assert not torch.equal(plain > 0, assisted > 0)
    torch.testing.assert_close(plain[3], assisted[3])


def test_beta_zero_is_plain_bit_for_bit_and_shuffled_gradients_choose_otherwise(saved):
    x, gradients = inputs()
    none = InferenceModes(saved(beta=0.0))
    assert torch.equal(none.plain(x).to_dense(), none.gradient_assisted(x, gradients).to_dense())
    modes = InferenceModes(saved())
    own, other = (
        modes.gradient_assisted(x, g).to_dense() for g in (gradients, gradients.roll(1, 0))
    )
    assert not torch.equal(own > 0, other > 0)


def test_the_threshold_mode_is_a_jumprelu_dictionary_on_the_same_weights(saved):
    dictionary = saved()
    modes = InferenceModes(dictionary)
    jumprelu = modes.threshold_dictionary()
    assert jumprelu.architecture == "jumprelu"
    assert torch.equal(jumprelu.threshold, torch.full((D_SAE,), INFERENCE["threshold"]))
    assert jumprelu.W_enc.data_ptr() == dictionary.dictionary.W_enc.data_ptr()
    x, _ = inputs()
    assert torch.equal(jumprelu.encode_dense(x), modes.threshold(x).to_dense())


@pytest.mark.parametrize(("scale", "boosted"), [("all", False), ("token", False), ("all", True)])
def test_the_modes_repeat_what_training_selected(saved, scale, boosted):
    """The whole way: learn, calibrate, fold, save, load; in raw units what was in normalised."""
    size = DictionarySettings(
        d_in=D_IN, d_sae=D_SAE, k=K, seed=0, batch_rows=256, n_steps=9, product_dtype=None
    )
    options = GradientTopKOptions(
        beta=1.3, beta_warmup_fraction=0.0, gradient_scale=scale, decode_boosted=boosted
    )
    method = GradientTopK(size, options)
    with torch.no_grad():
        method.weights.b_enc.normal_(std=0.3)
    x, gradients = 7 * draw(256, D_IN, seed=7) + 3, 1e-4 * draw(256, D_IN, seed=8)
    normalisation = Normalisation(x.mean(0), 1 / float((x - x.mean(0)).std()))
    rows = normalisation.apply(x)
    batch = TrainingBatch(rows, rows, gradients, step=5, normalisation=normalisation)
    chosen = method.losses(batch).codes
    method.calibrate(rows)
    settings = method.inference_settings(normalisation)
    modes = InferenceModes(saved(method.to_dictionary(normalisation), **settings))
    assisted = modes.gradient_assisted(x, gradients).to_dense()
    torch.testing.assert_close(
        assisted, chosen.to_dense().detach() / normalisation.scale, rtol=1e-4, atol=1e-4
    )
    assert modes.threshold(x).l0().double().mean().item() == pytest.approx(K, abs=1 / 256)


def test_a_dictionary_without_gradient_settings_is_refused(saved):
    plain = saved(method="topk")
    assert not has_inference_modes(plain)
    with pytest.raises(
        ArtifactError, match=r"records no gradient settings \(its method is 'topk'\)"
    ):
        InferenceModes(plain)
    dictionary = saved(beta="left out")
    assert has_inference_modes(dictionary)
    with pytest.raises(ArtifactError, match=r"no gradient settings .*--methods gradient_topk"):
        InferenceModes(dictionary)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": -1.0 / 3}, r"was never calibrated \(it is recorded as -0\.333333\)"),
        ({"gradient_rms": 0.0}, r"cannot be used \(gradient_rms = 0\.0\): train it again"),
        ({"beta": -1.0, "threshold": "high"}, r"\(beta = -1\.0, threshold = 'high'\)"),
        ({"dictionary": random_topk(architecture="relu", k=None)}, "is a 'relu' dictionary"),
        (
            {"dictionary": random_topk(input_normalisation="constant_norm_rescale")},
            "input normalisation 'constant_norm_rescale'",
        ),
    ],
    ids=["uncalibrated", "no scale", "two at once", "relu", "normalised"],
)
def test_settings_that_cannot_be_used_are_refused(saved, changes, message):
    with pytest.raises(ArtifactError, match=message):
        InferenceModes(saved(**changes))


def test_no_rows_have_no_codes(saved):
    modes = InferenceModes(saved())
    empty = torch.zeros(0, D_IN)
    for codes in (modes.gradient_assisted(empty, empty), modes.threshold(empty)):
        assert (codes.n_rows, codes.value.numel()) == (0, 0)
