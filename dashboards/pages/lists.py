"""Lists: features of any dictionaries that somebody collected, read, steered and compared."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import numpy as np
import streamlit as st

from saelab.errors import SaelabError
from saelab.features.lists import (
    ENDING,
    FeatureList,
    ListedFeature,
    ListShelf,
    list_from_bytes,
    shelf_of,
)
from saelab.formats.chart import Axis, Chart, Series

from .. import url_state
from ..context import feature_href, label_texts, link_params, run_index
from ..run_index import DictionaryEntry
from ..stores import entries_by_hash, open_store
from ..widgets.cards import list_cards, list_html
from ..widgets.feature_table import PERCENT, about
from ..widgets.html_tables import link_list, linked_table
from ..widgets.page_parts import plain, run_page, show_figure, show_note, show_problem
from ..widgets.sharing import HTML_NOTE, SharedFile, draw_sharing
from ..widgets.token_html import visible_text
from .compare import decoder_rows
from .steer import MOST_EDITS

CARDS = 20
"""Features on a page of a list."""
MOST_COMPARED = 40
MOST_SAID = 200
"""Characters of a list's description beside its name."""
LISTS_PAGE = "lists.py"
EXPORT_NOTE = "What “Import” of another dashboard reads: names, hashes and notes, no examples."


def render() -> None:
    """Draw the page."""
    shelf = shelf_of(run_index().roots)
    list_id = st.query_params.get("list")
    if list_id is None:
        _show_all(shelf)
    else:
        _show_list(shelf, shelf.of(list_id))


def _show_all(shelf: ListShelf) -> None:
    st.title("Lists")
    lists, problems = shelf.all()
    for problem in problems:
        show_problem(problem)
    if not lists:
        show_note(
            "No list yet. Make one here, or with “Add to a list” on a feature's page or beside the "
            "rows of Explore."
        )
    else:
        st.html(
            link_list(
                [
                    (
                        f"lists?{urlencode({'list': each.id})}",
                        visible_text(each.name),
                        " ".join(f"{_counted(each.features)}. {each.description}".split())[
                            :MOST_SAID
                        ],
                    )
                    for each in lists
                ]
            )
        )
    left, right = st.columns(2)
    with left, st.form("new_list", clear_on_submit=True):
        st.markdown("##### New list")
        name = st.text_input("Name")
        description = st.text_area("Description", height=70)
        if st.form_submit_button("Make it"):
            _keep(lambda: shelf.add(FeatureList(name=name, description=description)))
    with right, st.form("import_list", clear_on_submit=True):
        st.markdown("##### Import")
        file = st.file_uploader("A list's JSON file", type="json")
        if st.form_submit_button("Import") and file is not None:
            _keep(lambda: shelf.add(list_from_bytes(file.getvalue(), file.name)))


def _counted(items: Sequence[ListedFeature]) -> str:
    names = dict.fromkeys(visible_text(item.name) for item in items)
    return f"{len(items)} features" + (f" of {', '.join(names)}" if names else "")


def _keep(write: Callable[[], FeatureList | None]) -> None:
    """Write, and open what was written; none: all lists. What is wrong is said."""
    try:
        kept = write()
    except SaelabError as error:
        show_problem(str(error))
        return
    st.query_params.from_dict({} if kept is None else {"list": kept.id})
    st.rerun()


