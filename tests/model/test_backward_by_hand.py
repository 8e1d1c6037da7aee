"""Hand-written gradients (head and loss, attention, RMS norm) against float64 autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from saelab.model import backward_by_hand, gradients
from saelab.model.backward_by_hand import (
    AttentionByHand,
    attention_gradients,
    closed_form,
    rms_epsilon,
    rms_norm_gradient,
)
from saelab.model.gradients import next_token_loss, next_token_loss_gradient


def sampler(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return lambda *size: torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)


def autograd_of(function, *inputs, wanted):
    leaves = [x.detach().double().requires_grad_(True) for x in inputs]
    return torch.autograd.grad(function(*leaves), leaves, wanted.double())


# Head and loss.


def head_of(d_model, d_vocab, *, bias, dtype=torch.float64):
    sample = sampler(1, dtype)
    head = torch.nn.Linear(d_model, d_vocab, bias=bias, dtype=dtype).requires_grad_(False)
    head.weight.copy_(sample(d_vocab, d_model))
    if bias:
        head.bias.copy_(sample(d_vocab))
    return head


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk_rows", [1, 4, 1000])
def test_loss_gradient_equals_autograd(bias, chunk_rows, monkeypatch):
    monkeypatch.setattr(gradients, "HEAD_CHUNK_ELEMENTS", 50 * chunk_rows)
    head, hidden = head_of(8, 50, bias=bias), sampler()(3, 7, 8)
    tokens = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(0))
    (expected,) = autograd_of(
        lambda x: next_token_loss(head(x), tokens).sum(), hidden, wanted=torch.ones(())
    )
    found = next_token_loss_gradient(hidden, head, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not found[:, -1].any()


def test_loss_gradient_of_one_token_and_of_no_context():
    head = head_of(8, 50, bias=False)
    assert not next_token_loss_gradient(
        torch.ones(2, 1, 8).double(), head, torch.ones(2, 1).long()
    ).any()
    empty = next_token_loss_gradient(torch.ones(0, 5, 8).double(), head, torch.ones(0, 5).long())
    assert empty.shape == (0, 5, 8)


def test_the_gradient_of_a_sure_token_survives_bfloat16():
    """p - 1 in bfloat16 is a multiple of 1/256; minus the sum of the others is not."""
    d_vocab = 64
    head = head_of(d_vocab, d_vocab, bias=False, dtype=torch.bfloat16)
    head.weight.copy_(torch.eye(d_vocab))
    logits = torch.zeros(1, 2, d_vocab)
    logits[0, 0, 5] = 12.0
    tokens = torch.tensor([[0, 5]])
    found = next_token_loss_gradient(logits.bfloat16(), head, tokens)[0, 0, 5]
    expected = torch.softmax(logits[0, 0].double(), -1)[5] - 1
    assert -5e-4 < expected < -1e-4
    torch.testing.assert_close(found.double(), expected, rtol=0.01, atol=0)


# Attention.


def literal_attention(query, key, value, scale):
    """Softmax over each position and those before it, head by head."""
    shared = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(shared, dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * scale
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return torch.softmax(scores.masked_fill(later, -torch.inf), dim=-1) @ value


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 4),
    key_heads=st.integers(1, 3),
    shared=st.integers(1, 3),
    seq=st.integers(1, 40),
    widths=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    rows=st.integers(1, 16),
    held=st.integers(1, 2000),
)
def test_attention_gradients_equal_autograd(batch, key_heads, shared, seq, widths, rows, held):
    sample = sampler(seq)
    query = sample(batch, key_heads * shared, seq, widths[0])
    key, value = sample(batch, key_heads, seq, widths[0]), sample(batch, key_heads, seq, widths[1])
    wanted = sample(batch, key_heads * shared, seq, widths[1])
    expected = autograd_of(lambda *x: literal_attention(*x, 0.3), query, key, value, wanted=wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backward_by_hand, "QUERY_ROWS", (rows, 2 * rows))
        patch.setattr(backward_by_hand, "SCORE_ELEMENTS", held)
        found = attention_gradients(query, key, value, wanted, 0.3)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def heads_of(dtype, seq=300, key_heads=2):
    """Query, key, value as models make them: heads are a view of [batch seq heads d_head]."""
    sample = sampler(3, dtype)
    return [sample(2, seq, heads, 16).transpose(1, 2) for heads in (4, key_heads, key_heads)]


def attention_and_gradients(inputs, **options):
    leaves = [x.detach().requires_grad_(True) for x in inputs]
    output = functional.scaled_dot_product_attention(*leaves, **options)
    return output, torch.autograd.grad(output, leaves, torch.ones_like(output) * 0.1)


def test_attention_in_bfloat16_keeps_its_values_and_is_as_exact_as_pytorch(monkeypatch):
    inputs = heads_of(torch.bfloat16)
    used = []
    by_hand = backward_by_hand.attention_gradients
    monkeypatch.setattr(
        backward_by_hand,
        "attention_gradients",
        lambda *args: used.append(1) or by_hand(*args),
    )
    plain, theirs = attention_and_gradients(inputs, is_causal=True, enable_gqa=True)
    with AttentionByHand():
        output, ours = attention_and_gradients(inputs, is_causal=True, enable_gqa=True)
    assert used and torch.equal(output, plain)
    expected = autograd_of(
        lambda *x: literal_attention(*x, 0.25), *inputs, wanted=torch.ones_like(output) * 0.1
    )
    for found, fused, exact in zip(ours, theirs, expected, strict=True):
        errors = [float((x.double() - exact).norm() / exact.norm()) for x in (found, fused)]
        assert errors[0] < max(2 * errors[1], 0.01), errors


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {"is_causal": True}),
        (torch.bfloat16, {"is_causal": False}),
        (torch.bfloat16, {"attn_mask": torch.ones(20, 20, dtype=torch.bool).tril()}),
    ],
)
def test_other_attention_is_left_to_pytorch(dtype, options, monkeypatch):
    monkeypatch.setattr(backward_by_hand, "attention_gradients", None)
    inputs = heads_of(dtype, seq=20, key_heads=4)
    plain = attention_and_gradients(inputs, **options)
    with AttentionByHand():
        found = attention_and_gradients(inputs, **options)
    assert torch.equal(found[0], plain[0])
    assert all(torch.equal(a, b) for a, b in zip(found[1], plain[1], strict=True))


def test_the_scale_of_attention_is_used():
    inputs = heads_of(torch.bfloat16, key_heads=4)
    with AttentionByHand():
        _, found = attention_and_gradients(inputs, is_causal=True, scale=0.7)
    expected = autograd_of(
        lambda *x: literal_attention(*x, 0.7), *inputs, wanted=torch.full(inputs[0].shape, 0.1)
    )
    for ours, exact in zip(found, expected, strict=True):
        assert float((ours.double() - exact).norm() / exact.norm()) < 0.01


# Norms.


def llama_norm(width=12, epsilon=1e-5, dtype=torch.float32):
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm = LlamaRMSNorm(width, eps=epsilon).to(dtype).requires_grad_(False)
    norm.weight.copy_(sampler(2, dtype)(width))
    return norm


@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 300, 12), (2, 3, 4, 12), (0, 12)])
def test_norm_gradient_equals_autograd(shape):
    sample = sampler()
    weight, x, wanted = sample(12), sample(*shape) * 0.01, sample(*shape)
    (expected,) = autograd_of(
        lambda x: weight * x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt(), x, wanted=wanted
    )
    found = rms_norm_gradient(x, weight, 1e-5, wanted)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_in_closed_form_keeps_its_values(dtype):
    norm, sample = llama_norm(dtype=dtype), sampler(4, dtype)
    x, wanted = sample(2, 3, 12), sample(2, 3, 12)
    plain = norm(x)
    leaf = x.clone().requires_grad_(True)
    with closed_form(norm, 1e-5):
        output = norm(leaf)
        assert torch.equal(norm(x), plain)
    (found,) = torch.autograd.grad(output, leaf, wanted)
    assert torch.equal(output, plain) and "forward" not in vars(norm)
    expected = rms_norm_gradient(x.double(), norm.weight.double(), 1e-5, wanted.double())
    tolerance = 1e-5 if dtype == torch.float32 else 0.01
    assert float((found.double() - expected).norm() / expected.norm()) < tolerance


class MeanFreeRMSNorm(torch.nn.Module):
    """Named like one, but it takes the mean off."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = torch.nn.Parameter(torch.ones(12)), 1e-5

    def forward(self, x):
        x = x - x.mean(-1, keepdim=True)
        return self.weight * x * (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt()


class BrokenRMSNorm(MeanFreeRMSNorm):
    def forward(self, x):
        raise RuntimeError("needs another shape")


def test_only_rms_norms_are_recognised():
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

    assert rms_epsilon(llama_norm(epsilon=1e-6)) == 1e-6
    assert rms_epsilon(llama_norm(dtype=torch.bfloat16)) == 1e-5
    assert rms_epsilon(GemmaRMSNorm(12)) is None  # its gain is 1 + w
    for other in (
        MeanFreeRMSNorm(),
        BrokenRMSNorm(),
        torch.nn.LayerNorm(12),
        torch.nn.Linear(2, 2),
    ):
        assert rms_epsilon(other) is None


def test_a_wrong_closed_form_is_found_out(monkeypatch):
    right = backward_by_hand.rms_norm_gradient
    monkeypatch.setattr(backward_by_hand, "rms_norm_gradient", lambda *args: 1.001 * right(*args))
    assert rms_epsilon(llama_norm()) is None
