"""Qwen Scope: `layerN.sae.pt` in `Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50`, one file a layer.

f keeps the k largest of h = x W_enc + b_enc, where positive; nothing is subtracted from x and
nothing normalised. Both matrices are saved transposed. k and the model are in `config.json` or in
the repository's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from saelab.dictionary.site import Site
from saelab.errors import ArtifactError

from .files import load_weights, peek_config, take
from .foreign import Foreign, Format, Source, build_unshifted, names_of

CONFIG = "config.json"
FILE = re.compile(r"layer(\d+)\.sae\.pt")
NAMES = re.compile(r"SAE-Res-([\w.-]+?)-W\d+K-L0_(\d+)")


def matches(path: Path) -> bool:
    """Whether it is a layer's file, or a folder of them."""
    return bool(_files(path))


def _files(path: Path) -> dict[int, Path]:
    files = {}
    for file in [path] if path.is_file() else path.glob("layer*.sae.pt"):
        if name := FILE.fullmatch(file.name):
            files[int(name[1])] = file
    return dict(sorted(files.items()))


def read(source: Source) -> Iterator[Foreign]:
    """The dictionary of a file, or those of a folder."""
    files = _files(source.path)
    for layer, path in files.items():
        config, names = peek_config(path.parent / CONFIG), NAMES.search(names_of(source))
        k = config.get("k") or (int(names[2]) if names else None)
        if k is None:
            raise ArtifactError(
                f"{path}: neither {CONFIG} beside it nor a folder's name (SAE-Res-…-L0_50) says "
                "how many latents are active: get the repository's config.json too"
            )
        weights = take(load_weights(path), path, "W_enc", "b_enc", "W_dec", "b_dec")
        encoder, decoder = weights["W_enc"].T, weights["W_dec"].T
        yield Foreign(
            dictionary=build_unshifted(
                path,
                "topk",
                k=int(k),
                W_enc=encoder,
                b_enc=weights["b_enc"],
                W_dec=decoder,
                b_dec=weights["b_dec"],
            ),
            name="" if len(files) == 1 else f"layer{layer}",
            site=Site.of(f"blocks.{layer}.hook_resid_post"),
            model=config.get("base_model") or (f"Qwen/{names[1]}" if names else None),
            conventions={
                "orientation": "W_enc and W_dec transposed",
                "selection": f"{k} largest pre-activations, where positive",
                "hook point": "the residual stream after the block",
            },
            origin={"reported_l0": float(k)},
            files=(path.parent / CONFIG, path),
        )


FORMAT = Format("Qwen Scope (Qwen)", matches, read)
