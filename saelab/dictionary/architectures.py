"""The dictionary: an encoder, a gate and a decoder. The gate is what tells architectures apart.

With p = (x − b_in) W_enc + b_enc and ŷ = f W_dec + b_dec, where ŷ reconstructs what is written:

* `relu`      f = relu(p)
* `topk`      f = relu(p) at the k largest p of each row, zero elsewhere
* `groupmax`  f = relu(p) at the largest p of each of k groups of d_sae / k neighbouring latents
* `jumprelu`  f = relu(p) where p > threshold (one threshold per latent), zero elsewhere
* `gated`     f = relu(m) where g > 0, with g = (x − b_in) W_enc + b_gate and
              m = (x − b_in) (W_enc · exp(r_mag)) + b_mag

A sparse autoencoder writes what it reads: d_out = d_in, and b_in is b_dec itself. Meanings and
tensor names are those of SAELens 6 (`standard`, `topk`, `jumprelu`, `gated`), and of sparsify
(`groupmax`).

With the input normalisation `constant_norm_rescale` x is each row divided by its own scale
‖x‖ / √d_in, so codes are in normalised units, and the reconstruction is multiplied by that scale
again. With `center` the row's mean is taken off, and added back to the reconstruction: what a model
with centred writing weights holds. With `layer_norm` the rest is also divided by its standard
deviation, and multiplied by it again. An affine skip adds x W_skipᵀ. What the reconstruction needs
of x travels with the codes (`SparseCodes.row_scale`, `row_offset`), never in the dictionary, so
that encoding and decoding alone, or in any order, give what `forward` gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.errors import ActivationError, ConfigError, did_you_mean
from saelab.sparse import PreActivations, SparseCodes, top_k
from saelab.sparse.kernels import combine_latents

INPUT_NORMALISATIONS = ("none", "constant_norm_rescale", "layer_norm", "center")
"""What can be done to each row before it is encoded, by SAELens' names where it has one."""
CENTRED = ("layer_norm", "center")
"""Those that take off the row's mean and add it back."""
LAYER_NORM_EPSILON = 1e-5
"""Added to the standard deviation that a row is divided by; not to the one it is multiplied by."""


@dataclass(frozen=True)
class Architecture:
    """What distinguishes an architecture: its extra tensors and its gate."""

    extra_tensors: tuple[str, ...]
    """Names of its tensors of shape [d_sae] beside b_enc."""
    gate: Callable[[Dictionary, Tensor], tuple[Tensor, Tensor]]
    """From pre-activations [rows, d_sae] to (codes, which of them are active)."""


def _relu_gate(dictionary: Dictionary, pre: Tensor) -> tuple[Tensor, Tensor]:
    del dictionary
    return pre, pre > 0


def _topk_gate(dictionary: Dictionary, pre: Tensor) -> tuple[Tensor, Tensor]:
    values, latents = top_k(pre, dictionary.k)
    return pre, torch.zeros_like(pre, dtype=torch.bool).scatter_(1, latents, values > 0)


def _groupmax_gate(dictionary: Dictionary, pre: Tensor) -> tuple[Tensor, Tensor]:
    groups = pre.unflatten(1, (dictionary.k, -1))
    largest, latents = groups.max(dim=2, keepdim=True)
    active = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, latents, largest > 0)
    return pre, active.flatten(1)


def _jumprelu_gate(dictionary: Dictionary, pre: Tensor) -> tuple[Tensor, Tensor]:
    return pre, (pre > dictionary.threshold) & (pre > 0)


def _gated_gate(dictionary: Dictionary, pre: Tensor) -> tuple[Tensor, Tensor]:
    magnitude = pre * dictionary.r_mag.exp() + dictionary.b_mag
    return magnitude, (pre + dictionary.b_gate > 0) & (magnitude > 0)


ARCHITECTURES: dict[str, Architecture] = {
    "relu": Architecture((), _relu_gate),
    "topk": Architecture((), _topk_gate),
    "groupmax": Architecture((), _groupmax_gate),
    "jumprelu": Architecture(("threshold",), _jumprelu_gate),
    "gated": Architecture(("b_gate", "b_mag", "r_mag"), _gated_gate),
}


