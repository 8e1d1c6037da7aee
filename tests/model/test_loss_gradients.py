"""Gradients at hook points against plain Hugging Face in float64, and what they fall back to."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch.nn import functional

from saelab.model import gradients
from saelab.model.language_model import load_language_model

SEVERAL = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"]
SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def some_tokens(model, contexts=3, length=20):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, model.d_vocab, (contexts, length), generator=generator)


def reference_gradients(folder, tokens, dtype=torch.float64):
    """By plain autograd: of the summed loss, with respect to the input of every block."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    output = model(tokens, output_hidden_states=True)
    loss = functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"
    )
    streams = output.hidden_states[:-1]
    return [x.detach() for x in streams], torch.autograd.grad(loss, streams)


def error(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def agree(model, folder, names, tolerance=1e-6):
    """Every gradient equals the reference's; blocks.N.hook_resid_post is the input of N + 1."""
    tokens = some_tokens(model)
    streams, expected = reference_gradients(folder, tokens)
    found = model.capture_with_gradients(tokens, names)
    for name in names:
        index = int(name.split(".")[1]) + name.endswith("post")
        assert error(found[name][0], streams[index]) < tolerance, name
        assert error(found[name][1], expected[index]) < tolerance, name
        assert not found[name][1].requires_grad and found[name][1].dtype == model.dtype
    return True


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request, tiny_model_folder, tiny_gpt2_folder):
    return tiny_model_folder if request.param == "llama" else tiny_gpt2_folder


@pytest.fixture(scope="module")
def exact(folder):
    return load_language_model(str(folder), dtype="float64", device="cpu")


# Llama's norm computes in float32 at any dtype, hence 1e-6 and not float64's own rounding.


@pytest.mark.parametrize("names", [SEVERAL, SEVERAL[:1], SEVERAL[1:2], SEVERAL[2:]])
def test_gradients_equal_plain_hugging_face(exact, folder, names):
    assert exact._loss_gradients._head is not None and exact._loss_gradients._lean is not None
    assert agree(exact, folder, names)


def test_gradients_by_autograd_alone_are_the_same(folder):
    model = load_language_model(str(folder), dtype="float64", device="cpu")
    model._loss_gradients.__dict__["_head"] = None
    assert agree(model, folder, SEVERAL)


def test_gradients_without_lean_backward_are_the_same(folder, monkeypatch):
    monkeypatch.setattr(gradients, "PROBE_AGREEMENT", 0)
    model = load_language_model(str(folder), dtype="float64", device="cpu")
    assert agree(model, folder, SEVERAL)
    assert model._loss_gradients._lean is None


def test_an_architecture_that_changes_activations_in_place_is_left_to_autograd(
    tiny_model_folder, monkeypatch, caplog
):
    def refuse(self):
        raise RuntimeError("modified by an inplace operation")

    monkeypatch.setattr(gradients.LeanBackward, "active", refuse)
    model = load_language_model(str(tiny_model_folder), dtype="float64", device="cpu")
    with caplog.at_level("INFO", logger="saelab"):
        assert agree(model, tiny_model_folder, SEVERAL)
    assert "left to autograd: modified by an inplace operation" in caplog.text


@pytest.mark.parametrize("pass_bytes", [1, 48 * 32 * 20 * 4, 1 << 30])
def test_gradients_do_not_depend_on_contexts_per_pass(exact, monkeypatch, pass_bytes):
    tokens = some_tokens(exact, contexts=5)
    expected = exact.capture_with_gradients(tokens, SEVERAL)
    monkeypatch.setattr(gradients, "PASS_BYTES", pass_bytes)
    found = exact.capture_with_gradients(tokens, SEVERAL)
    for name in SEVERAL:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-12)
    assert exact.capture_with_gradients(tokens, []) == {}


def test_hook_points_around_the_head(exact):
    """What the head reads is stopped at, what it writes is not: both routes give the same."""
    tokens = some_tokens(exact)
    read, written = "unembed.hook_in", "unembed.hook_out"
    alone = exact.capture_with_gradients(tokens, [read])[read]
    both = exact.capture_with_gradients(tokens, [read, written])
    torch.testing.assert_close(both[read], alone, rtol=1e-9, atol=1e-12)
    logits = exact.run(tokens).logits[:, :-1]
    expected = torch.softmax(logits, -1) - functional.one_hot(tokens[:, 1:], exact.d_vocab)
    torch.testing.assert_close(both[written][1][:, :-1], expected, rtol=1e-6, atol=1e-9)


