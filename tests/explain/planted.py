"""A text and features with planted triggers, in a store written by the real builder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from saelab.dictionary import Dictionary
from saelab.features.build import StoreSources, write_store
from saelab.features.config import StoreOptions
from saelab.features.token_text import Vocabulary
from tests.features.conftest import write_shards

CONTEXT, N_CONTEXTS, D_IN = 64, 240, 16
WORDS = [
    *("<bos>", " the", " of", " in", " and", " to", " king", " river", " war", " peace", " corn"),
    *(" Congress", " Spain", " Texas", " Senate", " he", " she", " they", " will", " should"),
    *(" may", " voting", " walking", " trading", " quickly", " bank", " great", " nation", " men"),
    *(" 7", " 42", "3", ",", ".", " (", "\n", "nam", " Viet", "ation", " inform", " people", "👑"),
]
TOKEN = {word: index for index, word in enumerate(WORDS)}
FOLLOWS = {" of": " the", " Viet": "nam", " inform": "ation", " (": " 7", " the": " people"}
"""What comes after some words in two of five cases; anything else comes at random."""


def is_any(tokens, *words):
    return np.isin(tokens, [TOKEN[word] for word in words])


def earlier(mask, by=1):
    moved = np.zeros_like(mask)
    moved[:, by:] = mask[:, :-by]
    return moved


TRIGGERS = {
    # unigrams
    '"king"': lambda t: is_any(t, " king"),
    '"Spain"': lambda t: is_any(t, " Spain"),
    '","': lambda t: is_any(t, ","),
    "a line break": lambda t: is_any(t, "\n"),
    '"👑"': lambda t: is_any(t, "👑"),
    # several
    '"peace" or "war"': lambda t: is_any(t, " war", " peace"),
    '"river", "corn" or "bank"': lambda t: is_any(t, " river", " corn", " bank"),
    # n-grams
    '"the" after "of"': lambda t: is_any(t, " the") & earlier(is_any(t, " of")),
    '"nam" in "Vietnam"': lambda t: is_any(t, "nam") & earlier(is_any(t, " Viet")),
    '"Viet" in "Vietnam"': lambda t: (
        is_any(t, " Viet") & np.roll(is_any(t, "nam") & (np.arange(CONTEXT) > 0), -1, axis=1)
    ),
    '"people" after "of the"': lambda t: (
        is_any(t, " people") & earlier(is_any(t, " the")) & earlier(is_any(t, " of"), 2)
    ),
    # kinds of tokens
    "a number": lambda t: is_any(t, " 7", " 42", "3"),
    "a pronoun": lambda t: is_any(t, " he", " she", " they"),
    "a modal verb": lambda t: is_any(t, " will", " should", " may"),
    "a capitalised word": lambda t: is_any(t, " Congress", " Spain", " Texas", " Senate", " Viet"),
    'a word ending in "ing"': lambda t: is_any(t, " voting", " walking", " trading"),
    "a punctuation mark": lambda t: is_any(t, ",", ".", " (", "👑"),
    'a number after "("': lambda t: is_any(t, " 7", " 42", "3") & earlier(is_any(t, " (")),
    # preceding context
    'the token after "Congress"': lambda t: earlier(is_any(t, " Congress")),
    'the token after "of" or "in"': lambda t: earlier(is_any(t, " of", " in")),
    "the token after a modal verb": lambda t: earlier(is_any(t, " will", " should", " may")),
    '"men" soon after "great"': lambda t: (
        is_any(t, " men") & np.any([earlier(is_any(t, " great"), by) for by in range(2, 9)], axis=0)
    ),
}
"""What the baseline should say -> where the feature fires."""
N_NOISE = 6
"""Features after the planted ones that fire at random."""


def make_text(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, len(WORDS), (N_CONTEXTS, CONTEXT))
    tokens[:, 0] = TOKEN["<bos>"]
    follow = rng.random(tokens.shape) < 0.4
    for position in range(1, CONTEXT):
        for first, second in FOLLOWS.items():
            here = (tokens[:, position - 1] == TOKEN[first]) & follow[:, position]
            tokens[here, position] = TOKEN[second]
    return tokens


def write_planted_store(folder: Path, seed: int = 0) -> Path:
    tokens = make_text(seed)
    rng = np.random.default_rng(seed + 1)
    counted = tokens != TOKEN["<bos>"]
    fires = [trigger(tokens) for trigger in TRIGGERS.values()]
    fires += [rng.random(tokens.shape) < 0.02 for _ in range(N_NOISE)]
    codes = np.stack(fires, axis=-1) * (rng.random((*tokens.shape, len(fires))) + 0.5)
    codes = (codes * counted[..., None]).reshape(-1, len(fires)).astype(np.float32)
    shards = write_shards(folder, tokens, counted, codes, N_CONTEXTS // 4)
    decoder = torch.randn(len(fires), D_IN, generator=torch.Generator().manual_seed(seed))
    dictionary = Dictionary(
        "topk", W_enc=decoder.T.clone(), W_dec=decoder, b_dec=torch.zeros(D_IN), k=4,
        b_enc=torch.zeros(len(fires)),
    )  # fmt: skip
    hashes = {"dictionary_hash": "d" * 64, "weights_sha256": "e" * 64, "model_hash": None}
    named = {"dictionary": "planted", "model": "none", "hook_point": "blocks.0.hook_resid_post"}
    sources = StoreSources(
        shards=shards,
        dictionary=dictionary,
        vocabulary=Vocabulary([word.encode() for word in WORDS]),
        lens=None,
        no_lens_because="there is no model",
        dictionary_facts={"name": "planted", "architecture": "topk", "k": 4, "method": "planted"},
        made_from={**hashes, **named},
        options=StoreOptions(),
    )
    path = folder / "features.sqlite"
    write_store(path, sources)
    return path
