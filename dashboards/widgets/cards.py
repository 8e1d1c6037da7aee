"""Features as small cards of HTML: in a frame, in a list's file, on the page of a list.

Pure functions. Everything that comes from a store or from people is escaped and made visible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from saelab.features.label_content import Label, prominence
from saelab.features.lists import FeatureList, ListedFeature
from saelab.features.reader import FeatureStore

from ..run_index import DictionaryEntry, RunIndex
from ..stores import entries_by_hash, labels_of, open_store
from .feature_html import (
    ExampleView,
    examples_html,
    html_file,
    logit_tables,
    number_strip,
    shows_rows,
)
from .token_html import visible, visible_text

EXAMPLES, TOKENS, WINDOW = 5, 5, 10
"""Top examples of a card, promoted tokens, and tokens on either side of an example's anchor."""


def feature_card(
    name: str,
    store: FeatureStore,
    feature: int,
    labels: Sequence[Label],
    *,
    note: str = "",
    href: str | None = None,
) -> str:
    """A feature in short: what is said of it, its numbers, its logits and its top examples.

    Args:
        name: of its dictionary.
        store: the features.
        feature: index of the latent.
        labels: what is said of it, what counts most first.
        note: what a list says of it.
        href: address of its page; None: its heading is no link.
    """
    record = store.feature(feature, WINDOW)
    heading = escape(f"Feature {feature}")
    if href is not None:
        heading = f'<a href="{escape(href)}">{heading}</a>'
    said = f" · <bdi>{visible(labels[0].text)}</bdi>" if labels else ""
    origin = f"by {labels[0].author}, {labels[0].method} · " if labels else ""
    origin += f"{name}, {store.manifest['made_from']['dictionary_hash'][:12]}…"
    flags = "".join(f" · {flag}" for flag in record.flags)
    of_rows = shows_rows(store)
    examples = record.top_examples[:EXAMPLES]
    return (
        f'<style>{STYLE}</style><article class="saelab-card"><h2>{heading}{said}</h2>'
        f'<p class="origin">{escape(visible_text(origin + flags))}</p>{_lines(note)}'
        + number_strip(record, of_rows=of_rows)
        + (logit_tables(record.logit_lens, TOKENS) if record.logit_lens else "")
        + examples_html(examples, record.max_act, ExampleView(of_rows=of_rows))
        + "</article>"
    )


def list_cards(
    chosen: FeatureList,
    index: RunIndex,
    href: Callable[[DictionaryEntry, int], str] | None = None,
) -> str:
    """All features of a list as cards, those of dictionaries that are not here in a line."""
    entries = entries_by_hash(index)
    cards = [_listed(item, entries.get(item.dictionary), href) for item in chosen.features]
    return (
        f"<style>{STYLE}</style>" + _lines(chosen.description) + "".join(cards)
        if cards
        else "<p>The list is empty.</p>"
    )


def _listed(
    item: ListedFeature,
    entry: DictionaryEntry | None,
    href: Callable[[DictionaryEntry, int], str] | None,
) -> str:
    store = None if entry is None or entry.store_path is None else open_store(entry.store_path)
    if entry is None or store is None or item.feature >= store.n_features:
        return (
            f'<article class="saelab-card"><h2>Feature {item.feature}</h2><p class="origin">'
            f"of {visible(item.name)}, {visible(item.dictionary[:12])}…: no feature store of this "
            f"dictionary is here</p>{_lines(item.note)}</article>"
        )
    labels = [label for label in labels_of(store) if label.feature == item.feature]
    return feature_card(
        entry.name,
        store,
        item.feature,
        sorted(labels, key=prominence, reverse=True),
        note=item.note,
        href=None if href is None else href(entry, item.feature),
    )


def list_html(chosen: FeatureList, index: RunIndex) -> str:
    """A list as one self-contained HTML file."""
    told = f'<p class="muted">A list of {len(chosen.features)} features, {chosen.sha256}</p>'
    body = f"<h1>{visible(chosen.name)}</h1>{told}{list_cards(chosen, index)}"
    return html_file(chosen.name, body)


def _lines(text: str) -> str:
    """What people wrote, with its line breaks."""
    lines = "<br>".join(visible(line) if line else "" for line in text.split("\n"))
    return f'<p class="note"><bdi>{lines}</bdi></p>' if text else ""


STYLE = (
    ".saelab-card{border:1px solid light-dark(#d5dae0,#3a424c);border-radius:8px;"
    "padding:.8rem 1rem;margin:0 0 1rem}"
    ".saelab-card h2{font-size:1.15rem;margin:0 0 .2rem;padding:0;overflow-wrap:anywhere}"
    ".saelab-card a{color:light-dark(#0b62ab,#7ab8ee)}"
    ".saelab-card .origin{font-size:.8rem;color:light-dark(#55606c,#a7b0ba);margin:0 0 .4rem;"
    "overflow-wrap:anywhere}"
    ".note{margin:.2rem 0 .6rem;overflow-wrap:anywhere}"
)
