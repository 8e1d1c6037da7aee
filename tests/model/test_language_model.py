"""The language model against plain Hugging Face, float64 and finite differences."""

from __future__ import annotations

import pytest
import torch

from saelab.errors import ConfigError, ModelError
from saelab.model import devices, gradients
from saelab.model.language_model import load_language_model, next_token_loss

MIDDLE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def exact_norms():
    """Llama's norm as it is, less the float32 that transformers computes it in at any dtype."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    def forward(self, hidden_states):
        scale = torch.rsqrt(hidden_states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (hidden_states * scale)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaRMSNorm, "forward", forward)
        yield


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def exact(request, exact_norms, tiny_model_folder, tiny_gpt2_folder):
    """A tiny model in float64: what is left of a difference is a mistake, not rounding."""
    folder = tiny_model_folder if request.param == "llama" else tiny_gpt2_folder
    return load_language_model(str(folder), dtype="float64", device="cpu")


@pytest.fixture(scope="module")
def exact_gpt2(tiny_gpt2_folder):
    return load_language_model(str(tiny_gpt2_folder), dtype="float64", device="cpu")


def some_tokens(model, contexts=2, length=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, model.d_vocab, (contexts, length), generator=generator)


def plain_hugging_face(folder, dtype):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


# float32 differs from plain Hugging Face by nothing (it is the same code on the same weights);
# the tolerance only allows for another order of summation on other machines. float64 confirms
# that no larger difference hides behind it.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_residual_stream_equals_hugging_face(tiny_model_folder, dtype, tolerance):
    model = load_language_model(str(tiny_model_folder), dtype=dtype, device="cpu")
    tokens = some_tokens(model)
    reference = plain_hugging_face(tiny_model_folder, getattr(torch, dtype))
    with torch.no_grad():
        hidden = reference(tokens, output_hidden_states=True).hidden_states
    names = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", MIDDLE, "ln_final.hook_out"]
    found = model.capture(tokens, names)
    for name, expected in zip(names, hidden, strict=True):
        assert found[name].dtype == model.dtype
        torch.testing.assert_close(found[name], expected, rtol=tolerance, atol=tolerance)


def test_every_hook_point_equals_the_bridge(exact):
    """Both routes give the same tensor at every hook point, whichever of them serves it.

    The tolerance is float32's: the bridge takes Llama's softmax and norms in it at any dtype.
    """
    tokens = some_tokens(exact)
    bridge = exact._forward.bridge
    with torch.no_grad():
        _, cached = bridge.run_with_cache(tokens)
    names = [
        name
        for name in exact.hook_points()
        if not name.startswith(("blocks.0.attn.q", "blocks.0.ln", "blocks.2"))
    ]
    assert {MIDDLE, "blocks.0.attn.hook_z", "blocks.0.hook_mlp_out", "hook_embed"} <= set(names)
    served_plainly = 0
    for name in names:
        found = exact.capture(tokens, [name])[name]
        assert found.shape == (2, 12, exact.width_at(name)), name
        expected = cached[name].flatten(2)
        torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-5, atol=1e-5, msg=name)
        served_plainly += exact._forward._site(name) is not None
    assert served_plainly > len(names) / 2


def test_residual_attention_and_mlp_hooks_take_the_fast_route(exact):
    for kind in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"):
        assert exact._forward._site(f"blocks.1.hook_{kind}") is not None
    assert exact._forward._site("blocks.1.attn.hook_z") is not None


def test_a_wrong_plain_place_is_found_out(tiny_model, monkeypatch):
    """Were the two routes to disagree, the bridge would serve the hook point."""
    forward = tiny_model._forward
    wrong = forward._candidate("blocks.2.hook_mlp_out")
    monkeypatch.setattr(forward, "_sites", {})
    monkeypatch.setattr(forward, "_candidate", lambda name: wrong)
    assert forward._site("blocks.0.hook_mlp_out") is None
    assert forward._site("blocks.2.hook_mlp_out") is not None


def test_heads_are_flattened(tiny_model, tiny_gpt2):
    for model in (tiny_model, tiny_gpt2):
        assert model.width_at("blocks.0.attn.hook_z") == 32
        found = model.capture(some_tokens(model), ["blocks.0.attn.hook_z"])
        assert found["blocks.0.attn.hook_z"].shape == (2, 12, 32)
    assert tiny_model.width_at("blocks.0.attn.hook_k") == 16  # 2 key/value heads of 8


def test_capture_stops_after_the_last_hook_point(tiny_model):
    tiny_model.capture(some_tokens(tiny_model), [MIDDLE, "ln_final.hook_out"])
    ran = []
    plain = tiny_model._forward.plain
    watched = [*plain.model.layers, plain.model.norm, plain.lm_head]
    handles = [
        module.register_forward_hook(lambda m, a, o, index=index: ran.append(index))
        for index, module in enumerate(watched)
    ]
    try:
        tiny_model.capture(some_tokens(tiny_model), [MIDDLE])
        assert ran == [0, 1]
        ran.clear()
        tiny_model.capture(some_tokens(tiny_model), ["ln_final.hook_out"])
        assert ran == [0, 1, 2, 3]  # the norm, and no unembedding
    finally:
        for handle in handles:
            handle.remove()


def test_capture_of_nothing_and_of_the_same_twice(tiny_model):
    tokens = some_tokens(tiny_model)
    assert tiny_model.capture(tokens, []) == {}
    assert list(tiny_model.capture(tokens, [MIDDLE, MIDDLE])) == [MIDDLE]


def test_hooks_leave_no_trace(tiny_model):
    tokens = some_tokens(tiny_model)
    before = tiny_model.run(tokens).logits
    tiny_model.capture(tokens, [MIDDLE, "ln_final.hook_normalized"])
    tiny_model.capture_with_gradients(tokens, [MIDDLE])
    with pytest.raises(ZeroDivisionError):
        tiny_model.run(tokens, {MIDDLE: lambda x: x / (1 // 0)})
    assert torch.equal(tiny_model.run(tokens).logits, before)


def test_the_two_routes_share_their_weights(tiny_model):
    forward = tiny_model._forward
    plain = {id(parameter) for parameter in forward.plain.parameters()}
    bridged = {id(parameter) for parameter in forward.bridge.original_model.parameters()}
    assert plain == bridged
    assert not any(parameter.requires_grad for parameter in forward.plain.parameters())
    assert not forward.plain.training and not forward.bridge.training


# Gradients.


def directional_derivative(model, tokens, name, direction, epsilon=1e-5):
    """(loss(x + e v) - loss(x - e v)) / 2e with every loss summed; error O(e^2)."""
    up = model.run(tokens, {name: lambda x: x + epsilon * direction}).loss.sum()
    down = model.run(tokens, {name: lambda x: x - epsilon * direction}).loss.sum()
    return (up - down) / (2 * epsilon)


@pytest.mark.parametrize(
    "name",
    [
        "blocks.0.hook_resid_pre",
        "blocks.0.hook_attn_out",
        "blocks.0.attn.hook_z",
        "blocks.1.hook_mlp_out",
        MIDDLE,
        "ln_final.hook_out",
    ],
)
def test_gradient_equals_finite_difference(exact, name):
    tokens = some_tokens(exact)
    activation, gradient = exact.capture_with_gradients(tokens, [name])[name]
    torch.testing.assert_close(activation, exact.capture(tokens, [name])[name])
    direction = torch.randn(activation.shape, generator=torch.Generator().manual_seed(1))
    direction = direction.to(torch.float64)
    expected = directional_derivative(exact, tokens, name, direction)
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-6, atol=1e-8)


def test_several_gradients_at_once_equal_each_alone(exact):
    """The graph between hook points is kept: an early one still acts through a later one."""
    tokens = some_tokens(exact)
    names = ["blocks.0.attn.hook_z", "blocks.0.hook_resid_post", "blocks.1.hook_mlp_out", MIDDLE]
    together = exact.capture_with_gradients(tokens, names)
    for name in names:
        alone = exact.capture_with_gradients(tokens, [name])[name]
        torch.testing.assert_close(together[name], alone, rtol=1e-10, atol=1e-12)


def test_gradient_where_the_stream_goes_round_the_norm(exact):
    """resid_mid = resid_pre + attn_out, so the loss has the same gradient at both."""
    tokens = some_tokens(exact)
    middle, attention = "blocks.1.hook_resid_mid", "blocks.1.hook_attn_out"
    found = exact.capture_with_gradients(tokens, [middle, attention])
    alone = exact.capture_with_gradients(tokens, [attention])
    torch.testing.assert_close(found[middle][1], alone[attention][1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[attention][1], alone[attention][1], rtol=1e-10, atol=1e-12)


def test_gradient_through_the_bridge(exact_gpt2):
    name = "blocks.1.ln1.hook_normalized"
    assert exact_gpt2._forward._site(name) is None
    tokens = some_tokens(exact_gpt2)
    _, gradient = exact_gpt2.capture_with_gradients(tokens, [name])[name]
    direction = torch.ones(gradient.shape, dtype=torch.float64)
    expected = directional_derivative(exact_gpt2, tokens, name, direction)
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-6, atol=1e-8)


def test_gradients_do_not_depend_on_the_grouping(exact, monkeypatch):
    tokens = some_tokens(exact, contexts=5)
    whole = exact.capture_with_gradients(tokens, [MIDDLE])[MIDDLE]
    monkeypatch.setattr(gradients, "PASS_BYTES", 1)
    monkeypatch.setattr(gradients, "HEAD_CHUNK_ELEMENTS", 5 * exact.d_vocab)
    torch.testing.assert_close(
        exact.capture_with_gradients(tokens, [MIDDLE])[MIDDLE], whole, rtol=1e-10, atol=1e-12
    )


# Full passes.


def test_loss_and_logits_equal_hugging_face(tiny_model_folder, tiny_model):
    tokens = some_tokens(tiny_model)
    output = tiny_model.run(tokens)
    with torch.no_grad():
        reference = plain_hugging_face(tiny_model_folder, torch.float32)(tokens, labels=tokens)
    torch.testing.assert_close(output.logits, reference.logits)
    assert output.loss.shape == (2, 11) and output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss.mean(), reference.loss)


def test_loss_does_not_depend_on_the_chunks(monkeypatch):
    logits, tokens = torch.randn(3, 9, 50).bfloat16(), torch.randint(0, 50, (3, 9))
    whole = next_token_loss(logits, tokens)
    monkeypatch.setattr(gradients, "LOSS_CHUNK_ELEMENTS", 7 * 50)
    assert torch.equal(next_token_loss(logits, tokens), whole)
    assert whole.dtype == torch.float32


@pytest.mark.parametrize("name", [MIDDLE, "blocks.0.attn.hook_z", "blocks.1.ln1.hook_normalized"])
def test_splicing_the_same_in_changes_nothing(exact, name):
    tokens = some_tokens(exact)
    shapes = []

    def same(x):
        shapes.append(x.shape)
        return x.clone()

    spliced = exact.run(tokens, {name: same})
    # The third is served by the bridge, whose Llama norms and softmax are in float32.
    torch.testing.assert_close(spliced.logits, exact.run(tokens).logits, rtol=1e-5, atol=1e-5)
    assert shapes == [(2, 12, 32)]


def test_splice_replaces_the_stream(tiny_model):
    """With block 1's output from other tokens, the logits are those of the other tokens."""
    ours, theirs = some_tokens(tiny_model, seed=1), some_tokens(tiny_model, seed=2)
    stream = tiny_model.capture(theirs, [MIDDLE])[MIDDLE]
    output = tiny_model.run(ours, {MIDDLE: lambda x: stream.double()})
    torch.testing.assert_close(output.logits, tiny_model.run(theirs).logits)
    torch.testing.assert_close(output.loss, next_token_loss(output.logits, ours))


