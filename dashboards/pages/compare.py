"""Compare: two dictionaries side by side, and which features they share."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from jaxtyping import Float, Int

from saelab.errors import ArtifactError, SaelabError
from saelab.features.reader import FeatureStore
from saelab.formats.evaluation_result import read_evaluation_result

from .. import url_state
from ..context import (
    link_params,
    open_labels,
    open_store,
    require_dictionary,
    run_index,
)
from ..run_index import DictionaryEntry
from ..widgets.feature_table import tokens_text
from ..widgets.figures import density_histogram, match_histogram, pareto
from ..widgets.page_parts import (
    FEATURE_PAGE,
    format_number,
    plain,
    run_page,
    show_figure,
    show_note,
)

SHARED_FROM = 0.7
"""Cosine from which a feature counts as found in the other dictionary."""
MOST_ROWS = 500
SEPARATOR = " › "
CORE_NUMBERS = ("fvu", "l0_mean", "loss_recovered_mean", "kl", "dead_fraction", "dense_fraction")


def render() -> None:
    """Draw the page."""
    first = require_dictionary()
    st.title("Compare")
    second = draw_second_picker(first)
    if second is None:
        show_note("There is no second dictionary below the folders given to compare with.")
        return
    show_numbers(first, second)
    show_densities(first, second)
    show_matches(first, second)


def draw_second_picker(first: DictionaryEntry) -> DictionaryEntry | None:
    """Choose what to compare with; the same run comes first."""
    others = [entry for entry in run_index().dictionaries if entry is not first]
    others = [entry for entry in others if name_of(entry) != name_of(first)]
    others.sort(key=lambda entry: (entry.run_id != first.run_id, entry.store_path is None))
    if not others:
        return None
    names = [name_of(entry) for entry in others]
    url_state.bind("compare_with", "with", names[0], url_state.one_of(*names))
    if st.session_state["compare_with"] not in names:
        st.session_state["compare_with"] = names[0]
    st.markdown(f"First: **{plain(name_of(first))}** (chosen at the left)")
    chosen = st.selectbox("Second", names, key="compare_with")
    url_state.publish("with", chosen, names[0])
    return others[names.index(chosen)]


def name_of(entry: DictionaryEntry) -> str:
    """A dictionary's name among those of all runs."""
    return f"{entry.run_id}{SEPARATOR}{entry.name}"


def show_numbers(first: DictionaryEntry, second: DictionaryEntry) -> None:
    """What is known of both, side by side, and where they lie among all of their runs."""
    rows = number_rows(first, second)
    table = {
        "": [row[0] for row in rows],
        first.name: [row[1] for row in rows],
        f"{second.name}{' (second)' if second.name == first.name else ''}": [r[2] for r in rows],
    }
    st.dataframe(table, hide_index=True, alt="Numbers of the two dictionaries", key="numbers")
    runs = {first.run_id, second.run_id}
    shown = [entry for entry in run_index().dictionaries if entry.run_id in runs]
    figure = pareto([core_point(entry) for entry in shown], [name_of(first), name_of(second)])
    if figure is None:
        show_note(
            "Neither run has core evaluations, which give FVU and L0: run `saelab eval core`."
        )
    else:
        show_figure(figure, "pareto")


def number_rows(first: DictionaryEntry, second: DictionaryEntry) -> list[tuple[str, str, str]]:
    """(what, first, second) from the manifests and the core evaluations."""
    rows = [
        (what, format_number(first.facts.get(key)), format_number(second.facts.get(key)))
        for what, key in (("method", "method"), ("architecture", "architecture"), ("k", "k"))
    ]
    rows.append(
        (
            "features",
            format_number(first.facts.get("d_sae")),
            format_number(second.facts.get("d_sae")),
        )
    )
    rows.append(("hook point", first.hook_point or "–", second.hook_point or "–"))
    one, other = core_metrics(first), core_metrics(second)
    rows += [
        (f"{name} (core evaluation)", format_number(one.get(name)), format_number(other.get(name)))
        for name in CORE_NUMBERS
        if name in one or name in other
    ]
    return rows


def core_point(entry: DictionaryEntry) -> dict[str, Any]:
    """A dictionary's place in the plane of L0 and FVU."""
    metrics = core_metrics(entry)
    return {"name": name_of(entry), "l0": metrics.get("l0_mean"), "fvu": metrics.get("fvu")}


