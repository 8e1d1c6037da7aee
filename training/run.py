"""A training run as a folder: opened or resumed, trained, and turned into dictionaries.

* `run.json`       kind, config, provenance, status, the dictionaries with their final figures
* `metrics.jsonl`  a line per dictionary and logging step
* `checkpoint/`    the newest checkpoint
* `dictionaries/`  one folder each, written at the end
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from saelab.cache.aligned import AlignedCaches, open_caches
from saelab.cache.cache_stream import CacheStream
from saelab.cache.error_stream import ErrorStream
from saelab.cache.model_stream import ModelStream
from saelab.cache.reader import ActivationCache, open_cache
from saelab.config import to_plain
from saelab.dictionary import Dictionary, save_dictionary
from saelab.dictionary.error_rows import ErrorRows
from saelab.errors import ArtifactError, ConfigError
from saelab.formats.files import remedy_when_full
from saelab.formats.lock import writer_lock
from saelab.formats.run import DICTIONARIES_FOLDER, RunManifest, read_run, write_run
from saelab.formats.run_log import JsonlLog, RunLog, WandbLog, read_log
from saelab.model.devices import resolve_device
from saelab.stats.metrics import fvu, mean_l0

from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .config import DictionarySpec, TrainConfig
from .learner import Learner
from .loop import ActivationStream, TrainingLoop, normalisation_of
from .run_folder import (
    CHECKPOINT_FOLDER,
    METRICS_FILE,
    check_folder,
    check_same_origin,
    clear_folder,
    settings_hash,
)

logger = logging.getLogger(__name__)

FINAL_CHECK_ROWS = 8192
"""Rows that a finished dictionary's L0 and FVU are measured on."""
TARGET_L0_TOLERANCE = 0.1
"""Deviation from the target L0, as a share of it, from which on a warning says so."""


