"""Dictionaries of models with processed weights, as dictionaries of the raw model.

TransformerLens' processing leaves what a model computes as it is and changes activations. What is
written to the residual stream loses each row's mean. Attention's values, and their averages, lose
what they are at an input of zero: the value bias and the folded norm's bias, which the output bias
takes up. Outputs of norms lose gain and bias. Everything else is the same.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.dictionary.architectures import Dictionary
from saelab.dictionary.saelens import WRITTEN_TO_RESIDUAL
from saelab.dictionary.site import Site
from saelab.errors import ConfigError
from saelab.model.language_model import LanguageModel

VALUES = re.compile(r"(blocks\.\d+)\.attn\.hook_[vz]")
NORM_OUTPUTS = re.compile(r"(blocks\.\d+)\.(ln[12]\.hook_out|(?:attn|mlp)\.hook_in)")


def on_raw_weights(dictionary: Dictionary, site: Site, model: LanguageModel) -> Dictionary:
    """The same function on raw weights, of a dictionary that was trained on processed ones.

    Raises:
        ConfigError: it normalises each row already, its activations are the same with both, or
            they are those behind a folded norm; the message says what to give.
    """
    at, said = site.reads[0], "processed_weights: leave it away"
    if not site.is_autoencoder or len(site.reads) > 1:
        raise ConfigError(
            f"{said}: it is for dictionaries that read and write one hook point, and means nothing "
            f"at {site}; hook_normalized is the same with raw weights"
        )
    if dictionary.input_normalisation != "none":
        raise ConfigError(
            f"{said}: the source normalises each row already ({dictionary.input_normalisation})"
        )
    tensors: dict[str, Any] = dict(dictionary.tensors())
    k = dictionary.k or None
    if at.endswith(WRITTEN_TO_RESIDUAL):
        return Dictionary(dictionary.architecture, k=k, input_normalisation="center", **tensors)
    if VALUES.fullmatch(at):
        shift = value_bias(model, at).to(dictionary.b_dec)
        tensors |= {"b_in": dictionary.input_bias + shift, "b_dec": dictionary.b_dec + shift}
        return Dictionary(dictionary.architecture, k=k, **tensors)
    if norm := NORM_OUTPUTS.fullmatch(at):
        number = 2 if "ln2" in at or "mlp" in at else 1
        raise ConfigError(
            f"{said}: with folded norms {at} is {norm[1]}.ln{number}.hook_normalized of the raw "
            "model, which is to be given with --reads"
        )
    raise ConfigError(f"{said}: activations at {at} are the same with raw weights")


@torch.no_grad()
def value_bias(model: LanguageModel, hook_point: str) -> Float[Tensor, " d_in"]:
    """What processing takes off attention's values: what they are where the norm gives zeros."""
    norm = hook_point.rpartition(".attn.")[0] + ".ln1.hook_normalized"
    start = model.bos_id if model.bos_id is not None else model.separator_id
    out = model.run(
        torch.tensor([[start or 0] * 2]), {norm: torch.zeros_like}, capture=[hook_point]
    )
    return out.activations[hook_point][0, 0].float()
