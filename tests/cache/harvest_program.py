"""A language model that is a table, and a program that caches it: for tests that kill processes.

Bytes are tokens, BOS is 0 and the separator 1. An activation is the token's row of a fixed table
plus a little of the position's, so that every row can be predicted; `~` gives a massive one.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from saelab.cache.config import HarvestConfig
from saelab.cache.writer import write_caches
from saelab.model.language_model import LanguageModel
from saelab.text.contexts import TextConfig

HOOK_POINTS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
MASSIVE = 2 + ord("~")


class TableModel(LanguageModel):
    def __init__(self, *, d_in: int = 8, dtype: torch.dtype = torch.bfloat16, seconds: float = 0):
        self.name = "table"
        self.n_layers, self.d_model, self.d_vocab, self.max_context = 2, d_in, 258, 512
        self.dtype, self.device = dtype, torch.device("cpu")
        self.bos_id, self.separator_id = 0, 1
        self.special_ids = frozenset([0, 1])
        self.seconds = seconds
        self.calls = 0
        generator = torch.Generator().manual_seed(0)
        self._tables = {
            hook_point: torch.randn(self.d_vocab + self.max_context, d_in, generator=generator)
            for hook_point in HOOK_POINTS
        }
        for table in self._tables.values():
            table[MASSIVE] *= 1000
            table[self.d_vocab :] *= 0.1

    content_hash = "table-hash"

    def hook_points(self):
        return list(HOOK_POINTS)

    def width_at(self, hook_point):
        return self._tables[hook_point].shape[1]

    def tokenize(self, texts):
        return [[2 + byte for byte in text.encode()] for text in texts]

    def capture(self, tokens, hook_points):
        self.calls += 1
        time.sleep(self.seconds)
        positions = self.d_vocab + torch.arange(tokens.shape[1])
        return {
            name: (self._tables[name][tokens] + self._tables[name][positions]).to(self.dtype)
            for name in hook_points
        }

    def capture_with_gradients(self, tokens, hook_points):
        captured = self.capture(tokens, hook_points)
        return {name: (rows, rows * 0.5) for name, rows in captured.items()}


def small_config(text: Path, **changes) -> HarvestConfig:
    settings = {
        "model": "table",
        "hook_points": HOOK_POINTS[:1],
        "text": TextConfig(source=str(text), held_out_fraction=0.0),
        "context_length": 16,
        "n_tokens": None,
        "batch_contexts": 4,
        "contexts_per_shard": 8,
        "model_dtype": "bfloat16",
    }
    return HarvestConfig(**settings | changes)


def slow_config(text: Path) -> HarvestConfig:
    return small_config(text, hook_points=HOOK_POINTS, gradients=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("text", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = TableModel(d_in=64, seconds=0.01)
    write_caches(given.out, slow_config(given.text), resume=True, model=model)


if __name__ == "__main__":
    main()
