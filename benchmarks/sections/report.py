"""The results folder: one JSON per section, and one Markdown page made of all that are there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sections.common import SectionResult

PAGE = "results.md"
# quality first: it captures the real rows that the step and methods sections then use.
SECTIONS = ["quality", "step", "methods", "transcoder", "cross_layer", "many", "harvest"]
SECTIONS += ["reader", "pursuit", "features", "defaults"]


def write_section(folder: Path, name: str, result: SectionResult, facts: dict[str, Any]) -> None:
    """Write a section's JSON with the facts of the machine it was measured on."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"section": name, "machine": facts, **result.to_json()}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def write_page(folder: Path) -> Path:
    """Write the page of all sections that have a JSON in the folder."""
    results = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    page = folder / PAGE
    page.write_text(page_text(results))
    return page


def page_text(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page of all sections, in the order in which they are measured."""
    parts = ["# Benchmark results", "Made by `make bench`; do not edit."]
    parts += [section_text(results[name]) for name in SECTIONS if name in results]
    return "\n\n".join(parts) + "\n"


def section_text(section: Mapping[str, Any]) -> str:
    """One section as Markdown: where it was measured, the table, notes, and the promises."""
    parts = [f"## {section['title']}", _facts_line(section["machine"])]
    parts.append(_table(section["columns"], section["rows"]))
    if section["notes"]:
        parts.append("\n".join(f"* {note}" for note in section["notes"]))
    if section["checks"]:
        parts.append(_table(["promise", "measured", "target", ""], _check_rows(section["checks"])))
    return "\n\n".join(parts)


def _check_rows(checks: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            check["what"],
            f"{check['measured']:.3g}",
            f"{'at least' if check['at_least'] else 'at most'} {check['target']:.3g}",
            "met" if check["met"] else "**not met**",
        ]
        for check in checks
    ]


def _facts_line(machine: dict[str, Any]) -> str:
    flags = ", ".join(machine["cpu_flags"])
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads used, {flags}; "
        f"{machine['memory_gib']} GiB; {machine['system']}; Python {machine['python']}, "
        f"torch {machine['torch']}, saelab {machine['saelab']}."
    )


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
