"""Training: how loss, FVU, L0, dead latents and densities went, live while a run is going."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

import time
from typing import Any

import streamlit as st

from saelab.errors import ArtifactError
from saelab.formats.run_log import Curve, read_history
from saelab.report.training_figures import CURVE_KINDS, kind_of, training_figure

from .. import url_state
from ..context import chosen_dictionary, chosen_run, run_index
from ..run_index import RunEntry, once_per_state
from ..widgets.page_parts import plain, run_page, show_figures, show_note, show_problem

MOST_LINES = 12
FIRST_LINES = 6
SECONDS_BETWEEN_LOOKS = 3
QUIET_AFTER_SECONDS = 600
"""A run whose log has not grown for so long is not watched any more, whatever it says of itself."""
SCALES = {"own": "each number's own", "log": "log", "linear": "linear"}
SHOWN_FIRST = [name for name in CURVE_KINDS if name != "tokens_per_second"]
history_of = once_per_state(16)(read_history)


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
    going = any(_is_going(run) for run in runs)
    st.fragment(_draw_curves, run_every=SECONDS_BETWEEN_LOOKS if going else None)(runs)


def _choose_runs(logged: list[RunEntry]) -> list[RunEntry]:
    by_id = {run.id: run for run in logged}
    chosen = chosen_run()
    default = [chosen.id if chosen is not None and chosen.id in by_id else logged[0].id]
    # The default follows the picker in the sidebar.
    if st.session_state.get("training_follows") != default:
        st.session_state["training_follows"] = default
        st.session_state.pop(url_state.widget_key("runs"), None)
    ids = url_state.several("Runs", list(by_id), param="runs", default=default)
    return [by_id[run_id] for run_id in ids]


def _is_going(run: RunEntry) -> bool:
    if run.metrics_path is None or run.status == "complete":
        return False
    try:
        return time.time() - run.metrics_path.stat().st_mtime < QUIET_AFTER_SECONDS
    except OSError:
        return False


def _draw_curves(runs: list[RunEntry]) -> None:
    """Controls and figures; drawn again every few seconds while a run is going."""
    curves = _all_curves(runs)
    if not curves:
        show_note("Nothing is logged yet: the first line comes after the first logged steps.")
        return
    names = _choose_dictionaries(list(curves))
    numbers, scale, x_scale = _choose_numbers(curves)
    ends = [curve.tokens[-1] for by_number in curves.values() for curve in by_number.values()]
    going = [run.id for run in runs if _is_going(run)]
    watched = f" Watching {', '.join(going)}, looking every {SECONDS_BETWEEN_LOOKS} s."
    st.caption(
        plain(
            f"{len(curves)} dictionaries, up to {max(ends, default=0):,} tokens."
            + (watched if going else "")
        )
    )
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
    by_name: dict[str, dict[str, Curve]] = {}
    for run in runs:
        assert run.metrics_path is not None
        try:
            history = history_of(run.metrics_path)
        except ArtifactError as error:
            show_problem(str(error))
            continue
        for name, curves in history.curves.items():
            by_name[name if len(runs) == 1 else f"{run.id}: {name}"] = curves
    return by_name


def _choose_dictionaries(known: list[str]) -> list[str]:
    entry = chosen_dictionary()
    chosen = [name for name in known if entry is not None and name.endswith(entry.name)]
    return url_state.several(
        "Dictionaries",
        known,
        param="lines",
        default=list(dict.fromkeys([*chosen, *known]))[:FIRST_LINES],
        max_selections=MOST_LINES,
        help=f"At most {MOST_LINES} lines can be told apart.",
    )


def _choose_numbers(curves: dict[str, dict[str, Curve]]) -> tuple[list[str], Any, Any]:
    known = list(dict.fromkeys(number for by_number in curves.values() for number in by_number))
    left, middle, right = st.columns([4, 2, 1.5], vertical_alignment="bottom")
    with left:
        numbers = url_state.several(
            "Numbers",
            known,
            param="show",
            default=[number for number in SHOWN_FIRST if number in known],
            format_func=lambda number: kind_of(number).title,
        )
    scale = url_state.choice(middle.selectbox, "Vertical scale", SCALES, param="scale")
    log_x = url_state.widget(right.toggle, "Log tokens", param="logx", default=False)
    return numbers, scale, "log" if log_x else "linear"


if __name__ == "__main__":
    run_page(render)
