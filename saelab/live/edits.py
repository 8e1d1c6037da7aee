"""Editing features: add to a code, hold it or take it away; and how the next token moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.dictionary import Dictionary
from saelab.errors import ConfigError
from saelab.stats.metrics import kl_divergence, require_finite

Kind = Literal["add", "clamp", "ablate"]

DEFINITIONS = {
    "add": "strength × the feature's maximum × its decoder row is added to the activation",
    "clamp": "the feature's code is set to strength × its maximum: the activation changes by the "
    "difference to the code it has × its decoder row",
    "ablate": "the feature's code is set to 0: its code × its decoder row is taken off",
}
"""What each kind of edit does; everything else in the activation, the error included, stays."""
SHIFT_DEFINITION = (
    "Probabilities are the softmax of the logits after the prompt, before any temperature. KL is "
    "Σ p_baseline · ln(p_baseline / p_steered) in nats: 0 where steering changes nothing."
)


@dataclass(frozen=True, kw_only=True)
class FeatureEdit:
    """What is done to one feature."""

    feature: int
    """Its number."""
    kind: Kind
    """What is done."""
    strength: float | int = 1.0
    """In multiples of `maximum`; without meaning for "ablate"."""
    maximum: float | int = 0.0
    """The feature's largest code, as its feature store says."""

    def __post_init__(self) -> None:
        problems = []
        if self.kind not in get_args(Kind):
            problems.append(f"edit {self.kind!r} is unknown: add, clamp or ablate")
        if self.feature < 0:
            problems.append(f"feature {self.feature} is negative")
        if self.kind != "ablate" and not self.maximum > 0:
            problems.append(
                f"feature {self.feature} has no maximum in the feature store (it was never active "
                "there), so a strength in multiples of it says nothing: choose another feature"
            )
        if not abs(self.strength) < float("inf"):
            problems.append(f"strength {self.strength} is not a finite number")
        if problems:
            raise ConfigError(problems)


@torch.no_grad()
def apply_edits(
    dictionary: Dictionary,
    x: Float[Tensor, "rows d_in"],
    edits: Sequence[FeatureEdit],
    where: Bool[Tensor, " rows"],
) -> Float[Tensor, "rows d_in"]:
    """Activations with features edited at some rows; all codes are those before any edit.

    Raises:
        ConfigError: a feature that the dictionary does not have.
    """
    wrong = [edit.feature for edit in edits if edit.feature >= dictionary.d_sae]
    if wrong:
        raise ConfigError(
            f"the dictionary has features 0 to {dictionary.d_sae - 1}; {wrong} are none of them"
        )
    if not edits or not bool(where.any()):
        return x
    rows = x[where].to(dictionary.W_dec.dtype)
    features = torch.tensor([edit.feature for edit in edits], device=x.device)
    codes = dictionary.encode(rows).to_dense()[:, features]
    amounts = codes.new_tensor([edit.strength * edit.maximum for edit in edits])
    added = torch.tensor([edit.kind == "add" for edit in edits], device=x.device)
    ablated = torch.tensor([edit.kind == "ablate" for edit in edits], device=x.device)
    change = torch.where(ablated, -codes, torch.where(added, amounts, amounts - codes))
    scale = dictionary.row_scale(rows)
    if scale is not None:
        change = change * scale[:, None]
    changed = x.clone()
    changed[where] = (rows + change @ dictionary.W_dec[features]).to(x.dtype)
    return changed


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
