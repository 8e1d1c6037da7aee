"""What the numbers of activation sparsity mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..definitions import Definition, filled_in

_SPARSING = "Luo et al., arXiv 2411.02335"
_AT = "with perplexity at most (1 + {rise}) times"
MEANINGS = {
    "Latents": {
        "droppable_share": "Largest share of firing latents that can be dropped, those of smallest "
        "contribution (code times row's scale times norm of the decoder row) {drop}, "
        + _AT
        + " that of the model with the whole reconstruction spliced in.",
        "functional_l0": "Mean number of latents of a token that are left then.",
        "l0_mean": "Mean number of positive codes of a token.",
        "threshold": "Smallest contribution of a latent that is left.",
        "loss_spliced": "Mean next-token loss with the whole reconstruction spliced in.",
        "loss_dropped": "The same without what was dropped.",
        "rise_random": "Share by which perplexity rises when as many firing latents are dropped at "
        "random: what the choice of the smallest is worth.",
    },
    "Neurons of the MLPs": {
        "mlp_sparsity": "Mean over layers of the share of neurons that is dropped, with one CETT "
        "for all layers (the norm of what dropped neurons would have added over that of the MLP's "
        "output, mean over tokens) and one threshold a layer, " + _AT + " that of the model "
        f"(CETT-PPL, {_SPARSING}).",
        "mlp_cett": "That CETT.",
        "mlp_sparsity_random": "Share of neurons dropped at the same CETT with random weights "
        "(Gaussian entries of each matrix's mean and deviation): sparsity that training did not "
        "make.",
        "mlp_nonzero": "Share of neurons above {lazy_below} root mean squares of their layer, mean "
        "over layers (Li et al., arXiv 2210.06313, with a threshold for SiLU and GELU).",
        "mlp_nonzero_random": "The same with random weights.",
        "wina_error": "Relative error of the MLPs' outputs, mean over tokens and layers, with the "
        "{kept} of each token's neurons kept that have the largest |x| c, c the norm of what the "
        "neuron writes (WINA, arXiv 2505.19427).",
        "magnitude_error": "The same by |x| alone.",
        "wina_rise": "Share by which perplexity rises with WINA's choice in every MLP.",
        "magnitude_rise": "The same by |x| alone.",
    },
    "What was counted": {
        "n_loss_positions": "Predicted positions.",
        "n_rows": "Tokens whose reconstruction was spliced in.",
    },
}
UNITS = {
    "functional_l0": "latents per token",
    "l0_mean": "latents per token",
    "threshold": "activation units",
    "loss_spliced": "nats per token",
    "loss_dropped": "nats per token",
    "n_loss_positions": "positions",
    "n_rows": "tokens",
}
LOWER = ("wina_error", "magnitude_error", "wina_rise", "magnitude_rise")


def activation_sparsity_definitions(facts: Mapping[str, Any]) -> list[Definition]:
    """Every number with the facts of a measurement filled in."""
    return filled_in(
        MEANINGS,
        facts,
        units=UNITS,
        better={
            **dict.fromkeys(LOWER, "lower"),
            # Not the share that can be dropped: of a dictionary that says nothing, all can.
            "mlp_sparsity": "higher",
        },
    )
