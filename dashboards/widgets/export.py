"""A feature's page as one file: HTML without scripts or outside links, or JSON with every number.

Charts are drawn as SVG here rather than with plotly.js: the file then has some 100 kB instead of
5 MB and also opens where scripts are blocked, as in mail.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from saelab.features.labels import Label
from saelab.features.reader import FeatureStore
from saelab.features.records import FeatureRecord, Histogram, Neighbour

from .feature_html import (
    ExampleView,
    examples_html,
    group_heading,
    logit_tables,
    number_strip,
    numbers_of,
)
from .figures import activation_histogram, logit_histogram, short
from .token_html import visible_text

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
PAGE_STYLE = """
:root{color-scheme:light dark}
body{margin:0 auto;max-width:68rem;padding:1.5rem;background:light-dark(#fff,#14171b);
color:light-dark(#1b1f24,#e8eaed);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
h1,h2,h3{line-height:1.25}h2{margin-top:2rem}.muted{color:light-dark(#55606c,#a7b0ba)}
figure{margin:1rem 0}figcaption{font-size:.85rem;color:light-dark(#55606c,#a7b0ba)}
svg{width:100%;height:auto}svg text{fill:light-dark(#55606c,#a7b0ba);font-size:11px}
svg line{stroke:light-dark(#9aa3ad,#596472)}
table.facts{border-collapse:collapse;font-size:.9rem}
table.facts td,table.facts th{text-align:left;padding:.2rem 1rem .2rem 0;vertical-align:top;
border-bottom:1px solid light-dark(#e3e7eb,#2c333b);overflow-wrap:anywhere}
"""


def feature_html(name: str, store: FeatureStore, feature: int, labels: Sequence[Label] = ()) -> str:
    """A feature's page as one self-contained HTML file, for both themes.

    Args:
        name: of the dictionary.
        store: the open store.
        feature: the feature.
        labels: what people call it, newest first.
    """
    record = store.feature(feature)
    title = f"{name} · feature {feature}"
    label = f"<p><b>{escape(labels[0].text)}</b></p>" if labels else ""
    flags = f'<p class="muted">{escape(", ".join(record.flags))}</p>' if record.flags else ""
    parts = [
        f"<h1>{escape(title)}</h1>{label}{flags}",
        number_strip(numbers_of(record)),
        *_charts(record),
        *_example_lists(record),
        *_neighbour_lists(record),
        _provenance(store),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{PAGE_STYLE}</style></head>\n<body><main>"
        + "\n".join(parts)
        + "</main></body></html>\n"
    )


def feature_json(name: str, store: FeatureStore, feature: int, labels: Sequence[Label] = ()) -> str:
    """Every number of a feature's page as JSON, with whole contexts."""
    content = {
        "dictionary": name,
        "store_id": store.store_id,
        "made_from": store.manifest["made_from"],
        "labels": [dataclasses.asdict(label) for label in labels],
        "feature": _plain(store.feature(feature, None)),
    }
    return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1)


def _plain(value: Any) -> Any:
    """Records and arrays as JSON values; what is undefined is null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return [_plain(part) for part in value.tolist()]
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _charts(record: FeatureRecord) -> list[str]:
    parts = []
    figure = activation_histogram(record)
    if figure is not None and record.histogram is not None:
        bars = svg_bars(record.histogram, figure.alt, "activation", "#2f81c4")
        parts.append(_figure("Activations", bars, figure.caption))
    if record.logit_lens is not None:
        figure = logit_histogram(record.logit_lens)
        bars = svg_bars(record.logit_lens.histogram, figure.alt, "logit", "#a05fb4")
        parts += [
            "<h2>Logits</h2>",
            logit_tables(record.logit_lens),
            _figure("Logits over the vocabulary", bars, figure.caption),
        ]
    return parts


def _figure(title: str, drawing: str, caption: str) -> str:
    return (
        f"<h3>{escape(title)}</h3><figure>{drawing}<figcaption>{escape(caption)}</figcaption>"
        "</figure>"
    )


def svg_bars(histogram: Histogram, alt: str, unit: str, colour: str) -> str:
    """A histogram with a logarithmic count axis, as SVG with a title on every bar."""
    width, height, left, bottom = 640, 200, 44, 28
    counts = [int(count) for count in histogram.counts]
    edges = [float(edge) for edge in histogram.edges]
    top = math.log10(max(counts, default=1) + 1) or 1.0
    wide = (width - left) / max(1, len(counts))
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alt)}">']
    for decade in range(math.floor(top) + 1):
        y = (height - bottom) * (1 - math.log10(10**decade + 1) / top)
        parts.append(
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{10**decade:,}</text>'
        )
    for place, count in enumerate(counts):
        tall = (height - bottom) * math.log10(count + 1) / top
        title = f"{short(edges[place])} to {short(edges[place + 1])}: {count:,}"
        parts.append(
            f'<rect x="{left + place * wide:.1f}" y="{height - bottom - tall:.1f}" '
            f'width="{max(wide - 1, 0.5):.1f}" height="{tall:.1f}" fill="{colour}">'
            f"<title>{escape(title)}</title></rect>"
        )
    base = height - bottom
    parts.append(f'<line x1="{left}" y1="{base}" x2="{width}" y2="{base}"/>')
    for share in (0.0, 0.5, 1.0):
        value = edges[0] + share * (edges[-1] - edges[0])
        anchor = {0.0: "start", 0.5: "middle", 1.0: "end"}[share]
        x = left + share * (width - left)
        parts.append(
            f'<text x="{x:.1f}" y="{height - 8}" text-anchor="{anchor}">{escape(short(value))}'
            f"{escape(' ' + unit) if share == 0.5 else ''}</text>"
        )
    return "".join([*parts, "</svg>"])


def _example_lists(record: FeatureRecord) -> list[str]:
    view, most = ExampleView(), record.max_act
    parts = ["<h2>Top examples</h2>", examples_html(record.top_examples, most, view)]
    if record.quantile_groups:
        parts.append("<h2>Quantiles of the contexts</h2>")
    for place, group in enumerate(record.quantile_groups):
        parts.append(f"<h3>{escape(group_heading(group, highest=place == 0))}</h3>")
        parts.append(examples_html(group.examples, most, view, with_legend=False))
    parts += ["<h2>Random examples</h2>", examples_html(record.random_positives, most, view)]
    return [*parts, "<h2>Near misses</h2>", examples_html(record.near_misses, most, view)]


def _neighbour_lists(record: FeatureRecord) -> list[str]:
    lists: tuple[tuple[str, Sequence[Neighbour]], ...] = (
        ("decoder, cosine", record.decoder_neighbours),
        ("encoder, cosine", record.encoder_neighbours),
        ("active together, Jaccard", record.coactive_jaccard),
        ("activations, Pearson", record.coactive_pearson),
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>'
        + escape(", ".join(f"{n.feature} ({n.value:.2f})" for n in neighbours) or "none")
        + "</td></tr>"
        for name, neighbours in lists
    )
    return [f'<h2>Neighbours</h2><table class="facts">{rows}</table>']


def _provenance(store: FeatureStore) -> str:
    facts = {
        **store.manifest["made_from"],
        "tokens counted": f"{store.n_tokens:,}",
        "contexts": f"{store.n_sequences:,}",
        "built": store.manifest.get("created"),
        "with": store.manifest.get("library_versions"),
    }
    rows = "".join(
        f'<tr><th scope="row">{escape(str(key).replace("_", " "))}</th>'
        f"<td>{escape(visible_text(_fact(value)))}</td></tr>"
        for key, value in facts.items()
    )
    return f'<h2>Provenance</h2><table class="facts">{rows}</table>'


def _fact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
