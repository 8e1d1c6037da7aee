"""The suite "supervised": its settings, and what its command does beside judging dictionaries."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from saelab.config import Within, problems_in
from saelab.errors import ConfigError
from saelab.formats.files import remedy_when_full
from saelab.formats.lock import writer_lock

from ..suite import Suite, deferred


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """Which task and sites dictionaries are judged on, on how many prompts, and by what."""

    task: str = "ioi"
    """Task: ioi, greater_than, subject_verb_agreement or gendered_pronoun."""
    sites: Path | None = None
    """File of cross-sections, as `--find-sites` writes it. None: every position of the task at the
    hook points of the dictionaries given."""
    cross_section: tuple[str, ...] = ()
    """Names of the cross-sections to judge at. Empty: all of the file's."""
    n_fit: Annotated[int, Within(2)] = 5000
    """Prompts that the supervised dictionary is fitted to (split "train")."""
    n_interpret: Annotated[int, Within(2)] = 3000
    """Prompts that latents are interpreted on (split "validation")."""
    n_eval: Annotated[int, Within(2)] = 2000
    """Prompts that scores are computed on, with their counterfactuals."""
    eval_split: Literal["test", "unseen_frame"] = "test"
    """Split of those: other combinations of values, or a sentence that no fit has seen."""
    k: Annotated[tuple[int, ...], Within(1)] = (2, 4, 8, 16)
    """Numbers of latents that an edit may change."""
    greedy: Literal["joint", "free"] = "joint"
    """Moves of the greedy edit: a code goes to its value at the target (joint), or may also be only
    removed or only added (free)."""
    aware_active_only: bool = True
    """Whether edits by interpretation choose among active latents; else the literal first ones."""
    f1: Annotated[tuple[float, ...], Within(0, 1, low_open=True)] = (0.5, 0.6, 0.8)
    """F1 thresholds at which latents are counted."""
    f1_patch: Annotated[float, Within(0, 1, low_open=True)] = 0.6
    """F1 from which latents count as interpretable when codes are exchanged between prompts."""
    sweep: Annotated[tuple[float, ...], Within(0, 1, low_open=True)] = (0.2, 0.4, 0.6, 0.8)
    """F1 thresholds of the sweep that removes latents below or above them."""
    union_values: Annotated[int, Within(1)] = 10
    """Predicates in a union, at most."""
    skylines: tuple[Literal["mse", "mean"], ...] = ("mse", "mean")
    """Supervised dictionaries; the first one is the ceiling and decides the gate."""
    parametrisations: tuple[str, ...] = ("independent",)
    """How prompts are described to them; the first one is the ceiling's."""
    save_skylines: bool = False
    """Also save the supervised dictionaries, as ordinary ones with linear probes for an encoder, to
    the folder `dictionaries` beside the results."""
    judge_anyway: bool = False
    """Judge dictionaries also where the supervised dictionary itself fails."""
    prompt_seeds: tuple[int, ...] = (0,)
    """Seeds of the prompts; everything is measured once for each."""
    resamples: Annotated[int, Within(1)] = 1000
    """Resamples of the prompts for the confidence intervals."""
    model: str = "smollm2-135m"
    """The language model."""
    model_dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    """Dtype the model computes in."""
    device: str = "auto"
    """Device of the model: `auto`, `cpu`, `cuda`."""
    batch_prompts: Annotated[int, Within(1)] = 128
    """Prompts in one forward pass; memory grows with it, the numbers do not depend on it."""
    out: Path | None = None
    """Folder of the results. None: runs/supervised-TASK."""
    overwrite: bool = False
    """Replace existing results."""

    def __post_init__(self) -> None:
        problems = problems_in(self)
        problems += [
            f"{name}: name at least one"
            for name in ("k", "f1", "skylines", "parametrisations", "prompt_seeds")
            if not getattr(self, name)
        ]
        if self.cross_section and self.sites is None:
            problems.append(
                "cross_section: names are those of a file of sites; give it with --sites, or find "
                "sites with --find-sites"
            )
        if problems:
            raise ConfigError(problems)

    @property
    def folder(self) -> Path:
        """`out` with None resolved."""
        return self.out if self.out is not None else Path("runs") / f"supervised-{self.task}"


