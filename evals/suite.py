"""What an evaluation suite is, and the one runner of all suites.

A suite says what it measures, what its numbers mean and which charts show them. The runner does the
rest: command line and terminal (`terminal.py`), result folders, loading, JSON, parquet and HTML.
A new suite is a folder with one `Suite` in it and one line in `evals/command.py`.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, make_dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar

import tyro

from saelab.cache.config import DataOverrides
from saelab.config import Within, problems_in, to_plain
from saelab.errors import ConfigError
from saelab.formats.chart import Chart
from saelab.formats.evaluation_result import (
    EvaluationResult,
    Table,
    write_evaluation_result,
    write_rows,
)
from saelab.formats.lock import writer_lock

from .definitions import Definition
from .kept import REPLACE, asked_of, existing_results

if TYPE_CHECKING:
    from saelab.dictionary import SavedDictionary

logger = logging.getLogger(__name__)

ConfigT = TypeVar("ConfigT")
CONTROLS = "Controls"
"""Section of what stands beside controls."""


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig(DataOverrides):
    """Settings of every suite that reads held-out text: what is put in place of what a dictionary
    recorded, and where the results go."""

    batch_contexts: Annotated[int, Within(1)] = 4
    """Contexts in one forward pass; memory grows with it. In bfloat16 the last digits depend on
    it: rounding goes with the shape of a batch."""
    out: Path | None = None
    """Folder for the results, one in it for each of several. None: `evals` in each dictionary."""
    overwrite: bool = False
    """Replace an existing result."""

    def __post_init__(self) -> None:
        if problems := [*problems_in(self), *self.problems()]:
            raise ConfigError(problems)

    def problems(self) -> list[str]:
        """What is wrong with settings beside one another, in words."""
        return []


@dataclass(frozen=True, kw_only=True)
class WithControls:
    """What a suite that is run on control dictionaries too has among its settings."""

    controls: tuple[Literal["random", "pca", "neurons", "random-model"], ...] = (
        "random",
        "pca",
        "neurons",
    )
    """Dictionaries that have learnt nothing, measured beside each sparse autoencoder: random
    directions at its densities, principal components, the hook point's own channels; and random
    directions on the same model with its weights in random order, which takes a pass of its own.
    Give `--controls` without a word for none."""

    def overrides(self) -> DataOverrides:
        """What stands in for what a dictionary recorded of its data."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ControlledConfig(WithControls, HeldOutConfig):
    """Settings of a suite that reads held-out text and is run on control dictionaries too."""

    def overrides(self) -> DataOverrides:
        """The settings themselves."""
        return self


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a suite measured on one dictionary, before anything is written."""

    name: str
    """Name of the dictionary, for people."""
    content_hash: str
    """Its content hash."""
    out: Path
    """Folder for the results."""
    numbers: Mapping[str, float | int | None]
    """The numbers by the names of their definitions; None: undefined."""
    made_from: Mapping[str, Any]
    """Names and content hashes of model, hook point and text."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What decided the numbers in addition to the settings of the suite."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What definitions name, such as the number of rows."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """What `Suite.charts` and `Suite.tables` draw from."""
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Per-item tables, each a parquet file: by what the rows are, columns by name."""
    written: tuple[str, ...] = ()
    """Per-item tables that were written row by row into `out`: by what the rows are."""
    suite: Suite[Any] | None = None
    """The suite that defines it, where another one runs: what dictionaries show together."""
    seed: int | None = None
    """Seed of everything random; None: the setting `seed`, where there is one."""
    title: str = ""
    """Heading of the page; empty: suite and dictionary."""
    subtitle: str = ""
    """What was evaluated on what, in a sentence."""
    notes: tuple[str, ...] = ()
    """What a reader should know, in sentences."""


