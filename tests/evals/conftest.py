"""Dictionaries as if they had been trained on the tiny model, for suites that run it."""

from __future__ import annotations

import pytest
import torch

from saelab.cache.config import TokenFilter
from saelab.config import to_plain
from saelab.dictionary import Dictionary, save_dictionary


@pytest.fixture
def save_trained(tmp_path, tiny_model, tiny_model_folder, model_text):
    """A function that saves a dictionary as a training run on the tiny model would."""

    def save_it(dictionary, name, *, seed=0, training=None, **origin):
        made_from = {
            "model": str(tiny_model_folder),
            "model_hash": tiny_model.content_hash,
            "model_dtype": "float32",
            "hook_point": "blocks.1.hook_resid_post",
            "text": to_plain(model_text),
            "context_length": 32,
            "row_rule": to_plain(TokenFilter()),
            "norm_ceiling": 11.0,
            "cache_hash": None,
            **origin,
        }
        settings = {"method": "topk", "options": {}, "target_l0": 6, **(training or {})}
        inputs = torch.randn(16, dictionary.d_in, generator=torch.Generator().manual_seed(1))
        save_dictionary(
            tmp_path / name,
            dictionary,
            self_test_inputs=inputs,
            training=settings,
            made_from=made_from,
            seed=seed,
        )
        return tmp_path / name

    return save_it


@pytest.fixture
def topk_dictionary():
    """A function that makes a dictionary of random directions, or of those given."""

    def make(seed=0, d_in=32, d_sae=48, W_dec=None):
        generator = torch.Generator().manual_seed(seed)
        if W_dec is None:
            W_dec = torch.randn(d_sae, d_in, generator=generator)
        W_dec = torch.nn.functional.normalize(W_dec, dim=1)
        return Dictionary(
            "topk",
            W_enc=W_dec.T.clone(),
            W_dec=W_dec,
            b_dec=0.1 * torch.randn(W_dec.shape[1], generator=generator),
            b_enc=torch.zeros(len(W_dec)),
            k=6,
        )

    return make
