"""The dictionary's folder: SAELens' two files, our manifest, and a self-test checked on every load.

* `cfg.json`, `sae_weights.safetensors`: what SAELens 6 reads.
* `saelab.json`: manifest with origin, training method and settings, and the hashes of the others.
* `self_test.safetensors`: 16 input rows with their codes and reconstructions in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ArtifactError, ConfigError
from saelab.formats.files import (
    hash_of,
    read_json,
    read_tensors,
    sha256_of,
    write_json,
    write_tensors,
)
from saelab.formats.manifest import NOT_CONTENT, new_manifest, read_manifest
from saelab.sparse import SparseCodes

from .architectures import ARCHITECTURES, Dictionary, normalised_rows
from .saelens_config import architecture_names, saelens_can_express, saelens_config
from .site import Site

KIND = "dictionary"
SCHEMA_VERSION = 1
MANIFEST_FILE = "saelab.json"
CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
SELF_TEST_FILE = "self_test.safetensors"
HASHED_FILES = (CONFIG_FILE, WEIGHTS_FILE, SELF_TEST_FILE)
SELF_TEST_ROWS = 16
SELF_TEST_TOLERANCE = 1e-9
"""Largest allowed deviation, relative to the largest entry; float64 leaves far less."""
LATENTS_AT_A_TIME = 8192
"""Bounds the float64 copy of the weights, whatever the width of the dictionary."""


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
    if dictionary.b_in is not None and saelens_can_express(dictionary.architecture, site):
        dictionary = dictionary.with_input_bias_folded()
    if self_test_inputs.shape[0] == 0:
        raise ConfigError("a dictionary is saved with a self-test; no input rows were given for it")
    tensors = {name: tensor.float() for name, tensor in dictionary.tensors().items()}
    if dictionary.b_in is not None and not bool(dictionary.b_in.any()):
        del tensors["b_in"]  # as in SAELens, apply_b_dec_to_input = false says it
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ConfigError(
            f"weights {broken} are not finite: the dictionary is not saved to {folder}"
        )
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    inputs = self_test_inputs[:SELF_TEST_ROWS].float()
    codes = reference_codes(dictionary, inputs)
    reconstruction = reference_reconstruction(dictionary, codes, inputs)
    row, latent = codes.nonzero(as_tuple=True)
    write_tensors(folder / WEIGHTS_FILE, tensors)
    write_json(folder / CONFIG_FILE, saelens_config(dictionary, site, dict(made_from)))
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
    files = {name: sha256_of(folder / name) for name in HASHED_FILES}
    manifest = new_manifest(
        KIND, SCHEMA_VERSION, seed=seed, config=dict(training), made_from=dict(made_from)
    )
    manifest |= {"files": files} | ({} if site is None else {"site": site.to_json()})
    manifest["content_hash"] = _content_hash(manifest)
    write_json(folder / MANIFEST_FILE, manifest)
    return manifest["content_hash"]


def load_dictionary(folder: Path, device: str = "cpu") -> SavedDictionary:
    """Load a dictionary, trusting nothing: hashes, shapes, dtypes and the self-test are checked.

    Raises:
        ArtifactError: the folder is not one of ours, is damaged, or fails its self-test.

    Example:
        >>> saved = saelab.load_dictionary(planted_dictionary)
        >>> saved.dictionary.encode(torch.zeros(2, saved.dictionary.d_in)).n_rows
        2
    """
    manifest = _read_dictionary_manifest(folder)
    for name, expected in manifest["files"].items():
        _check_file(folder / name, expected)
    config = read_json(folder / CONFIG_FILE)
    site = site_of(manifest, folder)
    dictionary = _build(config, site, read_tensors(folder / WEIGHTS_FILE), folder)
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


def _read_dictionary_manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ArtifactError(f"dictionary folder {folder} does not exist")
    if not (folder / MANIFEST_FILE).exists():
        if (folder / CONFIG_FILE).exists():
            raise ArtifactError(
                f"{folder} has a {CONFIG_FILE} but no {MANIFEST_FILE}: it was not saved by saelab, "
                "or saving was cut short; use a folder that `saelab train` finished"
            )
        raise ArtifactError(
            f"{folder} is not a dictionary folder: it has neither {MANIFEST_FILE} nor {CONFIG_FILE}"
        )
    manifest = read_manifest(folder / MANIFEST_FILE, KIND, SCHEMA_VERSION)
    files = manifest.get("files")
    if not isinstance(files, dict) or set(files) != set(HASHED_FILES):
        raise ArtifactError(f"{folder / MANIFEST_FILE} does not list the files it vouches for")
    if _content_hash(manifest) != manifest.get("content_hash"):
        raise ArtifactError(
            f"{folder / MANIFEST_FILE} was edited: its content no longer has the hash it names; "
            "copy the dictionary folder again"
        )
    return manifest


def _content_hash(manifest: dict[str, Any]) -> str:
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


def _build(
    config: dict[str, Any], site: Site | None, tensors: dict[str, Tensor], folder: Path
) -> Dictionary:
    names = {theirs: ours for ours, theirs in architecture_names(site).items()}
    architecture = names.get(config.get("architecture", ""))
    if architecture is None:
        raise ArtifactError(
            f"{folder / CONFIG_FILE} names the architecture {config.get('architecture')!r}; "
            f"known: {', '.join(sorted(names))}"
        )
    d_in, d_sae = config.get("d_in"), config.get("d_sae")
    d_out = config.get("d_out", d_in)
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,)}
    if "b_in" in tensors:
        shapes["b_in"] = (d_in,)
    vectors = set(ARCHITECTURES[architecture].extra_tensors)
    vectors |= set() if architecture == "gated" else {"b_enc"}
    shapes |= dict.fromkeys(vectors, (d_sae,))
    held = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if held != shapes:
        raise ArtifactError(
            f"{folder / WEIGHTS_FILE} holds {held}; {CONFIG_FILE} promises {shapes}"
        )
    wrong = [name for name, tensor in tensors.items() if tensor.dtype != torch.float32]
    if wrong:
        raise ArtifactError(f"{folder / WEIGHTS_FILE}: tensors {wrong} are not float32")
    if config.get("apply_b_dec_to_input", True) is False and "b_in" not in tensors:
        tensors["b_in"] = torch.zeros(shapes["W_enc"][0])
    try:
        return Dictionary(
            architecture,
            k=config.get("k"),
            input_normalisation=str(config.get("normalize_activations", "none")),
            **tensors,
        )
    except ConfigError as error:
        raise ArtifactError(f"{folder / CONFIG_FILE}: {error}") from None


@torch.no_grad()
def reference_codes(
    dictionary: Dictionary, x: Float[Tensor, "batch d_in"]
) -> Float[Tensor, "batch d_sae"]:
    """Dense float64 codes, written down plainly.

    In double precision two machines agree on which latents are active unless two pre-activations
    tie to fifteen digits, so a stored answer can be compared tightly anywhere.
    """
    x = x.double()
    inputs = normalised_rows(x, dictionary.row_scale(x)) - dictionary.input_bias.double()
    columns = [
        inputs @ dictionary.W_enc[:, start : start + LATENTS_AT_A_TIME].double()
        for start in range(0, dictionary.d_sae, LATENTS_AT_A_TIME)
    ]
    pre_activations = torch.cat(columns, dim=1)
    if dictionary.architecture != "gated":
        pre_activations += dictionary.b_enc.double()
    codes, active = ARCHITECTURES[dictionary.architecture].gate(dictionary, pre_activations)
    return torch.where(active, codes, 0.0)


@torch.no_grad()
def reference_reconstruction(
    dictionary: Dictionary,
    codes: Float[Tensor, "batch d_sae"],
    x: Float[Tensor, "batch d_in"],
) -> Float[Tensor, "batch d_out"]:
    """The float64 reconstruction from the dense float64 codes of `x`."""
    sparse = SparseCodes.from_dense(codes)
    rows = [
        sparse.value[start:stop] @ dictionary.W_dec[sparse.latent[start:stop]].double()
        for start, stop in zip(
            sparse.row_pointer[:-1].tolist(), sparse.row_pointer[1:].tolist(), strict=True
        )
    ]
    reconstruction = torch.stack(rows) + dictionary.b_dec.double()
    row_scale = dictionary.row_scale(x.double())
    return reconstruction if row_scale is None else reconstruction * row_scale.unsqueeze(1)


def _self_test(dictionary: Dictionary, folder: Path) -> None:
    stored = read_tensors(folder / SELF_TEST_FILE)
    codes = reference_codes(dictionary, stored["inputs"])
    expected = torch.zeros_like(codes)
    expected[stored["code_row"], stored["code_latent"]] = stored["code_value"]
    pairs = {
        "codes": (codes, expected),
        "reconstructions": (
            reference_reconstruction(dictionary, codes, stored["inputs"]),
            stored["reconstructions"],
        ),
    }
    for what, (result, wanted) in pairs.items():
        deviation = float((result - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
        if not deviation <= SELF_TEST_TOLERANCE:
            raise ArtifactError(
                f"{folder} fails its self-test: {what} of the stored rows are off by "
                f"{deviation:.1e} of the largest entry (allowed {SELF_TEST_TOLERANCE:.0e}); "
                "this saelab does not compute what the saving one did"
            )