def test_the_bridge_route_starts_at_a_block(tiny_gpt2_folder):
    model = load_language_model(str(tiny_gpt2_folder), dtype="float64", device="cpu")
    served = "blocks.1.ln1.hook_normalized"
    assert not model._forward.is_plain(served)
    tokens = some_tokens(model)
    names = ["blocks.1.hook_resid_pre", served, "blocks.1.hook_resid_post"]
    _, expected = reference_gradients(tiny_gpt2_folder, tokens)
    found = model.capture_with_gradients(tokens, names)
    assert error(found[names[0]][1], expected[1]) < 1e-9
    alone = model.capture_with_gradients(tokens, [served])[served]
    torch.testing.assert_close(found[served], alone, rtol=1e-9, atol=1e-12)


def test_blocks_before_the_first_hook_point_record_nothing(tiny_model):
    seen = {}
    layers = tiny_model._forward.plain.model.layers
    handles = [
        layer.register_forward_hook(lambda m, a, out, i=i: seen.update({i: out.requires_grad}))
        for i, layer in enumerate(layers)
    ]
    tokens = some_tokens(tiny_model)
    try:
        tiny_model.capture_with_gradients(tokens, ["blocks.1.hook_resid_post"])
        assert seen == {0: False, 1: False, 2: True}
        tiny_model.capture_with_gradients(tokens, ["blocks.1.hook_resid_mid"])
        assert seen == {0: False, 1: True, 2: True}
    finally:
        for handle in handles:
            handle.remove()


# Heads that are more than a linear layer.


@pytest.fixture
def tiny(tmp_path, tiny_model_folder):
    """Makes the folder of a random model of another architecture, with the same tokenizer."""

    def make(config_name, **more):
        for path in tiny_model_folder.glob("*token*"):
            shutil.copy(path, tmp_path)
        return write_model(tmp_path, config_name, **more)

    return make


def write_model(folder, config_name, **more):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{config_name}Config")(**SIZES, **more)
    model = getattr(transformers, f"{config_name}ForCausalLM")(config)
    if getattr(model.lm_head, "bias", None) is not None:
        torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(folder)
    return folder


def test_a_head_with_a_bias_is_differentiated_by_hand(tiny):
    """Phi: a bias, and attention and MLP side by side that read the same norm."""
    folder = tiny("Phi")
    model = load_language_model(str(folder), dtype="float64", device="cpu")
    assert agree(model, folder, SEVERAL)
    assert model._loss_gradients._head.bias is not None


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("Gemma2", {"num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 30.0}),
        ("Granite", {"num_key_value_heads": 2, "logits_scaling": 4.0}),
    ],
)
def test_capped_and_scaled_logits_are_left_to_autograd(tiny, name, more, caplog):
    folder = tiny(name, **more)
    model = load_language_model(str(folder), dtype="float64", device="cpu")
    with caplog.at_level("INFO", logger="saelab"):
        assert agree(model, folder, SEVERAL)
    assert model._loss_gradients._head is None
    assert "the logits are not a linear layer's" in caplog.text


def test_a_cap_too_wide_to_show_in_bfloat16_is_found(tiny):
    """Logits of a random model are small: 30·tanh(x/30) rounds to x, and is a cap all the same."""
    folder = tiny("Gemma2", num_key_value_heads=2, head_dim=8, final_logit_softcapping=30.0)
    model = load_language_model(str(folder), dtype="bfloat16", device="cpu")
    assert model._loss_gradients._head is None


# bfloat16.


def test_gradients_in_bfloat16_are_as_exact_by_hand_as_by_autograd(tiny_model_folder):
    tokens = torch.arange(3, 3 + 4 * 64).reshape(4, 64)
    _, expected = reference_gradients(tiny_model_folder, tokens)
    errors = []
    for by_hand in (True, False):
        model = load_language_model(str(tiny_model_folder), dtype="bfloat16", device="cpu")
        if not by_hand:
            model._loss_gradients.__dict__["_head"] = None
        found = model.capture_with_gradients(tokens, SEVERAL)[SEVERAL[0]][1]
        errors.append(error(found, expected[0]))
    assert errors[0] < 1.1 * errors[1] and errors[0] < 0.05, errors
