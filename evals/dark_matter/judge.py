"""Judges dictionaries of one hook point: what they do not explain, taken apart.

Everything that can be wrong is checked before the first row is read. Two passes over the rows give
the numbers of a dictionary, further analyses follow; several dictionaries make a family.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from saelab.dictionary import SavedDictionary, load_dictionary
from saelab.dictionary.decomposition import ORIGIN_KEY, save_probe
from saelab.errors import ConfigError
from saelab.formats.chart import Chart
from saelab.formats.evaluation_result import EvaluationResult
from saelab.formats.files import hash_of, remove_leftovers, temporary_name
from saelab.model.devices import resolve_device

from ..subjects import Subject, load_models, subjects_of
from ..suite import Definition, Measurement
from .analysis import AnalysisContext, AnalysisResult, Finding
from .breakdown import Member
from .components import components_result
from .downstream import downstream_result
from .family import family_of
from .linear_error import error_charts
from .linear_maps import linear_maps_result
from .measure import GROUPS, EncoderPass, measure
from .norm_test import norm_test_chart
from .regression import CrossStatistics
from .rows import EvaluatedRows, rows_of_cache, rows_of_text
from .suite import FAMILY_SUITE, Analysis, DarkMatterConfig
from .synthetic import synthetic_result

TOKENS_FILE = "dark_matter_tokens.parquet"
PURSUIT_TOKENS_FILE = "dark_matter_pursuit_tokens.parquet"
PROBE_FILE = "dark_matter_probe.safetensors"
SEEN = (
    "The dictionary was trained on these very rows: its errors are smaller than on fresh text, and "
    "what is held out here is held out of the probes only."
)
COMPARED = ("hook_point", "model", "text", "context_length", "token_filter", "norm_ceiling")
"""What dictionaries judged together must share."""
FURTHER: dict[Analysis, Callable[[AnalysisContext], AnalysisResult]] = {
    "downstream": downstream_result,
    "linear-maps": linear_maps_result,
    "synthetic": synthetic_result,
    "components": components_result,
}
"""Analyses beside the two passes over the rows, in the order in which they run."""


def measure_dark_matter(
    folders: Sequence[Path], outs: Sequence[Path], config: DarkMatterConfig
) -> Iterator[Measurement]:
    """Measure dictionaries of one hook point on the same rows.

    Raises:
        ConfigError: dictionaries of different hook points or rows.
        ArtifactError: a folder or cache that is not intact, or does not fit its model.
        ActivationError: too few rows, or values that are not finite.
        ModelError: an unknown model or hook point.
        TextError: too little held-out text.
    """
    device = resolve_device(config.device)
    saved = [load_dictionary(folder, device=str(device)) for folder in folders]
    subjects = subjects_of(saved, outs, config)
    _check_one_data_spec(subjects)
    _check_named_dictionaries(saved[0], config)
    model = None
    if (
        config.cache is None
        or config.n_loss_tokens > 0
        or config.wants("downstream")
        or config.wants("linear-maps")
    ):
        model = next(iter(load_models(subjects, config.device).values()))
    with _temporary_folder(_family_folder(outs, config)) as temporary:
        if config.cache is not None:
            rows = rows_of_cache(config.cache, saved[0], config, model)
        else:
            assert model is not None
            rows = rows_of_text(model, subjects[0].spec, config, temporary)
        design: CrossStatistics | None = None
        for subject in subjects:
            with _temporary_folder(temporary) as own_folder:
                passes = _passes(subject, rows, config, own_folder, design)
                context = AnalysisContext(subject, model, rows, config, passes[0].probe)
                further = [run(context) for name, run in FURTHER.items() if config.wants(name)]
            design = passes[0].design
            yield _measurement(subject, rows, passes, further)


def _family_folder(outs: Sequence[Path], config: DarkMatterConfig) -> Path:
    return outs[0] if config.out is None else config.out


@contextmanager
def _temporary_folder(beside: Path) -> Iterator[Path]:
    """A folder for files between passes, where the results go: there is room for their size."""
    folder = beside / temporary_name(".dark_matter")
    remove_leftovers(beside, below=False)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_one_data_spec(subjects: Sequence[Subject]) -> None:
    """Refuse dictionaries whose rows differ: their numbers could not be held side by side."""
    first = subjects[0]
    for subject in subjects[1:]:
        for name in COMPARED:
            expected, given = getattr(first.spec, name), getattr(subject.spec, name)
            if expected != given:
                raise ConfigError(
                    f"dictionaries of one family must read the same rows, but {name} of "
                    f"{first.saved.folder} is {expected} and of {subject.saved.folder} is {given}: "
                    "run the command once for each"
                )


def _check_named_dictionaries(judged: SavedDictionary, config: DarkMatterConfig) -> None:
    """Load the dictionaries that further analyses need, so that a wrong one is known at once."""
    for folder in config.sources if config.wants("linear-maps") else ():
        load_dictionary(folder)
    if not config.wants("components"):
        return
    loaded = [load_dictionary(folder) for folder in config.component_dictionaries]
    plain = [str(saved.folder) for saved in loaded if ORIGIN_KEY not in saved.made_from]
    if plain:
        raise ConfigError(
            f"component_dictionaries: {', '.join(plain)} were trained on activations, not on a "
            f"part of the error of {judged.name}: train them with --error-component"
        )


def _passes(
    subject: Subject,
    rows: EvaluatedRows,
    config: DarkMatterConfig,
    folder: Path,
    design: CrossStatistics | None,
) -> list[EncoderPass]:
    """The two passes with the dictionary's own codes, and with pursuit codes where asked for.

    The token files and the probe are written on the way.
    """
    saved, out = subject.saved, subject.out
    out.mkdir(parents=True, exist_ok=True)
    measured = partial(measure, saved.dictionary, rows, config, name=saved.name, folder=folder)
    passes = [measured(token_file=out / TOKENS_FILE, design=design)]
    save_probe(
        out / PROBE_FILE,
        passes[0].probe,
        {"dictionary_hash": saved.content_hash, "hook_point": saved.hook_point},
    )
    if config.wants("pursuit"):
        token_file = out / PURSUIT_TOKENS_FILE
        known = {"design": passes[0].design, "own_codes": passes[0].codes}
        passes.append(measured(token_file=token_file, **known))
    return passes


def _measurement(
    subject: Subject,
    rows: EvaluatedRows,
    passes: Sequence[EncoderPass],
    further: Sequence[AnalysisResult],
) -> Measurement:
    saved, dictionary = subject.saved, subject.saved.dictionary
    numbers = {
        measured.prefix + name: value
        for measured in passes
        for name, value in measured.values.items()
    }
    definitions = [
        definition
        for heading in GROUPS
        for measured in passes
        for definition in measured.definitions(heading)
    ]
    for result in further:
        numbers |= {name: finding.value for name, finding in result.numbers.items()}
        definitions += _definitions(result.numbers, result.group)
    made_from = {
        "model": saved.made_from.get("model"),
        "model_hash": saved.made_from.get("model_hash"),
        "hook_point": saved.hook_point,
        **rows.described,
        "architecture": dictionary.architecture,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
    }
    return Measurement(
        name=saved.name,
        content_hash=saved.content_hash,
        out=subject.out,
        numbers={definition.name: numbers[definition.name] for definition in definitions},
        made_from=made_from,
        settings={"first_position": rows.first_position},
        facts={"definitions": definitions},
        data={
            "charts": _charts(passes, further),
            "tables": [table for result in further for table in result.tables],
        },
        written=("tokens", "pursuit_tokens")[: len(passes)],
        title=f"Dark matter of {saved.name}",
        subtitle=f"{dictionary.architecture}, {dictionary.d_sae:,} latents, at {saved.hook_point} "
        f"of {made_from['model']}. {_rows_in_words(made_from)}, {numbers['n_rows']:,} rows from "
        f"position {rows.first_position} on.",
        notes=(SEEN,) if rows.described.get("seen_in_training") else (),
    )


def _definitions(findings: Mapping[str, Finding], group: str) -> list[Definition]:
    return [
        Definition(name=name, unit=finding.unit, text=finding.text, group=group)
        for name, finding in findings.items()
    ]


def _rows_in_words(made_from: Mapping[str, Any]) -> str:
    text = made_from.get("text") or {}
    cached = made_from["rows"] == "activation cache"
    source = "Activation cache of" if cached else "Held-out part of"
    return f"{source} {text.get('source')}, contexts of {made_from['context_length']} tokens"


def _charts(passes: Sequence[EncoderPass], further: Sequence[AnalysisResult]) -> list[Chart]:
    """Of a dictionary: the error, the norm test, tokens and latents, further analyses."""
    values = passes[0].values
    charts = error_charts({measured.encoder: measured.values for measured in passes})
    if "norm_test_error" in values:
        charts.append(norm_test_chart(values))
    for result in (*passes, *further):
        charts += result.charts
    return charts


def measure_family(
    results: Mapping[Path, EvaluationResult], config: DarkMatterConfig
) -> Measurement | None:
    """What the dictionaries show together, from their results and the token files beside them.

    Returns:
        None where no family was asked for, or for a single dictionary.
    """
    if not config.wants("family") or len(results) < 2:
        return None
    members = []
    for out, result in results.items():
        values = {metric.name: metric.value for metric in result.metrics}
        member = Member(
            name=result.dictionary_name,
            d_sae=result.made_from["d_sae"],
            l0=float(values["l0_mean"] or 0.0),
            values=values,
            token_file=out / TOKENS_FILE,
        )
        members.append(member)
    family = family_of(members, breakdown_l0=config.breakdown_l0, ridge=config.ridge)
    first = next(iter(results.values()))
    hashes = [result.dictionary_hash for result in results.values()]
    of_one = ("architecture", "d_in", "d_sae")
    made_from = {name: value for name, value in first.made_from.items() if name not in of_one}
    n_widths = len({member.d_sae for member in members})
    return Measurement(
        name=f"{len(members)} dictionaries",
        content_hash=hash_of(hashes),
        out=_family_folder(list(results), config),
        suite=FAMILY_SUITE,
        numbers={name: finding.value for name, finding in family.numbers.items()},
        made_from={**made_from, "dictionaries": hashes},
        settings={"first_position": first.settings["first_position"]},
        facts={"definitions": _definitions(family.numbers, "Numbers")},
        data={"charts": family.charts, "tables": [family.table()]},
        rows={"dictionaries": family.rows()},
        title="Dark matter of a family of dictionaries",
        subtitle=f"{len(members)} dictionaries of {n_widths} width{'' if n_widths == 1 else 's'} "
        f"at {made_from['hook_point']} of {made_from['model']}. {_rows_in_words(made_from)}.",
        notes=(*first.notes, *family.notes),
    )
