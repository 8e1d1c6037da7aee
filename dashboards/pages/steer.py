"""Steer: write on from a text with features added, held or taken away, beside the plain model."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import streamlit as st

from saelab.errors import ConfigError

from .. import url_state
from ..context import feature_link, require_dictionary, require_store
from ..live import MAX_TOKENS, LivePage, open_live_page, text_box
from ..widgets.feature_table import curated_features
from ..widgets.figures import probability_shift
from ..widgets.page_parts import plain, run_page, show_figure, show_note
from ..widgets.token_html import format_number

if TYPE_CHECKING:
    from saelab.live.edits import FeatureEdit, Kind, Shift

KINDS = {"add": "add", "clamp": "clamp to", "ablate": "ablate"}
MOST_EDITS = 8
MOST_SAMPLES = 4
SWEEPS = {"1": (1.0,), "3": (0.5, 1.0, 2.0), "5": (0.25, 0.5, 1.0, 2.0, 4.0)}
"""By value in the address: what all strengths are multiplied by, a steered text for each."""
STRENGTH_BOUND = 10.0
MOST_TIMES_MEDIAN = 2.0
"""Times the median maximum up to which a feature is suggested."""
EXAMPLE_TEXT = "I went to the city and saw"
RESULT = "steer_result"
PROGRAMS = ("lm-evaluation-harness", "llama.cpp")
ENDED = " ⏹"
"""Marks a text that the model ended."""
STYLE = (
    ".saelab-written{white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.6;min-height:8rem;"
    "padding:.6rem .8rem;border:1px solid light-dark(#d5dae0,#3a424c);border-radius:8px}"
    ".saelab-versions{display:grid;gap:1rem;"
    "grid-template-columns:repeat(auto-fit,minmax(min(100%,15rem),1fr))}"
    ".saelab-versions small{color:light-dark(#55606c,#a7b0ba)}"
    ".saelab-written .prompt{color:light-dark(#55606c,#a7b0ba)}"
)


class EditChoice(NamedTuple):
    """What a person chose to do to one feature."""

    feature: int
    kind: Kind
    strength: float
    """In multiples of the feature's maximum."""


class SteerSettings(NamedTuple):
    """Everything that decides what a run writes."""

    dictionary: tuple[str, str]
    text: str
    edits: tuple[EditChoice, ...]
    n_tokens: int
    temperature: float
    seed: int
    from_end: bool
    """Whether features are edited from the text's last token on only."""
    factors: tuple[float, ...]
    """What the strengths are multiplied by, for each steered version."""
    n_samples: int
    """How often each version is written, with the seeds from `seed` up."""


class Written(NamedTuple):
    """One version of the text."""

    title: str
    text: str
    numbers: str
    """What is measured of it, in words."""


class SteerResult(NamedTuple):
    """What a run wrote, kept while the page is open."""

    settings: SteerSettings
    samples: tuple[tuple[Written, ...], ...]
    """Of each seed the baseline and the steered versions."""
    shift: Shift
    """Of the next token after the text, with the strengths as they were set."""


def render() -> None:
    """Draw the page."""
    entry = require_dictionary()
    store = require_store(entry)
    st.title("Steer")
    page = open_live_page(entry, store)
    text = text_box("Text to continue", "steer_text", "text", EXAMPLE_TEXT, height=80)
    settings = _draw_settings(page, text, _draw_edits(page))
    if st.button("Generate", type="primary", key="steer_write", disabled=not text.strip()):
        st.session_state[RESULT] = _write(page, settings)
    result: SteerResult | None = st.session_state.get(RESULT)
    if result is None or result.settings.dictionary != page.key:
        show_note(
            "Press Generate: the model continues the text with the same random numbers, once as it "
            "is and once with the edits, or once for each of several strengths."
        )
    else:
        _draw_result(page, result, settings)
    _draw_definitions()


def _draw_edits(page: LivePage) -> tuple[EditChoice, ...]:
    count = url_state.read("n", 1, url_state.within(1, MOST_EDITS))
    fallback = _default_feature(page)
    edits = tuple(_draw_edit(page, number, fallback) for number in range(1, count + 1))
    more, fewer, _ = st.columns([1.3, 1.6, 5])
    for column, label, key, wanted in (
        (more, "Add a feature", "steer_more", count + 1),
        (fewer, "Remove the last", "steer_fewer", count - 1),
    ):
        column.button(
            label,
            key=key,
            on_click=url_state.publish,
            args=("n", wanted, 1),
            disabled=not 1 <= wanted <= MOST_EDITS,
        )
    return edits


