"""Gemma Scope 2: `params.safetensors` and `config.json`, or one `params_layer_N` for each layer.

As Gemma Scope: f = h where h = x w_enc + b_enc exceeds its latent's threshold and zero. An affine
skip adds x A. In a cross-layer transcoder `w_dec` of source layer N is [d_sae, L, d_model], indexed
by target layer; entries for layers before N mean nothing. `config.json` can be missing: the
folder's name then says what it is. A weakly causal crosscoder is saved in the same way: it reads
and writes the residual stream after four blocks, which `config.json` and the folder's name list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.dictionary.architectures import Dictionary
from saelab.dictionary.site import Site
from saelab.errors import ArtifactError

from .cross_layer import across_layers, layer_tensors
from .files import load_config, load_weights, peek_config, peek_shapes, require_shapes, take
from .foreign import Foreign, Format, Source, build_unshifted, names_of
from .gemma_scope import CONVENTIONS, TRAINING

CONFIG, WEIGHTS, LAYER_FILES = "config.json", "params.safetensors", "params_layer_*.safetensors"
LAYER_NAME = re.compile(r"params_layer_(\d+)")
TENSORS = ("w_enc", "b_enc", "w_dec", "b_dec", "threshold")
SKIP = "affine_skip_connection"
HOOK_POINTS = {
    "output": "hook_resid_post",
    "self_attn.o_proj.input": "attn.hook_z",
    "pre_feedforward_layernorm.output": "mlp.hook_in",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}
"""TransformerLens' names of the modules' inputs and outputs that `config.json` names."""
FOLDERS = {
    "resid_post": ("output",) * 2,
    "attn_out": ("self_attn.o_proj.input",) * 2,
    "mlp_out": ("post_feedforward_layernorm.output",) * 2,
    "transcoder": ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"),
    "clt": ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"),
    "crosscoder": ("output",) * 2,
}
"""What each kind of folder reads and writes, where there is no `config.json`."""
MULTI_LAYER = ("clt", "crosscoder")
WORDS = (
    "attn.hook_z is the input of o_proj, mlp.hook_in what the MLP reads (after the norm before "
    "it), hook_mlp_out what it adds to the residual stream (after the norm behind it)"
)


def matches(path: Path) -> bool:
    """Whether a folder, or the folder of a weights file, is of the suite."""
    folder = path.parent if path.name == WEIGHTS else path
    settings = peek_config(folder / CONFIG)
    weights = (folder / WEIGHTS).is_file() or any(folder.glob(LAYER_FILES))
    return weights or "hf_hook_point_in" in settings


def read(source: Source) -> Iterator[Foreign]:
    """The dictionary of a folder."""
    folder = source.path.parent if source.path.is_file() else source.path
    config = load_config(folder / CONFIG) if (folder / CONFIG).exists() else {}
    names = names_of(source)
    kind = str(config.get("type") or _folder_kind(names) or "")
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise ArtifactError(
            f"{folder / CONFIG} names the architecture {config['architecture']!r}; only jump_relu "
            "is known of Gemma Scope 2"
        )
    files = _layer_files(folder)
    if files:
        layers = _blocks_of(config, names) if kind == "crosscoder" else range(len(files))
        dictionary, site = _cross_layer(folder, files), _site_over(folder, kind, layers, len(files))
    else:
        files = [folder / WEIGHTS]
        dictionary, site = _single(files[0]), _site(config, names)
    yield Foreign(
        dictionary=dictionary,
        site=site,
        model=_model(config, names),
        conventions=CONVENTIONS
        | {
            "orientation": "as it is; the affine skip transposed",
            "hook point": WORDS if site is not None else "not recorded",
        },
        origin=TRAINING | {"reported_l0": None if kind in MULTI_LAYER else config.get("l0")},
        files=(folder / CONFIG, *files),
    )


def _tensors(path: Path) -> dict[str, Tensor]:
    return take(load_weights(path), path, *TENSORS, optional=(SKIP,))


def _single(path: Path) -> Any:
    held = _tensors(path)
    skip = held.pop(SKIP, None)
    tensors = {name.replace("w_", "W_"): tensor for name, tensor in held.items()}
    if skip is not None:
        tensors["W_skip"] = skip.T.contiguous()
    return build_unshifted(path, "jumprelu", **tensors)


def _layer_files(folder: Path) -> list[Path]:
    """The files of a cross-layer transcoder in the order of their layers.

    Raises:
        ArtifactError: a layer is missing between others.
    """
    layers = ((path, LAYER_NAME.fullmatch(path.stem)) for path in folder.glob(LAYER_FILES))
    files = {int(name[1]): path for path, name in layers if name is not None}
    missing = sorted(set(range(max(files, default=-1) + 1)) - set(files))
    if missing:
        raise ArtifactError(
            f"{folder} lacks params_layer_{missing[0]}.safetensors: a cross-layer transcoder needs "
            "every layer; get the whole folder"
        )
    return [files[layer] for layer in sorted(files)]


def _cross_layer(folder: Path, files: list[Path]) -> Dictionary:
    shapes = peek_shapes(files[0])
    shape = shapes.get("w_dec", ())
    if len(shape) != 3 or shape[1] != len(files):
        raise ArtifactError(
            f"{files[0]}: w_dec has shape {shape}, but the folder holds {len(files)} layers: a "
            "dictionary over several layers needs every layer; get the whole folder"
        )
    d_sae, n_layers, d_model = shape
    b_dec = torch.stack([take(load_weights(path), path, "b_dec")["b_dec"] for path in files])

    def layer(index: int) -> Dictionary:
        held = _tensors(files[index])
        require_shapes(held, files[index], shapes)
        skip = held.pop(SKIP, None)
        tensors = {name.replace("w_", "W_"): tensor for name, tensor in held.items()}
        tensors |= layer_tensors(
            index, held["w_dec"][:, index:], b_dec, None if skip is None else skip.T
        )
        return build_unshifted(files[index], "jumprelu", **tensors)

    return across_layers(folder, (n_layers, d_model, d_sae), layer)


def _blocks_of(config: Mapping[str, Any], names: str) -> list[int]:
    """The blocks a crosscoder reads, as its settings or its folder's name list them."""
    listed = re.search(r"\{([\d,]+)\}", str(config.get("hf_hook_point_in", "")))
    listed = listed or re.search(r"\blayer_(\d+(?:_\d+)+)_", names)
    return [] if listed is None else [int(block) for block in re.split("[,_]", listed[1])]


