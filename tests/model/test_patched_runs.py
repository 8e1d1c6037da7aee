"""Runs that share a prefix give the logits of whole runs, also for models that forbid it."""

from __future__ import annotations

import pytest
import torch

from saelab.errors import ModelError
from saelab.model.patched_runs import can_start_at, keys_before


@pytest.fixture(params=["tiny_model", "tiny_gpt2"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("first", [0, 1, 6])
def test_a_patch_in_the_middle_gives_the_logits_of_a_whole_run(model, first):
    tokens = torch.randint(3, 290, (4, 10), generator=torch.Generator().manual_seed(1))
    end = torch.tensor([9, 7, 8, 9])
    name = f"blocks.{model.n_layers - 1}.hook_resid_pre"
    runs = model.prepare_patches(tokens, end, [name], first)

    def doubled(x, offset):
        x = x.clone()
        x[:, 7 - offset :] *= 2
        return x

    whole = model.run(tokens, {name: lambda x: doubled(x, 0)}).logits[torch.arange(4), end]
    short = runs.logits({name: lambda x: doubled(x, runs.first_position)})
    torch.testing.assert_close(short, whole, atol=1e-5, rtol=1e-5)
    clean = model.run(tokens).logits[torch.arange(4), end]
    torch.testing.assert_close(runs.logits({}), clean, atol=1e-5, rtol=1e-5)


def test_a_short_run_skips_what_the_patch_cannot_change(tiny_model):
    tokens = torch.randint(3, 290, (4, 10), generator=torch.Generator().manual_seed(1))
    name = "blocks.2.hook_resid_pre"
    runs = tiny_model.prepare_patches(tokens, torch.full((4,), 9), [name], 6)
    shapes = []
    forward = tiny_model._forward
    handles = [
        forward.block_module(block).mlp.register_forward_hook(
            lambda module, args, output, block=block: shapes.append((block, output.shape[1]))
        )
        for block in range(3)
    ]
    try:
        runs.logits({name: lambda x: x})
    finally:
        for handle in handles:
            handle.remove()
    assert shapes == [(2, 4)]
    assert all("forward" not in vars(forward.block_module(block)) for block in range(3))


def test_a_model_whose_blocks_cannot_be_skipped_is_run_whole(tiny_model, monkeypatch):
    forward = tiny_model._forward
    monkeypatch.setattr(forward, "starts", {})
    monkeypatch.setattr(forward, "block_module", lambda index: None)
    assert not can_start_at(forward, 1)
    tokens = torch.randint(3, 290, (3, 8), generator=torch.Generator().manual_seed(1))
    end = torch.tensor([7, 5, 6])
    runs = tiny_model.prepare_patches(tokens, end, ["blocks.1.hook_resid_pre"], 4)
    clean = tiny_model.run(tokens).logits[torch.arange(3), end]
    torch.testing.assert_close(runs.logits({}), clean, atol=1e-5, rtol=1e-5)


def test_there_are_no_keys_before_the_first_position(tiny_model):
    tokens = torch.randint(3, 290, (2, 5), generator=torch.Generator().manual_seed(1))
    assert keys_before(tiny_model._forward, tokens, 0) is None
    assert keys_before(tiny_model._forward, tokens, 5) is None
    assert keys_before(tiny_model._forward, tokens, 4).get_seq_length() == 4


def test_a_hook_point_that_cannot_be_patched_is_refused(tiny_model):
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ModelError, match="hook_resid_mid"):
        tiny_model.prepare_patches(tokens, torch.tensor([2]), ["blocks.0.hook_resid_mid"])
