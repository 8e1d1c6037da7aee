"""Tables as HTML with real links that a keyboard reaches, in the look of the pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from saelab.report.page import html_table

from .token_html import format_number, visible_text


def chip(feature: int, href: str, label: str, text: str, hint: str) -> str:
    """A link to a feature that is active at a token."""
    return (
        f'<a class="chip" href="{escape(href)}" title="{escape(hint)}"><b>{feature}</b> '
        f"<bdi>{escape(label)}</bdi> <small>{escape(text)}</small></a> "
    )


def page_table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], kind: str = "plain"
) -> str:
    """A table as `html_table` makes it, with the style it needs."""
    table = html_table(caption, columns, rows, kind)
    return f'<style>{STYLE}</style><div class="saelab-table">{table}</div>'


def link_list(items: Sequence[tuple[str, str, str]]) -> str:
    """Links with words beside them, as one element of the page: many small ones are slow.

    Args:
        items: address, text of the link, words.
    """
    rows = "".join(
        f'<li><a href="{escape(href)}"><b>{escape(text)}</b> <bdi>{escape(visible_text(words))}'
        "</bdi></a></li>"
        for href, text, words in items
    )
    return f'<style>{STYLE}</style><ul class="saelab-table links">{rows or "<li>none</li>"}</ul>'


def link_columns(lists: Sequence[tuple[str, str, Sequence[tuple[str, str, str]]]]) -> str:
    """Lists of links side by side, each with title and definition."""
    columns = "".join(
        f"<section><h3>{escape(title)}</h3><small>{escape(definition)}</small>{link_list(items)}"
        "</section>"
        for title, definition, items in lists
    )
    return f'<style>{STYLE}</style><div class="saelab-columns">{columns}</div>'


def link_row(links: Sequence[tuple[str, str | None]]) -> str:
    """Links beside one another by their text; one without address leads nowhere."""
    items = "".join(
        f'<span aria-disabled="true">{escape(text)}</span>'
        if href is None
        else f'<a href="{escape(href)}">{escape(text)}</a>'
        for text, href in links
    )
    return (
        f'<style>{STYLE}</style><nav class="saelab-row" aria-label="Other features">{items}</nav>'
    )


def linked_table(
    caption: str,
    columns: Mapping[str, Sequence[Any]],
    hrefs: Sequence[str],
    *,
    hints: Mapping[str, str] | None = None,
    heads: Mapping[str, str] | None = None,
    sorted_by: tuple[str, bool] = ("", False),
    peeks: Sequence[str] = (),
) -> str:
    """Rows that are links: a click anywhere follows it, a middle click opens a tab.

    It is as wide as its place: what does not fit ends in "…" and is shown whole in a hint, and
    narrow places show the first columns.

    Args:
        caption: read out before the table.
        columns: by title, a number or text for each row; the first holds the link.
        hrefs: address of each row.
        hints: definition of a column.
        heads: address behind the title of a column.
        sorted_by: column in whose order the rows are, and whether the largest comes first.
        peeks: HTML shown while a row is pointed at or has the focus; none or one for each.
    """
    numeric = {
        title: all(value is None or isinstance(value, int | float) for value in values)
        for title, values in columns.items()
    }
    kept = _kept_when_narrow(numeric, sorted_by[0])

    def kind(title: str) -> str:
        return " ".join(filter(None, ("number" if numeric[title] else "", kept[title])))

    def head(title: str) -> str:
        hint = escape((hints or {}).get(title, ""))
        sort, text = "", escape(title)
        if title == sorted_by[0]:
            sort = f' aria-sort="{"descending" if sorted_by[1] else "ascending"}"'
            text += " ▾" if sorted_by[1] else " ▴"
        if href := (heads or {}).get(title):
            text = f'<a href="{escape(href)}">{text}</a>'
        width = f' style="width:{_WIDTHS[title]}"' if title in _WIDTHS else ""
        return f'<th scope="col" class="{kind(title)}"{width} title="{hint}"{sort}>{text}</th>'

    def cell(title: str, value: Any) -> str:
        text = "" if value == "" else escape(visible_text(format_number(value)))
        hint = "" if numeric[title] else f' title="{text}"'
        return f'<td class="{kind(title)}"{hint}><bdi>{text}</bdi></td>'

    first, *rest = columns
    numeric[first] = False
    rows = "".join(
        f'<tr><th scope="row"><a href="{escape(hrefs[index])}">{escape(str(value))}</a>'
        + (f'<div class="peek">{peeks[index]}</div>' if peeks and peeks[index] else "")
        + "</th>"
        + "".join(cell(title, columns[title][index]) for title in rest)
        + "</tr>"
        for index, value in enumerate(columns[first])
    )
    return (
        f'<style>{STYLE}</style><div class="saelab-table linked"><table aria-label='
        f'"{escape(caption)}"><thead><tr>{"".join(map(head, columns))}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


_WIDTHS = {
    "flags": "3.6rem",
    "found in": "8.5rem",
    "likeness": "4.5rem",
    "dictionary": "36%",
    "method": "6rem",
}
"""Of columns of short texts, and of names; the others share what is left."""


def _kept_when_narrow(numeric: Mapping[str, bool], sorted_by: str) -> dict[str, str]:
    """By column, the class that hides it where there is too little room for it."""
    first, *rest = numeric
    # What a feature is says more than where a search found it.
    texts = sorted((t for t in rest if not numeric[t]), key=lambda title: title == "found in")
    numbers = sorted((t for t in rest if numeric[t]), key=lambda title: title != sorted_by)
    ranks = {first: 0} | {
        title: rank for titles in (texts, numbers) for rank, title in enumerate(titles)
    }
    return {title: ("", "medium", "wide")[min(rank, 2)] for title, rank in ranks.items()}


STYLE = (
    ".saelab-table .scroll{overflow-x:auto;font-size:.92rem}"
    ".saelab-table table{border-collapse:collapse;width:100%}"
    ".saelab-table caption{text-align:left;font-size:.85rem;font-weight:600;"
    "color:light-dark(#55606c,#a7b0ba);padding:.5rem 0 .15rem}"
    ".saelab-table .up caption{color:light-dark(#0b62ab,#7ab8ee)}"
    ".saelab-table .down caption{color:light-dark(#9a4d0a,#f0a45c)}"
    ".saelab-table th,.saelab-table td{padding:.22rem .9rem .22rem 0;text-align:left;"
    "vertical-align:top;border-bottom:1px solid light-dark(#d5dae0,#3a424c);"
    "overflow-wrap:break-word;max-width:44rem}"
    ".saelab-table thead th,.saelab-table .value{overflow-wrap:normal;white-space:nowrap}"
    ".saelab-table thead th{font-size:.8rem;font-weight:600;color:light-dark(#55606c,#a7b0ba)}"
    ".saelab-table .number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}"
    ".saelab-table .defined th[scope=row]{min-width:12rem}"
    ".saelab-table .muted{color:light-dark(#55606c,#a7b0ba);font-size:.8rem}"
    ".saelab-table .token{font-weight:600;white-space:pre;display:inline-block;max-width:12rem;"
    "overflow:hidden;text-overflow:ellipsis;vertical-align:bottom}"
    ".saelab-table a{color:light-dark(#0b62ab,#7ab8ee)}"
    ".saelab-table a.chip{display:inline-block;text-decoration:none;padding:0 .45rem;margin:1px 0;"
    "border:1px solid light-dark(#c3cad2,#4a535e);border-radius:.7rem;white-space:nowrap}"
    ".saelab-table a.chip:hover,.saelab-table a.chip:focus-visible{"
    "background:light-dark(#e4edf6,#26323f)}"
    ".saelab-table a.chip small{color:light-dark(#55606c,#a7b0ba)}"
    ".saelab-table .unseen{opacity:.75;font-size:.8em}"
    # A wide table shows at its edge that there is more, and keeps its first column in sight.
    ".saelab-table .plain{background:linear-gradient(to left,light-dark(#fff,#14171b) 30%,#0000) "
    "right/2rem 100% no-repeat local,linear-gradient(to left,light-dark(#0004,#fff4),#0000) "
    "right/.7rem 100% no-repeat scroll}"
    "@media(max-width:640px){.saelab-table .plain :is(thead th:first-child,tbody th){"
    "position:sticky;left:0;min-width:7.5rem;background:light-dark(#fff,#14171b)}"
    ".saelab-table .plain thead th{white-space:normal}"
    ".saelab-table .plain td{min-width:4rem;overflow-wrap:anywhere}}"
    # Where a definition would have a word a line, each number is a paragraph.
    "@media(max-width:900px){.saelab-table .defined :is(thead,thead *){display:none}"
    ".saelab-table .defined tr{display:block;padding:.3rem 0;"
    "border-bottom:1px solid light-dark(#d5dae0,#3a424c)}"
    ".saelab-table .defined :is(td,tbody th){display:inline;border:0;overflow-wrap:anywhere}"
    ".saelab-table .defined td:last-child{display:block;padding:0;max-width:none}}"
    ".saelab-table.links{list-style:none;margin:0;padding:0;font-size:.92rem}"
    ".saelab-table.links li{margin:0;padding:.15rem 0}"
    ".saelab-table.links a{display:block;text-decoration:none;overflow-wrap:anywhere}"
    ".saelab-table.links b{font-weight:600}"
    ".saelab-table.links bdi{color:light-dark(#1b1f24,#e8eaed)}"
    ".saelab-table.links a:hover{text-decoration:underline}"
    ".saelab-columns{display:grid;gap:1.2rem;"
    "grid-template-columns:repeat(auto-fit,minmax(min(100%,13rem),1fr))}"
    ".saelab-columns h3{font-size:1rem;padding:0;margin:0}"
    ".saelab-columns small{display:block;margin:.1rem 0 .5rem;color:light-dark(#55606c,#a7b0ba)}"
    ".saelab-row{display:flex;flex-wrap:wrap;gap:.2rem;font-size:.92rem}"
    ".saelab-row>*{padding:.25rem .6rem;border-radius:6px;text-decoration:none;white-space:nowrap;"
    "color:light-dark(#1b1f24,#e8eaed)}"
    ".saelab-row a:hover{background:light-dark(#e4edf6,#26323f)}"
    ".saelab-row [aria-disabled]{opacity:.6}"
    ".saelab-table.linked{container-type:inline-size;font-size:.92rem}"
    ".linked table{table-layout:fixed}"
    ".linked th,.linked td{padding:.3rem .7rem .3rem 0;white-space:nowrap;overflow:hidden;"
    "text-overflow:ellipsis}"
    ".linked thead th{white-space:normal;vertical-align:bottom;width:auto}"
    ".linked thead th:first-child{width:4.6rem}"
    ".linked thead th.number{width:5.8rem;white-space:normal}"
    ".linked thead a{color:inherit;text-decoration:none}.linked thead a:hover{"
    "text-decoration:underline}"
    ".linked tbody tr{position:relative}"
    ".linked tbody tr:hover,.linked tbody tr:focus-within{background:light-dark(#eef4fa,#1f2a35)}"
    ".linked tbody a::after{content:'';position:absolute;inset:0}"
    # Only what is below the pointer or has the focus, and in front of what follows.
    ".linked .peek{display:none;position:absolute;z-index:9;left:3rem;right:1rem;top:100%;"
    "padding:.5rem .8rem;white-space:normal;font-weight:400;pointer-events:none;border-radius:6px;"
    "border:1px solid light-dark(#9fb4c8,#4a6075);background:light-dark(#fff,#14171b);"
    "box-shadow:0 4px 14px #0004}"
    ".linked tr:nth-last-child(-n+4):nth-child(n+5) .peek{top:auto;bottom:100%}"
    ".linked tr:hover .peek,.linked tr:focus-within:not(:has(~tr:hover)) .peek{display:block}"
    "@container(max-width:860px){.linked .wide{display:none}}"
    "@container(max-width:520px){.linked .medium,.linked .wide{display:none}"
    ".linked .peek{left:0;right:0}}"
)