def _draw_edit(page: LivePage, number: int, fallback: int) -> EditChoice:
    feature_box, kind_box, strength_box, about = st.columns(
        [1.2, 1.2, 3, 3], vertical_alignment="bottom"
    )
    last, key = page.store.n_features - 1, f"steer_feature_{number}"
    default = fallback
    if number == 1:
        default = min(url_state.read("f", fallback, url_state.count), last)
    url_state.bind(key, f"f{number}", default, url_state.within(0, last))
    st.session_state[key] = min(st.session_state[key], last)
    feature = int(feature_box.number_input("Feature", 0, last, step=1, key=key))
    url_state.publish(f"f{number}", feature, default)
    kind = url_state.choice(kind_box.selectbox, "Operation", KINDS, param=f"k{number}")
    strength = url_state.widget(
        strength_box.slider,
        "Strength, in multiples of its maximum",
        -STRENGTH_BOUND,
        STRENGTH_BOUND,
        step=0.25,
        param=f"s{number}",
        default=1.0,
        disabled=kind == "ablate",
    )
    with about:
        feature_link(feature, f"Feature {feature}: {page.label(feature)}", page.entry)
        maximum = float(page.numbers.maximum[feature])
        st.caption(plain(f"its maximum in the store: {format_number(maximum)}"))
    return EditChoice(feature, kind, float(strength))


def _default_feature(page: LivePage) -> int:
    """Of the features worth a first look, the one that moves the logits most at its maximum."""
    maximum = page.numbers.maximum
    effect = (1e-6 + np.nan_to_num(page.store.table()["logit_max"])) * maximum
    # A few features hold massive activations; multiples of their maximum only break the text.
    active = maximum[maximum > 0]
    usual = maximum < MOST_TIMES_MEDIAN * (np.median(active) if len(active) else 1.0)
    curated = [f for group in curated_features(page.store) for f in group.features]
    candidates = [feature for feature in curated if usual[feature]] or range(len(effect))
    return int(max(candidates, key=lambda feature: effect[feature]))


def _draw_settings(page: LivePage, text: str, edits: tuple[EditChoice, ...]) -> SteerSettings:
    length, warmth, seed_box, end = st.columns([2, 2, 1, 2], vertical_alignment="bottom")
    n_tokens = url_state.widget(
        length.slider, "Tokens to write", 5, 80, step=5, param="len", default=40
    )
    temperature = url_state.widget(
        warmth.slider,
        "Temperature",
        0.0,
        2.0,
        step=0.1,
        param="temp",
        default=0.8,
        help="Logits are divided by it before drawing; 0 takes the likeliest token.",
    )
    seed = url_state.widget(
        seed_box.number_input, "Seed", 0, 999_999_999, step=1, param="seed", default=0
    )
    from_end = url_state.widget(
        end.toggle,
        "Edit only from the text's end on",
        param="end",
        default=False,
        help="Off: features are edited at every token of the text that counts, too.",
    )
    sweep_box, sample_box, _ = st.columns([2, 1, 4], vertical_alignment="bottom")
    sweep = url_state.choice(
        sweep_box.selectbox,
        "Strengths",
        {key: " ".join(f"×{factor:g}" for factor in SWEEPS[key]) for key in SWEEPS},
        param="sweep",
        help="All strengths are multiplied by each of these; each gives a text.",
    )
    n_samples = url_state.widget(
        sample_box.number_input, "Samples", 1, MOST_SAMPLES, param="samples", default=1
    )
    return SteerSettings(
        page.key,
        text,
        edits,
        n_tokens,
        temperature,
        int(seed),
        from_end,
        SWEEPS[sweep],
        int(n_samples),
    )


def _write(page: LivePage, settings: SteerSettings) -> SteerResult:
    """Write all versions, showing them as they grow.

    Raises:
        SaelabError: a text, edit or length that cannot be used.
    """
    from saelab.live.edits import FeatureEdit

    maximum = page.numbers.maximum
    edits = [
        FeatureEdit(**edit._asdict(), maximum=float(maximum[edit.feature]))
        for edit in settings.edits
    ]
    growing, samples, shift = st.empty(), [], None
    with growing.container(), page.spinner("Writing"):
        for number in range(settings.n_samples):
            written, moved = _write_sample(page, settings, edits, number, st.empty())
            samples.append(written)
            shift = shift or moved
    growing.empty()
    assert shift is not None
    return SteerResult(settings, tuple(samples), shift)


