"""How evenly latents are used: shares of underused ones, effective number, and Zipf's law.

After Ayonrinde (2024, arXiv 2411.02124), whose evaluation holds densities against Zipf's law.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ArtifactError
from saelab.stats.zipf import fit_zipf, zipf_shares

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
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path, columns=["latent", "density"])
        latent = torch.tensor(table["latent"].to_pylist(), dtype=torch.int64)
        density = torch.tensor(table["density"].to_pylist(), dtype=torch.float64)
    except (OSError, pyarrow.ArrowException, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(
            f"{path} is not a readable table of latents ({reason}): evaluate again with --overwrite"
        ) from None
    whole = torch.equal(latent.sort().values, torch.arange(d_sae))
    if not whole or not bool(((density >= 0) & (density <= 1)).all()):
        raise ArtifactError(
            f"{path} does not list the density of {d_sae:,} latents, each once and between 0 and "
            "1: evaluate again with --overwrite"
        )
    return torch.empty_like(density).index_put_((latent,), density)


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
