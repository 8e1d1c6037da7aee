"""One dictionary under one encoder: two passes over the rows, and every number that comes of them.

The encoder is the dictionary's own gate, or gradient pursuit with each token's own L0; nothing else
differs between the two, so that every number can be had for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.dictionary import Dictionary
from saelab.dictionary.decomposition import Decomposition, ErrorProbe, decompose
from saelab.formats.chart import Chart
from saelab.progress import progress_bar
from saelab.sparse import SparseCodes

from .analysis import Meaning
from .config import DarkMatterConfig
from .directions import DIRECTIONS, DirectionSums, direction_findings
from .first_pass import ErrorSums, bias_rows
from .linear_error import FIRST_PASS, SECOND_PASS, error_findings
from .norm_test import NORM_TEST, VECTORS, PartSums, norm_test
from .regression import CrossStatistics
from .rows import CONTEXT_TEST, Rows, cells_of
from .spill import CodesSpill
from .tokens import token_writer, trace_chart, trace_of

PURSUIT = "pursuit_"
PURSUIT_WORDS = "With gradient-pursuit codes, each row with as many latents as its own codes have: "
GROUPS: dict[str, dict[str, Meaning]] = {
    "Error and its linear part": {**FIRST_PASS, **SECOND_PASS},
    "Norm-prediction test": NORM_TEST,
    "Probe and latents": DIRECTIONS,
}
"""Heading -> numbers of a dictionary under one encoder, in reading order."""

Encode = Callable[[Float[Tensor, "rows d_in"], SparseCodes | None], SparseCodes]


@dataclass(frozen=True)
class Encoder:
    """A way to get codes."""

    prefix: str
    """Before the name of every number."""
    words: str
    """For tables and captions."""
    encode: Encode
    """From rows, and the own gate's codes of the same rows where they are known, to codes."""


@dataclass
class Measured:
    """What was found out about a dictionary under an encoder."""

    encoder: Encoder
    probe: ErrorProbe
    """Fitted with a constant on the training contexts."""
    design: CrossStatistics
    """Products of the activations, for the next dictionary or encoder on the same rows."""
    codes: CodesSpill
    """Codes of every row, in temporary files."""
    values: dict[str, float | int | None] = field(default_factory=dict)
    """Numbers by name, without the encoder's prefix."""
    charts: list[Chart] = field(default_factory=list)
    """Of its rows and latents."""


def own_encoder(dictionary: Dictionary) -> Encoder:
    """The dictionary's own gate."""
    return Encoder(
        "", "own codes", lambda x, known: dictionary.encode(x) if known is None else known
    )


def pursuit_encoder(dictionary: Dictionary) -> Encoder:
    """Gradient pursuit, each row with as many latents as its own codes have."""
    from saelab.dictionary.pursuit import PursuitEncoder

    pursuit = PursuitEncoder(dictionary)

    def encode(x: Tensor, known: SparseCodes | None) -> SparseCodes:
        own = dictionary.encode(x) if known is None else known
        return pursuit.encode(x, own.l0())

    return Encoder(PURSUIT, "pursuit codes", encode)


def meaning_of(name: str) -> Meaning:
    """The meaning of a number of the two passes, of pursuit codes where its name says so.

    Raises:
        KeyError: no number has this name.
    """
    known = {name: meaning for group in GROUPS.values() for name, meaning in group.items()}
    plain = known[name.removeprefix(PURSUIT)]
    words = PURSUIT_WORDS if name.startswith(PURSUIT) else ""
    return Meaning(plain.unit, words + plain.text)


@torch.no_grad()
def measure(
    dictionary: Dictionary,
    encoder: Encoder,
    rows: Rows,
    config: DarkMatterConfig,
    *,
    folder: Path,
    token_file: Path,
    what: str,
    before: Measured | None = None,
) -> Measured:
    """Go over the rows twice: fit, then take apart.

    Args:
        dictionary: on the device to compute on.
        encoder: its own gate, or another way to get codes.
        rows: to evaluate.
        config: settings.
        folder: for temporary files.
        token_file: where a line per row is written.
        what: names the dictionary in messages.
        before: of an earlier call on the same rows, whose sums of the activations are used again,
            and, for another encoder of the same dictionary, its codes.

    Raises:
        ActivationError: something is not finite, or there are too few rows.
    """
    design = None if before is None else before.design
    sums = ErrorSums.empty(dictionary.d_in, dictionary.d_sae, design)
    codes = CodesSpill(folder, f"{encoder.prefix}codes", dictionary.d_sae)
    own = before.codes if before is not None and encoder.prefix else None
    _first_pass(dictionary, encoder, rows, config, sums, codes, own)
    found = error_findings(sums, config.ridge, what)
    measured = Measured(encoder, found.probe, sums.regression.design, codes, found.values)
    parts = PartSums(dictionary.d_in)
    directions = DirectionSums(dictionary, config.seed) if config.wants("directions") else None
    _second_pass(dictionary, rows, config, measured, parts, directions, token_file)
    _add_part_numbers(measured, parts)
    if config.wants("norm-test"):
        measured.values |= norm_test(sums, parts, found.probe, config.ridge).values()
    if directions is not None:
        shown = direction_findings(dictionary, sums, directions, config.ridge)
        measured.values |= shown.values()
        measured.charts.append(shown.chart(encoder.prefix, encoder.words))
    trace = trace_chart(trace_of(token_file), encoder.prefix, encoder.words)
    measured.charts.insert(0, trace)
    return measured


