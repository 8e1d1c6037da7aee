"""The table of counts in `docs/reliability.md`, made from the campaign's JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- counts: begin -->", "<!-- counts: end -->"
TITLES = {
    "kills": ("Kills", "command"),
    "mutations": ("Damaged artifacts, read", "kind of file"),
    "mending": ("Damaged work, gone on with or replaced", "state and command"),
    "limits": ("Something is missing", "what is missing"),
    "pairs": ("Two writers at a time", "command"),
}


def table(report: dict[str, Any]) -> str:
    """The counts as Markdown, a table for each part."""
    lines = [
        f"Seed {report['seed']}, {report['seconds'] / 60:.0f} minutes, "
        f"{len(report['faults'])} faults.",
        "",
    ]
    for part, rows in report["counts"].items():
        title, what = TITLES[part]
        names = list(dict.fromkeys(name for counts in rows.values() for name in counts))
        names = [*(name for name in names if name != "faults"), "faults"]
        total = {name: sum(counts.get(name, 0) for counts in rows.values()) for name in names}
        lines += [f"**{title}**", "", f"| {what} | {' | '.join(names)} |"]
        lines.append(f"|---|{'---:|' * len(names)}")
        for of, counts in [*rows.items(), ("all", total)]:
            cells = " | ".join(f"{counts.get(name, 0):,}" for name in names)
            lines.append(f"| {of} | {cells} |")
        lines.append("")
    return "\n".join(lines)


def write_table(report: dict[str, Any]) -> None:
    """Put the counts in their place on the page."""
    text = PAGE.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n{table(report)}{END}{tail}")
