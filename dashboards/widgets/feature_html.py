"""A feature's page as HTML: its parts, the whole page as one file, and its numbers as JSON.

Pure functions. Everything that comes from a store is escaped. The file has no scripts and no
outside links; its charts are HTML, as on the page, rather than plotly.js, so it has some 100 kB
instead of 5 MB and also opens where scripts are blocked, as in mail.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from saelab.features.label_content import Label
from saelab.features.reader import FeatureStore
from saelab.features.records import Example, FeatureRecord, LogitLens, QuantileGroup
from saelab.formats.chart import Chart
from saelab.report.page import Html

from .figures import activation_histogram, logit_histogram
from .html_tables import page_table
from .pictures import picture
from .token_html import format_number, legend, short, token_row, tokens_page, visible, visible_text

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
NEIGHBOUR_LISTS = {
    "Decoder": ("cosine of decoder rows: what it writes", "decoder_neighbours"),
    "Encoder": ("cosine of encoder columns: what it reads", "encoder_neighbours"),
    "Active together": (
        "Jaccard index: how often both are active over how often either is",
        "coactive_jaccard",
    ),
    "Correlated": (
        "Pearson correlation of activations over all that was counted",
        "coactive_pearson",
    ),
}
"""By title: the definition, and the field of the record."""
ACTIVATION_COLOUR, LOGIT_COLOUR = "#2f81c4", "#a05fb4"


@dataclass(frozen=True, kw_only=True)
class ExampleView:
    """How examples are shown."""

    show_values: bool = False
    """Print the activation under each active token."""
    hide_repeats: bool = True
    """Leave out a context whose shown text has been seen in the same list."""
    own_scale: bool = False
    """Colour each example from 0 to its own maximum instead of the feature's."""
    folders: tuple[Path, ...] = ()
    """Folders of images: a row whose label is the path of one in them is shown as that image."""
    of_rows: bool = False
    """Whether a context is one row of adopted activations, which has no text around it."""
    href: Callable[[int], str] | None = None
    """Address of a feature's page; None: features are not links."""
    context_href: Callable[[int], str] | None = None
    """Address of a page that shows the whole of a context; None: there is none."""


def shows_rows(store: FeatureStore) -> bool:
    """Whether what a store counts are rows of adopted activations, each by itself."""
    return store.manifest["context_length"] == 1


def counted(store: FeatureStore) -> str:
    """What a store counts, in a word."""
    return "rows" if shows_rows(store) else "tokens"


def numbers_of(record: FeatureRecord, *, of_rows: bool = False) -> list[tuple[str, str, str]]:
    """(name, value, definition) of the numbers at the top of a feature's page.

    `of_rows`: what is counted are rows by themselves, not tokens in contexts.
    """
    moments = record.moments
    counted = f"active on {record.n_active:,} of the {record.n_tokens:,} "
    counted += (
        "rows counted"
        if of_rows
        else "tokens counted; first tokens and separators are in neither number"
    )
    contexts = (
        "Contexts",
        f"{record.n_sequences:,}",
        "contexts in which it is active at least once",
    )
    numbers = [
        (
            "Density",
            "undefined" if record.density is None else percent(record.density),
            counted,
        ),
        *(() if of_rows else (contexts,)),
        ("Maximum", short(record.max_act), "largest activation on what was counted"),
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
    """A share in per cent with three significant digits."""
    return f"{100 * share:.3g} %"


def number_strip(record: FeatureRecord, *, of_rows: bool = False) -> str:
    """The numbers of a feature side by side, each over its definition."""
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd><b>{escape(value)}</b><small>{escape(text)}</small></dd>"
        "</div>"
        for name, value, text in numbers_of(record, of_rows=of_rows)
    )
    return f'<style>{STRIP_STYLE}</style><dl class="saelab-strip">{items}</dl>'


def logit_tables(lens: LogitLens, most: int = 10) -> str:
    """The tokens a feature promotes and suppresses, with signs, so that colour is not alone."""
    lists = (("+ Promoted tokens", lens.top, "up"), ("− Suppressed tokens", lens.bottom, "down"))
    tables = [
        page_table(
            caption,
            ["token", "logit"],
            [
                [
                    Html(f'<bdi class="token">{visible(score.text)}</bdi>'),
                    Html(f'<span class="value">{score.value:+.3g}</span>'.replace("-", "−")),
                ]
                for score in scores[:most]
            ],
            kind,
        )
        for caption, scores, kind in lists
    ]
    style = "display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:1.2rem"
    return f'<div style="{style}">{"".join(tables)}</div>'


