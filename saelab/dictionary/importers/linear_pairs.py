"""Single files with two linear layers: Goodfire's of Llama and of R1, qresearch's of R1 distilled.

f = relu(W x + b), ŷ = D f + b_dec: nothing is subtracted from the input. Goodfire's of R1 are tied
(ŷ = f Wᵀ + b_dec) and were trained with BatchTopK; neither k nor a threshold is in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from saelab.dictionary.site import Site
from saelab.errors import ArtifactError

from .files import load_weights, peek_config, peek_shapes, renamed, single_file, take
from .foreign import Foreign, Format, Source, batch_top_k, build_unshifted

SUFFIXES = (".pt", ".pth")
TIED = {"W", "b_enc", "b_dec"}
R1_K = {"math": 128, "logic": 64}
"""k of Goodfire's R1 dictionaries by the folder in their repository."""


def _names(encoder: str, decoder: str) -> dict[str, str]:
    names = {"W_enc": f"{encoder}.weight", "b_enc": f"{encoder}.bias"}
    return names | {"W_dec": f"{decoder}.weight", "b_dec": f"{decoder}.bias"}


GOODFIRE = _names("encoder_linear", "decoder_linear")
QRESEARCH = _names("encoder", "decoder")


def _is_goodfire(path: Path) -> bool:
    held = peek_shapes(single_file(path, *SUFFIXES)).keys()
    return held >= {*GOODFIRE.values()} or held == TIED


def _is_qresearch(path: Path) -> bool:
    """By names alone these are an AutoEncoderNew of dictionary_learning: its config tells them."""
    file = single_file(path, *SUFFIXES)
    if file is None or _layer(file.name) is None:
        return False
    folders = (file.parent, file.parent.parent)
    if any("trainer" in peek_config(folder / "config.json") for folder in folders):
        return False
    held = peek_shapes(file)
    return held.keys() == {*QRESEARCH.values()} and len(held["encoder.weight"]) == 2


def _layer(name: str) -> int | None:
    layer = re.search(r"(?:^|[-_])l(\d+)\b", name)
    return None if layer is None else int(layer[1])


def _foreign(
    path: Path, architecture: str, tensors: dict[str, Tensor], **extra: Any
) -> dict[str, Any]:
    """A dictionary of the residual stream after the layer that its file's name says."""
    layer, model = _layer(path.name), re.match(r"(.+)-SAE-l\d+", path.name)
    owners = {"Llama": "meta-llama/", "DeepSeek": "deepseek-ai/"}
    known = model and owners.get(model[1].split("-")[0])
    return {
        "dictionary": build_unshifted(path, architecture, **tensors, **extra),
        "site": None if layer is None else Site.of(f"blocks.{layer}.hook_resid_post"),
        "model": f"{known}{model[1]}" if model and known else None,
        "files": (path,),
    }


def _read_goodfire(source: Source) -> Iterator[Foreign]:
    path = single_file(source.path, *SUFFIXES) or source.path
    weights = load_weights(path)
    if weights.keys() == TIED:
        yield _read_tied(source, path, take(weights, path, *TIED))
        return
    yield Foreign(
        **_foreign(path, "relu", renamed(weights, path, GOODFIRE)),
        conventions=_conventions("linear layers transposed", "ReLU"),
    )


def _read_tied(source: Source, path: Path, tensors: dict[str, Tensor]) -> Foreign:
    k = next((k for part, k in R1_K.items() if part in Path(source.name).parts), None)
    if k is None:
        raise ArtifactError(
            f"{source.name} holds no k: keep the file in a folder named as in its repository, "
            + " or ".join(f"{part} (k = {k})" for part, k in R1_K.items())
        )
    encoder = tensors.pop("W")
    architecture, extra, notes = batch_top_k(k, None, encoder.shape[1])
    return Foreign(
        **_foreign(path, architecture, {**tensors, "W_enc": encoder, "W_dec": encoder.T}, **extra),
        conventions=_conventions("W as it is; W_dec is its transpose", f"{k} largest after ReLU"),
        notes=notes,
    )


def _read_qresearch(source: Source) -> Iterator[Foreign]:
    path = single_file(source.path, *SUFFIXES) or source.path
    tensors = renamed(load_weights(path), path, QRESEARCH)
    yield Foreign(
        **_foreign(path, "relu", tensors),
        conventions=_conventions("linear layers transposed", "ReLU"),
    )


def _conventions(orientation: str, selection: str) -> dict[str, str]:
    hook_point = "residual stream after the layer that the file's name says"
    return {
        "orientation": orientation,
        "selection": selection,
        "hook point": hook_point,
    }


GOODFIRE_FORMAT = Format("Goodfire (Llama, R1)", _is_goodfire, _read_goodfire)
QRESEARCH_FORMAT = Format("qresearch (R1 distilled)", _is_qresearch, _read_qresearch)
