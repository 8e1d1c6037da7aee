"""SAELens, version 6 and before: `cfg.json` and `sae_weights.safetensors`; opens in place.

What its settings mean is in `saelab/dictionary/saelens.py`, since our own folders are of this
format too. Training checkpoints keep the scale of their activations beside the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from saelab.dictionary.architectures import Dictionary
from saelab.dictionary.saelens import (
    AVERAGE_ONLY,
    CONFIG_FILE,
    WEIGHTS_FILE,
    WITH_ONE_THRESHOLD,
    read_saelens,
    settings_of,
    with_unit_decoder,
)
from saelab.dictionary.site import Site
from saelab.dictionary.storage import MANIFEST_FILE, foreign_manifest
from saelab.errors import ArtifactError, ConfigError

from .files import load_config, load_weights, peek_config, take
from .foreign import SCALE, Foreign, Format, Source, in_raw_units

SCALE_FILE = "activation_scaler.json"
SPARSITY_FILE = "sparsity.safetensors"
"""log10(f + 1e-10) of each latent's share f of the last training tokens on which it fired."""
OVERRIDES = ("normalize_activations", "model_from_pretrained_kwargs")
"""What SAELens' registry may put in place of a folder's own settings."""


def matches(path: Path) -> bool:
    """Whether a folder holds SAELens' two files."""
    return (path / CONFIG_FILE).is_file() and (path / WEIGHTS_FILE).is_file()


def read(source: Source) -> Iterator[Foreign]:
    """The dictionary of a folder."""
    folder = source.path
    manifest = peek_config(folder / MANIFEST_FILE)
    if manifest and "imported" not in manifest.get("made_from", {}):
        raise ArtifactError(
            f"{folder} is a dictionary of saelab's already: every command takes it as it is"
        )
    overrides = {name: source.hints[name] for name in OVERRIDES if name in source.hints}
    config = {**load_config(folder / CONFIG_FILE), **overrides}
    scale = _training_scale(folder)
    if scale is None and settings_of(config)["normalize_activations"] == AVERAGE_ONLY:
        scale = source.hints.get(SCALE)
    settings, site = settings_of(config), foreign_manifest(folder).get("site")
    normalisation = settings["normalize_activations"]
    if scale is not None:
        config |= {"normalize_activations": "none"}
    dictionary, notes = read_saelens(config, load_weights(folder / WEIGHTS_FILE), folder), []
    conventions = {
        "input bias": "b_dec is subtracted" if dictionary.b_in is None else "none",
        "selection": str(settings["architecture"])
        + (", by h · ‖W_dec‖" if settings.get("rescale_acts_by_decoder_norm") else ""),
        "scale": str(normalisation),
        "hook point": _hook_point(config, settings),
    }
    if scale is not None:
        by_norm = settings.get("rescale_acts_by_decoder_norm")
        dictionary = _unscaled(dictionary, scale, unit_decoder=bool(by_norm))
        conventions["scale"] = f"{scale:.6g}, of the checkpoint or its registry, folded in"
    elif normalisation == AVERAGE_ONLY:
        notes.append(
            f"{AVERAGE_ONLY} has no effect in SAELens after training: nothing is scaled here either"
        )
    yield Foreign(
        dictionary=dictionary,
        site=None if site is None else Site.from_json(site),
        model=settings.get("model_name"),
        conventions=conventions,
        origin={
            "context_length": settings.get("context_size"),
            "prepend_bos": settings.get("prepend_bos"),
            SCALE: scale,
            **_reported(folder, settings),
        },
        notes=tuple(notes),
        files=(folder / CONFIG_FILE, folder / WEIGHTS_FILE),
        in_place=scale is None and not overrides,
    )


def _hook_point(config: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    recorded = {**config, **(config.get("metadata") or {})}.get("hook_name")
    if recorded is None or recorded == settings.get("hook_name"):
        heads = ", heads side by side" if "hook_z" in str(settings.get("hook_name")) else ""
        return f"as recorded{heads}"
    return f"output of the module {recorded}"


def _reported(folder: Path, settings: Mapping[str, Any]) -> dict[str, float | None]:
    """L0 and dead share as the settings say them, else as they were counted in training."""
    path, dead = folder / SPARSITY_FILE, settings.get("num_dead_features")
    if settings.get("l0") is not None or not path.is_file():
        share = None if dead is None else dead / settings["d_sae"]
        return {"reported_l0": settings.get("l0"), "reported_dead_fraction": share}
    frequency = 10 ** take(load_weights(path), path, "sparsity")["sparsity"].double()
    return {
        "reported_l0": float(frequency.sum()),
        "reported_dead_fraction": float((frequency < 1e-9).double().mean()),
    }


def _training_scale(folder: Path) -> float | None:
    """What a training checkpoint's activations were multiplied by; None where nothing says it."""
    if not (folder / SCALE_FILE).is_file():
        return None
    content = load_config(folder / SCALE_FILE)
    if content.get("has_whitening"):
        raise ArtifactError(
            f"{folder} is a checkpoint with whitened activations: save it for inference in SAELens "
            "first (save_inference_model), which folds the whitening in"
        )
    scale = content.get("scaling_factor")
    return None if scale is None else float(scale)


def _unscaled(dictionary: Dictionary, scale: float, unit_decoder: bool) -> Dictionary:
    """For raw activations; codes by h · ‖W_dec‖ are then in raw units too, thresholds with them."""
    tensors = in_raw_units(dictionary.tensors(), scale)
    if unit_decoder:
        norm = tensors["W_dec"].norm(dim=1)
        tensors |= with_unit_decoder(tensors)
        if "threshold" in tensors:
            tensors["threshold"] = tensors["threshold"] * norm
    return Dictionary(
        dictionary.architecture,
        k=dictionary.k or None,
        input_normalisation=dictionary.input_normalisation,
        **tensors,
    )


def reference(source: Source, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and reconstruction by SAELens itself.

    Raises:
        ConfigError: a checkpoint of training, which SAELens does not run on raw activations.
    """
    from sae_lens import SAE  # type: ignore[import-not-found]

    settings = settings_of(load_config(source.path / CONFIG_FILE))
    if (source.path / SCALE_FILE).is_file() or settings["architecture"] in WITH_ONE_THRESHOLD:
        raise ConfigError("check: SAELens runs no checkpoints of training: leave --check away")
    sae = SAE.load_from_disk(str(source.path), device="cpu")
    heads = x[:, None] if sae.cfg.reshape_activations == "hook_z" else x
    return sae.encode(heads).detach(), sae(heads).detach().flatten(1)


FORMAT = Format("SAELens 6 and before (decoderesearch)", matches, read, reference)