def examples_html(
    examples: Sequence[Example], maximum: float, view: ExampleView, *, with_legend: bool = True
) -> str:
    """A list of examples, the colour scale above it."""
    items = "".join(
        '<li class="ex"><div class="meta">'
        f"{example_facts(example, view)}</div>"
        + (picture(example.texts[0], view.folders) if len(example.texts) == 1 else "")
        + token_row(
            example.texts,
            example.activations.tolist(),
            float(example.activations.max(initial=0.0)) if view.own_scale else maximum,
            anchor=example.anchor,
            show_values=view.show_values,
            positions=example.positions.tolist(),
        )
        + "</li>"
        for example in distinct(examples, view.hide_repeats)
    )
    if not items:
        return tokens_page(['<p class="meta">None.</p>'])
    scale = legend(maximum) if with_legend and not view.own_scale else ""
    return tokens_page([scale, f'<ol class="exs">{items}</ol>'])


def distinct(examples: Sequence[Example], hide_repeats: bool) -> Iterator[Example]:
    """The examples, on request without those whose shown text has been seen."""
    seen: set[tuple[object, ...]] = set()
    for example in examples:
        # Rows of equal labels are not repeats of one another: each has a token of its own.
        shown = (example.texts, example.token_ids)
        if hide_repeats and shown in seen:
            continue
        seen.add(shown)
        yield example


def example_facts(example: Example, view: ExampleView) -> str:
    """Where an example is from and how strong it is, in words, as HTML."""
    where = f"context {example.sequence:,}"
    if view.context_href is not None:
        where = _link(view.context_href(example.sequence), where, "Shows all of it")
    where += f", position {int(example.positions[example.anchor])}"
    if view.of_rows:
        where = f"row {example.sequence:,} of those read"
    if example.other_feature is not None:
        other = f"feature {example.other_feature}"
        if view.href is not None:
            other = _link(view.href(example.other_feature), other, "Opens the neighbour")
        return (
            f"{where} · silent here; its neighbour, {other}, has activation "
            f"{short(example.other_value)} at the anchor"
        )
    strength = f"activation {short(example.value)}" if example.value > 0 else "silent here"
    return f"{where} · {strength}"


def _link(href: str, text: str, hint: str) -> str:
    return f'<a href="{escape(href)}" title="{hint}">{escape(text)}</a>'


def group_heading(group: QuantileGroup, *, highest: bool) -> str:
    """A stratum in words: its half-open range and what lies in it."""
    sign = "≤" if highest else "<"
    return (
        f"{short(group.low)} ≤ maximum {sign} {short(group.high)}: {group.n_sequences:,} contexts, "
        f"{percent(group.share_of_activations)} of activations, "
        f"{percent(group.share_of_mass)} of their sum"
    )


def provenance_table(name: str, store: FeatureStore) -> str:
    """What the numbers of a store were counted on."""
    facts = {
        "dictionary": name,
        **store.manifest["made_from"],
        f"{counted(store)} counted": f"{store.n_tokens:,}",
        f"{counted(store)} left out": store.manifest.get("excluded"),
        "contexts": f"{store.n_sequences:,}",
        "built": store.manifest.get("created"),
        "with": store.manifest.get("library_versions"),
        "store": store.store_id,
    }
    facts = {key: "not recorded" if value is None else value for key, value in facts.items()}
    rows = [
        [key.replace("_", " "), value if isinstance(value, dict) else visible_text(str(value))]
        for key, value in facts.items()
    ]
    return page_table("What the numbers were counted on", ["what", "value"], rows)


