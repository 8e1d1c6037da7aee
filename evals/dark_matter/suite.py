"""The suite "dark-matter": what dictionaries do not explain, taken apart.

Everything that can be wrong is checked before the first row is read. Two passes over the rows give
the numbers of a dictionary, further analyses follow; several dictionaries make a family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from saelab.dictionary import SavedDictionary, load_dictionary
from saelab.dictionary.decomposition import ORIGIN_KEY, save_probe
from saelab.errors import ConfigError
from saelab.formats.files import hash_of
from saelab.memory import keep_freed_memory
from saelab.model.devices import resolve_device
from saelab.model.language_model import LanguageModel

from ..subjects import Subject, load_models, subjects_of
from ..suite import Definition, Measurement, Suite
from .analysis import AnalysisResult, Context, Meaning
from .breakdown import Member
from .components import components_result
from .config import Analysis, DarkMatterConfig
from .downstream import downstream_result
from .family import MEANINGS, SHOWN, Family, family_of
from .linear_error import error_charts
from .linear_maps import linear_maps_result
from .measure import GROUPS, PURSUIT, Measured, meaning_of, measure, own_encoder, pursuit_encoder
from .norm_test import norm_test_chart
from .rows import Rows, rows_of_cache, rows_of_text
from .spill import temporary_folder
from .synthetic import synthetic_result

TOKENS_FILE = "dark_matter_tokens.parquet"
PURSUIT_TOKENS_FILE = "dark_matter_pursuit_tokens.parquet"
PROBE_FILE = "dark_matter_probe.safetensors"
SEEN = (
    "The dictionary was trained on these very rows: its errors are smaller than on fresh text, and "
    "what is held out here is held out of the probes only."
)
FURTHER: dict[Analysis, Callable[[Context], AnalysisResult]] = {
    "downstream": downstream_result,
    "linear-maps": linear_maps_result,
    "synthetic": synthetic_result,
    "components": components_result,
}
"""Analyses beside the two passes over the rows, in the order in which they run."""


def measure_dark_matter(
    folders: Sequence[Path], outs: Sequence[Path], config: DarkMatterConfig
) -> Iterator[Measurement]:
    """Measure dictionaries of one hook point, then the family that they make.

    Args:
        folders: saved dictionaries.
        outs: where the results of each go.
        config: settings.

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
    _check_other_dictionaries(subjects, config)
    model = _model_for(subjects, config)
    keep_freed_memory()
    family_out = outs[0] if config.out is None else config.out
    members = []
    with temporary_folder(family_out) as temporary:
        rows = _rows(subjects[0], model, config, Path(temporary))
        before: Measured | None = None
        for subject in subjects:
            measurement, before = _measurement(
                subject, model, rows, config, Path(temporary), before
            )
            members.append(_member(subject, measurement))
            yield measurement
    if config.wants("family") and len(folders) > 1:
        family = family_of(members, breakdown_l0=config.breakdown_l0, ridge=config.ridge)
        yield _family_measurement(family, subjects, rows, family_out)


def _check_one_data_spec(subjects: Sequence[Subject]) -> None:
    """Refuse dictionaries whose rows differ: their numbers could not be held side by side."""
    first = subjects[0]
    for subject in subjects[1:]:
        for name in (
            "hook_point",
            "model",
            "text",
            "context_length",
            "token_filter",
            "norm_ceiling",
        ):
            mine, theirs = getattr(first.spec, name), getattr(subject.spec, name)
            if mine != theirs:
                raise ConfigError(
                    f"dictionaries of one family must read the same rows, but {name} of "
                    f"{first.saved.folder} is {mine} and of {subject.saved.folder} is {theirs}: "
                    "run the command once for each"
                )


def _check_other_dictionaries(subjects: Sequence[Subject], config: DarkMatterConfig) -> None:
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
            f"part of the error of {subjects[0].saved.name}: train them with --error-component"
        )


def _model_for(subjects: Sequence[Subject], config: DarkMatterConfig) -> LanguageModel | None:
    """The model, where anything needs it."""
    needed = (
        config.cache is None
        or config.n_loss_tokens > 0
        or config.wants("downstream")
        or config.wants("linear-maps")
    )
    return next(iter(load_models(subjects, config.device).values())) if needed else None