def test_two_splices_at_once(tiny_model):
    tokens = some_tokens(tiny_model)
    zero = tiny_model.run(tokens, {f"blocks.{i}.hook_mlp_out": torch.zeros_like for i in range(3)})
    one = tiny_model.run(tokens, {"blocks.0.hook_mlp_out": torch.zeros_like})
    assert not torch.allclose(zero.logits, one.logits)


# Tokens.


def test_text_that_spells_a_special_token_stays_text(tiny_model):
    text = "the king<|endoftext|> and <|bos|>"
    ids = tiny_model.tokenize([text, ""])
    assert not tiny_model.special_ids & set(ids[0]) and ids[1] == []
    assert "".join(tiny_model.token_strings(ids[0])) == text
    assert tiny_model.tokenize([]) == []


def test_special_tokens_are_known(tiny_model, tiny_gpt2):
    assert (tiny_model.bos_id, tiny_model.separator_id) == (0, 2)
    assert tiny_model.special_ids == {0, 1, 2}
    assert tiny_gpt2.bos_id is None and tiny_gpt2.separator_id == 2
    assert tiny_model.token_strings([0, 2]) == ["<|bos|>", "<|endoftext|>"]


def test_shape_of_the_model(tiny_model, tiny_gpt2):
    assert (tiny_model.n_layers, tiny_model.d_model, tiny_model.d_vocab) == (3, 32, 300)
    assert (tiny_model.max_context, tiny_gpt2.max_context) == (128, 64)


