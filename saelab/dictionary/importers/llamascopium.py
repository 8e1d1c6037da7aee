"""Llamascopium (OpenMOSS; before: Language-Model-SAEs): `config.json` and `sae_weights`.

With h = s_in x W_E + b_E, a latent passes by g = h · ‖W_D‖ (`sparsity_include_decoder_norm`) or by
g = h, its code is h, and the reconstruction is (f W_D + b_D) / s_out; s = √d / average norm of each
hook point. Scales are folded in here, from the unfolded file: Llamascopium's own folding leaves a
threshold in the old scale. A cross-layer transcoder has one encoder for each layer and decoders
grouped by target; a crosscoder adds up the pre-activations of its hook points. Releases up to
Llama-Scope-R1-Distill call the same tensors encoder and decoder, transposed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.dictionary.architectures import Dictionary
from saelab.dictionary.saelens import with_unit_decoder
from saelab.dictionary.site import Site
from saelab.errors import ArtifactError

from .cross_layer import block_matrices, require_dense_size
from .foreign import (
    Foreign,
    Format,
    Source,
    build,
    in_raw_units,
    load_config,
    load_weights,
    names_of,
    peek_config,
    require_shapes,
    take,
)

CONFIG = "config.json"
WEIGHTS = tuple(
    f"{stem}.{suffix}"
    for stem in ("sae_weights", "checkpoints/pruned", "checkpoints/final")
    for suffix in ("safetensors", "pt", "dcp")
)
"""Files that may hold the weights; the first of them does."""
NORM = "dataset_average_activation_norm."
PLAUSIBLE_NORMS = (1e-4, 1e6)
"""Norms never measured are saved as whatever the memory held."""
REFUSED_TYPES = {
    "lorsa": "its latents are attention heads, which read a whole sequence and not one row",
    "molt": "its latents are low-rank transforms of the row, not directions with an activation",
}
CROSS_LAYER_TOPK = "it chooses the k largest of each layer by itself"
WHOLE_BATCH = (
    "it chooses the largest of a whole batch and saves no threshold, so a row's codes depend on "
    "the others: convert it to jumprelu in Llamascopium first (topk_to_jumprelu_conversion)"
)
MODELS = {
    r"Llama-Scope-R1-Distill": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    r"Llama-Scope-2-(Qwen3-[\d.]+B)": r"Qwen/\1",
}
"""Which model a repository's name means; the files do not say it."""


def matches(path: Path) -> bool:
    """Whether a folder's `config.json` is one of Llamascopium's."""
    settings = peek_config(path / CONFIG)
    hooks = {"hook_point_in", "hook_points", "hook_points_in"}
    return {"d_model", "expansion_factor"} <= settings.keys() and bool(hooks & settings.keys())


def read(source: Source) -> Iterator[Foreign]:
    """The dictionary of a folder."""
    folder, config = source.path, load_config(source.path / CONFIG)
    kind = str(config.get("sae_type", "sae"))
    if kind in REFUSED_TYPES or kind not in ("sae", "clt", "crosscoder"):
        reason = REFUSED_TYPES.get(kind, "of which saelab knows nothing")
        raise ArtifactError(f"{folder} is a {kind}: {reason}; it cannot be imported")
    reads, writes = hook_points(config, folder)
    path = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if path is None or path.suffix == ".dcp":
        raise ArtifactError(
            f"{folder} holds {'none of ' + ', '.join(WEIGHTS) if path is None else path.name}: "
            "save it with save_pretrained in Llamascopium, as safetensors"
        )
    d_model, d_sae = int(config["d_model"]), int(config["d_model"] * config["expansion_factor"])
    if kind == "clt":
        require_dense_size(folder, len(reads), d_model, d_sae)
    act_fn = str(config.get("act_fn", "relu")).lower()
    _require_expressible(folder, kind, act_fn, len(reads))
    weights = load_weights(path)
    weights = weights.get("sae", weights)
    tensors = LAYOUTS[kind](config, weights, path, len(reads), d_model, d_sae)
    norms = {name: weights[key] for name in (*reads, *writes) if (key := NORM + name) in weights}
    if kind == "clt" and act_fn == "layertopk":
        act_fn = "topk"
    dictionary = scaled_dictionary(
        config | {"act_fn": act_fn}, path, tensors, (reads, writes), norms
    )
    normalisation = str(config.get("norm_activation", "dataset-wise"))
    notes = []
    if normalisation == "inference" and act_fn == "jumprelu":
        notes.append(
            "Llamascopium folded its scale in before it was saved, which leaves thresholds in the "
            "old scale: if its L0 is not what was reported, import the file it was folded from"
        )
    yield Foreign(
        dictionary=dictionary,
        site=Site(reads, writes),
        model=_model(names_of(source)),
        conventions=conventions(config, act_fn),
        notes=tuple(notes),
        files=(folder / CONFIG, path),
    )


