"""Tokens as HTML: nothing of a token is ever markup, everything is visible, contrast holds."""

import math
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saelab.dashboards.widgets.token_html import (
    DARK_PAGE,
    LIGHT_PAGE,
    STEPS,
    colours_of,
    contrast,
    direction_of,
    legend,
    step_of,
    token_row,
    tokens_page,
    visible,
    visible_text,
)

ALLOWED_TAGS = {"div", "span", "sub"}


class Reader(HTMLParser):
    """Tags, attributes and text of a piece of HTML."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text, self.titles = [], set(), "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.titles += [value for name, value in attrs if name == "title"]

    def handle_data(self, data):
        self.text += data


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


@given(st.lists(st.text(), min_size=1, max_size=6), st.data())
def test_any_text_is_text(tokens, data):
    values = [data.draw(st.floats(-1, 10)) for _ in tokens]
    row = read(token_row(tokens, values, 10.0, anchor=0, positions=range(len(tokens))))
    assert set(row.tags) <= ALLOWED_TAGS
    assert row.attributes <= {"class", "dir", "title"}
    assert row.text == "".join(visible_text(token) for token in tokens)


@given(st.text(min_size=1))
def test_every_character_can_be_seen(token):
    shown = visible_text(token)
    assert shown
    assert not any(character in shown for character in "\n\r\t\x00\x1b\u200b\ufeff\u202e")
    assert read(visible(token)).text == shown


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("\n", "↵"),
        ("\t", "→"),
        ("\u200b", "·ZWSP·"),
        ("\u202e", "·U+202E·"),
        ("", "∅"),
        ("👩\u200d💻", "👩\u200d💻"),
        (" שלום", " שלום"),
        ("<b>&amp;</b>", "<b>&amp;</b>"),
    ],
)
def test_golden_tokens(token, shown):
    assert visible_text(token) == shown


@given(st.floats(allow_nan=True, allow_infinity=True), st.floats(allow_nan=True))
def test_steps_are_in_range_and_rise_with_the_value(value, maximum):
    step = step_of(value, maximum)
    assert 0 <= step <= STEPS
    assert (step == 0) == (not (math.isfinite(value) and value > 0))


def test_steps_are_proportional():
    assert [step_of(value, 4.0) for value in (0.0, 1e-9, 1.0, 2.0, 4.0, 9.0)] == [
        0, 1, 5, 10, 20, 20,
    ]  # fmt: skip


def test_contrast_of_every_step_in_both_themes():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21.0)
    for dark in (False, True):
        for step in range(1, STEPS + 1):
            background, text = colours_of(step, dark=dark)
            assert contrast(background, text) >= 4.5, (step, dark)
    assert contrast(LIGHT_PAGE, DARK_PAGE) > 15


def test_values_anchor_and_legend_do_not_rest_on_colour():
    row = token_row(["a", "b", "c"], [0.0, 1.25, 2.5], 2.5, anchor=2, show_values=True)
    assert read(row).text == "ab1.25c2.5"
    assert 'class="tok s20 anchor"' in row
    assert "2.5" in legend(2.5) and "anchor" in legend(2.5)
    assert "font-weight:700" in tokens_page([row])


def test_direction_is_that_of_most_letters():
    assert direction_of("hello שלום") == "ltr"
    assert direction_of("a שלום עולם") == "rtl"
    assert direction_of("123") == "ltr"
