"""A planted dictionary over a made-up text, where every number of the store is known.

Latents are rules over tokens, so codes need no model; the text holds hostile tokens, and the store
is built by the real builder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from saelab.dictionary import Dictionary
from saelab.features.build import StoreSources, write_store
from saelab.features.config import StoreOptions
from saelab.features.reader import FeatureStore
from saelab.features.shards import Shards, ShardText, write_shard
from saelab.features.token_text import Vocabulary
from saelab.model.logit_lens import Lens

CONTEXT = 16
BOS = 0
WORDS = [
    "<|bos|>", "<script>alert(1)</script>", " &amp; &", "\n", "\t", "\u200b", " שלום", " κόσμε",
    " king", " queen", " river", " boat", " corn", " salt", '"', "'", " winter", " mill",
]  # fmt: skip
EMOJI = "👑".encode()
TOKENS = [word.encode() for word in WORDS] + [EMOJI[:2], EMOJI[2:], b"\xff", b"\x00"]
EMOJI_HEAD, EMOJI_TAIL, NOT_TEXT, NUL = range(len(WORDS), len(WORDS) + 4)
KING, QUEEN, RIVER, SCRIPT = 8, 9, 10, 1
D_SAE, D_IN = 24, 12
DEAD, ALWAYS, KINGS, RIVERS, SCRIPTS, ONCE, EMOJIS = range(7)
"""Planted latents; the rest are random."""


@dataclass
class Toy:
    """The planted text and dictionary."""

    tokens: np.ndarray
    counted: np.ndarray
    codes: np.ndarray
    """Dense codes [positions, d_sae], float32; zero where a position is no row."""
    dictionary: Dictionary
    lens: Lens
    vocabulary: Vocabulary

    def shards(self, folder: Path, contexts: int) -> Shards:
        """Codes on disk, with so many contexts in a shard."""
        return write_shards(folder, self.tokens, self.counted, self.codes, contexts)

    def sources(self, shards: Shards, **options) -> StoreSources:
        return StoreSources(
            shards=shards,
            dictionary=self.dictionary,
            vocabulary=self.vocabulary,
            lens=self.lens,
            no_lens_because="",
            dictionary_facts={"name": "toy", "architecture": "topk", "k": 4, "method": "planted"},
            made_from={
                "dictionary": "toy",
                "dictionary_hash": "d" * 64,
                "weights_sha256": "e" * 64,
                "model": "none",
                "model_hash": None,
                "hook_point": "blocks.0.hook_resid_post",
            },
            options=StoreOptions(**options),
        )


def write_shards(folder, tokens, counted, codes, contexts, build="toy"):
    paths = []
    length = tokens.shape[1]
    for first in range(0, len(tokens), contexts):
        inside = slice(first, first + contexts)
        bos = int((tokens[inside] == BOS).sum())
        text = ShardText(first, tokens[inside], counted[inside], {"bos": bos, "separator": 0})
        part = codes[first * length : (first + contexts) * length]
        row, latent = part.nonzero()
        path = folder / f"shard-{first}.safetensors"
        write_shard(path, text, row, latent, part[row, latent], codes.shape[1], build)
        paths.append(path)
    return Shards(paths, codes.shape[1])


def make_toy(n_contexts: int = 60, seed: int = 0) -> Toy:
    """Text of random tokens, one context twice; planted rules and random codes."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, len(TOKENS), (n_contexts, CONTEXT))
    # Halves of an emoji stand together as a rule and alone now and then.
    tokens[:, 5], tokens[:, 6] = EMOJI_HEAD, EMOJI_TAIL
    tokens[:, 0] = BOS
    tokens[1] = tokens[0]
    counted = tokens != BOS
    flat = tokens.reshape(-1)
    codes = np.zeros((flat.size, D_SAE), np.float32)
    strength = rng.random(flat.size).astype(np.float32) + 0.5
    codes[:, ALWAYS] = strength
    codes[:, KINGS] = np.where(flat == KING, 2 * strength, 0)
    codes[:, RIVERS] = np.where(flat == RIVER, strength, 0)
    codes[:, SCRIPTS] = np.where(flat == SCRIPT, strength, 0)
    codes[CONTEXT * 3 + 4, ONCE] = 1.5
    codes[:, EMOJIS] = np.where(flat == EMOJI_TAIL, strength, 0)
    others = rng.random((flat.size, D_SAE - 7)) < rng.random(D_SAE - 7) * 0.3
    codes[:, 7:] = np.where(others, np.round(rng.exponential(size=others.shape) * 8) / 8, 0)
    codes[~counted.reshape(-1)] = 0
    generator = torch.Generator().manual_seed(seed)
    decoder = torch.randn(D_SAE, D_IN, generator=generator)
    # The queen's rule points almost where the king's does: a near miss to be found.
    decoder[RIVERS] = decoder[KINGS] + 0.05
    dictionary = Dictionary(
        "topk",
        W_enc=decoder.T.clone() * 0.5,
        W_dec=decoder,
        b_dec=torch.zeros(D_IN),
        b_enc=torch.linspace(-1, 1, D_SAE),
        k=4,
    )
    unembedding = torch.randn(len(TOKENS), D_IN, generator=generator)
    unembedding[KING] = 10 * decoder[KINGS]
    lens = Lens(gain=torch.ones(D_IN), centres_input=False, unembedding=unembedding)
    return Toy(tokens, counted, codes, dictionary, lens, Vocabulary(TOKENS))


@pytest.fixture(scope="session")
def toy():
    """The planted text and dictionary; read-only."""
    return make_toy()


@pytest.fixture(scope="session")
def tiny_store_path(toy, tmp_path_factory):
    """File of the toy's store."""
    folder = tmp_path_factory.mktemp("toy-store")
    path = folder / "features.sqlite"
    write_store(path, toy.sources(toy.shards(folder, 7)))
    return path


@pytest.fixture
def tiny_store(tiny_store_path):
    """The toy's store, open."""
    with FeatureStore(tiny_store_path) as store:
        yield store