def _show_list(shelf: ListShelf, chosen: FeatureList) -> None:
    name = visible_text(chosen.name)
    st.set_page_config(page_title=f"{name} · list")
    st.title(plain(name))
    st.caption(
        plain(f"{_counted(chosen.features)} · {chosen.id}{ENDING}, SHA-256 {chosen.sha256[:12]}…")
    )
    entries = entries_by_hash(run_index())
    with st.container(horizontal=True, vertical_alignment="center"):
        st.page_link(LISTS_PAGE, label="All lists", query_params={})
        for content_hash in dict.fromkeys(item.dictionary for item in chosen.features):
            if entry := entries.get(content_hash):
                _link_to_steering(
                    entry, [i for i in chosen.features if i.dictionary == content_hash]
                )
        draw_sharing(
            {"list": chosen.id},
            f"lists/{chosen.id}",
            [
                SharedFile(
                    "Page as HTML",
                    f"list_{chosen.id}.html",
                    lambda: list_html(chosen, run_index()),
                    HTML_NOTE,
                ),
                SharedFile(
                    "List as JSON",
                    f"{chosen.id}{ENDING}",
                    lambda: shelf.exported(chosen.id),
                    EXPORT_NOTE,
                ),
            ],
        )
        _draw_edit(shelf, chosen)
    if not chosen.features:
        show_note("The list is empty: add features on their pages, or beside the rows of Explore.")
        return
    _show_table(chosen, entries)
    with st.expander("Order, notes and what stays"):
        _draw_order(shelf, chosen)
    _show_cosines(chosen, entries)
    st.header("Features")
    n_pages = -(-len(chosen.features) // CARDS)
    number = 1
    if n_pages > 1:
        number = url_state.widget(
            st.number_input, f"Page (of {n_pages})", 1, n_pages, param="page", default=1, width=150
        )
    shown = replace(chosen, features=chosen.features[CARDS * (number - 1) : CARDS * number])
    st.html(list_cards(shown, run_index(), lambda entry, feature: feature_href(feature, entry)))


def _link_to_steering(entry: DictionaryEntry, items: Sequence[ListedFeature]) -> None:
    """All features of a dictionary, as many as are steered together."""
    steered = items[:MOST_EDITS]
    numbers = {f"f{place}": str(item.feature) for place, item in enumerate(steered, 1)}
    first = "all" if len(steered) == len(items) else f"the first {len(steered)}"
    st.page_link(
        "steer.py",
        label=plain(f"Steer with {first} of {entry.name}"),
        query_params=link_params(entry, n=str(len(steered)), **numbers),
    )


def _draw_edit(shelf: ListShelf, chosen: FeatureList) -> None:
    with st.popover("Edit"), st.form("edit_list", border=False):
        name = st.text_input("Name", value=chosen.name)
        description = st.text_area("Description", value=chosen.description, height=90)
        sure = st.checkbox("Remove the list, with its notes")
        if st.form_submit_button("Save"):
            if sure:
                _keep(lambda: shelf.remove(chosen.id))
            new = {"name": name, "description": description}
            _keep(lambda: shelf.change(chosen.id, lambda old: replace(old, **new)))


def _show_table(chosen: FeatureList, entries: dict[str, DictionaryEntry]) -> None:
    """The numbers of the features side by side, for those whose stores are here."""
    columns: dict[str, list[object]] = {}
    hrefs = []
    for item in chosen.features:
        entry = entries.get(item.dictionary)
        store = open_store(entry.store_path) if entry and entry.store_path else None
        if store is None or item.feature >= store.n_features:
            continue
        table = store.table()
        row = {
            "feature": item.feature,
            "label or top tokens": about(table, label_texts(store), item.feature),
            "note": " ".join(item.note.split()),
            "dictionary": item.name,
            f"density{PERCENT}": 100 * float(np.nan_to_num(table["density"][item.feature])),
            "max activation": float(table["max_act"][item.feature]),
            "largest logit": float(table["logit_max"][item.feature]),
        }
        for title, value in row.items():
            columns.setdefault(title, []).append(value)
        hrefs.append(feature_href(item.feature, entry))
    if hrefs:
        st.html(
            linked_table(f"{len(hrefs)} features of the list with their numbers", columns, hrefs)
        )


def _draw_order(shelf: ListShelf, chosen: FeatureList) -> None:
    """A table to edit: the features' order, which of them stay, and their notes."""
    items = chosen.features
    edited = st.data_editor(
        {
            "order": list(range(1, len(items) + 1)),
            "keep": [True] * len(items),
            "feature": [item.feature for item in items],
            "dictionary": [visible_text(item.name) for item in items],
            "note": [item.note for item in items],
        },
        hide_index=True,
        disabled=["feature", "dictionary"],
        key=f"order_{chosen.id}_{chosen.sha256}",
        alt="The features of the list: their order, whether they stay, and their notes",
    )
    if st.button("Save the order and the notes"):
        _keep(lambda: shelf.change(chosen.id, lambda old: rearranged(old, items, edited)))


def rearranged(
    old: FeatureList, items: Sequence[ListedFeature], edited: Mapping[str, Sequence[Any]]
) -> FeatureList:
    """A list as somebody edited it; what others have added meanwhile stays, at the end.

    Args:
        old: as it is kept now.
        items: the features that were edited.
        edited: for each of them its `order`, whether to `keep` it, and its `note`.
    """
    order = np.argsort([math.inf if n is None else n for n in edited["order"]], kind="stable")
    kept = [
        replace(items[place], note=str(edited["note"][place] or "").strip())
        for place in order.tolist()
        if edited["keep"][place]
    ]
    shown = {(item.dictionary, item.feature) for item in items}
    added = [item for item in old.features if (item.dictionary, item.feature) not in shown]
    return replace(old, features=(*kept, *added))


def _show_cosines(chosen: FeatureList, entries: dict[str, DictionaryEntry]) -> None:
    """How alike the features are in what they write, where their decoders have one width."""
    items = [
        item
        for item in chosen.features
        if (entry := entries.get(item.dictionary)) and entry.folder and entry.store_path
    ][:MOST_COMPARED]
    if len(items) < 2:
        return
    rows = {}
    for content_hash in dict.fromkeys(item.dictionary for item in items):
        wanted = [item.feature for item in items if item.dictionary == content_hash]
        folder = entries[content_hash].folder
        assert folder is not None
        for feature, row in zip(wanted, decoder_rows(folder, wanted), strict=True):
            rows[content_hash, feature] = row
    if len({row.shape for row in rows.values()}) > 1:
        show_note("Decoder rows of different widths are not compared.")
        return
    matrix = np.stack([rows[item.dictionary, item.feature] for item in items])
    several = len({item.dictionary for item in items}) > 1
    names = [
        f"{visible_text(item.name)} {item.feature}" if several else str(item.feature)
        for item in items
    ]
    cosines: list[Any] = (matrix @ matrix.T).round(3).tolist()
    cut = f" The first {MOST_COMPARED} are shown." if len(chosen.features) > MOST_COMPARED else ""
    show_figure(
        Chart(
            name="list_cosines",
            title="How alike they are",
            caption="Cosine of the features' decoder rows: what they write. 1 is the same "
            f"direction, 0 nothing in common.{cut}",
            x=Axis(title="feature"),
            y=Axis(title="feature "),
            colour="cosine",
            series=(Series(name="cosine", x=[*names], y=[*names], z=cosines, mark="heat map"),),
            height=max(340, 80 + 22 * len(items)),
        ),
        "list_cosines",
    )


if __name__ == "__main__":
    run_page(render)