@dataclass(frozen=True, kw_only=True)
class Suite(Generic[ConfigT]):
    """An evaluation suite: everything the runner, the report and the dashboard need of it."""

    name: str
    """Word typed after `saelab eval`; results are `<name>.json` with dashes as underscores."""
    summary: str
    """One line for the help."""
    Config: type[ConfigT]
    """Settings: a frozen dataclass; `out: Path | None` and `overwrite: bool` are the runner's."""
    measure: Callable[[Sequence[Path], Sequence[Path], Any], Iterable[Measurement]]
    """(dictionary folders, result folder of each, settings) -> a measurement for each result."""
    definitions: Callable[[Mapping[str, Any]], Sequence[Definition]] = itemgetter("definitions")
    """Facts of a measurement -> what its numbers mean, in reading order."""
    charts: Callable[[Mapping[str, Any]], Sequence[Chart]] = lambda data: data.get("charts", ())
    """Data of a measurement -> charts; a pure function."""
    tables: Callable[[Mapping[str, Any]], Sequence[Table]] = lambda data: data.get("tables", ())
    """Data of a measurement -> tables; a pure function."""
    headline: tuple[str, ...] = ()
    """Names of the numbers that matter most."""
    skyline: Mapping[str, str | float | int] = field(default_factory=dict)
    """By headline number: the best it could be, as another number of the result or a constant."""
    shown: Mapping[str, str] = field(default_factory=dict)
    """Headings of the terminal's table, by number. Empty: each result's first table is printed."""
    needs_dictionaries: bool = True
    """Whether it refuses to run without any."""
    groups: Callable[[Sequence[SavedDictionary], ConfigT], Sequence[Sequence[int]]] | None = None
    """(dictionaries, settings) -> indices of those that are compared with one another, so that no
    result of a group is kept without the others; None: each result stands alone."""
    serves: Mapping[str, Callable[[Any, Any], bool]] = field(default_factory=dict)
    """By setting: (value of a result, value asked for) -> whether that result serves as well."""
    together: Callable[[Mapping[Path, EvaluationResult], Any], Measurement | None] | None = None
    """(results of all dictionaries by folder, settings) -> what they show together, a result of its
    own suite; None: nothing. It is written again whenever the command runs to its end."""
    finish: Callable[[Sequence[EvaluationResult], Any], None] | None = None
    """(results, settings): what more the command prints or writes at its end."""
    Command: type | None = None
    """Dataclass its command line is read into; None: one of `dictionaries` and `config`."""
    action: Callable[[Any], Sequence[str] | None] | None = None
    """Command -> lines about what it did instead of an evaluation; None: it asks for one."""
    folder: Callable[[ConfigT], Path] | None = None
    """Settings -> folder of the one result of all dictionaries; None: each has a result."""
    gathers: bool = False
    """Whether that one result is put together from results that are kept: then `measure` says
    itself which older one may be replaced."""

    def run(
        self, folders: Sequence[Path], config: ConfigT, *, pages: bool = True
    ) -> list[EvaluationResult]:
        """The results of `evaluate`, in the order of the folders."""
        return [result for _, result in evaluate(self, folders, config, pages=pages)]

    @property
    def stem(self) -> str:
        """Name of its files, without suffix."""
        return self.name.replace("-", "_")

    def command(self) -> type:
        """The dataclass that its command line is read into: dictionaries and settings."""
        if self.Command is not None:
            return self.Command
        config: Any = tyro.conf.OmitArgPrefixes[self.Config]
        made = make_dataclass(
            f"{self.Config.__name__.removesuffix('Config')}Command",
            [
                ("dictionaries", tyro.conf.Positional[tuple[Path, ...]], field(default=())),
                (
                    "config",
                    config,
                    field(default_factory=self.Config, metadata={"flatten": True}),
                ),
            ],
            frozen=True,
            kw_only=True,
        )
        made.__doc__ = self.summary
        return made


def more_losses_than_tokens(n_loss_tokens: int | None, n_tokens: int) -> list[str]:
    """Why losses cannot be measured on more tokens than are evaluated, in words, where they are."""
    if n_loss_tokens is None or n_loss_tokens <= n_tokens:
        return []
    return [
        f"n_loss_tokens: {n_loss_tokens} exceeds n_tokens = {n_tokens}; losses are about six "
        "times as slow as rows: give more n_tokens too"
    ]


def not_positive(name: str, values: Sequence[float]) -> list[str]:
    """What is wrong with a setting of one or more different positive numbers, in words."""
    different = bool(values) and len(set(values)) == len(values)
    problems = [] if different else [f"{name}: {values} must be one or more different numbers"]
    return problems + [
        f"{name}: {value} is not a positive number"
        for value in values
        if not 0 < value < float("inf")
    ]


def deferred(module: str, function: str) -> Callable[..., Any]:
    """A function of a module of `saelab.evals`, imported when it is first called.

    A suite names what needs torch this way, so that commands list its options at once.
    """

    def call(*arguments: Any) -> Any:
        return getattr(importlib.import_module(module, __package__), function)(*arguments)

    return call


