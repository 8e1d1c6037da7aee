"""The numbers of each dictionary, gathered from its results, with their definitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ArtifactError
from saelab.formats.evaluation_result import EvaluationResult, MeasuredMetric
from saelab.stats.zipf import fit_zipf, zipf_shares

from ..steering.definitions import metric_name
from ..suite import Definition
from .candidates import Candidate
from .config import CompareConfig
from .jobs import RESULTS_FOLDER

TARGET_EXPONENT, TARGET_OFFSET = 1.0, 10.0
"""The law that targets follow: the same for all methods, and the default of the aux-Zipf loss."""
LARGEST_TARGET = 0.5
"""Largest target density of a latent."""
UNDERUSED_BELOW = 0.1
"""Share of its target below which a latent counts as underused."""
CURVE_POINTS, RANK_POINTS = 96, 48


def read_density(path: Path, d_sae: int) -> Float[Tensor, " d_sae"]:
    """The densities in a parquet file of the suite core, by latent, float64.

    Raises:
        ArtifactError: not such a file, or not of this many latents, or densities outside 0 to 1.
    """
    latent, density = _columns(path, "latent", "density")
    whole = torch.equal(latent.sort().values.long(), torch.arange(d_sae))
    if not whole or not bool(((density >= 0) & (density <= 1)).all()):
        raise ArtifactError(
            f"{path} does not list the density of {d_sae:,} latents, each once and between 0 and "
            "1: evaluate again with --overwrite"
        )
    return torch.empty_like(density).index_put_((latent.long(),), density)


def _columns(path: Path, *names: str, where: str | None = None) -> list[Float[Tensor, " rows"]]:
    """Columns of a parquet file as float64, of the rows where another column is true.

    Raises:
        ArtifactError: missing, no table, or a column that is missing or no numbers.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path, columns=[*names, *([where] if where else [])])
        table = table.filter(table[where]) if where else table
        return [torch.tensor(table[name].to_pylist(), dtype=torch.float64) for name in names]
    except (OSError, pyarrow.ArrowException, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(
            f"{path} is not a readable table of latents ({reason}): evaluate again with --overwrite"
        ) from None


@dataclass(frozen=True, eq=False)
class Agreement:
    """The latents of a dictionary that were compared with those of other seeds."""

    mcs: Float[Tensor, " compared"]
    """Mean over the other seeds of the largest cosine, the most active latent first."""


def read_agreement(path: Path) -> Agreement:
    """The compared latents in a parquet file of the suite consistency.

    Raises:
        ArtifactError: not such a file, or without compared latents.
    """
    activation, mcs = _columns(path, "max_activation", "mcs", where="compared")
    if not len(mcs) or not bool((mcs.abs() <= 1 + 1e-6).all()):
        raise ArtifactError(
            f"{path} has no compared latents, or cosines beyond 1: evaluate again with --overwrite"
        )
    return Agreement(mcs[activation.argsort(descending=True, stable=True)])


def rank_curve(members: Sequence[Agreement], threshold: float) -> tuple[list[float], list[float]]:
    """Share of latents with MCS above a threshold among the most active, mean over the seeds.

    Returns:
        Fractions of the latents, equal in log, and the share at each.
    """
    most = max(len(one.mcs) for one in members)
    exponents = torch.linspace(0, 1, RANK_POINTS, dtype=torch.float64).tolist()
    fractions = [count / most for count in sorted({round(most**part) for part in exponents})]
    curves = []
    for one in members:
        above = (one.mcs > threshold).double().cumsum(0)
        tops = [min(max(round(share * len(above)), 1), len(above)) for share in fractions]
        curves.append([float(above[top - 1]) / top for top in tops])
    return fractions, [sum(shares) / len(shares) for shares in zip(*curves, strict=True)]


def cosine_curve(members: Sequence[Agreement]) -> tuple[list[float], list[float]]:
    """Share of latents with at least each MCS from 0 to 1, mean over the seeds."""
    cosines = torch.arange(51, dtype=torch.float64) / 50
    shares = [(one.mcs[:, None] >= cosines).double().mean(dim=0) for one in members]
    return cosines.tolist(), torch.stack(shares).mean(dim=0).tolist()


def underused_fraction(density: Float[Tensor, " d_sae"], l0: float) -> float:
    """Share of the latents whose density is below a tenth of their target.

    The target of rank r is min(0.5, L0 · p(r)), p the shares of Zipf's law; rank 1 has the highest
    density. Latents that never fire are below theirs.

    Args:
        density: fraction of rows on which each latent is active.
        l0: mean number of active latents per row, the sum of the densities.
    """
    shares = zipf_shares(len(density), exponent=TARGET_EXPONENT, offset=TARGET_OFFSET)
    target = (l0 * shares).clamp(max=LARGEST_TARGET)
    ranked = density.double().sort(descending=True).values
    return float((ranked < UNDERUSED_BELOW * target).double().mean())


def effective_latents(density: Float[Tensor, " d_sae"]) -> float | None:
    """exp of the entropy of density / sum of densities; None where no latent fired.

    n latents that fire equally often give n, whatever the others that never do.
    """
    total = float(density.sum())
    if total <= 0:
        return None
    share = density[density > 0].double() / total
    return float(torch.exp(-(share * share.log()).sum()))


def latent_use(density: Float[Tensor, " d_sae"], l0: float) -> dict[str, float | None]:
    """Every number about the use of latents, by name."""
    fit = fit_zipf(density)
    return {
        "underused_fraction": underused_fraction(density, l0),
        "effective_latents": effective_latents(density),
        "zipf_exponent": None if fit is None else fit.exponent,
        "zipf_offset": None if fit is None else fit.offset,
        "zipf_r_squared": None if fit is None else fit.r_squared,
        "zipf_tail_gap": None if fit is None else fit.tail_gap,
    }


def density_curve(densities: list[Float[Tensor, " d_sae"]]) -> dict[str, list[float] | list[int]]:
    """Density by rank, the mean of several dictionaries of one width, and the law fitted to it.

    Ranks are equal in log; ranks whose mean density is zero are left out. `law` is empty where
    there is no fit.
    """
    ranked = torch.stack([one.double().sort(descending=True).values for one in densities])
    mean = ranked.mean(dim=0)
    exponents = torch.linspace(0, 1, CURVE_POINTS, dtype=torch.float64)
    ranks = torch.unique((len(mean) ** exponents).round().long())
    shown = ranks[mean[ranks - 1] > 0]
    fit = fit_zipf(mean)
    law = [] if fit is None else fit.densities(len(mean))[shown - 1].tolist()
    return {
        "rank": shown.tolist(),
        "density": [float(f"{value:.6g}") for value in mean[shown - 1].tolist()],
        "law": [float(f"{value:.6g}") for value in law],
        "head": [] if fit is None else [int(share * fit.n_fired) for share in (0.01, 0.7)],
    }


CORE = {
    "l0_mean": "L0",
    "fvu": "FVU",
    "loss_recovered_mean": "loss recovered (mean)",
    "loss_recovered_zero": "loss recovered (zero)",
    "kl": "KL",
    "dead_fraction": "dead",
    "l0_std": "L0 sd over tokens",
}
"""Metrics of the suite core that are columns, with their headings; definitions are the suite's."""

CONSISTENCY = {
    "mcs_share": "found again",
    "mcs_mean": "mean MCS",
    "mcs_random": "random MCS",
}
"""Metrics of the suite consistency that are columns."""

STEERING = {
    "steering_size": ("steering size", "size", "mean"),
    "steering_size_random": ("random size", "size", "random_mean"),
    "steering_consistency": ("steering consistency", "consistency", "mean"),
    "steering_consistency_random": ("random consistency", "consistency", "random_mean"),
}
"""Columns from the suite steering: heading, and which quantity and statistic of the suite it is."""

_OWN = {
    "underused_fraction": (
        "underused",
        "1",
        f"Fraction of the latents whose density is below {UNDERUSED_BELOW:g} × their target, dead "
        f"ones included. The target of the latent of rank r by density is min({LARGEST_TARGET:g}, "
        "L0 × p(r)), with the measured L0 and p the shares of Zipf's law, proportional to "
        f"(r + {TARGET_OFFSET:g})^-{TARGET_EXPONENT:g}: the same law for all methods.",
    ),
    "effective_latents": (
        "effective latents",
        "latents",
        "exp(H(f / Σf)) with f the densities and H the entropy in nats: how many latents that fire "
        "equally often would be as evenly used.",
    ),
    "zipf_exponent": (
        "Zipf slope",
        "1",
        "Exponent s of Zipf's law, density ∝ (rank + q)^-s, fitted by least squares of log density "
        "over ranks 1 % to 70 % of the latents that fired, q from a grid.",
    ),
    "zipf_offset": ("Zipf offset", "ranks", "Offset q of the same fit."),
    "zipf_r_squared": (
        "Zipf R²",
        "1",
        "Share of the variance of log density over the fitted ranks that the law explains.",
    ),
    "zipf_tail_gap": (
        "Zipf tail gap",
        "nats",
        "Log of the law's density less log of the measured one, at the last rank that fired: above "
        "0 the rarest latents fire less often than the law says.",
    ),
    "train_seconds": (
        "train seconds",
        "s",
        "Mean time of a training step of this dictionary, times its steps; reading of activations "
        "and logging are not in it.",
    ),
    "state_mib": (
        "state MiB",
        "MiB",
        "Memory that training holds of this dictionary between steps: parameters, optimizer "
        "moments and statistics, in 2^20 bytes.",
    ),
}
OWN = {
    key: Definition(name=heading, unit=unit, text=text)
    for key, (heading, unit, text) in _OWN.items()
}
"""Columns made here."""

SPREAD = (
    "Numbers are mean ± standard deviation over seeds (sample standard deviation, n − 1 in the "
    "denominator); “—” stands for a spread of fewer than two seeds, and for what was not measured "
    "or is undefined."
)


Results = Mapping[str, Mapping[str, EvaluationResult]]
"""Suite -> dictionary hash -> result."""


@dataclass(frozen=True, eq=False)
class MeasuredCandidate:
    """A dictionary with everything that was measured of it."""

    candidate: Candidate
    values: dict[str, float | None]
    """By column; None where undefined or not measured."""
    density: Float[Tensor, " d_sae"]
    """Fraction of the evaluated rows on which each latent is active."""
    results: dict[str, EvaluationResult]
    """By suite."""
    agreement: Agreement | None
    """How like those of other seeds its latents are; None where that was not measured."""


def measured(
    candidates: Sequence[Candidate], results: Results, config: CompareConfig
) -> list[MeasuredCandidate]:
    """Put each dictionary together with its numbers, in the order given.

    Raises:
        ArtifactError: a result lacks a number, or its table of latents is damaged.
    """
    found = []
    for one in candidates:
        own = {
            suite: by_hash[one.content_hash]
            for suite, by_hash in results.items()
            if one.content_hash in by_hash
        }
        density = read_density(_rows_of(one, own["core"]), one.d_sae)
        consistency = own.get("consistency")
        agreement = None if consistency is None else read_agreement(_rows_of(one, consistency))
        values = _values(one, own, density, config)
        found.append(MeasuredCandidate(one, values, density, own, agreement))
    return found


def _rows_of(one: Candidate, result: EvaluationResult) -> Path:
    name = result.item_files.get("features")
    if name is None:
        raise ArtifactError(
            f"the {result.suite} result of {one.folder} names no table of latents: evaluate again "
            "with --overwrite"
        )
    return one.folder / RESULTS_FOLDER / name


def _values(
    one: Candidate,
    results: Mapping[str, EvaluationResult],
    density: Float[Tensor, " d_sae"],
    config: CompareConfig,
) -> dict[str, float | None]:
    core = results["core"]
    values: dict[str, float | None] = {name: number(core.value(name)) for name in CORE}
    l0 = values["l0_mean"]
    if l0 is None:
        raise ArtifactError(f"the core result of {one.folder} leaves L0 undefined: it was edited")
    values |= latent_use(density, l0)
    consistency, steering = results.get("consistency"), results.get("steering")
    for name in CONSISTENCY:
        values[name] = None if consistency is None else number(consistency.value(name))
    for name, (_, quantity, what) in STEERING.items():
        key = metric_name(quantity, what, config.steering_strength)
        values[name] = None if steering is None else number(steering.value(key))
    values["train_seconds"] = one.train_seconds
    values["state_mib"] = None if one.state_bytes is None else one.state_bytes / 2**20
    return values


def number(value: float | int | None) -> float | None:
    """A metric's value as a float: JSON does not tell 4.0 from 4."""
    return None if value is None else float(value)


def columns_of(found: Sequence[MeasuredCandidate], config: CompareConfig) -> dict[str, Definition]:
    """Heading, unit and definition of every column that some dictionary has a number for.

    Definitions of the suites' metrics are those of the first dictionary that has the result: the
    settings are the same for all.
    """
    columns: dict[str, Definition] = {}
    for name, heading in CORE.items():
        columns[name] = _column(heading, _metric(found, "core", name))
    for name, column in OWN.items():
        columns[name] = column
    for name, heading in CONSISTENCY.items():
        columns[name] = _column(heading, _metric(found, "consistency", name))
    for name, (heading, quantity, what) in STEERING.items():
        key = metric_name(quantity, what, config.steering_strength)
        columns[name] = _column(heading, _metric(found, "steering", key))
    return {
        name: column
        for name, column in columns.items()
        if any(one.values[name] is not None for one in found)
    }


def _metric(found: Sequence[MeasuredCandidate], suite: str, name: str) -> MeasuredMetric | None:
    for one in found:
        for metric in one.results[suite].metrics if suite in one.results else ():
            if metric.name == name:
                return metric
    return None


def _column(heading: str, metric: MeasuredMetric | None) -> Definition:
    if metric is None:
        return Definition(name=heading, unit="1", text="Not measured.")
    return Definition(name=heading, unit=metric.unit, text=metric.definition)
