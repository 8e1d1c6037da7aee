"""`cfg.json` as SAELens 6 writes and reads it, so that its loader takes our folders as its own."""

from __future__ import annotations

from typing import Any

from .architectures import Dictionary

SAELENS_ARCHITECTURE = {
    "relu": "standard",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "gated",
}
SAELENS_VERSION = "6.54.12"
"""The version whose format this is. Below 6.0.0 its loader would rewrite the settings."""


def saelens_config(dictionary: Dictionary, made_from: dict[str, Any]) -> dict[str, Any]:
    """The content of `cfg.json`.

    Args:
        dictionary: with the normalisation of its training folded in; what it does to each row by
            itself is declared.
        made_from: the activations' provenance; what is missing there is null here.
    """
    text = made_from.get("text") or {}
    config: dict[str, Any] = {
        "architecture": SAELENS_ARCHITECTURE[dictionary.architecture],
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": dictionary.input_normalisation,
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": SAELENS_VERSION,
            "sae_lens_training_version": None,
            "model_name": made_from.get("model"),
            "hook_name": made_from.get("hook_point"),
            "hook_head_index": None,
            "context_size": made_from.get("context_length"),
            "prepend_bos": made_from.get("prepend_bos"),
            "dataset_path": text.get("source"),
            "training_library": "saelab",
        },
    }
    if dictionary.architecture == "topk":
        config["k"] = dictionary.k
        config["rescale_acts_by_decoder_norm"] = False
    return config
