"""The suite "supervised": find sites, write caches of a task, judge dictionaries."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import tyro

from saelab.errors import ConfigError

from ..suite import Suite
from .config import SupervisedConfig

CACHE_SPLIT = "train"


@dataclass(frozen=True, kw_only=True)
class SupervisedCommand:
    """Judge dictionaries on a task with known attributes, beside the best that labels can give."""

    dictionaries: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of saved dictionaries, or of runs that hold them. None: the supervised dictionaries
    and the floors alone."""
    find_sites: Path | None = None
    """Search the model's heads for the task's circuit, write the cross-sections to this JSON file,
    for --sites, and a page with heat maps beside it; nothing is judged."""
    circuit_prompts: int = 32
    """Prompts that each head is patched on in that search."""
    write_cache: Path | None = None
    """Write the task's activations at the sites of --sites (at those of --cross-section, where
    given) to one activation cache per site in this folder, for `saelab train task_saes`; nothing is
    judged."""
    cache_prompts: int = 20_000
    """Prompts in each of those caches (split "train")."""
    toys: Path | None = None
    """Run the two toy models and write their page to this folder; nothing is judged."""
    config: tyro.conf.OmitArgPrefixes[SupervisedConfig] = field(
        default_factory=SupervisedConfig, metadata={"flatten": True}
    )
    """Settings."""

    def __post_init__(self) -> None:
        modes = ("find_sites", "write_cache", "toys")
        given = [name for name in modes if getattr(self, name) is not None]
        problems = []
        if len(given) > 1:
            problems.append(f"{', '.join(given)} exclude one another: give one of them")
        if given and self.dictionaries:
            problems.append(f"{given[0]}: nothing is judged with it, so give no dictionaries")
        problems += [
            f"{name}: {getattr(self, name)} is below 2"
            for name in ("circuit_prompts", "cache_prompts")
            if getattr(self, name) < 2
        ]
        if self.write_cache is not None and self.config.sites is None:
            problems.append(
                "write_cache: which sites? give --sites FILE, as --find-sites FILE writes it"
            )
        if problems:
            raise ConfigError(problems)


def _run_action(command: SupervisedCommand) -> list[str] | None:
    """What the command asks for in place of an evaluation, and where it was written."""
    config = command.config
    if command.toys is not None:
        from .toys import run_toys

        return [f"report: {run_toys(command.toys)}"]
    if command.find_sites is not None:
        from .circuit import CircuitConfig, find_sites
        from .suite import load_model_and_task

        options = CircuitConfig(n_prompts=command.circuit_prompts, seed=config.prompt_seeds[0])
        path = command.find_sites
        # Refused before the model is loaded.
        if path.exists() and not config.overwrite:
            raise ConfigError(f"{path} exists already: add --overwrite to replace it")
        page = find_sites(path, *load_model_and_task(config), options)
        return [f"cross-sections: {path}", f"heat maps: {page}"]
    if command.write_cache is not None:
        caches = _write_caches(command.write_cache, config, command.cache_prompts)
        return [f"cache: {folder}" for folder in caches]
    return None


def _write_caches(out: Path, config: SupervisedConfig, n_prompts: int) -> list[Path]:
    """Write a task's activations at the sites of the settings' cross-sections, a cache per site."""
    from .sites import gather
    from .suite import load_model_and_task, sections_of
    from .task_cache import check_places, write_task_caches

    model, task = load_model_and_task(config)
    sections = sections_of(config, model, task, ())
    sites = list(dict.fromkeys(site for section in sections for site in section.sites))
    check_places(out, sites, overwrite=config.overwrite)
    seed = config.prompt_seeds[0]
    prompts = task.sample(n_prompts, CACHE_SPLIT, seed)
    return write_task_caches(
        out,
        model,
        task.name,
        prompts,
        gather(model, prompts, sites, batch_prompts=config.batch_prompts),
        split=CACHE_SPLIT,
        seed=seed,
        overwrite=config.overwrite,
    )


def _lazily(name: str) -> Any:
    """A function of `suite`, which is imported when it is called."""

    def call(*arguments: Any) -> Any:
        return getattr(import_module(".suite", __package__), name)(*arguments)

    return call


SUITE = Suite(
    name="supervised",
    summary="Judge dictionaries on a task with known attributes.",
    Config=SupervisedConfig,
    Command=SupervisedCommand,
    action=_run_action,
    folder=lambda config: config.folder,
    measure=_lazily("measure"),
    definitions=_lazily("definitions"),
    charts=_lazily("charts"),
    tables=_lazily("tables"),
    needs_dictionaries=False,
)
