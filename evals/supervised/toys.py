"""The two toy models: what small autoencoders do to directions of unequal norm, and to one binary
attribute in noise.

Occlusion: rows u_i + v_j of two sets of random directions, one longer than the other; which
directions get a latent of their own? Over-splitting: rows ±μ + noise; is an autoencoder with the
one true pair of latents better than one of a thousand random ones? Source: Makelov, Lange & Nanda,
arXiv 2405.08366, A.14, A.15.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ConfigError
from saelab.progress import progress_bar
from saelab.sparse import SparseCodes

from .predicates import Family, f1_scores, on_pairs, overlaps

RANDOM_LATENTS = 1000
RANDOM_BIAS = 2.35
"""Threshold of the random latents, which is near the best for every penalty."""


@dataclass(frozen=True, kw_only=True)
class OcclusionToyOptions:
    """The occlusion toy and the autoencoder trained on it."""

    ratio: float = 1.5
    """Norm of the long directions over that of the short ones."""
    l1: float = 0.2
    """Weight of Σf beside Σ(x − x̂)², on rows of mean norm 1."""
    n_values: int = 60
    """Directions in each of the two sets."""
    d_in: int = 32
    """Width of a row."""
    d_sae: int = 256
    """Latents."""
    n_rows: int = 8000
    """Rows."""
    epochs: int = 200
    """Passes over them."""
    batch_rows: int = 512
    """Rows in a step."""
    learning_rate: float = 2e-3
    """Of Adam."""
    seed: int = 0
    """Of directions, rows and initial weights."""

    def __post_init__(self) -> None:
        names = ("n_values", "d_in", "d_sae", "n_rows", "epochs", "batch_rows")
        problems = [
            f"{name}: {getattr(self, name)} is below 1" for name in names if getattr(self, name) < 1
        ]
        problems += [
            f"{name}: {getattr(self, name)} is not positive"
            for name in ("ratio", "l1", "learning_rate")
            if not getattr(self, name) > 0
        ]
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, kw_only=True)
class OcclusionToy:
    """What the occlusion toy found."""

    share_found: dict[str, dict[str, float]]
    """F1 threshold -> set (`long`, `short`) -> share of directions with a latent of that F1."""
    l0: float
    """Mean number of active latents."""


def occlusion_toy(
    options: OcclusionToyOptions, thresholds: tuple[float, ...] = (0.5, 0.9)
) -> OcclusionToy:
    """Train a ReLU autoencoder on u_i + v_j and count which directions it shows."""
    generator = torch.Generator().manual_seed(options.seed)

    def unit(count: int) -> Tensor:
        drawn = torch.randn(count, options.d_in, generator=generator)
        return torch.nn.functional.normalize(drawn, dim=1)

    directions = {"long": options.ratio * unit(options.n_values), "short": unit(options.n_values)}
    chosen = {
        name: torch.randint(options.n_values, (options.n_rows,), generator=generator)
        for name in directions
    }
    rows = sum(directions[name][chosen[name]] for name in directions)
    assert isinstance(rows, Tensor)
    rows = rows / rows.norm(dim=1).mean()
    encode = _train(rows, unit(options.d_sae), options, generator)
    codes = SparseCodes.from_dense(encode(rows))
    row, latent = on_pairs(codes)
    n_on = torch.bincount(latent, minlength=options.d_sae)
    best = {}
    for name, held in chosen.items():
        words = tuple(map(str, range(options.n_values)))
        family = Family(f"{name} is …", "value", words, held.unsqueeze(1))
        overlap = overlaps(row, latent, options.d_sae, family)
        best[name] = f1_scores(overlap, n_on, family.sizes()).amax(0)
    return OcclusionToy(
        share_found={
            f"{limit:g}": {name: float((f1 > limit).double().mean()) for name, f1 in best.items()}
            for limit in thresholds
        },
        l0=float(codes.l0().double().mean()),
    )


def _train(
    rows: Float[Tensor, "rows d_in"],
    W_dec: Float[Tensor, "d_sae d_in"],
    options: OcclusionToyOptions,
    generator: torch.Generator,
):
    """Adam on the sum of squares plus L1, decoder rows held at norm one; returns the encoder."""
    W_dec = W_dec.clone().requires_grad_()
    W_enc = W_dec.detach().T.clone().requires_grad_()
    b_enc = torch.zeros(options.d_sae, requires_grad=True)
    b_dec = rows.mean(0).clone().requires_grad_()
    optimizer = torch.optim.Adam([W_dec, W_enc, b_enc, b_dec], lr=options.learning_rate)
    steps = -(-options.n_rows // options.batch_rows)
    with progress_bar(options.epochs, "occlusion toy", "epochs") as bar:
        for _ in range(options.epochs):
            order = torch.randperm(options.n_rows, generator=generator)
            for batch in order.chunk(steps):
                x = rows[batch]
                codes = ((x - b_dec) @ W_enc + b_enc).relu()
                error = x - codes @ W_dec - b_dec
                loss = (error.square().sum() + options.l1 * codes.sum()) / len(x)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    W_dec /= W_dec.norm(dim=1, keepdim=True)
            bar.update(1)

    def encode(x: Tensor) -> Tensor:
        with torch.no_grad():
            return ((x - b_dec) @ W_enc + b_enc).relu()

    return encode


@dataclass(frozen=True, kw_only=True)
class SplittingToyOptions:
    """The over-splitting toy: x ~ ±μ + N(0, I)."""

    penalties: tuple[float, ...] = (1.0, 3.0, 5.0, 6.0, 7.0, 8.0, 10.0)
    """λ, the weights of Σf beside ‖x − x̂‖²."""
    n_rows: int = 20_000
    """Rows."""
    d_in: int = 100
    """Width of a row."""
    mean_norm: float = 2.0
    """‖μ‖."""
    n_scales: int = 100
    """Scales of the random encoder tried, evenly over [0, 0.1]."""
    seed: int = 0
    """Of rows and random latents."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {getattr(self, name)} is below 2"
            for name in ("n_rows", "d_in", "n_scales")
            if getattr(self, name) < 2
        ]
        if not self.penalties or min(self.penalties) < 0 or not self.mean_norm > 0:
            problems.append(
                "penalties and mean_norm: give at least one penalty of 0 or more, and "
                "a positive norm"
            )
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, kw_only=True)
class SplittingToy:
    """Lowest loss of either autoencoder at one penalty."""

    penalty: float
    ideal: float
    """With latents ±μ/‖μ‖, at its best bias and scale."""
    random: float
    """With a thousand random latents, at their best scale."""
    ideal_scale: float
    """Scale k of the ideal encoder kμ at its best."""
    ideal_bias: float
    """Threshold of the ideal encoder at its best."""


