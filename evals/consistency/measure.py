"""Compares the latents of dictionaries: of runs that differ in their seed, and of groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.dictionary import SavedDictionary, load_dictionary
from saelab.errors import ArtifactError
from saelab.model.devices import resolve_device
from saelab.progress import progress_bar
from saelab.stats.cosines import Directions, directions_of

from ..curves import n_top
from ..suite import Measurement
from .activity import Activity, rank
from .charts import across_charts, across_table, group_charts, group_tables
from .groups import Group, form_groups
from .scores import (
    FLOOR_DIRECTIONS,
    Comparison,
    Scores,
    compare,
    floor_of,
    scores_of,
    values_of,
)
from .suite import ConsistencyConfig

OWN_RUNS = "its own other runs"
Matrices = dict[str, list[list[float | None]]]


@dataclass(frozen=True, eq=False)
class DictionarySet:
    """Everything that is known of the dictionaries of a call, in the order given."""

    saved: list[SavedDictionary]
    outs: Sequence[Path]
    activities: dict[str, Activity]
    """By content hash; none where activity was not measured."""
    rows: dict[str, dict[str, Any]]
    """By content hash, what rows it was measured on."""
    directions: list[Directions]
    comparisons: dict[tuple[int, int], Comparison]
    """Both directions of every compared pair."""

    def activity(self, index: int) -> Activity | None:
        """The activity of a dictionary."""
        return self.activities.get(self.saved[index].content_hash)

    def scores(self, index: int, others: Sequence[int]) -> Scores:
        """A dictionary against others."""
        pairs = [self.comparisons[index, j] for j in others]
        return scores_of(self.directions[index], pairs, self.activity(index))


def measure_consistency(
    folders: Sequence[Path], outs: Sequence[Path], config: ConsistencyConfig
) -> Iterator[Measurement]:
    """Compare dictionaries; everything that can be wrong is checked before a row is encoded.

    Raises:
        ConfigError: nothing to compare, or nothing comparable; no such device.
        ArtifactError: a folder that is no intact dictionary, does not fit its model, or has no
            live latent.
        ModelError: an unknown model or hook point.
        TextError: too little held-out text.
        ActivationError: activations or codes that are not finite.
    """
    device = resolve_device(config.device)
    loaded = [load_dictionary(folder) for folder in folders]
    groups = form_groups(loaded, across=config.across)
    for saved in loaded:
        saved.dictionary.to(device)
    activities, rows = rank(loaded, config, device) if config.activity else ({}, {})
    decoders = [saved.dictionary.W_dec for saved in loaded]
    for saved in loaded:
        saved.dictionary.to("meta")  # From here on only its shape is asked for.
    # Each decoder goes as its directions come, which are as large.
    directions = [
        _directions(saved, decoders.pop(0), activities.get(saved.content_hash)) for saved in loaded
    ]
    within = [pair for group in groups for pair in combinations(group.members, 2)]
    pairs = list(combinations(range(len(folders)), 2)) if config.across else within
    comparisons: dict[tuple[int, int], Comparison] = {}
    with progress_bar(len(pairs), "compare", "pairs") as bar:
        for i, j in pairs:
            comparisons[i, j], comparisons[j, i] = compare(directions[i], directions[j])
            bar.update(1)
    dictionaries = DictionarySet(loaded, outs, activities, rows, directions, comparisons)
    matrices = _matrices(dictionaries, groups, config.threshold) if config.across else {}
    for group in groups:
        yield from _measure_group(dictionaries, group, groups, matrices, config)


def _directions(saved: SavedDictionary, W_dec: Tensor, activity: Activity | None) -> Directions:
    directions = directions_of(W_dec, None if activity is None else activity.alive())
    if len(directions.latent) == 0:
        raise ArtifactError(
            f"{saved.folder} has no live latent: none of {saved.dictionary.d_sae:,} was active on "
            "the held-out rows; evaluate more text, or compare all latents with --no-activity"
        )
    return directions


def _matrices(dictionaries: DictionarySet, groups: Sequence[Group], threshold: float) -> Matrices:
    """Means over the pairs of each two groups; None where a group has no second run."""
    matrices: Matrices = {"mcs_mean": [], "one_to_one_mean": [], "mcs_share": []}
    for group in groups:
        for row in matrices.values():
            row.append([])
        for searched in groups:
            scores = [
                dictionaries.scores(i, [j])
                for i in group.members
                for j in searched.members
                if i != j
            ]
            measured = {
                "mcs_mean": [pair.mcs for pair in scores],
                "one_to_one_mean": [pair.one_to_one for pair in scores],
                "mcs_share": [(pair.mcs > threshold).double() for pair in scores],
            }
            for name, values in measured.items():
                means = [float(of_pair.mean()) for of_pair in values]
                matrices[name][-1].append(sum(means) / len(means) if means else None)
    return matrices


def _measure_group(
    dictionaries: DictionarySet,
    group: Group,
    groups: Sequence[Group],
    matrices: Matrices,
    config: ConsistencyConfig,
) -> Iterator[Measurement]:
    """A measurement per member; charts and tables are those of the whole group."""
    runs = dict(zip(group.members, group.runs, strict=True))
    members = {run: dictionaries.saved[index] for index, run in runs.items()}
    scores: dict[str, Scores] = {}
    floors: dict[str, Tensor] = {}
    if len(runs) > 1:
        for index, run in runs.items():
            others = [j for j in runs if j != index]
            scores[run] = dictionaries.scores(index, others)
            compared = [dictionaries.directions[j] for j in others]
            floors[run] = floor_of(dictionaries.directions[index], compared, config.seed)
    charts = group_charts(scores, [*floors.values()], config.threshold) if scores else []
    numbers: dict[str, dict[str, float | int]] = {}
    for index, run in runs.items():
        numbers[run] = {"n_others": len(runs) - 1}
        numbers[run]["n_compared"] = len(dictionaries.directions[index].latent)
        if scores:
            scored = values_of(scores[run], floors[run], config.threshold, config.top_fraction)
            numbers[run] = {**scored, **numbers[run]}
    tables = group_tables(members, numbers)
    if config.across:
        labels = [each.label for each in groups]
        against = {OWN_RUNS: [*scores.values()]} if scores else {}
        against |= {
            each.label: [dictionaries.scores(index, each.members) for index in runs]
            for each in groups
            if each is not group
        }
        charts += across_charts(
            labels, matrices["mcs_mean"], group.label, against, config.threshold
        )
        tables.append(across_table(labels, matrices, config.threshold))
    data = {"charts": charts, "tables": tables}
    for index, run in runs.items():
        yield _measurement(
            dictionaries, group, index, numbers[run], scores.get(run), members, data, config
        )


def _measurement(
    dictionaries: DictionarySet,
    group: Group,
    index: int,
    numbers: Mapping[str, float | int],
    scores: Scores | None,
    members: Mapping[str, SavedDictionary],
    data: Mapping[str, Any],
    config: ConsistencyConfig,
) -> Measurement:
    """Everything about one dictionary; `members` are those of its group by run."""
    saved, activity = dictionaries.saved[index], dictionaries.activity(index)
    latent = dictionaries.directions[index].latent
    runs = dict(zip(group.members, group.runs, strict=True))
    pairs = {runs[j]: dictionaries.comparisons[index, j] for j in runs if j != index}
    rows = dictionaries.rows.get(saved.content_hash, {"rows": "none"})
    origin = saved.manifest.get("made_from", {})
    ranked_on = rows["rows"] if config.activity else "no rows: all latents count"
    return Measurement(
        name=saved.name,
        content_hash=saved.content_hash,
        out=dictionaries.outs[index],
        numbers=numbers,
        facts=_facts(saved, activity, pairs, int(numbers["n_compared"]), config),
        data=data,
        rows={"features": _features(saved, activity, latent, scores, pairs)},
        made_from={
            "model": origin.get("model"),
            "model_hash": origin.get("model_hash"),
            "hook_point": origin.get("hook_point"),
            **rows,
            "method": group.key.method,
            "target_l0": group.key.target_l0,
            "architecture": saved.dictionary.architecture,
            "d_in": saved.dictionary.d_in,
            "d_sae": saved.dictionary.d_sae,
        },
        settings={
            "group": group.label,
            "run": runs[index],
            "compared_with": {
                run: {"name": members[run].name, "hash": members[run].content_hash} for run in pairs
            },
            "n_tokens": config.n_tokens if config.activity else None,
        },
        title=f"Consistency of {group.label}",
        subtitle=f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} "
        f"({', '.join(group.runs)}) at {origin.get('hook_point')} of {origin.get('model')}; "
        f"latents ranked on {ranked_on}.",
    )


def _facts(
    saved: SavedDictionary,
    activity: Activity | None,
    pairs: Mapping[str, Comparison],
    n_compared: int,
    config: ConsistencyConfig,
) -> dict[str, Any]:
    """What the definitions of a dictionary's numbers name."""
    d_sae, n_rows = saved.dictionary.d_sae, 0 if activity is None else activity.n_rows
    return {
        "rows": f"{n_rows:,} held-out rows",
        "compared": f"Latents compared: all {d_sae:,}; activity was not measured."
        if activity is None
        else f"Latents compared: those of the {d_sae:,} that are active on at least one of "
        f"{n_rows:,} held-out rows.",
        "threshold": f"{config.threshold:g}",
        "top_fraction": f"{config.top_fraction:g}",
        "n_top": n_top(config.top_fraction, n_compared),
        "seed": config.seed,
        "gap": f"{max((pair.gap for pair in pairs.values()), default=0):.1g}",
        "n_others": len(pairs),
        "n_compared": n_compared,
        "n_random": min(FLOOR_DIRECTIONS, n_compared),
    }


