"""Which features of two dictionaries point the same way, from their decoder rows. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from saelab.errors import ArtifactError

WEIGHTS_FILE = "sae_weights.safetensors"
CHUNK_ROWS = 2048


@dataclass(frozen=True, eq=False)
class Matches:
    """The nearest decoder row of the other dictionary, both ways."""

    forward: Int[np.ndarray, " first"]
    """For each feature of the first, the nearest of the second."""
    forward_cosine: Float[np.ndarray, " first"]
    """Its cosine."""
    backward: Int[np.ndarray, " second"]
    """For each feature of the second, the nearest of the first."""
    backward_cosine: Float[np.ndarray, " second"]
    """Its cosine."""

    def mutual(self) -> Int[np.ndarray, " pairs"]:
        """Features of the first whose nearest feature has them as its nearest in turn."""
        own = np.arange(len(self.forward))
        return own[self.backward[self.forward] == own]


def decoder_rows(folder: Path) -> Float[np.ndarray, "d_sae d_in"]:
    """Unit decoder rows of a saved dictionary.

    Raises:
        ArtifactError: the weights are missing, damaged or without a decoder.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS_FILE
    if path.is_symlink():
        raise ArtifactError(f"{path} is a link: only files below the folders given are read")
    try:
        with safe_open(str(path), framework="numpy") as weights:
            rows = np.asarray(weights.get_tensor("W_dec"), dtype=np.float32)
    except (OSError, SafetensorError, TypeError) as error:
        raise ArtifactError(
            f"decoder rows of {folder} cannot be read ({error}): save the dictionary again"
        ) from None
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ArtifactError(f"the decoder in {path} is no matrix of finite numbers")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def match(
    first: Float[np.ndarray, "first d_in"], second: Float[np.ndarray, "second other_d_in"]
) -> Matches:
    """Nearest rows both ways by cosine; the matrix of all cosines never exists as a whole.

    Args:
        first: unit rows.
        second: unit rows of the same width.

    Raises:
        ArtifactError: the widths differ, so the two are not of the same activations.
    """
    if first.shape[1] != second.shape[1]:
        raise ArtifactError(
            f"the decoders have width {first.shape[1]} and {second.shape[1]}: only dictionaries of "
            "activations of one width can be compared"
        )
    forward = np.zeros(len(first), dtype=np.int64)
    forward_cosine = np.zeros(len(first))
    backward = np.zeros(len(second), dtype=np.int64)
    backward_cosine = np.full(len(second), -np.inf)
    for start in range(0, len(first), CHUNK_ROWS):
        cosines = first[start : start + CHUNK_ROWS] @ second.T
        rows = slice(start, start + len(cosines))
        forward[rows] = cosines.argmax(axis=1)
        forward_cosine[rows] = cosines.max(axis=1)
        best, places = cosines.max(axis=0), cosines.argmax(axis=0)
        better = best > backward_cosine
        backward[better] = places[better] + start
        backward_cosine[better] = best[better]
    return Matches(forward, forward_cosine, backward, backward_cosine)