def feature_html(name: str, store: FeatureStore, feature: int, labels: Sequence[Label] = ()) -> str:
    """A feature's page as one self-contained HTML file, for both themes."""
    record = store.feature(feature)
    title = f"{name} · feature {feature}"
    label = f"<p><b>{visible(labels[0].text)}</b></p>" if labels else ""
    flags = f'<p class="muted">{escape(", ".join(record.flags))}</p>' if record.flags else ""
    neighbours = [
        [title, definition, ", ".join(f"{n.feature} ({n.value:.2f})" for n in members) or "none"]
        for title, (definition, field) in NEIGHBOUR_LISTS.items()
        for members in [getattr(record, field)]
    ]
    parts = [
        f"<h1>{escape(title)}</h1>{label}{flags}",
        number_strip(record, of_rows=shows_rows(store)),
        charts_html(record, counted(store)),
        *_example_lists(record, ExampleView(of_rows=shows_rows(store))),
        "<h2>Neighbours</h2>",
        page_table("Nearest features", ["list", "value", "features"], neighbours),
        "<h2>Provenance</h2>",
        provenance_table(name, store),
    ]
    return html_file(title, "\n".join(parts))


def html_file(title: str, body: str) -> str:
    """A self-contained page without scripts, for both themes."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(visible_text(title))}</title><style>{PAGE_STYLE}</style></head>\n<body><main>"
        f"{body}</main></body></html>\n"
    )


def feature_json(name: str, store: FeatureStore, feature: int, labels: Sequence[Label] = ()) -> str:
    """What a feature's page shows as JSON, in at most some 100 kB."""
    content = {
        "dictionary": name,
        "store_id": store.store_id,
        "made_from": store.manifest["made_from"],
        "labels": [dataclasses.asdict(label) for label in labels],
        "feature": _as_json(store.feature(feature)),
    }
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _example_as_json(example: Example) -> dict[str, Any]:
    """Its text, and the activations of the tokens that have one by their index in it."""
    active = np.flatnonzero(example.activations).tolist()
    return {
        "context": example.sequence,
        "first_position": int(example.positions[0]),
        "tokens": example.texts,
        "anchor": example.anchor,
        "activations": {index: float(f"{example.activations[index]:.6g}") for index in active},
        "neighbour": example.other_feature,
        "neighbour_activation": example.other_value,
    }


def _as_json(value: Any) -> Any:
    """What is undefined is null."""
    if isinstance(value, Example):
        return _as_json(_example_as_json(value))
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: _as_json(getattr(value, name)) for name in names}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _as_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def charts_html(record: FeatureRecord, what: str, logits: str = "") -> str:
    """Histograms of activations and of logits, and the tokens promoted and suppressed.

    Args:
        what: is counted, see `counted`.
        logits: how they were computed, or why there are none.
    """
    activations, lens = activation_histogram(record, what), record.logit_lens
    parts = [] if activations is None else [bars_html(activations, ACTIVATION_COLOUR)]
    if lens is not None:
        said = f'<h3>Logits</h3>{logit_tables(lens)}<p class="muted">{escape(logits)}</p>'
        parts += [bars_html(logit_histogram(lens), LOGIT_COLOUR), f"<div>{said}</div>"]
    elif logits:
        parts.append(f'<p class="muted">{escape(logits)}</p>')
    return f'<style>{CHART_STYLE}</style><div class="saelab-charts">{"".join(parts)}</div>'


def bars_html(chart: Chart, colour: str) -> str:
    """A histogram with its words and numbers, as HTML that needs no script.

    It is drawn much faster than by plotly.js. Heights are of log(count + 1); a box makes them
    those of the counts.
    """
    edges, counts = (np.array(values, float) for values in (chart.series[0].x, chart.series[0].y))
    most = counts.max(initial=1)
    top = math.log10(most + 1)

    def across(value: float) -> str:
        return f"{100 * (value - edges[0]) / ((edges[-1] - edges[0]) or 1):.1f}%"

    bars = "".join(
        f'<i style="--g:{100 * math.log10(count + 1) / top:.1f}%;--n:{100 * count / most:.1f}%"'
        f' title="{escape(f"{short(low)} to {short(high)}: {count:,.0f}")}"></i>'
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    )
    decades = [10**power for power in range(math.floor(math.log10(most)) + 1)]
    marks = "".join(
        f'<span class="g" style="bottom:{100 * math.log10(count + 1) / top:.1f}%">{count:,}</span>'
        for count in decades
    )
    marks += f'<span class="n" style="bottom:100%">{most:,.0f}</span>'
    lines = "".join(
        f'<u style="left:{across(line.value)}"><span>{escape(line.label)}</span></u>'
        for line in chart.lines
    )
    ends = [edges[0], (edges[0] + edges[-1]) / 2, edges[-1]]
    alt = escape(f"{chart.title}: {chart.alternative_text()}")
    rows = list(zip(*chart.table().values(), strict=True))
    table = page_table(
        chart.title, list(chart.table()), [list(map(format_number, row)) for row in rows]
    )
    return (
        f'<div class="saelab-bars" style="--bar:{colour}"><h3>{escape(chart.title)}</h3>'
        f'<div role="figure" aria-label="{alt}"><small>{escape(chart.series[0].name)}</small>'
        f'<div class="plot">{marks}{lines}<div class="bars">{bars}</div></div>'
        f'<div class="ends">{"".join(f"<span>{short(end)}</span>" for end in ends)}</div>'
        f"<small>{escape(chart.x.title)}</small></div>"
        f'<p class="muted">{escape(chart.caption)}</p>'
        '<label class="muted"><input type="checkbox"> Linear counts</label>'
        f"<details><summary>Data</summary>{table}</details></div>"
    )


