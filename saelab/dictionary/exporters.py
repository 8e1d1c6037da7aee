"""A dictionary in other libraries' formats. What a format cannot carry is refused with the reason.

Weights are written as they are: a round trip through a format gives the same tensors, but for an
input bias that the format does not know, which is folded into the encoder's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from saelab.errors import ConfigError
from saelab.formats.files import atomic_path, read_json, write_json, write_tensors

from .architectures import WITH_K, Dictionary
from .saelens import CONFIG_FILE, TRAINING_LIBRARY, WEIGHTS_FILE, saelens_can_express
from .storage import SavedDictionary


@dataclass(frozen=True)
class SteeredLatents:
    """Which latents a steering vector is made of."""

    latents: Mapping[int, float]
    """Latent -> strength, in units of the codes: its decoder row times that is added."""
    name: str
    """What the vector is called."""


def to_saelens(saved: SavedDictionary, out: Path) -> list[Path]:
    """SAELens' two files, for `SAE.load_from_disk` and the Hub.

    Raises:
        ConfigError: SAELens has no class for such a dictionary.
    """
    if not saelens_can_express(saved.dictionary, saved.site):
        raise refused(
            "saelens",
            saved,
            f"SAELens has no class for a {saved.dictionary.architecture} dictionary that reads and "
            f"writes {saved.site}",
        )
    config = read_json(saved.folder / CONFIG_FILE)
    metadata = config.get("metadata", {})
    if metadata.get("training_library") == TRAINING_LIBRARY:
        # Without it the folder opens here too, as SAELens' own.
        config = {**config, "metadata": {**metadata, "training_library": None}}
    write_tensors(out / WEIGHTS_FILE, _on_disk(saved))
    write_json(out / CONFIG_FILE, config)
    return [out / CONFIG_FILE, out / WEIGHTS_FILE]


def _on_disk(saved: SavedDictionary) -> dict[str, Tensor]:
    from saelab.formats.files import read_tensors

    return read_tensors(saved.folder / WEIGHTS_FILE)


def to_sparsify(saved: SavedDictionary, out: Path) -> list[Path]:
    """sparsify's two files: an autoencoder, or a transcoder with or without a skip.

    Raises:
        ConfigError: another architecture, or a normalisation of each row.
    """
    dictionary = saved.dictionary
    if dictionary.architecture not in WITH_K:
        known = " and ".join(WITH_K)
        raise refused("sparsify", saved, f"it knows {known} alone, not {dictionary.architecture}")
    refuse_normalisation("sparsify", saved)
    if len(saved.site.hook_points) > 2 or len(saved.site.reads) > 1:
        raise refused("sparsify", saved, "it reads and writes one module")
    transcodes = not saved.site.is_autoencoder
    # Its autoencoders always subtract b_dec, and its transcoders nothing.
    dictionary = dictionary.with_input_bias(
        torch.zeros_like(dictionary.input_bias) if transcodes else None
    )
    if dictionary.d_in != dictionary.d_out:
        raise refused("sparsify", saved, "it writes as many dimensions as it reads")
    config = {
        "activation": dictionary.architecture,
        "expansion_factor": dictionary.d_sae // dictionary.d_in,
        "normalize_decoder": bool((dictionary.W_dec.norm(dim=1) - 1).abs().max() < 1e-4),
        "num_latents": dictionary.d_sae,
        "k": dictionary.k,
        "multi_topk": False,
        "skip_connection": dictionary.W_skip is not None,
        "transcode": transcodes,
        "d_in": dictionary.d_in,
    }
    tensors = {
        "encoder.weight": dictionary.W_enc.T.contiguous(),
        "encoder.bias": dictionary.b_enc,
        "W_dec": dictionary.W_dec,
        "b_dec": dictionary.b_dec,
    }
    if dictionary.W_skip is not None:
        tensors["W_skip"] = dictionary.W_skip
    write_tensors(out / "sae.safetensors", tensors)
    write_json(out / "cfg.json", config)
    return [out / "cfg.json", out / "sae.safetensors"]


def to_dictionary_learning(saved: SavedDictionary, out: Path) -> list[Path]:
    """dictionary_learning's `ae.pt` and `config.json`; its `ae.pt` is a pickle of tensors alone.

    Raises:
        ConfigError: a dictionary that writes elsewhere or normalises each row.
    """
    dictionary = saved.dictionary
    one_hook_point = len(saved.site.hook_points) == 1
    if not one_hook_point or dictionary.W_skip is not None:
        raise refused("dictionary_learning", saved, "it knows autoencoders of one hook point alone")
    refuse_normalisation("dictionary_learning", saved)
    names = {
        "relu": "AutoEncoder" if dictionary.b_in is None else "AutoEncoderNew",
        "topk": "AutoEncoderTopK",
        "gated": "GatedAutoEncoder",
        "jumprelu": "JumpReluAutoEncoder",
    }
    if dictionary.architecture not in names:
        raise refused("dictionary_learning", saved, f"it has no {dictionary.architecture}")
    # Its classes subtract b_dec, but for these two.
    subtracts = names[dictionary.architecture] not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    dictionary = dictionary.with_input_bias(
        None if subtracts else torch.zeros_like(dictionary.b_dec)
    )
    state = _state_dict(dictionary, subtracts)
    with atomic_path(out / "ae.pt") as temporary:
        torch.save(state, temporary)
    trainer = {
        "dict_class": names[dictionary.architecture],
        "activation_dim": dictionary.d_in,
        "dict_size": dictionary.d_sae,
        "lm_name": saved.model_name,
        "submodule_name": saved.site.hook_point,
    }
    if dictionary.architecture == "topk":
        trainer["k"] = dictionary.k
    write_json(out / "config.json", {"trainer": trainer})
    return [out / "config.json", out / "ae.pt"]


def _state_dict(dictionary: Dictionary, subtracts: bool) -> dict[str, Tensor]:
    t = {name: tensor.contiguous() for name, tensor in dictionary.tensors().items()}
    if dictionary.architecture == "jumprelu":
        return {name: t[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
    weights = {
        "encoder.weight": t["W_enc"].T.contiguous(),
        "decoder.weight": t["W_dec"].T.contiguous(),
    }
    if dictionary.architecture == "gated":
        return weights | {
            "decoder_bias": t["b_dec"],
            "r_mag": t["r_mag"],
            "gate_bias": t["b_gate"],
            "mag_bias": t["b_mag"],
        }
    weights["encoder.bias"] = t["b_enc"]
    if dictionary.architecture == "topk":
        k = torch.tensor(dictionary.k, dtype=torch.int32)
        return weights | {"b_dec": t["b_dec"], "k": k, "threshold": torch.tensor(-1.0)}
    return weights | {"bias" if subtracts else "decoder.bias": t["b_dec"]}


def steering_vector(saved: SavedDictionary, steering: SteeredLatents) -> Tensor:
    """The sum of decoder rows times their strengths.

    Raises:
        ConfigError: no latent, one that the dictionary does not have, or several hook points.
    """
    dictionary = saved.dictionary
    wrong = [latent for latent in steering.latents if not 0 <= latent < dictionary.d_sae]
    if not steering.latents or wrong:
        raise ConfigError(
            f"latents: {wrong or 'none'} given; the dictionary has 0 to {dictionary.d_sae - 1}: "
            "give LATENT=STRENGTH, such as 12=8.0"
        )
    if len(saved.site.writes) > 1:
        raise ConfigError(
            f"a steering vector is added at one hook point; {saved.folder} writes {saved.site}"
        )
    rows = dictionary.W_dec[list(steering.latents)].double()
    strengths = torch.tensor(list(steering.latents.values()), dtype=torch.float64)
    return (strengths @ rows.cpu()).float()


def to_vectors(saved: SavedDictionary, out: Path, steering: SteeredLatents) -> list[Path]:
    """A steering file of lm-evaluation-harness (`--model steered`): one vector, one hook point.

    It keeps only the last of several entries for a hook point, so features are summed here.
    """
    path = out / f"{steering.name}.pt"
    entry = {
        "steering_vector": steering_vector(saved, steering)[None],
        "steering_coefficient": 1.0,
        "action": "add",
        "bias": None,
    }
    with atomic_path(path) as temporary:
        torch.save({module_of(saved.site.writes[0]): entry}, temporary)
    return [path]


def module_of(hook_point: str) -> str:
    """The Hugging Face module whose output a hook point is.

    Raises:
        ConfigError: it is no block's output.
    """
    _, layer, end = [*hook_point.split("."), "", ""][:3]
    ends = {"hook_resid_post": "", "hook_mlp_out": ".mlp", "hook_attn_out": ".self_attn"}
    if end not in ends:
        raise ConfigError(
            f"{hook_point} is no module's output that lm-evaluation-harness can steer: expected "
            f"blocks.N with {', '.join(ends)}"
        )
    return f"layers.{layer}{ends[end]}"


def to_gguf(saved: SavedDictionary, out: Path, steering: SteeredLatents) -> list[Path]:
    """A llama.cpp control vector: `llama-cli --control-vector FILE`, for its own layer alone.

    llama.cpp adds direction N to the residual stream after block N, which is what a dictionary at
    `blocks.N.hook_resid_post` writes, and has no direction for block 0.

    Raises:
        ConfigError: a hook point other than that, or block 0.
    """
    import gguf

    _, layer, end = [*saved.site.writes[0].split("."), "", ""][:3]
    if end != "hook_resid_post" or layer == "0":
        raise ConfigError(
            f"{saved.site.writes[0]}: a llama.cpp control vector is added to the residual stream "
            "after a block from 1 on: give a dictionary of blocks.N.hook_resid_post"
        )
    path = out / f"{steering.name}.gguf"
    vector = steering_vector(saved, steering)
    with atomic_path(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "controlvector")
        writer.add_string("controlvector.model_hint", str(saved.model_name))
        writer.add_uint32("controlvector.layer_count", 1)
        writer.add_tensor(f"direction.{layer}", vector.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return [path]


def refuse_normalisation(format_name: str, saved: SavedDictionary) -> None:
    """Refuse a dictionary that normalises each row, for a format that cannot.

    Raises:
        ConfigError: it does.
    """
    normalisation = saved.dictionary.input_normalisation
    if normalisation != "none":
        raise refused(format_name, saved, f"it cannot normalise each row ({normalisation})")


def refused(format_name: str, saved: SavedDictionary, reason: str) -> ConfigError:
    """The refusal of a dictionary that a format cannot carry."""
    return ConfigError(f"{saved.folder} cannot be exported to {format_name}: {reason}")


DICTIONARY_EXPORTS: dict[str, Callable[[SavedDictionary, Path], Sequence[Path]]] = {
    "saelens": to_saelens,
    "sparsify": to_sparsify,
    "dictionary_learning": to_dictionary_learning,
}
VECTOR_EXPORTS: dict[str, Callable[[SavedDictionary, Path, SteeredLatents], Sequence[Path]]] = {
    "vectors": to_vectors,
    "gguf": to_gguf,
}
