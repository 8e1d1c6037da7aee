"""Gemma Scope 2: `params.safetensors` and `config.json`, or one `params_layer_N` for each layer.

As Gemma Scope: f = h where h = x w_enc + b_enc exceeds its latent's threshold and zero. An affine
skip adds x A. In a cross-layer transcoder `w_dec` of source layer N is [d_sae, L, d_model], indexed
by target layer; entries for layers before N mean nothing. `config.json` can be missing: the
folder's name then says what it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.dictionary.site import Site
from saelab.errors import ArtifactError

from .cross_layer import block_matrices, require_dense_size
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
}
"""What each kind of folder reads and writes, where there is no `config.json`."""
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
    if kind == "crosscoder":
        raise ArtifactError(
            f"{folder} is a weakly causal crosscoder, whose layout nobody has described: it cannot "
            "be imported; take the residual-stream SAEs of its layers (resid_post) instead"
        )
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise ArtifactError(
            f"{folder / CONFIG} names the architecture {config['architecture']!r}; only jump_relu "
            "is known of Gemma Scope 2"
        )
    files = _layer_files(folder)
    if files:
        dictionary, site = _cross_layer(folder, files)
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
        origin=TRAINING | {"reported_l0": None if kind == "clt" else config.get("l0")},
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


def _cross_layer(folder: Path, files: list[Path]) -> tuple[Any, Site]:
    shapes = peek_shapes(files[0])
    shape = shapes.get("w_dec", ())
    if len(shape) != 3 or shape[1] != len(files):
        raise ArtifactError(
            f"{files[0]}: w_dec has shape {shape}, but the folder holds {len(files)} layers: a "
            "cross-layer transcoder needs every layer; get the whole folder"
        )
    d_sae, n_layers, d_model = shape
    require_dense_size(folder, n_layers, d_model, d_sae)
    layers = [_tensors(path) for path in files]
    for path, held in zip(files, layers, strict=True):
        require_shapes(held, path, shapes)
    blocks = block_matrices(
        [held["w_enc"] for held in layers],
        {
            (layer, target): held["w_dec"][:, target]
            for layer, held in enumerate(layers)
            for target in range(layer, n_layers)
        },
    )
    for name in ("b_enc", "b_dec", "threshold"):
        blocks[name] = torch.cat([held[name] for held in layers])
    if SKIP in shapes:
        blocks["W_skip"] = torch.block_diag(*(held[SKIP].T for held in layers))
    read, write = (HOOK_POINTS[module] for module in FOLDERS["clt"])
    every = range(n_layers)
    site = Site(
        tuple(f"blocks.{layer}.{read}" for layer in every),
        tuple(f"blocks.{layer}.{write}" for layer in every),
    )
    return build_unshifted(folder, "jumprelu", **blocks), site


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
