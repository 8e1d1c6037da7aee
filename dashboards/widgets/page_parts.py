"""What every page is made of: charts with alt text and data, sentences, links, downloads."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from saelab.errors import SaelabError
from saelab.formats.chart import Chart
from saelab.report.draw import draw
from saelab.report.figure import Figure

logger = logging.getLogger(__name__)

FEATURE_PAGE = "feature.py"
MOST_TABLE_ROWS = 300
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")
LIGHT_INK, DARK_INK = "#3d4650", "#c9d0d7"
_ADDRESS = re.compile(r"://|www\.|@.", re.IGNORECASE)
_COMMAND = re.compile(r"`(saelab (?:quickstart|\w+ [^`…]+))`")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|~<>$:&^=])")


def run_page(render: Callable[[], None]) -> None:
    """Draw a page; what goes wrong becomes a sentence, never a stack trace."""
    try:
        render()
    except SaelabError as error:
        show_problem(str(error))
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        show_problem(f"A file{where} cannot be read: {error.strerror or error}.")
    except Exception as error:
        # Streamlit steers reruns and stops by exceptions of its own, which are BaseExceptions.
        logger.exception("a page failed")
        show_problem(
            f"This page could not be drawn ({type(error).__name__}). The log of `saelab dashboard` "
            "has the details; the other pages still work."
        )


def plain(text: str) -> str:
    """Any text made safe for Streamlit's markdown: shown as it is, never interpreted."""
    # Addresses become links even when escaped; an invisible joiner inside keeps them text.
    unlinked = _ADDRESS.sub(lambda match: f"{match[0][:-1]}\u2060{match[0][-1]}", text)
    return _MARKDOWN.sub(r"\\\1", " ".join(unlinked.split()))


def show_problem(sentence: str) -> None:
    """Say what is wrong."""
    st.warning(plain(sentence))
    _show_commands(sentence)


def show_note(sentence: str) -> None:
    """Say something a reader should know."""
    st.info(plain(sentence))
    _show_commands(sentence)


def _show_commands(sentence: str) -> None:
    """The commands that a sentence names as they are to be run, each with a button that copies."""
    for command in _COMMAND.findall(sentence):
        st.code(command, language=None, wrap_lines=True)


def show_figure(shown: Figure | Chart, key: str, *, selectable: bool = False) -> list[Any]:
    """A chart with its title, definition, sentence for those who cannot see it, and numbers.

    Returns:
        The `customdata` of the points selected; empty where nothing is.
    """
    figure = draw(shown) if isinstance(shown, Chart) else shown
    st.markdown(f"##### {plain(figure.title)}")
    # The reports style text by the page's CSS, which does not reach a chart here.
    ink = {"color": DARK_INK if st.context.theme.type == "dark" else LIGHT_INK}
    axis = {"title_font": ink, "tickfont": ink}
    legend, bar = {"font": ink}, {"bgcolor": "rgba(0,0,0,0)"}
    figure.plot.update_layout(font=ink, legend=legend, modebar=bar, xaxis=axis, yaxis=axis)
    figure.plot.update_annotations(font=ink)
    if selectable:
        figure.plot.update_layout(dragmode="pan", clickmode="event+select")
    event: Any = st.plotly_chart(
        figure.plot,
        key=key,
        alt=figure.alt,
        config={"displayModeBar": selectable, "scrollZoom": selectable, "displaylogo": False},
        on_select="rerun" if selectable else "ignore",
        selection_mode=("points", "lasso", "box"),
    )
    st.caption(plain(figure.caption))
    if figure.data:
        with st.expander("Data"):
            download_table(figure.name, figure.data, f"{key}_data")
    points = event.get("selection", {}).get("points", []) if selectable and event else []
    return [point.get("customdata") for point in points]


def show_figures(figures: Sequence[Figure], key: str) -> None:
    """Figures in two columns, wide ones across both."""
    columns: list[Any] = []
    for index, figure in enumerate(figures):
        if figure.wide:
            columns = []
        elif not columns:
            columns = list(st.columns(2))
        with st.container() if figure.wide else columns.pop(0):
            show_figure(figure, f"{key}_{index}")


def download_table(name: str, columns: dict[str, list[Any]], key: str) -> None:
    """The first rows of a table, and all of it as a CSV file."""
    n_rows = max((len(column) for column in columns.values()), default=0)
    shown = {title: column[:MOST_TABLE_ROWS] for title, column in columns.items()}
    st.dataframe(shown, hide_index=True, alt=f"Data of {name}: {n_rows} rows", key=f"{key}_table")
    if n_rows > MOST_TABLE_ROWS:
        st.caption(f"The first {MOST_TABLE_ROWS} of {n_rows:,} rows; the file has all of them.")
    st.download_button(
        "Download CSV",
        csv_text(columns),
        file_name=f"{name}.csv",
        mime="text/csv",
        key=f"{key}_csv",
        on_click="ignore",
    )


def csv_text(columns: dict[str, list[Any]]) -> str:
    """Columns as CSV; text that a spreadsheet would take for a formula is quoted as text."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow(
            f"'{v}" if isinstance(v, str) and v.startswith(FORMULA_SIGNS) else v for v in row
        )
    return out.getvalue()
