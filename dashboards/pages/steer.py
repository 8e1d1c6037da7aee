"""Steer: write on from a text with features added, held or taken away, beside the plain model."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

from typing import Any

import numpy as np
import streamlit as st

from .. import url_state
from ..context import feature_link, require_dictionary, require_store
from ..live import LivePage, open_live_page
from ..widgets.curated import curated_groups
from ..widgets.live_figures import probability_shift
from ..widgets.page_parts import (
    format_number,
    plain,
    run_page,
    show_figure,
    show_note,
)
from ..widgets.prompt_reading import text_box
from ..widgets.steer_run import (
    EditChoice,
    SteerResult,
    SteerSettings,
    steer,
    written_html,
)

KINDS = {"add": "add", "clamp": "clamp to", "ablate": "ablate"}
MOST_EDITS = 4
STRENGTH_BOUND = 10.0
MOST_TIMES_MEDIAN = 2.0
"""Times the median maximum up to which a feature is suggested."""
EXAMPLE_TEXT = "I went to the city and saw"
RESULT = "steer_result"
DEFAULTS = {"len": 40, "temp": 0.8, "seed": 0}


def render() -> None:
    """Draw the page."""
    entry = require_dictionary()
    store = require_store(entry)
    st.title("Steer")
    page = open_live_page(entry, store)
    text = text_box("Text to continue", "steer_text", "text", EXAMPLE_TEXT, height=80)
    edits = draw_edits(page)
    settings = draw_settings(page, text, edits)
    if st.button("Write", type="primary", key="steer_write", disabled=not text.strip()):
        st.session_state[RESULT] = write(page, settings)
    result: SteerResult | None = st.session_state.get(RESULT)
    if result is None or result.settings.dictionary != page.key:
        show_note(
            "Press Write: the model continues the text twice with the same random numbers, once as "
            "it is and once with the edits."
        )
    else:
        draw_result(result, settings)
    draw_definitions()


def draw_edits(page: LivePage) -> tuple[EditChoice, ...]:
    """A row of controls for each edited feature."""
    count = url_state.read("n", 1, _edit_count)
    fallback = default_feature(page)
    edits = tuple(_draw_edit(page, place, fallback) for place in range(1, count + 1))
    more, fewer, _ = st.columns([1.3, 1.6, 5])
    more.button(
        "Another feature",
        key="steer_more",
        on_click=_set_count,
        args=(count + 1,),
        disabled=count >= MOST_EDITS,
    )
    fewer.button(
        "Without the last",
        key="steer_fewer",
        on_click=_set_count,
        args=(count - 1,),
        disabled=count <= 1,
    )
    return edits


def _draw_edit(page: LivePage, place: int, fallback: int) -> EditChoice:
    feature_box, kind_box, strength_box, about = st.columns(
        [1.2, 1.2, 3, 3], vertical_alignment="bottom"
    )
    last = page.store.n_features - 1
    default = min(url_state.read("f", fallback, url_state.count), last) if place == 1 else fallback

    def known(text: str) -> int:
        feature = url_state.count(text)
        if feature > last:
            raise ValueError(text)
        return feature

    with feature_box:
        key = f"steer_feature_{place}"
        url_state.bind(key, f"f{place}", default, known)
        st.session_state[key] = min(st.session_state[key], last)
        feature = int(st.number_input("Feature", 0, last, step=1, key=key))
        url_state.publish(f"f{place}", feature, default)
    with kind_box:
        url_state.bind(f"steer_kind_{place}", f"k{place}", "add", url_state.one_of(*KINDS))
        kind: Any = st.selectbox(
            "Do", list(KINDS), format_func=KINDS.__getitem__, key=f"steer_kind_{place}"
        )
        url_state.publish(f"k{place}", kind, "add")
    with strength_box:
        url_state.bind(f"steer_strength_{place}", f"s{place}", 1.0, _strength)
        strength = st.slider(
            "Strength, in multiples of its maximum",
            -STRENGTH_BOUND,
            STRENGTH_BOUND,
            step=0.25,
            key=f"steer_strength_{place}",
            disabled=kind == "ablate",
        )
        url_state.publish(f"s{place}", strength, 1.0)
    with about:
        feature_link(feature, f"Feature {feature}: {page.label(feature)}", page.entry)
        maximum = float(page.numbers.maximum[feature])
        st.caption(plain(f"its maximum in the store: {format_number(maximum)}"))
    return EditChoice(feature=feature, kind=kind, strength=float(strength))


def default_feature(page: LivePage) -> int:
    """Of the features worth a first look, the one that moves the logits most at its maximum."""
    table, maximum = page.store.table(), page.numbers.maximum
    effect = (1e-6 + np.nan_to_num(table["logit_max"])) * maximum
    # A few features hold massive activations; multiples of their maximum only break the text.
    active = maximum[maximum > 0]
    usual = maximum < MOST_TIMES_MEDIAN * (np.median(active) if len(active) else 1.0)
    curated = [feature for group in curated_groups(table) for feature in group.features]
    candidates = [feature for feature in curated if usual[feature]] or range(len(effect))
    return int(max(candidates, key=lambda feature: effect[feature]))


def _edit_count(text: str) -> int:
    count = url_state.count(text)
    if not 1 <= count <= MOST_EDITS:
        raise ValueError(text)
    return count


def _strength(text: str) -> float:
    strength = float(text)
    if not abs(strength) <= STRENGTH_BOUND:
        raise ValueError(text)
    return strength


def _set_count(count: int) -> None:
    if count == 1:
        st.query_params.pop("n", None)
    else:
        st.query_params["n"] = str(count)


def draw_settings(page: LivePage, text: str, edits: tuple[EditChoice, ...]) -> SteerSettings:
    """Length, temperature, seed, and where the edits begin."""
    length, warmth, seed_box, end = st.columns([2, 2, 1, 2], vertical_alignment="bottom")
    with length:
        url_state.bind("steer_length", "len", DEFAULTS["len"], _bounded(5, 80, int))
        n_tokens = st.slider("Tokens to write", 5, 80, step=5, key="steer_length")
        url_state.publish("len", n_tokens, DEFAULTS["len"])
    with warmth:
        url_state.bind("steer_temperature", "temp", DEFAULTS["temp"], _bounded(0.0, 2.0, float))
        temperature = st.slider(
            "Temperature",
            0.0,
            2.0,
            step=0.1,
            key="steer_temperature",
            help="Logits are divided by it before drawing; 0 takes the likeliest token.",
        )
        url_state.publish("temp", temperature, DEFAULTS["temp"])
    with seed_box:
        url_state.bind("steer_seed", "seed", DEFAULTS["seed"], url_state.count)
        seed = int(st.number_input("Seed", 0, 999_999_999, step=1, key="steer_seed"))
        url_state.publish("seed", seed, DEFAULTS["seed"])
    with end:
        url_state.bind("steer_end", "end", False, url_state.flag)
        from_end = st.toggle(
            "Edit only from the text's end on",
            key="steer_end",
            help="Off: features are edited at every token of the text that counts, too.",
        )
        url_state.publish("end", from_end, False)
    return SteerSettings(
        dictionary=page.key,
        text=text,
        edits=edits,
        n_tokens=int(n_tokens),
        temperature=float(temperature),
        seed=seed,
        from_end=from_end,
    )


def _bounded(low: float | int, high: float | int, kind: type) -> Any:
    def parse(text: str) -> Any:
        value = kind(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return parse


def write(page: LivePage, settings: SteerSettings) -> SteerResult:
    """Write both versions, visibly."""
    place = st.empty()
    with place.container(), page.spinner("Writing"):
        left, right = st.columns(2)
        left.markdown("**As the model is**")
        right.markdown("**Steered**")
        one, other = left.empty(), right.empty()

        def show(baseline: str, steered: str) -> None:
            one.html(written_html(settings.text, baseline))
            other.html(written_html(settings.text, steered))

        result = steer(page, settings, show)
    place.empty()
    return result


def draw_result(result: SteerResult, now: SteerSettings) -> None:
    """Both texts side by side, and how the next token's distribution moved."""
    if result.settings != now:
        show_note("The settings have changed since this was written: press Write again.")
    left, right = st.columns(2)
    with left:
        st.markdown("**As the model is**")
        st.html(written_html(result.settings.text, result.baseline))
    with right:
        st.markdown(f"**Steered**: {plain(describe(result.settings.edits))}")
        st.html(written_html(result.settings.text, result.steered))
    if result.baseline == result.steered:
        show_note(
            "Both texts are the same: the edits changed no token. Try a larger strength or another "
            "feature."
        )
    st.markdown(
        plain(
            f"The distribution of the next token after the text moved by KL = "
            f"{format_number(result.kl)} nats."
        )
    )
    if result.gaining or result.losing:
        show_figure(probability_shift(result.gaining, result.losing, result.kl), "steer_shift")


def describe(edits: tuple[EditChoice, ...]) -> str:
    """The edits in words."""
    words = {
        "add": "{0:+g} × maximum of feature {1}",
        "clamp": "feature {1} held at {0:g} × its maximum",
        "ablate": "feature {1} ablated",
    }
    return "; ".join(words[edit.kind].format(edit.strength, edit.feature) for edit in edits)


def draw_definitions() -> None:
    """What the words on this page mean."""
    from saelab.live.edits import DEFINITIONS
    from saelab.live.shift import DEFINITION

    with st.expander("What exactly is done"):
        for kind, definition in DEFINITIONS.items():
            st.markdown(f"**{KINDS[kind]}**: {plain(definition)}.")
        st.markdown(
            plain(
                "Edits act at every position that counts under the dictionary's token filter, in "
                "the text and in what is written; all codes are those before any edit. Both "
                "versions are drawn with the same random numbers, so they differ only where the "
                f"edits change what is likely. {DEFINITION} ⏹ marks a text that the model ended."
            )
        )


if __name__ == "__main__":
    run_page(render)
