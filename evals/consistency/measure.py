"""Compares the latents of dictionaries: of runs that differ in their seed, and of groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.dictionary import SavedDictionary, load_dictionary
from saelab.errors import ArtifactError
from saelab.model.devices import resolve_device
from saelab.stats.cosines import Directions, directions_of

from ..suite import Measurement
from .activity import Activity
from .chart_data import across_charts, group_charts
from .compare import Comparison, compare_pairs
from .config import ConsistencyConfig
from .groups import Group, form_groups
from .row_source import rank
from .scores import Scores, floor_of, n_top, scores_of, values_of

OWN_RUNS = "its own other runs"


@dataclass(frozen=True, eq=False)
class _Material:
    """Everything that is known of the dictionaries of a call, in the order given."""

    dictionaries: list[SavedDictionary]
    activities: dict[str, Activity]
    rows: dict[str, dict[str, Any]]
    directions: list[Directions]
    comparisons: dict[tuple[int, int], Comparison]

    def activity(self, place: int) -> Activity | None:
        return self.activities.get(self.dictionaries[place].content_hash)

    def scores(self, place: int, others: Sequence[int]) -> Scores:
        found = [self.comparisons[place, other] for other in others]
        return scores_of(self.directions[place], found, self.activity(place))


@dataclass(frozen=True, eq=False)
class ConsistencyFindings:
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
    dictionaries = [load_dictionary(folder) for folder in folders]
    groups = form_groups(dictionaries, across=config.across)
    for saved in dictionaries:
        saved.dictionary.to(device)
    activities, rows = rank(dictionaries, config, device) if config.activity else ({}, {})
    directions = [_directions(saved, activities.get(saved.content_hash)) for saved in dictionaries]
    within = [pair for group in groups for pair in combinations(group.members, 2)]
    pairs = list(combinations(range(len(folders)), 2)) if config.across else within
    comparisons = compare_pairs(directions, pairs)
    material = _Material(dictionaries, activities, rows, directions, comparisons)
    shared = {"across": _matrix(material, groups, config)} if config.across else {}
    for group in groups:
        yield from _measure_group(material, group, groups, shared, outs, config)


def _directions(saved: SavedDictionary, activity: Activity | None) -> Directions:
    found = directions_of(saved.dictionary.W_dec, None if activity is None else activity.alive())
    if len(found.latent) == 0:
        raise ArtifactError(
            f"{saved.folder} has no live latent: none of {saved.dictionary.d_sae:,} was active on "
            "the held-out rows; evaluate more text, or compare all latents with --no-activity"
        )
    return found


def _measure_group(
    material: _Material,
    group: Group,
    groups: Sequence[Group],
    shared: Mapping[str, Any],
    outs: Sequence[Path],
    config: ConsistencyConfig,
) -> Iterator[Measurement]:
    findings = {index: _findings(material, group, index, config) for index in group.members}
    data = dict(shared)
    scored = [(member.run, member.scores, member.floor) for member in findings.values()]
    if all(scores is not None for _, scores, _ in scored):
        data |= group_charts(
            [scores for _, scores, _ in scored if scores is not None],
            [run for run, _, _ in scored],
            [floor for _, _, floor in scored if floor is not None],
            config.threshold,
        )
    if config.across:
        data |= across_charts(_against(material, group, groups), group.label, config.threshold)
    numbers = {index: _numbers(member, config) for index, member in findings.items()}
    data["runs"] = {
        "names": list(group.runs),
        "numbers": [
            [name.replace("_", " "), *(values[name] for values, _ in numbers.values())]
            for name in next(iter(numbers.values()))[0]
        ],
        "compared": [
            [member.run, member.saved.name, member.saved.content_hash]
            for member in findings.values()
        ],
    }
    for index, member in findings.items():
        yield _measurement(member, group, findings, numbers[index], data, outs[index], config)


def _measurement(
    findings: ConsistencyFindings,
    group: Group,
    members: Mapping[int, ConsistencyFindings],
    numbers: tuple[dict[str, float | int], dict[str, object]],
    data: Mapping[str, Any],
    out: Path,
    config: ConsistencyConfig,
) -> Measurement:
    """Everything found out about one dictionary; the data are those of its whole group."""
    saved = findings.saved
    origin = saved.manifest.get("made_from", {})
    rows = "no rows: all latents count" if not config.activity else findings.rows["rows"]
    return Measurement(
        name=saved.name,
        content_hash=saved.content_hash,
        out=out,
        numbers=numbers[0],
        facts=numbers[1],
        data=data,
        rows={"features": _features(findings)},
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
        settings={
            "group": group.label,
            "run": findings.run,
            "compared_with": {
                member.run: {"name": member.saved.name, "hash": member.saved.content_hash}
                for member in members.values()
                if member.run != findings.run
            },
            "n_tokens": config.n_tokens if config.activity else None,
        },
        title=f"Consistency of {group.label}",
        subtitle=f"{len(members)} {'run' if len(members) == 1 else 'runs'} "
        f"({', '.join(group.runs)}) at {origin.get('hook_point')} of {origin.get('model')}; "
        f"latents ranked on {rows}.",
    )


def _findings(
    material: _Material, group: Group, place: int, config: ConsistencyConfig
) -> ConsistencyFindings:
    runs = dict(zip(group.members, group.runs, strict=True))
    others = [other for other in group.members if other != place]
    directions = material.directions[place]
    saved = material.dictionaries[place]
    return ConsistencyFindings(
        saved=saved,
        run=runs[place],
        directions=directions,
        activity=material.activity(place),
        rows=material.rows.get(saved.content_hash, {"rows": "none"}),
        comparisons={runs[other]: material.comparisons[place, other] for other in others},
        scores=material.scores(place, others) if others else None,
        floor=floor_of(directions, [material.directions[other] for other in others], config.seed)
        if others
        else None,
    )


def _against(material: _Material, group: Group, groups: Sequence[Group]) -> dict[str, list[Scores]]:
    """Scores of a group's members against each group; its own comes first, if it has others."""
    against: dict[str, list[Scores]] = {}
    if len(group.members) > 1:
        against[OWN_RUNS] = [
            material.scores(place, [other for other in group.members if other != place])
            for place in group.members
        ]
    for other in groups:
        if other is not group:
            against[other.label] = [
                material.scores(place, other.members) for place in group.members
            ]
    return against


