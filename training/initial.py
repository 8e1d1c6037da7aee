"""A saved dictionary as what training begins from, in place of weights drawn at random.

Methods see activations normalised to unit variance, so a dictionary is unfolded: the inverse of
`AutoencoderWeights.fold`. What its gate is comes down to one threshold for each latent: `relu` has
zero, and `gated`, whose two encoders are one matrix, fires exactly where its magnitude exceeds
b_mag − exp(r_mag) · b_gate. Only `topk` has none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.dictionary import Dictionary, SavedDictionary, Site, load_dictionary
from saelab.dictionary.storage import site_of
from saelab.errors import ConfigError

from .interface import Normalisation

UNIT_NORM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class InitialWeights:
    """A dictionary on normalised activations, in float64."""

    W_enc: Float[Tensor, "d_in d_sae"]
    """Of the codes: a gated encoder's times exp(r_mag)."""
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, " d_out"]
    b_in: Float[Tensor, " d_in"] | None
    """None: b_dec."""
    W_skip: Float[Tensor, "d_out d_in"] | None
    """Affine skip; None: there is none."""
    threshold: Float[Tensor, " d_sae"] | None
    """Pre-activation above which a latent fires, if that is positive; None: the k largest do."""
    r_mag: Float[Tensor, " d_sae"]
    """Zero but for `gated`."""
    k: int | None
    """Of `topk`."""

    @classmethod
    def of(
        cls, source: Dictionary, normalisation: Normalisation, *, autoencodes: bool, skip: bool
    ) -> InitialWeights:
        """Unfold a dictionary of the activations that a normalisation is of.

        Args:
            autoencodes: whether input and output have one bias, as a sparse autoencoder's do.
            skip: whether what begins from it has an affine skip too.

        Raises:
            ConfigError: it does something to its rows that methods do not.
        """
        if source.input_normalisation != "none":
            raise ConfigError(
                f"its rows go through {source.input_normalisation}, which this method does not "
                "know: begin from a dictionary without"
            )
        if source.W_skip is not None and not skip:
            raise ConfigError("it has an affine skip and this run learns none: give --skip")
        source = source.with_input_bias(None if autoencodes else source.input_bias)
        tensors = {name: tensor.double() for name, tensor in source.tensors().items()}
        r_mag = tensors.get("r_mag", tensors["W_dec"].new_zeros(source.d_sae))
        b_enc = tensors["b_mag"] if source.architecture == "gated" else tensors["b_enc"]
        threshold = {
            "relu": lambda: torch.zeros_like(b_enc),
            "topk": lambda: None,
            "groupmax": lambda: None,
            "jumprelu": lambda: tensors["threshold"],
            "gated": lambda: b_enc - r_mag.exp() * tensors["b_gate"],
        }[source.architecture]()
        read, written, unit = normalisation, normalisation.of_targets, normalisation.code_scale
        scales = [torch.as_tensor(part.scale).to(r_mag) for part in (read, written)]
        b_in = None if autoencodes else (tensors["b_in"] - read.mean.to(r_mag)) * scales[0]
        b_dec, W_skip = tensors["b_dec"] - written.mean.to(r_mag), tensors.get("W_skip")
        if W_skip is not None:
            b_dec = b_dec + W_skip @ read.mean.to(r_mag)
            W_skip = W_skip * scales[1].reshape(-1, 1) / scales[0]
        return cls(
            W_enc=tensors["W_enc"] * r_mag.exp() / (scales[0] / unit).unsqueeze(-1),
            b_enc=b_enc * unit,
            W_dec=tensors["W_dec"] * (scales[1] / unit),
            b_dec=b_dec * scales[1],
            b_in=b_in,
            W_skip=W_skip,
            threshold=None if threshold is None else threshold * unit,
            r_mag=r_mag,
            k=source.k or None,
        )

    def with_unit_decoder(self, norms: Float[Tensor, " d_sae"]) -> tuple[InitialWeights, bool]:
        """The same function with decoder rows of norm one, and whether any was not.

        Codes grow by the norms, and so does everything they are compared with; what is largest in
        a row may change.

        Args:
            norms: of the decoder's rows.
        """
        norms = torch.where(norms > 0, norms, 1.0)
        scaled = replace(
            self,
            W_enc=self.W_enc * norms,
            b_enc=self.b_enc * norms,
            W_dec=self.W_dec / norms[:, None],
            threshold=None if self.threshold is None else self.threshold * norms,
        )
        return scaled, bool((norms - 1).abs().max() > UNIT_NORM_TOLERANCE)


def load_source(
    folder: Path, *, d_in: int, d_out: int, d_sae: tuple[int, ...], site: Site | None
) -> SavedDictionary:
    """The saved dictionary that training begins from.

    Args:
        site: what they read and write; None: the one hook point of their activations.

    Raises:
        ArtifactError: there is none, or it is damaged.
        ConfigError: its shape or site is another.
    """
    saved = load_dictionary(folder)
    source, given = saved.dictionary, site_of(saved.manifest, folder)
    autoencodes = site is None or site.is_autoencoder
    if autoencodes != (source.d_in == source.d_out if given is None else given.is_autoencoder):
        raise ConfigError(
            f"init_from: {folder} is of {given}, and this run "
            f"{'writes what it reads' if autoencodes else f'is of {site}'}: begin from a "
            "dictionary of the same kind"
        )
    if (source.d_in, source.d_out) != (d_in, d_out):
        raise ConfigError(
            f"init_from: {folder} reads width {source.d_in} and writes {source.d_out}; the "
            f"activations here have width {d_in} and {d_out}: begin from a dictionary of that width"
        )
    if d_sae != (source.d_sae,):
        raise ConfigError(
            f"init_from: {folder} has {source.d_sae} latents and the run's d_sae is "
            f"{', '.join(map(str, d_sae))}: give --d-sae {source.d_sae}"
        )
    return saved
