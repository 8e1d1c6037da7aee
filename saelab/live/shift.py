"""How an edit moves the distribution of the next token."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from saelab.stats.metrics import kl_divergence, require_finite

DEFINITION = (
    "Probabilities are the softmax of the logits after the prompt, before any temperature. KL is "
    "Σ p_baseline · ln(p_baseline / p_steered) in nats: 0 where steering changes nothing."
)


@dataclass(frozen=True, eq=False)
class Shift:
    """Next-token distributions before and after, and the tokens that gain and lose most."""

    kl: float
    """KL(baseline ‖ steered), nats."""
    gaining: list[tuple[int, float, float]]
    """Tokens whose probability rises most: id, probability before, after."""
    losing: list[tuple[int, float, float]]
    """Tokens whose probability falls most."""


def next_token_shift(
    baseline: Float[Tensor, " d_vocab"], steered: Float[Tensor, " d_vocab"], n_tokens: int = 10
) -> Shift:
    """Compare two sets of logits; float64.

    Raises:
        ActivationError: logits that are not finite.
    """
    require_finite(steered, "the steered model's logits")
    before, after = baseline.double().softmax(0), steered.double().softmax(0)
    change = after - before
    up, down = (change.topk(n_tokens, largest=largest).indices for largest in (True, False))

    def listed(ids: Tensor, sign: int) -> list[tuple[int, float, float]]:
        return [
            (id_, float(before[id_]), float(after[id_]))
            for id_ in ids.tolist()
            if sign * float(change[id_]) > 0
        ]

    # Rounding of float32 can leave a tiny negative number where nothing changed.
    kl = max(0.0, float(kl_divergence(baseline[None].float(), steered[None].float())[0]))
    return Shift(kl, listed(up, 1), listed(down, -1))
