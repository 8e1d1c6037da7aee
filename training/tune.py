"""`saelab tune METHOD --cache CACHE`: a method's settings by successive halving, as a recipe.

In a rung all candidates that are left learn side by side from one stream, each from its start,
since schedules go by the length of a run. The best one in `keep_one_in` goes on to the next rung,
which is as many times longer and has one seed more. They are judged by the last rows of the cache
in reading order, which none trains on: text of its own, and not what evaluations read. FVU falls
as L0 grows, and not every method meets its k, so what is compared is FVU · (L0 / k)^0.27.
"""

from __future__ import annotations

import itertools
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from saelab.cache.aligned import AlignedCaches
from saelab.cache.cache_stream import CacheStream
from saelab.cache.reader import ActivationCache
from saelab.config import Within, from_plain, parse_arguments, problems_in, to_plain, to_yaml
from saelab.errors import ActivationError, ConfigError, did_you_mean
from saelab.formats.files import hash_of, remedy_when_full, remove_leftovers, write_bytes
from saelab.formats.lock import writer_lock
from saelab.formats.manifest import new_manifest, read_manifest, require_fields, write_manifest
from saelab.model.devices import resolve_device
from saelab.stats.metrics import batch_fvu, mean_l0
from saelab.stats.spread import spread_of

from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .config import TrainConfig
from .interface import StepOutput
from .learner import Learner
from .loop import TrainingLoop
from .methods import METHODS
from .run import build_learners, open_fitting_cache
from .run_folder import CHECKPOINT_FOLDER, deciding_settings

logger = logging.getLogger(__name__)

KIND, FILE, RECIPE_FILE = "tuning", "tuning.json", "recipe.yaml"
MOST_VARIED, MOST_CANDIDATES = 6, 200
L0_POWER = 0.27
"""Of L0, with which FVU of TopK falls between k 16 and 64 (docs/results.md)."""
FARTHEST_L0 = 2.0
"""Factor between L0 and k beyond which a candidate is not compared at all."""

