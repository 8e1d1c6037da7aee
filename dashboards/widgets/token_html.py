"""Tokens as HTML: escaped, with invisible characters made visible, highlighted by activation.

The highlight has twenty steps of orange over the page's background. Its text colour is chosen for
each step and theme so that the contrast stays above 4.5:1, and the anchor token is also underlined
and bold, so that colour is never the only sign. `light-dark()` picks the theme, so the same HTML
serves both, in the dashboard and in exported files.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from html import escape
from typing import Any

SHOWN_LABEL = 60
"""Characters of a label that a table shows."""
STEPS = 20
ORANGE_RGB = (232, 119, 34)
LIGHT_PAGE, DARK_PAGE = (255, 255, 255), (20, 23, 27)
LIGHT_TEXT, DARK_TEXT = (255, 255, 255), (0, 0, 0)
ALPHA_OF_FIRST_STEP = 0.12

# What a reader cannot see otherwise; the rest of the invisible characters get their code point.
SHOWN_AS = {
    "\n": "↵",
    "\r": "␍",
    "\t": "→",
    "\u00a0": "⍽",
    "\u200b": "·ZWSP·",
    "\u200c": "·ZWNJ·",
    "\u200d": "·ZWJ·",
    "\ufeff": "·BOM·",
    "\u00ad": "·SHY·",
}
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def visible(token: str) -> str:
    """A token as escaped HTML in which every character can be seen."""
    parts = [(character, _shown(character, token)) for character in token]
    return (
        "".join(
            escape(shown) if shown == raw else f'<span class="unseen">{escape(shown)}</span>'
            for raw, shown in parts
        )
        or "∅"
    )


def visible_text(token: str) -> str:
    """The same as plain text, for tables and charts."""
    return "".join(_shown(character, token) for character in token) or "∅"


def _shown(character: str, token: str) -> str:
    if character == "\u200d" and len(token) > 1:
        # Between two emoji the joiner is what makes them one picture.
        return character
    if character in SHOWN_AS:
        return SHOWN_AS[character]
    if unicodedata.category(character) in _INVISIBLE:
        return f"·U+{ord(character):04X}·"
    return character


def step_of(value: float, maximum: float) -> int:
    """The highlight's step, 0 (none) to 20: proportional to value / maximum, the smallest is 1."""
    if not (math.isfinite(value) and value > 0):
        return 0
    if not (math.isfinite(maximum) and maximum > 0):
        return 1
    if value >= maximum:
        return STEPS
    return max(1, math.ceil(STEPS * (value / maximum)))


def short(value: float | None) -> str:
    """A number with three significant digits, large ones with all; a word where there is none."""
    if value is None or not math.isfinite(value):
        return "undefined"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.3g}"


def format_number(value: Any) -> str:
    """Three significant digits; counts with grouped thousands; a dash for nothing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else short(value)


def short_label(text: str, most: int = SHOWN_LABEL) -> str:
    """A label that fits into a row."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def token_row(
    tokens: Sequence[str],
    values: Sequence[float],
    maximum: float,
    *,
    anchor: int | None = None,
    show_values: bool = False,
    positions: Sequence[int] | None = None,
) -> str:
    """One context as HTML.

    Args:
        tokens: text of each token.
        values: activation at each token; nothing or less is not highlighted.
        maximum: the value drawn in full colour, shared by the examples of a feature.
        anchor: index of the token the context was chosen for.
        show_values: print the numbers under active tokens too; tooltips need a mouse.
        positions: position of each token in its sequence, for the tooltip.
    """
    spans = []
    for index, (token, value) in enumerate(zip(tokens, values, strict=True)):
        step = step_of(value, maximum)
        classes = ["tok"]
        if step:
            classes.append(f"s{step}")
        if index == anchor:
            classes.append("anchor")
        where = "" if positions is None else f" at position {positions[index]}"
        title = f"{visible_text(token)}{where}: {short(value)}" if step else ""
        number = f"<sub>{short(value)}</sub>" if show_values and step else ""
        hint = f' title="{escape(title)}"' if title else ""
        spans.append(f'<span class="{" ".join(classes)}"{hint}>{visible(token)}{number}</span>')
    # Each token is a separate unit to the bidirectional algorithm, so right-to-left text cannot
    # reorder its neighbours; the order of the tokens follows the script that most of them are in.
    return f'<div class="ctx" dir="{direction_of("".join(tokens))}">{"".join(spans)}</div>'


