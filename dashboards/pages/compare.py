"""Compare: two dictionaries side by side, and which features they share."""

from __future__ import annotations

__package__ = "saelab.dashboards.pages"

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import streamlit as st
from jaxtyping import Float, Int

from saelab.errors import ArtifactError, SaelabError
from saelab.features.reader import FeatureStore
from saelab.formats.evaluation_result import MeasuredMetric, read_evaluation_result

from .. import url_state
from ..context import feature_href, label_texts, open_store, require_dictionary, run_index
from ..run_index import DictionaryEntry, once_per_state
from ..widgets.feature_html import counted
from ..widgets.feature_table import about
from ..widgets.figures import SHARED_FROM, density_histogram, match_histogram, pareto
from ..widgets.html_tables import linked_table, page_table
from ..widgets.page_parts import plain, run_page, show_figure, show_note
from ..widgets.token_html import format_number, visible_text

MOST_ROWS = 500
MOST_TOKENS = 8
SEPARATOR = " › "
FACTS = {
    "Method": "method",
    "Architecture": "architecture",
    "k (active features asked for)": "k",
    "Features": "d_sae",
    "Seed of the initial weights": "seed",
}
CORE_NUMBERS = {
    "fvu": "Fraction of variance unexplained (FVU)",
    "l0_mean": "Active features per token (L0)",
    "loss_recovered_mean": "Loss recovered",
    "kl": "KL divergence of the next token",
    "dead_fraction": "Share of features never active",
    "dense_fraction": "Share of high-density features",
}
"""Metrics of the core evaluation -> what the table calls them."""
VIEWS = ("shared", "only in the first", "only in the second")


def render() -> None:
    """Draw the page."""
    first = require_dictionary()
    st.title("Compare")
    second = _draw_second_picker(first)
    if second is None:
        show_note("There is no second dictionary below the folders given to compare with.")
        return
    _show_numbers(first, second)
    _show_densities(first, second)
    _show_matches(first, second)


def _draw_second_picker(first: DictionaryEntry) -> DictionaryEntry | None:
    """Choose what to compare with; the same run comes first."""
    rest = [entry for entry in run_index().dictionaries if _name(entry) != _name(first)]
    rest.sort(key=lambda entry: (entry.run_id != first.run_id, entry.store_path is None))
    if not rest:
        return None
    st.markdown(f"First: **{plain(_name(first))}** (chosen at the left)")
    names = [_name(entry) for entry in rest]
    chosen = url_state.choice(st.selectbox, "Second", names, param="with")
    return rest[names.index(chosen)]


def _name(entry: DictionaryEntry) -> str:
    return f"{entry.run_id}{SEPARATOR}{entry.name}"


def _show_numbers(first: DictionaryEntry, second: DictionaryEntry) -> None:
    pair = (first, second)
    rows = [(what, *(entry.facts.get(key) for entry in pair)) for what, key in FACTS.items()]
    rows.append(("Hook point", first.hook_point, second.hook_point))
    measured = [_core_results(entry) for entry in pair]
    defined: list[str] = []
    for name, title in CORE_NUMBERS.items():
        metrics_of_pair = [metrics.get(name) for metrics in measured]
        if known := [metric for metric in metrics_of_pair if metric]:
            rows.append((title, *(metric.value if metric else None for metric in metrics_of_pair)))
            defined.append(
                f"* **{title}**, in {plain(known[0].unit)}: {plain(known[0].definition)}"
            )
    names = [first.name, f"{second.name}{' (second)' if second.name == first.name else ''}"]
    table = [
        [title, *(visible_text(format_number(value)) for value in two)] for title, *two in rows
    ]
    columns = ["", *map(visible_text, names)]
    st.html(page_table("Numbers of the two dictionaries", columns, table))
    if defined:
        with st.expander("What the numbers of the core evaluation mean"):
            st.markdown("\n".join(defined))
    points = [
        {
            "name": _name(entry),
            **{
                axis: metrics[name].value if name in metrics else None
                for axis, name in (("l0", "l0_mean"), ("fvu", "fvu"))
            },
        }
        for entry in run_index().dictionaries
        if entry.run_id in {first.run_id, second.run_id}
        for metrics in [_core_results(entry)]
    ]
    chart = pareto(points, [_name(entry) for entry in pair])
    if chart is None:
        show_note(
            "Neither run has core evaluations, which give FVU and L0: run `saelab eval core`."
        )
    else:
        show_figure(chart, "pareto")


