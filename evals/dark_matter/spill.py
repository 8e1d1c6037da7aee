"""What one pass leaves for the next, in temporary files: rows of activations, and codes.

The suite goes over the rows twice: once to fit, once to take every row apart with what was fitted.
Encoding (and pursuit, and the language model) is the expensive part, so its outcome is kept on
disk, not in memory, and is gone when the run ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saelab.sparse import SparseCodes


class ColumnSpill:
    """Columns of a growing table in temporary files; read back in blocks of rows.

    Args:
        folder: exists, and is removed by whoever made it.
        name: distinguishes this table in the folder.
    """

    def __init__(self, folder: Path, name: str):
        self._folder, self._name = folder, name
        self._kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        self.n_rows = 0

    def append(self, **columns: Tensor) -> None:
        """Add rows; every call names the same columns, of the same dtypes and widths."""
        for name, column in columns.items():
            self._kinds.setdefault(name, (column.dtype, tuple(column.shape[1:])))
            plain = column.detach().cpu().contiguous()
            if plain.dtype == torch.bfloat16:
                plain = plain.view(torch.int16)
            # Opened again for each block: nothing is left open when a run ends early.
            with self._path(name).open("ab") as file:
                plain.numpy().tofile(file)
        self.n_rows += len(next(iter(columns.values())))

    def blocks(self, n_rows: int) -> Iterator[dict[str, Tensor]]:
        """All rows in the order they came, `n_rows` at a time."""
        for start in range(0, self.n_rows, n_rows):
            yield self.read(start, min(n_rows, self.n_rows - start))

    def read(self, start: int, n_rows: int) -> dict[str, Tensor]:
        """Some rows, by the place of the first and their number."""
        found = {}
        for name, (dtype, inner) in self._kinds.items():
            stored = torch.int16 if dtype == torch.bfloat16 else dtype
            numbers = torch.empty(0, dtype=stored).numpy().dtype
            width = int(np.prod(inner, dtype=np.int64))
            flat = np.fromfile(
                self._path(name),
                dtype=numbers,
                count=n_rows * width,
                offset=start * width * numbers.itemsize,
            )
            column = torch.from_numpy(flat).reshape(-1, *inner)
            found[name] = column.view(dtype) if stored != dtype else column
        return found

    def _path(self, column: str) -> Path:
        return self._folder / f"{self._name}.{column}"


class CodesSpill:
    """Codes of batches of rows, read back batch by batch in the order they came.

    Args:
        folder: exists, and is removed by whoever made it.
        name: distinguishes these codes in the folder.
        d_sae: number of latents.
    """

    def __init__(self, folder: Path, name: str, d_sae: int):
        self._pairs = ColumnSpill(folder, f"{name}.pairs")
        self._rows = ColumnSpill(folder, f"{name}.rows")
        self._d_sae = d_sae
        self._batches: list[tuple[int, int]] = []

    def append(self, codes: SparseCodes) -> None:
        """Add the codes of a batch."""
        self._batches.append((codes.n_rows, codes.latent.shape[0]))
        self._pairs.append(latent=codes.latent.to(torch.int32), value=codes.value.float())
        scale = codes.row_scale
        filler = torch.ones(codes.n_rows) if scale is None else scale.float()
        self._rows.append(count=codes.row_pointer.diff().to(torch.int32), scale=filler)
        self._scaled = scale is not None

    def batches(self) -> Iterator[SparseCodes]:
        """The codes as they were appended."""
        row, pair = 0, 0
        for n_rows, n_pairs in self._batches:
            rows, pairs = self._rows.read(row, n_rows), self._pairs.read(pair, n_pairs)
            row, pair = row + n_rows, pair + n_pairs
            pointer = torch.zeros(n_rows + 1, dtype=torch.int64)
            torch.cumsum(rows["count"], 0, out=pointer[1:])
            yield SparseCodes(
                pointer,
                pairs["latent"].long(),
                pairs["value"],
                self._d_sae,
                rows["scale"] if self._scaled else None,
            )


def temporary_folder(beside: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder for spilled columns, removed with everything in it when its context ends.

    Args:
        beside: where the results go, which is where there is room for files of this size.
    """
    beside.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=".dark_matter-", dir=beside)
