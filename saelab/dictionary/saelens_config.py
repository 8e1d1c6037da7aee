"""`cfg.json` as SAELens 6 writes and reads it, so that its loader takes our folders as its own."""

from __future__ import annotations

from typing import Any

from .architectures import Dictionary
from .site import Site

SAELENS_ARCHITECTURE = {
    "relu": "standard",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "gated",
}
SAELENS_TRANSCODER = {"relu": "transcoder", "jumprelu": "jumprelu_transcoder"}
"""What SAELens can express of dictionaries that write another hook point than they read."""
SAELENS_VERSION = "6.54.12"
"""The version whose format this is. Below 6.0.0 its loader would rewrite the settings."""


def architecture_names(site: Site | None) -> dict[str, str]:
    """What `cfg.json` calls each architecture at a site: SAELens' name where it has one.

    No site is that of a sparse autoencoder of which nobody recorded where it belongs.
    """
    if site is None or (site.is_autoencoder and len(site.reads) == 1):
        return SAELENS_ARCHITECTURE
    if len(site.hook_points) == 2 and len(site.reads) == len(site.writes) == 1:
        return {name: f"{name}_transcoder" for name in SAELENS_ARCHITECTURE} | SAELENS_TRANSCODER
    return {name: f"{name}_crosscoder" for name in SAELENS_ARCHITECTURE}


def saelens_can_express(architecture: str, site: Site | None) -> bool:
    """Whether SAELens reads such a dictionary; it does so without a separate input bias."""
    known = {*SAELENS_ARCHITECTURE.values(), *SAELENS_TRANSCODER.values()}
    return architecture_names(site)[architecture] in known


def saelens_config(
    dictionary: Dictionary, site: Site | None, made_from: dict[str, Any]
) -> dict[str, Any]:
    """The content of `cfg.json`.

    Args:
        site: what the dictionary reads and writes.
        dictionary: with the normalisation of its training folded in; what it does to each row by
            itself is declared.
        made_from: the activations' provenance; what is missing there is null here.
    """
    text = made_from.get("text") or {}
    config: dict[str, Any] = {
        "architecture": architecture_names(site)[dictionary.architecture],
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.b_in is None,
        "normalize_activations": dictionary.input_normalisation,
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": SAELENS_VERSION,
            "sae_lens_training_version": None,
            "model_name": made_from.get("model"),
            "hook_name": site.reads[0] if site is not None else None,
            "hook_head_index": None,
            "context_size": made_from.get("context_length"),
            "prepend_bos": made_from.get("prepend_bos"),
            "dataset_path": text.get("source"),
            "training_library": "saelab",
        },
    }
    if site is not None and not site.is_autoencoder:
        config["d_out"] = dictionary.d_out
        config["metadata"]["hook_name_out"] = site.writes[0]
    if dictionary.architecture == "topk":
        config["k"] = dictionary.k
        config["rescale_acts_by_decoder_norm"] = False
    return config
