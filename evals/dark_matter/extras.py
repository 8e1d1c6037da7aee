"""The analyses beside the two passes over the rows, by name, and how each is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from saelab.dictionary import load_dictionary
from saelab.dictionary.decomposition import ErrorProbe
from saelab.dictionary.error_rows import ORIGIN_KEY
from saelab.errors import ConfigError
from saelab.model.language_model import LanguageModel

from ..subjects import Subject
from . import component_values, downstream_values, linear_map_values, synthetic_values
from .config import Analysis, DarkMatterConfig
from .downstream import measure_downstream
from .error_components import measure_components
from .linear_maps import measure_linear_maps
from .result import Extra
from .row_source import Rows
from .source_rows import source_data_specs, source_rows
from .synthetic_validation import validate


@dataclass(frozen=True)
class Context:
    """What an analysis of one dictionary may need."""

    subject: Subject
    """The dictionary, its data spec, and where its results go."""
    model: LanguageModel | None
    """None where no analysis that was asked for runs it."""
    rows: Rows
    """What is evaluated."""
    config: DarkMatterConfig
    """Settings."""
    probe: ErrorProbe
    """Fitted on the training contexts."""


def _downstream(context: Context) -> Extra:
    assert context.model is not None
    config = context.config
    found = measure_downstream(
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
    return Extra(
        downstream_values.values(found),
        downstream_values.definitions(found),
        downstream_values.figure_data(found),
    )


def _linear_maps(context: Context) -> Extra:
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
    found = measure_linear_maps(
        subject.saved,
        context.probe,
        {name: saved for name, (saved, _) in sources.items()},
        batches,
        seed=config.seed,
        train_fraction=config.train_fraction,
        ridge=config.ridge,
    )
    return Extra(
        linear_map_values.values(found),
        linear_map_values.definitions(found),
        linear_map_values.figure_data(found),
    )


def _synthetic(context: Context) -> Extra:
    config, saved = context.config, context.subject.saved
    parts, n_rows = [], 0
    for batch in context.rows.batches():
        parts.append(batch.activations)
        n_rows += len(batch.activations)
        if n_rows >= config.n_synthetic_rows:
            break
    rows = torch.cat(parts)[: config.n_synthetic_rows].to(saved.dictionary.b_dec.device)
    found = validate(
        saved,
        rows,
        seed=config.seed,
        train_fraction=config.train_fraction,
        ridge=config.ridge,
    )
    return Extra(
        synthetic_values.values(found),
        synthetic_values.definitions(found),
        synthetic_values.figure_data(found),
    )


def _components(context: Context) -> Extra:
    config, saved = context.config, context.subject.saved
    device = str(saved.dictionary.b_dec.device)
    loaded = [load_dictionary(folder, device=device) for folder in config.component_dictionaries]
    batches = (batch.activations for batch in context.rows.batches())
    found = measure_components(saved, context.probe, loaded, batches)
    return Extra(
        component_values.values(found),
        component_values.definitions(found),
        component_values.figure_data(found),
    )


ANALYSES: dict[Analysis, Callable[[Context], Extra]] = {
    "downstream": _downstream,
    "linear-maps": _linear_maps,
    "synthetic": _synthetic,
    "components": _components,
}
"""By name, in the order in which they run."""


def check_extras(subjects: Sequence[Subject], config: DarkMatterConfig) -> None:
    """Load the other dictionaries that analyses need, so that a wrong one is known at once.

    Raises:
        ArtifactError: one is missing or damaged.
        ConfigError: one for "components" that was not trained on a part of an error.
    """
    for folder in config.sources if config.wants("linear-maps") else ():
        load_dictionary(folder)
    if not config.wants("components"):
        return
    loaded = [load_dictionary(folder) for folder in config.component_dictionaries]
    plain = [str(one.folder) for one in loaded if ORIGIN_KEY not in one.made_from]
    if plain:
        raise ConfigError(
            f"component_dictionaries: {', '.join(plain)} were trained on activations, not on a "
            f"part of the error of {subjects[0].saved.name}: train them with --error-component"
        )


def extra_findings(context: Context) -> Extra:
    """Run every analysis of `ANALYSES` that was asked for."""
    found = Extra()
    for name, analysis in ANALYSES.items():
        if context.config.wants(name):
            found.add(analysis(context))
    return found
