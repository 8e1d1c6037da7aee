"""Generation with an activation edited on the way, several versions of one text side by side.

Keys and values of what was written are kept where the model and the hook point allow it, so a token
costs one position and not the whole text: SmolLM2-135M writes two versions of 40 tokens in a few
seconds on one CPU core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .hooked_forward import HookedForward
from .patched_runs import new_key_cache

Edit = Callable[[Tensor, Tensor, int], Tensor]
"""From activations [versions seq d_in], their tokens [versions seq] and the position of the first
of them, to their replacement."""


@dataclass(frozen=True, eq=False)
class GeneratedTokens:
    """The next token of every version, and what it was drawn from."""

    tokens: Int[Tensor, " versions"]
    """The tokens, on the CPU."""
    logits: Float[Tensor, "versions d_vocab"]
    """Logits of this position, float32 on the CPU, before the temperature."""
    finished: Bool[Tensor, " versions"]
    """Which versions ended with this token or earlier; what they write from here on is void."""


@torch.no_grad()
def generate_tokens(
    forward: HookedForward,
    prompt: Int[Tensor, " seq"],
    hook_point: str,
    edit: Edit,
    *,
    n_versions: int,
    n_tokens: int,
    temperature: float | int,
    seed: int,
    end_ids: frozenset[int],
) -> Iterator[GeneratedTokens]:
    """Write on from a prompt, one token of every version at a time.

    All versions are drawn with the same random numbers (Gumbel noise on the logits), so versions
    that do not differ in their logits write the same text, and differences are the edit's.

    Args:
        forward: the model; the rest is as in `LanguageModel.generate`, the prompt on its device.
        end_ids: tokens that end a version.
    """
    noise = torch.Generator().manual_seed(seed)
    past = new_key_cache(forward) if forward.is_plain(hook_point) else None
    written = prompt.expand(n_versions, -1)
    unread, first = written, 0
    finished = torch.zeros(n_versions, dtype=torch.bool)
    ends = torch.tensor(sorted(end_ids), dtype=torch.int64)
    for _ in range(n_tokens):

        def visit(x: Tensor, tokens: Tensor = unread, start: int = first) -> Tensor:
            return edit(x, tokens, start).to(x)

        logits = forward.run(unread, {hook_point: visit}, past=past)
        assert logits is not None
        last = logits[:, -1].float().cpu()
        chosen = draw(last, temperature, noise)
        finished = finished | torch.isin(chosen, ends)
        yield GeneratedTokens(chosen, last, finished)
        if bool(finished.all()):
            return
        chosen = chosen.to(written.device)[:, None]
        written = torch.cat([written, chosen], dim=1)
        if past is not None and past.get_seq_length() != written.shape[1] - 1:
            # The model ignored the cache: read the whole text again for every token.
            past = None
        unread, first = (written, 0) if past is None else (chosen, written.shape[1] - 1)


def draw(
    logits: Float[Tensor, "versions d_vocab"], temperature: float | int, noise: torch.Generator
) -> Int[Tensor, " versions"]:
    """One token of each row of softmax(logits / temperature), all with the same random numbers.

    The largest of logits / temperature + Gumbel noise is distributed like a draw.
    """
    if temperature == 0:
        return logits.argmax(dim=1)
    uniform = torch.rand(logits.shape[1], generator=noise, dtype=torch.float64)
    gumbel = -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))
    return (logits.double() / temperature + gumbel).argmax(dim=1)