# Bad input.


def test_unknown_hook_point_names_the_nearest(tiny_model):
    with pytest.raises(ModelError, match=r"no hook point 'blocks.1.hook_residpost'.*resid_post'"):
        tiny_model.capture(some_tokens(tiny_model), ["blocks.1.hook_residpost"])
    with pytest.raises(ModelError, match="blocks are 0 to 2"):
        tiny_model.run(some_tokens(tiny_model), {"blocks.9.hook_resid_post": lambda x: x})
    with pytest.raises(ModelError, match="no hook point"):
        tiny_model.capture_with_gradients(some_tokens(tiny_model), ["nonsense"])


@pytest.mark.parametrize("name", ["blocks.0.attn.hook_pattern", "blocks.0.attn.hook_attn_scores"])
def test_hook_points_without_a_row_per_token(tiny_model, name):
    assert name not in tiny_model.hook_points()
    with pytest.raises(ModelError, match="does not give one vector per token"):
        tiny_model.width_at(name)


def test_context_longer_than_the_model(tiny_gpt2):
    tokens = torch.full((1, 65), 5)
    for method in (tiny_gpt2.run, lambda t: tiny_gpt2.capture(t, [MIDDLE])):
        with pytest.raises(ModelError, match=r"65 tokens is longer than .* allows: at most 64"):
            method(tokens)


