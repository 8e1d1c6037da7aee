"""The two toy models: what small autoencoders do to directions of unequal norm, and to one binary
attribute in noise.

Occlusion: rows u_i + v_j of two sets of random directions, one longer than the other; which
directions get a latent of their own? Over-splitting: rows ±μ + noise; is an autoencoder with the
one true pair of latents better than one of a thousand random ones? Source: Makelov, Lange & Nanda,
arXiv 2405.08366, A.14, A.15.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.config import to_plain
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

from .predicates import Family, f1_scores, on_pairs, overlaps
from .scores import in_words

TOYS_FILE = "toys.json"
TOYS_PAGE = "toys.html"
TOY_CASES = tuple((ratio, l1) for l1 in (0.1, 0.2, 0.3, 0.5) for ratio in (1.0, 1.2, 1.5))
"""Ratio of norms and L1 weight of the occlusion toys that are run."""
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
    """Directions with a latent of their own, by ratio of norms and L1 weight."""
    shares: dict[tuple[str, str], list[float]] = {}
    for toy in toys.values():
        for limit, by_set in toy.share_found.items():
            for kind, share in by_set.items():
                shares.setdefault((kind, limit), []).append(share)
    cases = [f"{ratio:g}, L1 {l1:g}" for ratio, l1 in toys]
    bars = tuple(
        Series(name=f"{kind} directions, F1 > {limit}", mark="bars", x=[*cases], y=[*values])
        for (kind, limit), values in shares.items()
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
    metrics = [
        MeasuredMetric(
            name=f"splitting/penalty{toy.penalty:g}/{name}",
            value=getattr(toy, name),
            unit="1",
            definition=f"{text} at this penalty λ.",
            group="Over-splitting",
        )
        for toy in splitting
        for name, text in (
            ("ideal", "Lowest loss ‖x − x̂‖² + λ Σf of the one true pair of latents"),
            ("random", "Lowest loss ‖x − x̂‖² + λ Σf of a thousand random latents"),
            ("ideal_scale", "Scale of the true pair's encoder at its lowest loss"),
            ("ideal_bias", "Threshold of the true pair's encoder at its lowest loss"),
        )
    ]
    for (ratio, l1), toy in occlusion.items():
        case = f"occlusion/ratio{ratio:g}/l1_{l1:g}"
        shares = {
            f"{kind}/f1_{limit}": share
            for limit, by_set in toy.share_found.items()
            for kind, share in by_set.items()
        }
        metrics += [
            MeasuredMetric(
                name=f"{case}/{name}",
                value=share,
                unit="1",
                definition="Share of the set's directions that a latent has with more than the F1.",
                group="Occlusion",
            )
            for name, share in shares.items()
        ]
        metrics.append(
            MeasuredMetric(
                name=f"{case}/l0",
                value=toy.l0,
                unit="latents",
                definition="Mean number of active latents.",
                group="Occlusion",
            )
        )
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
        metrics=tuple(metrics),
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
    write_result_page(out / TOYS_PAGE, result)
    write_evaluation_result(out / TOYS_FILE, result)
    return out / TOYS_PAGE
