"""The cached last position against the whole forward pass, one variant at a time."""

from __future__ import annotations

import pytest
import torch

from saelab.errors import ModelError

TOKENS = torch.tensor([0, 17, 205, 91, 33, 8, 140, 77])


def literal(model, hook_point, additions):
    """Each variant as a full forward pass of its own."""
    logits = []
    for addition in additions:

        def splice(x, addition=addition):
            changed = x.clone()
            changed[0, -1] += addition
            return changed

        logits.append(model.run(TOKENS[None], {hook_point: splice}).logits[0, -1])
    return torch.stack(logits)


@pytest.mark.parametrize(
    "hook_point",
    [
        "blocks.0.hook_resid_pre",
        "blocks.1.hook_resid_post",
        "blocks.2.hook_resid_post",
        "blocks.1.hook_mlp_out",
        "blocks.1.hook_attn_out",
        "blocks.0.attn.hook_z",
    ],
)
@pytest.mark.parametrize("which", ["tiny_model", "tiny_gpt2"])
def test_last_logits_equal_the_whole_pass(which, hook_point, request):
    model = request.getfixturevalue(which)
    if hook_point.startswith("blocks.2") and model.n_layers == 2:
        hook_point = "blocks.1.ln2.hook_normalized"
    generator = torch.Generator().manual_seed(0)
    additions = torch.randn(5, model.width_at(hook_point), generator=generator)
    additions[0] = 0
    found = model.last_logits(TOKENS, hook_point, additions)
    assert found.shape == (5, model.d_vocab)
    torch.testing.assert_close(found, literal(model, hook_point, additions), rtol=1e-4, atol=1e-4)
    clean = model.run(TOKENS[None]).logits[0, -1]
    torch.testing.assert_close(found[0], clean, rtol=1e-4, atol=1e-4)
    assert (found[1] - clean).abs().max() > 1e-3


def test_the_context_before_the_last_token_is_run_once(tiny_model, monkeypatch):
    sizes = []
    run = type(tiny_model._forward).run

    def counted(self, tokens, *args, **kwargs):
        sizes.append(tuple(tokens.shape))
        return run(self, tokens, *args, **kwargs)

    monkeypatch.setattr(type(tiny_model._forward), "run", counted)
    tiny_model.last_logits(TOKENS, "blocks.1.hook_resid_post", torch.randn(9, 32))
    assert sizes == [(1, 7), (9, 1)]


def test_a_context_of_one_token_and_a_model_without_a_cache_run_whole(tiny_model, monkeypatch):
    additions = torch.randn(3, 32)
    hook_point = "blocks.1.hook_resid_post"
    one = tiny_model.last_logits(TOKENS[:1], hook_point, additions)
    assert one.shape == (3, tiny_model.d_vocab)
    cached = tiny_model.last_logits(TOKENS, hook_point, additions)
    monkeypatch.setattr("saelab.model.patched_runs.keys_before", lambda *given: None)
    whole = tiny_model.last_logits(TOKENS, hook_point, additions)
    torch.testing.assert_close(cached, whole, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_spliced_is_refused(tiny_model):
    with pytest.raises(ModelError, match=r"cannot splice at 'blocks\.1\.hook_resid_mid'"):
        tiny_model.last_logits(TOKENS, "blocks.1.hook_resid_mid", torch.randn(2, 32))
    with pytest.raises(ModelError, match=r"no hook point 'blocks\.7\.hook_resid_post'"):
        tiny_model.require_spliceable("blocks.7.hook_resid_post")
    with pytest.raises(ModelError, match="additions of width 1 do not fit"):
        tiny_model.last_logits(TOKENS, "blocks.1.hook_resid_post", torch.randn(2, 1))
