"""The arbitrary contexts in which latents are added."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.dictionary.data_spec import DataSpec, held_out_batches, select
from saelab.errors import TextError
from saelab.model.language_model import LanguageModel
from saelab.stats.seeds import seeded_generator

POOL_PER_CONTEXT = 64
"""Contexts are drawn from this many times as many, so that they come from many documents."""
BATCH = 64


def draw_prompts(
    model: LanguageModel, spec: DataSpec, *, count: int, length: int, seed: int
) -> Int[Tensor, "contexts seq"]:
    """Draw contexts from the held-out text, of which the last position is an evaluated row.

    Raises:
        TextError: too little held-out text.
        ConfigError: contexts longer than the model's.
    """
    short = replace(spec, context_length=length)
    pool = torch.cat(list(held_out_batches(model, short, POOL_PER_CONTEXT * count * length, BATCH)))
    order = torch.randperm(len(pool), generator=seeded_generator("steering", "prompts", seed))
    usable = _usable(model, short, pool[order])
    chosen = list(islice(usable, count))
    if len(chosen) < count:
        raise TextError(
            f"the held-out text gives {len(chosen)} contexts of {length} tokens that end in an "
            f"evaluated row; {count} were asked for: give more text, or lower --n-contexts or "
            "--prompt-tokens"
        )
    return torch.stack(chosen)


def _usable(
    model: LanguageModel, spec: DataSpec, pool: Int[Tensor, "contexts seq"]
) -> Iterator[Int[Tensor, " seq"]]:
    """The contexts whose last position counts as a row, as far as they are asked for."""
    for tokens in pool.split(BATCH):
        captured = model.capture(tokens, spec.site.hook_points)
        keep, _ = select(model, spec, tokens, captured)
        yield from tokens[keep[:, -1].cpu()]