def _core_results(entry: DictionaryEntry) -> dict[str, MeasuredMetric]:
    """The metrics of a dictionary's core evaluation; none where there is no usable one."""
    try:
        return _metrics(entry.evaluations["core"])
    except (KeyError, SaelabError, OSError):
        return {}


@once_per_state(512)
def _metrics(path: Path) -> dict[str, MeasuredMetric]:
    result = read_evaluation_result(path, check_files=False)
    return {metric.name: metric for metric in result.metrics}


def _show_densities(first: DictionaryEntry, second: DictionaryEntry) -> None:
    stores = {_name(e): open_store(e.store_path) for e in (first, second) if e.store_path}
    if not stores:
        show_note("Neither has a feature store, so densities are unknown: run `saelab features`.")
        return
    for entry in (first, second):
        if _name(entry) not in stores:
            show_note(f"{entry.name} has no feature store, so its densities are unknown.")
    densities = {name: np.nan_to_num(s.table()["density"]) for name, s in stores.items()}
    chart = density_histogram(
        densities,
        {name: s.n_tokens for name, s in stores.items()},
        " or ".join(sorted({counted(s) for s in stores.values()}, reverse=True)),
    )
    show_figure(chart, "densities")


def _show_matches(first: DictionaryEntry, second: DictionaryEntry) -> None:
    st.header("Matched features")
    if first.folder is None or second.folder is None:
        show_note("Matching reads decoder rows, and a feature store alone has none.")
        return
    with st.spinner("Comparing decoder rows"):
        states = [(f, (f / WEIGHTS_FILE).stat().st_mtime_ns) for f in (first.folder, second.folder)]
        matches = _matches(tuple(states))
    if _same_initial_weights(first, second):
        st.warning(
            "Both were trained from the same initial weights (same seed and sizes), so a feature "
            "may have its match because it hardly moved. Dictionaries of other seeds say what is "
            "found twice."
        )
    show_figure(
        match_histogram(
            {
                f"{_name(first)} in the other": matches.forward_cosine,
                f"{_name(second)} in the other": matches.backward_cosine,
                "random directions in the second": matches.random_cosine,
            }
        ),
        "matches",
    )
    shared = int((matches.forward_cosine >= SHARED_FROM).sum())
    by_chance = int((matches.random_cosine >= SHARED_FROM).sum())
    st.caption(
        f"{shared:,} of the {len(matches.forward):,} features of the first are shared: they have a "
        f"match of cosine {SHARED_FROM} or more in the second; {by_chance:,} of as many random "
        f"directions do. {len(matches.mutual()):,} pairs are each other's nearest feature."
    )
    view = url_state.choice(st.segmented_control, "Show", VIEWS, param="view", required=True)
    if view == VIEWS[2]:
        _show_pairs(second, first, matches.backward, matches.backward_cosine, view)
    else:
        _show_pairs(first, second, matches.forward, matches.forward_cosine, view)


def _same_initial_weights(first: DictionaryEntry, second: DictionaryEntry) -> bool:
    """Whether one seed drew the directions of both, unless one began from a dictionary."""
    drawn = [
        [entry.facts.get(name) for name in ("seed", "d_in", "d_sae")] for entry in (first, second)
    ]
    return None not in drawn[0] and drawn[0] == drawn[1]


@st.cache_resource(max_entries=16, show_spinner=False)
def _matches(states: tuple[tuple[Path, int], ...]) -> Matches:
    return match(*(decoder_rows(folder) for folder, _ in states))


