"""The two toy models: what small autoencoders do to directions of unequal norm, and to one binary
attribute in noise.

Occlusion: rows u_i + v_j of two sets of random directions, one longer than the other; which
directions have a latent? Over-splitting: rows ±μ + noise; is an autoencoder with the
one true pair of latents better than one of a thousand random ones? Source: Makelov, Lange & Nanda,
arXiv 2405.08366, A.14, A.15.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import Within, problems_in, to_plain
from saelab.errors import ConfigError
from saelab.formats.chart import Axis, Chart, Series
from saelab.formats.evaluation_result import (
    EvaluationResult,
    MeasuredMetric,
    write_evaluation_result,
)
from saelab.formats.files import hash_of
from saelab.progress import progress_bar
from saelab.sparse import SparseCodes

from .predicates import PredicateFamily, f1_scores, on_pairs, overlaps
from .scores import in_words

TOY_CASES = tuple((ratio, l1) for l1 in (0.1, 0.2, 0.3, 0.5) for ratio in (1.0, 1.2, 1.5))
"""Ratio of norms and L1 weight of the occlusion toys that are run."""
RANDOM_LATENTS = 1000
RANDOM_BIAS = 2.35
"""Threshold of the random latents, which is near the best for every penalty."""


@dataclass(frozen=True, kw_only=True)
class OcclusionToyOptions:
    """The occlusion toy and the autoencoder trained on it."""

    ratio: Annotated[float, Within(0, low_open=True)] = 1.5
    """Norm of the long directions over that of the short ones."""
    l1: Annotated[float, Within(0, low_open=True)] = 0.2
    """Weight of Σf beside Σ(x − x̂)², on rows of mean norm 1."""
    n_values: Annotated[int, Within(1)] = 60
    """Directions in each of the two sets."""
    d_in: Annotated[int, Within(1)] = 32
    """Width of a row."""
    d_sae: Annotated[int, Within(1)] = 256
    """Latents."""
    n_rows: Annotated[int, Within(1)] = 8000
    """Rows."""
    epochs: Annotated[int, Within(1)] = 200
    """Passes over them."""
    batch_rows: Annotated[int, Within(1)] = 512
    """Rows in a step."""
    learning_rate: Annotated[float, Within(0, low_open=True)] = 2e-3
    """Of Adam."""
    seed: int = 0
    """Of directions, rows and initial weights."""

    def __post_init__(self) -> None:
        if problems := problems_in(self):
            raise ConfigError(problems)


@dataclass(frozen=True, kw_only=True)
class OcclusionToy:
    """What the occlusion toy shows."""

    shares: dict[tuple[str, float], float]
    """(set, `long` or `short`; F1 threshold) -> share of directions with a latent above it."""
    l0: float
    """Mean number of active latents."""


def occlusion_toy(
    options: OcclusionToyOptions, thresholds: tuple[float, ...] = (0.5, 0.9)
) -> OcclusionToy:
    """Train a ReLU autoencoder on u_i + v_j and count for which directions it has latents."""
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
        family = PredicateFamily(f"{name} is …", "value", words, held.unsqueeze(1))
        overlap = overlaps(row, latent, options.d_sae, family)
        best[name] = f1_scores(overlap, n_on, family.sizes()).amax(0)
    shares = {
        (name, limit): float((f1 > limit).double().mean())
        for limit in thresholds
        for name, f1 in best.items()
    }
    return OcclusionToy(shares=shares, l0=float(codes.l0().double().mean()))


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

    penalties: Annotated[tuple[float, ...], Within(0)] = (1.0, 3.0, 5.0, 6.0, 7.0, 8.0, 10.0)
    """λ, the weights of Σf beside ‖x − x̂‖²."""
    n_rows: Annotated[int, Within(2)] = 20_000
    """Rows."""
    d_in: Annotated[int, Within(2)] = 100
    """Width of a row."""
    mean_norm: Annotated[float, Within(0, low_open=True)] = 2.0
    """‖μ‖."""
    n_scales: Annotated[int, Within(2)] = 100
    """Scales of the random encoder tried, evenly over [0, 0.1]."""
    seed: int = 0
    """Of rows and random latents."""

    def __post_init__(self) -> None:
        problems = problems_in(self)
        if not self.penalties:
            problems.append("penalties is empty; give at least one")
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
    grid = torch.cartesian_prod(
        torch.linspace(0, 2, 20, dtype=torch.float64),
        torch.linspace(0, 5, 100, dtype=torch.float64),
    )
    ideal_error, ideal_size = _ideal_terms(rows, mean, grid)
    random_error, random_size = _random_terms(rows, latents, options.n_scales)
    toys = []
    for penalty in options.penalties:
        losses = ideal_error + penalty * ideal_size
        best = int(losses.argmin())
        toys.append(
            SplittingToy(
                penalty=penalty,
                ideal=float(losses[best]),
                random=float((random_error + penalty * random_size).min()),
                ideal_scale=float(grid[best, 0]),
                ideal_bias=float(grid[best, 1]),
            )
        )
    return toys


def _ideal_terms(
    rows: Float[Tensor, "rows d_in"],
    mean: Float[Tensor, " d_in"],
    grid: Float[Tensor, "points 2"],
) -> tuple[Float[Tensor, " points"], Float[Tensor, " points"]]:
    """Mean squared error and mean Σf of latents ±μ/‖μ‖ with encoder ±kμ and bias −γ, at each
    (k, γ); all happens along μ."""
    squared = rows.double().square().sum(1).mean()
    along = rows.double() @ (mean / mean.norm()).double()
    error, size = [], []
    for k, gamma in grid.tolist():
        reach = k * float(mean.norm()) * along
        plus, minus = (reach - gamma).relu(), (-reach - gamma).relu()
        move = plus - minus
        error.append(squared - 2 * (move * along).mean() + move.square().mean())
        size.append((plus + minus).mean())
    return torch.stack(error), torch.stack(size)


def _random_terms(
    rows: Float[Tensor, "rows d_in"], latents: Float[Tensor, "latents d_in"], n_scales: int
) -> tuple[Float[Tensor, " scales"], Float[Tensor, " scales"]]:
    """The same of encoder rows β·z for random rows z of the same kind, decoder rows z/‖z‖ and one
    bias, at each β."""
    directions = torch.nn.functional.normalize(latents, dim=1)
    agreement = rows @ latents.T
    error, size = [], []
    with progress_bar(n_scales, "over-splitting toy", "scales") as bar:
        for scale in torch.linspace(0, 0.1, n_scales):
            codes = (scale * agreement - RANDOM_BIAS).relu()
            missed = rows - codes @ directions
            error.append(missed.double().square().sum(1).mean())
            size.append(codes.double().sum(1).mean())
            bar.update(1)
    return torch.stack(error), torch.stack(size)


def splitting_chart(toys: Sequence[SplittingToy]) -> Chart:
    """Loss of the ideal pair and of random latents by penalty."""
    return Chart(
        name="splitting_toy",
        title="Over-splitting: random latents beat the true pair",
        caption="Rows ±μ + N(0, I) in 100 dimensions, ‖μ‖ = 2. Lower is better. As long as the "
        "penalty is small, a thousand latents in random directions, each on for few rows, have a "
        "lower loss than the two latents of the attribute, so training is drawn to splinters.",
        x=Axis(title="penalty λ"),
        y=Axis(title="lowest loss ‖x − x̂‖² + λ Σf"),
        series=tuple(
            Series(
                name=label,
                mark="lines+dots",
                x=[toy.penalty for toy in toys],
                y=[getattr(toy, name) for toy in toys],
            )
            for name, label in (
                ("ideal", "one pair of true latents"),
                ("random", "1,000 random latents"),
            )
        ),
        summary="; ".join(
            f"λ {toy.penalty:g}: {toy.ideal:.2f} against {toy.random:.2f}" for toy in toys
        ),
    )


def occlusion_chart(toys: Mapping[tuple[float, float], OcclusionToy]) -> Chart:
    """Share of directions with a latent, by ratio of norms and L1 weight."""
    cases = [f"{ratio:g}, L1 {l1:g}" for ratio, l1 in toys]
    bars = tuple(
        Series(
            name=f"{kind} directions, F1 > {limit:g}",
            mark="bars",
            x=[*cases],
            y=[toy.shares[kind, limit] for toy in toys.values()],
        )
        for kind, limit in next(iter(toys.values())).shares
    )
    return Chart(
        name="occlusion_toy",
        title="Occlusion: long directions are found before short ones",
        caption="Rows u_i + v_j with random directions, u longer than v by the ratio; share of the "
        "directions for which a trained ReLU autoencoder has a latent above the F1.",
        x=Axis(title="ratio of norms and L1 weight"),
        y=Axis(title="share of directions found", low=0, high=1.02),
        series=bars,
        summary=in_words(bars, " at "),
        wide=True,
    )


def toys_result(
    splitting: Sequence[SplittingToy], occlusion: Mapping[tuple[float, float], OcclusionToy]
) -> EvaluationResult:
    """Both toys as a result: every number with its definition, and the charts."""
    numbers = [
        (
            f"splitting/penalty{toy.penalty:g}/{name}",
            getattr(toy, name),
            "1",
            f"{text} at this penalty λ.",
            "Over-splitting",
        )
        for toy in splitting
        for name, text in (
            ("ideal", "Lowest loss ‖x − x̂‖² + λ Σf of the one true pair of latents"),
            ("random", "Lowest loss ‖x − x̂‖² + λ Σf of a thousand random latents"),
            ("ideal_scale", "Scale of the true pair's encoder at its lowest loss"),
            ("ideal_bias", "Threshold of the true pair's encoder at its lowest loss"),
        )
    ]
    share_text = "Share of the set's directions that a latent has with more than the F1."
    for (ratio, l1), toy in occlusion.items():
        case = f"occlusion/ratio{ratio:g}/l1_{l1:g}"
        numbers += [
            (f"{case}/{kind}/f1_{limit:g}", share, "1", share_text, "Occlusion")
            for (kind, limit), share in toy.shares.items()
        ]
        text = "Mean number of active latents."
        numbers.append((f"{case}/l0", toy.l0, "latents", text, "Occlusion"))
    settings = {
        "splitting": to_plain(SplittingToyOptions()),
        "occlusion": to_plain(OcclusionToyOptions()),
        "occlusion_cases": [list(case) for case in occlusion],
    }
    return EvaluationResult(
        suite="supervised_toys",
        dictionary_name="toy models",
        dictionary_hash=hash_of(settings),
        settings=settings,
        made_from={},
        metrics=tuple(
            MeasuredMetric(name=name, value=value, unit=unit, definition=text, group=group)
            for name, value, unit, text, group in numbers
        ),
        title="Two toy models of what sparse autoencoders do to attributes",
        subtitle="Over-splitting and occlusion, after Makelov, Lange & Nanda (arXiv 2405.08366).",
        charts=(splitting_chart(splitting), occlusion_chart(occlusion)),
        seed=0,
    )


def run_toys(out: Path) -> Path:
    """Run both toy models at the sizes of the golden tables; returns their page."""
    from saelab.report.result_page import write_result_page

    splitting = splitting_toy(SplittingToyOptions())
    occlusion = {
        (ratio, l1): occlusion_toy(OcclusionToyOptions(ratio=ratio, l1=l1))
        for ratio, l1 in TOY_CASES
    }
    result = toys_result(splitting, occlusion)
    out.mkdir(parents=True, exist_ok=True)
    page = write_result_page(out / "toys.html", result)
    write_evaluation_result(out / "toys.json", result)
    return page
