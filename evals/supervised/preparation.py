"""What comes before judging: finding the sites of a task, caching its activations, the toys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saelab.errors import ConfigError
from saelab.formats.manifest import new_manifest, write_manifest
from saelab.model.language_model import LanguageModel, load_language_model
from saelab.report import Report
from saelab.report.circuit_figures import circuit_heat_maps
from saelab.report.supervised_toy_figures import TOY_FIGURES

from .circuit import CircuitConfig, effects_table, find_circuit, write_circuit
from .config import SupervisedConfig
from .sites import gather, write_cross_sections
from .task_cache import check_places, write_task_caches
from .tasks import load_task
from .tasks.interface import Task
from .toys import OcclusionToyOptions, SplittingToyOptions, occlusion_toy, splitting_toy

CACHE_SPLIT = "train"
TOYS_PAGE = "toys.html"
TOYS_FILE = "toys.json"
TOYS_KIND = "supervised_toys"
TOY_CASES = tuple((ratio, l1) for l1 in (0.1, 0.2, 0.3, 0.5) for ratio in (1.0, 1.2, 1.5))
"""Ratio of norms and L1 weight of the occlusion toys that are run."""


def find_sites(path: Path, config: SupervisedConfig, n_prompts: int) -> Path:
    """Search a model's heads for a task's circuit; returns the page with the heat maps.

    Args:
        path: JSON file for the cross-sections; the effects go beside it as `NAME.circuit.json`.
        config: task and model; other settings are not used.
        n_prompts: prompts that each head is patched on.

    Raises:
        ConfigError: the file exists and may not be overwritten, or the task declares no roles.
        ModelError: a model that cannot do the task.
    """
    if path.exists() and not config.overwrite:
        raise ConfigError(f"{path} exists already: add --overwrite to replace it")
    model, task = _load(config)
    options = CircuitConfig(n_prompts=n_prompts, seed=config.prompt_seeds[0])
    circuit = find_circuit(model, task, options)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_circuit(path.with_suffix(".circuit.json"), circuit, options)
    page = write_circuit_page(path.with_suffix(".html"), effects_table(circuit))
    write_cross_sections(
        path,
        circuit.cross_sections,
        model=model.name,
        task=task.name,
        found_by={"n_prompts": n_prompts, "seed": options.seed},
    )
    return page


def write_circuit_page(path: Path, circuit: dict[str, Any]) -> Path:
    """The page of a circuit search: one heat map per role."""
    report = Report(
        f"Heads of {circuit['model']} that do {circuit['task']}",
        f"Mean metric of the clean runs: {circuit['clean_metric']:.3f}.",
    )
    report.add_figures(circuit_heat_maps(circuit))
    report.add_table(
        "Heads by role, strongest first",
        ["role", "edited attributes", "position", "prompts", "effect of the whole stream", "heads"],
        [
            [
                role["name"],
                "+".join(role["edit"]),
                role["position"],
                role["n_prompts"],
                role["whole"],
                ", ".join(f"{layer}.{head}" for layer, head in role["heads"]) or "none",
            ]
            for role in circuit["roles"]
        ],
    )
    return report.write(path)


def write_caches(out: Path, config: SupervisedConfig, n_prompts: int) -> list[Path]:
    """Write a task's activations at the sites of the settings' cross-sections, a cache per site.

    Raises:
        ConfigError: no sites; a cache that is there and may not be overwritten.
        ArtifactError: a file of sites that is not usable, or something else where a cache would go.
        ModelError: a site that the model does not have.
    """
    from .suite import sections_of

    model, task = _load(config)
    sections = sections_of(config, model, task, ())
    sites = list(dict.fromkeys(site for section in sections for site in section.sites))
    check_places(out, sites, overwrite=config.overwrite)
    seed = config.prompt_seeds[0]
    prompts = task.sample(n_prompts, CACHE_SPLIT, seed)
    activations = gather(model, prompts, sites, batch_prompts=config.batch_prompts)
    return write_task_caches(
        out,
        model,
        task.name,
        prompts,
        activations,
        split=CACHE_SPLIT,
        seed=seed,
        overwrite=config.overwrite,
    )


def _load(config: SupervisedConfig) -> tuple[LanguageModel, Task]:
    model = load_language_model(config.model, dtype=config.model_dtype, device=config.device)
    return model, load_task(config.task, model)


def run_toys(out: Path) -> Path:
    """Run both toy models at the sizes of the golden tables; returns their page."""
    splitting = splitting_toy(SplittingToyOptions())
    occluded: dict[str, list[Any]] = {
        name: [] for name in ("ratio", "l1", "threshold", "set", "share", "l0")
    }
    for ratio, l1 in TOY_CASES:
        found = occlusion_toy(OcclusionToyOptions(ratio=ratio, l1=l1))
        for threshold, shares in found.share_found.items():
            for kind, share in shares.items():
                row = (ratio, l1, threshold, kind, share, found.l0)
                for name, value in zip(occluded, row, strict=True):
                    occluded[name].append(value)
    data = {
        "splitting_toy": {
            name: [getattr(one, name) for one in splitting]
            for name in ("penalty", "ideal", "random", "ideal_scale", "ideal_bias")
        },
        "occlusion_toy": occluded,
    }
    out.mkdir(parents=True, exist_ok=True)
    about = new_manifest(TOYS_KIND, seed=None, config={}, made_from={})
    write_manifest(out / TOYS_FILE, about | data)
    report = Report(
        "Two toy models of what sparse autoencoders do to attributes",
        "Over-splitting and occlusion, after Makelov, Lange & Nanda (arXiv 2405.08366).",
    )
    report.add_figures([draw(data[name]) for name, draw in TOY_FIGURES.items()])
    return report.write(out / TOYS_PAGE)
