"""What error and latents add to the logits directly, through the final norm frozen as it was.

With s the root mean square of the stream that enters the final norm (of its deviation from its mean
under a layer norm), g the norm's gain and w_v the unembedding, what is written to the residual
stream, y, adds y · u to the logit of the likeliest next token v less the mean logit, where

    u = g ∘ (w_v − mean w) / s        (less its own mean under a layer norm)

Nothing that later blocks make of y is in it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.dictionary import Dictionary
from saelab.dictionary.layered import LayeredDictionary
from saelab.dictionary.saelens import WRITTEN_TO_RESIDUAL
from saelab.model.language_model import LanguageModel
from saelab.model.logit_lens import Lens
from saelab.sparse import SparseCodes
from saelab.sparse.kernels import pair_products


def goes_to_logits(model: LanguageModel, hook_point: str) -> bool:
    """Whether what is written there is added to the residual stream, or is it."""
    return (
        hook_point.rpartition(".")[2] in WRITTEN_TO_RESIDUAL
        and model.width_at(hook_point) == model.d_model
    )


class LogitDirections:
    """The directions u of positions.

    Args:
        lens: of the model.
        device: where rows lie.
    """

    def __init__(self, lens: Lens, device: torch.device):
        self.centres = lens.centres_input
        self.gain = lens.gain.to(device).double()
        self.unembedding = lens.unembedding.to(device)
        self.mean = self.unembedding.double().mean(0)

    def at(
        self, stream: Float[Tensor, "rows d_model"], token: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows d_model"]:
        """The direction of each position, float64.

        Args:
            stream: what enters the final norm there.
            token: whose logit it is.
        """
        stream = stream.double()
        u = self.gain * (self.unembedding[token].double() - self.mean)
        if self.centres:
            stream, u = (each - each.mean(1, keepdim=True) for each in (stream, u))
        return u / stream.square().mean(1, keepdim=True).sqrt()


def effect_size(rows: Float[Tensor, "rows d"], u: Float[Tensor, "rows d"]) -> float:
    """The sum over rows of the size of what they add to the logit."""
    return float((rows.double() * u).sum(1).abs().sum())


def latents_effect_size(
    dictionary: Dictionary, codes: SparseCodes, u: Float[Tensor, "rows d"]
) -> float:
    """The sum over active pairs of the size of what each adds, over all that it writes together."""
    if isinstance(dictionary, LayeredDictionary):
        bounds = dictionary.starts
        return sum(
            latents_effect_size(
                dictionary.layer(index), codes.of_latents(*bounds[index : index + 2]), u
            )
            for index in range(dictionary.n_layers)
        )
    W_dec = dictionary.W_dec
    everywhere = u.repeat(1, W_dec.shape[1] // u.shape[1]).to(W_dec)
    added = codes.scaled_values() * pair_products(codes, everywhere, W_dec)
    return float(added.double().abs().sum())
