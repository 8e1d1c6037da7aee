"""A training run as a folder: opened or resumed, trained, and turned into dictionaries.

* `run.json`       kind, config, provenance, status, the dictionaries with their final figures
* `metrics.jsonl`  a line per dictionary and logging step
* `checkpoint/`    the newest checkpoint
* `dictionaries/`  one folder each, written at the end
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.cache.aligned import AlignedCaches, open_caches
from saelab.cache.cache_stream import CacheStream, ErrorStream
from saelab.cache.model_stream import ModelStream
from saelab.cache.reader import ActivationCache, open_cache
from saelab.config import to_plain
from saelab.dictionary import Dictionary, save_dictionary
from saelab.dictionary.decomposition import ErrorRows
from saelab.errors import ArtifactError, ConfigError
from saelab.formats.files import hash_of, remedy_when_full
from saelab.formats.lock import writer_lock
from saelab.formats.run import DICTIONARIES_FOLDER, RUN_FILE, RunManifest, write_run
from saelab.formats.run_log import JsonlLog, RunLog, WandbLog, read_log
from saelab.model.devices import resolve_device, warn_if_bfloat16_is_slow
from saelab.stats.metrics import batch_fvu, mean_l0

from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint, saved_step
from .config import DictionarySpec, TrainConfig
from .initial import load_source
from .interface import Normalisation
from .learner import Learner, require_memory_to_calibrate
from .loop import ActivationStream, TrainingLoop, normalisation_of, parts_of, require_one_width
from .methods import METHODS
from .run_folder import (
    CHECKPOINT_FOLDER,
    METRICS_FILE,
    check_folder,
    check_same_origin,
    clear_folder,
    deciding_settings,
    steps_of,
)
from .schedule import OnLonger, Schedule

logger = logging.getLogger(__name__)

FINAL_CHECK_ROWS = 8192
"""Rows that a finished dictionary's L0 and FVU are measured on."""
TARGET_L0_TOLERANCE = 0.1
"""Deviation from the target L0, as a share of it, from which on a warning says so."""


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_longer: OnLonger | None = None,
) -> dict[str, Any]:
    """Train every dictionary of a config.

    Args:
        config: of the run; its settings must be those of the run being resumed, but that
            `n_tokens` may be more.
        resume: go on from the newest checkpoint in `config.out`; a finished run is left as it is,
            unless it is to be longer.
        overwrite: delete what is in `config.out` first.
        on_longer: what schedules do where a resumed run is to be longer; see `schedule`. None:
            "redecay".

    Returns:
        The content of run.json.

    Raises:
        SaelabError: in the words of what went wrong; finished work is never touched.

    Example:
        >>> shape = {"d_sae": (32,), "k": (4,), "batch_rows": 64, "n_tokens": 1280}
        >>> config = saelab.TrainConfig(cache=planted_cache, out=folder / "run", **shape)
        >>> list(saelab.train(config)["dictionaries"])
        ['topk-d32-k4-s0']
    """

    def remedy() -> str:
        begun = (config.out / RUN_FILE).exists()
        return "go on with --resume" if begun else "give the same command again"

    with writer_lock(config.out), remedy_when_full(remedy):
        run = check_folder(config, resume=resume, overwrite=overwrite)
        extensions = [] if run is None else extended(run, config, on_longer)
        if run is not None and run.complete and extensions == run.extensions:
            logger.info("%s is complete: nothing to resume", config.out)
            return run.content
        return TrainingRun(config, run, extensions).train()


def open_stream(config: TrainConfig) -> ActivationStream:
    """The activations of a run: its cache, or the model itself.

    Raises:
        ConfigError: the cache is of another model or hook point than the config names, or holds
            fewer rows than one batch.
    """
    seed, batch_rows = config.data_seed, config.batch_rows
    with_gradients = bool(config.methods_that_need_gradients())
    if config.cache is None:
        from saelab.cache.harvest import load_model
        from saelab.text.contexts import check_text

        alone = config.hook_point or config.stream.hook_points[0]
        hook_points = config.site.hook_points if config.site else (alone,)
        harvest = replace(
            config.stream,
            model=config.model or config.stream.model,
            hook_points=hook_points,
            gradients=with_gradients,
        )
        # What takes no weights to find out comes before they are read.
        for line in check_text(harvest.text):
            logger.info("%s", line)
        model = load_model(harvest)
        return ModelStream(model, harvest, batch_rows, seed, config.stream_pool_rows, config.site)
    cache = open_fitting_cache(config, verify=config.verify or None)
    assert cache is not None
    stream = CacheStream(cache, batch_rows, seed, with_gradients=with_gradients)
    if config.error_component is None:
        return stream
    assert config.error_of is not None
    rows = ErrorRows.load(config.error_of, config.error_probe, config.error_component)
    return ErrorStream(stream, rows)


