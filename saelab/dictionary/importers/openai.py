"""OpenAI's sparse_autoencoder: one `.pt`, ReLU or TopK after a layer norm of each row.

f = act(W (x' − pre_bias) + latent_bias), ŷ = decoder(f) + pre_bias. With TopK, and only then, x' is
the row brought to mean 0 and standard deviation 1, and the output is brought back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from saelab.dictionary.site import Site
from saelab.errors import ArtifactError

from .files import load_weights, peek_shapes, renamed, single_file
from .foreign import Foreign, Format, Source, build

NAMES = {"W_enc": "encoder.weight", "b_enc": "latent_bias", "W_dec": "decoder.weight"}
NAMES |= {"b_dec": "pre_bias"}
LOCATIONS = {
    "resid_delta_attn": "hook_attn_out",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_post_attn": "hook_resid_mid",
    "resid_post_mlp": "hook_resid_post",
    "mlp_post_act": "mlp.hook_post",
}
"""TransformerLens' names of what their folders are called after."""


def matches(path: Path) -> bool:
    """Whether a file holds their tensors."""
    return {"pre_bias", "latent_bias"} <= peek_shapes(single_file(path, ".pt")).keys()


def read(source: Source) -> Iterator[Foreign]:
    """The dictionary of a file."""
    path = single_file(source.path, ".pt") or source.path
    weights = load_weights(path)
    tensors = renamed(weights, path, NAMES)
    activation = weights.get("activation", "ReLU")
    state = weights.get("activation_state_dict") or {}
    notes: tuple[str, ...] = ()
    if activation == "TopK":
        after = state.get("postact_fn", "ReLU")
        extra = {"k": int(state.get("k", 0)), "input_normalisation": "layer_norm"}
        if after != "ReLU":
            notes = (
                f"its codes go through {after} after selection: where fewer than k pre-activations "
                "are positive, theirs are negative and these are zero",
            )
    elif activation == "ReLU":
        extra = {}
    else:
        raise ArtifactError(
            f"{path} has the activation {activation!r}, under which no latent is ever off: no "
            "architecture of saelab expresses it"
        )
    location, site = re.search("|".join(LOCATIONS), source.name), None
    if location is not None and path.stem.isdecimal():
        site = Site.of(f"blocks.{int(path.stem)}.{LOCATIONS[location[0]]}")
    yield Foreign(
        dictionary=build(path, "topk" if activation == "TopK" else "relu", **tensors, **extra),
        site=site,
        model="gpt2" if "gpt2-small" in source.name else None,
        conventions={
            "orientation": "linear layers transposed",
            "input bias": "pre_bias is subtracted, after the norm",
            "scale": "layer norm of each row, undone after" if extra else "none",
            "selection": f"{extra['k']} largest, then ReLU" if extra else "ReLU",
            "hook point": "by the names of file and folder; of a model whose writing weights are "
            "not centred",
        },
        notes=notes,
        files=(path,),
    )


FORMAT = Format("sparse_autoencoder (OpenAI)", matches, read)
