"""Making planted features and rows: deterministic by seed, whatever range of rows is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelab.sparse import SparseCodes
from saelab.sparse.kernels import combine_latents

from .config import PlantedConfig
from .streams import BLOCK_ROWS, draw_support, generator_for, partner_map, root_frequencies

TRAIN = "train"
HELD_OUT = "held_out"
CHUNK_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class PlantedRows:
    """Rows and what they are made of: rows = coefficients · features + dense part + noise."""

    rows: Float[Tensor, "rows d_in"]
    """Float32, of norm 1 where the config normalises them; a row without any part is zero."""
    coefficients: SparseCodes
    """H: the positive coefficient of every active feature, of the row as it is given (divided by
    its norm where rows are normalised)."""


def planted_features(config: PlantedConfig) -> Float[Tensor, "n_features d_in"]:
    """V: the true features, Gaussian directions of norm 1, float32."""
    return PlantedSource(config).features


def planted_rows(
    config: PlantedConfig, n_rows: int, *, stream: str = TRAIN, start: int = 0
) -> PlantedRows:
    """Rows `start` to `start + n_rows` of a stream; see `PlantedSource.rows`."""
    return PlantedSource(config).rows(n_rows, stream=stream, start=start)


class PlantedSource:
    """Everything of a planted dictionary that does not change from row to row."""

    def __init__(self, config: PlantedConfig):
        self.config = config
        directions = generator_for(config, "features").standard_normal(
            (config.n_features, config.d_in)
        )
        features = torch.from_numpy(directions)
        self._features = features / features.norm(dim=1, keepdim=True)
        self._partner = partner_map(config)
        self._frequencies = root_frequencies(config).numpy()
        basis = generator_for(config, "dense").standard_normal((config.d_in, config.dense.rank))
        self._dense_basis = torch.from_numpy(np.linalg.qr(basis)[0].T.copy())

    @property
    def features(self) -> Float[Tensor, "n_features d_in"]:
        """V: the true features, Gaussian directions of norm 1, float32."""
        return self._features.float()

    def rows(self, n_rows: int, *, stream: str = TRAIN, start: int = 0) -> PlantedRows:
        """Rows `start` to `start + n_rows` of an endless stream, the same however they are cut.

        Args:
            stream: any label; rows of different labels are independent. Training caches hold the
                first rows of "train", evaluation takes "held_out".
            start: index of the first row.
        """
        blocks = range(start // BLOCK_ROWS, -(-(start + n_rows) // BLOCK_ROWS))
        parts = [self._block(stream, block) for block in blocks]
        rows = torch.cat([part[0] for part in parts] or [self._features[:0]])
        first = start - blocks.start * BLOCK_ROWS
        coefficients = SparseCodes.stacked(
            [part[1] for part in parts], self.config.n_features, self._features
        )
        return PlantedRows(
            rows=rows[first : first + n_rows].float(),
            coefficients=_cut(coefficients, first, first + n_rows),
        )

    def chunks(
        self, n_rows: int, *, stream: str = TRAIN, chunk_rows: int = CHUNK_ROWS
    ) -> Iterator[PlantedRows]:
        """The first `n_rows` rows of a stream, `chunk_rows` at a time."""
        for start in range(0, n_rows, chunk_rows):
            yield self.rows(min(chunk_rows, n_rows - start), stream=stream, start=start)

    def _block(
        self, stream: str, block: int
    ) -> tuple[Float[Tensor, "block_rows d_in"], SparseCodes]:
        """One block in float64. The noise is drawn last: it can be varied and the rest stays."""
        config = self.config
        generator = generator_for(config, f"rows {stream}", block)
        active = draw_support(
            config, generator, self._frequencies, self._partner, block * BLOCK_ROWS
        )
        row, feature = active.nonzero()
        value = generator.uniform(config.coefficient_low, config.coefficient_high, len(row))
        pointer = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=BLOCK_ROWS))])
        coefficients = SparseCodes(
            torch.from_numpy(pointer.astype(np.int64)),
            torch.from_numpy(feature),
            torch.from_numpy(value),
            config.n_features,
        )
        rows = combine_latents(coefficients, self._features)
        if config.dense.rank:
            drawn = generator.standard_normal((BLOCK_ROWS, config.dense.rank))
            scale = config.dense.scale / config.dense.rank**0.5
            rows = rows + scale * torch.from_numpy(drawn) @ self._dense_basis
        if config.noise:
            drawn = generator.standard_normal((BLOCK_ROWS, config.d_in))
            rows = rows + config.noise / config.d_in**0.5 * torch.from_numpy(drawn)
        if config.normalise_rows:
            norm = rows.norm(dim=1)
            scale = torch.where(norm > 0, 1 / norm.clamp(min=1e-30), 0.0)
            rows = rows * scale[:, None]
            coefficients = coefficients.with_value(
                coefficients.value * scale[coefficients.pair_rows()]
            )
        return rows, coefficients


def _cut(codes: SparseCodes, first: int, stop: int) -> SparseCodes:
    """Rows `first` to `stop`, with float32 values."""
    pointer = codes.row_pointer[first : stop + 1]
    low, high = int(pointer[0]), int(pointer[-1])
    return SparseCodes(
        pointer - low, codes.latent[low:high], codes.value[low:high].float(), codes.d_sae
    )
