"""What suites on labelled text do first: the examples, the dictionaries, their models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from saelab.dictionary import load_dictionary
from saelab.dictionary.data_spec import ModelKey
from saelab.errors import TextError
from saelab.text.labelled import Columns, LabelledText, read_labelled, set_names

from ..subjects import Subject, load_models, subjects_of
from .activations import ActivationStore, Pooling
from .config import LabelledConfig
from .examples import evenly


def texts_of(
    sources: Sequence[str], config: LabelledConfig, second_label: str | None = None
) -> Iterator[LabelledText]:
    """The data sets that are named, those of the same texts and labels once.

    Raises:
        TextError: a data set that is not there or cannot be used.
    """
    columns = Columns(text=config.text_column, label=config.label_column, second_label=second_label)
    seen: set[str] = set()
    for name in evenly(set_names(sources), config.max_sets):
        text = read_labelled(name, columns, config.dataset_split)
        if text.content_hash not in seen:
            seen.add(text.content_hash)
            yield text
    if not seen:
        raise TextError("no labelled text was named: give one with --sets")


def labelled_subjects(
    folders: Sequence[Path], outs: Sequence[Path], config: LabelledConfig
) -> list[Subject]:
    """The dictionaries with their data specs."""
    return subjects_of([load_dictionary(folder) for folder in folders], outs, config.overrides())


def by_activations(
    subjects: Sequence[Subject], config: LabelledConfig, pooling: Pooling
) -> Iterator[tuple[ActivationStore, tuple[str, ...], list[Subject]]]:
    """The dictionaries that read the same activations, with what keeps those.

    Returns:
        The store, the hook points that are read, the dictionaries.

    Raises:
        ModelError: an unknown model or hook point.
        ArtifactError: a dictionary that does not fit its model.
    """
    models = load_models(subjects, config.device)
    groups: dict[tuple[ModelKey, tuple[str, ...]], list[Subject]] = {}
    for subject in subjects:
        key = subject.spec.model_key, tuple(subject.spec.site.reads)
        groups.setdefault(key, []).append(subject)
    for (model_key, reads), group in groups.items():
        store = ActivationStore(
            folder=config.store,
            model=models[model_key],
            pooling=pooling,
            max_tokens=config.max_tokens,
            batch_tokens=config.batch_tokens,
        )
        for subject in group:
            subject.saved.dictionary.to(store.model.device)
        yield store, reads, group