def evaluate(
    suite: Suite[ConfigT], folders: Sequence[Path], config: ConfigT, *, pages: bool = True
) -> list[tuple[Path, EvaluationResult]]:
    """Run a suite on dictionaries and write a result, its rows and its page for each.

    The same call again keeps existing results: a dictionary that has a complete result of the same
    settings and of the same content is not measured a second time.

    Args:
        pages: whether to write pages, 5 MB each; without, an older page is removed.

    Returns:
        The file and content of each result: those kept, then those measured, or where each
        dictionary has one, in the order of the dictionaries.

    Raises:
        ConfigError: a result of other settings or of another dictionary, not to be overwritten.
        SaelabError: whatever the suite refuses.
    """
    from .subjects import result_folders

    if suite.folder is not None:
        return [_evaluate_together(suite, folders, config, page=pages)]
    outs: list[Path] = []
    if folders or suite.needs_dictionaries:
        outs = result_folders(folders, getattr(config, "out", None))
    with ExitStack() as locks:
        # Before looking at what is there: another process may be about to write it.
        for out in sorted(set(outs)):
            locks.enter_context(writer_lock(out / f"{suite.stem}.json"))
        controls: dict[Path, Path] = {}
        kinds = config.controls if isinstance(config, WithControls) else ()
        if isinstance(config, WithControls) and kinds:
            from .controls import make_controls

            _kept(suite, folders, outs, config)  # refuses before anything is built
            controls = make_controls(folders, outs, kinds, config.overrides())
        chosen = [*folders, *controls], [*outs, *controls.values()]
        written = _written(suite, *chosen, config, paged={*outs} if pages else set())
        if controls:
            _put_beside_controls(suite, folders, outs, written, kinds, pages=pages)
    order = {out / f"{suite.stem}.json": index for index, out in enumerate(outs)}
    hidden = {out / f"{suite.stem}.json" for out in controls.values()}
    ordered = sorted(written.keys() - hidden, key=lambda path: order.get(path, len(order)))
    return [(path, written[path]) for path in ordered]


def _put_beside_controls(
    suite: Suite[Any],
    folders: Sequence[Path],
    outs: Sequence[Path],
    written: dict[Path, EvaluationResult],
    kinds: Sequence[str],
    *,
    pages: bool,
) -> None:
    """Add to each result what its controls have for headline numbers, and write it again."""
    from .controls import beside_controls, control_folder, frozen_twins

    for out, twins in zip(outs, frozen_twins(folders), strict=True):
        path = out / f"{suite.stem}.json"
        files = {kind: control_folder(out, kind) / "evals" / path.name for kind in kinds}
        files |= {kind: outs[index] / path.name for kind, index in twins.items()}
        controls = {kind: written[file] for kind, file in files.items() if file in written}
        if not controls:
            continue
        result = beside_controls(written[path], controls, suite.skyline)
        if to_plain(result.tables) != to_plain(written[path].tables):
            written[path] = write_evaluation_result(path, result)
            _write_page(path.with_suffix(".html"), result, wanted=pages)


def _written(
    suite: Suite[ConfigT],
    folders: Sequence[Path],
    outs: Sequence[Path],
    config: ConfigT,
    *,
    paged: set[Path],
) -> dict[Path, EvaluationResult]:
    """The results by file: those that need no measuring, then those measured."""
    asked, kept = _kept(suite, folders, outs, config)
    for out, result in kept.items():
        logger.info("kept %s: same settings, same dictionary", out / f"{suite.stem}.json")
        _write_page(out / f"{suite.stem}.html", result, wanted=out in paged)
    left = [index for index, out in enumerate(outs) if out not in kept]
    written = {out / f"{suite.stem}.json": result for out, result in kept.items()}
    if left or not folders:
        chosen = [folders[index] for index in left], [outs[index] for index in left]
        for measured in suite.measure(*chosen, config):
            page = measured.out in paged or (bool(paged) and measured.out not in outs)
            path, result = _write_asked(suite, measured, config, asked, page=page)
            written[path] = result
    if suite.together is not None:
        results = {out: written[out / f"{suite.stem}.json"] for out in outs}
        measured = suite.together(results, config)
        if measured is not None:
            path, result = _write_asked(suite, measured, config, asked, page=bool(paged))
            written[path] = result
    return written


def _kept(
    suite: Suite[Any], folders: Sequence[Path], outs: Sequence[Path], config: Any
) -> tuple[dict[Path, dict[str, Any]], dict[Path, EvaluationResult]]:
    """What is asked for each result folder, and the results that need no measuring.

    Raises:
        ConfigError: results that are in the way.
    """
    asked: dict[Path, dict[str, Any]] = {}
    kept: dict[Path, EvaluationResult] = {}
    problems: list[str] = []
    for settings, hashes in _asked_by_group(suite, folders, outs, config):
        asked |= dict.fromkeys(hashes, settings)
        if not getattr(config, "overwrite", False):
            usable, obstacles = existing_results(suite, hashes, settings)
            problems += obstacles
            kept |= usable if len(usable) == len(hashes) else {}
    if problems:
        raise ConfigError(problems)
    return asked, kept


