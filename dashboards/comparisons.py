"""Results of `saelab compare` below the folders given, and what a page shows of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.errors import ArtifactError
from saelab.formats.manifest import read_manifest, require_fields
from saelab.report.compare_figures import comparison_figures
from saelab.report.figure import Figure
from saelab.report.page import format_value, unit_text

from .run_index import walk

COMPARISON_FILE = "compare.json"
KIND = "comparison"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison of training methods, as read from its file."""

    title: str
    notes: list[str]
    """What a reader should know, in sentences."""
    spread: str
    """What the numbers are means over, in a sentence."""
    figure_data: dict[str, Any]
    """By figure name, the data of each figure of that kind."""
    rows: list[dict[str, Any]]
    """Means over seeds, a row per method, width and k."""
    definitions: dict[str, dict[str, str]]
    """Heading, unit and definition by number."""
    path: Path
    """Its file."""

    def figures(self) -> list[Figure]:
        """Its figures.

        Raises:
            ArtifactError: their data is not what a comparison writes.
        """
        return comparison_figures(self.figure_data, str(self.path))


def find_comparisons(roots: Sequence[Path]) -> dict[str, Path]:
    """Files of comparisons by what a page calls them: the folder given, and the way from there."""
    return dict(_found(roots))


def _found(roots: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    for root in roots:
        root = Path(root).resolve()
        if not root.is_dir():
            continue
        for folder, names in walk(root, []):
            if COMPARISON_FILE in names:
                way = folder.relative_to(root).as_posix()
                yield root.name if way == "." else f"{root.name}/{way}", folder / COMPARISON_FILE


def read_comparison(path: Path) -> Comparison:
    """Read and check a comparison.

    Raises:
        ArtifactError: missing, damaged, of another kind, or from a newer saelab.
    """
    content = read_manifest(path, KIND)
    needed = {
        "notes": list,
        "spread": str,
        "definitions": dict,
        "rows": list,
        "figure_data": dict,
        "dictionaries": list,
        "made_from": dict,
    }
    require_fields(content, needed, path)
    for row in content["rows"]:
        if not isinstance(row, dict):
            raise ArtifactError(f"{path} has a row that is no object: it was edited; compare again")
        require_fields(row, {"label": str, "seeds": list, "values": dict}, path)
    for definition in content["definitions"].values():
        if not isinstance(definition, dict):
            raise ArtifactError(f"{path} has a definition that is no object: it was edited")
        require_fields(definition, {"heading": str, "unit": str, "definition": str}, path)
    labels = list(dict.fromkeys(row["label"] for row in content["rows"]))
    origin = content["made_from"]
    return Comparison(
        title=f"{len(content['dictionaries'])} dictionaries of {len(labels)} training methods at "
        f"{origin.get('hook_point')} of {origin.get('model')}",
        notes=[str(note) for note in content["notes"]],
        spread=content["spread"],
        figure_data=content["figure_data"],
        rows=content["rows"],
        definitions=content["definitions"],
        path=path,
    )


def comparison_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the means over seeds."""
    numbers = list(comparison.definitions)
    headings = ["method", "latents", "k", "seeds"]
    headings += [comparison.definitions[name]["heading"] for name in numbers]
    rows = [
        [
            row["label"],
            format_value(row.get("d_sae")),
            format_value(row.get("k")),
            str(len(row["seeds"])),
            *(_spread_text(row["values"].get(name)) for name in numbers),
        ]
        for row in comparison.rows
    ]
    return headings, rows


def _spread_text(value: Any) -> str:
    """Mean ± standard deviation; a dash for what was not measured."""
    if not isinstance(value, Mapping) or value.get("mean") is None:
        return "—"
    mean = format_value(value["mean"])
    return mean if value.get("sd") is None else f"{mean} ± {value['sd']:.2g}"


def definition_rows(comparison: Comparison) -> list[list[str]]:
    """What every number means."""
    return [
        [one["heading"], unit_text(one["unit"]), one["definition"]]
        for one in comparison.definitions.values()
    ]
