"""`run_consistency`: compare the latents of runs that differ in their seed, and of methods.

Everything that can be wrong is checked before the first row is encoded; results are written when
all numbers are there, the JSON last, so a result that exists is complete.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from saelab.dictionary import SavedDictionary, load_dictionary
from saelab.errors import ArtifactError
from saelab.formats.evaluation_result import EvaluationResult, write_evaluation_result
from saelab.model.devices import resolve_device
from saelab.stats.cosines import Directions, directions_of

from ..pages import page_if
from ..subjects import result_folders
from .activity import Activity
from .compare import Comparison, compare_pairs
from .config import ConsistencyConfig
from .figure_data import across_figures, group_figures
from .groups import Group, form_groups
from .report import write_report
from .result import FEATURES_FILE, Findings, build_result, write_features
from .row_source import rank
from .scores import Scores, floor_of, scores_of

logger = logging.getLogger(__name__)

RESULT_FILE = "consistency.json"
REPORT_FILE = "consistency.html"
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


def run_consistency(
    folders: Sequence[Path], config: ConsistencyConfig, *, pages: bool = True
) -> list[EvaluationResult]:
    """Compare dictionaries; writes `consistency.json`, a row per latent and a page for each.

    The page is that of the dictionary's group: the same for all its members.

    Args:
        folders: saved dictionaries.
        config: settings.
        pages: whether to write `consistency.html`, 5 MB each; without it, one that lies there is
            removed.

    Returns:
        The results in the order of the folders.

    Raises:
        ConfigError: nothing to compare, or nothing comparable; a result that exists and may not be
            overwritten; no such device.
        ArtifactError: a folder that is no intact dictionary, does not fit its model, or has no
            live latent.
        ModelError: an unknown model or hook point.
        TextError: too little held-out text.
        ActivationError: activations or codes that are not finite.
    """
    places = result_folders(folders, config.out, RESULT_FILE, overwrite=config.overwrite)
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
    results: dict[int, EvaluationResult] = {}
    for group in groups:
        results |= _evaluate(material, group, groups, shared, places, config, pages=pages)
    return [results[place] for place in range(len(folders))]


def _directions(saved: SavedDictionary, activity: Activity | None) -> Directions:
    found = directions_of(saved.dictionary.W_dec, None if activity is None else activity.alive())
    if len(found.latent) == 0:
        raise ArtifactError(
            f"{saved.folder} has no live latent: none of {saved.dictionary.d_sae:,} was active on "
            "the held-out rows; evaluate more text, or compare all latents with --no-activity"
        )
    return found


def _evaluate(
    material: _Material,
    group: Group,
    groups: Sequence[Group],
    shared: dict[str, Any],
    places: Sequence[Path],
    config: ConsistencyConfig,
    *,
    pages: bool,
) -> dict[int, EvaluationResult]:
    """Results of one group's members, written."""
    findings = {place: _findings(material, group, place, config) for place in group.members}
    figures = dict(shared)
    scored = [(one.run, one.scores, one.floor) for one in findings.values()]
    if all(scores is not None for _, scores, _ in scored):
        figures |= group_figures(
            [scores for _, scores, _ in scored if scores is not None],
            [run for run, _, _ in scored],
            [floor for _, _, floor in scored if floor is not None],
            config.threshold,
        )
    if config.across:
        figures |= across_figures(_against(material, group, groups), group.label, config.threshold)
    members = dict(zip(group.runs, (material.dictionaries[p] for p in group.members), strict=True))
    built = {
        place: build_result(one, group, members, figures, config) for place, one in findings.items()
    }
    everyone = list(built.values())
    return {
        place: _write(places[place], result, findings[place], everyone, page=pages)
        for place, result in built.items()
    }


def _findings(material: _Material, group: Group, place: int, config: ConsistencyConfig) -> Findings:
    runs = dict(zip(group.members, group.runs, strict=True))
    others = [other for other in group.members if other != place]
    directions = material.directions[place]
    saved = material.dictionaries[place]
    return Findings(
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


def _write(
    out: Path,
    result: EvaluationResult,
    findings: Findings,
    group: Sequence[EvaluationResult],
    *,
    page: bool,
) -> EvaluationResult:
    # An old result stays until the new one replaces it: stopping here loses none.
    out.mkdir(parents=True, exist_ok=True)
    write_features(out / FEATURES_FILE, findings)
    page_if(page, out / REPORT_FILE, lambda path: write_report(path, group))
    written = write_evaluation_result(out / RESULT_FILE, result)
    logger.info("wrote %s", out / RESULT_FILE)
    return written