def hook_points(config: Mapping[str, Any], folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The hook points read and written, in TransformerLens' names as the settings have them.

    Raises:
        ArtifactError: the settings name none.
    """
    both = config.get("hook_points")
    reads = both or config.get("hook_points_in") or [config.get("hook_point_in")]
    writes = both or config.get("hook_points_out") or [config.get("hook_point_out") or reads[0]]
    if len(reads) != len(writes) or not all(isinstance(name, str) for name in (*reads, *writes)):
        raise ArtifactError(
            f"{folder} names the hook points {reads} and {writes}: as many must be read as written"
        )
    return tuple(reads), tuple(writes)


def _require_expressible(folder: Path, kind: str, act_fn: str, n_hook_points: int) -> None:
    reasons = {"batchtopk": WHOLE_BATCH, "batchlayertopk": WHOLE_BATCH}
    if kind == "clt" and n_hook_points > 1:
        reasons["topk"] = CROSS_LAYER_TOPK
    if kind == "crosscoder" and act_fn != "relu":
        reasons[act_fn] = (
            "each hook point has its own choice of latents, so codes differ between them; only a "
            "relu crosscoder has one code for all"
        )
    expressible = ("relu", "jumprelu", "topk", *(("layertopk",) if kind == "clt" else ()))
    if act_fn in reasons or act_fn not in expressible:
        reason = reasons.get(act_fn, f"saelab knows {', '.join(expressible)}")
        raise ArtifactError(f"{folder} is a {kind} with {act_fn}: {reason}; it cannot be imported")


def _sae(config: Any, weights: Any, path: Path, n: int, d_model: int, d_sae: int) -> Any:
    del n
    names = ("W_E", "b_E", "W_D", "b_D")
    if "encoder.weight" in weights:
        names = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
    bias = names[3] if config.get("use_decoder_bias", True) else None
    held = take(weights, path, *names[:3], *([bias] if bias else []))
    transposed = names[0] != "W_E"
    encoder, decoder = (held[name].T if transposed else held[name] for name in (names[0], names[2]))
    tensors = {"W_enc": encoder, "b_enc": held[names[1]], "W_dec": decoder}
    tensors["b_dec"] = held[bias] if bias else torch.zeros(d_model)
    shapes = {"W_enc": (d_model, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_model)}
    require_shapes(tensors, path, shapes | {"b_dec": (d_model,)})
    return tensors | _threshold(weights, path, (d_sae,))


def _clt(config: Any, weights: Any, path: Path, n: int, d_model: int, d_sae: int) -> Any:
    layers = range(n)
    biases = [f"b_D.{t}" for t in layers] if config.get("use_decoder_bias", True) else []
    held = take(weights, path, "W_E", "b_E", *(f"W_D.{t}" for t in layers), *biases)
    shapes: dict[str, tuple[int, ...]] = {"W_E": (n, d_model, d_sae), "b_E": (n, d_sae)}
    shapes |= {f"W_D.{target}": (target + 1, d_sae, d_model) for target in layers}
    require_shapes(held, path, shapes | dict.fromkeys(biases, (d_model,)))
    decoders = {
        (layer, target): held[f"W_D.{target}"][layer]
        for target in layers
        for layer in range(target + 1)
    }
    return {
        **block_matrices(path, list(held["W_E"]), decoders),
        "b_enc": held["b_E"].flatten(),
        "b_dec": torch.cat([held[name] for name in biases]) if biases else torch.zeros(n * d_model),
        **_threshold(weights, path, (n, d_sae)),
    }


def _crosscoder(config: Any, weights: Any, path: Path, n: int, d_model: int, d_sae: int) -> Any:
    del config  # a decoder bias and gating by decoder norms are all that it knows
    held = take(weights, path, "W_E", "b_E", "W_D", "b_D")
    shapes = {"W_E": (n, d_model, d_sae), "b_E": (n, d_sae)}
    require_shapes(held, path, shapes | {"W_D": (n, d_sae, d_model), "b_D": (n, d_model)})
    return {
        "W_enc": held["W_E"].reshape(n * d_model, d_sae),
        "b_enc": held["b_E"].sum(0),
        "W_dec": held["W_D"].transpose(0, 1).reshape(d_sae, n * d_model),
        "b_dec": held["b_D"].flatten(),
    }


LAYOUTS = {"sae": _sae, "clt": _clt, "crosscoder": _crosscoder}


def _threshold(weights: Any, path: Path, shape: tuple[int, ...]) -> dict[str, Tensor]:
    for name in ("activation_function.log_jumprelu_threshold", "log_jumprelu_threshold"):
        if name in weights:
            held = take(weights, path, name)
            require_shapes(held, path, {name: shape})
            return {"threshold": held[name].exp().flatten()}
    return {}


def scaled_dictionary(
    config: Mapping[str, Any],
    path: Path,
    tensors: dict[str, Tensor],
    sites: tuple[tuple[str, ...], tuple[str, ...]],
    norms: Mapping[str, Any],
) -> Dictionary:
    """A dictionary of raw activations from one of scaled ones, whose gate may see decoder norms.

    Args:
        config: act_fn, top_k, norm_activation, sparsity_include_decoder_norm, d_model.
        path: for messages.
        tensors: W_enc, b_enc, W_dec, b_dec, perhaps b_in and the threshold of the gate; all in the
            scale of training, the last as the gate sees it.
        sites: hook points read and written.
        norms: average norms by hook point, where they were measured.

    Raises:
        ArtifactError: a setting that cannot be expressed, or norms that nobody measured.
    """
    act_fn = str(config.get("act_fn", "relu")).lower()
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


def conventions(config: Mapping[str, Any], act_fn: str) -> dict[str, str]:
    """What reading did, by its settings."""
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
        "input bias": "none",
        "scale": scale.get(normalisation, "none"),
        "selection": selection[act_fn],
        "threshold": "divided by ‖W_D‖" if act_fn == "jumprelu" and gate != "h" else "as it is",
        "codes": "in the scale of training" + (", times ‖W_D‖" if by_norm else ""),
        "hook point": "as recorded",
    }


def _model(names: str) -> str | None:
    for pattern, model in MODELS.items():
        if found := re.search(pattern, names):
            return found.expand(model)
    return None


FORMAT = Format("Llamascopium and Llama-Scope-R1-Distill (OpenMOSS)", matches, read)
