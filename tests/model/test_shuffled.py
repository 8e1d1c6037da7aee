"""A model with shuffled weights: the same scales, another function, the same each time."""

from __future__ import annotations

import torch

from saelab.cache.config import recorded_name
from saelab.model.language_model import load_language_model
from saelab.model.model_files import resolve_model


def test_shuffled_weights_keep_their_values_and_lose_their_order(tiny_model_folder):
    name = f"shuffled:{tiny_model_folder}"
    models = [
        load_language_model(each, dtype="float32", device="cpu")
        for each in (str(tiny_model_folder), name, name)
    ]
    tokens = torch.arange(3, 23)[None]
    hook = "blocks.1.hook_resid_post"
    plain, shuffled, again = (model.capture(tokens, [hook])[hook] for model in models)
    assert torch.equal(shuffled, again)
    assert not torch.allclose(plain, shuffled, atol=0.1)
    assert 0.2 < float(shuffled.norm() / plain.norm()) < 5
    assert models[1].name == name


def test_a_shuffled_model_has_a_hash_and_a_recorded_name_of_its_own(tiny_model_folder, monkeypatch):
    monkeypatch.chdir(tiny_model_folder.parent)
    name = f"shuffled:{tiny_model_folder.name}"
    assert recorded_name(name) == f"shuffled:{tiny_model_folder}"
    hashes = {resolve_model(each).content_hash() for each in (name, str(tiny_model_folder))}
    assert len(hashes) == 2
    assert recorded_name("shuffled:smollm2-135m") == "shuffled:smollm2-135m"