def open_fitting_cache(
    config: TrainConfig, *, verify: bool | None
) -> ActivationCache | AlignedCaches | None:
    """The cache that a run reads, once it is known to fit; None where it reads none.

    Args:
        config: of the run.
        verify: as `open_cache` takes it.

    Raises:
        SaelabError: in the words of what does not fit.
    """
    if config.cache is None:
        return None
    if config.site is None:
        cache = open_cache(config.cache, config.hook_point, verify=verify)
    else:
        cache = open_caches(config.cache, config.site, verify=verify)
    if config.model is not None and cache.model_name != config.model:
        raise ConfigError(
            f"the cache {config.cache} is of model {cache.model_name!r}; the settings name "
            f"{config.model!r}: give the right cache, or cache that model with `saelab cache`"
        )
    if cache.n_rows < config.batch_rows:
        raise ConfigError(
            f"the cache {config.cache} has {cache.n_rows} rows, less than one batch of "
            f"{config.batch_rows}: cache more text or lower --batch-rows"
        )
    wants_gradients = config.methods_that_need_gradients()
    if wants_gradients and not cache.has_gradients:
        raise ConfigError(
            f"the method {wants_gradients[0]} learns from gradients and the cache {config.cache} "
            "holds none: make one with `saelab cache OUT --gradients`, or leave the method out"
        )
    return cache


def extended(
    run: RunManifest, config: TrainConfig, on_longer: OnLonger | None
) -> list[dict[str, Any]]:
    """What a run's record says of how often it was made longer, this time included.

    Raises:
        ConfigError: it is being made longer already, by another schedule.
    """
    before = steps_of(run.config)
    if config.n_steps > before:
        new = {
            "from_step": saved_step(run.folder / CHECKPOINT_FOLDER),
            "n_steps_before": before,
            "n_tokens_before": run.config["n_tokens"],
            "n_tokens": config.n_tokens,
            "on_longer": on_longer or "redecay",
        }
        return [*run.extensions, new]
    known = run.extensions[-1]["on_longer"] if run.extensions else on_longer
    if on_longer not in (None, known):
        raise ConfigError(
            f"{run.folder} was made longer with --on-longer {known}: resume with that, or leave "
            "it out"
        )
    return run.extensions


