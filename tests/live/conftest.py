"""A small dictionary at the tiny Llama's second block, and a session that uses both."""

from __future__ import annotations

import pytest
import torch

from saelab.dictionary import Dictionary, load_dictionary, save_dictionary
from saelab.live.lock import FairLock
from saelab.live.session import LiveSession, SharedModel

HOOK = "blocks.1.hook_resid_post"
GPT2_HOOK = "blocks.0.hook_resid_post"
D_SAE = 48


def random_dictionary(seed=0, d_in=32, **options):
    generator = torch.Generator().manual_seed(seed)
    decoder = torch.randn(D_SAE, d_in, generator=generator)
    decoder /= decoder.norm(dim=1, keepdim=True)
    return Dictionary(
        "topk",
        W_enc=decoder.T.contiguous(),
        W_dec=decoder,
        b_enc=torch.zeros(D_SAE),
        b_dec=torch.randn(d_in, generator=generator) * 0.1,
        k=5,
        **options,
    )


def save_for(model, folder, dictionary, *, self_test=None, **changes):
    made_from = {
        "model": model.name,
        "model_hash": model.content_hash,
        "hook_point": HOOK,
        "context_length": 64,
        "prepend_bos": True,
        "row_rule": {
            "exclude_bos": True,
            "exclude_separators": True,
            "exclude_positions": [],
            "max_norm_ratio": 10.0,
        },
        "norm_ceiling": None,
        "model_dtype": "float32",
        "text": {"source": "sotu"},
        **changes,
    }
    drawn = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    save_dictionary(
        folder,
        dictionary,
        self_test_inputs=drawn if self_test is None else self_test,
        training={"method": "topk"},
        made_from={key: value for key, value in made_from.items() if value != "missing"},
        seed=0,
    )
    return load_dictionary(folder)


@pytest.fixture(scope="session")
def saved(tiny_model, tmp_path_factory):
    return save_for(tiny_model, tmp_path_factory.mktemp("live") / "topk", random_dictionary())


@pytest.fixture(scope="session")
def session(tiny_model, saved):
    return LiveSession(SharedModel(tiny_model, FairLock()), saved)


@pytest.fixture(scope="session")
def double_model(tiny_gpt2_folder):
    """The tiny GPT-2 in float64, for finite differences: Llama's norms compute in float32."""
    from saelab.model.language_model import load_language_model

    return load_language_model(str(tiny_gpt2_folder), dtype="float64", device="cpu")
