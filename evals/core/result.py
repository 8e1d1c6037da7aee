"""From statistics to the result: metrics with definitions, figure data, one row per latent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from saelab.config import to_plain
from saelab.dictionary import SavedDictionary
from saelab.dictionary.data_spec import DataSpec
from saelab.formats.evaluation_result import EvaluationResult, MeasuredMetric
from saelab.formats.files import atomic_path
from saelab.stats.metrics import METRICS, SparsityStatistics, define, density_histogram
from saelab.text.contexts import describe_text

from .config import CoreConfig
from .losses import LossFindings
from .rows import RowFindings

SUITE = "core"
FEATURES_FILE = "core_features.parquet"
MOST_POINTS = 4096
MOST_L0_BARS = 60


def build_result(
    saved: SavedDictionary,
    index: int,
    spec: DataSpec,
    config: CoreConfig,
    rows: RowFindings,
    losses: LossFindings,
    mean_source: str,
) -> EvaluationResult:
    """Everything measured about one dictionary.

    Args:
        index: its place in the findings.
        mean_source: what mean ablation put in place of the rows, in words.
    """
    values: dict[str, Any] = {
        **rows.reconstruction[index].values(),
        **rows.sparsity[index].values(),
        **losses.values(index),
        **_counts(rows, losses),
    }
    facts = {
        "n_rows": values["n_rows"],
        "n_loss_positions": losses.n_positions,
        "mean_source": mean_source,
        "norm_ceiling": "none" if spec.norm_ceiling is None else f"{spec.norm_ceiling:.6g}",
        "loss_excluded": ", ".join(f"{count:,} {name}" for name, count in losses.excluded.items()),
    }
    return EvaluationResult(
        suite=SUITE,
        dictionary_name=saved.name,
        dictionary_hash=saved.content_hash,
        settings=_settings(spec, config, mean_source),
        made_from={
            "model": spec.model,
            "model_hash": spec.model_hash,
            "hook_point": spec.hook_point,
            "text": describe_text(spec.text),
            "split": "held_out",
            "architecture": saved.dictionary.architecture,
            "d_in": saved.dictionary.d_in,
            "d_sae": saved.dictionary.d_sae,
        },
        metrics=tuple(
            MeasuredMetric(
                name=name,
                value=values[name],
                unit=metric.unit,
                definition=define(name, **facts),
            )
            for name, metric in METRICS.items()
            if name in values
        ),
        figure_data=_figure_data(index, rows, losses, values, mean_source),
        item_files={"features": FEATURES_FILE},
    )


def write_features(path: Path, sparsity: SparsityStatistics) -> None:
    """One parquet row per latent: how often, how strongly on average and at most it was active.

    Columns: latent, count (rows on which the code is positive), density (count / rows),
    mean_activation and max_activation (of the positive codes; null where there is none).
    """
    import pyarrow
    from pyarrow import parquet

    count = sparsity.count.cpu().numpy()
    never = count == 0
    columns = {
        "latent": pyarrow.array(range(len(count)), pyarrow.int32()),
        "count": pyarrow.array(count, pyarrow.int64()),
        "density": pyarrow.array(sparsity.density().cpu().numpy()),
        "mean_activation": pyarrow.array(sparsity.mean_when_active().cpu().numpy(), mask=never),
        "max_activation": pyarrow.array(sparsity.maximum.cpu().numpy(), mask=never),
    }
    with atomic_path(path) as temporary:
        parquet.write_table(pyarrow.table(columns), temporary)


def _settings(spec: DataSpec, config: CoreConfig, mean_source: str) -> dict[str, Any]:
    return {
        "n_tokens": config.n_tokens,
        "n_loss_tokens": config.loss_tokens,
        "batch_contexts": config.batch_contexts,
        "context_length": spec.context_length,
        "text": to_plain(spec.text),
        "split": "held_out",
        "row_rule": to_plain(spec.token_filter),
        "norm_ceiling": spec.norm_ceiling,
        "model_dtype": spec.model_dtype,
        "device": config.device,
        "mean_ablation": mean_source,
    }


def _counts(rows: RowFindings, losses: LossFindings) -> dict[str, int]:
    return {
        "n_contexts": rows.n_contexts,
        "n_tokens": rows.n_tokens,
        **{f"n_excluded_{reason}": count for reason, count in rows.excluded.items()},
        "n_loss_contexts": losses.n_contexts,
        "n_loss_positions": losses.n_positions,
        "n_loss_rows_replaced": losses.n_replaced,
        "n_loss_rows_kept": sum(losses.excluded.values()),
    }


def _figure_data(
    index: int,
    rows: RowFindings,
    losses: LossFindings,
    values: dict[str, Any],
    mean_source: str,
) -> dict[str, Any]:
    reconstruction, sparsity = rows.reconstruction[index], rows.sparsity[index]
    conditions = ("clean", "spliced", "mean_ablation", "zero_ablation")
    return {
        "losses": {
            "loss": {condition: values[f"loss_{condition}"] for condition in conditions},
            "n_positions": losses.n_positions,
            "mean_source": mean_source,
        },
        "density_histogram": {
            **density_histogram(sparsity.density(), sparsity.n_rows),
            "n_rows": sparsity.n_rows,
        },
        "l0_histogram": {
            **_l0_bars(sparsity),
            "mean": values["l0_mean"],
            "median": values["l0_q50"],
        },
        "fvu_by_position": {
            **_position_curve(rows, reconstruction.fvu_by_group()),
            "pooled": values["fvu"],
        },
        "error_by_norm": reconstruction.error_by_norm(),
        "density_and_strength": _points(sparsity),
    }


def _l0_bars(sparsity: SparsityStatistics) -> dict[str, list[int]]:
    """L0 counts in bars of equal whole width, as narrow as the number of bars allows."""
    levels = sparsity.l0_histogram.nonzero().flatten()
    lowest, highest = int(levels[0]), int(levels[-1])
    width = -(-(highest - lowest + 1) // MOST_L0_BARS)
    bar = (levels - lowest) // width
    counts = torch.zeros(int(bar[-1]) + 1, dtype=torch.int64, device=levels.device)
    counts.index_add_(0, bar, sparsity.l0_histogram[levels])
    starts = [lowest + place * width for place in range(len(counts))]
    return {
        "l0_from": starts,
        "l0_to": [start + width - 1 for start in starts],
        "rows": counts.tolist(),
    }


def _position_curve(rows: RowFindings, curve: list[float | None]) -> dict[str, list[Any]]:
    """The bins with evaluated rows, and their first and last positions."""
    bins = rows.position_bin.tolist()
    known = [(place, value) for place, value in enumerate(curve) if value is not None]
    return {
        "position_from": [bins.index(place) for place, _ in known],
        "position_to": [len(bins) - 1 - bins[::-1].index(place) for place, _ in known],
        "fvu": [value for _, value in known],
    }


def _points(sparsity: SparsityStatistics) -> dict[str, Any]:
    """The active latents, or `MOST_POINTS` of them at even distances, for a scatter plot."""
    alive = sparsity.count.nonzero().flatten()
    shown = alive
    if len(alive) > MOST_POINTS:
        shown = alive[torch.arange(MOST_POINTS, device=alive.device) * len(alive) // MOST_POINTS]
    density, strength = sparsity.density()[shown], sparsity.mean_when_active()[shown]
    return {
        "latent": shown.tolist(),
        "density": [float(f"{value:.6g}") for value in density.tolist()],
        "mean_activation": [float(f"{value:.6g}") for value in strength.tolist()],
        "n_alive": len(alive),
    }