def core_metrics(entry: DictionaryEntry) -> dict[str, float | None]:
    """The metrics of a dictionary's core evaluation; none where there is no usable one."""
    path = entry.evaluations.get("core")
    if path is None:
        return {}
    try:
        return _metrics(path, path.stat().st_mtime_ns)
    except (SaelabError, OSError):
        return {}


@st.cache_data(max_entries=512, show_spinner=False)
def _metrics(path: Path, modified: int) -> dict[str, float | None]:  # noqa: ARG001 - the key
    return {metric.name: metric.value for metric in read_evaluation_result(path).metrics}


def show_densities(first: DictionaryEntry, second: DictionaryEntry) -> None:
    """How often their features are active, where both have stores."""
    stores = {name_of(e): open_store(e.store_path) for e in (first, second) if e.store_path}
    if not stores:
        show_note("Neither has a feature store, so densities are unknown: run `saelab features`.")
        return
    for entry in (first, second):
        if name_of(entry) not in stores:
            show_note(f"{entry.name} has no feature store, so its densities are unknown.")
    densities = {
        name: np.nan_to_num(store.table()["density"]).tolist() for name, store in stores.items()
    }
    figure = density_histogram(densities, {name: s.n_tokens for name, s in stores.items()})
    show_figure(figure, "densities")


def show_matches(first: DictionaryEntry, second: DictionaryEntry) -> None:
    """Which features have a counterpart, both ways, and which only one of them has."""
    st.header("Matched features")
    if first.folder is None or second.folder is None:
        show_note("Matching reads decoder rows, and a feature store alone has none.")
        return
    with st.spinner("Comparing decoder rows"):
        matches = matches_of(first.folder, second.folder)
    names = name_of(first), name_of(second)
    show_figure(
        match_histogram(
            {
                f"{names[0]} in the other": matches.forward_cosine.tolist(),
                f"{names[1]} in the other": matches.backward_cosine.tolist(),
            }
        ),
        "matches",
    )
    st.caption(
        f"{len(matches.mutual()):,} pairs are each other's nearest feature. A feature counts as "
        f"shared from a cosine of {SHARED_FROM}."
    )
    options = ("shared", "only in the first", "only in the second")
    url_state.bind("compare_view", "view", options[0], url_state.one_of(*options))
    view = st.segmented_control("Show", options, key="compare_view", required=True)
    url_state.publish("view", view, options[0])
    show_match_table(first, second, matches, view or options[0])


def matches_of(first: Path, second: Path) -> Matches:
    """Matches of two dictionaries, computed once for each state of their weights."""
    states = [(f, (f / "sae_weights.safetensors").stat().st_mtime_ns) for f in (first, second)]
    return _matches(tuple(states))


@st.cache_resource(max_entries=16, show_spinner=False)
def _matches(states: tuple[tuple[Path, int], ...]) -> Matches:
    return match(*(decoder_rows(folder) for folder, _ in states))


def show_match_table(
    first: DictionaryEntry, second: DictionaryEntry, matches: Matches, view: str
) -> None:
    """A table of pairs; choosing a row opens the feature of the dictionary it is about."""
    backward = view == "only in the second"
    own, other = (second, first) if backward else (first, second)
    nearest = matches.backward if backward else matches.forward
    cosine = matches.backward_cosine if backward else matches.forward_cosine
    store, other_store = (open_store(e.store_path) if e.store_path else None for e in (own, other))
    keep = cosine >= SHARED_FROM if view == "shared" else cosine < SHARED_FROM
    if store is not None and len(store.table()["id"]) == len(keep):
        # What is never active is not a feature that the other lacks.
        keep &= store.table()["n_active"] > 0
    order = np.argsort(-cosine if view == "shared" else cosine, kind="stable")
    chosen = [int(feature) for feature in order if keep[feature]]
    if not chosen:
        show_note("There is none.")
        return
    columns = pair_columns(chosen[:MOST_ROWS], nearest, cosine, store, other_store)
    event: Any = st.dataframe(
        columns,
        hide_index=True,
        key=f"pairs_{view}",
        on_select="rerun",
        selection_mode="single-row",
        alt=f"{len(chosen):,} features {view}, with their nearest features and cosines",
        column_config={"cosine": st.column_config.NumberColumn(format="%.3f")},
    )
    st.caption(
        f"{len(chosen):,} features that were active"
        + (f", the first {MOST_ROWS} shown" if len(chosen) > MOST_ROWS else "")
        + ". Choose a row by the box at its left to open the feature."
    )
    rows = event["selection"]["rows"] if event else []
    if rows:
        feature = columns["feature"][rows[0]]
        st.switch_page(FEATURE_PAGE, query_params=link_params(own, f=str(feature)))