def build_learners(
    config: TrainConfig,
    stream: ActivationStream,
    device: torch.device,
    schedule: Schedule | None = None,
) -> list[Learner]:
    """One learner for each dictionary of the config, at its start.

    `schedule` None: that of a run that was never made longer.
    """
    written, n_parts = stream.target_statistics, len(config.layers) or 1
    parts = (written or stream.statistics).by_hook_point
    product_dtype = getattr(torch, config.product_dtype)
    n_layers = len(config.reads) if config.cross_layer else None
    if n_layers is not None:
        require_one_width(stream)
    if any(METHODS[name].needs_calibration for name in config.methods):
        require_memory_to_calibrate(config.calibration_rows, stream.d_in)
    return [
        Learner.build(
            spec,
            d_in=stream.d_in // n_parts,
            d_out=None if written is None else len(written.mean) // n_parts,
            n_layers=n_layers,
            written_widths=tuple(len(part.mean) for part in parts[: len(parts) // n_parts]),
            skip=config.skip,
            schedule=schedule or Schedule.of(config.n_steps),
            batch_rows=config.batch_rows,
            options=config.options,
            optimizer=config.optimizer,
            product_dtype=product_dtype,
            device=device,
        )
        for spec in config.dictionaries()
    ]


class TrainingRun:
    """A run in its folder: its stream and its learners, where the folder says that they stand.

    Args:
        config: of the run.
        run: what the folder holds of it; None: a new run.
        extensions: what its record is to say of how often it was made longer.

    Raises:
        SaelabError: what it needs is missing, or the run cannot be gone on with.
    """

    def __init__(
        self, config: TrainConfig, run: RunManifest | None, extensions: list[dict[str, Any]]
    ):
        self.config, self.out, self.step = config, config.out, 0
        self.device = resolve_device(config.device)
        if config.product_dtype == "bfloat16":
            warn_if_bfloat16_is_slow(self.device, "the encoder", "--product-dtype float32")
        # Their state is part of every checkpoint, and a process draws it from the clock.
        torch.manual_seed(config.data_seed)
        self.stream = open_stream(config)
        schedule = Schedule.of(config.n_steps, extensions)
        self.learners = build_learners(config, self.stream, self.device, schedule)
        plain, made_from = to_plain(config), self.stream.provenance()
        name = hash_of(deciding_settings(plain)) if run is None else run.settings_hash
        self.record: dict[str, Any] = {
            "seed": config.data_seed,
            "config": plain,
            "made_from": made_from,
            "settings_hash": name,
            "extensions": extensions,
        }
        self._is_recorded = run is not None and extensions == run.extensions
        if run is None:
            self.record["initialised_from"] = self._begin()
            # Only now, when all that was asked for is known to exist, is an older run given up.
            clear_folder(self.out)
        else:
            check_same_origin(run, made_from)
            self.record["initialised_from"] = run.initialised_from or None
            self._restore(run)

    def train(self) -> dict[str, Any]:
        """Train to the end and save the dictionaries; the content of run.json."""
        with ExitStack() as stack:
            logs = [stack.enter_context(closing(log)) for log in self._open_logs()]
            if not self._is_recorded:
                write_run(self.out, "running", **self.record)
            loop = TrainingLoop(
                self.config, self.stream, self.learners, logs, self._save, step=self.step
            )
            loop.run()
        dictionaries = self._finish()
        return write_run(
            self.out,
            "complete",
            **self.record,
            excluded=self.stream.excluded,
            dictionaries=dictionaries,
        )

    def _begin(self) -> dict[str, Any] | None:
        """Let every learner begin from the saved dictionary, where one is named; its record."""
        folder = self.config.init_from
        if folder is None:
            return None
        written = self.stream.target_statistics
        d_out = self.stream.d_in if written is None else len(written.mean)
        saved = load_source(
            folder,
            d_in=self.stream.d_in,
            d_out=d_out,
            d_sae=self.config.d_sae,
            site=self.config.site,
        )
        normalisation, changes = normalisation_of(self.stream, self.device), {}
        for learner in self.learners:
            name = learner.spec.name
            try:
                changes[name] = learner.method.begin_from(
                    saved.dictionary.to(self.device), normalisation
                )
            except ConfigError as error:
                raise ConfigError(f"{name} cannot begin from {folder}: {error}") from None
            for change in changes[name]:
                logger.warning("%s begins from %s: %s", name, folder, change)
        return {
            "dictionary": str(folder),
            "content_hash": saved.content_hash,
            "architecture": saved.dictionary.architecture,
            "changes": changes,
        }

    def _open_logs(self) -> Iterator[RunLog]:
        yield JsonlLog(self.out / METRICS_FILE, keep_up_to=self.step)
        if self.config.wandb_project is not None:
            yield WandbLog(self.config.wandb_project, self.out.name, self.record["config"])

    def _save(self, step: int) -> None:
        states = {learner.spec.name: learner.state() for learner in self.learners}
        name = self.record["settings_hash"]
        checkpoint = Checkpoint(step, name, self.stream.state(), states)
        save_checkpoint(self.out / CHECKPOINT_FOLDER, checkpoint)

    def _restore(self, run: RunManifest) -> None:
        checkpoint = load_checkpoint(self.out / CHECKPOINT_FOLDER, run.settings_hash)
        if checkpoint is None:
            self._check_none_was_lost(run)
            self._check_same_start(run.initialised_from, self._begin() or {})
            return
        names = [learner.spec.name for learner in self.learners]
        if set(checkpoint.learners) != set(names):
            raise ArtifactError(
                f"the checkpoint in {self.out} holds {sorted(checkpoint.learners)}; the settings "
                f"describe {sorted(names)}"
            )
        self.stream.restore(checkpoint.stream)
        for learner in self.learners:
            learner.restore(checkpoint.learners[learner.spec.name])
        self.step = checkpoint.step

    def _check_none_was_lost(self, run: RunManifest) -> None:
        """A run without a checkpoint must have ended before its first one."""
        log = self.out / METRICS_FILE
        lines = read_log(log, skip_damaged=True) if log.exists() else []
        logged = max((line["step"] for line in lines), default=0)
        every = run.config.get("checkpoint_every_steps", self.config.checkpoint_every_steps)
        if logged > every:
            raise ArtifactError(
                f"{self.out} has trained {logged} steps and its checkpoint is missing: restore "
                f"{CHECKPOINT_FOLDER}/ from a copy, or start over with --overwrite"
            )
        logger.warning(
            "%s has no checkpoint (its log ends at step %d): training starts at step 0",
            self.out,
            logged,
        )

    def _check_same_start(self, recorded: dict[str, Any], begun: dict[str, Any]) -> None:
        if recorded.get("content_hash") != begun.get("content_hash"):
            raise ConfigError(
                f"{self.out} began from another dictionary than lies in {self.config.init_from}: "
                "restore that, or start over with --overwrite"
            )

    def _finish(self) -> dict[str, dict[str, Any]]:
        """Save every dictionary and measure it on the stream's next rows."""
        config, stream = self.config, self.stream
        parts = parts_of(stream, config.layers, self.device)
        batches = [stream.next_batch() for _ in range(-(-FINAL_CHECK_ROWS // config.batch_rows))]
        rows = torch.cat([batch.activations for batch in batches])
        written = [batch.targets for batch in batches if batch.targets is not None]
        targets = torch.cat(written) if written else rows
        for_calibration = None
        if any(learner.method.needs_calibration for learner in self.learners):
            n_batches = -(-config.calibration_rows // config.batch_rows)
            raw = [stream.next_batch().activations for _ in range(n_batches)]
            for_calibration = torch.cat(raw)
        results = {}
        for learner in self.learners:
            method, spec = learner.method, learner.spec
            part, plain = parts[spec.layer], spec._asdict()
            normalisation, inputs = part.normalisation, rows[:, part.reads]
            if for_calibration is not None and method.needs_calibration:
                raw = for_calibration[:, part.reads].to(self.device)
                method.calibrate(normalisation.apply(raw))
            dictionary = method.to_dictionary(normalisation)
            written = targets[:, part.writes]
            figures = _measure(dictionary, inputs.to(self.device), written.to(self.device))
            self._save_dictionary(learner, dictionary, inputs, figures, normalisation)
            if spec.layer is None:
                del plain["layer"]
            results[spec.name] = {
                "folder": str(Path(DICTIONARIES_FOLDER) / spec.name),
                **plain,
                **figures,
                **method.metrics(),
                "seconds_per_step": learner.clock.seconds_per_step(),
                "state_bytes": sum(tensor.nbytes for tensor in learner.state().values()),
            }
            _warn(spec, figures)
            # Make room on the device for the next one.
            method.cpu()
        return results

    def _save_dictionary(
        self,
        learner: Learner,
        dictionary: Dictionary,
        rows: Float[Tensor, "rows d_in"],
        figures: dict[str, float | None],
        normalisation: Normalisation,
    ) -> None:
        spec, config, plain = learner.spec, self.config, self.record["config"]
        made_from, site = self.record["made_from"], config.site_of(spec.layer)
        if spec.layer is not None:
            made_from = self.stream.provenance(site)
        # Mean ablation puts it in place of what is written.
        name = "mean" if normalisation.written is None else "target_mean"
        mean = {name: normalisation.of_targets.mean.tolist()}
        save_dictionary(
            self.out / DICTIONARIES_FOLDER / spec.name,
            dictionary.cpu(),
            self_test_inputs=rows,
            training={
                "method": spec.method,
                "options": plain["options"][spec.method],
                "optimizer": plain["optimizer"],
                "n_tokens": config.n_steps * config.batch_rows,
                "batch_rows": config.batch_rows,
                "product_dtype": config.product_dtype,
                "target_l0": spec.k,
                "measured_l0": figures["l0"],
                "fvu_on_training_rows": figures["fvu"],
                **learner.method.metrics(),
                "inference": learner.method.inference_settings(normalisation),
                **self._history(),
            },
            made_from=made_from | mean,
            seed=spec.seed,
            site=site,
        )

    def _history(self) -> dict[str, Any]:
        """What else than the settings its dictionaries came from, where there is anything."""
        history = {name: self.record[name] for name in ("extensions", "initialised_from")}
        return {name: value for name, value in history.items() if value}


@torch.no_grad()
def _measure(
    dictionary: Dictionary, rows: Float[Tensor, "rows d_in"], targets: Float[Tensor, "rows d_out"]
) -> dict[str, float | None]:
    codes = dictionary.encode(rows)
    return {"fvu": batch_fvu(targets, dictionary.decode(codes)), "l0": mean_l0(codes)}


def _warn(spec: DictionarySpec, figures: dict[str, float | None]) -> None:
    """Say what is odd about a finished dictionary; no reason to lose it."""
    l0 = figures["l0"]
    if l0 is not None and abs(l0 - spec.k) > TARGET_L0_TOLERANCE * spec.k:
        logger.warning(
            "%s: L0 is %.1f, not the %d asked for; everything is saved, and comparisons use the "
            "measured L0",
            spec.name,
            l0,
            spec.k,
        )
    if figures["fvu"] is None:
        logger.warning(
            "%s: the rows that FVU is measured on are all equal, so it is undefined and recorded "
            "as null; everything is saved",
            spec.name,
        )
