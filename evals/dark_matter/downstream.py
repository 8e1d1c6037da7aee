"""What each part of the error is worth to the model: loss and KL with it spliced in (A8).

At the hook point every evaluated row x is replaced by the reconstruction, by it with the linear or
the nonlinear part of the error added, and by controls of the same length in other directions. All
is computed from the live activation inside the hook, in float32. By construction both parts added
give the activation back, which is checked as a condition of its own.

The paper (arXiv 2410.14670) inserts reconstructions of another precision than the run's and has no
controls; recoveries of the two parts need not add up to one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.dictionary import SavedDictionary
from saelab.dictionary.data_spec import DataSpec
from saelab.dictionary.decomposition import Decomposition, ErrorProbe, decompose
from saelab.dictionary.site_rows import held_out_batches, site_rows, splice_at
from saelab.errors import ActivationError
from saelab.formats.chart import Axis, Chart
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar
from saelab.stats.metrics import kl_divergence
from saelab.stats.seeds import seeded_generator
from saelab.text.contexts import TextBatch

from ..core.losses import summed_loss
from .analysis import AnalysisContext, AnalysisResult, Finding, bars, bars_of_parts, in_words
from .rows import CONTEXT_TEST, cells_of

logger = logging.getLogger(__name__)

PARTS = ("linear", "nonlinear")
CONTROLS = ("random", "shuffled")


@dataclass(frozen=True, eq=False)
class LiveParts:
    """A batch's rows taken apart, and what its controls draw from."""

    parts: Decomposition
    activations: Float[Tensor, "rows d_in"]
    generator: torch.Generator

    def part(self, name: str) -> Float[Tensor, "rows d_in"]:
        """The linear or the nonlinear error."""
        return self.parts.linear_error if name == "linear" else self.parts.nonlinear_error

    def plus(self, part: str, control: str = "") -> Float[Tensor, "rows d_in"]:
        """The reconstruction with a part of the error added, or with a control of that part."""
        added = self.part(part)
        if control:
            added = self.random(added) if control == "random" else self.shuffled(added)
        return self.parts.reconstruction + added

    def random(self, like: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """Vectors of the same norms in random directions."""
        drawn = torch.randn(like.shape, generator=self.generator).to(like)
        return _with_norms_of(drawn, like)

    def shuffled(self, part: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """Each row's part replaced by that of another row of the batch, at its own norm."""
        order = torch.randperm(len(part), generator=self.generator).to(part.device)
        return _with_norms_of(part[order], part)


class SplicedCondition(NamedTuple):
    """What replaces a row."""

    label: str
    """For a chart."""
    words: str
    """For a definition."""
    replacement: Callable[[LiveParts], Tensor]


CONDITIONS = {
    "identity": SplicedCondition(
        "both parts added",
        "the reconstruction with both parts of the error added, which is the activation",
        lambda live: live.plus("linear") + live.part("nonlinear"),
    ),
    "sae": SplicedCondition(
        "reconstruction", "the reconstruction", lambda live: live.parts.reconstruction
    ),
    **{
        f"sae_{part}": SplicedCondition(
            f"+ {part} error",
            f"the reconstruction with the {part} error added",
            partial(LiveParts.plus, part=part),
        )
        for part in PARTS
    },
    "random_error": SplicedCondition(
        "activation + random, error's norm",
        "the activation moved in a random direction by the norm of its error",
        lambda live: live.activations + live.random(live.parts.error),
    ),
}
for _part in PARTS:
    CONDITIONS[f"sae_{_part}_random"] = SplicedCondition(
        f"+ random, {_part}'s norm",
        f"the reconstruction with a random vector of the {_part} error's norm added",
        partial(LiveParts.plus, part=_part, control="random"),
    )
    CONDITIONS[f"sae_{_part}_shuffled"] = SplicedCondition(
        f"+ another row's {_part} error",
        f"the reconstruction with another row's {_part} error, at this row's norm",
        partial(LiveParts.plus, part=_part, control="shuffled"),
    )
"""What replaces a row, by condition."""


@dataclass
class DownstreamFindings:
    """Sums over predicted positions and over replaced rows, float64."""

    loss: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CONDITIONS, 0.0))
    """Summed next-token loss by condition, nats."""
    kl: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CONDITIONS, 0.0))
    """Summed KL(original || condition), nats."""
    original: float = 0.0
    """Summed next-token loss of the untouched model, nats."""
    squares: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("error", *PARTS), 0.0))
    """Summed squared norm of the error and of each of its parts."""
    norms: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("error", *PARTS), 0.0))
    """Summed norm of each."""
    norm_ratios: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    """Summed ratio of each part's norm to the error's, over rows with an error."""
    identity_deviation: float = 0.0
    """Largest norm of x − (sum of the parts), as a share of the norm of x."""
    n_contexts: int = 0
    """Contexts run."""
    n_positions: int = 0
    """Predicted positions summed over."""
    n_rows: int = 0
    """Rows replaced in each condition."""
    n_rows_with_error: int = 0
    """Of those, rows whose error is not zero."""
    first_position: int = 0
    """Rows before it keep their activation, and losses there are not counted."""


