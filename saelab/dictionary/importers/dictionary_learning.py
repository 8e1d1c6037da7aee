"""dictionary_learning: `ae.pt` beside a `config.json` that names the class, and checkpoints of it.

Its seven classes differ in names, in whether the decoder's bias is subtracted from the input, and
in selection. With normalised activations, training divides them by `norm_factor`; `ae.pt` and
`checkpoints/ae_<step>.pt` have it folded in, the backup written during training has not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from saelab.dictionary.site import Site
from saelab.errors import ArtifactError, ConfigError

from .files import load_config, load_weights, peek_config, renamed
from .foreign import Foreign, Format, Source, batch_top_k, build, build_unshifted

CONFIG, WEIGHTS, EVALUATION = "config.json", "ae.pt", "eval_results.json"
LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
GATED = {"b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag", "b_dec": "decoder_bias"}
GATED |= {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}
CLASSES: dict[str, tuple[str, dict[str, str], bool]] = {
    "AutoEncoder": ("relu", {**LINEAR, "b_dec": "bias"}, True),
    "AutoEncoderNew": ("relu", {**LINEAR, "b_dec": "decoder.bias"}, False),
    "GatedAutoEncoder": ("gated", GATED, True),
    "JumpReluAutoEncoder": ("jumprelu", {**PLAIN, "threshold": "threshold"}, False),
    "AutoEncoderTopK": ("topk", {**LINEAR, "b_dec": "b_dec"}, True),
    "BatchTopKSAE": ("batchtopk", {**LINEAR, "b_dec": "b_dec"}, True),
    "MatryoshkaBatchTopKSAE": ("batchtopk", PLAIN, True),
}
"""Architecture, names of the tensors, and whether the decoder's bias is subtracted."""
BIASES = ("b_enc", "b_dec", "b_gate", "b_mag", "threshold")
"""What a `norm_factor` multiplies; weights and r_mag stay."""
HOOK_POINTS = {"resid": "hook_resid_post", "mlp": "hook_mlp_out", "attn": "hook_attn_out"}


def matches(path: Path) -> bool:
    """Whether a folder holds a trainer's config, or those of a run; or a file lies beside one."""
    return bool(_files(path))


def _files(path: Path) -> list[tuple[Path, Path]]:
    """Weights file and config of each dictionary."""
    if path.is_file() and re.fullmatch(r"ae(_\d+)?\.pt", path.name):
        configs = [folder / CONFIG for folder in (path.parent, path.parent.parent)]
        return [(path, config) for config in configs if _trainer(config)][:1]
    folders = [path] if _trainer(path / CONFIG) else sorted(path.glob("*/"))
    return [(each / WEIGHTS, each / CONFIG) for each in folders if _trainer(each / CONFIG)]


def _trainer(config: Path) -> dict[str, Any]:
    trainer = peek_config(config).get("trainer")
    return trainer if isinstance(trainer, dict) and "dict_class" in trainer else {}


def read(source: Source) -> Iterator[Foreign]:
    """The dictionary of a trainer, or those of a run."""
    files = _files(source.path)
    for weights, config in files:
        yield _read_one(weights, config, weights.parent.name if len(files) > 1 else "")


def _read_one(path: Path, config_path: Path, name: str) -> Foreign:
    config, weights = load_config(config_path), load_weights(path)
    trainer = config["trainer"]
    dict_class = trainer["dict_class"]
    if dict_class not in CLASSES:
        raise ArtifactError(
            f"{config_path} names the class {dict_class!r}, which is none of dictionary_learning's "
            f"that can be expressed: {', '.join(CLASSES)}"
        )
    norm_factor = 1.0
    if isinstance(weights.get("ae"), dict):
        norm_factor, weights = float(weights.get("norm_factor") or 1.0), weights["ae"]
    architecture, names, subtracts = CLASSES[dict_class]
    tensors = renamed(weights, path, names)
    scaled = {name: tensors[name] * norm_factor for name in BIASES if name in tensors}
    tensors |= scaled
    extra: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    k = int(trainer.get("k") or weights.get("k") or 0)
    if architecture == "topk":
        extra = {"k": k}
    elif architecture == "batchtopk":
        threshold = float(weights.get("threshold", -1.0)) * norm_factor
        architecture, extra, notes = batch_top_k(k, threshold, tensors["W_enc"].shape[1])
    buffer = config.get("buffer") or {}
    return Foreign(
        dictionary=(build if subtracts else build_unshifted)(
            path, architecture, **tensors, **extra
        ),
        name=name,
        site=_site(trainer, buffer),
        model=trainer.get("lm_name"),
        conventions={
            "orientation": "linear layers transposed"
            if "encoder.weight" in weights
            else "as it is",
            "input bias": "b_dec is subtracted" if subtracts else "none",
            "selection": f"{architecture}, after ReLU ({dict_class})",
            "threshold": "strictly greater" if "threshold" in {*tensors, *extra} else "none",
            "scale": f"norm_factor {norm_factor:.6g} folded into the biases"
            if norm_factor != 1
            else "as saved (biases hold the norm_factor)",
            "scale of the codes": "as trained; decoder rows are not brought to norm one",
            "hook point": f"layer {trainer.get('layer')}, {trainer.get('submodule_name')}",
        },
        origin=_origin(path, trainer, buffer, weights),
        notes=notes,
        files=(config_path, path),
    )


def _site(trainer: dict[str, Any], buffer: dict[str, Any]) -> Site | None:
    """The output of a block, its MLP or its attention; a transcoder's is left to the user."""
    layer, module = trainer.get("layer"), trainer.get("submodule_name") or "resid_post"
    named = re.search(r"layer_?(\d+)", module)
    layer = int(named[1]) if named else layer
    kind = next((kind for kind in HOOK_POINTS if module.startswith(kind)), None)
    if layer is None or kind is None or buffer.get("io", "out") != "out":
        return None
    return Site.of(f"blocks.{layer}.{HOOK_POINTS[kind]}")


def _origin(
    path: Path, trainer: dict[str, Any], buffer: dict[str, Any], weights: dict[str, Any]
) -> dict[str, Any]:
    measured = peek_config(path.parent / EVALUATION)
    explained, alive = measured.get("frac_variance_explained"), measured.get("frac_alive")
    groups = weights.get("group_sizes")
    return {
        "context_length": buffer.get("ctx_len"),
        "reported_l0": measured.get("l0"),
        "reported_fvu": None if explained is None else 1 - explained,
        "reported_dead_fraction": None if alive is None else 1 - alive,
        "training": {
            "method": trainer.get("trainer_class"),
            "steps": trainer.get("steps"),
            "group_sizes": groups.tolist() if isinstance(groups, Tensor) else None,
        },
    }


def reference(source: Source, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and reconstruction by dictionary_learning itself.

    Raises:
        ConfigError: a backup of training, which dictionary_learning does not load.
    """
    import dictionary_learning.utils as library  # type: ignore[import-not-found]

    ((path, config),) = _files(source.path)
    trainer = load_config(config)["trainer"]
    if "ae" in load_weights(path):
        raise ConfigError("check: dictionary_learning loads no backups: leave --check away")
    loader = getattr(library, trainer["dict_class"]).from_pretrained
    options = {"normalize_decoder": False} if trainer["dict_class"] == "AutoEncoder" else {}
    dictionary = loader(str(path), **options)
    codes = dictionary.encode(x)
    return codes.detach(), dictionary.decode(codes).detach()


FORMAT = Format("dictionary_learning (Marks, Karvonen, Mueller)", matches, read, reference)
