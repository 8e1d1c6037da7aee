"""Crosscoders: those of science-of-finetuning, and `cc_weights.pt` (Kissane and others).

Both read several activations of a token (of two models, mostly) and write them all. x̃ is each of
them, less its mean and times its scale where the file holds them; f = relu(Σ x̃ W_enc + b_enc), and
ŷ = f W_dec + b_dec is brought back. BatchTopK keeps f where f · n > threshold: n is the norm of the
latent's decoder, of a kind that the file names. Decoupled, it has a threshold and a set of codes
for each activation that is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from saelab.dictionary.saelens import with_unit_decoder
from saelab.dictionary.site import Site
from saelab.errors import ArtifactError

from .cross_layer import one_latent_for_each
from .files import load_weights, peek_config, peek_shapes, single_file, take
from .foreign import Foreign, Format, Source, batch_top_k, build, build_unshifted, in_raw_units

CROSSCODER, SAE, MIXED, NONE, DECOUPLED = range(1, 6)
NORMS = {
    CROSSCODER: "sum of its decoders' norms",
    SAE: "norm of its decoders side by side",
    MIXED: "both, weighted",
    NONE: "one",
    DECOUPLED: "norm of each decoder",
}
"""By code_normalization_id: what a code is multiplied by to be held against the threshold."""
ALPHAS = (("sae", 1.0), ("cc", 0.1))
"""Weights of the two norms in MIXED, where its config names none."""
COMPILED = "_orig_mod."
DENOMINATOR = 1e-8
"""Added to the scale that reconstructions are divided by."""
UNNAMED = (
    "it reads {} activations of a token side by side, and no file says which: give them with "
    "--reads, in their order"
)


def _science_file(path: Path) -> Path | None:
    suffixes = (".pt", ".safetensors")
    for file in (
        path / "model.safetensors",
        single_file(path, *suffixes),
        single_file(path, ".pt"),
    ):
        shapes = {name.rpartition(COMPILED)[2]: shape for name, shape in peek_shapes(file).items()}
        if len(shapes.get("encoder.weight", ())) == len(shapes.get("decoder.weight", ())) == 3:
            return file
    return None


def _read_science(source: Source) -> Iterator[Foreign]:
    path = _science_file(source.path) or source.path
    path = path / "model.safetensors" if path.is_dir() else path
    config = peek_config(path.parent / "config.json")
    weights = {name.rpartition(COMPILED)[2]: held for name, held in load_weights(path).items()}
    names = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
    encoder, b_enc, decoder, b_dec = take(weights, path, *names).values()
    if encoder.ndim != 3 or decoder.shape != (encoder.shape[0], *encoder.mT.shape[1:]):
        raise ArtifactError(
            f"{path} encodes {tuple(encoder.shape)} and decodes {tuple(decoder.shape)}: a "
            "crosscoder that reads other activations than it writes cannot be imported"
        )
    kind = int(weights.get("code_normalization_id", CROSSCODER))
    tensors = {
        "W_enc": rearrange(encoder, "layer d f -> (layer d) f"),
        "b_enc": b_enc,
        "W_dec": rearrange(decoder, "layer f d -> f (layer d)"),
        "b_dec": b_dec.flatten(),
    }
    thresholds = weights.get("threshold")
    architecture, extra, notes = "relu", {}, ()
    if thresholds is not None and kind == DECOUPLED:
        tensors, threshold = _decoupled(path, tensors, decoder, thresholds)
        architecture, extra = "jumprelu", {"threshold": threshold}
    elif thresholds is not None:
        norm = _norms(decoder, kind, config)
        k = int(weights.get("k", config.get("k", 0)))
        architecture, extra, notes = batch_top_k(k, float(thresholds), decoder.shape[1])
        if architecture == "topk":
            tensors |= with_unit_decoder(tensors, norm)
        else:
            extra["threshold"] = extra["threshold"] / norm
    tensors, scale = _raw(tensors, weights, encoder.shape[0])
    yield Foreign(
        dictionary=build(path, architecture, **tensors, **extra),
        conventions={
            "orientation": "activations side by side",
            "input bias": "the mean of each activation" if scale != "none" else "none",
            "scale": scale,
            "selection": f"{architecture}, after ReLU"
            + ("" if thresholds is None else f", by code · {NORMS.get(kind)}"),
            "latents": "one for each pair of a latent and an activation written (decoupled)"
            if thresholds is not None and kind == DECOUPLED
            else "as they are",
            "scale of the codes": f"code · {NORMS.get(kind)}"
            if architecture == "topk"
            else "as encode gives them; get_activations multiplies by the norm",
            "hook point": "given by the user",
        },
        notes=(*notes, UNNAMED.format(encoder.shape[0])),
        files=(path, path.parent / "config.json"),
    )


def _norms(decoder: Tensor, kind: int, config: dict[str, Any]) -> Tensor:
    """What each code is multiplied by before it is held against the threshold, [d_sae]."""
    each = decoder.norm(dim=2).sum(0)
    together = decoder.norm(dim=(0, 2))
    weights = [config.get(f"code_normalization_alpha_{name}", at) for name, at in ALPHAS]
    norms = {
        CROSSCODER: each,
        SAE: together,
        MIXED: weights[0] * together + weights[1] * each,
        NONE: torch.ones_like(each),
    }
    if kind not in norms:
        raise ArtifactError(f"code_normalization_id {kind} is unknown: known are 1 to 5")
    return norms[kind].clamp_min(1e-12)


def _decoupled(
    path: Path, tensors: dict[str, Tensor], decoder: Tensor, thresholds: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """A latent for each pair of activation and latent, and its threshold."""
    if thresholds.shape != decoder.shape[:1] or bool((thresholds < 0).any()):
        raise ArtifactError(
            f"{path} selects for each activation by itself and holds no threshold that was "
            "estimated for each: its codes depend on the batch; train it on until it has one"
        )
    threshold = thresholds.float()[:, None] / decoder.norm(dim=2).clamp_min(1e-12)
    return tensors | one_latent_for_each(path, tensors, decoder), threshold.flatten()


def _raw(
    tensors: dict[str, Tensor], weights: dict[str, Any], n_layers: int
) -> tuple[dict[str, Tensor], str]:
    """The same for raw activations, and what was folded in."""
    mean, scale = weights.get("activation_mean"), weights.get("activation_global_scale")
    tensors = tensors | {"b_in": torch.zeros_like(tensors["b_dec"])}
    if mean is None or scale is None or bool(mean.isnan().any()):
        return tensors, "none"
    each = scale.float().expand(n_layers).repeat_interleave(mean.numel() // n_layers)
    tensors = in_raw_units(tensors, each, each + DENOMINATOR)
    shift = mean.float().flatten()
    tensors |= {"b_in": shift, "b_dec": tensors["b_dec"] + shift}
    factors = ", ".join(f"{float(factor):.4g}" for factor in scale.flatten())
    return tensors, f"mean of each activation, then times {factors}; folded in"


def _weights_file(path: Path) -> Path | None:
    file = path / "cc_weights.pt" if path.is_dir() else single_file(path, ".pt")
    shapes = peek_shapes(file)
    return file if len(shapes.get("W_enc", ())) == len(shapes.get("W_dec", ())) == 3 else None


def _read_weights(source: Source) -> Iterator[Foreign]:
    path = _weights_file(source.path) or source.path
    path = path / "cc_weights.pt" if path.is_dir() else path
    config_path = path.parent / "cfg.json"
    if path.with_name(f"{path.stem}_cfg.json").is_file():
        config_path = path.with_name(f"{path.stem}_cfg.json")
    config = peek_config(config_path)
    encoder, decoder, b_enc, b_dec = take(
        load_weights(path), path, "W_enc", "W_dec", "b_enc", "b_dec"
    ).values()
    tensors = {
        "W_enc": rearrange(encoder, "layer d f -> (layer d) f"),
        "W_dec": rearrange(decoder, "f layer d -> f (layer d)"),
        "b_enc": b_enc,
        "b_dec": b_dec.flatten(),
    }
    listed = config.get("hook_points")
    hook_points = tuple(listed) if isinstance(listed, list) else ()
    site = Site(hook_points, hook_points) if len(hook_points) == len(encoder) else None
    notes = (
        "its activations were multiplied by a factor for each model (√d over the mean norm) that "
        "its files do not hold: without it codes are too large or too small",
    )
    yield Foreign(
        dictionary=build_unshifted(path, "relu", **tensors),
        site=site,
        conventions={
            "orientation": "activations side by side",
            "scale": "none: not in the files",
            "selection": "ReLU",
            "scale of the codes": "raw; its training weighs them by the sum of decoder norms",
            "hook point": str(config.get("hook_point", "given by the user")),
        },
        origin={"context_length": config.get("seq_len")},
        notes=notes if site else (*notes, UNNAMED.format(len(encoder))),
        files=(path, config_path),
    )


SCIENCE_FORMAT = Format(
    "crosscoders of science-of-finetuning",
    lambda path: _science_file(path) is not None,
    _read_science,
)
WEIGHTS_FORMAT = Format(
    "crosscoders as cc_weights.pt", lambda path: _weights_file(path) is not None, _read_weights
)
