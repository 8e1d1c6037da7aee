"""The charts and the table of an "absorption" result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saelab.formats.chart import Axis, Chart, ReferenceLine, Series
from saelab.formats.evaluation_result import Table

from ..display import rounded

MOST_SHOWN = 3


def absorption_charts(data: Mapping[str, Any]) -> list[Chart]:
    """Absorption and F1 by letter; `data` has `rows`, `least_f1` and `numbers`."""
    rows = data["rows"]
    counted = [row for row in rows if row.counts and row.n_recognised]
    letters = [row.letter for row in rows]
    f1 = Chart(
        name="f1_by_letter",
        title="How well letters can be told",
        caption="F1 on tested words of the probe of the activation, of a probe of the main "
        "latents, and of the best latent for shuffled letters. Letters whose probe does not "
        "exceed the dashed line do not count.",
        x=Axis(title="first letter"),
        y=Axis(title="F1", low=0, high=1),
        series=(
            Series(name="activation", x=[*letters], y=[r.probe_f1 for r in rows], mark="bars"),
            Series(name="main latents", x=[*letters], y=[r.main_f1 for r in rows], mark="bars"),
            Series(
                name="shuffled letters",
                x=[*letters],
                y=[r.main_f1_shuffled for r in rows],
                mark="bars",
                dashed=True,
            ),
        ),
        lines=(ReferenceLine(value=data["least_f1"], label="least F1"),),
        wide=True,
    )
    if not counted:
        return [f1]
    named = [row.letter for row in counted]
    absorption = Chart(
        name="absorption_by_letter",
        title="Absorption by letter",
        caption="Mean absorption fraction, and share of full absorption, over tested words that "
        "the letter's probe recognises. 0 is best.",
        x=Axis(title="first letter"),
        y=Axis(title="absorption (share)", low=0, high=1),
        series=(
            Series(
                name="absorption fraction",
                x=[*named],
                y=[r.absorption_fraction for r in counted],
                mark="bars",
            ),
            Series(
                name="full absorption",
                x=[*named],
                y=[r.full_absorption for r in counted],
                mark="bars",
            ),
        ),
        wide=True,
    )
    return [absorption, f1]


def absorption_tables(data: Mapping[str, Any]) -> list[Table]:
    """Every letter with its main latents."""
    columns = ("letter", "counts", "probe F1", "main latents", "F1", "cosine", "hedging")
    columns += ("words", "absorption", "full absorption")
    return [
        Table(
            title="By letter; each word is in the parquet file beside the result",
            columns=columns,
            rows=tuple(
                (
                    row.letter,
                    "yes" if row.counts else "no",
                    *rounded([row.probe_f1], 3),
                    _named(row.main_latents),
                    *rounded([row.main_f1], 3),
                    *_known(row.main_cosine, row.hedging),
                    row.n_recognised,
                    *_known(row.absorption_fraction, row.full_absorption),
                )
                for row in data["rows"]
            ),
            section="Letters",
        )
    ]


def _known(*values: float | None) -> list[float | None]:
    return [None if value is None else rounded([value], 3)[0] for value in values]


def _named(latents: list[int]) -> str:
    more = f" and {len(latents) - MOST_SHOWN} more" if len(latents) > MOST_SHOWN else ""
    return ", ".join(map(str, latents[:MOST_SHOWN])) + more if latents else "none"
