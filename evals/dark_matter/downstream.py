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
from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.dictionary import SavedDictionary
from saelab.dictionary.data_spec import DataSpec, held_out_batches
from saelab.dictionary.decomposition import Decomposition, ErrorProbe, decompose
from saelab.errors import ActivationError
from saelab.formats.files import hash_of
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar
from saelab.stats.metrics import kl_divergence

from ..core.losses import Splice, summed_loss
from .split import CONTEXT_TEST, cells_of

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

    def random(self, like: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """Vectors of the same norms in random directions."""
        drawn = torch.randn(like.shape, generator=self.generator).to(like)
        return _with_norms_of(drawn, like)

    def shuffled(self, part: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """Each row's part replaced by that of another row of the batch, at its own norm."""
        order = torch.randperm(len(part), generator=self.generator).to(part.device)
        return _with_norms_of(part[order], part)


CONDITIONS: dict[str, Callable[[LiveParts], Tensor]] = {
    "identity": lambda live: (
        live.parts.reconstruction + live.parts.linear_error + live.parts.nonlinear_error
    ),
    "sae": lambda live: live.parts.reconstruction,
    "sae_linear": lambda live: live.parts.reconstruction + live.parts.linear_error,
    "sae_nonlinear": lambda live: live.parts.reconstruction + live.parts.nonlinear_error,
    "random_error": lambda live: live.activations + live.random(live.parts.error),
    "sae_linear_random": lambda live: (
        live.parts.reconstruction + live.random(live.parts.linear_error)
    ),
    "sae_linear_shuffled": lambda live: (
        live.parts.reconstruction + live.shuffled(live.parts.linear_error)
    ),
    "sae_nonlinear_random": lambda live: (
        live.parts.reconstruction + live.random(live.parts.nonlinear_error)
    ),
    "sae_nonlinear_shuffled": lambda live: (
        live.parts.reconstruction + live.shuffled(live.parts.nonlinear_error)
    ),
}
"""What takes the place of a row, by condition."""


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
        model: of the dictionary.
        data spec: which rows of which text are replaced.
        saved: the dictionary.
        probe: fitted to its errors on other rows.
        n_tokens: tokens of text, rounded up to contexts.
        batch_contexts: contexts in one forward pass.
        first_position: rows at earlier positions are left alone and not counted; the paper has 200.
        seed: draws the controls, and which contexts the probe was fitted on.
        train_fraction: share of the contexts of this text that the probe was fitted on; they are
            left out, as `split.cells_of` draws them. None: it was fitted on other text.

    Raises:
        ActivationError: activations or losses that are not finite, or no context is left.
        TextError: the held-out text does not fill one context.
    """
    before = {p for p in spec.token_filter.exclude_positions if p >= first_position}
    rule = replace(
        spec.token_filter, exclude_positions=tuple(sorted({*range(first_position), *before}))
    )
    spec = replace(spec, token_filter=rule)
    weight = ErrorProbe(probe.weight.float(), probe.bias.float())
    findings = DownstreamFindings(first_position=first_position)
    contexts = _unseen_contexts(model, spec, seed, train_fraction)
    wanted = islice(contexts, -(-n_tokens // spec.context_length))
    with progress_bar(n_tokens, "downstream", "tokens") as bar:
        while batch := list(islice(wanted, batch_contexts)):
            _add_batch(findings, model, spec, saved, weight, torch.cat(batch), seed)
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
) -> Iterator[Int[Tensor, "1 seq"]]:
    """The contexts of the held-out text, without those that a probe was fitted on."""
    # Reading stops when enough contexts are there.
    batches = held_out_batches(model, spec, 1 << 60, 1)
    for index, tokens in enumerate(batches):
        if train_fraction is not None:
            place = torch.tensor([index])
            cell = cells_of(place, place * 0, seed=seed, train_fraction=train_fraction)
            if int(cell) not in CONTEXT_TEST:
                continue
        yield tokens


def _add_batch(
    findings: DownstreamFindings,
    model: LanguageModel,
    spec: DataSpec,
    saved: SavedDictionary,
    probe: ErrorProbe,
    tokens: Int[Tensor, "batch seq"],
    seed: int,
) -> None:
    first = findings.first_position
    clean = model.run(tokens)
    clean_logits = clean.logits[:, first:-1]
    findings.original += summed_loss(clean.loss[:, first:])
    for name, condition in CONDITIONS.items():

        def replaced(rows: Tensor, name: str = name, condition=condition) -> Tensor:
            drawn = int(hash_of(["downstream", seed, name, findings.n_contexts])[:15], 16)
            generator = torch.Generator().manual_seed(drawn)
            live = LiveParts(decompose(saved.dictionary, probe, rows), rows, generator)
            if name == "identity":
                _add_norms(findings, live)
            return condition(live)

        splice = Splice(model, spec, tokens, replaced, findings.n_contexts)
        output = model.run(tokens, {spec.hook_point: splice})
        findings.loss[name] += summed_loss(output.loss[:, first:])
        findings.kl[name] += kl_divergence(clean_logits, output.logits[:, first:-1]).sum().item()
    findings.n_contexts += tokens.shape[0]
    findings.n_positions += clean.loss[:, first:].numel()


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
    together = CONDITIONS["identity"](live).double()
    deviation = (x - together).norm(dim=1) / x.norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny)
    findings.identity_deviation = max([findings.identity_deviation, *deviation.tolist()])
    findings.n_rows += len(x)
    findings.n_rows_with_error += int(has_error.sum())


def _with_norms_of(vectors: Tensor, like: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    wanted = torch.linalg.vector_norm(like, dim=1, keepdim=True)
    return vectors * (wanted / norms.clamp(min=torch.finfo(vectors.dtype).tiny))
