"""A SAELens folder, both ways: `cfg.json` as its version 6 writes it, and the dictionary in it.

Ours are such folders, so that SAELens takes them as its own; and a folder that SAELens wrote opens
in place, of version 6 or before, published or a checkpoint of training. What its settings do at run
time is done here once, on reading:

* `rescale_acts_by_decoder_norm` selects by h · ‖W_dec‖: the norms are folded into the encoder.
* `batchtopk` and `matryoshka_batchtopk` checkpoints become `jumprelu` with their one threshold.
* `expected_average_only_in` does nothing in SAELens, so it does nothing here, with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ArtifactError, ConfigError

from .architectures import ARCHITECTURES, INPUT_NORMALISATIONS, WITH_K, Dictionary
from .site import Site, hook_point_of

logger = logging.getLogger(__name__)

SAELENS_ARCHITECTURE = {
    "relu": "standard",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "gated",
}
OF_AUTOENCODERS = {name: name for name in ARCHITECTURES} | SAELENS_ARCHITECTURE
"""The names of all, those that SAELens lacks with ours."""
SAELENS_TRANSCODER = {"relu": "transcoder", "jumprelu": "jumprelu_transcoder"}
"""What SAELens can express of dictionaries that write another hook point than they read."""
SKIP = {"transcoder": "skip_transcoder", "jumprelu_transcoder": "jumprelu_skip_transcoder"}
"""The same with an affine skip."""
WITH_ONE_THRESHOLD = ("batchtopk", "matryoshka_batchtopk")
"""Training checkpoints that hold a scalar `topk_threshold`."""
NOT_EXPRESSIBLE = {
    "temporal": "predicts part of each row from the tokens before it",
    "matching_pursuit": "finds its codes one after the other, by matching pursuit",
    "abstopk": "keeps the largest magnitudes with their signs, and codes here are not negative",
}
"""Architectures of SAELens that no architecture here expresses, and why."""
AVERAGE_ONLY = "expected_average_only_in"
WHITENING = "covariance_whitening"
CENTRED_WEIGHTS = "center_writing_weights"
"""The option of the model's loading under which everything written to the residual is centred."""
WRITTEN_TO_RESIDUAL = (
    "hook_embed",
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
)
HOOK_NAMES = ("hook_name", "hook_name_out")
HUGGING_FACE = "AutoModelForCausalLM"
"""The class of model whose hook points are named by its modules, such as `model.layers.12`."""
CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
TRAINING_LIBRARY = "saelab"
"""How a folder says that it is ours, and complete only with our manifest."""
SAELENS_VERSION = "6.54.12"
"""The version whose format this is. Below 6.0.0 its loader would rewrite the settings."""


def architecture_names(site: Site | None) -> dict[str, str]:
    """What `cfg.json` calls each architecture at a site: SAELens' name where it has one.

    No site is that of a sparse autoencoder of which nobody recorded where it belongs.
    """
    if site is None or (site.is_autoencoder and len(site.reads) == 1):
        return OF_AUTOENCODERS
    if len(site.hook_points) == 2 and len(site.reads) == len(site.writes) == 1:
        return {name: f"{name}_transcoder" for name in ARCHITECTURES} | SAELENS_TRANSCODER
    return {name: f"{name}_crosscoder" for name in ARCHITECTURES}


