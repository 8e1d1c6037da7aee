"""What "Share" offers of a page: its address, a frame for other pages, files that open anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import urlencode

import streamlit as st

SERVED = "http://127.0.0.1:8502/embed"
"""Where `saelab serve` answers unless it was told otherwise."""
HTML_NOTE = "One file without scripts that opens anywhere, offline."


class SharedFile(NamedTuple):
    """A file to download."""

    title: str
    """What its button says."""
    name: str
    """What it is called."""
    content: Callable[[], str | bytes]
    """Made when it is asked for."""
    note: str | None = None
    """Shown of the button when it is pointed at."""


def draw_sharing(params: Mapping[str, str], framed: str, files: list[SharedFile]) -> None:
    """Draw it behind a button.

    Args:
        params: of the page's address.
        framed: what `saelab serve` calls it in a frame; empty: it does not have it.
        files: what can be downloaded.
    """
    with st.popover("Share"):
        st.markdown("Address of this page")
        address = f"{(st.context.url or '').split('?')[0]}?{urlencode(params)}"
        st.code(address, language=None, wrap_lines=True)
        if framed:
            st.markdown("In a frame, while `saelab serve` runs")
            frame = f'<iframe src="{SERVED}/{framed}" width="100%" height="480"></iframe>'
            st.code(frame, language=None, wrap_lines=True)
        for title, name, content, note in files:
            st.download_button(
                title,
                content,
                file_name=name,
                mime="text/html" if name.endswith(".html") else "application/json",
                on_click="ignore",
                help=note,
            )
