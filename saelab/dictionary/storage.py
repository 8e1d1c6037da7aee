"""The dictionary's folder: SAELens' two files, our manifest, and a self-test checked on every load.

* `cfg.json`, `sae_weights.safetensors`: what SAELens 6 reads.
* `saelab.json`: manifest with origin, training method and settings, and the hashes of the others.
* `self_test.safetensors`: 16 input rows with their codes and reconstructions in float64.

A dictionary over several layers that is larger than memory has `layer_0.safetensors`, … in place of
`sae_weights.safetensors`: its decoder as it is, its encoder latent by latent (`encoder_rows`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ArtifactError, ConfigError
from saelab.formats.files import (
    hash_of,
    odd_content_is_damage,
    read_json,
    read_tensors,
    require_free_space,
    sha256_of,
    write_json,
    write_tensors,
)
from saelab.formats.manifest import NOT_CONTENT, new_manifest, read_manifest, write_manifest

from .architectures import Dictionary
from .layered import LayeredDictionary
from .reference import reference_codes, reference_reconstruction
from .saelens import (
    CONFIG_FILE,
    TRAINING_LIBRARY,
    WEIGHTS_FILE,
    read_saelens,
    saelens_can_express,
    saelens_config,
    settings_of,
)
from .site import Site

KIND = "dictionary"
SCHEMA_VERSION = 1
MANIFEST_FILE = "saelab.json"
SELF_TEST_FILE = "self_test.safetensors"
N_LAYERS = "n_layers"
"""In `cfg.json`, of a dictionary whose layers lie in files of their own."""
K_OF_LAYER = "k_of_each_layer"
"""There too, where each layer keeps its own largest pre-activations."""
HELD_LIMIT = 4_000_000_000
"""Bytes of files up to which layers stay in memory once they are read."""
SELF_TEST_ROWS = 16
SELF_TEST_TOLERANCE = 1e-9
"""Largest allowed deviation, relative to the largest entry; float64 leaves far less."""
SELF_TEST_LATENTS = 4096
"""Latents whose codes are computed again on loading, beside those that are active in them. The file
of the weights has a hash of its own; the self-test shows that they still mean what they did."""


@dataclass(frozen=True)
class SavedDictionary:
    """A dictionary as loaded, with what its folder says of it."""

    dictionary: Dictionary
    """Ready for use."""
    folder: Path
    """Where it was loaded from."""
    config: dict[str, Any]
    """The content of cfg.json."""
    manifest: dict[str, Any]
    """The content of saelab.json."""
    content_hash: str
    """Names the weights, the settings, the origin and the self-test together."""

    @property
    def made_from(self) -> dict[str, Any]:
        """Provenance of the activations it was trained on."""
        return self.manifest["made_from"]

    @property
    def name(self) -> str:
        """The folder's name, for tables and figures."""
        return self.folder.resolve().name

    @property
    def model_name(self) -> str:
        """The language model whose activations it explains."""
        return self.made_from["model"]

    @property
    def site(self) -> Site:
        """What it reads and writes.

        Raises:
            ArtifactError: its manifest does not say.
        """
        site = site_of(self.manifest, self.folder)
        if site is None:
            raise ArtifactError(f"{self.folder} does not record what it reads: save it again")
        return site

    @property
    def hook_point(self) -> str:
        """Where in the model those activations are, for a sparse autoencoder.

        Raises:
            ConfigError: it reads or writes several hook points.
        """
        return self.site.hook_point

    @property
    def token_filter(self) -> dict[str, Any]:
        """Which rows were left out of training, and are left out of every metric."""
        return self.made_from["row_rule"]

    @property
    def norm_ceiling(self) -> float | None:
        """Norm above which a row is left out; None where no row is for that reason."""
        return self.made_from["norm_ceiling"]

    @property
    def context_length(self) -> int:
        """Tokens in a context during training."""
        return self.made_from["context_length"]

    @property
    def text(self) -> dict[str, Any]:
        """The text settings it was trained with."""
        return self.made_from["text"]