def saelens_can_express(dictionary: Dictionary, site: Site | None) -> bool:
    """Whether SAELens reads such a dictionary; transcoders it reads without an input bias."""
    name = architecture_names(site)[dictionary.architecture]
    if dictionary.W_skip is not None:
        return name in SKIP
    return name in (*SAELENS_ARCHITECTURE.values(), *SAELENS_TRANSCODER.values())


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
    name = architecture_names(site)[dictionary.architecture]
    centred = dictionary.input_normalisation == "center"
    config: dict[str, Any] = {
        "architecture": name if dictionary.W_skip is None else SKIP.get(name, name),
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.b_in is None,
        "normalize_activations": "none" if centred else dictionary.input_normalisation,
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
            "training_library": TRAINING_LIBRARY,
        },
    }
    if centred:
        config["metadata"]["model_from_pretrained_kwargs"] = {CENTRED_WEIGHTS: True}
    if site is not None and not site.is_autoencoder:
        config["d_out"] = dictionary.d_out
        config["metadata"]["hook_name_out"] = site.writes[0]
    if dictionary.architecture in WITH_K:
        config["k"] = dictionary.k
    if dictionary.architecture == "topk":
        config["rescale_acts_by_decoder_norm"] = False
    return config


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """`cfg.json` of any version as one flat table: settings, and what it says of its origin.

    Hook points are in TransformerLens' names; None where those of Hugging Face's module have none.
    """
    nested = config.get("metadata")
    settings = {**(nested if isinstance(nested, Mapping) else {}), **config}
    if "hook_name" not in settings and "hook_point" in settings:
        settings["hook_name"] = settings["hook_point"]
    recorded = {name: settings[name] for name in HOOK_NAMES if settings.get(name)}
    points = {name: hook_point_of(recorded[name]) for name in recorded}
    if settings.get("model_class_name") != HUGGING_FACE:
        points = {name: point or recorded[name] for name, point in points.items()}
    # Half a site would be another one.
    settings |= dict.fromkeys(points) if None in points.values() else points
    activation = settings.get("activation_fn_str") or settings.get("activation_fn")
    if activation == "topk":
        settings["architecture"] = "topk"
        settings.setdefault("k", (settings.get("activation_fn_kwargs") or {}).get("k"))
    settings.setdefault("architecture", "standard")
    if settings.get("normalize_activations") is True:
        settings["normalize_activations"] = AVERAGE_ONLY
    if settings.get("normalize_activations") in (None, False):
        settings["normalize_activations"] = "none"
    return settings


def read_saelens(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path
) -> Dictionary:
    """The dictionary that the two files of a SAELens folder hold, in float32.

    Args:
        config: the content of `cfg.json`, of any version.
        tensors: those of the weights file.
        folder: where they lie, for messages.

    Raises:
        ArtifactError: settings that are unknown or cannot be expressed, or tensors that do not fit
            them; the message says which.
    """
    settings = settings_of(config)
    given = settings["architecture"]
    names = _names_to_read()
    if given in NOT_EXPRESSIBLE:
        raise ArtifactError(
            f"{folder} is of SAELens' architecture {given!r}, which {NOT_EXPRESSIBLE[given]}: it "
            "cannot be used here"
        )
    if given not in names:
        raise ArtifactError(
            f"{folder / CONFIG_FILE} names the architecture {given!r}; "
            f"known: {', '.join(sorted(names))}"
        )
    architecture = names[given]
    held = _float32(tensors, folder)
    if given in WITH_ONE_THRESHOLD:
        one_for_all = held.pop("topk_threshold", None)
        if one_for_all is None or not float(one_for_all) >= 0:
            raise ArtifactError(
                f"{folder} is a {given} checkpoint without a threshold: its codes depend on the "
                "batch; train it on until SAELens has measured one"
            )
        held["threshold"] = torch.full_like(held["b_enc"], float(one_for_all))
    if architecture == "jumprelu" and "log_threshold" in held:
        held["threshold"] = held.pop("log_threshold").exp()
    _drop_scaling_factor(held, folder)
    _check_shapes(held, settings, architecture, folder)
    subtracts = settings.get("apply_b_dec_to_input", "transcoder" not in given)
    if not subtracts and "b_in" not in held:
        held["b_in"] = held["W_enc"].new_zeros(held["W_enc"].shape[0])
    # In a jumprelu made of such a checkpoint the setting is still there, and means nothing.
    if settings.get("rescale_acts_by_decoder_norm") and given in ("topk", *WITH_ONE_THRESHOLD):
        held |= with_unit_decoder(held)
    normalisation = _normalisation(settings, folder)
    # What another hook point holds has a mean of its own: that of what is read is not added back.
    centres_input = normalisation == "center" and settings.get("hook_name_out") not in (
        None,
        settings["hook_name"],
    )
    try:
        dictionary = Dictionary(
            architecture,
            k=settings.get("k") if architecture in WITH_K else None,
            input_normalisation="none" if centres_input else normalisation,
            **held,
        )
        return _of_centred_input(dictionary) if centres_input else dictionary
    except ConfigError as error:
        raise ArtifactError(f"{folder / CONFIG_FILE}: {error}") from None


def _of_centred_input(dictionary: Dictionary) -> Dictionary:
    """The same function of each row less its mean, as a dictionary of rows as they are."""
    unshifted = dictionary.with_input_bias(torch.zeros(dictionary.d_in))
    tensors: dict[str, Any] = unshifted.tensors()
    tensors["W_enc"] = tensors["W_enc"] - tensors["W_enc"].mean(dim=0)
    if dictionary.W_skip is not None:
        tensors["W_skip"] = dictionary.W_skip - dictionary.W_skip.mean(dim=1, keepdim=True)
    return Dictionary(dictionary.architecture, k=dictionary.k or None, **tensors)