WITH_K = ("topk", "groupmax")
"""Architectures with a k."""


class Dictionary(nn.Module):
    """A sparse autoencoder or transcoder ready for use; how it was trained plays no part in it.

    Args:
        architecture: one of `ARCHITECTURES`.
        W_enc: encoder weights.
        W_dec: decoder weights.
        b_dec: decoder bias, added to the output.
        b_enc: encoder bias; `gated` has none (its biases are b_gate and b_mag).
        b_in: bias subtracted from the input. None: b_dec, as a sparse autoencoder has it.
        k: active latents per row, for `topk` and `groupmax` only.
        input_normalisation: one of `INPUT_NORMALISATIONS`; `constant_norm_rescale` brings every row
            to norm √d_in before b_dec is subtracted, and the reconstruction back to its own norm;
            `layer_norm` brings it to mean 0 and standard deviation 1, `center` to mean 0, and back.
        W_skip: affine skip; its product with the raw input is added to the output.
        extra: the architecture's further tensors of shape [d_sae] by name.

    Raises:
        ConfigError: tensors or k that do not fit the architecture or one another.

    Example:
        >>> rows = torch.eye(3)
        >>> biases = {"b_enc": torch.zeros(3), "b_dec": torch.zeros(3)}
        >>> dictionary = saelab.Dictionary("topk", W_enc=rows, W_dec=rows, k=1, **biases)
        >>> dictionary.decode(dictionary.encode(rows)).tolist() == rows.tolist()
        True
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    b_in: Tensor | None
    W_skip: Tensor | None
    threshold: Tensor
    b_gate: Tensor
    b_mag: Tensor
    r_mag: Tensor

    def __init__(
        self,
        architecture: str,
        *,
        W_enc: Float[Tensor, "d_in d_sae"],
        W_dec: Float[Tensor, "d_sae d_out"],
        b_dec: Float[Tensor, " d_out"],
        b_enc: Float[Tensor, " d_sae"] | None = None,
        b_in: Float[Tensor, " d_in"] | None = None,
        k: int | None = None,
        input_normalisation: str = "none",
        W_skip: Float[Tensor, "d_out d_in"] | None = None,
        **extra: Float[Tensor, " d_sae"],
    ):
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise ConfigError(
                f"unknown architecture {architecture!r}; "
                f"{did_you_mean(architecture, ARCHITECTURES)}"
            )
        self.architecture = architecture
        self.d_in, self.d_sae = W_enc.shape
        self.d_out = W_dec.shape[1]
        expected = {*ARCHITECTURES[architecture].extra_tensors}
        if architecture != "gated":
            expected.add("b_enc")
        given = {**extra} if b_enc is None else {**extra, "b_enc": b_enc}
        problems = []
        if set(given) != expected:
            problems.append(
                f"architecture {architecture!r} takes the tensors {sorted(expected)} "
                f"beside W_enc, W_dec and b_dec; got {sorted(given)}"
            )
        if (k is not None) != (architecture in WITH_K):
            problems.append(
                f"k is given exactly for {' and '.join(map(repr, WITH_K))}; got k={k} for "
                f"{architecture!r}"
            )
        if k is not None and not 1 <= k <= self.d_sae:
            problems.append(f"k is {k}; it must be between 1 and d_sae = {self.d_sae}")
        elif architecture == "groupmax" and self.d_sae % (k or 1):
            problems.append(f"{self.d_sae} latents do not make k = {k} groups of one size")
        if input_normalisation not in INPUT_NORMALISATIONS:
            problems.append(
                f"unknown input normalisation {input_normalisation!r}; "
                f"{did_you_mean(input_normalisation, INPUT_NORMALISATIONS)}"
            )
        if b_in is None and self.d_in != self.d_out:
            problems.append(
                f"reads width {self.d_in} and writes width {self.d_out} with one bias for both: "
                "give b_in, the bias subtracted from the input"
            )
        if self.d_in != self.d_out and input_normalisation != "none":
            problems.append(
                f"input normalisation {input_normalisation!r} multiplies the reconstruction by the "
                "scale of what is read, so one width must be read and written"
            )
        if problems:
            raise ConfigError(problems)
        self.k = k or 0
        self.input_normalisation = input_normalisation
        # Column by column in memory: the kernels gather single latents.
        self.register_buffer("W_enc", W_enc.T.contiguous().T)
        self.register_buffer("W_dec", W_dec.contiguous())
        self.register_buffer("b_dec", b_dec)
        self.register_buffer("b_in", b_in)
        self.register_buffer("W_skip", W_skip)
        for name, tensor in given.items():
            self.register_buffer(name, tensor)

    def require_whole(self) -> None:
        """Refuse one whose matrices are never held at once; this one's are.

        Raises:
            ConfigError: it is opened a layer at a time.
        """

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its SAELens name."""
        return dict(self.named_buffers())

    @property
    def input_bias(self) -> Float[Tensor, " d_in"]:
        """What is subtracted from the input: b_in, or b_dec where the two are one."""
        return self.b_dec if self.b_in is None else self.b_in

    def row_scale(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, " batch"] | None:
        """What the reconstruction of each row is multiplied by; None: nothing."""
        if self.input_normalisation in ("none", "center"):
            return None
        if self.input_normalisation == "layer_norm":
            return x.std(dim=1)
        return torch.linalg.vector_norm(x, dim=1) / self.d_in**0.5

    def row_offset(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch _"] | None:
        """What is added to each row's reconstruction after that: its mean, or the affine skip."""
        centred = self.input_normalisation in CENTRED
        offset = x.mean(dim=1, keepdim=True) if centred else None
        if self.W_skip is None:
            return offset
        skip = x @ self.W_skip.T.to(x)
        return skip if offset is None else skip + offset

    def baseline(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"]:
        """What would be reconstructed of each row with no latent active."""
        scale, offset = self.row_scale(x), self.row_offset(x)
        bias = self.b_dec.to(x).expand(len(x), -1)
        bias = bias if scale is None else bias * scale[:, None]
        return bias if offset is None else bias + offset

    def encoder_inputs(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """What the encoder's product is taken of: normalised rows less the input bias."""
        scale = self.row_scale(x)
        if self.input_normalisation in CENTRED:
            x = x - x.mean(dim=1, keepdim=True)
        if scale is not None and self.input_normalisation == "layer_norm":
            x = x / (scale + LAYER_NORM_EPSILON)[:, None]
        elif scale is not None:
            # A row of zeros stays one, where SAELens gives NaN.
            x = x / torch.where(scale > 0, scale, 1.0)[:, None]
        return x - self.input_bias.to(x)

    def encode(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        """Codes of the active latents, with the rows' scales; no [batch, d_sae] matrix is kept.

        Raises:
            ActivationError: rows of another width than the dictionary reads.
        """
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise ActivationError(
                f"the dictionary reads rows of width {self.d_in}, given were activations of shape "
                f"{tuple(x.shape)}: give [rows, {self.d_in}]"
            )
        x = x.to(self.b_dec.dtype)
        codes = self._active(x)
        return replace(codes, row_scale=self.row_scale(x), row_offset=self.row_offset(x))

    def _active(self, x: Float[Tensor, "batch d_in"]) -> SparseCodes:
        """The codes without the rows' scales."""
        gate = ARCHITECTURES[self.architecture].gate
        bias = self.W_dec.new_zeros(self.d_sae) if self.architecture == "gated" else self.b_enc
        inputs = self.encoder_inputs(x)
        parts = [
            SparseCodes.from_mask(*gate(self, chunk))
            for _, chunk in PreActivations(inputs, self.W_enc, bias).chunks()
        ]
        return SparseCodes.stacked(parts, self.d_sae, inputs)

    def encode_dense(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Dense codes; memory grows with batch × d_sae."""
        return self.encode(x).to_dense()

    def decode(
        self,
        codes: SparseCodes | Float[Tensor, "batch d_sae"],
        row_scale: Float[Tensor, " batch"] | None = None,
        row_offset: Float[Tensor, "batch _"] | None = None,
    ) -> Float[Tensor, "batch d_out"]:
        """The reconstruction of what is written, from sparse or dense codes.

        Args:
            codes: as `encode` or `encode_dense` gives them.
            row_scale: what each reconstructed row is multiplied by; None: what the codes carry.
                Dense codes carry none: `dictionary.row_scale(x)` gives it.
            row_offset: what is added after that; likewise, `dictionary.row_offset(x)`.

        Raises:
            ValueError: the reconstruction depends on the rows (a normalisation, an affine skip),
                and what it needs of them is not given.
        """
        if isinstance(codes, SparseCodes):
            row_scale = codes.row_scale if row_scale is None else row_scale
            row_offset = codes.row_offset if row_offset is None else row_offset
        reconstruction = self._combined(codes) + self.b_dec
        if row_scale is not None:
            reconstruction = reconstruction * row_scale.unsqueeze(1)
        elif self.input_normalisation not in ("none", "center"):
            raise ValueError(
                f"this dictionary's input normalisation is {self.input_normalisation}: to decode "
                "codes it needs their rows' scales; pass codes as `encode` gave them, or "
                "row_scale=dictionary.row_scale(x)"
            )
        if row_offset is not None:
            return reconstruction + row_offset
        if self.W_skip is not None or self.input_normalisation in CENTRED:
            raise ValueError(
                "this dictionary adds something of each row (its mean, or an affine skip): pass "
                "codes as `encode` gave them, or row_offset=dictionary.row_offset(x)"
            )
        return reconstruction

    def _combined(
        self, codes: SparseCodes | Float[Tensor, "batch d_sae"]
    ) -> Float[Tensor, "batch d_out"]:
        """The sum of decoder rows with the codes as weights."""
        if isinstance(codes, SparseCodes):
            return combine_latents(codes, self.W_dec)
        return codes @ self.W_dec

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"]:
        """The reconstruction, from what is read, of what is written."""
        return self.decode(self.encode(x))

    def error(
        self,
        x: Float[Tensor, "batch d_in"],
        targets: Float[Tensor, "batch d_out"] | None = None,
        codes: SparseCodes | None = None,
    ) -> Float[Tensor, "batch d_out"]:
        """What the dictionary leaves out: targets − reconstruction.

        Args:
            x: what is read.
            targets: what is written; None: what is read, as for a sparse autoencoder.
            codes: of these rows by another encoder. None: the dictionary's own.
        """
        codes = self.encode(x) if codes is None else codes
        return error_of(x if targets is None else targets, self.decode(codes))

    @torch.no_grad()
    def with_input_bias(self, bias: Float[Tensor, " d_in"] | None) -> Dictionary:
        """The same function with another input bias: the encoder's make up for the difference.

        Args:
            bias: what is to be subtracted from the input; None: b_dec. Sums are in float64.
        """
        wanted = self.b_dec if bias is None else bias
        shift = (wanted.double() - self.input_bias.double()) @ self.W_enc.double()
        shifts = {"b_enc": shift, "b_gate": shift}
        if self.architecture == "gated":
            shifts["b_mag"] = shift * self.r_mag.double().exp()
        tensors = self.tensors()
        for name in shifts.keys() & tensors.keys():
            tensors[name] = (tensors[name].double() + shifts[name]).to(tensors[name])
        tensors.pop("b_in", None)
        return Dictionary(
            self.architecture,
            k=self.k or None,
            input_normalisation=self.input_normalisation,
            **tensors,
            b_in=bias,
        )


def error_of(
    targets: Float[Tensor, "batch d_out"], reconstruction: Float[Tensor, "batch d_out"]
) -> Float[Tensor, "batch d_out"]:
    """The error: targets − reconstruction. Every loss, suite and page takes it from here."""
    return targets - reconstruction