def _show_pairs(
    entry: DictionaryEntry,
    partner: DictionaryEntry,
    nearest: Int[np.ndarray, " features"],
    cosine: Float[np.ndarray, " features"],
    view: str,
) -> None:
    """The features of a dictionary with their nearest ones of the partner."""
    store, partner_store = (
        open_store(e.store_path) if e.store_path else None for e in (entry, partner)
    )
    shared = view == VIEWS[0]
    keep = (cosine >= SHARED_FROM) == shared
    if store is not None and store.n_features == len(keep):
        # What is never active is not a feature that the partner lacks.
        keep &= store.table()["n_active"] > 0
    order = np.argsort(-cosine if shared else cosine, kind="stable")
    chosen = order[keep[order]]
    if not len(chosen):
        show_note("No feature is of this kind.")
        return
    shown = chosen[:MOST_ROWS]
    st.html(
        linked_table(
            f"{len(chosen):,} features {view}, with their nearest features and cosines",
            {
                "feature": shown.tolist(),
                "about": _described(store, shown),
                "cosine": cosine[shown].tolist(),
                "nearest": nearest[shown].tolist(),
                "about nearest": _described(partner_store, nearest[shown]),
            },
            [feature_href(feature, entry) for feature in shown.tolist()],
        )
    )
    st.caption(
        f"{len(chosen):,} features that were active"
        + (f", the first {MOST_ROWS} shown" if len(chosen) > MOST_ROWS else "")
        + ". A click on a row opens the feature."
    )


def _described(store: FeatureStore | None, features: Int[np.ndarray, " shown"]) -> list[str]:
    """Label or top tokens of features, if their dictionary has a store of that size."""
    if store is None or features.max() >= store.n_features:
        return [""] * len(features)
    table, labels = store.table(), label_texts(store)
    return [about(table, labels, feature, MOST_TOKENS) for feature in features.tolist()]


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
    random_cosine: Float[np.ndarray, " first"]
    """Of as many directions drawn at random as the first has features, the same with the second."""

    def mutual(self) -> Int[np.ndarray, " pairs"]:
        """Features of the first whose nearest feature has them as its nearest in turn."""
        features = np.arange(len(self.forward))
        return features[self.backward[self.forward] == features]


def decoder_rows(
    folder: Path, features: Sequence[int] | None = None
) -> Float[np.ndarray, "features d_in"]:
    """Unit decoder rows of a saved dictionary.

    Args:
        folder: where it lies.
        features: those that are read; None: all.

    Raises:
        ArtifactError: the weights are missing, damaged or without a decoder.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS_FILE
    if path.is_symlink():
        raise ArtifactError(f"{path} is a link: only files below the folders given are read")
    try:
        with safe_open(str(path), framework="numpy") as weights:
            if features is None:
                rows = np.asarray(weights.get_tensor("W_dec"), dtype=np.float32)
            else:
                tensor = weights.get_slice("W_dec")
                parts = [np.asarray(tensor[index : index + 1]) for index in features]
                rows = np.concatenate(parts).astype(np.float32)
    except (OSError, SafetensorError, TypeError, ValueError) as error:
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
    parts = []
    backward = np.zeros(len(second), dtype=np.int64)
    backward_cosine = np.full(len(second), -np.inf)
    random_parts = []
    generator = np.random.default_rng(0)
    for start in range(0, len(first), CHUNK_ROWS):
        drawn = generator.standard_normal(first[start : start + CHUNK_ROWS].shape, dtype=np.float32)
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        random_parts.append((drawn @ second.T).max(axis=1))
        cosines = first[start : start + CHUNK_ROWS] @ second.T
        parts.append((cosines.argmax(axis=1), cosines.max(axis=1)))
        better = cosines.max(axis=0) > backward_cosine
        backward[better] = cosines.argmax(axis=0)[better] + start
        backward_cosine = np.maximum(backward_cosine, cosines.max(axis=0))
    forward, forward_cosine = map(np.concatenate, zip(*parts, strict=True))
    return Matches(forward, forward_cosine, backward, backward_cosine, np.concatenate(random_parts))


if __name__ == "__main__":
    run_page(render)