def test_tokens_of_another_vocabulary(tiny_model):
    with pytest.raises(ModelError, match=r"do not fit .* vocabulary has 300"):
        tiny_model.run(torch.full((1, 4), 300))


def test_splice_errors(tiny_model):
    tokens = some_tokens(tiny_model)
    with pytest.raises(ModelError, match="returned shape"):
        tiny_model.run(tokens, {MIDDLE: lambda x: x[:, :1]})
    with pytest.raises(ModelError, match="would reach the MLP but not the residual stream"):
        tiny_model.run(tokens, {"blocks.1.hook_resid_mid": lambda x: x})


def test_unknown_dtype_and_device(tiny_model_folder):
    with pytest.raises(ModelError, match="dtype 'int4' is unknown"):
        load_language_model(str(tiny_model_folder), dtype="int4")
    with pytest.raises(ConfigError, match="device 'gpu' cannot be used here"):
        load_language_model(str(tiny_model_folder), device="gpu")


# The embedded model.


@pytest.fixture(scope="module")
def embedded():
    return load_language_model("smollm2-135m", dtype="bfloat16", device="cpu")


@pytest.mark.model
def test_embedded_model_predicts_english(embedded):
    assert (embedded.n_layers, embedded.d_model, embedded.d_vocab) == (30, 576, 49152)
    assert (embedded.bos_id, embedded.separator_id) == (1, 0)
    ids = embedded.tokenize(["The capital of France is Paris, and the capital of Italy is"])[0]
    logits = embedded.run(torch.tensor([[embedded.bos_id, *ids]])).logits
    assert embedded.token_strings([int(logits[0, -1].argmax())]) == [" Rome"]


@pytest.fixture(scope="module")
def embedded_exact():
    return load_language_model("smollm2-135m", dtype="float32", device="cpu")