def _site_over(folder: Path, kind: str, layers: Sequence[int], n_files: int) -> Site | None:
    """What a dictionary over several layers reads and writes; None where nothing says it.

    Raises:
        ArtifactError: its name or settings list another number of layers than there are files.
    """
    if kind not in MULTI_LAYER or not layers:
        return None
    if len(layers) != n_files:
        raise ArtifactError(
            f"{folder} holds {n_files} layers and is said to read those after the blocks "
            f"{', '.join(map(str, layers))}: get the whole folder"
        )
    read, write = (HOOK_POINTS[module] for module in FOLDERS[kind])
    return Site(
        tuple(f"blocks.{layer}.{read}" for layer in layers),
        tuple(f"blocks.{layer}.{write}" for layer in layers),
    )


def _folder_kind(names: str) -> str | None:
    kind = re.search(r"[/\s](resid_post|attn_out|mlp_out|transcoder|clt|crosscoder)(_all)?/", names)
    return None if kind is None else kind[1]


def _site(config: Mapping[str, Any], names: str) -> Site | None:
    kind, layer = _folder_kind(names), re.search(r"\blayer_(\d+)_", names)
    modules = FOLDERS.get(kind or "")
    inferred = ("", "")
    if modules is not None and layer is not None:
        inferred = tuple(f"model.layers.{layer[1]}.{module}" for module in modules)
    read = config.get("hf_hook_point_in") or inferred[0]
    write = config.get("hf_hook_point_out") or inferred[1] or read
    hook_points = []
    for name in (read, write):
        module = re.fullmatch(r"model\.(?:language_model\.)?layers\.(\d+)\.(.+)", str(name))
        if module is None or module[2] not in HOOK_POINTS:
            return None
        hook_points.append(f"blocks.{module[1]}.{HOOK_POINTS[module[2]]}")
    return Site((hook_points[0],), (hook_points[1],))


def _model(config: Mapping[str, Any], names: str) -> str | None:
    """The model on the Hub, which `config.json` names in several ways or not at all."""
    suite = re.search(r"gemma-scope-2-(270m|1b|4b|12b|27b)-(pt|it)", names)
    name = config.get("model_name") or (f"gemma-3-{suite[1]}-{suite[2]}" if suite else None)
    if name is None:
        return None
    name = f"google/{str(name).removeprefix('google/')}".replace("gemma-v3-", "gemma-3-")
    return name.replace("270m-pt", "270m")


FORMAT = Format("Gemma Scope 2 (Google DeepMind)", matches, read)