def _features(
    saved: SavedDictionary,
    activity: Activity | None,
    latent: Int[Tensor, " compared"],
    scores: Scores | None,
    pairs: Mapping[str, Comparison],
) -> dict[str, Tensor]:
    """One parquet row per latent; null where a number is undefined or the latent is not compared.

    Columns: latent, compared, density, max_activation, z_score, mcs and one_to_one (means over the
    others), and for each other run cosine, nearest, partner and partner_cosine, such as
    `cosine_seed_1`.
    """
    d_sae = saved.dictionary.d_sae

    def spread(values: Tensor) -> Tensor:
        """Values of the compared latents as a column over all of them."""
        whole = values.new_full((d_sae,), torch.nan if values.is_floating_point() else -1)
        return whole.index_copy_(0, latent, values)

    compared = torch.zeros(d_sae, dtype=torch.bool, device=latent.device)
    compared[latent] = True
    columns = {"latent": torch.arange(d_sae), "compared": compared}
    if activity is not None:
        names = ("density", "max_activation", "z_score")
        columns |= {name: getattr(activity, name) for name in names}
    if scores is not None:
        columns |= {"mcs": spread(scores.mcs), "one_to_one": spread(scores.one_to_one)}
    for run, pair in pairs.items():
        for name in ("cosine", "nearest", "partner", "partner_cosine"):
            columns[f"{name}_{run.replace(' ', '_')}"] = spread(getattr(pair, name))
    return columns