Rung = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TuneCommand:
    """Find a method's settings by successive halving, and write them as a recipe."""

    method: tyro.conf.Positional[str]
    """The training method."""
    vary: tuple[str, ...] = ()
    """Settings with the values to try, as `learning_rate=1e-3,3e-3 auxiliary.weight=0,0.1`: the
    method's own, or `optimizer.…`; six at most. None given: learning rate, warm-up and weight of
    the auxiliary loss around their defaults."""
    rungs: Annotated[int, Within(1)] = 3
    """Rounds of training, the last one of the full length and with all seeds."""
    keep_one_in: Annotated[int, Within(2)] = 3
    """Candidates of a rung to one that goes on; the next rung is as many times longer."""
    held_out_rows: Annotated[int, Within(2)] = 8192
    """Rows at the end of the cache that candidates are judged by and do not train on."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: TrainConfig(out=Path("runs/tune"), seeds=(0, 1, 2)),
        metadata={"flatten": True},
    )
    """Settings that all candidates share; `methods` is the method that is tuned."""
    resume: bool = False
    """Go on with the tuning in `--out` that was interrupted."""
    overwrite: bool = False
    """Delete the tuning in `--out` and start over."""

    def __post_init__(self) -> None:
        problems, config = problems_in(self), self.config
        if self.method not in METHODS:
            problems.append(f"unknown method {self.method!r}; {did_you_mean(self.method, METHODS)}")
        if len(config.d_sae) != 1 or len(config.k) != 1:
            problems.append("tuning takes one d_sae and one k: tune each apart")
        if config.layers:
            problems.append("tuning takes one hook point: leave layers out")
        if config.cache is None:
            problems.append("candidates share the rows of a cache: give --cache")
        if config.error_component is not None or config.init_from is not None:
            problems.append("error_component and init_from play no part in tuning: leave them out")
        if self.resume and self.overwrite:
            problems.append("--resume and --overwrite exclude each other: give one of them")
        if problems:
            raise ConfigError(problems)


CONFIG = TuneCommand


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    from rich.console import Console
    from rich.table import Table

    command = parse_arguments(TuneCommand, arguments, program="saelab tune")
    for rung in tune(command)["rungs"]:
        title = f"{rung['n_tokens']:,} rows, seeds {', '.join(map(str, rung['seeds']))}"
        table = Table(title=title)
        for heading in ("candidate", "FVU", "L0", "silent", "score"):
            table.add_column(heading, overflow="fold")
        for name, figures in rung["candidates"].items():
            table.add_row(name, *_shown(figures))
        Console().print(table)
    print(f"recipe: {command.config.out / RECIPE_FILE}")


def tune(command: TuneCommand) -> dict[str, Any]:
    """Find the best candidate and write its recipe; the content of `tuning.json`.

    Raises:
        SaelabError: in the words of what went wrong; finished rungs are kept.
    """
    config = replace(command.config, methods=(command.method,))
    candidates = candidates_of(config, command.vary or usual(config))
    kept_back, out = command.held_out_rows, config.out
    with writer_lock(out), remedy_when_full("go on with --resume"):
        cache = open_fitting_cache(config, verify=None)
        assert cache is not None
        if cache.n_rows - kept_back < config.batch_rows:
            raise ConfigError(
                f"held_out_rows = {kept_back} leaves less than one batch of {config.batch_rows} of "
                f"the cache's {cache.n_rows} rows: lower it, or cache more"
            )
        settings = {
            **{name: getattr(command, name) for name in ("rungs", "keep_one_in", "held_out_rows")},
            "candidates": list(candidates),
            "settings": deciding_settings(to_plain(config)),
        }
        content = new_manifest(
            KIND, seed=config.data_seed, config=settings, made_from=cache.provenance()
        )
        content = _begun(command, content | {"status": "running", "rungs": []})
        done: list[Rung] = content["rungs"]
        while len(done) < command.rungs:
            left = _left(candidates, done, command.keep_one_in, command.rungs - 1 - len(done))
            logger.info("rung %d: %d candidates", len(done) + 1, len(left))
            done.append(_rung(left, cache, kept_back, hash_of([settings, len(done)])))
            write_manifest(out / FILE, content)
        shutil.rmtree(out / CHECKPOINT_FOLDER, ignore_errors=True)
        best = next(iter(done[-1]["candidates"]))
        write_bytes(out / RECIPE_FILE, _recipe(candidates[best], done[-1], kept_back).encode())
        return write_manifest(out / FILE, content | {"status": "complete", "best": best})


def usual(config: TrainConfig) -> tuple[str, ...]:
    """What is varied where nothing was named: values around the method's defaults."""
    options = getattr(config.options, config.methods[0])
    rate, weight = options.learning_rate or config.optimizer.learning_rate, options.auxiliary.weight
    rates = f"learning_rate={rate / 2:g},{rate:g},{2 * rate:g}"
    weights = f"auxiliary.weight=0,{weight:g},{3 * weight:g}"
    varied = rates, "optimizer.warmup_fraction=0,0.05", weights
    return varied[:2] if options.auxiliary.kind == "none" else varied


def candidates_of(config: TrainConfig, vary: Sequence[str]) -> dict[str, TrainConfig]:
    """Every combination of the values, by what it says.

    Raises:
        ConfigError: no such setting or value, too many of them, or nothing to compare.
    """
    pairs = [each.partition("=") for each in vary]
    names = [name.strip().replace("-", "_") for name, _, _ in pairs]
    values = [[value.strip() for value in each.split(",")] for _, _, each in pairs]
    count = math.prod(map(len, values))
    if len(set(names)) != len(names) or len(names) > MOST_VARIED:
        raise ConfigError(f"vary: {', '.join(names)}: give at most {MOST_VARIED}, each once")
    if not 2 <= count <= MOST_CANDIDATES:
        raise ConfigError(
            f"vary gives {count} candidates; expected 2 to {MOST_CANDIDATES}: give values as "
            "`learning_rate=1e-3,3e-3`"
        )
    candidates = {}
    for chosen in itertools.product(*values):
        plain, said = to_plain(config), []
        for name, value in zip(names, chosen, strict=True):
            *above, last = name.split(".")
            of_method = above[:1] != ["optimizer"]
            inside: Any = plain["options"][config.methods[0]] if of_method else plain
            for part in above:
                inside = inside.get(part)
                if not isinstance(inside, dict):
                    raise ConfigError(f"vary: {part!r} in {name!r} holds no settings")
            inside[last] = value
            said.append(f"{name}={value}")
        candidate = from_plain(TrainConfig, plain, f"vary {' '.join(said)}")
        if candidate in candidates.values():
            raise ConfigError(f"vary gives {' '.join(said)} twice: give each value once")
        candidates[" ".join(said)] = candidate
    return candidates