def _example_lists(record: FeatureRecord, view: ExampleView) -> list[str]:
    most = record.max_act
    parts = ["<h2>Top examples</h2>", examples_html(record.top_examples, most, view)]
    if record.quantile_groups:
        parts.append("<h2>Quantiles of the contexts</h2>")
    for index, group in enumerate(record.quantile_groups):
        parts.append(f"<h3>{escape(group_heading(group, highest=index == 0))}</h3>")
        parts.append(examples_html(group.examples, most, view, with_legend=False))
    parts += ["<h2>Random examples</h2>", examples_html(record.random_positives, most, view)]
    return [*parts, "<h2>Near misses</h2>", examples_html(record.near_misses, most, view)]


PAGE_STYLE = """
:root{color-scheme:light dark}
body{margin:0 auto;max-width:68rem;padding:1.5rem;background:light-dark(#fff,#14171b);
color:light-dark(#1b1f24,#e8eaed);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
h1,h2,h3{line-height:1.25}h2{margin-top:2rem}.muted{color:light-dark(#55606c,#a7b0ba)}
"""
CHART_STYLE = (
    ".saelab-charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr));"
    "gap:1.5rem}.saelab-charts h3{font-size:1rem;padding:0;margin:.3rem 0 .5rem}"
    ".saelab-charts .muted,.saelab-charts small,.saelab-charts summary"
    "{font-size:.8rem;color:light-dark(#55606c,#a7b0ba)}"
    ".saelab-charts p{margin:.3rem 0}.saelab-charts label{display:block;margin:.3rem 0}"
    ".saelab-charts details>div{max-height:18rem;overflow:auto}"
    ".saelab-bars .plot{position:relative;height:150px;margin:1.1rem 0 .2rem 2.8rem;"
    "border-bottom:1px solid light-dark(#9aa3ad,#596472)}"
    ".saelab-bars .plot span{position:absolute;right:calc(100% + .35rem);font-size:.72rem;"
    "line-height:1;transform:translateY(50%);color:light-dark(#55606c,#a7b0ba)}"
    ".saelab-bars .bars{display:flex;align-items:flex-end;gap:1px;height:100%}"
    ".saelab-bars i{flex:1;height:var(--g);background:var(--bar)}"
    ".saelab-bars i:hover{filter:brightness(1.3)}"
    ".saelab-bars u{position:absolute;top:0;bottom:0;pointer-events:none;"
    "border-left:1px dashed light-dark(#3d4650,#c9d0d7)}"
    ".saelab-bars .plot u span{right:auto;left:0;bottom:100%;"
    "transform:translateX(-50%);white-space:nowrap}"
    # Levels of a skewed distribution stand close together.
    ".saelab-bars .plot u:nth-of-type(even) span{bottom:calc(100% + .7rem)}"
    ".saelab-bars .ends{display:flex;justify-content:space-between;margin-left:2.8rem;"
    "font-size:.72rem;color:light-dark(#55606c,#a7b0ba)}"
    ".saelab-bars [role=figure]>small:last-child{display:block;text-align:center}"
    ".saelab-bars .n,.saelab-bars:has(input:checked) .g{display:none}"
    ".saelab-bars:has(input:checked) .n{display:inline}"
    ".saelab-bars:has(input:checked) i{height:var(--n)}"
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
