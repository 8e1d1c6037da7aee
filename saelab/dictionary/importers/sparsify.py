"""sparsify: `cfg.json` and `sae.safetensors` in a folder named after the module, `layers.10.mlp`.

f keeps the k largest of relu(W x' + b), or the largest of each of k groups (`groupmax`), with
x' = x − b_dec for an autoencoder (whatever `normalize_decoder` says) and x' = x for a transcoder.
W_skip multiplies the raw input.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from saelab.dictionary.site import Site, hook_point_of
from saelab.errors import ArtifactError

from .files import load_config, load_weights, peek_config, take
from .foreign import Foreign, Format, Source, build, build_unshifted

CONFIG, WEIGHTS, RUN_CONFIG = "cfg.json", "sae.safetensors", "config.json"


def matches(path: Path) -> bool:
    """Whether a folder holds one dictionary of sparsify, or a run's by module."""
    return bool(_folders(path))


def _folders(path: Path) -> list[Path]:
    if (path / WEIGHTS).is_file() and "expansion_factor" in peek_config(path / CONFIG):
        return [path]
    inside = path.glob(f"*/{WEIGHTS}") if path.is_dir() else ()
    return sorted(file.parent for file in inside if (file.parent / CONFIG).is_file())


def read(source: Source) -> Iterator[Foreign]:
    """The dictionary of a folder, or those of a run."""
    folders = _folders(source.path)
    for folder in folders:
        yield _read_one(folder, "" if folder == source.path else folder.name)


def _read_one(folder: Path, name: str) -> Foreign:
    config, path = load_config(folder / CONFIG), folder / WEIGHTS
    if "n_targets" in config or "n_sources" in config:
        raise ArtifactError(
            f"{folder} is a layer of a cross-layer transcoder of clt-training, whose layers can "
            "share their selection and tie their decoders: no layer is a dictionary by itself, and "
            "it cannot be imported"
        )
    weights = take(
        load_weights(path),
        path,
        *("encoder.weight", "encoder.bias", "W_dec", "b_dec"),
        optional=("W_skip",),
    )
    selection = {
        "topk": f"{config.get('k')} largest after ReLU",
        "groupmax": f"largest of each of {config.get('k')} groups, after ReLU",
    }
    activation = config.get("activation", "topk")
    if activation not in selection:
        raise ArtifactError(
            f"{folder} selects by {activation!r}, which is unknown here (known: "
            f"{', '.join(selection)}): it cannot be imported"
        )
    encoder = weights["encoder.weight"]
    transcodes = bool(config.get("transcode"))
    extra = {"W_skip": weights["W_skip"]} if "W_skip" in weights else {}
    dictionary = (build_unshifted if transcodes else build)(
        path,
        activation,
        W_enc=encoder.T,
        b_enc=weights["encoder.bias"],
        W_dec=weights["W_dec"],
        b_dec=weights["b_dec"],
        k=config.get("k"),
        **extra,
    )
    hooked = folder.parent if folder.name.startswith("seed") else folder
    module, run = hooked.name, peek_config(hooked.parent / RUN_CONFIG)
    hook_point = hook_point_of(module)
    if transcodes and hook_point is not None and hook_point.endswith("hook_mlp_out"):
        site = Site((hook_point.replace("hook_mlp_out", "mlp.hook_in"),), (hook_point,))
    else:
        site = None if hook_point is None else Site.of(hook_point)
    return Foreign(
        dictionary=dictionary,
        name=name,
        site=site,
        conventions={
            "orientation": "encoder.weight transposed; W_dec as it is",
            "input bias": "none (transcoder)" if transcodes else "b_dec is subtracted",
            "selection": selection[activation],
            "hook point": f"output of the module {module}",
        },
        model=run.get("model"),
        origin={"context_length": run.get("ctx_len")},
        files=(folder / CONFIG, path),
    )


def reference(source: Source, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and reconstruction by sparsify itself."""
    from sparsify import SparseCoder  # type: ignore[import-not-found]

    coder = SparseCoder.load_from_disk(source.path)
    output = coder(x)
    codes = torch.zeros(len(x), coder.num_latents)
    codes.scatter_(1, output.latent_indices, output.latent_acts)
    return codes.detach(), output.sae_out.detach()


FORMAT = Format("sparsify (EleutherAI)", matches, read, reference)
