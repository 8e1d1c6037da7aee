"""The parts of a feature's page that are HTML: numbers with definitions, tokens, examples.

Pure functions, shared by the page and by the exported file. Everything that comes from a store is
escaped here or in `token_html`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from saelab.features.records import (
    Example,
    FeatureRecord,
    LogitLens,
    QuantileGroup,
    TokenScore,
)

from .figures import short
from .token_html import example_block, legend, token_row, tokens_page, visible


@dataclass(frozen=True, kw_only=True)
class ExampleView:
    """How examples are shown."""

    show_values: bool = False
    """Print the activation under each active token."""
    hide_repeats: bool = True
    """Leave out a context whose shown text has been seen in the same list."""
    own_scale: bool = False
    """Colour each example from 0 to its own maximum instead of the feature's."""


def numbers_of(record: FeatureRecord) -> list[tuple[str, str, str]]:
    """(name, value, definition) of the numbers at the top of a feature's page."""
    moments = record.moments
    density = "undefined" if record.density is None else percent(record.density)
    numbers = [
        (
            "Density",
            density,
            f"active on {record.n_active:,} of the {record.n_tokens:,} tokens counted; first "
            "tokens and separators are in neither number",
        ),
        ("Contexts", f"{record.n_sequences:,}", "contexts in which it is active at least once"),
        ("Maximum", short(record.max_act), "largest activation on the tokens counted"),
        (
            "Mean if active",
            short(moments.mean),
            f"mean of the positive activations; standard deviation "
            f"{short(moments.standard_deviation)}",
        ),
        (
            "Kurtosis",
            short(moments.kurtosis),
            "of the positive activations; 3 for a normal distribution, more for a long tail. "
            f"Skewness {short(moments.skewness)}",
        ),
        (
            "Decoder norm",
            short(record.decoder_norm),
            f"length of its decoder row; encoder {short(record.encoder_norm)}",
        ),
    ]
    if record.threshold is not None:
        numbers.append(
            ("Threshold", short(record.threshold), "pre-activations below it give no activation")
        )
    return numbers


def percent(share: float) -> str:
    """A share in per cent, as small as it may be."""
    return f"{100 * share:.3g} %"


def number_strip(numbers: Sequence[tuple[str, str, str]]) -> str:
    """Numbers side by side, each over its definition."""
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd><b>{escape(value)}</b><small>{escape(text)}</small></dd>"
        "</div>"
        for name, value, text in numbers
    )
    return f'<style>{STRIP_STYLE}</style><dl class="saelab-strip">{items}</dl>'


def logit_tables(lens: LogitLens, most: int = 10) -> str:
    """The tokens a feature promotes and suppresses, with signs, so that colour is not alone."""
    return (
        f'<style>{LOGIT_STYLE}</style><div class="saelab-logits">'
        + _logit_table("+ Promoted tokens", "up", lens.top[:most])
        + _logit_table("− Suppressed tokens", "down", lens.bottom[:most])
        + "</div>"
    )


def _logit_table(caption: str, kind: str, scores: Sequence[TokenScore]) -> str:
    rows = "".join(
        f'<tr><td class="t"><bdi>{visible(score.text)}</bdi></td>'
        f'<td class="v">{_signed(score.value)}</td></tr>'
        for score in scores
    )
    return (
        f'<table class="{kind}"><caption>{caption}</caption><thead><tr><th scope="col">token</th>'
        f'<th scope="col">logit</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")


def examples_html(
    examples: Sequence[Example], maximum: float, view: ExampleView, *, with_legend: bool = True
) -> str:
    """A list of examples, the colour scale above it."""
    parts = [legend(maximum)] if with_legend and not view.own_scale else []
    items = "".join(
        _example(example, maximum, view) for example in distinct(examples, view.hide_repeats)
    )
    if not items:
        return tokens_page(['<p class="meta">None.</p>'])
    return tokens_page([*parts, f'<ol class="exs">{items}</ol>'])


def distinct(examples: Sequence[Example], hide_repeats: bool) -> Iterator[Example]:
    """The examples, on request without those whose shown text has been seen."""
    seen: set[tuple[str, ...]] = set()
    for example in examples:
        if hide_repeats and example.texts in seen:
            continue
        seen.add(example.texts)
        yield example


def _example(example: Example, maximum: float, view: ExampleView) -> str:
    own = float(example.activations.max(initial=0.0))
    row = token_row(
        example.texts,
        example.activations.tolist(),
        own if view.own_scale else maximum,
        anchor=example.anchor,
        show_values=view.show_values,
        positions=example.positions.tolist(),
    )
    return example_block(example_facts(example), row)


def example_facts(example: Example) -> str:
    """Where an example is from and how strong it is, in words."""
    position = int(example.positions[example.anchor])
    where = f"context {example.sequence:,}, position {position}"
    if example.other_feature is not None:
        return (
            f"{where} · silent here; its neighbour, feature {example.other_feature}, has "
            f"{short(example.other_value)}"
        )
    strength = f"activation {short(example.value)}" if example.value > 0 else "silent here"
    return f"{where} · {strength}"


def group_heading(group: QuantileGroup, *, highest: bool) -> str:
    """A stratum in words: its half-open range and what lies in it."""
    sign = "≤" if highest else "<"
    return (
        f"{short(group.low)} ≤ maximum {sign} {short(group.high)}: {group.n_sequences:,} contexts, "
        f"{percent(group.share_of_activations)} of activations, "
        f"{percent(group.share_of_mass)} of their sum"
    )


STRIP_STYLE = (
    ".saelab-strip{display:grid;grid-template-columns:repeat(auto-fit,minmax(7.6rem,1fr));"
    "gap:.6rem;padding:0!important;"
    "margin:.25rem 0 .5rem}"
    ".saelab-strip>div{border:1px solid light-dark(#d5dae0,#3a424c);border-radius:8px;"
    "padding:.5rem .7rem;background:light-dark(#f6f7f9,#1c2026)}"
    ".saelab-strip div{margin:0}"
    ".saelab-strip dt{font-size:.8rem;color:light-dark(#55606c,#a7b0ba)}"
    ".saelab-strip dd{margin:0}.saelab-strip b{font-size:1.35rem;font-weight:600;display:block}"
    ".saelab-strip small{font-size:.75rem;line-height:1.3;color:light-dark(#55606c,#a7b0ba);"
    "display:block}"
)
LOGIT_STYLE = (
    ".saelab-logits{display:grid;grid-template-columns:1fr 1fr;gap:1.2rem;font-size:.9rem}"
    ".saelab-logits table{border-collapse:collapse;width:100%}"
    ".saelab-logits caption{text-align:left;font-weight:600;padding-bottom:.2rem}"
    ".saelab-logits .up caption{color:light-dark(#0b62ab,#7ab8ee)}"
    ".saelab-logits .down caption{color:light-dark(#9a4d0a,#f0a45c)}"
    ".saelab-logits th{font-weight:400;font-size:.75rem;color:light-dark(#55606c,#a7b0ba);"
    "text-align:left}.saelab-logits th:last-child{text-align:right}"
    ".saelab-logits td{border-top:1px solid light-dark(#e3e7eb,#2c333b);padding:.12rem .2rem}"
    ".saelab-logits .t{white-space:pre-wrap;overflow-wrap:anywhere;font-family:monospace}"
    ".saelab-logits .v{text-align:right;font-variant-numeric:tabular-nums}"
)
