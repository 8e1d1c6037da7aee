"""Runs the model over labelled text once for all dictionaries, and ablates what each made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from saelab.errors import ConfigError, TextError
from saelab.memory import keep_freed_memory
from saelab.progress import progress_bar

from ..labelled.activations import ExampleRows, pooled_codes
from ..labelled.examples import Examples, np_generator, split_examples, take_examples
from ..labelled.subjects import by_activations, labelled_subjects, texts_of
from ..subjects import Subject, describe, origin_of
from ..suite import Measurement
from .ablation import Pooled
from .numbers import numbers_of
from .pairs import TIE, paired_examples
from .scores import Row, scr_rows, tpp_rows
from .suite import ScrTppConfig

WARNING = (
    "Do not rank dictionaries by these scores alone: arXiv 2605.18229 reports that TPP can fall as "
    "training goes on and SCR with many latents can run against the truth. The spread over splits "
    "stands beside them."
)


def measure_scr_tpp(
    folders: Sequence[Path], outs: Sequence[Path], config: ScrTppConfig
) -> Iterator[Measurement]:
    """Measure sparse autoencoders; data sets are looked at before the model runs.

    Raises:
        ConfigError: a dictionary that does not write what it reads.
        TextError: a data set that is not there, or has not the labels that a score needs.
        SaelabError: as the suite core says.
    """
    subjects = labelled_subjects(folders, outs, config)
    for subject in subjects:
        if not subject.spec.site.is_autoencoder:
            raise ConfigError(
                f"{subject.saved.folder} does not write what it reads, so there are no activations "
                "to ablate its latents in: this needs a sparse autoencoder"
            )
    n_examples = config.n_train + config.n_test
    sets = [_classes(take_examples(t, n_examples, config.seed)) for t in _texts(config)]
    pairs = [paired_examples(source, config) for source in config.pairs]
    keep_freed_memory()
    for store, reads, group in by_activations(subjects, config, "mean"):
        collected: list[tuple[list[Row], list[Row]]] = [([], []) for _ in group]
        with progress_bar(len(sets) + len(pairs), "ablating", "sets") as bar:
            for examples in [*sets, *pairs]:
                activations = store.rows_of(examples, reads)
                for subject, (tpp, scr) in zip(group, collected, strict=True):
                    pooled = _pooled(subject, activations)
                    if examples in pairs:
                        scr += _rows_of_pair(pooled, examples, config)
                    else:
                        tpp += _rows_of_set(pooled, examples, config)
                bar.update(1)
        for subject, (tpp, scr) in zip(group, collected, strict=True):
            yield _measurement(subject, tpp, scr, config)


def _texts(config: ScrTppConfig) -> Iterator:
    return texts_of(config.sets, config) if config.sets else iter(())


def _classes(examples: Examples) -> Examples:
    if len(examples.classes) < 3:
        raise TextError(
            f"labelled text {examples.name} has {len(examples.classes)} classes: TPP needs three "
            "or more, or there is no other class to spare"
        )
    return examples


def _pooled(subject: Subject, activations: ExampleRows) -> Pooled:
    dictionary = subject.saved.dictionary
    return Pooled(
        activations=activations.pooled(),
        codes=pooled_codes(dictionary, activations),
        decoder=dictionary.W_dec.detach().double().cpu().numpy(),
    )


def _splits(
    examples: Examples, config: ScrTppConfig
) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
    share = config.n_train / (config.n_train + config.n_test)
    for index in range(config.n_splits):
        yield (
            index,
            split_examples(examples.of_class, share, config.seed, examples.set_hash, index),
        )


def _rows_of_set(pooled: Pooled, examples: Examples, config: ScrTppConfig) -> list[Row]:
    rows: list[Row] = []
    for index, split in _splits(examples, config):
        generator = np_generator("scr-tpp", config.seed, examples.set_hash, index)
        of_split = tpp_rows(
            pooled, examples.of_class, split, config.ns, config.inverse_penalty, generator
        )
        rows += [
            {"set": examples.name, "split": index, **row, "class": examples.classes[row["class"]]}
            for row in of_split
        ]
    return rows


def _rows_of_pair(pooled: Pooled, examples: Examples, config: ScrTppConfig) -> list[Row]:
    cells = [tuple(name.split(TIE)) for name in examples.classes]
    labels = [
        np.array([cell[side] == max(c[side] for c in cells) for cell in cells])[examples.of_class]
        for side in (0, 1)
    ]
    return [
        {"set": examples.name, "split": index, **row}
        for index, split in _splits(examples, config)
        for row in scr_rows(pooled, labels[0], labels[1], split, config.ns, config.inverse_penalty)
    ]


def _measurement(
    subject: Subject, tpp: list[Row], scr: list[Row], config: ScrTppConfig
) -> Measurement:
    """Everything about one dictionary."""
    origin = origin_of(subject)
    del origin["text"], origin["split"]
    numbers = numbers_of(tpp, scr, config.ns)
    parts = {"tpp": tpp, "scr": scr}
    return Measurement(
        name=subject.saved.name,
        content_hash=subject.saved.content_hash,
        out=subject.out,
        numbers=numbers,
        made_from=origin | {"sets": list(config.sets), "pairs": list(config.pairs)},
        settings={"model_dtype": subject.spec.model_dtype},
        facts={"ns": config.ns, "n_splits": config.n_splits, "numbers": list(numbers)}
        | {"n_sets": len({row["set"] for row in tpp}), "n_pairs": len({r["set"] for r in scr})},
        data={"numbers": numbers, "ns": config.ns},
        rows={
            name: {column: [row[column] for row in rows] for column in rows[0]}
            for name, rows in parts.items()
            if rows
        },
        title=f"SCR and TPP of {subject.saved.name}",
        subtitle=f"{describe(subject.saved)}. Means over at most {config.max_tokens} tokens; "
        f"{config.n_splits} splits.",
        notes=(WARNING,),
    )