def with_unit_decoder(
    tensors: Mapping[str, Tensor], norm: Float[Tensor, " d_sae"] | None = None
) -> dict[str, Tensor]:
    """The same function with decoder rows of norm one, whose norms the encoder takes up.

    Selection by h · ‖W_dec‖ becomes selection by h, and codes are in units of the reconstruction.
    With another norm given, the same of that.
    """
    norm = tensors["W_dec"].norm(dim=1).clamp_min(1e-8) if norm is None else norm
    return {
        "W_enc": tensors["W_enc"] * norm,
        "b_enc": tensors["b_enc"] * norm,
        "W_dec": tensors["W_dec"] / norm[:, None],
    }


def _names_to_read() -> dict[str, str]:
    names = {given: ours for ours, given in OF_AUTOENCODERS.items()}
    for ours, given in SAELENS_TRANSCODER.items():
        names |= {given: ours, SKIP[given]: ours}
    for ours in ARCHITECTURES:
        names |= {f"{ours}_transcoder": ours, f"{ours}_crosscoder": ours}
    return names | dict.fromkeys(WITH_ONE_THRESHOLD, "jumprelu")


def _float32(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    wrong = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
    if wrong:
        raise ArtifactError(f"{folder / WEIGHTS_FILE}: tensors {wrong} are not floating point")
    # W_enc is brought into the order of a Dictionary before it is widened: half the bytes to move.
    return {
        name: tensor.T.contiguous().float().T
        if name == "W_enc" and tensor.ndim == 2
        else tensor.float()
        for name, tensor in tensors.items()
    }


def _drop_scaling_factor(tensors: dict[str, Tensor], folder: Path) -> None:
    """An old fine-tuning step's factors, which count only where they are not one."""
    factor = tensors.pop("scaling_factor", None)
    if factor is not None and not torch.equal(factor, torch.ones_like(factor)):
        raise ArtifactError(
            f"{folder / WEIGHTS_FILE} holds a scaling_factor other than one, of an old fine-tuning "
            "step that no version applies alike: fold it into W_dec and save the folder again"
        )


def _check_shapes(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any], architecture: str, folder: Path
) -> None:
    d_in, d_sae = settings.get("d_in"), settings.get("d_sae")
    d_out = settings.get("d_out") or d_in
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,)}
    optional = {"b_in": (d_in,), "W_skip": (d_out, d_in)}
    shapes |= {name: shape for name, shape in optional.items() if name in tensors}
    vectors = set(ARCHITECTURES[architecture].extra_tensors)
    vectors |= set() if architecture == "gated" else {"b_enc"}
    shapes |= dict.fromkeys(vectors, (d_sae,))
    held = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if held != shapes:
        raise ArtifactError(
            f"{folder / WEIGHTS_FILE} holds {held}; {CONFIG_FILE} promises {shapes}"
        )


def _normalisation(settings: Mapping[str, Any], folder: Path) -> str:
    normalisation = str(settings["normalize_activations"])
    if normalisation == AVERAGE_ONLY:
        logger.warning(
            "%s asks for %s, which SAELens does not apply when it loads: activations go in as they "
            "are. If its L0 or FVU is far from what its authors report, the scale is missing",
            folder,
            AVERAGE_ONLY,
        )
        normalisation = "none"
    if normalisation == WHITENING:
        raise ArtifactError(
            f"{folder / CONFIG_FILE} asks for {WHITENING}, which SAELens does not apply when it "
            "loads, and whose statistics are not in these files: save it for inference there first "
            "(save_inference_model), which folds them in"
        )
    kwargs = settings.get("model_from_pretrained_kwargs") or {}
    written = str(settings.get("hook_name", "")).endswith(WRITTEN_TO_RESIDUAL)
    if normalisation == "none" and kwargs.get(CENTRED_WEIGHTS) and written:
        return "center"
    if normalisation not in INPUT_NORMALISATIONS:
        raise ArtifactError(
            f"{folder / CONFIG_FILE}: unknown input normalisation {normalisation!r}; known: "
            f"{', '.join(INPUT_NORMALISATIONS)}"
        )
    return normalisation
