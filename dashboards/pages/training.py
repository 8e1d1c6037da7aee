"""Training: how loss, FVU, L0, dead latents and densities went, live while a run is going."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

import time
from itertools import count
from statistics import median
from typing import Any

import streamlit as st

from saelab.errors import ArtifactError, SaelabError
from saelab.formats.lock import writer_of
from saelab.formats.run import RUN_FILE
from saelab.formats.run_log import Curve, read_history
from saelab.report.training_figures import CURVE_KINDS, kind_of, training_figure

from .. import url_state
from ..context import chosen_dictionary, chosen_run, run_index
from ..run_index import RunEntry, once_per_state, part_of, run_manifest
from ..widgets.page_parts import plain, run_page, show_figures, show_note, show_problem

MOST_LINES = 12
FIRST_LINES = 6
SECONDS_BETWEEN_LOOKS = 3
QUIET_AFTER_SECONDS = 600
"""A run of another machine whose log has not grown for so long is taken for stopped."""
STATES = {
    "complete": "finished",
    "running": "running",
    "stopped": "stopped before its end; `saelab train` with the same settings resumes it",
    "killed": "killed before its end; `saelab train` with the same settings resumes it",
}
MEASURED_STEPS = 10
"""Logged steps whose median speed says how long the rest takes."""
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
    seen, looks = _seen(runs), count()
    _draw_curves(runs)

    def look() -> None:
        # The first look is part of the drawing, which has just read everything.
        if next(looks) and _seen(runs) != seen:
            st.rerun()

    # What is drawn last starts the clock: a look before the page stands would end its drawing.
    going = any(state_of(run) == "running" for run in runs)
    st.fragment(look, run_every=SECONDS_BETWEEN_LOOKS if going else None)()


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


def state_of(run: RunEntry) -> str:
    """One of `STATES`."""
    # The writer first: it says that it has finished before it lets go.
    writer = writer_of(run.folder)
    if _manifest(run).get("status", "complete") == "complete":
        return "complete"
    if writer == "unknown":
        quiet = time.time() - _changed(run)[0] / 1e9 > QUIET_AFTER_SECONDS
        return "stopped" if quiet else "running"
    return {"alive": "running", "dead": "killed"}.get(writer, "stopped")


def _manifest(run: RunEntry) -> dict[str, Any]:
    try:
        return run_manifest(run.folder / RUN_FILE)
    except (SaelabError, OSError):
        return {}


def _changed(run: RunEntry) -> tuple[int, int]:
    """When the log was last written (ns) and how long it is."""
    assert run.metrics_path is not None
    try:
        state = run.metrics_path.stat()
    except OSError:
        return 0, 0
    return state.st_mtime_ns, state.st_size


def _seen(runs: list[RunEntry]) -> list[Any]:
    return [(_changed(run), state_of(run)) for run in runs]


def _progress(run: RunEntry, curves: dict[str, Curve]) -> str:
    """A sentence: state, share done, time left."""
    tokens = max((curve.tokens[-1] for curve in curves.values()), default=0)
    state = state_of(run)
    said = f"{run.id}: {STATES[state]}, {tokens:,} tokens"
    asked = part_of(_manifest(run), "config").get("n_tokens")
    if state == "complete" or not isinstance(asked, int) or asked <= 0:
        return f"{said}."
    said += f" of {asked:,} ({min(1.0, tokens / asked):.0%})"
    speeds = curves["tokens_per_second"].values if "tokens_per_second" in curves else []
    if state == "running" and speeds and (speed := median(speeds[-MEASURED_STEPS:])) > 0:
        minutes, seconds = divmod(round(max(0, asked - tokens) / speed), 60)
        hours, minutes = divmod(minutes, 60)
        said += (
            f", about {hours} h {minutes} min" if hours else f", about {minutes} min {seconds} s"
        )
        said += " left"
    return f"{said}."


def _draw_curves(runs: list[RunEntry]) -> None:
    """How far the runs are, controls and figures."""
    curves, said = _all_curves(runs)
    st.markdown(plain(" ".join(said)))
    if not curves:
        show_note("Nothing is logged yet: the first line comes after the first logged steps.")
        return
    names = _choose_dictionaries(list(curves))
    numbers, scale, x_scale = _choose_numbers(curves)
    n = len(curves)
    st.caption(f"{n} {'dictionary' if n == 1 else 'dictionaries'} logged.")
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


def _all_curves(runs: list[RunEntry]) -> tuple[dict[str, dict[str, Curve]], list[str]]:
    """Curves by dictionary, the run named where several are shown, and how far each run is."""
    by_name: dict[str, dict[str, Curve]] = {}
    said: list[str] = []
    for run in runs:
        assert run.metrics_path is not None
        try:
            history = history_of(run.metrics_path)
        except ArtifactError as error:
            show_problem(str(error))
            continue
        for name, curves in history.curves.items():
            by_name[name if len(runs) == 1 else f"{run.id}: {name}"] = curves
        said.append(_progress(run, next(iter(history.curves.values()), {})))
    return by_name, said


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
