"""Runs the model over labelled text once for all dictionaries, and probes what each makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saelab.errors import ConfigError
from saelab.formats.evaluation_result import (
    EvaluationResult,
    read_evaluation_result,
    write_evaluation_result,
    write_rows,
)
from saelab.formats.files import hash_of
from saelab.formats.lock import writer_lock
from saelab.memory import keep_freed_memory
from saelab.progress import progress_bar

from ..labelled.activations import ActivationStore, ExampleRows, pooled_codes
from ..labelled.examples import (
    BinaryTask,
    Examples,
    np_generator,
    split_examples,
    take_examples,
)
from ..labelled.subjects import by_activations, labelled_subjects, texts_of
from ..subjects import Subject, describe, origin_of
from ..suite import Measurement
from .numbers import Findings, findings_of
from .probes import Features, ProbeQuestion, ProbeScore, score_probes, strongest_features
from .suite import ProbingConfig, Setting

Row = dict[str, Any]
DECIDE_PROBES = (
    "PROTOCOL",
    "n_train",
    "n_test",
    "n_splits",
    "ks",
    "settings",
    "n_scarce",
    "positive_share",
    "noise_share",
    "inverse_penalty",
    "seed",
)
"""Settings that decide what probes on given activations come to."""


def measure_probing(
    folders: Sequence[Path], outs: Sequence[Path], config: ProbingConfig
) -> Iterator[Measurement]:
    """Probe dictionaries; data sets and dictionaries are looked at before the model runs.

    Raises:
        TextError: a data set that is not there, or has too few examples of a label.
        SaelabError: as the suite core says.
    """
    subjects = labelled_subjects(folders, outs, config)
    n_examples = config.n_train + config.n_test
    sets = [take_examples(t, n_examples, config.seed) for t in texts_of(config.sets, config)]
    keep_freed_memory()
    for store, reads, group in by_activations(subjects, config, config.pooling):
        rows: list[list[Row]] = [[] for _ in group]
        with progress_bar(len(sets), "probing", "sets") as bar:
            for examples in sets:
                activations = store.rows_of(examples, reads)
                channels = _channel_rows(store, examples, activations, config)
                for subject, of_subject in zip(group, rows, strict=True):
                    of_subject += channels
                    of_subject += _latent_rows(subject, examples, activations, config)
                bar.update(1)
        for subject, of_subject in zip(group, rows, strict=True):
            yield _measurement(subject, findings_of(of_subject, config.ks), len(sets), config)


def questions_of(
    examples: Examples, config: ProbingConfig
) -> Iterator[tuple[Row, ProbeQuestion, np.random.Generator]]:
    """Every task, split and setting of a data set, with a generator for its control."""
    share = config.n_train / (config.n_train + config.n_test)
    for split in range(config.n_splits):
        purpose = (config.seed, examples.set_hash, split)
        train, test = split_examples(examples.of_class, share, *purpose)
        for task in examples.tasks():
            for setting in config.settings:
                generator = np_generator("probing", *purpose, task.name, setting)
                question = asked_in(setting, task, train, test, config, generator)
                named = {
                    "set": examples.name,
                    "task": task.name,
                    "setting": setting,
                    "split": split,
                    "n_train": len(question.train),
                    "n_test": len(question.test),
                }
                yield named, question, generator


def asked_in(
    setting: Setting,
    task: BinaryTask,
    train: np.ndarray,
    test: np.ndarray,
    config: ProbingConfig,
    generator: np.random.Generator,
) -> ProbeQuestion:
    """The training examples that a setting leaves, and their answers.

    Args:
        train: indices in random order.
        generator: decides which answers are wrong.
    """
    positive = task.positive[train]
    chosen = train
    if setting == "scarce":
        half = config.n_scarce // 2
        chosen = np.concatenate([train[positive][:half], train[~positive][:half]])
    elif setting == "imbalanced":
        n_negative = int((~positive).sum())
        wanted = round(n_negative * config.positive_share / (1 - config.positive_share))
        chosen = np.concatenate([train[positive][: max(wanted, 2)], train[~positive]])
    answers = task.positive[chosen]
    if setting == "label-noise":
        wrong = generator.permutation(len(chosen))[: round(config.noise_share * len(chosen))]
        answers = answers.copy()
        answers[wrong] = ~answers[wrong]
    if answers.all() or not answers.any():
        raise ConfigError(
            f"the setting {setting} leaves one label among {len(chosen)} training examples of "
            f"{task.name!r}: raise --n-train"
        )
    return ProbeQuestion(train=chosen, answers=answers, test=test, truth=task.positive[test])


def _channel_rows(
    store: ActivationStore, examples: Examples, activations: ExampleRows, config: ProbingConfig
) -> list[Row]:
    """Probes on the activations themselves, which are kept for other dictionaries and runs."""
    decisive = {name: getattr(config, name) for name in DECIDE_PROBES}
    from pyarrow import parquet

    key = hash_of([decisive, activations.content_hash, examples.set_hash])
    folder = store.root / "probes"
    path = folder / f"{store.folder_of(examples, 'probes').name.rsplit('-', 1)[0]}-{key[:16]}.json"
    with writer_lock(path):
        if path.exists():
            result = read_evaluation_result(path)
            return parquet.read_table(folder / result.item_files["probes"]).to_pylist()
        pooled = activations.pooled()
        rows = [
            row
            for named, question, _ in questions_of(examples, config)
            for row in _rows_of(named, "channels", _scores(pooled, question, config, True))
        ]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        file = f"{path.stem}.parquet"
        write_rows(folder / file, columns)
        result = EvaluationResult(
            suite="probes",
            dictionary_name=f"channels, on {examples.name}",
            dictionary_hash=activations.content_hash,
            settings=decisive | {"ks": list(config.ks), "settings": list(config.settings)},
            made_from={"text": examples.name, "text_hash": examples.set_hash},
            metrics=(),
            item_files={"probes": file},
            seed=config.seed,
        )
        write_evaluation_result(path, result)
    return rows


def _latent_rows(
    subject: Subject, examples: Examples, activations: ExampleRows, config: ProbingConfig
) -> list[Row]:
    """Probes on latents, and on latents with the answers of training in random order."""
    codes = pooled_codes(subject.saved.dictionary, activations)
    fired = np.unique(codes.indices)
    latents = codes[:, fired].toarray()
    rows: list[Row] = []
    for named, question, generator in questions_of(examples, config):
        scored = _rows_of(named, "latents", _scores(latents, question, config, False))
        if len(fired):
            strongest = strongest_features(latents[question.train], question.answers, 1)
            scored[0]["latent"] = int(fired[strongest[0]])
        control = score_probes(
            latents,
            question.shuffled(generator),
            config.ks,
            full=False,
            validate=False,
            standardise=False,
            inverse_penalty=config.inverse_penalty,
        )
        rows += [*scored, *_rows_of(named, "shuffled", control)]
    return rows


def _scores(
    features: Features, question: ProbeQuestion, config: ProbingConfig, standardise: bool
) -> dict[str, ProbeScore]:
    return score_probes(
        features,
        question,
        config.ks,
        full=True,
        validate=True,
        standardise=standardise,
        inverse_penalty=config.inverse_penalty,
    )


def _rows_of(named: Row, features: str, scores: dict[str, ProbeScore]) -> list[Row]:
    return [
        {
            **named,
            "features": features,
            "k": k,
            "latent": None,
            "auc": score.auc,
            "accuracy": score.accuracy,
            "validation_auc": _known(score.validation_auc),
        }
        for k, score in scores.items()
    ]


def _known(value: float) -> float | None:
    return value if value == value else None


def _measurement(
    subject: Subject, findings: Findings, n_sets: int, config: ProbingConfig
) -> Measurement:
    """Everything about one dictionary."""
    spec = subject.spec
    origin = origin_of(subject)
    del origin["text"], origin["split"]
    pooled = "last token" if config.pooling == "last" else "mean over tokens"
    return Measurement(
        name=subject.saved.name,
        content_hash=subject.saved.content_hash,
        out=subject.out,
        numbers=findings.numbers,
        made_from=origin | {"sets": findings.set_names},
        settings={"model_dtype": spec.model_dtype},
        facts={"n_sets": n_sets, "n_train": config.n_train, "n_splits": config.n_splits}
        | {"ks": config.ks, "settings": config.settings, "n_scarce": config.n_scarce}
        | {"positive": f"{config.positive_share:g}", "noise": f"{config.noise_share:g}"},
        data=findings.chart_data(),
        rows={"probes": findings.columns()},
        title=f"Probing evaluation of {subject.saved.name}",
        subtitle=f"{describe(subject.saved)}. {n_sets} labelled data sets, {pooled} of at most "
        f"{config.max_tokens} tokens, up to {config.n_train} training and {config.n_test} test "
        f"examples, {config.n_splits} splits.",
        notes=(
            "Equal texts stand once in a data set, so no test text was trained on; probes never "
            "look at test examples; what the best of several is, is chosen on folds of training.",
        ),
    )