@dataclass(frozen=True, kw_only=True)
class SupervisedCommand:
    """Judge dictionaries on a task with known attributes, beside the best that labels can give."""

    dictionaries: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of saved dictionaries, or of runs that hold them. None: the supervised dictionaries
    and the floors alone."""
    find_sites: Path | None = None
    """Search the model's heads for the task's circuit, write the cross-sections to this JSON file,
    for --sites, and a page with heat maps beside it; nothing is judged."""
    circuit_prompts: Annotated[int, Within(2)] = 32
    """Prompts that each head is patched on in that search."""
    write_cache: Path | None = None
    """Write the task's activations at the sites of --sites (at those of --cross-section, where
    given) to one activation cache per site in this folder, for `saelab train task_saes`; nothing is
    judged."""
    cache_prompts: Annotated[int, Within(2)] = 20_000
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
        problems = problems_in(self)
        if len(given) > 1:
            problems.append(f"{', '.join(given)} exclude one another: give only one")
        if given and self.dictionaries:
            problems.append(f"{given[0]}: nothing is judged with it, so give no dictionaries")
        if self.write_cache is not None and self.config.sites is None:
            problems.append(
                "write_cache: which sites? give --sites FILE, as --find-sites FILE writes it"
            )
        if problems:
            raise ConfigError(problems)


def _run_action(command: SupervisedCommand) -> list[str] | None:
    """What the command asks for in place of an evaluation, and where it was written."""
    target = command.toys or command.find_sites or command.write_cache
    if target is None:
        return None
    with writer_lock(target):
        if command.toys is not None:
            from .toys import run_toys

            return [f"report: {run_toys(target)}"]
        if command.find_sites is not None:
            return _find_sites(target, command)
        with remedy_when_full("give the same command again with --overwrite"):
            return _write_caches(target, command)


def _find_sites(path: Path, command: SupervisedCommand) -> list[str]:
    # Refused before the model is loaded.
    if path.exists() and not command.config.overwrite:
        raise ConfigError(f"{path} exists already: add --overwrite to replace it")
    from .circuit import find_sites
    from .judge import load_model_and_task

    page = find_sites(
        path,
        *load_model_and_task(command.config),
        n_prompts=command.circuit_prompts,
        seed=command.config.prompt_seeds[0],
    )
    return [f"cross-sections: {path}", f"heat maps: {page}"]


def _write_caches(out: Path, command: SupervisedCommand) -> list[str]:
    """Write a task's activations at the sites of the settings' cross-sections, a cache per site."""
    from .judge import load_model_and_task, sections_of
    from .sites import gather
    from .task_cache import check_folders, write_task_caches

    config, seed = command.config, command.config.prompt_seeds[0]
    model, task = load_model_and_task(config)
    sections = sections_of(config, model, task, ())
    sites = list(dict.fromkeys(site for section in sections for site in section.sites))
    check_folders(out, sites, overwrite=config.overwrite)
    prompts = task.sample(command.cache_prompts, "train", seed)
    folders = write_task_caches(
        out,
        model,
        task.name,
        prompts,
        gather(model, prompts, sites, batch_prompts=config.batch_prompts),
        split="train",
        seed=seed,
        overwrite=config.overwrite,
    )
    return [f"cache: {folder}" for folder in folders]


SUITE = Suite(
    name="supervised",
    summary="Judge dictionaries on a task with known attributes.",
    Config=SupervisedConfig,
    Command=SupervisedCommand,
    action=_run_action,
    folder=lambda config: config.folder,
    measure=deferred(".supervised.judge", "measure"),
    definitions=deferred(".supervised.judge", "definitions"),
    charts=deferred(".supervised.judge", "charts"),
    tables=deferred(".supervised.judge", "tables"),
    needs_dictionaries=False,
)
