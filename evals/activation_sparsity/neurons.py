"""The neurons of a model's MLPs: which go at a given perplexity, and what random weights give."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from jaxtyping import Bool, Float
from torch import Tensor

from saelab.config import SHUFFLED
from saelab.dictionary.data_spec import DataSpec
from saelab.formats.evaluation_result import Table
from saelab.model.language_model import LanguageModel

from .runs import WindowRuns
from .search import LayerErrors, largest_within, top_share
from .suite import ActivationSparsityConfig

HOOK_POINT = "blocks.{}.mlp.hook_post"


@dataclass(frozen=True, eq=False)
class MlpNeurons:
    """The MLPs of a model, on a few tokens."""

    neurons: dict[str, Float[Tensor, "tokens d_mlp"]]
    """By hook point, what the last layer reads."""
    rows: dict[str, Float[Tensor, "d_mlp d_model"]]
    """What it writes for each neuron."""
    errors: dict[str, LayerErrors] = field(default_factory=dict)
    """By hook point, the error by threshold."""

    @staticmethod
    def of(model: LanguageModel, runs: WindowRuns, n_tokens: int) -> MlpNeurons | None:
        """Those of a model; None where its MLPs have no neurons that a linear layer reads."""
        known = set(model.hook_points())
        names = [HOOK_POINT.format(index) for index in range(model.n_layers)]
        if not set(names) <= known:
            return None
        rows = {name: model.rows_read(name) for name in names}
        if any(each is None for each in rows.values()):
            return None
        captured = runs.capture(model, names, n_tokens)
        written = {name: each.float() for name, each in rows.items() if each is not None}
        errors = {name: LayerErrors.of(captured[name], written[name]) for name in names}
        return MlpNeurons(captured, written, errors)

    def contributions(self, name: str) -> Float[Tensor, "tokens d_mlp"]:
        """Norm of what each neuron writes."""
        return self.neurons[name].abs() * self.rows[name].norm(dim=1)

    def sparsity(self, cett: float) -> list[float]:
        """By layer, the share of neurons below the threshold of an error."""
        return [
            float((self.contributions(name) < errors.threshold(cett)).double().mean())
            for name, errors in self.errors.items()
        ]

    def nonzero(self, below: float) -> list[float]:
        """By layer, the share of neurons above some root mean squares of the layer."""
        return [
            float((x.abs() > below * x.square().mean().sqrt()).double().mean())
            for x in self.neurons.values()
        ]

    def gate_errors(self, kept: float, *, weighted: bool) -> list[float]:
        """By layer, the relative error with each token's largest neurons kept."""
        shares = []
        for name, x in self.neurons.items():
            scores = self.contributions(name) if weighted else x.abs()
            whole, gated = x @ self.rows[name], (x * top_share(scores, kept)) @ self.rows[name]
            norm = whole.norm(dim=1).clamp(min=1e-30)
            shares.append(float(((whole - gated).norm(dim=1) / norm).mean()))
        return shares


def measure_neurons(
    model: LanguageModel, spec: DataSpec, runs: WindowRuns, config: ActivationSparsityConfig
) -> tuple[dict[str, float], Table] | None:
    """Numbers and a table by layer; None where the MLPs have no neurons to look at."""
    mlps = MlpNeurons.of(model, runs, config.n_calibration_tokens)
    if mlps is None:
        return None
    clean = runs.loss(lambda _: {})
    norms = {name: rows.norm(dim=1) for name, rows in mlps.rows.items()}
    dropped = dict.fromkeys(norms, 0.0)

    def rise(keep: Callable[[str, Tensor], Bool[Tensor, "batch seq d_mlp"]]) -> float:
        return math.exp(runs.loss(lambda _: _gates(norms, keep)) - clean) - 1

    def at_cett(cett: float) -> float:
        limits = {name: errors.threshold(cett) for name, errors in mlps.errors.items()}
        dropped.update(dict.fromkeys(norms, 0.0))

        def keep(name: str, x: Tensor) -> Tensor:
            kept = x.abs() * norms[name] >= limits[name]
            dropped[name] += float((~kept).double().mean()) * len(x) / runs.n_contexts
            return kept

        return rise(keep)

    cett = largest_within(at_cett, config.rise)
    at_cett(cett)  # Once more, to count what is dropped there.
    sparsity = [*dropped.values()]
    control = replace(spec, model=SHUFFLED + spec.model, model_dtype="float32").load_model(
        str(model.device)
    )
    random = MlpNeurons.of(control, runs, config.n_calibration_tokens)
    assert random is not None  # It is the same architecture.
    columns = {
        "dropped": sparsity,
        "dropped, random weights": random.sparsity(cett),
        "non-zero": mlps.nonzero(config.lazy_below),
        "non-zero, random weights": random.nonzero(config.lazy_below),
        "error by WINA": mlps.gate_errors(config.kept, weighted=True),
        "error by magnitude": mlps.gate_errors(config.kept, weighted=False),
    }
    names: tuple[str, ...] = (
        "mlp_sparsity",
        "mlp_sparsity_random",
        "mlp_nonzero",
        "mlp_nonzero_random",
    )
    means = [sum(values) / len(values) for values in columns.values()]
    names += ("wina_error", "magnitude_error")
    numbers: dict[str, float] = dict(zip(names, means, strict=True))
    numbers["mlp_cett"] = cett
    numbers["wina_rise"] = rise(lambda name, x: top_share(x.abs() * norms[name], config.kept))
    numbers["magnitude_rise"] = rise(lambda _, x: top_share(x.abs(), config.kept))
    return numbers, _table(columns)


def _gates(
    names: Iterable[str], keep: Callable[[str, Tensor], Tensor]
) -> dict[str, Callable[[Tensor], Tensor]]:
    return {name: lambda x, name=name: x * keep(name, x) for name in names}


def _table(columns: dict[str, list[float]]) -> Table:
    layers = range(len(next(iter(columns.values()))))
    return Table(
        title="Neurons of the MLPs, by layer",
        columns=("layer", *columns),
        rows=tuple((index, *(values[index] for values in columns.values())) for index in layers),
    )
