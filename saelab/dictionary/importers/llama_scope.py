"""Llama Scope: `hyperparams.json` and `checkpoints/final.safetensors`.

Trained as TopK, then given one threshold for all latents. That was measured after OpenMOSS's
initialiser had folded the scales in and made decoder rows of norm one, while the weights are saved
in the scale of training: so it bounds h · ‖W_D‖ / s_out, with h = s_in x W_E + b_E. (Published
thresholds grow with the average norm of what is written: .20 at norm 6.3, .75 at 29, .10 at 3.4.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from saelab.dictionary.site import Site
from saelab.errors import ArtifactError

from .files import load_config, load_weights
from .foreign import Foreign, Format, Source, full_threshold, names_of
from .llamascopium import autoencoder_tensors, hook_points
from .openmoss import conventions, scale_of, scaled_dictionary

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"


def matches(path: Path) -> bool:
    """Whether a folder holds both files."""
    return (path / CONFIG).is_file() and (path / "checkpoints").is_dir()


def read(source: Source) -> Iterator[Foreign]:
    """The dictionary of a folder."""
    folder, path = source.path, source.path / WEIGHTS
    config = load_config(folder / CONFIG)
    reads, writes = hook_points(config, folder)
    norms = config.get("dataset_average_activation_norm") or {}
    if config.get("act_fn", "jumprelu") != "jumprelu" or "jump_relu_threshold" not in config:
        raise ArtifactError(
            f"{folder / CONFIG} has act_fn {config.get('act_fn')!r} and no jump_relu_threshold; "
            "Llama Scope's releases are jumprelu with one"
        )
    tensors = autoencoder_tensors(config, load_weights(path), path)
    by_name = {reads[0]: norms.get("in"), writes[0]: norms.get("out", norms.get("in"))}
    measured = {name: norm for name, norm in by_name.items() if norm is not None}
    threshold = float(config["jump_relu_threshold"])
    if config.get("norm_activation", "dataset-wise") == "dataset-wise":
        by_decoder_norm = config.get("sparsity_include_decoder_norm", True)
        gated_by = writes[0] if by_decoder_norm else reads[0]
        threshold *= scale_of(config, path, gated_by, measured)
    tensors["threshold"] = full_threshold(threshold, tensors["W_enc"].shape[1])
    settings = {**config, "act_fn": "jumprelu"}
    said = conventions(settings) | {"orientation": "encoder and decoder transposed"}
    said["threshold"] = f"one for all, of raw activations: scaled, then {said['threshold']}"
    if config.get("apply_decoder_bias_to_pre_encoder"):
        tensors["b_in"] = tensors["b_dec"]
        said["input bias"] = "b_dec is subtracted, in the scale of training"
    yield Foreign(
        dictionary=scaled_dictionary(settings, path, tensors, (reads, writes), measured),
        site=Site(reads, writes),
        model="meta-llama/Llama-3.1-8B" if re.search(r"Llama3_1-8B", names_of(source)) else None,
        conventions=said,
        origin={"context_length": 1024, "prepend_bos": True, "reported_l0": config.get("top_k")},
        files=(folder / CONFIG, path),
    )


FORMAT = Format("Llama Scope (OpenMOSS)", matches, read)