def train(config: TrainConfig, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Train every dictionary of a config.

    Args:
        config: of the run; its hash must be that of the run being resumed.
        resume: go on from the newest checkpoint in `config.out`; a finished run is left as it is.
        overwrite: delete what is in `config.out` first.

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
    with writer_lock(config.out), remedy_when_full("go on with --resume"):
        if check_folder(config, resume=resume, overwrite=overwrite):
            run = read_run(config.out)
            if run.complete:
                logger.info("%s is complete: nothing to resume", config.out)
                return run.content
            return _train(config, run)
        return _train(config, None)


def _train(config: TrainConfig, run: RunManifest | None) -> dict[str, Any]:
    """Train a new run, or go on with one."""
    device = resolve_device(config.device)
    stream = open_stream(config)
    learners = build_learners(config, stream, device)
    made_from, plain = stream.provenance(), to_plain(config)
    name = settings_hash(config) if run is None else run.settings_hash
    if run is None:
        # Only now, when all that was asked for is known to exist, is an older run given up.
        clear_folder(config)
        step = 0
    else:
        check_same_origin(run, made_from)
        step = _restore(config, run, stream, learners)
    log = _open_logs(config, step)
    try:
        if run is None:
            write_run(
                config.out,
                "running",
                seed=config.data_seed,
                config=plain,
                made_from=made_from,
                settings_hash=name,
            )
        TrainingLoop(
            config,
            stream,
            learners,
            log,
            lambda steps: _save(config, name, stream, learners, steps),
            step=step,
        ).run()
    finally:
        log.close()
    dictionaries = _finish(config, stream, learners)
    return write_run(
        config.out,
        "complete",
        seed=config.data_seed,
        config=plain,
        made_from=made_from,
        settings_hash=name,
        excluded=stream.excluded,
        dictionaries=dictionaries,
    )


def open_stream(config: TrainConfig) -> ActivationStream:
    """The activations of a run: its cache, or the model itself.

    Raises:
        ConfigError: the cache is of another model or hook point than the config names, or holds
            fewer rows than one batch.
    """
    if config.cache is None:
        return _open_model_stream(config)
    cache = _open_caches(config, verify=config.verify or None)
    _check_cache(config, cache)
    with_gradients = bool(config.methods_that_need_gradients())
    stream = CacheStream(cache, config.batch_rows, config.data_seed, with_gradients=with_gradients)
    if config.error_component is None:
        return stream
    assert config.error_of is not None
    return ErrorStream(
        stream, ErrorRows.load(config.error_of, config.error_probe, config.error_component)
    )


def check_activations(config: TrainConfig) -> None:
    """Check that the cache a run needs is there and fits, without reading its rows.

    Raises:
        SaelabError: in the words that `open_stream` would use.
    """
    if config.cache is not None:
        _check_cache(config, _open_caches(config, verify=False))


def _open_caches(config: TrainConfig, *, verify: bool | None) -> ActivationCache | AlignedCaches:
    assert config.cache is not None
    if config.site is not None:
        return open_caches(config.cache, config.site, verify=verify)
    return open_cache(config.cache, config.hook_point, verify=verify)


def _check_cache(config: TrainConfig, cache: ActivationCache | AlignedCaches) -> None:
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


def _open_model_stream(config: TrainConfig) -> ActivationStream:
    import dataclasses

    from saelab.model.language_model import load_language_model

    harvest = config.stream
    hook_point = config.hook_point or harvest.hook_points[0]
    harvest = dataclasses.replace(
        harvest,
        model=config.model or harvest.model,
        hook_points=(hook_point,),
        gradients=bool(config.methods_that_need_gradients()),
    )
    model = load_language_model(harvest.model, dtype=harvest.model_dtype, device=harvest.device)
    return ModelStream(model, harvest, config.batch_rows, config.data_seed, config.stream_pool_rows)


def build_learners(
    config: TrainConfig, stream: ActivationStream, device: torch.device
) -> list[Learner]:
    """One learner for each dictionary of the config, at its start."""
    written = stream.target_statistics
    product_dtype = getattr(torch, config.product_dtype)
    return [
        Learner.build(
            spec,
            d_in=stream.d_in,
            d_out=None if written is None else len(written.mean),
            n_steps=config.n_steps,
            batch_rows=config.batch_rows,
            options=config.options,
            optimizer=config.optimizer,
            product_dtype=product_dtype,
            device=device,
        )
        for spec in config.dictionaries()
    ]


def _open_logs(config: TrainConfig, step: int) -> RunLog:
    log = JsonlLog(config.out / METRICS_FILE, keep_up_to=step)
    if config.wandb_project is None:
        return log
    return _BothLogs([log, WandbLog(config.wandb_project, config.out.name, to_plain(config))])


class _BothLogs:
    def __init__(self, logs: list[RunLog]):
        self._logs = logs

    def write(self, step: int, line: Any) -> None:
        for log in self._logs:
            log.write(step, line)

    def close(self) -> None:
        for log in self._logs:
            log.close()


def _save(
    config: TrainConfig,
    run_hash: str,
    stream: ActivationStream,
    learners: list[Learner],
    step: int,
) -> None:
    save_checkpoint(
        config.out / CHECKPOINT_FOLDER,
        Checkpoint(
            step,
            run_hash,
            stream.state(),
            {learner.spec.name: learner.state() for learner in learners},
        ),
    )


def _restore(
    config: TrainConfig, run: RunManifest, stream: ActivationStream, learners: list[Learner]
) -> int:
    checkpoint = load_checkpoint(config.out / CHECKPOINT_FOLDER, run.settings_hash)
    if checkpoint is None:
        _check_none_was_lost(config, run)
        return 0
    names = [learner.spec.name for learner in learners]
    if set(checkpoint.learners) != set(names):
        raise ArtifactError(
            f"the checkpoint in {config.out} holds {sorted(checkpoint.learners)}; the settings "
            f"describe {sorted(names)}"
        )
    stream.restore(checkpoint.stream)
    for learner in learners:
        learner.restore(checkpoint.learners[learner.spec.name])
    return checkpoint.step


def _check_none_was_lost(config: TrainConfig, run: RunManifest) -> None:
    """A run without a checkpoint must have ended before its first one.

    Raises:
        ArtifactError: its log goes further than that.
    """
    path = config.out / METRICS_FILE
    logged = [line["step"] for line in read_log(path, skip_damaged=True)] if path.exists() else []
    first = run.config.get("checkpoint_every_steps", config.checkpoint_every_steps)
    if max(logged, default=0) > first:
        raise ArtifactError(
            f"{config.out} has trained {max(logged)} steps and its checkpoint is missing: restore "
            f"{CHECKPOINT_FOLDER}/ from a copy, or start over with --overwrite"
        )
    logger.warning("%s has no checkpoint yet: training starts at step 0", config.out)


def _finish(
    config: TrainConfig, stream: ActivationStream, learners: list[Learner]
) -> dict[str, dict[str, Any]]:
    """Save every dictionary and measure it on the stream's next rows."""
    device = next(learners[0].method.parameters()).device
    normalisation = normalisation_of(stream, device)
    batches = [stream.next_batch() for _ in range(-(-FINAL_CHECK_ROWS // config.batch_rows))]
    rows = torch.cat([batch.activations for batch in batches])
    targets = [batch.targets for batch in batches if batch.targets is not None]
    for_calibration = None
    if any(learner.method.needs_calibration for learner in learners):
        n_batches = -(-config.calibration_rows // config.batch_rows)
        raw = torch.cat([stream.next_batch().activations for _ in range(n_batches)])
        for_calibration = normalisation.apply(raw.to(device))
    results = {}
    for learner in learners:
        spec = learner.spec
        method = learner.method
        if for_calibration is not None and method.needs_calibration:
            method.calibrate(for_calibration)
        dictionary = method.to_dictionary(normalisation)
        wanted = torch.cat(targets) if targets else rows
        figures = _measure(dictionary, rows.to(device), wanted.to(device))
        folder = Path(DICTIONARIES_FOLDER) / spec.name
        save_dictionary(
            config.out / folder,
            dictionary.cpu(),
            self_test_inputs=rows,
            training={
                "method": spec.method,
                "options": to_plain(getattr(config.options, spec.method)),
                "optimizer": to_plain(config.optimizer),
                "n_tokens": config.n_steps * config.batch_rows,
                "batch_rows": config.batch_rows,
                "product_dtype": config.product_dtype,
                "target_l0": spec.k,
                "measured_l0": figures["l0"],
                "fvu_on_training_rows": figures["fvu"],
                **method.metrics(),
                "inference": method.inference_settings(normalisation),
            },
            made_from={**stream.provenance(), "mean": stream.statistics.mean.tolist()},
            seed=spec.seed,
            site=config.site,
        )
        results[spec.name] = {
            "folder": str(folder),
            **spec._asdict(),
            **figures,
            **method.metrics(),
            "seconds_per_step": learner.seconds_per_step(),
            "state_bytes": learner.state_bytes(),
        }
        _warn_of_missed_target(spec, figures["l0"])
        # Make room on the device for the next one.
        method.cpu()
    return results


def _warn_of_missed_target(spec: DictionarySpec, measured_l0: float) -> None:
    if abs(measured_l0 - spec.k) > TARGET_L0_TOLERANCE * spec.k:
        logger.warning(
            "%s: L0 is %.1f, not the %d asked for; everything is saved, and comparisons use the "
            "measured L0",
            spec.name,
            measured_l0,
            spec.k,
        )


@torch.no_grad()
def _measure(dictionary: Dictionary, rows: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    codes = dictionary.encode(rows)
    return {
        "fvu": fvu(targets, dictionary.decode(codes)),
        "l0": mean_l0(codes),
    }
