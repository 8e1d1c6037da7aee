"""The Prompt page's first part: the active features of one text, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import streamlit as st
from jaxtyping import Float, Int

from saelab.features.token_text import Vocabulary
from saelab.live.ranking import SORTS, FeatureUse, feature_use, ranked, relative
from saelab.live.reading import Reading

from .. import url_state
from ..live import MAX_CHARACTERS, LivePage
from .html_tables import Chip, chips_table, linked_table, short_label
from .page_parts import download_table, format_number, plain, show_note
from .token_html import legend, token_row, tokens_page, value_text, visible_text

CEILINGS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
SORT_NAMES = {
    "strength": "strength",
    "relative": "strength relative to the maximum",
    "rarity": "rarity",
}
CHIPS_PER_TOKEN = 4
CHIP_LABEL = 16
"""Characters of a label beside a token."""
MOST_FEATURES = 40
EXAMPLE_TEXT = "The President of the United States addressed Congress in December."


def draw_reading(page: LivePage) -> None:
    """Text box, controls, the text with one feature highlighted, and two tables."""
    text = text_box("Text", "prompt_text", "text", EXAMPLE_TEXT)
    sort, ceiling = draw_order()
    if not text.strip():
        show_note("Type a text to see its active features.")
        return
    reading = page.read(text)
    say_what_was_cut(reading)
    whole = pieced(reading, page.store.vocabulary)
    use = feature_use(whole.reading)
    order = ranked(use.latent, use.peak, page.numbers, sort, ceiling)
    hidden = len(use.latent) - len(order)
    l0 = len(reading.latent) / max(int(reading.counted.sum()), 1)
    st.markdown(
        plain(
            f"{int(reading.counted.sum())} tokens that count, {l0:.1f} active features per token, "
            f"{len(use.latent):,} different ones"
        )
        + (f"; {hidden:,} above the density ceiling are hidden." if hidden else ".")
    )
    if not len(order):
        show_note("No active feature is as rare as that: raise the density ceiling.")
        return
    draw_highlight(page, whole, use, order)
    st.subheader("Token by token")
    draw_tokens(page, whole, sort, ceiling)
    st.subheader("All active features")
    draw_features(page, whole, use, order)


def text_box(label: str, key: str, param: str, default: str, *, height: int = 110) -> str:
    """A text area whose content is in the address."""
    url_state.bind(key, param, default)
    if len(st.session_state[key]) > MAX_CHARACTERS:
        st.session_state[key] = st.session_state[key][:MAX_CHARACTERS]
    text = st.text_area(label, key=key, max_chars=MAX_CHARACTERS, height=height)
    url_state.publish(param, text, default)
    return text


def draw_order() -> tuple[str, float]:
    """The three sorts and the density ceiling."""
    left, right = st.columns([3, 2])
    with left:
        url_state.bind("prompt_order", "order", "strength", url_state.one_of(*SORT_NAMES))
        sort = st.radio(
            "Sort by",
            list(SORT_NAMES),
            format_func=SORT_NAMES.__getitem__,
            horizontal=True,
            key="prompt_order",
            help=" ".join(f"{name}: {plain(SORTS[key])}." for key, name in SORT_NAMES.items()),
        )
        url_state.publish("order", sort, "strength")
    with right:
        return sort, density_ceiling()


def density_ceiling() -> float:
    """The slider of the largest density shown."""
    names = {str(ceiling): ceiling for ceiling in CEILINGS}
    url_state.bind("prompt_ceiling", "dens", 1.0, names.__getitem__)
    ceiling = st.select_slider(
        "Density ceiling",
        CEILINGS,
        key="prompt_ceiling",
        format_func=lambda share: f"{100 * share:g} %",
        help="Features active on a larger share of the store's tokens are hidden (log scale).",
    )
    url_state.publish("dens", ceiling, 1.0)
    return float(ceiling)


def say_what_was_cut(reading: Reading) -> None:
    """Say that a text was too long."""
    if reading.n_cut:
        show_note(
            f"The text is long: its first {len(reading.ids)} tokens are read, {reading.n_cut:,} "
            "are left out."
        )


def draw_highlight(
    page: LivePage, whole: PiecedReading, use: FeatureUse, order: Int[np.ndarray, " kept"]
) -> None:
    """The text with one feature's activations."""
    features = [int(feature) for feature in use.latent[order][:MOST_FEATURES]]
    wanted = url_state.read("f", features[0], url_state.count)
    if wanted in use.latent and wanted not in features:
        features.append(wanted)
    elif wanted not in features:
        show_note(f"Feature {wanted} is not active in this text.")
    default = wanted if wanted in features else features[0]
    if st.session_state.get("prompt_highlight") not in [None, *features]:
        del st.session_state["prompt_highlight"]
    parse = {str(feature): feature for feature in features}.__getitem__
    url_state.bind("prompt_highlight", "hl", default, parse)
    feature = st.selectbox(
        "Highlight",
        features,
        key="prompt_highlight",
        format_func=lambda feature: f"{feature}  {short_label(visible_text(page.label(feature)))}",
    )
    url_state.publish("hl", feature, default)
    track = whole.track(feature)
    maximum = float(max(page.numbers.maximum[feature], *track))
    st.html(
        tokens_page([legend_of(maximum), token_row(whole.texts, track, maximum, show_values=True)])
    )


