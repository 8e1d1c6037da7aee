"""Three ways to use a dictionary trained with `gradient_topk`; one of them sees the labels.

With z the pre-activations and g the gradient of the model's summed next-token loss with respect to
the activation:

* plain: the k largest z of each row, which is the saved `topk` gate;
* gradient-assisted: the k largest z · (1 + β |ĝ · W_dec|), with ĝ = g over the root mean square
  that training recorded (or over each row's own); what is decoded is z, or the score where
  training decoded that (Olmo et al., 2024, arXiv
  2411.10397, Figure 1). g needs the true next tokens: this mode repeats training's selection, and
  is no way to use a dictionary where the next token is not known;
* threshold: every z above one threshold, fitted after training so that the mean L0 was k.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import Within
from saelab.errors import ArtifactError
from saelab.sparse import PreActivations, SparseCodes, select_boosted_top_k
from saelab.sparse.kernels import pair_products

from .architectures import Dictionary
from .storage import SavedDictionary

METHOD = "gradient_topk"
SETTINGS = ("beta", "gradient_rms", "gradient_scale_per_token", "threshold")
SMALLEST_RMS = 1e-30
"""A row without a gradient is divided by this, not by zero, and stays without one."""


def has_inference_modes(saved: SavedDictionary) -> bool:
    """Whether the dictionary's training method has these modes at all."""
    return saved.manifest.get("config", {}).get("method") == METHOD


class InferenceModes:
    """The modes of one dictionary.

    Args:
        saved: a dictionary trained with `gradient_topk`.

    Raises:
        ArtifactError: it records no gradient settings, or a threshold that was never calibrated.
    """

    def __init__(self, saved: SavedDictionary):
        settings = _recorded_settings(saved)
        self.dictionary = saved.dictionary
        self.beta = float(settings["beta"])
        """Weight of the attribution in the score, for gradients of root mean square one."""
        self.gradient_rms = float(settings["gradient_rms"])
        """Of the raw gradients' entries during training, nats per activation unit."""
        self.per_token = bool(settings["gradient_scale_per_token"])
        """Whether each row's gradient is divided by its own root mean square instead."""
        self.decode_boosted = bool(settings["decode_boosted"])
        """Whether what is decoded are the scores."""
        self.threshold_value = float(settings["threshold"])
        """Pre-activation above which a latent is active in the threshold mode."""

    def plain(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        """Codes by the saved gate: the k largest pre-activations of each row."""
        return self.dictionary.encode(x)

    @torch.no_grad()
    def gradient_assisted(
        self, x: Float[Tensor, "batch d_in"], gradients: Float[Tensor, "batch d_in"]
    ) -> SparseCodes:
        """Codes by training's selection, which uses labels; β = 0 gives the plain codes exactly.

        Args:
            x: activations.
            gradients: of the summed next-token loss (nats) with respect to `x`, as
                `LanguageModel.capture_with_gradients` gives them; those of other rows as a control.
        """
        if self.beta == 0:
            return self.plain(x)
        d = self.dictionary
        x, gradients = x.to(d.W_enc.dtype), gradients.to(d.W_enc.dtype)
        boost = self.beta * self._scaled(gradients)
        pre = PreActivations(x - d.input_bias, d.W_enc, d.b_enc)
        chosen = select_boosted_top_k(pre, d.k, boost, d.W_dec)
        if self.decode_boosted:
            gain = 1 + pair_products(chosen, boost, d.W_dec).abs()
            chosen = chosen.with_value(chosen.value * gain)
        return chosen.keep(chosen.value > 0)

    def threshold(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        """Codes of every latent whose pre-activation exceeds the threshold."""
        return self.threshold_dictionary().encode(x)

    def threshold_dictionary(self) -> Dictionary:
        """The threshold mode as a `jumprelu` dictionary, on the same weights."""
        d = self.dictionary
        return Dictionary(
            "jumprelu",
            W_enc=d.W_enc,
            W_dec=d.W_dec,
            b_dec=d.b_dec,
            b_enc=d.b_enc,
            b_in=d.b_in,
            threshold=torch.full_like(d.b_enc, self.threshold_value),
        )

    def _scaled(self, gradients: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        if not self.per_token:
            return gradients / self.gradient_rms
        return gradients / gradients.square().mean(1, keepdim=True).sqrt().clamp_min(SMALLEST_RMS)


def _recorded_settings(saved: SavedDictionary) -> dict[str, Any]:
    """What training recorded for the modes, checked."""
    config = saved.manifest.get("config", {})
    settings = config.get("inference")
    if not isinstance(settings, dict) or not set(SETTINGS) <= set(settings):
        raise ArtifactError(
            f"{saved.folder} records no gradient settings (its method is "
            f"{config.get('method')!r}), so it has no gradient-assisted and no threshold mode: use "
            "its own gate, or train one with `--methods gradient_topk`"
        )
    numbers = {name: settings[name] for name in SETTINGS}
    # Dictionaries of older versions do not say.
    numbers["decode_boosted"] = settings.get("decode_boosted", 0.0)
    limits = {"beta": Within(0), "gradient_rms": Within(0, low_open=True)}
    wrong = [
        f"{name} = {value!r}"
        for name, value in numbers.items()
        if not isinstance(value, int | float) or not limits.get(name, Within()).admits(value)
    ]
    if wrong:
        raise ArtifactError(
            f"{saved.folder} records gradient settings that cannot be used ({', '.join(wrong)}): "
            "train it again"
        )
    if numbers["threshold"] < 0:
        raise ArtifactError(
            f"the threshold of {saved.folder} was never calibrated (it is recorded as "
            f"{numbers['threshold']:g}), so it has no threshold mode: let `saelab train` finish, "
            "which fits it"
        )
    dictionary = saved.dictionary
    if dictionary.architecture != "topk" or dictionary.input_normalisation != "none":
        raise ArtifactError(
            f"{saved.folder} is a {dictionary.architecture!r} dictionary with input normalisation "
            f"{dictionary.input_normalisation!r}; the modes of gradient_topk are those of a 'topk' "
            "one without: use its own gate"
        )
    return numbers
