"""Probes on pooled activations, which latents they rest on, and what ablating those does to them.

With the error kept, ablating latents S takes Σ_{j∈S} f_j d_j from every token's activation. Pooling
is a mean, so it takes Σ_{j∈S} (mean f_j) d_j from the pooled one: nothing is decoded again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

from ..probing.probes import LinearProbe, balanced_accuracy, fit_all


@dataclass(frozen=True, eq=False)
class Pooled:
    """A data set as one dictionary sees it."""

    activations: Float[np.ndarray, "examples d_in"]
    """Means over tokens."""
    codes: sparse.csr_array
    """[examples d_sae], means over tokens in units of the activations."""
    decoder: Float[np.ndarray, "d_sae d_in"]
    """What each latent writes."""

    def probe(
        self, train: Int[np.ndarray, " train"], answers: Bool[np.ndarray, " train"], penalty: float
    ) -> LinearProbe:
        """A probe on activations; `penalty` is its C.

        Channels keep their spreads: weights of standardised ones reach into directions in which
        nothing varies, and an ablation moves along those.
        """
        return fit_all(self.activations[train], answers, standardise=False, inverse_penalty=penalty)

    def effects(
        self,
        probe: LinearProbe,
        train: Int[np.ndarray, " train"],
        answers: Bool[np.ndarray, " train"],
        *,
        signed: bool,
    ) -> Float[np.ndarray, " d_sae"]:
        """How much each latent moves a probe apart between the classes, on training examples.

        (mean f_j of positive examples − of negative ones) · (w · d_j).

        Args:
            signed: as TPP wants it: only latents with the larger mean on positive examples, with
                the sign. Else, as SCR wants it, the size for all.
        """
        codes = self.codes[train]
        difference = codes[answers].mean(0) - codes[~answers].mean(0)
        if signed:
            return np.maximum(difference, 0) * (self.decoder @ probe.weight)
        return np.abs(difference * (self.decoder @ probe.weight))

    def ablated(
        self, examples: Int[np.ndarray, " some"], latents: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, "some d_in"]:
        """Pooled activations of examples with latents set to zero and the error kept."""
        removed = self.codes[examples][:, latents] @ self.decoder[latents]
        return self.activations[examples] - removed


def top_latents(effects: Float[np.ndarray, " d_sae"], n: int) -> Int[np.ndarray, " _"]:
    """The n latents of the largest effects, or as many as have one; of equal ones the first."""
    order = np.argsort(-effects, kind="stable")
    return order[effects[order] != 0][:n]


def accuracy(
    probe: LinearProbe,
    activations: Float[np.ndarray, "some d_in"],
    answers: Bool[np.ndarray, " some"],
) -> float:
    """Mean of the accuracies on positive and on negative examples."""
    return balanced_accuracy(probe.scores(activations), answers)


def without_direction(
    activations: Float[np.ndarray, "some d_in"],
    weight: Float[np.ndarray, " d_in"],
    middle: Float[np.ndarray, " d_in"],
) -> Float[np.ndarray, "some d_in"]:
    """Activations with their component along a direction put to that of a mean: what an ablation
    of a probe's own direction leaves, the skyline."""
    unit = weight / max(np.linalg.norm(weight), 1e-300)
    return activations - np.outer((activations - middle) @ unit, unit)