def save_dictionary(
    folder: Path,
    dictionary: Dictionary,
    *,
    self_test_inputs: Float[Tensor, "rows d_in"],
    training: Mapping[str, Any],
    made_from: Mapping[str, Any],
    seed: int | None = None,
    site: Site | None = None,
    in_place: bool = False,
) -> str:
    """Save a dictionary; the manifest comes last, so a folder with one is complete.

    Args:
        folder: created if needed; files of an earlier save there are replaced.
        dictionary: with the normalisation of its training folded in.
        self_test_inputs: real activations, of which the first 16 are kept.
        training: method, its settings, target and measured L0 and whatever else tells how it came
            to be, as plain values.
        made_from: provenance of the activations.
        seed: of the training; None where nothing was random.
        site: what it reads and writes. None: a sparse autoencoder of `made_from["hook_point"]`.
        in_place: `folder` is one of SAELens' that holds this dictionary, and its files stay as they
            are; self-test and manifest are written beside them.

    Returns:
        The content hash.

    Raises:
        ConfigError: no self-test rows, weights that are not finite, or a site that does not fit.
    """
    if site is None and "hook_point" in made_from:
        site = Site.of(made_from["hook_point"])
    if (site is None or site.is_autoencoder) and dictionary.d_in != dictionary.d_out:
        raise ConfigError(
            f"the site {site} does not write elsewhere, but the dictionary reads width "
            f"{dictionary.d_in} and writes width {dictionary.d_out}: name both in its site"
        )
    if dictionary.b_in is not None and not in_place and saelens_can_express(dictionary, site):
        dictionary = dictionary.with_input_bias(torch.zeros_like(dictionary.b_in))
    if self_test_inputs.shape[0] == 0:
        raise ConfigError("a dictionary is saved with a self-test; no input rows were given for it")
    n_layers = dictionary.n_layers if isinstance(dictionary, LayeredDictionary) else None
    if (folder / MANIFEST_FILE).exists() and not in_place:
        for weights in {*folder.glob("layer_*.safetensors"), folder / WEIGHTS_FILE}:
            if weights.name not in weights_files(n_layers):
                weights.unlink(missing_ok=True)
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    if isinstance(dictionary, LayeredDictionary):
        _write_layers(folder, dictionary)
    else:
        tensors = _finite_tensors(dictionary, folder)
        if not in_place:
            write_tensors(folder / WEIGHTS_FILE, tensors)
    if not in_place:
        config = saelens_config(dictionary, site, dict(made_from))
        if isinstance(dictionary, LayeredDictionary):
            config |= {N_LAYERS: n_layers}
            config |= {K_OF_LAYER: dictionary.k_of_layer} if dictionary.k_of_layer else {}
        write_json(folder / CONFIG_FILE, config)
    inputs = self_test_inputs[:SELF_TEST_ROWS].float()
    codes = reference_codes(dictionary, inputs)
    reconstruction = reference_reconstruction(dictionary, codes, inputs)
    row, latent = codes.nonzero(as_tuple=True)
    write_tensors(
        folder / SELF_TEST_FILE,
        {
            "inputs": inputs,
            "code_row": row,
            "code_latent": latent,
            "code_value": codes[row, latent],
            "reconstructions": reconstruction,
        },
    )
    hashed = (CONFIG_FILE, *weights_files(n_layers), SELF_TEST_FILE)
    files = {name: sha256_of(folder / name) for name in hashed}
    manifest = new_manifest(
        KIND, SCHEMA_VERSION, seed=seed, config=dict(training), made_from=dict(made_from)
    )
    manifest |= {"files": files} | ({} if site is None else {"site": site.to_json()})
    manifest["content_hash"] = content_hash_of(manifest)
    write_manifest(folder / MANIFEST_FILE, manifest)
    return manifest["content_hash"]


def weights_files(n_layers: int | None) -> tuple[str, ...]:
    """Names of the files that hold the weights: one, or one for each layer."""
    layers = range(n_layers or 0)
    return tuple(f"layer_{index}.safetensors" for index in layers) or (WEIGHTS_FILE,)