def splitting_toy(options: SplittingToyOptions) -> list[SplittingToy]:
    """Compare the ideal pair of latents with random ones at every penalty."""
    generator = torch.Generator().manual_seed(options.seed)
    mean = torch.zeros(options.d_in)
    mean[0] = options.mean_norm

    def draw(count: int) -> Tensor:
        sign = torch.randint(2, (count, 1), generator=generator) * 2 - 1
        return sign * mean + torch.randn(count, options.d_in, generator=generator)

    rows, latents = draw(options.n_rows), draw(RANDOM_LATENTS)
    ideal = _ideal_terms(rows, mean)
    random = _random_terms(rows, latents, options.n_scales)
    found = []
    for penalty in options.penalties:
        losses = ideal.error + penalty * ideal.size
        best = int(losses.argmin())
        found.append(
            SplittingToy(
                penalty=penalty,
                ideal=float(losses[best]),
                random=float((random.error + penalty * random.size).min()),
                ideal_scale=float(ideal.scale[best]),
                ideal_bias=float(ideal.bias[best]),
            )
        )
    return found


@dataclass(frozen=True, eq=False)
class _Terms:
    """Mean squared error and mean Σf at each point of a grid."""

    error: Float[Tensor, " points"]
    size: Float[Tensor, " points"]
    scale: Float[Tensor, " points"]
    bias: Float[Tensor, " points"]


def _ideal_terms(rows: Float[Tensor, "rows d_in"], mean: Float[Tensor, " d_in"]) -> _Terms:
    """Latents ±μ/‖μ‖ with encoder ±kμ and bias −γ; all happens along μ."""
    squared = rows.double().square().sum(1).mean()
    along = rows.double() @ (mean / mean.norm()).double()
    scale, bias = torch.meshgrid(
        torch.linspace(0, 2, 20, dtype=torch.float64),
        torch.linspace(0, 5, 100, dtype=torch.float64),
        indexing="ij",
    )
    scale, bias = scale.flatten(), bias.flatten()
    error, size = [], []
    for k, gamma in zip(scale.tolist(), bias.tolist(), strict=True):
        reach = k * float(mean.norm()) * along
        plus, minus = (reach - gamma).relu(), (-reach - gamma).relu()
        move = plus - minus
        error.append(squared - 2 * (move * along).mean() + move.square().mean())
        size.append((plus + minus).mean())
    return _Terms(torch.stack(error), torch.stack(size), scale, bias)


def _random_terms(
    rows: Float[Tensor, "rows d_in"], latents: Float[Tensor, "latents d_in"], n_scales: int
) -> _Terms:
    """Encoder rows β·z for random rows z of the same kind, decoder rows z/‖z‖, one bias."""
    directions = torch.nn.functional.normalize(latents, dim=1)
    agreement = rows @ latents.T
    scales = torch.linspace(0, 0.1, n_scales)
    error, size = [], []
    with progress_bar(n_scales, "over-splitting toy", "scales") as bar:
        for scale in scales:
            codes = (scale * agreement - RANDOM_BIAS).relu()
            missed = rows - codes @ directions
            error.append(missed.double().square().sum(1).mean())
            size.append(codes.double().sum(1).mean())
            bar.update(1)
    return _Terms(
        torch.stack(error),
        torch.stack(size),
        scales.double(),
        torch.full((n_scales,), RANDOM_BIAS, dtype=torch.float64),
    )