@torch.no_grad()
def measure_downstream(
    model: LanguageModel,
    spec: DataSpec,
    saved: SavedDictionary,
    probe: ErrorProbe,
    *,
    n_tokens: int,
    batch_contexts: int,
    first_position: int = 0,
    seed: int = 0,
    train_fraction: float | None = None,
) -> DownstreamFindings:
    """Run the model on held-out text untouched and under every condition.

    Args:
        spec: which rows of which text are replaced.
        probe: fitted to the dictionary's errors on other rows.
        n_tokens: tokens of text, rounded up to contexts.
        first_position: rows at earlier positions are left alone and not counted; the paper has 200.
        seed: draws the controls, and which contexts the probe was fitted on.
        train_fraction: share of the contexts of this text that the probe was fitted on; they are
            left out, as `cells_of` draws them. None: it was fitted on other text.

    Raises:
        ActivationError: activations or losses that are not finite, or no context is left.
        TextError: the held-out text does not fill one context.
    """
    excluded = {*range(first_position), *spec.token_filter.exclude_positions}
    token_filter = replace(spec.token_filter, exclude_positions=tuple(sorted(excluded)))
    spec = replace(spec, token_filter=token_filter)
    weight = ErrorProbe(probe.weight.float(), probe.bias.float())
    findings = DownstreamFindings(first_position=first_position)
    contexts = _unseen_contexts(model, spec, seed, train_fraction)
    wanted = islice(contexts, -(-n_tokens // spec.context_length))
    with progress_bar(n_tokens, "downstream", "tokens") as bar:
        while batch := list(islice(wanted, batch_contexts)):
            _add_batch(findings, model, spec, saved, weight, TextBatch.joined(batch), seed)
            bar.update(len(batch) * spec.context_length)
    if findings.n_contexts == 0:
        raise ActivationError(
            "the held-out text holds no context that the probe was not fitted on: evaluate more "
            "text, or lower --train-fraction"
        )
    if findings.n_contexts * spec.context_length < n_tokens:
        logger.warning(
            "downstream: the held-out text gives %d contexts that the probe was not fitted on, "
            "less than the %d tokens asked for: all of them are used",
            findings.n_contexts,
            n_tokens,
        )
    return findings


def _unseen_contexts(
    model: LanguageModel, spec: DataSpec, seed: int, train_fraction: float | None
) -> Iterator[TextBatch]:
    """The contexts of the held-out text, without those that a probe was fitted on."""
    # Reading stops when enough contexts are there.
    batches = held_out_batches(model, spec, 1 << 60, 1)
    for index, batch in enumerate(batches):
        context = torch.tensor([index])
        if (
            train_fraction is None
            or int(cells_of(context, context * 0, seed=seed, train_fraction=train_fraction))
            in CONTEXT_TEST
        ):
            yield batch


def _add_batch(
    findings: DownstreamFindings,
    model: LanguageModel,
    spec: DataSpec,
    saved: SavedDictionary,
    probe: ErrorProbe,
    batch: TextBatch,
    seed: int,
) -> None:
    first = findings.first_position
    clean = model.run(batch.tokens, capture=[spec.hook_point])
    rows = site_rows(model, spec, batch, clean.activations, findings.n_contexts)
    clean_logits, clean_loss = (
        batch.of_text(clean.logits[:, :-1], first),
        batch.of_text(clean.loss, first),
    )
    findings.original += summed_loss(clean_loss)
    for name, condition in CONDITIONS.items():
        generator = seeded_generator("downstream", seed, name, findings.n_contexts)
        live = LiveParts(decompose(saved.dictionary, probe, rows.inputs), rows.inputs, generator)
        if name == "identity":
            _add_norms(findings, live)
        replacement = condition.replacement(live)
        output = model.run(batch.tokens, splice_at(model, spec.site, rows.keep, replacement))
        logits = batch.of_text(output.logits[:, :-1], first)
        findings.loss[name] += summed_loss(batch.of_text(output.loss, first))
        findings.kl[name] += kl_divergence(clean_logits, logits).sum().item()
    findings.n_contexts += len(batch)
    findings.n_positions += clean_loss.numel()


def _add_norms(findings: DownstreamFindings, live: LiveParts) -> None:
    x, error = live.activations.double(), live.parts.error.double()
    norm = error.norm(dim=1)
    has_error = norm > 0
    findings.squares["error"] += float(norm.square().sum())
    findings.norms["error"] += float(norm.sum())
    for name in PARTS:
        part = live.part(name).double().norm(dim=1)
        findings.squares[name] += float(part.square().sum())
        findings.norms[name] += float(part.sum())
        findings.norm_ratios[name] += float((part[has_error] / norm[has_error]).sum())
    together = CONDITIONS["identity"].replacement(live).double()
    deviation = (x - together).norm(dim=1) / x.norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny)
    findings.identity_deviation = max([findings.identity_deviation, *deviation.tolist()])
    findings.n_rows += len(x)
    findings.n_rows_with_error += int(has_error.sum())


def _with_norms_of(vectors: Tensor, like: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    wanted = torch.linalg.vector_norm(like, dim=1, keepdim=True)
    return vectors * (wanted / norms.clamp(min=torch.finfo(vectors.dtype).tiny))


def numbers(findings: DownstreamFindings) -> dict[str, Finding]:
    """Every number by name; None where the reconstruction adds no loss or no error."""
    n, added = findings.n_positions, findings.loss["sae"] - findings.original
    scope = f"over {n:,} predicted positions of held-out text"
    if findings.first_position:
        scope += f" from position {findings.first_position} on, the earlier ones untouched"
    nats = "nats per token"
    text = f"Mean next-token loss of the untouched model, {scope}."
    by_name = {"downstream_loss_original": Finding(findings.original / n, text, nats)}
    for name, condition in CONDITIONS.items():
        words = condition.words
        by_name[f"downstream_loss_{name}"] = Finding(
            findings.loss[name] / n,
            f"Mean next-token loss with {words} in place of each row, {scope}.",
            nats,
        )
        by_name[f"downstream_kl_{name}"] = Finding(
            findings.kl[name] / n,
            f"Mean KL(original || spliced) with {words} in place, {scope}.",
            nats,
        )
    by_name["downstream_identity_deviation"] = Finding(
        findings.identity_deviation,
        "Largest norm of activation − (reconstruction + linear + nonlinear error) over the "
        "activation's norm: rounding only.",
    )
    random = findings.loss["random_error"] - findings.original
    by_name["downstream_random_error_ratio"] = Finding(
        random / added if added > 0 else None,
        "Loss added by a random error of each row's own error norm over the loss added by the "
        "reconstruction; below 1, the dictionary's errors hurt more than random ones as long.",
    )
    for part, remaining in zip(PARTS, reversed(PARTS), strict=True):
        by_name |= _numbers_of_part(findings, part, remaining)
    by_name["downstream_n_positions"] = Finding(n, "Predicted positions, as above.", "positions")
    by_name["downstream_n_rows"] = Finding(
        findings.n_rows, "Rows replaced in each condition.", "rows"
    )
    return by_name


def _numbers_of_part(findings: DownstreamFindings, part: str, remaining: str) -> dict[str, Finding]:
    """What adding one part of the error takes back; what then remains is the second part."""
    loss, squares, norms = findings.loss, findings.squares, findings.norms
    added = loss["sae"] - findings.original

    def taken_back(condition: str) -> float | None:
        return _percent(loss["sae"] - loss[condition], added)

    kept = taken_back(f"sae_{remaining}")
    shares = {
        f"downstream_recovered_ce_{part}": (
            taken_back(f"sae_{part}"),
            f"Share of the loss that the reconstruction adds which adding the {part} error takes "
            "back: 100 (CE_sae − CE_part) / (CE_sae − CE_original). The shares of the two parts "
            "need not add up to 100.",
        ),
        f"downstream_removed_ce_{part}": (
            None if kept is None else 100 - kept,
            f"Loss added by taking the {part} error away from the activation (which leaves the "
            f"reconstruction and the {remaining} error), as a share of what the reconstruction "
            "adds.",
        ),
        f"downstream_recovered_r_squared_{part}": (
            _percent(squares["error"] - squares[remaining], squares["error"]),
            f"Share of the summed squared error that adding the {part} error takes back: "
            "100 (R²_sae − R²_part) / (R²_sae − 1), R² pooled over dimensions.",
        ),
        f"downstream_norm_share_{part}": (
            _percent(norms[part], norms["error"]),
            f"Mean norm of the {part} error over the mean norm of the error.",
        ),
        f"downstream_norm_share_per_row_{part}": (
            _percent(findings.norm_ratios[part], findings.n_rows_with_error),
            f"Mean over rows of the norm of the {part} error over the norm of the error.",
        ),
    }
    for control in CONTROLS:
        name = f"sae_{part}_{control}"
        shares[f"downstream_recovered_ce_{part}_{control}"] = (
            taken_back(name),
            f"As downstream_recovered_ce_{part}, with {CONDITIONS[name].words}: a control, which a "
            "part worth anything exceeds.",
        )
    return {name: Finding(share, text, "%") for name, (share, text) in shares.items()}


def _percent(above: float, below: float | int) -> float | None:
    return 100 * above / below if below > 0 else None


def downstream_charts(findings: DownstreamFindings) -> list[Chart]:
    """What each part of the error takes back, and what every replacement costs."""
    return [_recovery_chart(findings), _losses_chart(findings)]


def _recovery_chart(findings: DownstreamFindings) -> Chart:
    measures = {
        "recovered_ce_{}": "loss taken back",
        "recovered_r_squared_{}": "R² taken back",
        "norm_share_{}": "norm, of mean norms",
        "norm_share_per_row_{}": "norm, per row",
        "recovered_ce_{}_random": "control: loss, random vector",
        "recovered_ce_{}_shuffled": "control: loss, other row's",
    }
    known = numbers(findings)
    shares = {
        part: [known[f"downstream_{name.format(part)}"].value for name in measures]
        for part in PARTS
    }
    stated = "; ".join(
        f"{name}: linear {in_words(linear, 0, ' %')}, nonlinear {in_words(nonlinear, 0, ' %')}"
        for name, linear, nonlinear in zip(measures.values(), *shares.values(), strict=True)
    )
    return Chart(
        name="downstream_recovery",
        title="What each part of the error takes back",
        caption="Adding one part of the error to the reconstruction, spliced into the model over "
        f"{findings.n_positions:,} predicted positions. Loss taken back: 100 (CE_sae − CE_part) / "
        "(CE_sae − CE_original). R² taken back: the same with pooled R². Norm: the part's norm "
        "over the error's, as a ratio of means and as a mean of ratios. Controls add a vector of "
        "the part's norm in a random direction, or the part of another row. The two parts' shares "
        "of the loss need not add up to 100.",
        summary=f"Grouped bars: {stated}.",
        x=Axis(title="measure"),
        y=Axis(title="share of the error's effect (%)"),
        series=bars_of_parts(shares, list(measures.values()), 0),
        height=400,
        wide=True,
    )


def _losses_chart(findings: DownstreamFindings) -> Chart:
    labels = [condition.label for condition in CONDITIONS.values()]
    n = findings.n_positions
    added = [(loss - findings.original) / n for loss in findings.loss.values()]
    kl = [divergence / n for divergence in findings.kl.values()]
    return Chart(
        name="downstream_losses",
        title="What each replacement costs the model",
        caption=f"Mean next-token loss above the untouched model's {findings.original / n:.4f} "
        f"nats, and mean KL(original || spliced), over {n:,} predicted positions. "
        "'Both parts added' is the activation again and costs rounding only.",
        x=Axis(title="nats per token"),
        y=Axis(title="in place of the activation"),
        series=(
            bars("loss added", labels, added, axis="x"),
            bars("KL from the original", labels, kl, axis="x"),
        ),
        height=460,
        wide=True,
    )


def downstream_result(context: AnalysisContext) -> AnalysisResult:
    """Run the analysis on a dictionary."""
    assert context.model is not None
    config = context.config
    findings = measure_downstream(
        context.model,
        context.subject.spec,
        context.subject.saved,
        context.probe,
        n_tokens=config.n_downstream_tokens,
        batch_contexts=config.batch_contexts,
        first_position=context.rows.first_position,
        seed=config.seed,
        # With a cache the probe was fitted on other text than is spliced here.
        train_fraction=config.train_fraction if config.cache is None else None,
    )
    return AnalysisResult("Spliced into the model", numbers(findings), downstream_charts(findings))