def held_out_tokens(model, contexts):
    from saelab.text.contexts import TextConfig
    from tests.conftest import context_batches

    batches = context_batches(
        TextConfig(), model, split="held_out", context_length=128, batch_contexts=contexts
    )
    tokens = next(batches)
    batches.close()
    return tokens


@pytest.mark.slow
@pytest.mark.model
def test_what_bfloat16_changes(embedded, embedded_exact, record_property):
    """bfloat16 keeps 8 bits: rows are off by about 1 %, the loss by about 0.01 nats."""
    exact, name = embedded_exact, "blocks.12.hook_resid_post"
    tokens = held_out_tokens(exact, contexts=2)
    fine, coarse = (model.capture(tokens, [name])[name].double() for model in (exact, embedded))
    ratio = ((coarse - fine).norm(dim=-1) / fine.norm(dim=-1))[:, 1:].median()
    losses = exact.run(tokens).loss.mean(), embedded.run(tokens).loss.mean()
    record_property("relative_error", float(ratio))
    record_property("loss_change", float(losses[1] - losses[0]))
    print(f"relative error {float(ratio):.5f}; loss {losses[0]:.4f} -> {losses[1]:.4f}")
    assert ratio < 0.03
    assert abs(losses[1] - losses[0]) < 0.03


@pytest.mark.slow
@pytest.mark.model
def test_what_bfloat16_changes_in_gradients(embedded, embedded_exact, record_property):
    """A row is off by about 4 % of its norm; by hand no more than by autograd."""
    name = "blocks.12.hook_resid_post"
    tokens = held_out_tokens(embedded, contexts=2)[:, :32]
    rows = {}
    for how, model, by_hand in (
        ("exact", embedded_exact, True),
        ("by hand", embedded, True),
        ("by autograd", embedded, False),
    ):
        with pytest.MonkeyPatch.context() as patch:
            if not by_hand:
                patch.setitem(vars(model._loss_gradients), "_head", None)
            # The last position has no gradient.
            rows[how] = model.capture_with_gradients(tokens, [name])[name][1][:, 1:-1].double()
    exact, errors = rows.pop("exact"), {}
    for how, found in rows.items():
        errors[how] = float(((found - exact).norm(dim=-1) / exact.norm(dim=-1)).median())
        cosine = float(torch.cosine_similarity(found, exact, dim=-1).median())
        record_property(f"relative_error_{how.replace(' ', '_')}", errors[how])
        print(f"{how}: relative error {errors[how]:.4f}, cosine {cosine:.5f}")
    assert errors["by hand"] < 0.06
    assert errors["by hand"] < 1.1 * errors["by autograd"]


@pytest.mark.parametrize(
    ("features", "dtype", "warnings"),
    [
        ({"avx2"}, "bfloat16", 1),
        ({"avx2"}, "float32", 0),
        ({"avx2", "avx512_bf16"}, "bfloat16", 0),
        (set(), "bfloat16", 0),
    ],
)
def test_bfloat16_on_a_cpu_without_it_is_said_once(
    tiny_model_folder, monkeypatch, caplog, features, dtype, warnings
):
    monkeypatch.setattr(devices, "cpu_features", lambda: features)
    devices.warn_if_bfloat16_is_slow.cache_clear()
    for _ in range(2):
        model = load_language_model(str(tiny_model_folder), dtype=dtype, device="cpu")
        assert model.dtype == getattr(torch, dtype)
    said = [record for record in caplog.records if "--model-dtype float32" in record.message]
    assert len(said) == warnings


@pytest.mark.parametrize(("features", "slow"), [({"avx2"}, True), ({"amx_bf16"}, False)])
def test_quickstart_computes_in_float32_where_bfloat16_is_slow(monkeypatch, features, slow):
    from saelab.commands.quickstart import QuickstartCommand, _words

    monkeypatch.setattr(devices, "cpu_features", lambda: features)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for stage, option in (("cache", "--model-dtype"), ("train", "--product-dtype")):
        words = _words(QuickstartCommand(), stage)
        assert (words[-2:] == [option, "float32"]) == slow == (option in words)


def test_cpu_features_are_those_of_this_machine():
    assert devices.cpu_features() & {"sse2", "asimd", "neon"}
