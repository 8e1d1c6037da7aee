"""How much of the error a linear map of other dictionaries' outputs explains (A10).

Regressors are the reconstructions of dictionaries at other hook points: an earlier layer's, and the
same layer's MLP and attention outputs; all of them together; and, as a control, the judged
dictionary's own. Targets are the error and its parts. A map to the error is also a correction: its
prediction added to the reconstruction leaves a smaller error (arXiv 2410.14670, section 6.2).

One pass collects the moments of all regressors together; every map takes its part of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.dictionary import SavedDictionary, load_dictionary
from saelab.dictionary.data_spec import DataSpec, check_fit, data_spec_of
from saelab.dictionary.decomposition import ErrorProbe, decompose
from saelab.dictionary.site_rows import held_out_batches
from saelab.errors import ActivationError, ArtifactError, ConfigError
from saelab.formats.chart import Axis, Chart
from saelab.model.identity import model_mismatch
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar

from .analysis import COMPONENT_WORDS, AnalysisContext, AnalysisResult, Finding, bars_of_parts, slug
from .regression import RIDGE, RegressionMoments, RegressionStatistics
from .rows import CONTEXT_TEST, CONTEXT_TRAIN, N_CELLS, captured_rows, cells_of
from .suite import DarkMatterConfig


@dataclass(frozen=True, eq=False, kw_only=True)
class SourceRows:
    """Rows of the judged hook point and, at the same tokens, of the sources' hook points."""

    activations: Float[Tensor, "rows d_in"]
    """Of the judged dictionary's hook point, float32."""
    sources: dict[str, Float[Tensor, "rows _"]]
    """Of each source's hook point, float32."""
    sequence: Int[Tensor, " rows"]
    """Index of the context in the text."""
    position: Int[Tensor, " rows"]
    """Position in the context."""


def source_data_specs(
    model: LanguageModel,
    spec: DataSpec,
    sources: Sequence[SavedDictionary],
    config: DarkMatterConfig,
) -> dict[str, tuple[SavedDictionary, DataSpec]]:
    """Name the sources by their hook points and check that each fits the judged one's model.

    Raises:
        ArtifactError: a source of another model.
        ConfigError: two sources of one hook point, or one of the judged hook point itself.
    """
    named: dict[str, tuple[SavedDictionary, DataSpec]] = {}
    for saved in sources:
        name, source_spec = saved.hook_point, data_spec_of(saved, config)
        if name == spec.hook_point:
            raise ConfigError(
                f"sources: {saved.folder} is of {name}, the hook point that is judged: its own "
                "output is a control that is always there; give other hook points"
            )
        if name in named:
            raise ConfigError(
                f"sources: {named[name][0].folder} and {saved.folder} are both of {name}: give one "
                "dictionary for each hook point"
            )
        hashes = [{"model_hash": each.model_hash} for each in (source_spec, spec)]
        differs = model_mismatch(*hashes)
        if differs is not None:
            raise ArtifactError(
                f"{saved.folder} was trained on another model than the dictionary it is to explain "
                f"({differs}): give dictionaries of one model"
            )
        check_fit(model, replace(source_spec, context_length=spec.context_length), saved)
        named[name] = (saved, source_spec)
    return named


@torch.no_grad()
def source_rows(
    model: LanguageModel,
    spec: DataSpec,
    sources: Mapping[str, tuple[SavedDictionary, DataSpec]],
    *,
    n_tokens: int,
    batch_contexts: int,
    first_position: int = 0,
) -> Iterator[SourceRows]:
    """Rows that every dictionary's token filter keeps, of the judged dictionary's held-out text.

    Raises:
        ActivationError: activations that are not finite.
        TextError: the held-out text does not fill one context.
    """
    specs = [spec, *(source_spec for _, source_spec in sources.values())]
    first_context = 0
    with progress_bar(n_tokens, "sources", "tokens") as bar:
        for batch in held_out_batches(model, spec, n_tokens, batch_contexts):
            captured, where, _ = captured_rows(model, specs, batch, first_context, first_position)
            judged, *of_sources = (activations.float() for activations in captured)
            yield SourceRows(
                activations=judged,
                sources=dict(zip(sources, of_sources, strict=True)),
                sequence=where["sequence"],
                position=where["position"],
            )
            first_context += len(batch)
            bar.update(batch.tokens.numel())


