"""The score card as files: `score_card.json` for programs, `score_card.html` for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saelab.formats.evaluation_result import EvaluationResult
from saelab.formats.manifest import new_manifest, write_manifest
from saelab.report.figure import BLUE, GREEN, ORANGE, PURPLE, Figure, new_plot
from saelab.report.page import Report

from .definitions import UNFILLED
from .scorecard import SCORE_CARD, ScoreCardEntry

KIND = "recovery_score_card"
JSON_FILE = "score_card.json"
PAGE_FILE = "score_card.html"
QUARTERS = ("most frequent", "second", "third", "rarest")


def write_card(
    folder: Path, entries: Sequence[ScoreCardEntry], results: Sequence[EvaluationResult]
) -> Path:
    """Write both files; returns where the page is."""
    folder.mkdir(parents=True, exist_ok=True)
    made_from = {"dictionaries": {r.dictionary_name: r.dictionary_hash for r in results}}
    card = new_manifest(KIND, seed=None, config=results[0].settings, made_from=made_from)
    card["entries"] = [
        {
            "label": entry.label,
            "n_runs": entry.n_runs,
            "values": {
                name: None if found is None else {"mean": found[0], "sd": found[1]}
                for name, found in entry.values.items()
            },
        }
        for entry in entries
    ]
    write_manifest(folder / JSON_FILE, card)
    return _page(entries).write(folder / PAGE_FILE)


def _page(entries: Sequence[ScoreCardEntry]) -> Report:
    ranked = sorted(entries, key=lambda entry: entry.rank())
    report = Report(
        "Recovery of planted features",
        "Every way of training against the same planted features; mean and standard deviation "
        "over seeds.",
    )
    report.add_heading("Figures").add_figures([_recovery(ranked), _quarters(ranked)])
    report.add_heading("Score card").add_table(
        "Mean ± sample standard deviation over runs",
        ["trained", "runs", *SCORE_CARD.values()],
        [
            [entry.label, entry.n_runs, *(spread_text(entry.values[name]) for name in SCORE_CARD)]
            for entry in reversed(ranked)
        ],
    )
    report.add_heading("What the numbers mean").add_table(
        "Definitions",
        ["number", "definition"],
        [
            [label, UNFILLED[name].text if name in UNFILLED else ""]
            for name, label in SCORE_CARD.items()
        ],
    )
    return report


def spread_text(found: tuple[float, float | None] | None) -> str:
    """A mean with its spread as a cell's text."""
    if found is None:
        return "—"
    return f"{found[0]:.3g}" + ("" if found[1] is None else f" ± {found[1]:.2g}")


def _mean(entry: ScoreCardEntry, name: str) -> float:
    found = entry.values[name]
    return 0.0 if found is None else found[0]


def _recovery(ranked: Sequence[ScoreCardEntry]) -> Figure:
    plot = new_plot("share of true features recovered", "", x_axis={"range": [-0.02, 1.04]})
    for name, colour in (("frr_080", GREEN), ("frr_090", BLUE), ("frr_095", ORANGE)):
        plot.add_scatter(
            x=[_mean(entry, name) for entry in ranked],
            y=[entry.label for entry in ranked],
            error_x={"array": [(entry.values[name] or (0, 0))[1] or 0 for entry in ranked]},
            mode="markers",
            marker={"color": colour, "size": 10},
            name=SCORE_CARD[name],
        )
    height = 140 + 34 * len(ranked)
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    plot.update_layout(showlegend=True, legend=legend, height=height, margin_t=60)
    best, worst = ranked[-1], ranked[0]
    return Figure(
        name="recovery",
        title="Features recovered",
        plot=plot,
        caption="Share of the true features with a latent whose decoder row has at least this "
        "cosine with them (FRR); bars are the standard deviation over runs.",
        alt=f"Dots of the share recovered by way of training: at cosine 0.9 "
        f"{_mean(best, 'frr_090'):.2f} for {best.label}, {_mean(worst, 'frr_090'):.2f} for "
        f"{worst.label}.",
        data={
            "trained": [entry.label for entry in ranked],
            **{
                SCORE_CARD[name]: [_mean(entry, name) for entry in ranked]
                for name in ("frr_080", "frr_090", "frr_095")
            },
        },
    )


def _quarters(ranked: Sequence[ScoreCardEntry]) -> Figure:
    plot = new_plot("share recovered at cosine 0.9", "", x_axis={"range": [-0.02, 1.04]})
    colours = (PURPLE, BLUE, GREEN, ORANGE)
    names = [f"frr_quartile_{quarter}" for quarter in range(1, 5)]
    symbols = ("circle", "square", "diamond", "triangle-up")
    for name, colour, symbol, label in zip(names, colours, symbols, QUARTERS, strict=True):
        plot.add_scatter(
            x=[_mean(entry, name) for entry in ranked],
            y=[entry.label for entry in ranked],
            mode="markers",
            marker={"color": colour, "size": 10, "symbol": symbol},
            name=label,
        )
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    height = 140 + 34 * len(ranked)
    plot.update_layout(showlegend=True, legend=legend, height=height, margin_t=60)
    gaps = [_mean(entry, names[0]) - _mean(entry, names[3]) for entry in ranked]
    return Figure(
        name="quarters",
        title="Frequent and rare features",
        plot=plot,
        caption="The same share within each quarter of the true features by frequency. Where all "
        "features are equally frequent the quarters are arbitrary.",
        alt="Dots of the share recovered in each quarter of feature frequency; from most frequent "
        f"to rarest it falls by up to {max(gaps):.2f}.",
        data={
            "trained": [entry.label for entry in ranked],
            **{
                label: [_mean(entry, name) for entry in ranked]
                for name, label in zip(names, QUARTERS, strict=True)
            },
        },
    )
