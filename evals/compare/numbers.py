"""The numbers of each dictionary, gathered from its results, with their definitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ArtifactError
from saelab.formats.evaluation_result import EvaluationResult
from saelab.stats.zipf import fit_zipf, zipf_shares

from ..definitions import Definition
from ..display import rounded
from ..document_sums import SUMS
from ..steering.numbers import metric_name
from .candidates import Candidate
from .jobs import RESULTS_FOLDER
from .suite import CompareConfig

TARGET_EXPONENT, TARGET_OFFSET = 1.0, 10.0
"""The law that targets follow: the same for all methods, and the default of the aux-Zipf loss."""
LARGEST_TARGET = 0.5
"""Largest target density of a latent."""
UNDERUSED_BELOW = 0.1
"""Share of its target below which a latent counts as underused."""
CURVE_POINTS = 96


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


def read_mcs(path: Path) -> Float[Tensor, " compared"]:
    """The MCS in a parquet file of the suite consistency, the most active latent first.

    Raises:
        ArtifactError: not such a file, or without compared latents.
    """
    activation, mcs = _columns(path, "max_activation", "mcs", where="compared")
    if not len(mcs) or not bool((mcs.abs() <= 1 + 1e-6).all()):
        raise ArtifactError(
            f"{path} has no compared latents, or cosines beyond 1: evaluate again with --overwrite"
        )
    return mcs[activation.argsort(descending=True, stable=True)]


def read_documents(path: Path) -> Float[Tensor, "documents sums"]:
    """The sums by document in a parquet file of the suite core.

    Raises:
        ArtifactError: not such a file.
    """
    return torch.stack(_columns(path, *SUMS), dim=1)


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
        **{
            f"zipf_{name}": None if fit is None else getattr(fit, name)
            for name in ("exponent", "offset", "r_squared", "tail_gap")
        },
    }


def density_curve(densities: Sequence[Float[Tensor, " d_sae"]]) -> dict[str, list[Any]]:
    """Density by rank, the mean of several dictionaries of one width, and the law fitted to it.

    Ranks are equal in log; ranks whose mean density is zero are left out. `law` is empty where
    there is no fit.
    """
    ranked = torch.stack([each.double().sort(descending=True).values for each in densities])
    mean = ranked.mean(dim=0)
    exponents = torch.linspace(0, 1, CURVE_POINTS, dtype=torch.float64)
    ranks = torch.unique((len(mean) ** exponents).round().long())
    shown = ranks[mean[ranks - 1] > 0]
    fit = fit_zipf(mean)
    law = [] if fit is None else fit.densities(len(mean))[shown - 1]
    return {
        "rank": shown.tolist(),
        "density": rounded(mean[shown - 1], 6),
        "law": rounded(law, 6),
    }


OF_MODEL = ("loss_recovered_mean", "loss_recovered_zero", "kl")
"""Numbers that adopted activations have none of, since there is no language model to splice in."""
OF_CACHE = ("fvu_train", "fvu_gap")
"""Numbers that only dictionaries have whose training cache is at hand."""
COMPUTED = "compare"
HEADINGS: dict[str, dict[str, str]] = {
    "core": {
        "l0_mean": "L0",
        "fvu": "FVU",
        "fvu_train": "FVU, training rows",
        "fvu_gap": "held out less training",
        "loss_recovered_mean": "loss recovered (mean)",
        "loss_recovered_zero": "loss recovered (zero)",
        "kl": "KL",
        "dead_fraction": "dead",
        "l0_std": "L0 sd over tokens",
    },
    COMPUTED: {
        "underused_fraction": "underused",
        "effective_latents": "effective latents",
        "zipf_exponent": "Zipf slope",
        "zipf_offset": "Zipf offset",
        "zipf_r_squared": "Zipf R²",
        "zipf_tail_gap": "Zipf tail gap",
        "train_seconds": "train seconds",
        "state_mib": "state MiB",
    },
    "consistency": {
        "mcs_share": "found again",
        "mcs_mean": "mean MCS",
        "mcs_random": "random MCS",
    },
    "steering": {
        "steering_size": "steering size",
        "steering_size_random": "random size",
        "steering_consistency": "steering consistency",
        "steering_consistency_random": "random consistency",
    },
}
"""Suite -> column -> heading, in reading order. Definitions are the suite's."""
STEERED = {
    "steering_size": ("size", "mean"),
    "steering_size_random": ("size", "random_mean"),
    "steering_consistency": ("consistency", "mean"),
    "steering_consistency_random": ("consistency", "random_mean"),
}
"""By column, which quantity and statistic of the suite steering it is."""
MEANINGS = {
    "underused_fraction": f"Fraction of the latents whose density is below {UNDERUSED_BELOW:g} × "
    "their target, dead ones included. The target of the latent of rank r by density is "
    f"min({LARGEST_TARGET:g}, L0 × p(r)), with the measured L0 and p the shares of Zipf's law, "
    f"proportional to (r + {TARGET_OFFSET:g})^-{TARGET_EXPONENT:g}: the same law for all methods.",
    "effective_latents": "exp(H(f / Σf)) with f the densities and H the entropy in nats: how many "
    "latents that fire equally often would be as evenly used.",
    "zipf_exponent": "Exponent s of Zipf's law, density ∝ (rank + q)^-s, fitted by least squares "
    "of log density over ranks 1 % to 70 % of the latents that fired, q from a grid.",
    "zipf_offset": "Offset q of the same fit.",
    "zipf_r_squared": "Share of the variance of log density over the fitted ranks that the law "
    "explains.",
    "zipf_tail_gap": "Log of the law's density less log of the measured one, at the last rank that "
    "fired: above 0 the rarest latents fire less often than the law says.",
    "train_seconds": "Mean time of a training step of this dictionary, times its steps; reading of "
    "activations and logging are not in it.",
    "state_mib": "Memory that training holds of this dictionary between steps: parameters, "
    "optimizer moments and statistics, in 2^20 bytes.",
}
"""Columns that are computed here."""
UNITS = {
    "effective_latents": "latents",
    "zipf_offset": "ranks",
    "zipf_tail_gap": "nats",
    "train_seconds": "s",
    "state_mib": "MiB",
}
SPREAD = (
    "Numbers are mean ± standard deviation over seeds (sample standard deviation, n − 1 in the "
    "denominator); in brackets its 95 % interval over held-out documents, by bootstrap (of a "
    "difference: paired); “—” stands for a spread of fewer than two seeds, and for what was not "
    "measured or is undefined."
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
    mcs: Float[Tensor, " compared"] | None
    """Per compared latent, the most active first, the mean over the other seeds of the largest
    cosine with one of theirs; None where that was not measured."""
    sums: Float[Tensor, "documents sums"] | None = None
    """What splicing costs, as `document_sums` reads it; None where no result has it."""


def measured(
    candidates: Sequence[Candidate], results: Results, config: CompareConfig
) -> list[MeasuredCandidate]:
    """Put each dictionary together with its numbers, in the order given.

    Raises:
        ArtifactError: a result lacks a number, or its table of latents is damaged.
    """
    members = []
    for candidate in candidates:
        of_candidate = {
            suite: by_hash[candidate.content_hash]
            for suite, by_hash in results.items()
            if candidate.content_hash in by_hash
        }
        density = read_density(_beside(candidate, of_candidate["core"]), candidate.d_sae)
        values = _values(candidate, of_candidate, density, config)
        consistency = of_candidate.get("consistency")
        mcs = None if consistency is None else read_mcs(_beside(candidate, consistency))
        sums = None
        if "documents" in of_candidate["core"].item_files:
            sums = read_documents(_beside(candidate, of_candidate["core"], "documents"))
        members.append(MeasuredCandidate(candidate, values, density, of_candidate, mcs, sums))
    return members


def _beside(candidate: Candidate, result: EvaluationResult, items: str = "features") -> Path:
    return candidate.folder / RESULTS_FOLDER / result.item_files.get(items, "")


def _values(
    candidate: Candidate,
    results: Mapping[str, EvaluationResult],
    density: Float[Tensor, " d_sae"],
    config: CompareConfig,
) -> dict[str, float | None]:
    values: dict[str, float | None] = {}
    for suite, names in HEADINGS.items():
        result = results.get(suite)
        for name in names if suite != COMPUTED else ():
            known = None
            if result is not None and not _may_lack(candidate, result, name):
                known = result.value(_key(name, config))
            values[name] = number(known)
    if values["l0_mean"] is None:
        raise ArtifactError(
            f"the core result of {candidate.folder} leaves L0 undefined: it was edited"
        )
    state = candidate.state_bytes
    return values | {
        **latent_use(density, values["l0_mean"]),
        "train_seconds": candidate.train_seconds,
        "state_mib": None if state is None else state / 2**20,
    }


def _may_lack(candidate: Candidate, result: EvaluationResult, name: str) -> bool:
    """Whether a dictionary has no such number, which in the result of another is damage."""
    if name in OF_CACHE:
        return all(metric.name != name for metric in result.metrics)
    return candidate.spec.adopted is not None and name in OF_MODEL


def _key(name: str, config: CompareConfig) -> str:
    """The name that a column has in the result of its suite."""
    return metric_name(*STEERED[name], config.steering_strength) if name in STEERED else name


def number(value: float | int | None) -> float | None:
    """A metric's value as a float: JSON does not tell 4.0 from 4."""
    return None if value is None else float(value)


def columns_of(
    members: Sequence[MeasuredCandidate], config: CompareConfig
) -> dict[str, Definition]:
    """Heading, unit and definition of every column that some dictionary has a number for.

    Definitions of the suites' metrics are those of the first dictionary that has the result: the
    settings are the same for all.
    """
    columns: dict[str, Definition] = {}
    for suite, headings in HEADINGS.items():
        results = [m.results[suite] for m in reversed(members) if suite in m.results]
        metrics = {metric.name: metric for result in results for metric in result.metrics}
        for name, heading in headings.items():
            if all(member.values[name] is None for member in members):
                continue
            column = Definition(
                name=heading, unit=UNITS.get(name, "1"), text=MEANINGS.get(name, "")
            )
            if suite != COMPUTED:
                metric = metrics[_key(name, config)]
                column = replace(
                    column,
                    unit=metric.unit,
                    text=metric.definition,
                    better=metric.better,
                    source=metric.source,
                )
            columns[name] = column
    return columns
