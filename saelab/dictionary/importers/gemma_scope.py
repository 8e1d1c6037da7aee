"""Gemma Scope: `params.npz` in `gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82`.

f = h where h = x W_enc + b_enc exceeds its latent's threshold and zero; nothing is subtracted from
x and nothing normalised. Where it belongs is said by the names of its folders alone. Paper: Gemma
Scope (arXiv 2408.05147), whose appendix says where each kind reads and writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch

from saelab.dictionary.site import Site
from saelab.errors import ArtifactError

from .files import load_weights, take
from .foreign import Foreign, Format, Source, build_unshifted, in_raw_units, names_of

WEIGHTS = "params.npz"
NAMES = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)\b")
SITES = {
    "res": ("hook_resid_post", "the residual stream after the block"),
    "mlp": ("hook_mlp_out", "what the MLP adds to the residual stream: after the norm behind it"),
    "att": ("attn.hook_z", "the heads' outputs side by side: the input of o_proj"),
}
TRANSCODER_SITE = (
    "reads the normalised residual stream before the norm's gain (ln2.hook_normalized), writes "
    "what the MLP adds to the residual stream: after the norm behind it"
)
CONVENTIONS = {
    "selection": "above the latent's threshold and above 0",
    "threshold": "as it is, on pre-activations of raw activations",
    "position 0": "special tokens were left out of training",
}
TRAINING = {"context_length": 1024, "prepend_bos": True}
"""What both suites were trained with; their files do not say it."""


def matches(path: Path) -> bool:
    """Whether it is a `params.npz`, or the folder of one."""
    return path.name == WEIGHTS if path.is_file() else (path / WEIGHTS).is_file()


def read(source: Source) -> Iterator[Foreign]:
    """The dictionary of a folder."""
    path = source.path if source.path.is_file() else source.path / WEIGHTS
    # Some files spell the matrices w_enc and w_dec.
    weights = {name.replace("w_", "W_"): tensor for name, tensor in load_weights(path).items()}
    tensors = take(weights, path, "W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    factor = take(weights, path, optional=("scaling_factor",)).get("scaling_factor")
    if factor is not None and not torch.equal(factor, torch.ones_like(factor)):
        raise ArtifactError(
            f"{path} holds a scaling_factor other than one, of a fine-tuning step whose meaning no "
            "file says: it cannot be imported"
        )
    site, model, conventions, notes = _from_names(names_of(source))
    if conventions["hook point"].startswith("embedding"):
        root = tensors["W_enc"].shape[0] ** 0.5
        tensors |= in_raw_units(tensors, 1 / root)
        conventions["scale"] = "1 / √d_in of the embeddings as the model scales them, folded in"
    l0 = re.search(r"average_l0_(\d+)", names_of(source))
    yield Foreign(
        dictionary=build_unshifted(path, "jumprelu", **tensors),
        site=site,
        model=model,
        conventions=CONVENTIONS | conventions,
        origin=TRAINING | {"reported_l0": float(l0[1]) if l0 else None},
        notes=notes,
        files=(path,),
    )


def _from_names(names: str) -> tuple[Site | None, str | None, dict[str, str], tuple[str, ...]]:
    """Site, model, what is to be said of the hook point, and notes."""
    suite, layer = NAMES.search(names), re.search(r"\blayer_(\d+)\b", names)
    embedding = re.search(r"\bembedding\b", names) is not None
    model = None
    if suite is not None:
        model = f"google/gemma-2-{suite[1]}" + ("-it" if suite[2] == "it" else "")
    if suite is not None and suite[3] == "res" and embedding and layer is None:
        note = (
            "trained on embeddings before the model multiplies them by √d: b_dec is scaled like "
            "W_dec, which SAELens does not do"
        )
        words = {"hook point": "embedding, as the model scales it"}
        return Site.of("hook_embed"), model, words, (note,)
    if suite is None or layer is None:
        note = (
            f"the folders' names do not say where it belongs (gemma-scope-…/layer_N/…/{WEIGHTS} "
            "does): if it is one of embeddings, its scale is missing"
        )
        return None, model, {"hook point": "not recorded"}, (note,)
    block = f"blocks.{layer[1]}"
    if suite[3] == "transcoders":
        site = Site((f"{block}.ln2.hook_normalized",), (f"{block}.hook_mlp_out",))
        return site, model, {"hook point": TRANSCODER_SITE}, ()
    end, words = SITES[suite[3]]
    return Site.of(f"{block}.{end}"), model, {"hook point": words}, ()


FORMAT = Format("Gemma Scope (Google DeepMind)", matches, read)
