"""Weights of an autoencoder in training: free with a unit-norm decoder, or all of unit norm.

Those of a cross-layer transcoder are in `cross_layer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.dictionary import Dictionary
from saelab.errors import ConfigError
from saelab.sparse import (
    PreActivations,
    SparseCodes,
    TransposedPairs,
    decode_selected,
    encode_selected,
)

from ..initial import UNIT_NORM_TOLERANCE, InitialWeights
from ..interface import Normalisation


class LearntWeights(nn.Module):
    """What the methods compute with weights, from their W_enc, W_dec and input_bias."""

    def pre_activations(
        self: Any,
        inputs: Float[Tensor, "rows d_in"],
        product_dtype: torch.dtype | None,
        b_enc: Float[Tensor, " d_sae"],
    ) -> PreActivations:
        """The pre-activations of normalised inputs, to select from."""
        centred = (inputs - self.input_bias).detach()
        return PreActivations(centred, self.W_enc, b_enc, product_dtype)

    def pairs_of(self, selected: SparseCodes) -> Any:
        """What `encode` and `decode` need of selected pairs; it costs a sort."""
        return TransposedPairs.of(selected)

    def encode(
        self: Any,
        inputs: Float[Tensor, "rows d_in"],
        selected: SparseCodes,
        pairs: Any,
        b_enc: Float[Tensor, " d_sae"],
    ) -> Float[Tensor, " pairs"]:
        """The pre-activations of selected pairs, with gradients."""
        return encode_selected(inputs, self.W_enc, b_enc, self.input_bias, selected, pairs)

    def decode(
        self: Any, selected: SparseCodes, value: Float[Tensor, " pairs"], pairs: Any
    ) -> Float[Tensor, "rows d_out"]:
        """What selected pairs write with these values, without b_dec."""
        return decode_selected(selected, value, self.W_dec, pairs)


class AutoencoderWeights(LearntWeights):
    """W_enc, b_enc, W_dec and b_dec with unit-norm decoder rows and an encoder tied at the start.

    With `d_out` what is written is another hook point than what is read: b_in is then apart from
    b_dec, and the encoder's directions are drawn apart from the decoder's. With `skip` a matrix
    from input to output, zero at the start, learns what is linear beside the latents.

    The encoder is kept latent by latent, as `encoder_rows` [d_sae, d_in]: single latents are what
    the sparse kernels gather, and the fused optimizer copies a parameter that is not contiguous.
    `W_enc` is its transposed view.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        seed: int,
        encoder_scale: float = 1.0,
        d_out: int | None = None,
        skip: bool = False,
    ):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def draw(width: int) -> Tensor:
            directions = torch.randn(d_sae, width, generator=generator)
            return directions.div_(directions.norm(dim=1, keepdim=True))

        directions = draw(d_in)
        self.W_dec = nn.Parameter(directions.clone() if d_out is None else draw(d_out))
        self.encoder_rows = nn.Parameter(directions * encoder_scale)
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in if d_out is None else d_out))
        self.b_in = None if d_out is None else nn.Parameter(torch.zeros(d_in))
        self.W_skip = nn.Parameter(torch.zeros(len(self.b_dec), d_in)) if skip else None

    @property
    def input_bias(self) -> Float[Tensor, " d_in"]:
        """What is subtracted from the input: b_in, or b_dec where the two are one."""
        return self.b_dec if self.b_in is None else self.b_in

    def baseline(self, inputs: Float[Tensor, "batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """What is reconstructed with no latent active: b_dec, and the affine skip where there is
        one."""
        return self.b_dec if self.W_skip is None else self.b_dec + inputs @ self.W_skip.T

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """Encoder weights; a gradient through this view arrives at `encoder_rows`."""
        return self.encoder_rows.T

    @torch.no_grad()
    def begin_from(self, initial: InitialWeights) -> None:
        """Take over weights of these shapes."""
        self.W_dec.copy_(initial.W_dec)
        self.encoder_rows.copy_(initial.W_enc.T)
        self.b_enc.copy_(initial.b_enc)
        self.b_dec.copy_(initial.b_dec)
        if self.b_in is not None and initial.b_in is not None:
            self.b_in.copy_(initial.b_in)
        if self.W_skip is not None:
            self.W_skip.copy_(torch.zeros(()) if initial.W_skip is None else initial.W_skip)

    def by_latent(self, decoder: Tensor) -> list[Tensor]:
        """A tensor like the decoder as matrices that have a row for a latent."""
        return [decoder]

    def to_dictionary(
        self,
        architecture: str,
        normalisation: Normalisation,
        *,
        k: int | None = None,
        threshold: Float[Tensor, " d_sae"] | None = None,
    ) -> Dictionary:
        """The dictionary on activations in the model's own units; a threshold is of its codes."""
        gate: dict[str, Any] = {} if threshold is None else {"threshold": threshold}
        return Dictionary(architecture, **self.fold(normalisation), k=k, **gate)

    @torch.no_grad()
    def fold(self, normalisation: Normalisation) -> dict[str, Any]:
        """The weights that act on activations in the model's own units.

        Codes come to be in units of what is written, and decoder rows keep their norm. With s and μ
        scale and mean of the input, t and ν those of the output, and c the scale of the codes:
        W_enc → W_enc s / c, b_in → μ + b_in / s, b_enc (and every threshold) → b_enc / c,
        W_dec → W_dec c / t, b_dec → ν + b_dec / t, W_skip → W_skip s / t, whose product with μ is
        taken off b_dec. One hook point written has c = t; a sparse
        autoencoder has s = t and μ = ν besides, so that both matrices stay as they are.
        """
        written, unit = normalisation.of_targets, normalisation.code_scale
        into = torch.as_tensor(normalisation.scale / unit).to(self.W_dec)
        folded = {
            "W_enc": self.W_enc.detach() * into.unsqueeze(-1),
            "b_enc": self.b_enc.detach() / unit,
            "W_dec": self.W_dec.detach() * torch.as_tensor(unit / written.scale).to(self.W_dec),
            "b_dec": written.mean + self.b_dec.detach() / written.scale,
        }
        if self.b_in is not None:
            folded["b_in"] = normalisation.mean + self.b_in.detach() / normalisation.scale
        if self.W_skip is not None:
            outward = torch.as_tensor(written.scale).to(self.W_skip).reshape(-1, 1)
            folded["W_skip"] = self.W_skip.detach() * normalisation.scale / outward
            folded["b_dec"] = folded["b_dec"] - folded["W_skip"] @ normalisation.mean
        return folded


class UnitWeights(LearntWeights):
    """Directions w_l of norm one, scales a_l, and a b_pre that nothing trains.

    Latent l encodes u as v_l · (u − b_pre) and decodes f as f a_l w_l, where v_l is w_l itself
    (`tied`) or a direction of norm one of its own that starts there. `W_enc`, `b_enc`, `W_dec` and
    `b_dec` say the same in the words of other autoencoders; gradients arrive here.
    """

    b_dec: Float[Tensor, " d_in"]

    def __init__(self, d_in: int, d_sae: int, *, seed: int, tied: bool = True):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(d_sae, d_in, generator=generator)
        self.directions = nn.Parameter(directions / directions.norm(dim=1, keepdim=True))
        self.encoder = None if tied else nn.Parameter(self.directions.detach().clone())
        self.scales = nn.Parameter(torch.ones(d_sae))
        self.register_buffer("b_dec", torch.zeros(d_in))

    @property
    def input_bias(self) -> Float[Tensor, " d_in"]:
        """What is subtracted from the input, and added to the output again."""
        return self.b_dec

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """Encoder weights, each latent's contiguous in memory."""
        return (self.directions if self.encoder is None else self.encoder).T

    def of_norm_one(self) -> list[nn.Parameter]:
        """The parameters whose rows are held at norm one."""
        return [self.directions] if self.encoder is None else [self.directions, self.encoder]

    @property
    def b_enc(self) -> Float[Tensor, " d_sae"]:
        """Encoder bias: none, since thresholds are no part of what is encoded."""
        return self.directions.new_zeros(self.directions.shape[0])

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_in"]:
        """Decoder weights, made at each call."""
        return self.directions * self.scales.unsqueeze(1)

    @torch.no_grad()
    def to_dictionary(self, thresholds: Float[Tensor, " d_sae"]) -> Dictionary:
        """A `jumprelu` dictionary that brings each row to norm √d_in where this saw norm one.

        Everything of the input's size grows by √d_in (b_dec, thresholds, codes), and the
        reconstruction with it; the dictionary then multiplies it by ‖x‖ / √d_in.
        """
        grown = self.b_dec.shape[0] ** 0.5
        return Dictionary(
            "jumprelu",
            W_enc=self.W_enc.detach().clone(),
            b_enc=self.b_enc,
            W_dec=self.W_dec.detach(),
            b_dec=self.b_dec * grown,
            threshold=thresholds * grown,
            input_normalisation="constant_norm_rescale",
        )

    @torch.no_grad()
    def begin_from(self, source: Dictionary) -> Float[Tensor, " d_sae"]:
        """Take over what `to_dictionary` gave; returns its thresholds.

        Raises:
            ConfigError: it is not of this form.
        """
        directions, grown = source.W_enc.T, self.b_dec.shape[0] ** 0.5
        if self.encoder is not None:
            self.encoder.copy_(directions)
            directions = torch.nn.functional.normalize(source.W_dec, dim=1)
        scales = torch.linalg.vecdot(source.W_dec, directions)
        off = (source.W_dec - directions * scales[:, None]).abs().max()
        if (
            (source.architecture, source.input_normalisation)
            != ("jumprelu", "constant_norm_rescale")
            or bool(source.b_enc.any())
            or source.b_in is not None
            or bool((source.W_enc.norm(dim=0) - 1).abs().max() > UNIT_NORM_TOLERANCE)
            or bool(off > UNIT_NORM_TOLERANCE)
        ):
            raise ConfigError(
                "its encoder's rows are not of norm one, or not its decoder's directions: bias "
                "adaptation begins from dictionaries of bias adaptation only, and tied weights "
                "from tied ones"
            )
        self.directions.copy_(directions)
        self.scales.copy_(scales)
        self.b_dec.copy_(source.b_dec / grown)
        return source.threshold / grown


def row_norms(
    rows: Float[Tensor, "d_sae width"], summed_over: Sequence[int] = ()
) -> Float[Tensor, " d_sae"]:
    """Norm of each row; with `summed_over` the sum of the norms of its parts of these widths."""
    if not summed_over:
        return torch.linalg.vector_norm(rows, dim=1)
    parts = rows.split([*summed_over], dim=1)
    return torch.stack([torch.linalg.vector_norm(part, dim=1) for part in parts]).sum(0)


@torch.no_grad()
def remove_radial_gradient(directions: Tensor) -> None:
    """Take from the gradient of rows held at norm one what would only change their norms.

    Left in, it would be undone by the renormalisation after every step but still fill Adam's
    moments (as in the TopK recipe of Gao et al., 2024, section 2).
    """
    if directions.grad is not None:
        make_tangent(directions.grad, directions)


def make_tangent(
    gradient: Float[Tensor, "rows d"],
    directions: Float[Tensor, "rows d"],
    summed_over: Sequence[int] = (),
) -> None:
    """Take from each row of a gradient, in place, what would change a norm that is held at one."""
    normal, square = directions, 1
    if summed_over:
        parts = directions.split([*summed_over], dim=1)
        normal = torch.cat([torch.nn.functional.normalize(part, dim=1) for part in parts], dim=1)
        square = len(parts)
    along = torch.linalg.vecdot(gradient, normal)
    gradient.addcmul_(normal, along.unsqueeze(1), value=-1.0 / square)


@torch.no_grad()
def normalise_rows(directions: Float[Tensor, "rows d"], summed_over: Sequence[int] = ()) -> None:
    """Bring every row back to norm one."""
    directions.div_(row_norms(directions, summed_over).clamp_min(1e-12).unsqueeze(1))


@torch.no_grad()
def turn_back(
    directions: Float[Tensor, "d_sae width"],
    start: Float[Tensor, "d_sae width"],
    least_cosine: float,
) -> None:
    """Bring rows that have turned too far from their start to the nearest direction that has not.

    Norms stay as they are.
    """
    norms = row_norms(directions).clamp_min(1e-12).unsqueeze(1)
    unit, anchor = directions / norms, torch.nn.functional.normalize(start, dim=1)
    cosine = torch.linalg.vecdot(unit, anchor).unsqueeze(1)
    aside = torch.nn.functional.normalize(unit - cosine * anchor, dim=1)
    nearest = least_cosine * anchor + (1 - least_cosine**2) ** 0.5 * aside
    directions.copy_(torch.where(cosine < least_cosine, norms * nearest, directions))