def _begun(command: TuneCommand, new: dict[str, Any]) -> dict[str, Any]:
    """The record to go on with: the one that lies there where it is resumed, else the new one."""
    out, ours = command.config.out, {FILE, RECIPE_FILE, CHECKPOINT_FOLDER}
    file = out / FILE
    remove_leftovers(out)
    if command.resume:
        known = read_manifest(file, KIND)
        require_fields(known, {"config": dict, "made_from": dict, "rungs": list}, file)
        if any(hash_of(known[name]) != hash_of(new[name]) for name in ("config", "made_from")):
            raise ConfigError(
                f"{out} was tuned with other settings or on another cache: resume with the same "
                "command, or give another --out"
            )
        return known
    there = {entry.name for entry in out.iterdir()} if out.exists() else set()
    if there - ours or (FILE in there and not command.overwrite):
        what = f"files that are no tuning's ({min(there - ours)})" if there - ours else "a tuning"
        raise ConfigError(
            f"{out} already holds {what}: give another --out, or where it is a tuning --resume to "
            "go on with it, --overwrite to delete it"
        )
    (out / RECIPE_FILE).unlink(missing_ok=True)
    shutil.rmtree(out / CHECKPOINT_FOLDER, ignore_errors=True)
    return write_manifest(file, new)


def _left(
    candidates: dict[str, TrainConfig], done: list[Rung], keep_one_in: int, to_go: int
) -> dict[str, TrainConfig]:
    """The candidates of the next rung, with its length and seeds; `to_go` are to follow it."""
    names = list(done[-1]["candidates"] if done else candidates)
    if done:
        # Two at least, so that the last rung compares something.
        names = names[: max(2, math.ceil(len(names) / keep_one_in))]
    config = candidates[names[0]]
    rows = math.ceil(config.n_tokens / keep_one_in**to_go)
    seeds = config.seeds[: max(1, len(config.seeds) - to_go)]
    return {name: replace(candidates[name], n_tokens=rows, seeds=seeds) for name in names}


