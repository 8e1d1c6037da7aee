"""One dictionary under one encoder: two passes over the rows, and every number that comes of them.

The encoder is the dictionary's own gate, or gradient pursuit with each token's own L0; nothing else
differs between the two, so that every number can be had for both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from saelab.dictionary import Dictionary
from saelab.dictionary.decomposition import ErrorProbe, decompose
from saelab.formats.chart import Chart
from saelab.progress import progress_bar
from saelab.sparse import SparseCodes

from ..suite import Definition
from .analysis import Values
from .directions import DIRECTIONS, DirectionSums, direction_findings
from .linear_error import FIRST_PASS, SECOND_PASS, UNITS, ErrorSums, fit_error
from .norm_test import NORM_TEST, PartSums, norm_test
from .regression import CrossStatistics
from .rows import EvaluatedRows, RowBatch, Spill
from .suite import PURSUIT, DarkMatterConfig
from .tokens import token_writer, trace_chart, trace_of

PURSUIT_WORDS = "With gradient-pursuit codes, each row with as many latents as its own codes have: "
GROUPS: dict[str, dict[str, str]] = {
    "Error and its linear part": {**FIRST_PASS, **SECOND_PASS},
    "Norm-prediction test": NORM_TEST,
    "Probe and latents": DIRECTIONS,
}
"""Heading -> numbers of a dictionary under one encoder, in reading order."""


@dataclass
class EncoderPass:
    """What was measured of a dictionary under an encoder."""

    prefix: str
    """Before the name of every number in the result."""
    encoder: str
    """The encoder in words, for tables and captions."""
    probe: ErrorProbe
    """Fitted with a constant on the training contexts."""
    design: CrossStatistics
    """Products of the activations, for the next dictionary or encoder on the same rows."""
    codes: CodesSpill
    """Codes of every row, in temporary files."""
    values: Values
    """Numbers by name, without the prefix."""
    charts: list[Chart]
    """Of its rows and latents."""

    def definitions(self, heading: str) -> list[Definition]:
        """What its numbers under a heading of `GROUPS` mean, in reading order."""
        # The split of the rows is the same under every encoder.
        skipped = ("n_train_rows", "n_test_rows") if self.prefix else ()
        return [
            Definition(
                name=self.prefix + name,
                unit=UNITS.get(name, "1"),
                text=(PURSUIT_WORDS if self.prefix else "") + text,
                group=f"{heading}, with pursuit codes" if self.prefix else heading,
            )
            for name, text in GROUPS[heading].items()
            if name in self.values and name not in skipped
        ]


class CodesSpill:
    """Codes of batches of rows in temporary files; see `Spill`."""

    def __init__(self, folder: Path, name: str, d_sae: int):
        self._spill, self._d_sae = Spill(folder, name), d_sae

    def append(self, codes: SparseCodes) -> None:
        """Add the codes of a batch."""
        of_rows = {"row_scale": codes.row_scale, "row_offset": codes.row_offset}
        self._spill.append(
            row_pointer=codes.row_pointer,
            latent=codes.latent.int(),
            value=codes.value.float(),
            **{name: x.float() for name, x in of_rows.items() if x is not None},
        )

    def batches(self, device: torch.device | str = "cpu") -> Iterator[SparseCodes]:
        """The codes as they were appended."""
        for stored in self._spill.batches():
            codes = {name: tensor.to(device) for name, tensor in stored.items()}
            codes["latent"] = codes["latent"].long()
            yield SparseCodes(**codes, d_sae=self._d_sae)


@torch.no_grad()
def measure(
    dictionary: Dictionary,
    rows: EvaluatedRows,
    config: DarkMatterConfig,
    *,
    name: str,
    folder: Path,
    token_file: Path,
    design: CrossStatistics | None = None,
    own_codes: CodesSpill | None = None,
) -> EncoderPass:
    """Read the rows twice: fit, then take every row apart.

    Args:
        dictionary: on the device to compute on.
        config: analyses, ridge and seed.
        name: of the dictionary, for messages.
        folder: for temporary files.
        token_file: where a line per row is written.
        design: products of the activations from an earlier call on the same rows.
        own_codes: the dictionary's own codes of the rows, to measure pursuit codes of the same L0;
            None: its own codes are measured.

    Raises:
        ActivationError: something is not finite, or there are too few rows.
    """
    prefix, encoder = ("", "own codes") if own_codes is None else (PURSUIT, "pursuit codes")
    sums = ErrorSums(dictionary, design)
    codes = CodesSpill(folder, f"{prefix}codes", dictionary.d_sae)
    with progress_bar(None, f"{encoder}: errors", "rows") as bar:
        for batch, encoded in _encoded(dictionary, rows, own_codes):
            codes.append(encoded)
            sums.update(batch, encoded)
            bar.update(len(batch.tokens))
    what = f"{name} with {encoder}" if prefix else name
    probe, values = fit_error(sums, config.ridge, what)
    device = dictionary.W_dec.device
    parts = PartSums(dictionary.d_in, device)
    directions = DirectionSums(dictionary, config.seed) if config.wants("directions") else None
    with token_writer(token_file) as write, progress_bar(None, f"{encoder}: parts", "rows") as bar:
        for batch, encoded in zip(rows.batches(device), codes.batches(device), strict=True):
            x = batch.activations.double()
            norms = parts.update(batch, decompose(dictionary, probe, x, encoded))
            if directions is not None:
                directions.update(encoded, batch.cell)
            write(batch, encoded.l0(), norms)
            bar.update(len(x))
    values |= parts.values()
    values["recovered_r_squared_linear"] = values["error_explained"]
    if config.wants("norm-test"):
        values |= norm_test(sums, parts, probe, config.ridge)
    charts = [trace_chart(trace_of(token_file), prefix, encoder)]
    if directions is not None:
        findings = direction_findings(dictionary, sums, directions, config.ridge)
        values |= findings.values
        charts.append(findings.chart(prefix, encoder))
    return EncoderPass(prefix, encoder, probe, sums.regression.design, codes, values, charts)


def _encoded(
    dictionary: Dictionary, rows: EvaluatedRows, own_codes: CodesSpill | None
) -> Iterator[tuple[RowBatch, SparseCodes]]:
    """Each batch with its codes, or with pursuit codes of the own codes' L0."""
    device = dictionary.W_dec.device
    if own_codes is None:
        for batch in rows.batches(device):
            yield batch, dictionary.encode(batch.activations)
        return
    from saelab.dictionary.pursuit import PursuitEncoder

    pursuit = PursuitEncoder(dictionary)
    for batch, codes in zip(rows.batches(device), own_codes.batches(device), strict=True):
        yield batch, pursuit.encode(batch.activations, codes.l0())
