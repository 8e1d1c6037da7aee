"""What a page shows, kept in its address: deep links, the Back button and reloads all work.

The address is read before a widget is made and written after it. Streamlit's own binding loses the
value on Back and leaks foreign parameters, so it is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import streamlit as st

Value = TypeVar("Value")

_SEEN, _SAID, _PAGE = "address_seen", "address_said", "address_page"


def read(param: str, default: Value, parse: Callable[[str], Value] = str) -> Value:
    """The address's value of a parameter; the default where it is missing or cannot be read."""
    given = st.query_params.get(param)
    if given is None:
        return default
    try:
        return parse(given)
    except (ValueError, KeyError):
        return default


def bind(widget_key: str, param: str, default: Any, parse: Callable[[str], Any] = str) -> None:
    """Put the address's value into a widget about to be made, if the address has changed.

    Args:
        widget_key: the `key` of the widget; one parameter belongs to one widget of a page.
        default: the widget's value where the address says nothing.
        parse: from text to the widget's value; a ValueError or KeyError gives the default.
    """
    given = st.query_params.get(param)
    seen, said = _seen(), st.session_state.setdefault(_SAID, {})
    # A widget's state is dropped while another page is shown; then too the address decides.
    if widget_key not in st.session_state or seen.get(param) != given:
        said[widget_key] = st.session_state[widget_key] = read(param, default, parse)
        seen[param] = given
    elif widget_key in said and said[widget_key] == st.session_state[widget_key]:
        # Streamlit throws away what a run drew where the next begins before it was sent, and the
        # value with it. So it is said again, until the reader gives another.
        st.session_state[widget_key] = said[widget_key]
    else:
        said.pop(widget_key, None)


def publish(param: str, value: Any, default: Any) -> None:
    """Write a widget's value to the address, after it was made; a default is left out of it."""
    text = None if value is None or value == default else str(value)
    _seen()[param] = text
    if st.query_params.get(param) == text:
        return
    if text is None:
        del st.query_params[param]
    else:
        st.query_params[param] = text


def widget(
    make: Callable[..., Any],
    label: str,
    *arguments: Any,
    param: str,
    default: Any,
    parse: Callable[[str], Any] | None = None,
    **options: Any,
) -> Any:
    """Make a widget whose value is in the address, and return the value.

    Args:
        make: the widget, such as `st.text_input` or that of a column.
        label: its label; `arguments` and `options` are its further settings.
        param: the parameter of the address, one for each widget of a page.
        default: its value where the address says nothing.
        parse: from text to its value; None: a flag or a text, as the default is, or a number
            between the two arguments.
    """
    if parse is None:
        parse = within(*arguments) if arguments else str
    if isinstance(default, bool):
        parse = {"True": True, "False": False}.__getitem__
    key = widget_key(param)
    bind(key, param, default, parse)
    value = make(label, *arguments, key=key, **options)
    publish(param, value, default)
    return value


def choice(
    make: Callable[..., Any],
    label: str,
    options: Sequence[Any] | Mapping[Any, str],
    *,
    param: str,
    default: Any = None,
    **more: Any,
) -> Any:
    """The same for a widget that takes one of several values.

    Args:
        make: see `widget`, as what is not named here.
        options: the values, or by value how it is shown.
        default: None: the first option.
    """
    if isinstance(options, Mapping):
        more["format_func"] = options.__getitem__
    values, key = list(options), widget_key(param)
    if st.session_state.get(key) not in [None, *values]:
        del st.session_state[key]
    first = values[0] if default is None else default
    parse = {str(value): value for value in values}.__getitem__
    chosen = widget(make, label, values, param=param, default=first, parse=parse, **more)
    return first if chosen is None else chosen


def several(
    label: str, options: Sequence[str], *, param: str, default: list[str], **more: Any
) -> list[str]:
    """The same for a box that takes several of the options; no option holds a comma."""
    key = widget_key(param)
    if any(value not in options for value in st.session_state.get(key, [])):
        del st.session_state[key]

    def parse(text: str) -> list[str]:
        known = [value for value in text.split(",") if value in options]
        return known[: more.get("max_selections")] or default

    bind(key, param, default, parse)
    chosen = st.multiselect(label, options, key=key, **more)
    publish(param, ",".join(chosen), ",".join(default))
    return chosen


def widget_key(param: str) -> str:
    """The `key` of the widget that holds a parameter on this page."""
    return f"{st.session_state.get(_PAGE, '')}_{param}"


def begin(page: str) -> None:
    """Begin a run of a page: tell the browser the address that this run was asked for.

    A link to the page it stands on runs the script with new parameters and leaves the browser's
    address as it was; said once more, the browser takes it over, and makes an entry for Back only
    if it is another address.
    """
    st.session_state[_PAGE] = page
    for param in st.query_params:
        st.query_params[param] = st.query_params.get_all(param)
        return
    st.query_params.clear()


def count(text: str) -> int:
    """A parser of whole numbers from 0 up, of at most nine digits."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ValueError(text)
    return int(text)


def within(low: float | int, high: float | int) -> Callable[[str], Any]:
    """A parser of numbers of the bounds' type between them."""

    def parse(text: str) -> Any:
        value = type(low)(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return parse


def _seen() -> dict[str, str | None]:
    return st.session_state.setdefault(_SEEN, {})