def _first_pass(
    dictionary: Dictionary,
    encoder: Encoder,
    rows: Rows,
    config: DarkMatterConfig,
    sums: ErrorSums,
    codes: CodesSpill,
    own: CodesSpill | None,
) -> None:
    known: Iterator[SparseCodes | None] = iter([]) if own is None else own.batches()
    device = dictionary.b_dec.device
    with progress_bar(None, f"{encoder.words}: errors", "rows") as bar:
        for batch in rows.batches():
            x = batch.activations.to(device)
            own_codes = next(known, None)
            here = encoder.encode(x, None if own_codes is None else _on(own_codes, device))
            codes.append(here)
            cell = cells_of(
                batch.sequence,
                batch.position,
                seed=config.seed,
                train_fraction=config.train_fraction,
            )
            bias = bias_rows(dictionary, here).cpu()
            sums.update(batch, dictionary.decode(here).cpu(), bias, _on(here, "cpu"), cell)
            bar.update(len(x))


def _second_pass(
    dictionary: Dictionary,
    rows: Rows,
    config: DarkMatterConfig,
    measured: Measured,
    parts: PartSums,
    directions: DirectionSums | None,
    token_file: Path,
) -> None:
    device = dictionary.b_dec.device
    with (
        token_writer(token_file) as writer,
        progress_bar(None, f"{measured.encoder.words}: parts", "rows") as bar,
    ):
        for batch, codes in zip(rows.batches(), measured.codes.batches(), strict=True):
            cell = cells_of(
                batch.sequence,
                batch.position,
                seed=config.seed,
                train_fraction=config.train_fraction,
            )
            here = _on(codes, device)
            x = batch.activations.to(device)
            taken = _on_cpu(decompose(dictionary, measured.probe, x.double(), here))
            norms = parts.update(batch.activations, taken, cell)
            if directions is not None:
                directions.update(here, cell)
            writer.write(batch, cell, codes.l0(), norms)
            bar.update(len(x))


def _on_cpu(parts: Decomposition) -> Decomposition:
    return Decomposition(
        parts.reconstruction.cpu(), parts.linear_error.cpu(), parts.nonlinear_error.cpu()
    )


def _on(codes: SparseCodes, device: torch.device | str) -> SparseCodes:
    scale = codes.row_scale
    return SparseCodes(
        codes.row_pointer.to(device),
        codes.latent.to(device),
        codes.value.to(device),
        codes.d_sae,
        None if scale is None else scale.to(device),
    )


def _add_part_numbers(measured: Measured, parts: PartSums) -> None:
    """Shares of the error's norm (E17, both ways of averaging) and recovery by R² (E15)."""
    ratios, values = parts.ratios, measured.values
    n = max(ratios.n_rows, 1)
    for name in ("linear", "nonlinear"):
        total = getattr(ratios, f"{name}_error")
        values[f"{name}_norm_share"] = total / ratios.error if ratios.error > 0 else None
        values[f"{name}_norm_ratio_mean"] = getattr(ratios, f"{name}_ratio") / n
    values["recovered_r_squared_linear"] = values["error_explained"]
    values["recovered_r_squared_nonlinear"] = _recovered_by_nonlinear(parts)


def _recovered_by_nonlinear(parts: PartSums) -> float | None:
    """1 - sum |linear error|² / sum |error|² on the test rows: what adding the rest recovers."""
    means = parts.squares.merged(CONTEXT_TEST).mean_right
    error = float(means[VECTORS.index("error")])
    linear = float(means[VECTORS.index("linear_error")])
    return 1 - linear / error if error > 0 else None
