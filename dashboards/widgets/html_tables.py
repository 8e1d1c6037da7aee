"""Tables as HTML: features with real links that a keyboard reaches, and numbers with definitions.

Everything that comes from a model, a text, a file or a person is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import urlencode

from .token_html import visible

SHOWN_LABEL = 60
"""Characters of a label that a table shows."""


@dataclass(frozen=True)
class Chip:
    """One active feature at one token."""

    feature: int
    href: str
    label: str
    """A few characters of what it stands for."""
    text: str
    """Its activation."""
    hint: str
    """Shown on hover, and read out."""


def feature_href(params: Mapping[str, str]) -> str:
    """Address of the feature page, from any page of the dashboard."""
    return "feature?" + urlencode(params)


def short_label(text: str) -> str:
    """A label that fits into a row."""
    return text if len(text) <= SHOWN_LABEL else f"{text[: SHOWN_LABEL - 1]}…"


def chips_table(caption: str, rows: Sequence[tuple[str, bool, Sequence[Chip], int]]) -> str:
    """Tokens from top to bottom, each with its features.

    Args:
        caption: read out before the table.
        rows: token, whether it counts, its features in order, and how many are not shown.
    """
    body = "".join(_chips_row(place, *row) for place, row in enumerate(rows))
    return _wrapped(
        f"<table><caption>{escape(caption)}</caption><thead><tr><th scope=col>#</th>"
        "<th scope=col>token</th><th scope=col>active features</th></tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _chips_row(place: int, token: str, counted: bool, chips: Sequence[Chip], more: int) -> str:
    shown = "".join(
        f'<a class="chip" href="{escape(chip.href)}" title="{escape(chip.hint)}">'
        f"<b>{chip.feature}</b> <bdi>{escape(chip.label)}</bdi> "
        f"<small>{escape(chip.text)}</small></a> "
        for chip in chips
    )
    if not counted:
        shown = '<span class="muted">does not count</span>'
    elif more:
        shown += f'<span class="muted">+ {more}</span>'
    return (
        f'<tr><td class="muted num">{place}</td>'
        f'<th scope=row class="token"><bdi>{visible(token)}</bdi></th><td>{shown}</td></tr>'
    )


def linked_table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[tuple[int, str, Sequence[str]]],
) -> str:
    """A table of features whose first column links to their pages.

    Args:
        caption: read out before the table.
        columns: titles of the cells behind the feature, the last one set left as text.
        rows: feature, address of its page, cells as text.
    """
    head = "".join(
        f'<th scope=col class="{"text" if place == len(columns) - 1 else "num"}">'
        f"{escape(column)}</th>"
        for place, column in enumerate(columns)
    )
    body = "".join(
        f'<tr><th scope=row><a href="{escape(href)}">{feature}</a></th>{_cells(cells)}</tr>'
        for feature, href, cells in rows
    )
    return _wrapped(
        f"<table><caption>{escape(caption)}</caption><thead><tr><th scope=col>feature</th>{head}"
        f"</tr></thead><tbody>{body}</tbody></table>"
    )


def _cells(cells: Sequence[str]) -> str:
    last = len(cells) - 1
    return "".join(
        f'<td class="text"><bdi>{visible(cell) if cell else ""}</bdi></td>'
        if place == last
        else f'<td class="num">{escape(cell)}</td>'
        for place, cell in enumerate(cells)
    )


def plain_table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[int]
) -> str:
    """A table whose first column heads its row.

    Args:
        caption: read out before the table, and shown above it.
        columns: titles.
        rows: cells as text.
        numeric: places of the columns that are set right-aligned.
    """

    def kind(place: int) -> str:
        return "num" if place in numeric else "text" if place else "head"

    head = "".join(
        f'<th scope=col class="{kind(place)}">{escape(column)}</th>'
        for place, column in enumerate(columns)
    )
    body = "".join(
        f'<tr><th scope=row class="head">{escape(row[0])}</th>'
        + "".join(
            f'<td class="{kind(place)}">{escape(cell)}</td>'
            for place, cell in enumerate(row[1:], start=1)
        )
        + "</tr>"
        for row in rows
    )
    return _wrapped(
        f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _wrapped(table: str) -> str:
    return f'<style>{STYLE}</style><div class="saelab-table" tabindex="0">{table}</div>'


STYLE = (
    ".saelab-table{overflow-x:auto;font-size:.92rem}"
    ".saelab-table table{border-collapse:collapse;width:100%}"
    ".saelab-table caption{text-align:left;font-size:.85rem;font-weight:600;"
    "color:light-dark(#55606c,#a7b0ba);padding:.5rem 0 .15rem}"
    ".saelab-table .head{min-width:12rem}.saelab-table td.text{min-width:6.5rem}"
    ".saelab-table th,.saelab-table td{padding:.22rem .6rem .22rem 0;text-align:left;"
    "vertical-align:top;border-bottom:1px solid light-dark(#d5dae0,#3a424c)}"
    ".saelab-table thead th{font-size:.8rem;font-weight:600;color:light-dark(#55606c,#a7b0ba)}"
    ".saelab-table .num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}"
    ".saelab-table .text{padding-left:.6rem;overflow-wrap:anywhere}"
    ".saelab-table .muted{color:light-dark(#55606c,#a7b0ba);font-size:.8rem}"
    ".saelab-table .token{font-weight:600;white-space:pre-wrap;overflow-wrap:anywhere;"
    "max-width:16rem}"
    ".saelab-table a{color:light-dark(#0b62ab,#7ab8ee)}"
    ".saelab-table a.chip{display:inline-block;text-decoration:none;padding:0 .45rem;margin:1px 0;"
    "border:1px solid light-dark(#c3cad2,#4a535e);border-radius:.7rem;white-space:nowrap}"
    ".saelab-table a.chip:hover,.saelab-table a.chip:focus-visible{"
    "background:light-dark(#e4edf6,#26323f)}"
    ".saelab-table a.chip small{color:light-dark(#55606c,#a7b0ba)}"
    ".saelab-table .unseen{opacity:.75;font-size:.8em}"
)
