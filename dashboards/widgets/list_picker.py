"""A small form that puts features into a list, for pages that show some."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from saelab.errors import SaelabError
from saelab.features.lists import FeatureList, ListedFeature, shelf_of
from saelab.features.reader import FeatureStore

from ..context import run_index
from .page_parts import show_problem
from .token_html import visible_text

NEW = ""


def add_to_list(name: str, store: FeatureStore, features: Sequence[int], key: str) -> None:
    """Draw the form, closed behind a button.

    Args:
        name: of the dictionary.
        store: its features.
        features: those that the page shows; where there are several, some can be chosen.
        key: names the form on its page.
    """
    shelf = shelf_of(run_index().roots)
    names = {each.id: visible_text(each.name) for each in shelf.all()[0]}
    with st.popover("Add to a list"), st.form(f"{key}_list", border=False):
        chosen = list(features)
        if len(features) > 1:
            text = f"Which features (none chosen: all {len(features)} shown)"
            chosen = st.multiselect(text, features, key=f"{key}_which") or chosen
        options = {NEW: "a new list", **names}
        list_id = st.selectbox("List", options, format_func=options.__getitem__, key=f"{key}_id")
        new_name = st.text_input("Its name, if it is new", key=f"{key}_name")
        note = st.text_area("Note, kept with the feature", key=f"{key}_note", height=70)
        if not st.form_submit_button("Add"):
            return
        dictionary = store.manifest["made_from"]["dictionary_hash"]
        items = [
            ListedFeature(dictionary=dictionary, name=name, feature=feature, note=note.strip())
            for feature in chosen
        ]
        try:
            if list_id == NEW:
                kept = shelf.add(FeatureList(name=new_name).with_features(items))
            else:
                kept = shelf.change(list_id, lambda old: old.with_features(items))
        except SaelabError as error:
            show_problem(str(error))
            return
        st.page_link(
            "lists.py",
            label=f"The list has {len(kept.features)} features: open it",
            query_params={"list": kept.id},
        )