def _write_sample(
    page: LivePage, settings: SteerSettings, edits: list[FeatureEdit], number: int, box: Any
) -> tuple[tuple[Written, ...], Shift]:
    """All versions of one seed, and how the next token moves with the strengths as set."""
    from saelab.live.edits import next_token_shift
    from saelab.live.session import BASELINE

    session, factors = page.session, settings.factors
    steps = session.steer(
        settings.text,
        edits,
        n_tokens=settings.n_tokens,
        temperature=settings.temperature,
        seed=settings.seed + number,
        max_tokens=MAX_TOKENS,
        from_end_of_prompt=settings.from_end,
        factors=factors,
    )
    titles = ["Baseline", *(f"Steered ×{factor:g}" for factor in factors)]
    tokens: list[list[int]] = [[] for _ in titles]
    texts, over, shifts = [""] * len(titles), [False] * len(titles), []
    for step in steps:
        shifts = shifts or [next_token_shift(step.logits[BASELINE], row) for row in step.logits]
        for version in range(len(titles)):
            over[version] = over[version] or bool(step.finished[version])
            if not over[version]:
                tokens[version].append(int(step.tokens[version]))
            texts[version] = session.model.text_of(tokens[version]) + ENDED * over[version]
        box.html(
            _written_html(settings.text, [Written(*v, "") for v in zip(titles, texts, strict=True)])
        )
    numbers = [
        f"perplexity {format_number(session.perplexity(settings.text, ids, MAX_TOKENS))}"
        if ids
        else ""
        for ids in tokens
    ]
    for version, shift in enumerate(shifts[1:], 1):
        numbers[version] += f" · KL of the next token {format_number(shift.kl)} nats"
    written = tuple(Written(*v) for v in zip(titles, texts, numbers, strict=True))
    return written, shifts[1 + factors.index(1.0)]


def _written_html(prompt: str, versions: Sequence[Written]) -> str:
    """A prompt and what was written after it, side by side; all of it is shown as text."""
    cells = "".join(
        f'<section><b>{escape(each.title)}</b><div class="saelab-written" dir="auto">'
        f'<span class="prompt">{escape(prompt)}</span><span>{escape(each.text) or "…"}</span></div>'
        f"<small>{escape(each.numbers)}</small></section>"
        for each in versions
    )
    return f'<style>{STYLE}</style><div class="saelab-versions">{cells}</div>'


def _draw_result(page: LivePage, result: SteerResult, now: SteerSettings) -> None:
    if result.settings != now:
        show_note("The settings have changed since this was written: press Generate again.")
    st.markdown(f"**Steered**: {plain(_described(result.settings.edits))}")
    for number, versions in enumerate(result.samples):
        if len(result.samples) > 1:
            st.caption(f"Seed {result.settings.seed + number}")
        st.html(_written_html(result.settings.text, versions))
    if all(each.text == versions[0].text for versions in result.samples for each in versions):
        show_note(
            "The texts are the same: the edits changed no token. Try a larger strength or another "
            "feature."
        )
    shift = result.shift
    st.markdown(
        plain(
            f"The distribution of the next token after the text moved by KL = "
            f"{format_number(shift.kl)} nats."
        )
    )
    if shift.gaining or shift.losing:
        gaining, losing = (
            [(page.session.model.token_strings([row[0]])[0], *row[1:]) for row in rows]
            for rows in (shift.gaining, shift.losing)
        )
        show_figure(probability_shift(gaining, losing, shift.kl), "steer_shift")
    _draw_vectors(page, result.settings.edits)


def _draw_vectors(page: LivePage, edits: tuple[EditChoice, ...]) -> None:
    """What was added, as a vector for other programs; what is clamped or ablated is none."""
    from saelab.dictionary.exporters import VECTOR_EXPORTS, SteeredLatents

    saved = page.session.saved
    if {edit.kind for edit in edits} != {"add"} or saved.dictionary.input_normalisation != "none":
        return
    strengths: defaultdict[int, float] = defaultdict(float)
    for edit in edits:
        strengths[edit.feature] += edit.strength * float(page.numbers.maximum[edit.feature])
    steering = SteeredLatents(strengths, "steering")
    with st.expander("Save as a steering vector"), TemporaryDirectory() as folder:
        for (name, write), program in zip(VECTOR_EXPORTS.items(), PROGRAMS, strict=True):
            try:
                (path,) = write(saved, Path(folder), steering)
            except ConfigError as error:
                st.caption(plain(f"Not for {program}: {error}"))
                continue
            st.download_button(f"For {program}", path.read_bytes(), path.name, key=f"vector_{name}")


def _described(edits: tuple[EditChoice, ...]) -> str:
    words = {
        "add": "{0:+g} × maximum of feature {1}",
        "clamp": "feature {1} held at {0:g} × its maximum",
        "ablate": "feature {1} ablated",
    }
    return "; ".join(words[edit.kind].format(edit.strength, edit.feature) for edit in edits)


def _draw_definitions() -> None:
    from saelab.live.edits import DEFINITIONS, SHIFT_DEFINITION

    with st.expander("What exactly is done"):
        for kind, definition in DEFINITIONS.items():
            st.markdown(f"**{KINDS[kind]}**: {plain(definition)}.")
        st.markdown(
            plain(
                "Edits act at every position that counts under the dictionary's token filter, in "
                "the text and in what is written; all codes are those before any edit. All "
                "versions of a seed are drawn with the same random numbers, so they differ only "
                f"where the edits change what is likely. {SHIFT_DEFINITION} Perplexity is exp of "
                f"the mean loss of what was written, under the model without edits.{ENDED} marks a "
                "text that the model ended."
            )
        )


if __name__ == "__main__":
    run_page(render)
