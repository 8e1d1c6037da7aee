"""circuit-tracer's files, for attribution graphs: sets of transcoders, and cross-layer transcoders.

A set is `layer_<i>.safetensors` for every layer; a cross-layer transcoder `W_enc_<i>` and
`W_dec_<i>.safetensors`, decoders [latents, targets, d] by source. Nothing is subtracted from the
input there, so input biases go into the encoder's. Codes below zero are kept there: thresholds
below zero, where codes here begin at zero, are written as zero, and TopK differs in rows of fewer
than k positive pre-activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.errors import ConfigError
from saelab.formats.files import write_json, write_tensors

from .architectures import Dictionary
from .exporters import refuse_normalisation, refused
from .layered import LayeredDictionary
from .storage import SavedDictionary

NAME = "circuit-tracer"
CONFIG_FILE = "config.yaml"


def to_circuit_tracer(saved: Sequence[SavedDictionary], out: Path) -> list[Path]:
    """The files of one cross-layer transcoder, or of a set of one transcoder for every layer.

    Args:
        saved: one dictionary over several layers, or those of single layers in any order.

    Raises:
        ConfigError: another kind of dictionary; layers that are missing, or do not fit together.
    """
    for each in saved:
        refuse_normalisation(NAME, each)
    first = saved[0]
    places = [place for each in saved for place in _places(each)]
    layers, hooks = [layer for layer, _ in places], {hooks for _, hooks in places}
    expected = [*range(len(places))]
    if sorted(layers) != expected:
        missing = sorted({*expected} - {*layers})[0]
        raise ConfigError(
            f"{NAME}: layers {', '.join(map(str, sorted(layers)))} are given: it needs one of "
            f"every layer from 0 on; add that of layer {missing}, or leave out what is double"
        )
    differ = {(each.model_name, each.dictionary.architecture) for each in saved}
    shapes = {(each.dictionary.d_sae, each.dictionary.d_in, each.dictionary.k) for each in saved}
    if len(hooks) > 1 or len(differ) > 1 or len(shapes) > 1:
        raise ConfigError(
            f"{NAME}: the layers of a set have one model, one kind of hook point, one architecture "
            "and one shape; these do not: export those that belong together"
        )
    ((read, written),) = hooks
    config: dict[str, Any] = {
        "model_name": first.model_name,
        "model_kind": "transcoder_set" if len(saved) == len(places) else "cross_layer_transcoder",
        "feature_input_hook": read,
        "feature_output_hook": written,
        "scan": first.name,
    }
    if len(saved) == len(places):
        files = [_write_layer(each, out) for each in saved]
        if first.dictionary.k:
            config |= {"activation": "topk", "k": first.dictionary.k}
    else:
        files = _write_cross_layer(first, len(places), out)
    write_json(out / CONFIG_FILE, config)
    return [*files, out / CONFIG_FILE]


def _places(saved: SavedDictionary) -> list[tuple[int, tuple[str, str]]]:
    """The layers of a dictionary, each with the names there of what is read and written."""
    site, places = saved.site, []
    if site.is_autoencoder or len(site.reads) != len(site.writes):
        raise refused(NAME, saved, f"it reads and writes {site}, and no transcoder does")
    for read, written in zip(site.reads, site.writes, strict=True):
        parts = [name.split(".", 2) for name in (read, written)]
        if any(len(part) < 3 or not part[1].isdecimal() for part in parts):
            raise refused(NAME, saved, f"{read} -> {written} names no layer")
        if parts[0][1] != parts[1][1]:
            raise refused(NAME, saved, f"{read} -> {written} is of two layers")
        places.append((int(parts[0][1]), (parts[0][2], parts[1][2])))
    if [layer for layer, _ in places] != sorted(layer for layer, _ in places):
        raise refused(NAME, saved, "its layers are not in order")
    return places


def _write_layer(saved: SavedDictionary, out: Path) -> Path:
    """One transcoder of a set."""
    dictionary = saved.dictionary
    if dictionary.architecture not in ("relu", "jumprelu", "topk"):
        raise refused(NAME, saved, f"it has no {dictionary.architecture}")
    tensors = _tensors(dictionary)
    if "threshold" in tensors:
        tensors["activation_function.threshold"] = tensors.pop("threshold")
    ((layer, _),) = _places(saved)
    path = out / f"layer_{layer}.safetensors"
    write_tensors(path, tensors)
    return path


def _write_cross_layer(saved: SavedDictionary, n_layers: int, out: Path) -> list[Path]:
    dictionary, files = saved.dictionary, []
    if dictionary.architecture not in ("relu", "jumprelu"):
        raise refused(
            NAME,
            saved,
            f"its cross-layer transcoders are relu or jumprelu, not {dictionary.architecture}: "
            "train with batch_topk, which is saved as jumprelu",
        )
    skips = []
    for index, b_dec in enumerate(dictionary.b_dec.chunk(n_layers)):
        layer = _tensors(_layer(saved, index, n_layers))
        decoder = layer.pop("W_dec").unflatten(1, (n_layers - index, -1))
        if "W_skip" in layer:
            skips.append(layer.pop("W_skip")[: len(b_dec)].T)
        encoder = {f"{name}_{index}": each for name, each in (layer | {"b_dec": b_dec}).items()}
        for part, tensors in (("enc", encoder), ("dec", {f"W_dec_{index}": decoder})):
            files.append(out / f"W_{part}_{index}.safetensors")
            write_tensors(files[-1], {name: each.contiguous() for name, each in tensors.items()})
    if skips:
        files.append(out / "W_skip.safetensors")
        write_tensors(files[-1], {"W_skip": torch.stack(skips)})
    return files


def _tensors(dictionary: Dictionary) -> dict[str, Tensor]:
    """What is written of a dictionary of one layer read, its input bias in the encoder's."""
    if bool(dictionary.input_bias.any()):
        dictionary = dictionary.with_input_bias(torch.zeros_like(dictionary.input_bias))
    tensors = {name: each for name, each in dictionary.tensors().items() if name != "b_in"}
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].clamp_min(0.0)
    return {**tensors, "W_enc": tensors["W_enc"].T.contiguous()}


def _layer(saved: SavedDictionary, index: int, n_layers: int) -> Dictionary:
    """What reads one layer, cut out of whole matrices where the layers are not apart.

    Raises:
        ConfigError: its latents read other layers too, or write earlier ones.
    """
    whole = saved.dictionary
    if isinstance(whole, LayeredDictionary):
        return whole.layer(index)
    width, size = whole.d_in // n_layers, whole.d_sae // n_layers
    latents, start = slice(index * size, (index + 1) * size), index * width
    W_enc = whole.W_enc[start : start + width, latents]
    W_dec = whole.W_dec[latents, start:]
    blocks = ((W_enc, whole.W_enc[:, latents]), (W_dec, whole.W_dec[latents]))
    if any(part.count_nonzero() != full.count_nonzero() for part, full in blocks):
        raise refused(NAME, saved, "its latents read several layers, or write earlier ones")
    tensors: dict[str, Any] = {
        name: getattr(whole, name)[latents] for name in whole.tensors() if name in _BY_LATENT
    }
    if whole.W_skip is not None:
        tensors["W_skip"] = whole.W_skip[start:, start : start + width]
    b_in = whole.input_bias[start : start + width]
    b_dec = whole.b_dec[start:]
    return Dictionary(
        whole.architecture, W_enc=W_enc, W_dec=W_dec, b_dec=b_dec, b_in=b_in, **tensors
    )


_BY_LATENT = ("b_enc", "threshold")