def legend_of(maximum: float) -> str:
    """The colour scale of the highlighted text."""
    return legend(maximum).split('<span class="tok anchor">')[0] + "</div>"


def draw_tokens(page: LivePage, whole: PiecedReading, sort: str, ceiling: float) -> None:
    """Every token with its first features, as links."""
    rows = []
    for place, text in enumerate(whole.texts):
        part = whole.reading.at(place)
        latent, value = whole.reading.latent[part], whole.reading.value[part]
        order = ranked(latent, value, page.numbers, sort, ceiling)
        chips = [
            _chip(page, int(latent[one]), float(value[one])) for one in order[:CHIPS_PER_TOKEN]
        ]
        rows.append((text, whole.counted[place], chips, max(0, len(order) - CHIPS_PER_TOKEN)))
    st.html(
        chips_table(
            f"For every token its first {CHIPS_PER_TOKEN} features by {SORT_NAMES[sort]}: number, "
            "label or top token, activation, share of the feature's maximum in the store's text "
            "(above 100 % where it is stronger than anywhere there). A click opens the feature.",
            rows,
        )
    )


def _chip(page: LivePage, feature: int, value: float) -> Chip:
    maximum = float(page.numbers.maximum[feature])
    share = f" · {100 * value / maximum:.0f} %" if maximum > 0 else " · new"
    density = format_number(float(page.numbers.density[feature]))
    hint = f"Feature {feature}: {visible_text(page.label(feature))}; density {density}"
    name = visible_text(page.label(feature))
    name = name if len(name) <= CHIP_LABEL else f"{name[: CHIP_LABEL - 1]}…"
    return Chip(feature, page.href(feature), name, f"{value_text(value)}{share}", hint)


def draw_features(
    page: LivePage, whole: PiecedReading, use: FeatureUse, order: Int[np.ndarray, " kept"]
) -> None:
    """The features of the whole text, in order, as a table and a file."""
    latent = use.latent[order]
    shares = relative(use.peak[order], page.numbers.maximum[latent])
    columns: dict[str, list[object]] = {
        "feature": latent.tolist(),
        "largest activation": use.peak[order].tolist(),
        "share of its maximum": [float(s) if np.isfinite(s) else None for s in shares],
        "density": page.numbers.density[latent].tolist(),
        "tokens": use.n_positions[order].tolist(),
        "at the token": [visible_text(whole.texts[place]) for place in use.peak_position[order]],
        "label or top tokens": [visible_text(page.label(int(feature))) for feature in latent],
    }
    titles = list(columns)[1:]
    rows = [
        (
            int(feature),
            page.href(int(feature)),
            [_cell(title, columns[title][place]) for title in titles],
        )
        for place, feature in enumerate(latent[:MOST_FEATURES])
    ]
    cut = f"the first {MOST_FEATURES} of " if len(order) > MOST_FEATURES else ""
    st.html(linked_table(f"Features of this text: {cut}{len(order):,}", titles, rows))
    with st.expander("All of them, and a file"):
        download_table("features_of_a_text", columns, "prompt_features")


def _cell(title: str, value: object) -> str:
    if title == "share of its maximum":
        return "new" if value is None else f"{100 * float(str(value)):.0f} %"
    return format_number(value)


@dataclass(frozen=True, eq=False)
class PiecedReading:
    """A reading in which a character that takes several tokens is one piece.

    A feature's value at a piece is the largest of its tokens'.
    """

    texts: list[str]
    """Text of each piece."""
    counted: list[bool]
    """Whether some token of the piece counts."""
    reading: Reading
    """By piece: `position` is the place of a piece, and a feature is listed once for each."""

    def track(self, latent: int) -> list[float]:
        """Values of one feature at every piece."""
        return self.reading.track(latent)


def pieced(reading: Reading, vocabulary: Vocabulary) -> PiecedReading:
    """Merge the tokens of a reading that only together are whole characters."""
    pieces = vocabulary.pieces(reading.ids)
    starts = np.array(pieces.starts)
    place = np.searchsorted(starts, reading.position, side="right") - 1
    # Of the entries of a feature in one piece the largest comes first and is kept.
    order = np.lexsort((-reading.value, reading.latent, place))
    pairs = np.stack([place[order], reading.latent[order]])
    first = np.ones(len(order), dtype=bool)
    first[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)
    kept = order[first]
    counted = [bool(reading.counted[low:high].any()) for low, high in pairwise(starts)]
    merged = Reading(
        ids=[reading.ids[low] for low in starts[:-1]],
        tokens=list(pieces.texts),
        counted=np.array(counted, dtype=bool),
        excluded=reading.excluded,
        n_cut=reading.n_cut,
        position=place[kept],
        latent=reading.latent[kept],
        value=reading.value[kept],
    )
    return PiecedReading(list(pieces.texts), counted, merged)


def sums_by_piece(
    values: Float[np.ndarray, " seq"], reading: Reading, vocabulary: Vocabulary
) -> list[float]:
    """Numbers of tokens added up within each piece."""
    starts = np.array(vocabulary.pieces(reading.ids).starts)
    return [float(values[a:b].sum()) for a, b in pairwise(starts)]
