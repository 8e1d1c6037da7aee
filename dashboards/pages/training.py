"""Training: how loss, FVU, L0, dead latents and densities went, live while a run is going."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

import time
from pathlib import Path
from typing import Any

import streamlit as st

from saelab.errors import ArtifactError
from saelab.formats.run_log import Curve, TrainingHistory, read_history
from saelab.report.training_figures import CURVE_KINDS, kind_of, training_figure

from .. import url_state
from ..context import chosen_dictionary, chosen_run, run_index
from ..run_index import RunEntry
from ..widgets.page_parts import (
    plain,
    run_page,
    show_figures,
    show_note,
    show_problem,
)

MOST_LINES = 12
FIRST_LINES = 6
SECONDS_BETWEEN_LOOKS = 3
QUIET_AFTER_SECONDS = 600
"""A run whose log has not grown for so long is not watched any more, whatever it says of itself."""
SCALES = {"own": "each number's own", "log": "log", "linear": "linear"}
SHOWN_FIRST = [name for name in CURVE_KINDS if name != "tokens_per_second"]


def render() -> None:
    """Draw the page."""
    st.title("Training")
    logged = [run for run in run_index().runs if run.metrics_path is not None]
    if not logged:
        show_note(
            "No training run with a log (metrics.jsonl) lies below the folders given: start one "
            "with `saelab train`."
        )
        return
    runs = _choose_runs(logged)
    if not runs:
        show_note("Choose a run.")
        return
    if any(_is_going(run) for run in runs):
        st.fragment(draw_curves, run_every=SECONDS_BETWEEN_LOOKS)(runs)
    else:
        st.fragment(draw_curves)(runs)


def _choose_runs(logged: list[RunEntry]) -> list[RunEntry]:
    by_id = {run.id: run for run in logged}
    chosen = chosen_run()
    default = [chosen.id if chosen is not None and chosen.id in by_id else logged[0].id]

    def parse(text: str) -> list[str]:
        return [name for name in text.split(",") if name in by_id] or default

    # The default follows the picker in the sidebar.
    if st.session_state.get("training_follows") != default:
        st.session_state["training_follows"] = default
        st.session_state.pop("training_runs", None)
    url_state.bind("training_runs", "runs", default, parse)
    ids = st.multiselect("Runs", list(by_id), key="training_runs")
    url_state.publish("runs", ",".join(ids), ",".join(default))
    return [by_id[run_id] for run_id in ids]


def _is_going(run: RunEntry) -> bool:
    """Whether the log of a run may grow."""
    if run.metrics_path is None or run.status == "complete":
        return False
    try:
        return time.time() - run.metrics_path.stat().st_mtime < QUIET_AFTER_SECONDS
    except OSError:
        return False


def draw_curves(runs: list[RunEntry]) -> None:
    """Controls and figures; drawn again every few seconds while a run is going."""
    curves = _all_curves(runs)
    if not curves:
        show_note("Nothing is logged yet: the first line comes after the first logged steps.")
        return
    names = _choose_dictionaries(list(curves))
    numbers, scale, x_scale = _choose_numbers(curves)
    _say_how_far(runs, curves)
    if not names or not numbers:
        show_note("Choose a dictionary and a number to draw.")
        return
    figures = [
        training_figure(
            number,
            {name: curves[name][number] for name in names if number in curves[name]},
            names,
            scale=None if scale == "own" else scale,
            x_scale=x_scale,
        )
        for number in numbers
    ]
    missing = [
        kind_of(number).title
        for number, figure in zip(numbers, figures, strict=True)
        if figure is None
    ]
    show_figures([figure for figure in figures if figure is not None], "training_figure")
    if missing:
        st.caption(
            plain(
                f"Nothing to draw for {', '.join(missing)}: not logged by these dictionaries, or "
                "not positive on a log scale."
            )
        )


def _all_curves(runs: list[RunEntry]) -> dict[str, dict[str, Curve]]:
    """Curves by dictionary; the run is named where several are shown."""
    found: dict[str, dict[str, Curve]] = {}
    for run in runs:
        try:
            history = _history(run.metrics_path)
        except ArtifactError as error:
            show_problem(str(error))
            continue
        for name, curves in history.curves.items():
            found[name if len(runs) == 1 else f"{run.id}: {name}"] = curves
    return found


def _history(path: Path | None) -> TrainingHistory:
    assert path is not None
    try:
        state = path.stat()
    except OSError:
        return read_history(path)
    return _parsed(path, state.st_mtime_ns, state.st_size)


@st.cache_resource(max_entries=16, show_spinner=False)
def _parsed(path: Path, modified: int, size: int) -> TrainingHistory:  # noqa: ARG001
    return read_history(path)


def _choose_dictionaries(known: list[str]) -> list[str]:
    entry = chosen_dictionary()
    own = [name for name in known if entry is not None and name.endswith(entry.name)]
    default = list(dict.fromkeys([*own, *known]))[:FIRST_LINES]
    if any(name not in known for name in st.session_state.get("training_lines", [])):
        del st.session_state["training_lines"]

    def parse(text: str) -> list[str]:
        return [name for name in text.split(",") if name in known][:MOST_LINES] or default

    url_state.bind("training_lines", "lines", default, parse)
    names = st.multiselect(
        "Dictionaries",
        known,
        key="training_lines",
        max_selections=MOST_LINES,
        help=f"At most {MOST_LINES} lines can be told apart.",
    )
    url_state.publish("lines", ",".join(names), ",".join(default))
    return names


def _choose_numbers(curves: dict[str, dict[str, Curve]]) -> tuple[list[str], Any, Any]:
    known = list(dict.fromkeys(number for own in curves.values() for number in own))
    default = [number for number in SHOWN_FIRST if number in known]
    left, middle, right = st.columns([4, 2, 1.5], vertical_alignment="bottom")

    def parse(text: str) -> list[str]:
        return [number for number in text.split(",") if number in known] or default

    with left:
        if any(number not in known for number in st.session_state.get("training_numbers", [])):
            del st.session_state["training_numbers"]
        url_state.bind("training_numbers", "show", default, parse)
        numbers = st.multiselect(
            "Numbers", known, key="training_numbers", format_func=lambda n: kind_of(n).title
        )
        url_state.publish("show", ",".join(numbers), ",".join(default))
    with middle:
        url_state.bind("training_scale", "scale", "own", url_state.one_of(*SCALES))
        scale = st.selectbox(
            "Vertical scale", list(SCALES), key="training_scale", format_func=SCALES.__getitem__
        )
        url_state.publish("scale", scale, "own")
    with right:
        url_state.bind("training_logx", "logx", False, url_state.flag)
        log_x = st.toggle("Log tokens", key="training_logx")
        url_state.publish("logx", log_x, False)
    return numbers, scale, "log" if log_x else "linear"


def _say_how_far(runs: list[RunEntry], curves: dict[str, dict[str, Curve]]) -> None:
    ends = [curve.tokens[-1] for own in curves.values() for curve in own.values()]
    going = [run.id for run in runs if _is_going(run)]
    watched = (
        f" Watching {', '.join(going)}, looking every {SECONDS_BETWEEN_LOOKS} s." if going else ""
    )
    st.caption(
        plain(f"{len(curves)} dictionaries, up to {max(ends, default=0):,} tokens.{watched}")
    )


if __name__ == "__main__":
    run_page(render)