def _finite_tensors(dictionary: Dictionary, folder: Path) -> dict[str, Tensor]:
    tensors = {name: tensor.float() for name, tensor in dictionary.tensors().items()}
    if dictionary.b_in is not None and not bool(dictionary.b_in.any()):
        del tensors["b_in"]  # as in SAELens, apply_b_dec_to_input = false says it
    # A sum that is finite is of finite entries; else it may only be too large.
    doubtful = {name: each for name, each in tensors.items() if not each.sum().isfinite()}
    broken = [name for name, tensor in doubtful.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ConfigError(
            f"weights {broken} are not finite: the dictionary is not saved to {folder}"
        )
    return tensors


def _write_layers(folder: Path, dictionary: LayeredDictionary) -> None:
    n = dictionary.n_layers
    needed = 4 * dictionary.width * dictionary.d_sae // n * (n + n * (n + 1) // 2)
    require_free_space(folder, needed, "the dictionary")
    for index, name in enumerate(weights_files(n)):
        tensors = _finite_tensors(dictionary.layer(index), folder)
        write_tensors(folder / name, {"encoder_rows": tensors.pop("W_enc").T, **tensors})


def _read_layers(folder: Path, config: Mapping[str, Any]) -> LayeredDictionary:
    n, k = config[N_LAYERS], config.get("k")
    width, d_sae = config["d_in"] // n, config["d_sae"] // n

    def layer(index: int) -> Dictionary:
        tensors = read_tensors(folder / weights_files(n)[index])
        shapes = {"d_in": width, "d_sae": d_sae, "d_out": (n - index) * width}
        shapes["k"] = config.get(K_OF_LAYER) or k
        W_enc = tensors.pop("encoder_rows").T
        return read_saelens({**config, **shapes}, {"W_enc": W_enc, **tensors}, folder)

    held = sum((folder / name).stat().st_size for name in weights_files(n)) <= HELD_LIMIT
    return LayeredDictionary(functools.cache(layer) if held else layer, [d_sae] * n, k)


def load_dictionary(folder: Path, device: str = "cpu") -> SavedDictionary:
    """Load a dictionary, trusting nothing: hashes, shapes, dtypes and the self-test are checked.

    A folder that SAELens wrote opens too; it has no hashes and no self-test to check.

    Raises:
        ArtifactError: the folder holds no dictionary, is damaged, or fails its self-test.

    Example:
        >>> saved = saelab.load_dictionary(planted_dictionary)
        >>> saved.dictionary.encode(torch.zeros(2, saved.dictionary.d_in)).n_rows
        2
    """
    with odd_content_is_damage(folder):
        return _load_dictionary(folder, device)


def _load_dictionary(folder: Path, device: str) -> SavedDictionary:
    foreign = (folder / CONFIG_FILE).is_file() and not (folder / MANIFEST_FILE).exists()
    manifest = foreign_manifest(folder) if foreign else _read_dictionary_manifest(folder)
    if not foreign:
        for name, expected in manifest["files"].items():
            _check_file(folder / name, expected)
    config = read_json(folder / CONFIG_FILE)
    site_of(manifest, folder)  # a damaged one is found here, not where it is first used
    if N_LAYERS in config and not foreign:
        dictionary = _read_layers(folder, config)
    else:
        dictionary = read_saelens(config, read_tensors(folder / WEIGHTS_FILE), folder)
    if not foreign:
        _self_test(dictionary, folder)
    return SavedDictionary(
        dictionary.to(device), folder, config, manifest, manifest["content_hash"]
    )


def site_of(manifest: Mapping[str, Any], folder: Path) -> Site | None:
    """The site that a dictionary's manifest records, if any; before sites, its one hook point.

    Raises:
        ArtifactError: what the manifest records is no site.
    """
    hook_point = manifest.get("made_from", {}).get("hook_point")
    try:
        if "site" in manifest:
            return Site.from_json(manifest["site"])
        return None if hook_point is None else Site.of(hook_point)
    except ConfigError as error:
        raise ArtifactError(
            f"{folder / MANIFEST_FILE} names no hook points that the dictionary reads and writes "
            f"({error}): it was damaged or edited"
        ) from None


def foreign_manifest(folder: Path) -> dict[str, Any]:
    """What our manifest would say of a folder that SAELens wrote, as far as that says it.

    Raises:
        ArtifactError: the folder is one of ours, cut short.
    """
    settings = settings_of(read_json(folder / CONFIG_FILE))
    if settings.get("training_library") == TRAINING_LIBRARY:
        raise ArtifactError(
            f"{folder} has a {CONFIG_FILE} but no {MANIFEST_FILE}: saving was cut short; use a "
            "folder that `saelab train` finished"
        )
    origin = {
        "model": settings.get("model_name"),
        "hook_point": settings.get("hook_name"),
        "context_length": settings.get("context_size"),
        "prepend_bos": settings.get("prepend_bos"),
    }
    made_from: dict[str, Any] = {name: value for name, value in origin.items() if value is not None}
    files = {name: sha256_of(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
    manifest = {"config": {}, "made_from": made_from, "files": files}
    reads, writes = settings.get("hook_name"), settings.get("hook_name_out")
    if reads is not None:
        manifest["site"] = Site((reads,), (writes or reads,)).to_json()
    return manifest | {"content_hash": hash_of(files)}


def _read_dictionary_manifest(folder: Path) -> dict[str, Any]:
    if not folder.exists():
        raise ArtifactError(f"dictionary folder {folder} does not exist")
    if not (folder / MANIFEST_FILE).exists():
        raise ArtifactError(
            f"{folder} is not a dictionary folder of saelab's (no {MANIFEST_FILE}): `saelab info "
            f"{folder}` says what it is, and which command opens it"
        )
    manifest = read_manifest(folder / MANIFEST_FILE, KIND, SCHEMA_VERSION)
    files = manifest.get("files")
    listed = set(files) if isinstance(files, dict) else set()
    weights = weights_files(len(listed) - 2 if WEIGHTS_FILE not in listed else None)
    if listed != {CONFIG_FILE, *weights, SELF_TEST_FILE}:
        raise ArtifactError(f"{folder / MANIFEST_FILE} does not list the files it vouches for")
    if content_hash_of(manifest) != manifest.get("content_hash"):
        raise ArtifactError(
            f"{folder / MANIFEST_FILE} was edited: its content no longer has the hash it names; "
            "copy the dictionary folder again"
        )
    return manifest


def content_hash_of(manifest: dict[str, Any]) -> str:
    """Hash of everything in the manifest that is not about the moment of saving."""
    return hash_of({key: value for key, value in manifest.items() if key not in NOT_CONTENT})


def _check_file(path: Path, expected: str) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: copy the whole dictionary folder again")
    if sha256_of(path) != expected:
        raise ArtifactError(
            f"{path} is not the file that was saved (its SHA-256 differs): it is truncated or was "
            "changed; copy the dictionary folder again or train it again"
        )


def _self_test(dictionary: Dictionary, folder: Path) -> None:
    stored = read_tensors(folder / SELF_TEST_FILE)
    active = stored["code_latent"].unique()
    others = torch.ones(dictionary.d_sae, dtype=torch.bool).index_fill(0, active, False).nonzero()
    step = max(1, -(-len(others) // SELF_TEST_LATENTS))
    latents = torch.cat([active, others[::step].flatten()]).sort().values
    problem = "its latents stand in groups"
    if dictionary.architecture != "groupmax":
        problem = _deviation(_narrowed(dictionary, latents), latents, stored)
    # Of latents with the same pre-activation, others may be among the k largest of fewer.
    if problem is not None:
        problem = _deviation(dictionary, torch.arange(dictionary.d_sae), stored)
    if problem is not None:
        raise ArtifactError(
            f"{folder} fails its self-test: {problem} (allowed {SELF_TEST_TOLERANCE:.0e}); this "
            "saelab does not compute what the saving one did"
        )


def _deviation(
    dictionary: Dictionary, latents: Int[Tensor, " tested"], stored: dict[str, Tensor]
) -> str | None:
    """What of the stored rows is off by more than rounding; `latents` are those tested."""
    position = torch.zeros(int(latents.max()) + 1, dtype=torch.long)
    position[latents] = torch.arange(len(latents))
    codes = reference_codes(dictionary, stored["inputs"])
    expected = torch.zeros_like(codes)
    expected[stored["code_row"], position[stored["code_latent"]]] = stored["code_value"]
    reconstructions = reference_reconstruction(dictionary, codes, stored["inputs"])
    pairs = {
        "codes": (codes, expected),
        "reconstructions": (reconstructions, stored["reconstructions"]),
    }
    for what, (result, wanted) in pairs.items():
        deviation = float((result - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
        if not deviation <= SELF_TEST_TOLERANCE:
            return f"{what} of the stored rows are off by {deviation:.1e} of the largest entry"
    return None


def _narrowed(dictionary: Dictionary, latents: Int[Tensor, " tested"]) -> Dictionary:
    """The dictionary of the latents given, in that order, which rises.

    Rows in which no other latents than these are active have the same codes and reconstructions.
    """
    if isinstance(dictionary, LayeredDictionary):
        starts = torch.tensor(dictionary.starts)
        parts = latents.tensor_split(torch.searchsorted(latents, starts[1:-1]))
        return LayeredDictionary(
            lambda index: _narrowed(dictionary.layer(index), parts[index] - starts[index]),
            [len(part) for part in parts],
            k=dictionary.k,
        )
    tensors = dictionary.tensors()
    # A latent's weights lie side by side, so that only those of these are read.
    tensors["W_enc"] = tensors["W_enc"].T[latents].T
    for name in tensors.keys() - {"W_enc", "b_dec", "b_in", "W_skip"}:
        tensors[name] = tensors[name][latents]
    return Dictionary(
        dictionary.architecture,
        k=min(dictionary.k, len(latents)) or None,
        input_normalisation=dictionary.input_normalisation,
        **tensors,
    )