TARGETS = tuple(COMPONENT_WORDS)
OWN, JOINT = "same hook point (control)", "all sources together"


@dataclass(frozen=True, kw_only=True)
class LinearMapFindings:
    """How well each source predicts the error and its parts on held-out contexts."""

    r_squared: dict[str, dict[str, tuple[float | None, float | None]]]
    """By source (`OWN`, each source's hook point, `JOINT`), then by target: R² per dimension,
    averaged over dimensions that vary (E9), and pooled over dimensions (1 − E10)."""
    fvu_corrected: dict[str, float]
    """By source, FVU of the reconstruction with the map's prediction of the error added."""
    fvu: float
    """FVU of the reconstruction on the same rows."""
    n_train_rows: int
    """Rows the maps were fitted on."""
    n_test_rows: int
    """Rows of other contexts they are scored on."""


@torch.no_grad()
def measure_linear_maps(
    saved: SavedDictionary,
    probe: ErrorProbe,
    sources: Mapping[str, SavedDictionary],
    batches: Iterable[SourceRows],
    *,
    seed: int = 0,
    train_fraction: float = 0.6,
    ridge: float = RIDGE,
) -> LinearMapFindings:
    """Fit and score every map in one pass over the rows of `source_rows`.

    Raises:
        ActivationError: values that are not finite, or too few rows for a map's coefficients.
    """
    d_in = saved.dictionary.d_in
    widths = [d_in, *(source.dictionary.d_in for source in sources.values())]
    # The activation itself is a target too: its deviation is what FVU is a share of.
    device = saved.dictionary.W_dec.device
    statistics = RegressionStatistics(sum(widths), (len(TARGETS) + 1) * d_in, N_CELLS, device)
    for batch in batches:
        parts = decompose(saved.dictionary, probe, batch.activations)
        regressors = [parts.reconstruction]
        regressors += [source.dictionary(batch.sources[name]) for name, source in sources.items()]
        targets = [parts.error, parts.linear_error, parts.nonlinear_error, batch.activations]
        cell = cells_of(batch.sequence, batch.position, seed=seed, train_fraction=train_fraction)
        statistics.update(torch.cat(regressors, 1), torch.cat(targets, 1), cell)
    train, test = statistics.moments(CONTEXT_TRAIN), statistics.moments(CONTEXT_TEST)
    if test.n_rows < 2:
        raise ActivationError(
            f"{test.n_rows} rows are held out to score linear maps on: evaluate more contexts"
        )
    ends = list(accumulate(widths))
    columns = {
        name: slice(end - width, end)
        for name, width, end in zip((OWN, *sources), widths, ends, strict=True)
    }
    if len(sources) > 1:
        columns[JOINT] = slice(d_in, ends[-1])
    return _score(columns, train, test, d_in, ridge)


def _score(
    columns: Mapping[str, slice],
    train: RegressionMoments,
    test: RegressionMoments,
    d_in: int,
    ridge: float,
) -> LinearMapFindings:
    variance = float(test.squares[-d_in:].sum())
    r_squared: dict[str, dict[str, tuple[float | None, float | None]]] = {}
    corrected: dict[str, float] = {}
    for source, regressors in columns.items():
        fitted = train.select(regressors).fit(ridge=ridge, what=f"the map from {source}")
        scores = test.select(regressors).score(fitted)
        r_squared[source] = {}
        for index, target in enumerate(TARGETS):
            score = scores.of(slice(index * d_in, (index + 1) * d_in))
            mean = score.mean_r_squared(f"{target} error from {source}")
            r_squared[source][target] = mean, score.pooled_r_squared()
        corrected[source] = float(scores.squared_error[:d_in].sum()) / variance
    return LinearMapFindings(
        r_squared=r_squared,
        fvu_corrected=corrected,
        fvu=float(test.raw_squares()[:d_in].sum()) / variance,
        n_train_rows=train.n_rows,
        n_test_rows=test.n_rows,
    )


