"""What several dictionaries of one hook point show together: a result of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow

from saelab.errors import ConfigError
from saelab.formats.chart import Axis, Chart, Series
from saelab.formats.evaluation_result import Table

from .analysis import Meaning
from .breakdown import Breakdown, Member, break_down
from .contours import CONTOURED, contour_chart
from .downstream import PARTS
from .measure import PURSUIT
from .norm_test import VECTORS, norm_test_violins
from .tokens import family_traces, measure_scaling

MOST_LINES = 12
SHOWN = (
    "fvu",
    "fvu_nonlinear",
    "error_r_squared",
    "error_explained",
    "norm_r_squared",
    "l0_mean",
    "shrinkage_gamma",
    "linear_norm_share",
    "nonlinear_norm_share",
    "norm_test_nonlinear_error",
)
"""Numbers of each dictionary that its table holds; the parquet file holds all."""
MEANINGS: dict[str, Meaning] = {
    "n_dictionaries": Meaning("dictionaries", "Dictionaries held side by side."),
    "breakdown_l0": Meaning("latents per row", "L0 at which widths are compared."),
    "mean_fvu_nonlinear": Meaning("1", "Mean FVU_nonlinear over the widths compared."),
    "asymptote": Meaning("1", "c of the fit FVU = c + a M^-m over widths M (E13, E14)."),
    "asymptote_low": Meaning("1", "Lower end of the 95 % profile interval of c."),
    "asymptote_high": Meaning("1", "Upper end of the 95 % profile interval of c."),
    "exponent": Meaning("1", "m of the fit."),
    "fit_residual": Meaning("1", "Root mean square residual of the fit."),
}


@dataclass
class Family:
    """Charts, numbers and notes on several dictionaries."""

    members: list[Member]
    """From narrow to wide, and from few to many active latents."""
    numbers: dict[str, float | int | None] = field(default_factory=dict)
    """Of the family as a whole, by the names of `MEANINGS`."""
    charts: list[Chart] = field(default_factory=list)
    """In reading order."""
    notes: list[str] = field(default_factory=list)
    """What could not be shown and why, in sentences."""

    def table(self) -> Table:
        """Every dictionary with the numbers that matter most."""
        pursued = [PURSUIT + name for name in SHOWN[:2]]
        names = [
            name
            for name in (*SHOWN, *pursued)
            if any(name in member.values for member in self.members)
        ]
        return Table(
            title="Every dictionary",
            columns=("dictionary", "latents", *(name.replace("_", " ") for name in names)),
            rows=tuple(
                (member.name, member.d_sae, *(member.values.get(name) for name in names))
                for member in self.members
            ),
        )

    def rows(self) -> dict[str, Any]:
        """Every number of every dictionary, as columns."""
        names = dict.fromkeys(name for member in self.members for name in member.values)
        return {
            "name": [member.name for member in self.members],
            "d_sae": [member.d_sae for member in self.members],
            **{
                name: pyarrow.array(
                    [member.values.get(name) for member in self.members], pyarrow.float64()
                )
                for name in names
            },
        }


def family_of(members: Sequence[Member], *, breakdown_l0: float | None, ridge: float) -> Family:
    """Run every analysis that compares dictionaries; what is not possible becomes a note.

    Args:
        members: dictionaries judged on the same rows.
        breakdown_l0: see `break_down`.
        ridge: regularisation of the regressions between error norms.
    """
    members = sorted(members, key=lambda member: (member.d_sae, member.l0, member.name))
    family = Family(members, {"n_dictionaries": len(members)})
    compared = _add_breakdown(family, breakdown_l0)
    shown = members if compared is None else compared.members
    shown = shown[:: -(-len(shown) // MOST_LINES)]
    paths, labels = [member.token_file for member in shown], _labels(shown)
    if len(shown) > 1:
        family.charts += measure_scaling(paths, ridge).charts(labels)
    _add_contours(family)
    spliced = [m for m in members if m.number("downstream_recovered_ce_linear") is not None]
    if spliced:
        numbers: list[Mapping[str, Any]] = [member.values for member in spliced]
        family.charts.append(family_recovery_chart(_labels(spliced), numbers))
    norms = {name: [member.number(f"norm_test_{name}") for member in members] for name in VECTORS}
    if any(value is not None for value in norms["error"]):
        family.charts.append(norm_test_violins(norms))
    if len(shown) > 1:
        family.charts += family_traces(labels, paths)
    return family


def _add_breakdown(family: Family, l0: float | None) -> Breakdown | None:
    try:
        compared = break_down(family.members, l0)
    except ConfigError as error:
        family.notes.append(f"No breakdown over width: {error}.")
        return None
    family.notes += [f"Left out of the breakdown over width: {text}." for text in compared.left_out]
    if compared.refused is not None:
        family.notes.append(f"In the breakdown over width {compared.refused}.")
    family.charts += compared.charts()
    family.numbers |= {
        "breakdown_l0": compared.l0,
        "mean_fvu_nonlinear": compared.mean_nonlinear,
    }
    if (fit := compared.fit) is not None:
        family.numbers |= {
            "asymptote": fit.c,
            "asymptote_low": fit.c_low,
            "asymptote_high": fit.c_high,
            "exponent": fit.m,
            "fit_residual": fit.rms,
        }
    return compared


def _add_contours(family: Family) -> None:
    for metric in CONTOURED:
        try:
            family.charts.append(contour_chart(family.members, metric))
        except ConfigError as error:
            family.notes.append(f"No contours over width and L0: {error}.")
            return


def _labels(members: Sequence[Member]) -> list[str]:
    """Width, with the L0 or the name where widths repeat."""
    by_width = [f"{member.d_sae:,}" for member in members]
    with_l0 = [f"{member.d_sae:,}, L0 {member.l0:.3g}" for member in members]
    names = [member.name for member in members]
    for labels in (by_width, with_l0, names):
        if len(set(labels)) == len(members):
            return labels
    return [f"{index + 1}: {name}" for index, name in enumerate(names)]


def family_recovery_chart(
    labels: Sequence[str], numbers: Sequence[Mapping[str, float | int | None]]
) -> Chart:
    """What adding a part of the error recovers, by loss, by R² and by norm.

    Args:
        labels: of the dictionaries of a family.
        numbers: of each, by name.
    """
    measures = {
        "recovered_ce": "loss recovered",
        "recovered_r_squared": "R² recovered",
        "norm_share": "share of the norm",
    }
    series = tuple(
        Series(
            name=f"{text}, + {part}",
            x=list(labels),
            y=[known.get(f"downstream_{name}_{part}") for known in numbers],
            mark="bars",
            style=index,
            dashed=part == "nonlinear",
        )
        for part in PARTS
        for index, (name, text) in enumerate(measures.items())
    )
    loss = [
        [value for value in series[index].y if isinstance(value, int | float)] for index in (0, 3)
    ]
    linear, nonlinear = (
        f"{min(known):.1f} to {max(known):.1f}" if known else "undefined" for known in loss
    )
    return Chart(
        name="family_recovery",
        title="What each part of the error is worth to the model",
        caption="Per cent of what the reconstruction loses that adding the linear error (plain) or "
        "the nonlinear error (hatched) takes back: of the next-token loss, of R², and beside them "
        "the mean norm of the part over that of the error. The two parts need not add up to 100.",
        summary=f"Grouped bars; loss recovered by the linear error {linear}, by the nonlinear "
        f"error {nonlinear} per cent.",
        x=Axis(title="dictionary"),
        y=Axis(title="per cent"),
        series=series,
        height=420,
        wide=True,
    )
