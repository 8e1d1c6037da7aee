"""Analysis 12 and a control: what the norm probe's direction has to do with single latents.

The squared norm of a reconstruction, less its bias, is regressed on that reconstruction. For a sum
of sparse, nearly orthogonal features the optimal probe has the inner product E[w³] / E[w²] with
each feature's direction, w being its weight. The control assigns the dictionary's own codes to
random rows, latent by latent, so that each latent keeps its values and which ones are active
together is left to chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.dictionary import Dictionary
from saelab.formats.chart import Axis, Chart, Series
from saelab.sparse import SparseCodes
from saelab.sparse.kernels import combine_latents
from saelab.stats.cosines import BLOCK_ROWS, row_norms
from saelab.stats.spread import pearson

from ..display import rounded
from .analysis import Values, in_words
from .linear_error import ErrorSums
from .regression import RegressionStatistics
from .rows import CONTEXT_TEST, CONTEXT_TRAIN, N_CELLS

WINDOW = 100
MOST_POINTS = 10_000
"""Latents shown at most, those of the largest mean code, as in the paper's figure."""
DIRECTIONS: dict[str, str] = {
    "directions_r_squared": "Held-out R² of |Sae(x) - b|² regressed on Sae(x) - b, b the decoder "
    "bias.",
    "directions_independent_r_squared": "Control: the same after each latent's codes are assigned "
    "to random rows, so that which latents are active together is left to chance.",
    "directions_correlation_mean": "Correlation over live latents of the probe's inner product "
    "with the unit decoder row and the mean code when active (times the row's norm).",
    "directions_correlation_cubic": "The same with E[w³] / E[w²] of the latent's codes w, the "
    "optimum for sparse orthogonal features.",
}
"""Number -> how it is computed."""


class DirectionSums:
    """Sums of squared norms on the vectors themselves, of reconstructions and of the control."""

    def __init__(self, dictionary: Dictionary, seed: int):
        self._dictionary = dictionary
        self._generator = torch.Generator().manual_seed(seed)
        self.reconstructed, self.control = (
            RegressionStatistics(dictionary.d_in, 1, N_CELLS, dictionary.W_dec.device)
            for _ in range(2)
        )

    def update(self, codes: SparseCodes, cell: Int[Tensor, " rows"]) -> None:
        """Add the codes of some rows; the control assigns them to random ones of these rows."""
        plain = SparseCodes(codes.row_pointer, codes.latent, codes.scaled_values(), codes.d_sae)
        row = torch.randint(codes.n_rows, (len(codes.latent),), generator=self._generator)
        shuffled = SparseCodes.from_pairs(
            row.to(codes.latent.device), plain.latent, plain.value, plain.n_rows, plain.d_sae
        )
        for statistics, chosen in ((self.reconstructed, plain), (self.control, shuffled)):
            vectors = combine_latents(chosen, self._dictionary.W_dec).double()
            statistics.update(vectors, vectors.square().sum(1, keepdim=True), cell)


@dataclass(frozen=True, eq=False, kw_only=True)
class DirectionFindings:
    """What the probe of the reconstruction's squared norm shows; latents by falling mean code."""

    values: Values
    """By the names of `DIRECTIONS`."""
    inner_product: Float[Tensor, " alive"]
    """Probe · unit decoder row."""
    mean_when_active: Float[Tensor, " alive"]
    cubic: Float[Tensor, " alive"]
    """E[w³] / E[w²]."""
    latent: Int[Tensor, " alive"]

    def chart(self, prefix: str, codes: str) -> Chart:
        """The norm probe's inner product with each latent, beside its codes."""
        shown = slice(0, MOST_POINTS)
        latents = self.latent[shown].tolist()
        lines = {
            "mean code when active": self.mean_when_active[shown],
            "E[w³] / E[w²]": running_mean(self.cubic[shown]),
            "probe · decoder row": running_mean(self.inner_product[shown]),
        }
        mean, cubic = (
            in_words(self.values[f"directions_correlation_{name}"]) for name in ("mean", "cubic")
        )
        return Chart(
            name=f"{prefix}probe_directions",
            title=f"Norm probe against single latents, {codes}",
            caption="The squared norm of Sae(x) - b is regressed on Sae(x) - b. Inner product of "
            "that probe with each latent's unit decoder row, the mean of the latent's positive "
            "codes w, and E[w³] / E[w²], to which the inner product tends for sparse orthogonal "
            "features (all codes times the row's norm). Probe and E[w³] / E[w²] are running means "
            f"over {WINDOW} latents.",
            summary=f"Lines over {len(self.latent):,} live latents; correlation of the probe's "
            f"inner product with the mean code {mean}, with E[w³]/E[w²] {cubic}.",
            x=Axis(title="latent, by falling mean code"),
            y=Axis(title="activation units"),
            series=tuple(
                Series(
                    name=label,
                    x=list(range(1, len(latents) + 1)),
                    y=[*rounded(values)],
                    labels=[f"latent {latent}" for latent in latents],
                    dashed=label == "mean code when active",
                )
                for label, values in lines.items()
            ),
            wide=True,
        )


def direction_findings(
    dictionary: Dictionary, sums: ErrorSums, directions: DirectionSums, ridge: float
) -> DirectionFindings:
    """Fit both probes and compare the first with the latents.

    Raises:
        ActivationError: fewer rows than coefficients.
    """
    what = "the squared norm of reconstructions from themselves"
    fitted, control = (
        statistics.moments(CONTEXT_TRAIN).fit(ridge=ridge, what=what)
        for statistics in (directions.reconstructed, directions.control)
    )
    r_squared, control_r_squared = (
        statistics.moments(CONTEXT_TEST).score(probe).pooled_r_squared()
        for statistics, probe in ((directions.reconstructed, fitted), (directions.control, control))
    )
    norm = row_norms(dictionary.W_dec)
    count, total, square, cube = sums.code_powers
    alive = ((count > 0) & (norm > 0)).nonzero().flatten()
    order = alive[(total / count * norm)[alive].argsort(descending=True)]
    mean, cubic = (total / count * norm)[order], (cube / square * norm)[order]
    probe = fitted.weight.squeeze(1)
    product = torch.cat(
        [
            (dictionary.W_dec[some].double() / norm[some, None]) @ probe
            for some in order.split(BLOCK_ROWS)
        ]
    )
    return DirectionFindings(
        values={
            "directions_r_squared": r_squared,
            "directions_independent_r_squared": control_r_squared,
            "directions_correlation_mean": pearson(product, mean),
            "directions_correlation_cubic": pearson(product, cubic),
        },
        inner_product=product,
        mean_when_active=mean,
        cubic=cubic,
        latent=order,
    )


def running_mean(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Mean over a window of `WINDOW` values, of fewer at the ends."""
    if len(values) == 0:
        return values
    total = torch.cat([values.new_zeros(1), values.cumsum(0)])
    index = torch.arange(len(values), device=values.device)
    low = (index - WINDOW // 2).clamp(min=0)
    high = (index + WINDOW // 2).clamp(max=len(values))
    return (total[high] - total[low]) / (high - low)