def numbers(findings: LinearMapFindings) -> dict[str, Finding]:
    """Every number by name."""
    scope = (
        f"least squares with a constant on {findings.n_train_rows:,} rows, scored on "
        f"{findings.n_test_rows:,} rows of other contexts"
    )
    by_name: dict[str, Finding] = {}
    for source, corrected in findings.fvu_corrected.items():
        output = _words(source)
        key = {OWN: "same_hook_point", JOINT: "all_sources"}.get(source) or slug(source)
        for target, words in COMPONENT_WORDS.items():
            what = f"R² of {words} predicted from {output}; {scope}."
            mean, pooled = findings.r_squared[source][target]
            by_name |= {
                f"map_r2_{target}_from_{key}": Finding(
                    mean, f"{what} Unweighted mean over the dimensions that vary."
                ),
                f"map_r2_pooled_{target}_from_{key}": Finding(
                    pooled, f"{what} Pooled over dimensions."
                ),
            }
        by_name[f"map_fvu_corrected_{key}"] = Finding(
            corrected,
            f"FVU of the reconstruction once the error predicted from {output} is added; {scope}.",
        )
    n_train, n_test = findings.n_train_rows, findings.n_test_rows
    text = f"FVU of the plain reconstruction on the same {n_test:,} rows."
    return by_name | {
        "map_fvu": Finding(findings.fvu, text),
        "map_n_train_rows": Finding(n_train, "Rows that the maps are fitted on.", "rows"),
        "map_n_test_rows": Finding(n_test, "Rows of other contexts they are scored on.", "rows"),
    }


def _words(source: str) -> str:
    if source == OWN:
        return "the dictionary's own output at the same hook point (a control)"
    if source == JOINT:
        return "the outputs of all sources together"
    return f"the output of the dictionary at {source}"


def linear_maps_chart(findings: LinearMapFindings) -> Chart:
    """R² of the error and its parts from linear maps of dictionaries' outputs."""
    scores = findings.r_squared
    r_squared = {part: [by_target[part][0] for by_target in scores.values()] for part in TARGETS}
    corrected = ", ".join(f"{name} {fvu:.4f}" for name, fvu in findings.fvu_corrected.items())
    return Chart(
        name="linear_maps",
        title="The error from other dictionaries' outputs",
        caption="Least squares with a constant from dictionaries' reconstructions to the error and "
        f"its parts, fitted on {findings.n_train_rows:,} rows and scored on "
        f"{findings.n_test_rows:,} rows of other contexts; R² is the unweighted mean over "
        "dimensions that vary. The dictionary's own output is a control. FVU of the "
        f"reconstruction once the predicted error is added: {corrected} ({findings.fvu:.4f} "
        "without).",
        x=Axis(title="output that the map reads"),
        y=Axis(title="R² on held-out contexts"),
        series=bars_of_parts(r_squared, list(scores)),
        height=400,
        wide=True,
    )


def linear_maps_result(context: AnalysisContext) -> AnalysisResult:
    """Run the analysis on a dictionary."""
    assert context.model is not None
    config, subject = context.config, context.subject
    device = str(subject.saved.dictionary.b_dec.device)
    loaded = [load_dictionary(folder, device=device) for folder in config.sources]
    sources = source_data_specs(context.model, subject.spec, loaded, config)
    batches = source_rows(
        context.model,
        subject.spec,
        sources,
        n_tokens=config.n_tokens,
        batch_contexts=config.batch_contexts,
        first_position=context.rows.first_position,
    )
    findings = measure_linear_maps(
        subject.saved,
        context.probe,
        {name: saved for name, (saved, _) in sources.items()},
        batches,
        seed=config.seed,
        train_fraction=config.train_fraction,
        ridge=config.ridge,
    )
    return AnalysisResult(
        "Linear maps of other dictionaries' outputs",
        numbers(findings),
        [linear_maps_chart(findings)],
    )