def _matrix(
    material: _Material, groups: Sequence[Group], config: ConsistencyConfig
) -> dict[str, Any]:
    """Means over the pairs of each two groups; None where a group has no second run."""
    cells: dict[str, list[list[float | None]]] = {
        "mcs_mean": [],
        "one_to_one_mean": [],
        "mcs_share": [],
    }
    for group in groups:
        rows: dict[str, list[float | None]] = {name: [] for name in cells}
        for other in groups:
            scores = [
                material.scores(place, [one])
                for place in group.members
                for one in other.members
                if one != place
            ]
            measured = {
                "mcs_mean": [float(one.mcs.mean()) for one in scores],
                "one_to_one_mean": [float(one.one_to_one.mean()) for one in scores],
                "mcs_share": [
                    float((one.mcs > config.threshold).double().mean()) for one in scores
                ],
            }
            for name, values in measured.items():
                rows[name].append(sum(values) / len(values) if values else None)
        for name, row in rows.items():
            cells[name].append(row)
    return {"groups": [group.label for group in groups], "threshold": config.threshold, **cells}


def _numbers(
    findings: ConsistencyFindings, config: ConsistencyConfig
) -> tuple[dict[str, float | int], dict[str, object]]:
    """The numbers of a dictionary, and the facts that their definitions name."""
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
    return values, facts


def _features(findings: ConsistencyFindings) -> dict[str, Any]:
    """One parquet row per latent; null where a number is undefined or the latent is not compared.

    Columns: latent, compared, density, max_activation, z_score, mcs and one_to_one (means over the
    others), and for each other run cosine, nearest, partner and partner_cosine, such as
    `cosine_seed_1`.
    """
    import pyarrow

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
    return columns
