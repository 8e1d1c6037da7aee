"""From scores to a dictionary's result: metrics with definitions, and one row per latent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.dictionary import SavedDictionary
from saelab.formats.evaluation_result import EvaluationResult, MeasuredMetric
from saelab.formats.files import atomic_path
from saelab.stats.cosines import Directions

from .activity import Activity
from .compare import Comparison
from .config import ConsistencyConfig
from .definitions import DEFINITIONS, define_consistency
from .groups import Group
from .scores import Scores, n_top, values_of

SUITE = "consistency"
FEATURES_FILE = "consistency_features.parquet"


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found out about one dictionary."""

    saved: SavedDictionary
    run: str
    """What tells it apart in its group."""
    directions: Directions
    activity: Activity | None
    """None where it was not measured."""
    rows: dict[str, Any]
    """What rows it was measured on."""
    comparisons: dict[str, Comparison]
    """By the run compared with: the others of the group."""
    scores: Scores | None
    """Against those; None where there are none."""
    floor: Float[Tensor, " drawn"] | None
    """MCS of random directions against the same others."""


def build_result(
    findings: Findings,
    group: Group,
    members: Mapping[str, SavedDictionary],
    figure_data: Mapping[str, Any],
    config: ConsistencyConfig,
) -> EvaluationResult:
    """Everything found out about one dictionary.

    Args:
        members: run -> dictionary, of the whole group.
        figure_data: of the group; every member's result carries it.
    """
    saved = findings.saved
    origin = saved.manifest.get("made_from", {})
    return EvaluationResult(
        suite=SUITE,
        dictionary_name=saved.name,
        dictionary_hash=saved.content_hash,
        settings={
            "group": group.label,
            "run": findings.run,
            "compared_with": {
                run: {"name": other.name, "hash": other.content_hash}
                for run, other in members.items()
                if run != findings.run
            },
            "threshold": config.threshold,
            "top_fraction": config.top_fraction,
            "activity": config.activity,
            "n_tokens": config.n_tokens if config.activity else None,
            "across": config.across,
            "device": config.device,
        },
        made_from={
            "model": origin.get("model"),
            "model_hash": origin.get("model_hash"),
            "hook_point": origin.get("hook_point"),
            **findings.rows,
            "method": group.key.method,
            "target_l0": group.key.target_l0,
            "architecture": saved.dictionary.architecture,
            "d_in": saved.dictionary.d_in,
            "d_sae": saved.dictionary.d_sae,
        },
        metrics=_metrics(findings, config),
        figure_data=dict(figure_data),
        item_files={"features": FEATURES_FILE},
        seed=config.seed,
    )


def _metrics(findings: Findings, config: ConsistencyConfig) -> tuple[MeasuredMetric, ...]:
    n_compared, d_sae = len(findings.directions.latent), findings.saved.dictionary.d_sae
    compared = f"Latents compared: all {d_sae:,}; activity was not measured."
    n_rows = 0
    if findings.activity is not None:
        n_rows = findings.activity.n_rows
        compared = (
            f"Latents compared: those of the {d_sae:,} that are active on at least one of "
            f"{n_rows:,} held-out rows."
        )
    values: dict[str, float | int] = {
        "n_others": len(findings.comparisons),
        "n_compared": n_compared,
    }
    facts: dict[str, object] = {
        "rows": f"{n_rows:,} held-out rows",
        "compared": compared,
        "threshold": f"{config.threshold:g}",
        "top_fraction": f"{config.top_fraction:g}",
        "n_top": n_top(config.top_fraction, n_compared),
        "seed": config.seed,
        "gap": f"{max((one.gap for one in findings.comparisons.values()), default=0):.1g}",
        **values,
    }
    if findings.scores is not None and findings.floor is not None:
        scored = values_of(findings.scores, findings.floor, config.threshold, config.top_fraction)
        values = {**scored, **values}
        facts["n_random"] = len(findings.floor)
    return tuple(
        MeasuredMetric(
            name=name,
            value=values[name],
            unit=definition.unit,
            definition=define_consistency(name, **facts),
        )
        for name, definition in DEFINITIONS.items()
        if name in values
    )


def write_features(path: Path, findings: Findings) -> None:
    """One parquet row per latent; null where a number is undefined or the latent is not compared.

    Columns: latent, compared, density, max_activation, z_score, mcs and one_to_one (means over the
    others), and for each other run cosine, nearest, partner and partner_cosine, such as
    `cosine_seed_1`.
    """
    import pyarrow
    from pyarrow import parquet

    d_sae, latent = findings.saved.dictionary.d_sae, findings.directions.latent.cpu()

    def spread(values: Tensor) -> Any:
        """Values of the compared latents as a column over all of them."""
        whole = torch.full((d_sae,), torch.nan, dtype=torch.float64)
        whole[latent] = values.double().cpu()
        if not values.is_floating_point():
            whole[whole < 0] = torch.nan
            integers = whole.nan_to_num(nan=0).to(torch.int32).numpy()
            return pyarrow.array(integers, mask=whole.isnan().numpy())
        return pyarrow.array(whole.numpy(), mask=whole.isnan().numpy())

    compared = torch.zeros(d_sae, dtype=torch.bool)
    compared[latent] = True
    columns: dict[str, Any] = {
        "latent": pyarrow.array(range(d_sae), pyarrow.int32()),
        "compared": pyarrow.array(compared.numpy()),
    }
    if findings.activity is not None:
        for name in ("density", "max_activation", "z_score"):
            numbers = getattr(findings.activity, name).cpu().numpy()
            columns[name] = pyarrow.array(numbers, mask=numbers != numbers)
    if findings.scores is not None:
        columns["mcs"] = spread(findings.scores.mcs)
        columns["one_to_one"] = spread(findings.scores.one_to_one)
    for run, one in findings.comparisons.items():
        tag = run.replace(" ", "_")
        columns[f"cosine_{tag}"] = spread(one.cosine)
        columns[f"nearest_{tag}"] = spread(one.nearest)
        columns[f"partner_{tag}"] = spread(one.partner)
        columns[f"partner_cosine_{tag}"] = spread(one.partner_cosine)
    with atomic_path(path) as temporary:
        parquet.write_table(pyarrow.table(columns), temporary)
