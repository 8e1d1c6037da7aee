"""What several dictionaries of one hook point show together, and the files that say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saelab.errors import ConfigError
from saelab.formats.evaluation_result import EvaluationResult
from saelab.formats.files import atomic_path
from saelab.formats.manifest import new_manifest, write_manifest

from .breakdown import Breakdown, Member, break_down
from .contours import CONTOURED, contour_data
from .definitions import define
from .part_sums import VECTORS
from .scaling import measure_scaling
from .token_file import NORMS, trace_of

KIND = "dark_matter_family"
JSON_FILE = "dark_matter_family.json"
PARQUET_FILE = "dark_matter_family.parquet"
PAGE_FILE = "dark_matter_family.html"
MOST_LINES = 12
RECOVERED = "downstream_recovered_"


@dataclass
class Family:
    """Figures and notes on several dictionaries."""

    members: list[Member]
    """From narrow to wide, and from few to many active latents."""
    figure_data: dict[str, Any] = field(default_factory=dict)
    """By figure name."""
    notes: list[str] = field(default_factory=list)
    """What could not be shown and why, in sentences."""


def family_of(
    results: Sequence[EvaluationResult],
    token_files: Sequence[Path],
    *,
    breakdown_l0: float | None,
    ridge: float,
) -> Family:
    """Run every analysis that compares dictionaries; what is not possible becomes a note.

    Args:
        results: of the dictionaries.
        token_files: of each, of the same rows.
        breakdown_l0: see `break_down`.
        ridge: regularisation of the regressions between error norms.
    """
    members = sorted(
        (_member(result, path) for result, path in zip(results, token_files, strict=True)),
        key=lambda one: (one.d_sae, one.l0, one.name),
    )
    family = Family(members)
    broken_down = _add_breakdown(family, breakdown_l0)
    _add_contours(family)
    shown = members if broken_down is None else broken_down.members
    shown = shown[:: -(-len(shown) // MOST_LINES)]
    if len(shown) > 1:
        paths = [one.token_file for one in shown]
        labels = _labels(shown)
        scaling = measure_scaling(paths, ridge).figure_data(labels)
        family.figure_data |= {"scaling_matrix": scaling, "scaling_gain": scaling}
        family.figure_data |= _traces(labels, paths)
    family.figure_data["norm_test_violin"] = {
        "vectors": list(VECTORS),
        "names": [one.name for one in members],
        "values": {name: [one.number(f"norm_test_{name}") for one in members] for name in VECTORS},
    }
    if all(one.number("norm_test_error") is None for one in members):
        del family.figure_data["norm_test_violin"]
    _add_recovery(family)
    return family


def write_family(
    out: Path, family: Family, settings: dict[str, Any], made_from: dict[str, Any]
) -> Path:
    """Write the family's JSON and its table with a row per dictionary; returns the JSON's path."""
    import pyarrow
    from pyarrow import parquet

    names = list(dict.fromkeys(name for one in family.members for name in one.values))
    columns: dict[str, Any] = {
        "name": [one.name for one in family.members],
        "d_sae": [one.d_sae for one in family.members],
        **{
            name: pyarrow.array([one.values.get(name) for one in family.members], pyarrow.float64())
            for name in names
        },
    }
    with atomic_path(out / PARQUET_FILE) as temporary:
        parquet.write_table(pyarrow.table(columns), temporary)
    content = new_manifest(
        KIND, seed=settings.get("seed"), config=settings, made_from=made_from
    ) | {
        "notes": family.notes,
        "dictionaries": [
            {"name": one.name, "d_sae": one.d_sae, "l0": one.l0, "values": one.values}
            for one in family.members
        ],
        "figure_data": family.figure_data,
        "item_files": {"dictionaries": PARQUET_FILE},
    }
    write_manifest(out / JSON_FILE, content)
    return out / JSON_FILE


def _member(result: EvaluationResult, token_file: Path) -> Member:
    values = {metric.name: metric.value for metric in result.metrics}
    return Member(
        name=result.dictionary_name,
        d_sae=int(result.made_from["d_sae"]),
        l0=float(values["l0_mean"] or 0.0),
        values=values,
        token_file=token_file,
    )


def _add_breakdown(family: Family, l0: float | None) -> Breakdown | None:
    try:
        found = break_down(family.members, l0)
    except ConfigError as error:
        family.notes.append(f"No breakdown over width: {error}.")
        return None
    family.notes += [f"Left out of the breakdown over width: {text}." for text in found.left_out]
    if found.refused is not None:
        family.notes.append(f"In the breakdown over width {found.refused}.")
    family.figure_data["breakdown"] = found.figure_data()
    if found.fit is not None:
        family.figure_data["asymptote"] = found.figure_data()
    return found


def _add_contours(family: Family) -> None:
    for metric in CONTOURED:
        try:
            data = contour_data(family.members, metric)
        except ConfigError as error:
            family.notes.append(f"No contours over width and L0: {error}.")
            return
        family.figure_data[f"contour_{metric}"] = data | {"definition": define(metric).text}


def _add_recovery(family: Family) -> None:
    """What adding each part of the error recovers, where splicing was measured."""
    measured = [one for one in family.members if one.number(f"{RECOVERED}ce_linear") is not None]
    if measured:
        family.figure_data["family_recovery"] = {
            "labels": _labels(measured),
            "measures": {
                name: {
                    part: [one.number(f"downstream_{name}_{part}") for one in measured]
                    for part in ("linear", "nonlinear")
                }
                for name in ("recovered_ce", "recovered_r_squared", "norm_share")
            },
        }


def _labels(members: Sequence[Member]) -> list[str]:
    """Width, with the L0 or the name where widths repeat."""
    by_width = [f"{one.d_sae:,}" for one in members]
    if len(set(by_width)) == len(members):
        return by_width
    with_l0 = [f"{one.d_sae:,}, L0 {one.l0:.3g}" for one in members]
    if len(set(with_l0)) == len(members):
        return with_l0
    names = [one.name for one in members]
    if len(set(names)) == len(members):
        return names
    return [f"{place + 1}: {name}" for place, name in enumerate(names)]


def _traces(labels: Sequence[str], paths: Sequence[Path]) -> dict[str, Any]:
    """Norms at the same neighbouring tokens, per dictionary."""
    traces = [trace_of(path) for path in paths]
    first = traces[0]
    return {
        f"family_trace_{name}": {
            "part": name,
            "labels": list(labels),
            "sequence": first["sequence"][:1],
            "position": first["position"],
            "norm": [trace[f"{name}_norm"] for trace in traces],
        }
        for name in NORMS[2:]
    }