def _rows(
    subject: Subject, model: LanguageModel | None, config: DarkMatterConfig, folder: Path
) -> Rows:
    if config.cache is not None:
        return rows_of_cache(
            config.cache,
            subject.saved,
            n_rows=config.n_tokens,
            first_position=config.first_position,
            model=model,
            n_loss_tokens=config.n_loss_tokens,
        )
    assert model is not None
    return rows_of_text(
        model,
        subject.spec,
        folder,
        n_rows=config.n_tokens,
        first_position=config.first_position,
        n_loss_tokens=config.n_loss_tokens,
        batch_contexts=config.batch_contexts,
    )


def _measurement(
    subject: Subject,
    model: LanguageModel | None,
    rows: Rows,
    config: DarkMatterConfig,
    folder: Path,
    before: Measured | None,
) -> tuple[Measurement, Measured]:
    """Measure one dictionary; its token files and its probe are written on the way."""
    saved, out = subject.saved, subject.out
    out.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder) as own_folder:
        passes = _passes(saved, out, rows, config, Path(own_folder), before)
        context = Context(subject, model, rows, config, passes[0].probe)
        further = [run(context) for name, run in FURTHER.items() if config.wants(name)]
    save_probe(
        out / PROBE_FILE,
        passes[0].probe,
        {"dictionary_hash": saved.content_hash, "hook_point": saved.hook_point},
    )
    definitions = _definitions(passes, further)
    numbers = {
        measured.encoder.prefix + name: value
        for measured in passes
        for name, value in measured.values.items()
    }
    for result in further:
        numbers |= result.values
    origin, dictionary = saved.made_from, saved.dictionary
    measurement = Measurement(
        name=saved.name,
        content_hash=saved.content_hash,
        out=out,
        numbers={name: numbers[name] for name in definitions},
        made_from={
            "model": origin.get("model"),
            "model_hash": origin.get("model_hash"),
            "hook_point": saved.hook_point,
            **rows.described,
            "architecture": dictionary.architecture,
            "d_in": dictionary.d_in,
            "d_sae": dictionary.d_sae,
        },
        settings={"first_position": rows.first_position},
        facts=definitions,
        data={"passes": passes, "further": further},
        written=("tokens", "pursuit_tokens")[: len(passes)],
        title=f"Dark matter of {saved.name}",
        subtitle=f"{dictionary.architecture}, {dictionary.d_sae:,} latents, at {saved.hook_point} "
        f"of {origin.get('model')}. {_rows_text(rows)}, {numbers['n_rows']:,} rows from position "
        f"{rows.first_position} on.",
        notes=(SEEN,) if rows.described.get("seen_in_training") else (),
    )
    return measurement, passes[0]


def _passes(
    saved: SavedDictionary,
    out: Path,
    rows: Rows,
    config: DarkMatterConfig,
    folder: Path,
    before: Measured | None,
) -> list[Measured]:
    """The two passes with the dictionary's own codes, and with pursuit codes where asked for."""
    dictionary = saved.dictionary
    passes = [
        measure(
            dictionary,
            own_encoder(dictionary),
            rows,
            config,
            folder=folder,
            token_file=out / TOKENS_FILE,
            what=saved.name,
            before=before,
        )
    ]
    if config.wants("pursuit"):
        pursued = measure(
            dictionary,
            pursuit_encoder(dictionary),
            rows,
            config,
            folder=folder,
            token_file=out / PURSUIT_TOKENS_FILE,
            what=f"{saved.name} with pursuit codes",
            before=passes[0],
        )
        passes.append(pursued)
    return passes


def _definitions(
    passes: Sequence[Measured], further: Sequence[AnalysisResult]
) -> dict[str, Definition]:
    """What was measured, by name, in reading order."""
    definitions = []
    for heading, names in GROUPS.items():
        for measured in passes:
            prefix = measured.encoder.prefix
            group = f"{heading}, with pursuit codes" if prefix else heading
            definitions += [
                _definition(prefix + name, meaning_of(prefix + name), group)
                for name in names
                if name in measured.values
                and not (prefix and name in ("n_train_rows", "n_test_rows"))
            ]
    for result in further:
        definitions += [
            _definition(name, meaning, result.group) for name, meaning in result.meanings.items()
        ]
    return {definition.name: definition for definition in definitions}