def _write_asked(
    suite: Suite[Any],
    measured: Measurement,
    config: Any,
    asked: Mapping[Path, dict[str, Any]],
    *,
    page: bool,
) -> tuple[Path, EvaluationResult]:
    by = measured.suite or suite
    settings = asked.get(measured.out) or asked_of(config)
    return write_result(
        by, measured, replace(result_of(by, measured, config), asked=settings), page=page
    )


def _evaluate_together(
    suite: Suite[ConfigT], folders: Sequence[Path], config: ConfigT, *, page: bool
) -> tuple[Path, EvaluationResult]:
    """Run a suite that has one result for all dictionaries."""
    assert suite.folder is not None
    path = suite.folder(config) / f"{suite.stem}.json"
    if path.parent.exists() and not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is a file, not a folder: give another --out")
    with writer_lock(path):
        if path.exists() and not suite.gathers and not getattr(config, "overwrite", False):
            raise ConfigError(f"{path} exists already: {REPLACE}")
        (measured,) = suite.measure(folders, [path.parent], config)
        return write_result(suite, measured, result_of(suite, measured, config), page=page)


def _asked_by_group(
    suite: Suite[Any], folders: Sequence[Path], outs: Sequence[Path], config: Any
) -> Iterator[tuple[dict[str, Any], dict[Path, str]]]:
    """What is asked for each group of dictionaries, and their content hashes by result folder."""
    from saelab.dictionary import load_dictionary

    if suite.groups is None:
        for folder, out in zip(folders, outs, strict=True):
            exists = (out / f"{suite.stem}.json").exists()
            yield asked_of(config), {out: load_dictionary(folder).content_hash if exists else ""}
        return
    loaded = [load_dictionary(folder) for folder in folders]
    for group in suite.groups(loaded, config):
        hashes = {outs[index]: loaded[index].content_hash for index in group}
        yield asked_of(config, hashes.values()), hashes


def result_of(suite: Suite[ConfigT], measured: Measurement, config: ConfigT) -> EvaluationResult:
    """The result of a measurement: numbers with their definitions, charts, tables.

    Raises:
        KeyError: a number without a definition, which is a mistake of the suite.
    """
    settings = {**asked_of(config), **to_plain(measured.settings)}
    definitions = {d.name: d for d in suite.definitions(measured.facts)}
    unknown = set(measured.numbers) - set(definitions)
    if unknown:
        raise KeyError(f"suite {suite.name} defines no number {sorted(unknown)}")
    metrics = tuple(
        definition.measured(measured.numbers[name])
        for name, definition in definitions.items()
        if name in measured.numbers
    )
    return EvaluationResult(
        suite=suite.stem,
        dictionary_name=measured.name,
        dictionary_hash=measured.content_hash,
        settings=settings,
        made_from=dict(measured.made_from),
        metrics=metrics,
        title=measured.title or f"{suite.name.capitalize()} evaluation of {measured.name}",
        subtitle=measured.subtitle,
        headline=tuple(name for name in suite.headline if name in measured.numbers),
        charts=tuple(suite.charts(measured.data)),
        tables=tuple(suite.tables(measured.data)),
        notes=measured.notes,
        item_files={
            items: f"{suite.stem}_{items}.parquet" for items in (*measured.rows, *measured.written)
        },
        seed=settings.get("seed") if measured.seed is None else measured.seed,
    )


def write_result(
    suite: Suite[Any], measured: Measurement, result: EvaluationResult, *, page: bool
) -> tuple[Path, EvaluationResult]:
    """Write rows, page and, last, the JSON, so that a result that exists is complete."""
    out = measured.out
    out.mkdir(parents=True, exist_ok=True)
    for items, columns in measured.rows.items():
        write_rows(out / result.item_files[items], columns)
    _write_page(out / f"{suite.stem}.html", result, wanted=page)
    path = out / f"{suite.stem}.json"
    written = write_evaluation_result(path, result)
    logger.info("wrote %s", path)
    return path, written


def _write_page(path: Path, result: EvaluationResult, *, wanted: bool) -> None:
    """Write a page; where it is not wanted, remove the one of an older result."""
    if wanted:
        from saelab.report.result_page import write_result_page

        write_result_page(path, result)
    else:
        path.unlink(missing_ok=True)
