"""What dictionaries of OpenMOSS do: scales of training, and a gate that may see decoder norms.

With h = s_in x W_E + b_E, a latent passes by g = h · ‖W_D‖ (`sparsity_include_decoder_norm`) or by
g = h, its code is h, and the reconstruction is (f W_D + b_D) / s_out; s = √d / average norm of each
hook point. Scales are folded in here, from the unfolded file: Llamascopium's own folding leaves
thresholds in the old scale, and is wrong where several hook points have different norms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.dictionary.architectures import Dictionary
from saelab.dictionary.saelens import with_unit_decoder
from saelab.errors import ArtifactError

from .foreign import build, in_raw_units

PLAUSIBLE_NORMS = (1e-4, 1e6)
"""Norms never measured are saved as whatever the memory held."""


def scaled_dictionary(
    config: Mapping[str, Any],
    path: Path,
    tensors: dict[str, Tensor],
    sites: tuple[tuple[str, ...], tuple[str, ...]],
    norms: Mapping[str, Any],
) -> Dictionary:
    """A dictionary of raw activations from one of scaled ones, whose gate may see decoder norms.

    Args:
        config: act_fn (relu, jumprelu or topk), top_k, norm_activation,
            sparsity_include_decoder_norm, d_model.
        path: for messages.
        tensors: W_enc, b_enc, W_dec, b_dec, perhaps b_in and the threshold of the gate; all in the
            scale of training, the last as the gate sees it.
        sites: hook points read and written.
        norms: average norms by hook point, where they were measured.

    Raises:
        ArtifactError: a setting that cannot be expressed, or norms that nobody measured.
    """
    act_fn = config["act_fn"]
    tensors = {"b_in": torch.zeros(tensors["W_enc"].shape[0]), **tensors}
    if act_fn != "jumprelu":
        tensors.pop("threshold", None)
    elif "threshold" not in tensors:
        raise ArtifactError(f"{path} is a jumprelu without thresholds: it is incomplete")
    if config.get("use_glu_encoder"):
        raise ArtifactError(
            f"{path} has a gated linear unit for an encoder (use_glu_encoder), which no "
            "architecture of saelab expresses: it cannot be imported"
        )
    if config.get("sparsity_include_decoder_norm", True) and act_fn == "jumprelu":
        tensors["threshold"] = tensors["threshold"] / tensors["W_dec"].norm(dim=1).clamp_min(1e-8)
    elif config.get("sparsity_include_decoder_norm", True) and act_fn == "topk":
        tensors |= with_unit_decoder(tensors)
    normalisation = str(config.get("norm_activation", "dataset-wise"))
    row_norms = normalisation == "token-wise" and sites[0] == sites[1] and len(sites[0]) == 1
    if normalisation == "dataset-wise":
        inward, outward = (_scales(config, path, names, norms) for names in sites)
        tensors |= in_raw_units(tensors, inward, outward)
    elif normalisation != "inference" and not row_norms:
        raise ArtifactError(
            f"{path} normalises {normalisation}: its scale depends on "
            + ("what is written" if normalisation == "token-wise" else "the batch")
            + ", which is not known when it is used; it cannot be imported"
        )
    return build(
        path,
        act_fn,
        k=config.get("top_k") if act_fn == "topk" else None,
        input_normalisation="constant_norm_rescale" if row_norms else "none",
        **tensors,
    )


def _scales(
    config: Mapping[str, Any], path: Path, names: tuple[str, ...], norms: Mapping[str, Any]
) -> Tensor:
    scales = torch.tensor([scale_of(config, path, name, norms) for name in names])
    return scales.repeat_interleave(int(config["d_model"]))


def scale_of(config: Mapping[str, Any], path: Path, name: str, norms: Mapping[str, Any]) -> float:
    """What a hook point's activations were multiplied by in training: √d / average norm.

    Raises:
        ArtifactError: nobody measured its norm.
    """
    norm = float(norms.get(name, math.nan))
    if not PLAUSIBLE_NORMS[0] < norm < PLAUSIBLE_NORMS[1]:
        raise ArtifactError(
            f"{path} holds no plausible average norm of {name} "
            f"({norm if name in norms else 'none'}): it was saved before its norms were measured, "
            "and without them its scale is not known; save it again once they are"
        )
    return math.sqrt(config["d_model"]) / norm


def conventions(config: Mapping[str, Any]) -> dict[str, str]:
    """What reading did, by settings as `scaled_dictionary` takes them."""
    act_fn = config["act_fn"]
    gate = "h · ‖W_D‖" if config.get("sparsity_include_decoder_norm", True) else "h"
    normalisation = str(config.get("norm_activation", "dataset-wise"))
    scale = {
        "dataset-wise": "√d / average norm of each hook point, folded in",
        "token-wise": "√d / norm of each row",
    }
    selection = {
        "relu": "pre-activation above 0",
        "jumprelu": f"{gate} above the latent's threshold",
        "topk": f"{config.get('top_k')} largest {gate} after ReLU",
    }
    by_norm = act_fn == "topk" and gate != "h"
    return {
        "orientation": "as Llamascopium computes it: x W_E, f W_D",
        "scale": scale.get(normalisation, "none"),
        "selection": selection[act_fn],
        "threshold": "divided by ‖W_D‖" if act_fn == "jumprelu" and gate != "h" else "as it is",
        "codes": "in the scale of training" + (", times ‖W_D‖" if by_norm else ""),
        "hook point": "as recorded",
    }
