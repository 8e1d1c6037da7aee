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

from saelab.cache import (
    ActivationCache,
    CacheStream,
    ErrorStream,
    ModelStream,
    open_cache,
)
from saelab.config import to_plain
from saelab.dictionary import Dictionary, save_dictionary
from saelab.dictionary.error_rows import ErrorRows
from saelab.errors import ArtifactError, ConfigError
from saelab.formats.files import write_json
from saelab.formats.manifest import new_manifest
from saelab.formats.run_log import JsonlLog, RunLog, WandbLog
from saelab.model.devices import resolve_device
from saelab.stats.metrics import fvu, mean_l0

from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .config import DictionarySpec, TrainConfig
from .interface import Normalisation
from .learner import Learner
from .loop import ActivationStream, TrainingLoop, normalisation_of
from .run_folder import (
    CHECKPOINT_FOLDER,
    DICTIONARIES_FOLDER,
    KIND,
    METRICS_FILE,
    RUN_FILE,
    SCHEMA_VERSION,
    check_folder,
    clear_folder,
    read_run,
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
    """
    resuming = check_folder(config, resume=resume, overwrite=overwrite)
    if resuming:
        run = read_run(config)
        if run["status"] == "complete":
            logger.info("%s is complete: nothing to resume", config.out)
            return run
    device = resolve_device(config.device)
    stream = open_stream(config)
    learners = build_learners(config, stream.d_in, device)
    step = _restore(config, stream, learners) if resuming else 0
    made_from = stream.provenance()
    if not resuming:
        # Only now, when all that was asked for is known to exist, is an older run given up.
        clear_folder(config)
    log = _open_logs(config, step)
    try:
        if not resuming:
            write_json(config.out / RUN_FILE, _record(config, made_from, "running"))
        loop = TrainingLoop(
            config,
            stream,
            learners,
            log,
            lambda steps: _save(config, stream, learners, steps),
            step=step,
        )
        loop.run()
    finally:
        log.close()
    run = _record(config, made_from, "complete") | {
        "excluded": stream.excluded,
        "dictionaries": _finish(config, stream, learners),
    }
    write_json(config.out / RUN_FILE, run)
    return run


def _record(config: TrainConfig, made_from: dict[str, Any], status: str) -> dict[str, Any]:
    manifest = new_manifest(
        KIND, SCHEMA_VERSION, seed=config.data_seed, config=to_plain(config), made_from=made_from
    )
    return manifest | {"status": status, "settings_hash": settings_hash(config)}


def open_stream(config: TrainConfig) -> ActivationStream:
    """The activations of a run: its cache, or the model itself.

    Raises:
        ConfigError: the cache is of another model or hook point than the config names, or holds
            fewer rows than one batch.
    """
    if config.cache is None:
        return _open_model_stream(config)
    cache = open_cache(config.cache, config.hook_point)
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
        _check_cache(config, open_cache(config.cache, config.hook_point, verify=False))


def _check_cache(config: TrainConfig, cache: ActivationCache) -> None:
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


def build_learners(config: TrainConfig, d_in: int, device: torch.device) -> list[Learner]:
    """One learner for each dictionary of the config, at its start."""
    product_dtype = getattr(torch, config.product_dtype)
    return [
        Learner.build(
            spec,
            d_in=d_in,
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
    config: TrainConfig, stream: ActivationStream, learners: list[Learner], step: int
) -> None:
    save_checkpoint(
        config.out / CHECKPOINT_FOLDER,
        Checkpoint(
            step,
            settings_hash(config),
            stream.state(),
            {learner.spec.name: learner.state() for learner in learners},
        ),
    )


def _restore(config: TrainConfig, stream: ActivationStream, learners: list[Learner]) -> int:
    checkpoint = load_checkpoint(config.out / CHECKPOINT_FOLDER, settings_hash(config))
    if checkpoint is None:
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


def _finish(
    config: TrainConfig, stream: ActivationStream, learners: list[Learner]
) -> dict[str, dict[str, Any]]:
    """Save every dictionary and measure it on the stream's next rows."""
    normalisation = normalisation_of(stream, torch.device("cpu"))
    rows = torch.cat(
        [stream.next_batch().activations for _ in range(-(-FINAL_CHECK_ROWS // config.batch_rows))]
    )
    for_calibration = _calibration_rows(config, stream, learners, normalisation)
    results = {}
    for learner in learners:
        spec = learner.spec
        method = learner.method.cpu()
        if for_calibration is not None and method.needs_calibration:
            method.calibrate(for_calibration)
        dictionary = method.to_dictionary(normalisation)
        figures = _measure(dictionary, rows)
        folder = Path(DICTIONARIES_FOLDER) / spec.name
        save_dictionary(
            config.out / folder,
            dictionary,
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
    return results


def _calibration_rows(
    config: TrainConfig,
    stream: ActivationStream,
    learners: list[Learner],
    normalisation: Normalisation,
) -> torch.Tensor | None:
    """Normalised rows for the methods that fit thresholds; None where no method does."""
    if not any(learner.method.needs_calibration for learner in learners):
        return None
    n_batches = -(-config.calibration_rows // config.batch_rows)
    rows = [stream.next_batch().activations for _ in range(n_batches)]
    return normalisation.apply(torch.cat(rows))


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
def _measure(dictionary: Dictionary, rows: torch.Tensor) -> dict[str, float]:
    codes = dictionary.encode(rows)
    return {
        "fvu": fvu(rows, dictionary.decode(codes)),
        "l0": mean_l0(codes),
    }
