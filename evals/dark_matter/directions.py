"""Analysis 12 and a control: what the norm probe's direction has to do with single latents.

The squared norm of a reconstruction, less its bias, is regressed on that reconstruction. For a sum
of sparse, nearly orthogonal features the optimal probe has the inner product E[w³] / E[w²] with
each feature's direction, w being its weight. The control does the same with the dictionary's own
codes dealt out to random rows, latent by latent, so that each latent keeps its values and which
ones are active together is left to chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.dictionary import Dictionary
from saelab.formats.chart import Axis, Chart, Series, Value
from saelab.sparse import SparseCodes
from saelab.sparse.kernels import combine_latents
from saelab.stats.spread import pearson

from .analysis import Meaning, in_words
from .first_pass import ErrorSums, scaled_values
from .regression import RegressionStatistics
from .rows import CONTEXT_TEST, CONTEXT_TRAIN, N_CELLS

WINDOW = 100

MOST_POINTS = 10_000

"""Latents shown at most, those of the largest mean code, as in the paper's figure."""


DIRECTIONS = {
    "directions_r_squared": Meaning(
        "1",
        "Held-out R² of |Sae(x) - b|² regressed on Sae(x) - b, b the decoder bias.",
    ),
    "directions_independent_r_squared": Meaning(
        "1",
        "Control: the same after each latent's codes are dealt out to random rows, so that which "
        "latents are active together is left to chance.",
    ),
    "directions_correlation_mean": Meaning(
        "1",
        "Correlation over live latents of the probe's inner product with the unit decoder row and "
        "the mean code when active (times the row's norm).",
    ),
    "directions_correlation_cubic": Meaning(
        "1",
        "The same with E[w³] / E[w²] of the latent's codes w, the optimum for sparse orthogonal "
        "features.",
    ),
}


class DirectionSums:
    """Sums of squared norms on the vectors themselves, of reconstructions and of the control.

    Args:
        dictionary: whose latents are looked at.
        seed: deals the control's codes out.
    """

    def __init__(self, dictionary: Dictionary, seed: int):
        self._dictionary = dictionary
        self._generator = torch.Generator().manual_seed(seed)
        self.own = RegressionStatistics(dictionary.d_in, 1, N_CELLS)
        self.independent = RegressionStatistics(dictionary.d_in, 1, N_CELLS)

    def update(self, codes: SparseCodes, cell: Int[Tensor, " rows"]) -> None:
        """Add the codes of some rows; the control deals them out within these rows."""
        scaled = codes.with_value(scaled_values(codes))
        plain = SparseCodes(scaled.row_pointer, scaled.latent, scaled.value, scaled.d_sae)
        dealt = torch.randint(codes.n_rows, (len(codes.latent),), generator=self._generator).to(
            codes.latent.device
        )
        shuffled = SparseCodes.from_pairs(
            dealt, plain.latent, plain.value, plain.n_rows, plain.d_sae
        )
        for statistics, these in ((self.own, plain), (self.independent, shuffled)):
            vectors = combine_latents(these, self._dictionary.W_dec).double().cpu()
            statistics.update(vectors, vectors.square().sum(1, keepdim=True), cell)


@dataclass(frozen=True, eq=False)
class DirectionFindings:
    """What the probe of the reconstruction's squared norm shows."""

    r_squared: float | None
    """Held-out R² of the squared norm of reconstructions on themselves."""
    independent_r_squared: float | None
    """The same with codes dealt out to random rows."""
    correlation_mean: float | None
    """Over live latents, correlation of probe · decoder row with the mean code when active."""
    correlation_cubic: float | None
    """The same with E[w³] / E[w²]."""
    inner_product: Float[Tensor, " alive"]
    """Probe · decoder row, latents by falling mean code."""
    mean_when_active: Float[Tensor, " alive"]
    cubic: Float[Tensor, " alive"]
    latent: Int[Tensor, " alive"]

    def values(self) -> dict[str, float | None]:
        """Every number by its metric name."""
        return {
            "directions_r_squared": self.r_squared,
            "directions_independent_r_squared": self.independent_r_squared,
            "directions_correlation_mean": self.correlation_mean,
            "directions_correlation_cubic": self.correlation_cubic,
        }

    def chart(self, prefix: str, codes: str) -> Chart:
        """The norm probe's inner product with each latent, beside its codes.

        Args:
            prefix: before the chart's name.
            codes: words for the encoder.
        """
        shown = slice(0, MOST_POINTS)
        lines = {
            "mean code when active": self.mean_when_active[shown],
            "E[w³] / E[w²]": running_mean(self.cubic[shown]),
            "probe · decoder row": running_mean(self.inner_product[shown]),
        }
        rank = list(range(1, len(self.latent[shown]) + 1))
        return Chart(
            name=f"{prefix}probe_directions",
            title=f"Norm probe against single latents, {codes}",
            caption="The squared norm of Sae(x) - b is regressed on Sae(x) - b. Inner product of "
            "that probe with each latent's unit decoder row, the mean of the latent's positive "
            "codes w, and E[w³] / E[w²], to which the inner product tends for sparse orthogonal "
            "features (all codes times the row's norm). Probe and E[w³] / E[w²] are running means "
            f"over {WINDOW} latents.",
            summary=f"Lines over {len(self.latent):,} live latents; correlation of the probe's "
            f"inner product with the mean code {in_words(self.correlation_mean)}, with E[w³]/E[w²] "
            f"{in_words(self.correlation_cubic)}.",
            x=Axis(title="latent, by falling mean code"),
            y=Axis(title="activation units"),
            series=tuple(
                Series(
                    name=label,
                    x=list(rank),
                    y=_rounded(values),
                    labels=[f"latent {latent}" for latent in self.latent[shown].tolist()],
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
    norm = torch.linalg.vector_norm(dictionary.W_dec.double().cpu(), dim=1)
    latents = sums.latents
    alive = ((latents.count > 0) & (norm > 0)).nonzero().flatten()
    mean = (latents.total / latents.count * norm)[alive]
    cubic = (latents.cube / latents.square * norm)[alive]
    what = "the squared norm of reconstructions from themselves"
    fitted = directions.own.moments(CONTEXT_TRAIN).fit(ridge=ridge, what=what)
    control = directions.independent.moments(CONTEXT_TRAIN).fit(ridge=ridge, what=what)
    unit = dictionary.W_dec.double().cpu()[alive] / norm[alive, None]
    product = unit @ fitted.weight.squeeze(1)
    order = mean.argsort(descending=True)
    return DirectionFindings(
        r_squared=directions.own.moments(CONTEXT_TEST).score(fitted).pooled_r_squared(),
        independent_r_squared=directions.independent.moments(CONTEXT_TEST)
        .score(control)
        .pooled_r_squared(),
        correlation_mean=pearson(product, mean),
        correlation_cubic=pearson(product, cubic),
        inner_product=product[order],
        mean_when_active=mean[order],
        cubic=cubic[order],
        latent=alive[order],
    )


def running_mean(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Mean over a window of `WINDOW` values, of fewer at the ends."""
    if len(values) == 0:
        return values
    total = torch.cat([values.new_zeros(1), values.cumsum(0)])
    places = torch.arange(len(values))
    low = (places - WINDOW // 2).clamp(min=0)
    high = (places + WINDOW // 2).clamp(max=len(values))
    return (total[high] - total[low]) / (high - low)


def _rounded(values: Tensor) -> list[Value]:
    return [float(f"{value:.5g}") for value in values.tolist()]
