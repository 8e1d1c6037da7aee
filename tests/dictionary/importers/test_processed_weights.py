"""Dictionaries of models with processed weights, on raw ones: the same codes and the same loss.

TransformerLens once folded layer norms and centred writing weights by default, and most GPT-2
dictionaries were trained on that. What it centres is what is written to the residual stream, so a
dictionary that takes each row's mean off and adds it back (`--processed-weights`) is the same
function on the raw model.
"""

from __future__ import annotations

import pytest
import torch

from saelab.dictionary import Dictionary
from saelab.model.language_model import load_language_model

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.0.hook_mlp_out")


@pytest.fixture(scope="module")
def processed(tiny_gpt2_folder):
    """The tiny GPT-2 with TransformerLens' own processing."""
    bridge = load_language_model(str(tiny_gpt2_folder), dtype="float32", device="cpu")
    bridge = bridge._forward.bridge
    bridge.enable_compatibility_mode()
    return bridge


@pytest.mark.parametrize("hook_point", HOOKS)
def test_a_centred_dictionary_on_raw_weights_is_the_one_on_processed_weights(
    hook_point, tiny_gpt2, processed
):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 250, (3, 20), generator=generator)
    directions = torch.randn(96, 32, generator=generator) / 32**0.5
    tensors = {
        "W_enc": directions.T.clone(),
        "W_dec": directions,
        "b_enc": 0.1 * torch.randn(96, generator=generator),
        "b_dec": torch.zeros(32),
    }
    plain, centred = (
        Dictionary("relu", **tensors),
        Dictionary("relu", input_normalisation="center", **tensors),
    )
    with torch.no_grad():
        _, cache = processed.run_with_cache(tokens)
    theirs, raw = cache[hook_point], tiny_gpt2.capture(tokens, [hook_point])[hook_point]
    assert float((theirs - raw).abs().max()) > 0.01, "processing must change something"
    codes = plain.encode_dense(theirs.flatten(0, 1))
    torch.testing.assert_close(centred.encode_dense(raw.flatten(0, 1)), codes, rtol=1e-4, atol=1e-5)

    def spliced(dictionary):
        return lambda x, hook=None: dictionary(x.flatten(0, 1)).reshape(x.shape)

    ours = tiny_gpt2.run(tokens, {hook_point: spliced(centred)}).logits.log_softmax(-1)
    with torch.no_grad():
        logits = processed.run_with_hooks(tokens, fwd_hooks=[(hook_point, spliced(plain))])
    torch.testing.assert_close(ours, logits.log_softmax(-1), rtol=1e-4, atol=1e-4)
