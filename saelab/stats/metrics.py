"""One arithmetic for every metric: streamed, in float64, whatever the batch size.

Training, the evaluation suites and the dashboard all call these. Half of the mean squared norm of a
residual stream is its mean vector, so variances are accumulated about running means (`Moments`) and
never as a difference of large sums. What each name means is in `metric_definitions`.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from saelab.errors import ActivationError
from saelab.sparse import SparseCodes

from .moments import Moments


class UndefinedMetricError(ActivationError):
    """Rows on which a metric has no value: none at all, or all equal."""


DENSE_DENSITY = 0.1
L0_QUANTILES = {"l0_q05": 0.05, "l0_q25": 0.25, "l0_q50": 0.5, "l0_q75": 0.75, "l0_q95": 0.95}
NORM_BINS_PER_DECADE = 32
NORM_DECADES = (-4, 7)
DENSITY_BINS_PER_DECADE = 5
_SMALLEST_LOSS_GAP = 1e-6


class ReconstructionStatistics:
    """How near reconstructions come to activations, over any number of batches.

    Accepts rows with any leading dimensions: `[batch, d_in]` and `[batch, seq, d_in]` of the same
    rows give the same numbers.
    """

    def __init__(self, d_in: int, n_groups: int = 1, device: torch.device | str = "cpu"):
        self.moments = Moments(d_in, n_groups, device)
        self.squared_error = torch.zeros(n_groups, dtype=torch.float64, device=device)
        n_bins = (NORM_DECADES[1] - NORM_DECADES[0]) * NORM_BINS_PER_DECADE
        self.norm_count = torch.zeros(n_bins, dtype=torch.int64, device=device)
        self.norm_error = torch.zeros(n_bins, dtype=torch.float64, device=device)
        self.sums: dict[str, float] = defaultdict(float)

    def update(
        self,
        activations: Float[Tensor, "*leading d_in"],
        reconstruction: Float[Tensor, "*leading d_in"],
        group: Int[Tensor, "*leading"] | None = None,
    ) -> None:
        """Add rows and their reconstructions; `group` as in `Moments.update`.

        Raises:
            ActivationError: the reconstruction or the activations hold NaN or infinity.
        """
        x = rearrange(activations, "... d_in -> (...) d_in").to(self.moments.mean_by_group)
        hat = rearrange(reconstruction, "... d_in -> (...) d_in").to(x)
        if len(x) == 0:
            return
        require_finite(x, "activations")
        require_finite(hat, "the reconstruction")
        flat_group = (torch.zeros(len(x)) if group is None else group.flatten()).to(x.device).long()
        self.moments.update(x, flat_group)
        squared_error = (x - hat).square().sum(dim=1)
        self.squared_error.index_add_(0, flat_group, squared_error)
        norm, norm_hat = x.norm(dim=1), hat.norm(dim=1)
        product = (x * hat).sum(dim=1)

        def ratio(above: Tensor, below: Tensor) -> Tensor:
            return torch.where(below > 0, above / below.clamp(min=1e-300), 0.0)

        additions = {
            "cosine": ratio(ratio(product, norm), norm_hat),
            "ratio": ratio(norm_hat, norm),
            "nonzero": (norm > 0).double(),
            "norm": norm,
            "norm_hat": norm_hat,
            "square_hat": norm_hat.square(),
            "product": product,
        }
        for name, addition in additions.items():
            self.sums[name] += addition.sum().item()
        decades = norm.clamp(min=10.0 ** NORM_DECADES[0]).log10() - NORM_DECADES[0]
        index = (decades * NORM_BINS_PER_DECADE).long().clamp(max=len(self.norm_count) - 1)
        self.norm_count.index_add_(0, index, torch.ones_like(index))
        self.norm_error.index_add_(0, index, squared_error.sqrt())

    @property
    def n_rows(self) -> int:
        """Rows seen so far."""
        return self.moments.n_rows

    def values(self) -> dict[str, float | int]:
        """Every metric of the group "Reconstruction" by name, and `n_rows`.

        Raises:
            ActivationError: no rows, or rows that do not vary, so that FVU is undefined.
        """
        n_rows = self.n_rows
        if n_rows == 0:
            raise UndefinedMetricError(
                "no activation row is left to evaluate: use more text or relax the token filter"
            )
        deviation = self.moments.deviation().sum().item()
        # Equal rows leave rounding of the mean behind, about 1e-32 of the squared norm.
        if deviation <= 1e-24 * n_rows * self.moments.mean().square().sum().item():
            raise UndefinedMetricError(
                f"the {n_rows} evaluated activation rows are all equal, so FVU is undefined: "
                "evaluate more text"
            )
        squared_error = self.squared_error.sum().item()
        sums = self.sums
        return {
            "n_rows": n_rows,
            "fvu": squared_error / deviation,
            "explained_variance": 1 - squared_error / deviation,
            "mean_squared_error": squared_error / n_rows,
            "cosine_similarity": sums["cosine"] / n_rows,
            "l2_ratio": sums["ratio"] / sums["nonzero"],
            "l2_ratio_of_means": sums["norm_hat"] / sums["norm"],
            # 0 where every reconstruction is the zero vector.
            "relative_reconstruction_bias": (
                sums["square_hat"] / sums["product"] if sums["product"] else 0.0
            ),
        }

    def fvu_by_group(self) -> list[float | None]:
        """Per group, squared error over deviation from the pooled mean; None for empty groups.

        Weighted by the groups' deviations these average to the pooled FVU exactly.
        """
        pairs = zip(self.squared_error.tolist(), self.moments.deviation().tolist(), strict=True)
        return [error / deviation if deviation > 0 else None for error, deviation in pairs]

    def error_by_norm(self) -> dict[str, list[float] | list[int]]:
        """Mean error norm of the rows in each occupied bin of |x|; bins are equal in log |x|."""
        occupied = self.norm_count.nonzero().flatten()
        lower = 10.0 ** (occupied.double() / NORM_BINS_PER_DECADE + NORM_DECADES[0])
        count = self.norm_count[occupied]
        return {
            "norm_low": lower.tolist(),
            "norm_high": (lower * 10.0 ** (1 / NORM_BINS_PER_DECADE)).tolist(),
            "mean_error_norm": (self.norm_error[occupied] / count).tolist(),
            "rows": count.tolist(),
        }


class SparsityStatistics:
    """How often and how strongly each latent is active: where its code is positive."""

    def __init__(self, d_sae: int, device: torch.device | str = "cpu"):
        self.count = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.total = torch.zeros(d_sae, dtype=torch.float64, device=device)
        self.maximum = torch.zeros(d_sae, dtype=torch.float64, device=device)
        self.l0_histogram = torch.zeros(d_sae + 1, dtype=torch.int64, device=device)

    def update(self, codes: SparseCodes) -> None:
        """Add the codes of some rows.

        Raises:
            ActivationError: the codes hold NaN or infinity.
        """
        require_finite(codes.value, "the codes")
        active = codes.value > 0
        latent = codes.latent[active].long().to(self.count.device)
        value = codes.value[active].to(self.total)
        self.count += torch.bincount(latent, minlength=len(self.count))
        self.total.index_add_(0, latent, value)
        self.maximum.scatter_reduce_(0, latent, value, reduce="amax")
        l0 = codes.l0().to(self.count.device)
        self.l0_histogram += torch.bincount(l0, minlength=len(self.l0_histogram))

    @property
    def n_rows(self) -> int:
        """Rows seen so far."""
        return int(self.l0_histogram.sum().item())

    def density(self) -> Float[Tensor, " d_sae"]:
        """Per latent, the fraction of rows on which it is active, float64."""
        return self.count.double() / max(self.n_rows, 1)

    def mean_when_active(self) -> Float[Tensor, " d_sae"]:
        """Per latent, the mean positive code, float64; 0 where it was never active."""
        return self.total / self.count.clamp(min=1)

    def values(self) -> dict[str, float | int]:
        """Every metric of the group "Sparsity" by name.

        Raises:
            ActivationError: no rows were seen.
        """
        n_rows = self.n_rows
        if n_rows == 0:
            raise ActivationError("no codes to count: evaluate more text or relax the token filter")
        weights = self.l0_histogram.double() / n_rows
        levels = torch.arange(len(weights), dtype=torch.float64, device=weights.device)
        mean = (weights * levels).sum()
        below = self.l0_histogram.cumsum(0)
        quantiles = {
            name: int((below < quantile * n_rows - 1e-9).sum().item())
            for name, quantile in L0_QUANTILES.items()
        }
        return {
            "l0_mean": mean.item(),
            "l0_std": (weights * (levels - mean).square()).sum().sqrt().item(),
            **quantiles,
            "dead_fraction": (self.count == 0).double().mean().item(),
            "dense_fraction": (self.density() > DENSE_DENSITY).double().mean().item(),
        }


def fvu(
    activations: Float[Tensor, "*leading d_in"], reconstruction: Float[Tensor, "*leading d_in"]
) -> float:
    """Fraction of variance unexplained of one set of rows, as in `METRICS["fvu"]`.

    Raises:
        ActivationError: values that are not finite, or rows that do not vary.
    """
    statistics = ReconstructionStatistics(activations.shape[-1], device=activations.device)
    statistics.update(activations, reconstruction)
    return statistics.values()["fvu"]


def batch_fvu(
    activations: Float[Tensor, "batch d_in"], reconstruction: Float[Tensor, "batch d_in"]
) -> float | None:
    """`fvu` for a training log: None where one batch's rows do not vary, so that a run goes on.

    Raises:
        ActivationError: values that are not finite.
    """
    try:
        return fvu(activations, reconstruction)
    except UndefinedMetricError:
        return None


def mean_l0(codes: SparseCodes) -> float:
    """L0: the mean number of positive codes per row, as in `METRICS["l0_mean"]`.

    Raises:
        ActivationError: there are no rows.
    """
    if codes.n_rows == 0:
        raise ActivationError("no codes to count: L0 is a mean over rows and there are none")
    return codes.l0().double().mean().item()


def loss_recovered(clean: float, spliced: float, ablated: float) -> float | None:
    """(ablated - spliced) / (ablated - clean); None where ablation costs less than 1e-6 nats."""
    gap = ablated - clean
    return None if abs(gap) < _SMALLEST_LOSS_GAP else (ablated - spliced) / gap


def kl_divergence(
    clean_logits: Float[Tensor, "*leading d_vocab"], other_logits: Float[Tensor, "*leading d_vocab"]
) -> Float[Tensor, "*leading"]:
    """KL(clean || other) in nats at each position, float64; a chunk of positions at a time."""
    width = clean_logits.shape[-1]
    # 4 MB at a time: what fits the cache is about twice as fast as a whole batch.
    rows_at_once = max(1, (1 << 20) // width)
    parts = [torch.zeros(0, dtype=torch.float64, device=clean_logits.device)]
    for clean, changed in zip(
        rearrange(clean_logits, "... vocab -> (...) vocab").split(rows_at_once),
        rearrange(other_logits, "... vocab -> (...) vocab").split(rows_at_once),
        strict=True,
    ):
        log_p = clean.float().log_softmax(dim=-1)
        log_ratio = changed.float().log_softmax(dim=-1).sub_(log_p).neg_()
        parts.append(log_p.exp_().mul_(log_ratio).sum(dim=-1, dtype=torch.float64))
    return torch.cat(parts).reshape(clean_logits.shape[:-1])


def density_histogram(
    density: Float[Tensor, " d_sae"], n_rows: int
) -> dict[str, list[float] | list[int] | int]:
    """Counts of latents by log10 density, those that were never active apart.

    Bins are five per decade, from the decade of 1 / n_rows to 1; the last one includes 1.
    """
    lowest = -len(str(max(n_rows - 1, 1)))
    n_bins = -lowest * DENSITY_BINS_PER_DECADE
    alive = density[density > 0].double()
    position = ((alive.log10() - lowest) * DENSITY_BINS_PER_DECADE + 1e-9).long()
    counts = torch.bincount(position.clamp(0, n_bins - 1), minlength=n_bins)
    edges = [float(lowest) + index / DENSITY_BINS_PER_DECADE for index in range(n_bins + 1)]
    return {
        "log10_edges": edges,
        "latents": counts.tolist(),
        "never_active": int((density == 0).sum().item()),
    }


def require_finite(values: Shaped[Tensor, "*shape"], what: str) -> None:
    """Refuse NaN and infinity before they reach a number.

    Raises:
        ActivationError: some value is not finite.
    """
    bad = values.numel() - int(torch.isfinite(values).sum().item())
    if bad:
        raise ActivationError(
            f"{what} holds {bad} values of {values.numel()} that are NaN or infinite: "
            "no metric is defined on them"
        )
