"""Tables as HTML with real links that a keyboard reaches, in the look of the pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from saelab.report.page import html_table


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


STYLE = (
    ".saelab-table .scroll{overflow-x:auto;font-size:.92rem}"
    ".saelab-table table{border-collapse:collapse;width:100%}"
    ".saelab-table caption{text-align:left;font-size:.85rem;font-weight:600;"
    "color:light-dark(#55606c,#a7b0ba);padding:.5rem 0 .15rem}"
    ".saelab-table .up caption{color:light-dark(#0b62ab,#7ab8ee)}"
    ".saelab-table .down caption{color:light-dark(#9a4d0a,#f0a45c)}"
    ".saelab-table th,.saelab-table td{padding:.22rem .9rem .22rem 0;text-align:left;"
    "vertical-align:top;border-bottom:1px solid light-dark(#d5dae0,#3a424c);"
    "overflow-wrap:anywhere}"
    ".saelab-table thead th,.saelab-table .value{overflow-wrap:normal;white-space:nowrap}"
    ".saelab-table thead th{font-size:.8rem;font-weight:600;color:light-dark(#55606c,#a7b0ba)}"
    ".saelab-table .number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}"
    ".saelab-table .defined th[scope=row]{min-width:12rem}"
    ".saelab-table .muted{color:light-dark(#55606c,#a7b0ba);font-size:.8rem}"
    ".saelab-table .token{font-weight:600;white-space:pre-wrap}"
    ".saelab-table a{color:light-dark(#0b62ab,#7ab8ee)}"
    ".saelab-table a.chip{display:inline-block;text-decoration:none;padding:0 .45rem;margin:1px 0;"
    "border:1px solid light-dark(#c3cad2,#4a535e);border-radius:.7rem;white-space:nowrap}"
    ".saelab-table a.chip:hover,.saelab-table a.chip:focus-visible{"
    "background:light-dark(#e4edf6,#26323f)}"
    ".saelab-table a.chip small{color:light-dark(#55606c,#a7b0ba)}"
    ".saelab-table .unseen{opacity:.75;font-size:.8em}"
)
