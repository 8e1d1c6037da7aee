"""Which features tell one set of texts from another: differences of mean codes, effect sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from saelab.errors import ConfigError

from .reading import Reading

DEFINITION = (
    "Mean code of a feature over all counted tokens of set A (zeros included) minus that of set B. "
    "The effect size is Cohen's d: the difference over the pooled standard deviation of the "
    "tokens' codes, √(((n_A − 1)·s_A² + (n_B − 1)·s_B²) / (n_A + n_B − 2)); undefined where that "
    "is 0. Tokens of one text are not independent: d describes the tokens given and is no test."
)


@dataclass(frozen=True, eq=False)
class Contrast:
    """Per feature that is active in either set, by feature number; float64."""

    latent: Int[np.ndarray, " features"]
    """The features."""
    mean_a: Float[np.ndarray, " features"]
    """Mean code over the counted tokens of set A."""
    mean_b: Float[np.ndarray, " features"]
    """Mean code over the counted tokens of set B."""
    effect: Float[np.ndarray, " features"]
    """Cohen's d; NaN where it is undefined."""
    texts_a: Int[np.ndarray, " features"]
    """Texts of set A with the feature active."""
    texts_b: Int[np.ndarray, " features"]
    """Texts of set B with the feature active."""
    n_tokens: tuple[int, int]
    """Counted tokens of each set."""

    @property
    def difference(self) -> Float[np.ndarray, " features"]:
        """Mean of A minus mean of B."""
        return self.mean_a - self.mean_b


def contrast(set_a: Sequence[Reading], set_b: Sequence[Reading], d_sae: int) -> Contrast:
    """Compare two sets of read texts.

    Raises:
        ConfigError: a set without a counted token.
    """
    (n_a, mean_a, squares_a, texts_a), (n_b, mean_b, squares_b, texts_b) = (
        _sums(readings, d_sae) for readings in (set_a, set_b)
    )
    for name, n in (("A", n_a), ("B", n_b)):
        if n == 0:
            raise ConfigError(
                f"set {name} has no token that counts (the first position and special tokens do "
                "not): give it some text"
            )
    latent = np.flatnonzero(texts_a + texts_b)
    spread = np.sqrt((squares_a + squares_b) / max(n_a + n_b - 2, 1))
    effect = np.divide(mean_a - mean_b, spread, out=np.full(d_sae, np.nan), where=spread > 0)
    columns = (array[latent] for array in (mean_a, mean_b, effect, texts_a, texts_b))
    return Contrast(latent, *columns, n_tokens=(n_a, n_b))


def _sums(
    readings: Sequence[Reading], d_sae: int
) -> tuple[
    int, Float[np.ndarray, " d_sae"], Float[np.ndarray, " d_sae"], Int[np.ndarray, " d_sae"]
]:
    """Counted tokens, mean, summed squared deviations, and texts with the feature."""
    n = int(sum(reading.counted.sum() for reading in readings))
    latent = np.concatenate([np.zeros(0, int), *(reading.latent for reading in readings)])
    value = np.concatenate([np.zeros(0), *(reading.value for reading in readings)])
    texts = np.zeros(d_sae, dtype=np.int64)
    for reading in readings:
        texts[np.unique(reading.latent)] += 1
    mean = np.bincount(latent, value, d_sae) / max(n, 1)
    # About the mean, and the zeros apart: no difference of large sums.
    active = np.bincount(latent, (value - mean[latent]) ** 2, d_sae)
    zeros = n - np.bincount(latent, minlength=d_sae)
    return n, mean, active + zeros * mean**2, texts