def _rung(
    configs: dict[str, TrainConfig],
    cache: ActivationCache | AlignedCaches,
    held_out_rows: int,
    settings_hash: str,
) -> Rung:
    """Train candidates side by side; what they came to, the best one first."""
    first, kept = next(iter(configs.values())), cache.n_rows - held_out_rows
    torch.manual_seed(first.data_seed)
    with_gradients = bool(first.methods_that_need_gradients())
    stream = CacheStream(
        cache, first.batch_rows, first.data_seed, with_gradients=with_gradients, n_rows=kept
    )
    device = resolve_device(first.device)
    learners = {name: build_learners(each, stream, device) for name, each in configs.items()}
    everyone = list(itertools.chain(*learners.values()))
    loop = RungLoop(first, stream, everyone, settings_hash)
    loop.run()
    normalisation = loop.parts[None].normalisation
    if everyone[0].method.needs_calibration:
        n_batches = -(-first.calibration_rows // first.batch_rows)
        rows = torch.cat([stream.next_batch().activations for _ in range(n_batches)])
        for learner in loop.learners:
            learner.method.calibrate(normalisation.apply(rows.to(device)))
    held_out = cache.rows(torch.arange(kept, cache.n_rows), with_gradients=False)
    inputs = held_out.activations.to(device)
    targets = inputs if held_out.targets is None else held_out.targets.to(device)

    @torch.no_grad()
    def judged(learner: Learner) -> dict[str, float | None]:
        none: dict[str, float | None] = {"fvu": None, "l0": None, "silent": None}
        if learner not in loop.learners:
            return none
        dictionary = learner.method.to_dictionary(normalisation)
        codes = dictionary.encode(inputs)
        reconstruction = dictionary.decode(codes)
        if not bool(reconstruction.isfinite().all()):
            return none
        silent = float((codes.firing_counts() == 0).double().mean())
        return {"fvu": batch_fvu(targets, reconstruction), "l0": mean_l0(codes), "silent": silent}

    figures = {n: _figures([judged(each) for each in of], first.k[0]) for n, of in learners.items()}
    ranked = sorted(figures, key=lambda n: math.inf if (s := figures[n]["score"]) is None else s)
    if figures[ranked[0]]["score"] is None:
        raise ConfigError("no candidate has come near its k: vary other values, or train longer")
    of_each = {name: figures[name] for name in ranked}
    return {"n_tokens": first.n_tokens, "seeds": list(first.seeds), "candidates": of_each}


def _figures(seeds: list[dict[str, float | None]], k: int) -> dict[str, Any]:
    """The figures by seed, and the score: None where a seed diverged or is far from its k."""
    ratios = [(seed["fvu"], (seed["l0"] or 0.0) / k) for seed in seeds]
    near = [(f, r) for f, r in ratios if f is not None and 1 / FARTHEST_L0 <= r <= FARTHEST_L0]
    scores = [fvu * ratio**L0_POWER for fvu, ratio in near]
    score = math.fsum(scores) / len(scores) if len(scores) == len(seeds) else None
    return {**{name: [seed[name] for seed in seeds] for name in seeds[0]}, "score": score}


class RungLoop(TrainingLoop):
    """The loop over candidates, in which one that diverges costs the others nothing."""

    def __init__(
        self, config: TrainConfig, stream: CacheStream, learners: list[Learner], settings_hash: str
    ):
        super().__init__(config, stream, learners, (), self._save)
        self.keys = {learner: f"{index:04}" for index, learner in enumerate(learners)}
        self.folder = config.out / CHECKPOINT_FOLDER / settings_hash[:12]
        self.settings_hash = settings_hash
        saved = load_checkpoint(self.folder, settings_hash)
        if saved is not None:
            stream.restore(saved.stream)
            self.step = saved.step
            self.learners = [each for each in learners if self.keys[each] in saved.learners]
            for learner in self.learners:
                learner.restore(saved.learners[self.keys[learner]])

    def _take_step(self) -> list[StepOutput]:
        outputs = super()._take_step()
        broken = [each for each in self.learners if each.first_not_finite() is not None]
        for learner in broken:
            logger.warning("%s diverged at step %d and is left out", learner.spec.name, self.step)
        self.learners = [each for each in self.learners if each not in broken]
        if not self.learners:
            raise ActivationError("every candidate diverged: try lower learning rates")
        return outputs

    def _log_step(self, outputs: list[StepOutput]) -> str:
        return f"{len(outputs)} dictionaries"

    def _save(self, step: int) -> None:
        states = {self.keys[learner]: learner.state() for learner in self.learners}
        checkpoint = Checkpoint(step, self.settings_hash, self.stream.state(), states)
        save_checkpoint(self.folder, checkpoint)


def _shown(figures: dict[str, Any]) -> list[str]:
    """FVU, L0, share of silent latents, and score, as text."""
    texts = []
    for name, digits in (("fvu", 4), ("l0", 1), ("silent", 3)):
        spread = spread_of(figures[name])
        mean = "diverged" if spread.mean is None else f"{spread.mean:.{digits}f}"
        texts.append(mean if spread.sd is None else f"{mean} ± {spread.sd:.{digits}f}")
    return [*texts, "none" if figures["score"] is None else f"{figures['score']:.4f}"]


def _recipe(best: TrainConfig, last: Rung, held_out_rows: int) -> str:
    """The best settings as YAML, under what speaks for them."""
    plain, default, (method,) = to_plain(best), to_plain(TrainConfig()), best.methods
    settings = {key: value for key, value in plain.items() if value != default[key]}
    settings |= {"methods": [method], "optimizer": plain["optimizer"]}
    settings["options"] = {method: plain["options"][method]}
    for name in ("out", "cache", "seeds"):
        settings.pop(name, None)
    lines = [
        f"# {method} as `saelab tune` found it: {last['n_tokens']:,} rows, {len(last['seeds'])} "
        f"seeds, judged by {held_out_rows:,} rows of the cache that were not trained on.",
        "# The last rung: FVU, L0, share of silent latents, score.",
        *(f"# {name}: {', '.join(_shown(of))}" for name, of in last["candidates"].items()),
    ]
    return "\n".join([*lines, to_yaml(settings)])