def _definition(name: str, meaning: Meaning, group: str) -> Definition:
    return Definition(name=name, unit=meaning.unit, text=meaning.text, group=group)


def _charts(data: Mapping[str, Any]) -> list[Any]:
    """Of a dictionary: the error, the norm test, tokens and latents, further analyses."""
    passes: list[Measured] = data["passes"]
    values = passes[0].values
    charts = error_charts({one.encoder.words: one.values for one in passes}, values)
    if "norm_test_error" in values:
        charts.append(norm_test_chart(values))
    for measured in passes:
        charts += measured.charts
    return [*charts, *(chart for result in data["further"] for chart in result.charts)]


def _rows_text(rows: Rows) -> str:
    described = rows.described
    text = described.get("text") or {}
    where = "Activation cache of" if described["rows"] == "activation cache" else "Held-out part of"
    return f"{where} {text.get('source')}, contexts of {described['context_length']} tokens"


def _member(subject: Subject, measurement: Measurement) -> Member:
    return Member(
        name=measurement.name,
        d_sae=subject.saved.dictionary.d_sae,
        l0=float(measurement.numbers["l0_mean"] or 0.0),
        values=dict(measurement.numbers),
        token_file=subject.out / TOKENS_FILE,
    )


def _family_measurement(
    family: Family, subjects: Sequence[Subject], rows: Rows, out: Path
) -> Measurement:
    hashes = [subject.saved.content_hash for subject in subjects]
    origin = subjects[0].saved.made_from
    widths = {member.d_sae for member in family.members}
    seen = (SEEN,) if rows.described.get("seen_in_training") else ()
    return Measurement(
        name=f"{len(family.members)} dictionaries",
        content_hash=hash_of(hashes),
        out=out,
        suite=FAMILY_SUITE,
        numbers=family.numbers,
        made_from={
            "model": origin.get("model"),
            "model_hash": origin.get("model_hash"),
            "hook_point": subjects[0].saved.hook_point,
            **rows.described,
            "dictionaries": hashes,
        },
        settings={"first_position": rows.first_position},
        facts={name: _definition(name, MEANINGS[name], "Numbers") for name in family.numbers},
        data={"family": family},
        rows={"dictionaries": family.rows()},
        title="Dark matter of a family of dictionaries",
        subtitle=f"{len(family.members)} dictionaries of {len(widths)} "
        f"width{'' if len(widths) == 1 else 's'} at {subjects[0].saved.hook_point} of "
        f"{origin.get('model')}. {_rows_text(rows)}.",
        notes=(*seen, *family.notes),
    )


SUITE = Suite(
    name="dark-matter",
    summary="Take apart what dictionaries do not explain: linear and nonlinear error, and what "
    "each is.",
    Config=DarkMatterConfig,
    measure=measure_dark_matter,
    definitions=lambda facts: list(facts.values()),
    charts=_charts,
    tables=lambda data: [table for result in data["further"] for table in result.tables],
    headline=tuple(prefix + name for name in SHOWN for prefix in ("", PURSUIT)),
    shown={
        "l0_mean": "L0",
        "fvu": "FVU",
        "fvu_nonlinear": "FVU\nnonl.",
        "error_r_squared": "R²\nerror",
        "error_explained": "pooled",
        "norm_r_squared": "R²\nnorm",
        "norm_test_nonlinear_error": "norm\ntest",
        "pursuit_fvu": "pursuit\nFVU",
        "pursuit_fvu_nonlinear": "FVU\nnonl.",
    },
    jointly=True,
)
FAMILY_SUITE = Suite(
    name="dark-matter-family",
    summary="What the dictionaries of one hook point show together.",
    Config=DarkMatterConfig,
    measure=measure_dark_matter,
    definitions=lambda facts: list(facts.values()),
    charts=lambda data: data["family"].charts,
    tables=lambda data: [data["family"].table()],
    headline=("asymptote", "asymptote_low", "asymptote_high", "mean_fvu_nonlinear"),
)
"""Defines the result of a family, which the suite writes beside those of its dictionaries."""