def pair_columns(
    chosen: list[int],
    nearest: Any,
    cosine: Any,
    store: FeatureStore | None,
    other_store: FeatureStore | None,
) -> dict[str, list[Any]]:
    """The columns of a table of pairs."""
    partners = [int(nearest[feature]) for feature in chosen]
    return {
        "feature": chosen,
        "about": about(store, chosen),
        "cosine": [float(cosine[feature]) for feature in chosen],
        "nearest": partners,
        "about nearest": about(other_store, partners),
    }


def about(store: FeatureStore | None, features: list[int]) -> list[str]:
    """Label or top tokens of features, if their dictionary has a store of that size."""
    if store is None or max(features) >= store.n_features:
        return [""] * len(features)
    labels, tokens = open_labels(store).latest(), store.table()["top_tokens"]
    return [labels[f].text if f in labels else tokens_text(tokens[f]) for f in features]


WEIGHTS_FILE = "sae_weights.safetensors"
CHUNK_ROWS = 2048


@dataclass(frozen=True, eq=False)
class Matches:
    """The nearest decoder row of the other dictionary, both ways."""

    forward: Int[np.ndarray, " first"]
    """For each feature of the first, the nearest of the second."""
    forward_cosine: Float[np.ndarray, " first"]
    """Its cosine."""
    backward: Int[np.ndarray, " second"]
    """For each feature of the second, the nearest of the first."""
    backward_cosine: Float[np.ndarray, " second"]
    """Its cosine."""

    def mutual(self) -> Int[np.ndarray, " pairs"]:
        """Features of the first whose nearest feature has them as its nearest in turn."""
        own = np.arange(len(self.forward))
        return own[self.backward[self.forward] == own]


def decoder_rows(folder: Path) -> Float[np.ndarray, "d_sae d_in"]:
    """Unit decoder rows of a saved dictionary.

    Raises:
        ArtifactError: the weights are missing, damaged or without a decoder.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS_FILE
    if path.is_symlink():
        raise ArtifactError(f"{path} is a link: only files below the folders given are read")
    try:
        with safe_open(str(path), framework="numpy") as weights:
            rows = np.asarray(weights.get_tensor("W_dec"), dtype=np.float32)
    except (OSError, SafetensorError, TypeError) as error:
        raise ArtifactError(
            f"decoder rows of {folder} cannot be read ({error}): save the dictionary again"
        ) from None
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ArtifactError(f"the decoder in {path} is no matrix of finite numbers")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def match(
    first: Float[np.ndarray, "first d_in"], second: Float[np.ndarray, "second other_d_in"]
) -> Matches:
    """Nearest rows both ways by cosine; the matrix of all cosines never exists as a whole.

    Args:
        first: unit rows.
        second: unit rows of the same width.

    Raises:
        ArtifactError: the widths differ, so the two are not of the same activations.
    """
    if first.shape[1] != second.shape[1]:
        raise ArtifactError(
            f"the decoders have width {first.shape[1]} and {second.shape[1]}: only dictionaries of "
            "activations of one width can be compared"
        )
    forward = np.zeros(len(first), dtype=np.int64)
    forward_cosine = np.zeros(len(first))
    backward = np.zeros(len(second), dtype=np.int64)
    backward_cosine = np.full(len(second), -np.inf)
    for start in range(0, len(first), CHUNK_ROWS):
        cosines = first[start : start + CHUNK_ROWS] @ second.T
        rows = slice(start, start + len(cosines))
        forward[rows] = cosines.argmax(axis=1)
        forward_cosine[rows] = cosines.max(axis=1)
        best, places = cosines.max(axis=0), cosines.argmax(axis=0)
        better = best > backward_cosine
        backward[better] = places[better] + start
        backward_cosine[better] = best[better]
    return Matches(forward, forward_cosine, backward, backward_cosine)


if __name__ == "__main__":
    run_page(render)
