"""Labels and notes of a feature, kept beside the store and apart from it."""

from __future__ import annotations

import streamlit as st

from saelab.errors import SaelabError
from saelab.features.labels import MAX_LABEL_WORDS, Label, LabelBook

from ..page_parts import plain, show_problem

AUTHOR_KEY = "label_author"


def show_labels(feature: int, book: LabelBook) -> None:
    """The labels with who wrote them, and boxes to write a label and a note."""
    st.header("Label and notes")
    for label in book.of(feature):
        show_label(label, book)
    note = book.note(feature)
    if note is not None:
        st.markdown(plain(note.text))
        st.caption(plain(f"note by {note.author}, {note.created[:10]}"))
    left, right = st.columns(2)
    with left, st.form(f"label_{feature}", clear_on_submit=True):
        text = st.text_input(f"New label, at most {MAX_LABEL_WORDS} words", key=f"text_{feature}")
        author = st.text_input("Your name", value=_author(), key=f"label_by_{feature}")
        if st.form_submit_button("Save label"):
            _save(lambda: book.add(feature, text, author=author), author)
    with right, st.form(f"note_{feature}"):
        body = st.text_area(
            "Note", value=note.text if note else "", key=f"note_text_{feature}", height=90
        )
        writer = st.text_input("Your name", value=_author(), key=f"note_by_{feature}")
        if st.form_submit_button("Save note"):
            _save(lambda: book.write_note(feature, body, author=writer), writer)
    st.caption(
        "Labels and notes lie in a file of their own beside the store; building the store "
        "again keeps them."
    )


def show_label(label: Label, book: LabelBook) -> None:
    """One label with its origin and a way to remove it."""
    score = "" if label.score is None else f", score {label.score:.2g}"
    text, remove = st.columns([6, 1], vertical_alignment="center")
    with text:
        st.markdown(f"**{plain(label.text)}**")
        st.caption(plain(f"{label.author}, {label.method}{score}, {label.created[:10]}"))
    if remove.button("Remove", key=f"remove_{label.id}"):
        _save(lambda: book.delete(label.id), None)


def _author() -> str:
    return str(st.session_state.get(AUTHOR_KEY, ""))


def _save(write, author: str | None) -> None:
    try:
        write()
    except SaelabError as error:
        show_problem(str(error))
        return
    if author:
        st.session_state[AUTHOR_KEY] = author
    st.rerun()
