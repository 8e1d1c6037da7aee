"""Puts a comparison together: evaluates what is missing of every dictionary, reports on all.

Everything that can be wrong is checked before the first forward pass. The suites write their own
results beside each dictionary as they go, so a comparison that is stopped loses at most the part
being evaluated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from saelab.config import to_plain
from saelab.errors import ConfigError
from saelab.formats.evaluation_result import RESULT_KINDS
from saelab.formats.files import hash_of, read_json, sha256_of
from saelab.formats.manifest import check_manifest
from saelab.stats.bootstrap import Estimate
from saelab.stats.spread import Spread

from ..definitions import Definition
from ..suite import Measurement
from .candidates import Candidate, check_comparable, notes_on, read_candidates
from .charts import charts_of
from .jobs import RESULTS_FOLDER, suite_results, without_live_latents
from .numbers import MeasuredCandidate, Results, columns_of, measured
from .other_suites import charts_of_other_suites
from .rows import (
    MethodComparison,
    Row,
    compare_at_common_l0,
    labels_in_order,
    mode_rows_of,
    reference_label,
    rows_of,
)
from .suite import SUITE, CompareConfig
from .tables import SECTIONS, tables_of

SHARED = ("model", "model_hash", "hook_point", "text", "text_hash", "context_length")


def measure_comparison(
    folders: Sequence[Path], outs: Sequence[Path], config: CompareConfig
) -> Iterator[Measurement]:
    """Compare dictionaries.

    Args:
        folders: runs of `saelab train`, which stand for all their dictionaries, or dictionaries.
        outs: the one folder of the comparison.
        config: settings.

    Raises:
        ConfigError: nothing to compare, dictionaries that cannot be compared, results of other
            settings, or a comparison of other dictionaries in the folder.
        ArtifactError: a run that is not complete, or something damaged.
        SaelabError: whatever the suites refuse.
    """
    if not folders:
        raise ConfigError("no run was given: type `saelab compare RUN [RUN …]`")
    candidates = read_candidates(folders, config)
    check_comparable(candidates)
    _check_replaceable(outs[0] / f"{SUITE.stem}.json", candidates, config)
    comparison = assemble(candidates, suite_results(candidates, config), config)
    yield _measurement(comparison, outs[0])


def _check_replaceable(path: Path, candidates: Sequence[Candidate], config: CompareConfig) -> None:
    """Refuse to replace a comparison that could not be made again from what is given."""
    if not path.exists() or config.overwrite:
        return
    content = read_json(path)
    kind = content.get("kind") if isinstance(content, dict) else None
    check_manifest(content, path, kind if kind in RESULT_KINDS else RESULT_KINDS[0])
    old = set((content.get("made_from") or {}).get("dictionaries") or ())
    lost = old - {candidate.content_hash for candidate in candidates}
    if lost:
        raise ConfigError(
            f"{path} compares {len(lost)} dictionaries that are not given now: give another --out, "
            "name them too, or replace it with --overwrite"
        )


def assemble(
    candidates: Sequence[Candidate], results: Results, config: CompareConfig
) -> MethodComparison:
    """Everything a report shows, from results that are there.

    Raises:
        ArtifactError: a result lacks what its suite writes.
    """
    members = measured(candidates, results, config)
    rows, reference = rows_of(members), reference_label(members, config)
    compared = compare_at_common_l0(members, rows, config)
    notes = notes_on(candidates)
    if dead := without_live_latents(candidates, results["core"]):
        named = ", ".join(candidate.name for candidate in dead)
        notes.append(f"Fewer than two live latents, so neither consistency nor steering: {named}.")
    if config.reference not in {candidate.method for candidate in candidates}:
        notes.append(
            f"No dictionary is of the method {config.reference}: differences are taken to "
            f"{reference}."
        )
    if not compared:
        notes.append(
            "Only one target L0: nothing to interpolate between, so methods are not compared "
            "with one another at the same L0."
        )
    return MethodComparison(
        config=config,
        members=members,
        columns=columns_of(members, config),
        rows=rows,
        reference=reference,
        compared=compared,
        modes=mode_rows_of(rows),
        notes=notes,
    )


def _measurement(comparison: MethodComparison, out: Path) -> Measurement:
    candidates = [member.candidate for member in comparison.members]
    hashes = [candidate.content_hash for candidate in candidates]
    spec, names = candidates[0].spec, labels_in_order(comparison.members)
    shared = {name: candidates[0].origin.get(name) for name in SHARED}
    sites = list(dict.fromkeys(candidate.spec.site for candidate in candidates))
    shared["hook_point"] = str(sites[0]) if len(sites) == 1 else " + ".join(sites[0].writes)
    shared["row_rule"] = to_plain(spec.token_filter)
    definitions, numbers = _numbers(comparison)
    return Measurement(
        name=f"{len(candidates)} dictionaries",
        content_hash=hash_of(hashes),
        out=out,
        numbers=numbers,
        made_from=shared | {"dictionaries": hashes},
        settings={"reference": comparison.reference},
        facts={"definitions": definitions},
        data={
            "charts": (*charts_of(comparison), *charts_of_other_suites(comparison.members)),
            "tables": tables_of(comparison),
        },
        rows=_rows(comparison),
        title=f"{len(names)} training {'method' if len(names) == 1 else 'methods'} compared",
        subtitle=f"{len(candidates)} dictionaries at {shared['hook_point']} of {shared['model']}: "
        f"{', '.join(names)}. Held-out part of {spec.text.source}, contexts of "
        f"{spec.context_length} tokens.",
        notes=tuple(comparison.notes),
    )


def _numbers(comparison: MethodComparison) -> tuple[list[Definition], dict[str, float | None]]:
    """The mean of every number over the seeds of each row, such as `topk/d4608/k32/fvu`."""
    definitions, numbers = [], {}
    for section, names in SECTIONS.items():
        for row in comparison.rows:
            for name in names:
                if name in comparison.columns:
                    column, key = comparison.columns[name], f"{row.path}/{name}"
                    numbers[key] = row.values[name].mean
                    definitions.append(replace(column, name=key, group=section))
    return definitions, numbers


def _rows(comparison: MethodComparison) -> dict[str, dict[str, Any]]:
    """The numbers for machines, null where undefined: of each dictionary, and with their spread
    those of each row, at common L0, and of other inference modes."""
    columns, compared = comparison.columns, comparison.compared
    tables = {
        "dictionaries": [_dictionary(member, columns) for member in comparison.members],
        "rows": [
            _group(row)
            | {"seeds": row.seeds}
            | _spreads({name: row.values[name] for name in columns})
            | _ends({name: row.documents[name] for name in row.documents if name in columns})
            for row in comparison.rows
        ],
        "common_l0": [
            {
                name: getattr(at, name)
                for name in ("label", "d_sae", "metric", "l0", "seeds", "outside")
            }
            | _spreads({"value": at.value, "difference": at.difference})
            | _ends({"difference": at.documents})
            for at in compared
        ],
        "inference_modes": [
            _group(mode.row) | {"mode": mode.mode} | _spreads(mode.values)
            for mode in comparison.modes
        ],
    }
    return {items: _by_column(rows) for items, rows in tables.items() if rows}


def _dictionary(member: MeasuredCandidate, columns: Iterable[str]) -> dict[str, Any]:
    """What a dictionary is, its numbers, and the SHA-256 of the results that they are from."""
    candidate = member.candidate
    names = ("name", "method", "label", "d_sae", "k", "seed", "n_tokens")
    return {
        "folder": str(candidate.folder),
        "hash": candidate.content_hash,
        **{name: getattr(candidate, name) for name in names},
        **{name: member.values[name] for name in columns},
        **{
            f"{suite}_sha256": sha256_of(candidate.folder / RESULTS_FOLDER / f"{suite}.json")
            for suite in member.results
        },
    }


def _group(row: Row) -> dict[str, Any]:
    return {"label": row.label, "d_sae": row.d_sae, "k": row.k}


def _spreads(values: Mapping[str, Spread]) -> dict[str, float | None]:
    """Mean, standard deviation and number of seeds of each number, a column for each."""
    columns: dict[str, float | None] = {}
    for name, spread in values.items():
        columns |= {name: spread.mean, f"{name}_sd": spread.sd, f"{name}_n": spread.n}
    return columns


def _ends(estimates: Mapping[str, Estimate]) -> dict[str, float | None]:
    """Both ends of each number's interval over documents, a column for each."""
    low = {f"{name}_low": estimate.low for name, estimate in estimates.items()}
    return low | {f"{name}_high": estimate.high for name, estimate in estimates.items()}


def _by_column(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows as columns; those without a value are numbers."""
    import pyarrow

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return {
        name: pyarrow.nulls(len(rows), pyarrow.float64())
        if all(value is None for value in values)
        else values
        for name, values in columns.items()
    }