def direction_of(text: str) -> str:
    """ "rtl" if most letters are of a script written from right to left, else "ltr"."""
    kinds = [unicodedata.bidirectional(character) for character in text]
    rightward, leftward = kinds.count("L"), kinds.count("R") + kinds.count("AL")
    return "rtl" if leftward > rightward else "ltr"


def legend(maximum: float, *, with_anchor: bool = True) -> str:
    """The colour scale, as HTML."""
    marks = [round(STEPS * share) for share in (0.05, 0.25, 0.5, 0.75, 1.0)]
    boxes = "".join(
        f'<span class="tok s{mark}">{short(maximum * mark / STEPS)}</span> ' for mark in marks
    )
    anchor = '<span class="tok anchor">anchor</span> the token the context was chosen for'
    return f'<div class="legend">activation: {boxes}{anchor if with_anchor else ""}</div>'


def tokens_page(parts: Sequence[str]) -> str:
    """Token rows, legends and lists as one block with the style they need."""
    return f'<style>{STYLE}</style><div class="saelab-tokens">{"".join(parts)}</div>'


def contrast(first: Sequence[int], second: Sequence[int]) -> float:
    """Contrast ratio of two colours, after WCAG 2.2."""

    def luminance(colour: Sequence[int]) -> float:
        linear = [
            c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4
            for c in colour
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def colours_of(step: int, *, dark: bool) -> tuple[Sequence[int], Sequence[int]]:
    """Background and text colour of a step in a theme: the text with more contrast is taken."""
    alpha = ALPHA_OF_FIRST_STEP + (1 - ALPHA_OF_FIRST_STEP) * (step - 1) / (STEPS - 1)
    page = DARK_PAGE if dark else LIGHT_PAGE
    background = [round(alpha * o + (1 - alpha) * p) for o, p in zip(ORANGE_RGB, page, strict=True)]
    text = max((LIGHT_TEXT, DARK_TEXT), key=lambda colour: contrast(colour, background))
    return background, text


def _step_rule(step: int) -> str:
    themes = zip(colours_of(step, dark=False), colours_of(step, dark=True), strict=True)
    ground, text = (
        f"light-dark(#{bytes(light).hex()},#{bytes(dark).hex()})" for light, dark in themes
    )
    return f".saelab-tokens .s{step}{{background:{ground};color:{text}}}"


STYLE = (
    ".saelab-tokens{font-size:.95rem;line-height:1.75}"
    ".saelab-tokens ol.exs{list-style:none;margin:0;padding:0}"
    ".saelab-tokens .ex{margin:0;padding:.4rem 0 .45rem;"
    "border-bottom:1px solid light-dark(#d5dae0,#3a424c)}"
    ".saelab-tokens .meta,.saelab-tokens .legend{font-size:.8rem;color:light-dark(#55606c,#a7b0ba)}"
    ".saelab-tokens a{color:light-dark(#0b62ab,#7ab8ee)}"
    ".saelab-tokens .ctx{white-space:pre-wrap;overflow-wrap:anywhere}"
    ".saelab-tokens .tok{unicode-bidi:plaintext;border-radius:3px;padding:1px 0}"
    ".saelab-tokens .legend .tok{padding:1px 5px}"
    ".saelab-tokens .anchor{font-weight:700;text-decoration:underline 2px;"
    "text-underline-offset:3px}"
    ".saelab-tokens .unseen{opacity:.75;font-size:.8em}"
    ".saelab-tokens sub{font-size:.7em;vertical-align:baseline;position:relative;top:.35em;"
    "margin-left:1px}" + "".join(_step_rule(step) for step in range(1, STEPS + 1))
)
