"""The FVU of dictionaries of rising width at one L0, cut into what could explain it.

With c the asymptote of the fit c + a M^-m over widths M (E13, E14 of arXiv 2410.14670):
absent features FVU(M) - c, linear error c - mean FVU_nonlinear, nonlinear error mean FVU_nonlinear,
of which encoder error mean FVU_nonlinear - FVU_nonlinear of pursuit codes. Where c lies below the
nonlinear part the areas would cross and mean nothing: they are not drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saelab.errors import ConfigError
from saelab.formats.chart import Axis, Chart, ReferenceLine, Series
from saelab.stats.power_law import PowerLaw, fit_power_law

from .analysis import WIDTH_AXIS, Values

PAPER_L0 = 60.0
TOLERANCE = 0.2
"""How far, relatively, a dictionary's L0 may be from the one at which widths are compared."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A dictionary of a family, as the family analyses see it."""

    name: str
    """Folder name."""
    d_sae: int
    """Number of latents."""
    l0: float
    """Measured on the evaluated rows."""
    values: Values
    """Every number of its result."""
    token_file: Path
    """Its line per row."""

    def number(self, name: str) -> float | None:
        """A number, None where it was not measured or is undefined."""
        value = self.values.get(name)
        return None if value is None else float(value)


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Widths at one L0, the fit, and whether areas can be drawn."""

    l0: float
    """At which widths are compared."""
    members: list[Member]
    """One per width, from narrow to wide."""
    left_out: list[str]
    """Widths without a dictionary near enough, in words."""
    mean_nonlinear: float
    """Mean FVU_nonlinear over the widths."""
    fit: PowerLaw | None
    """None where there are too few widths."""
    refused: str | None
    """Why no areas are drawn; None where they are."""

    def charts(self) -> list[Chart]:
        """FVU over width with what the fit makes of it, and how well the asymptote is known."""
        return [self._areas(), *([] if self.fit is None else [self._asymptote(self.fit)])]

    def _areas(self) -> Chart:
        points = {"FVU": "fvu", "FVU_nonlinear": "fvu_nonlinear"}
        if all(member.number("pursuit_fvu_nonlinear") is not None for member in self.members):
            points["FVU_nonlinear, pursuit codes"] = "pursuit_fvu_nonlinear"
        measured = [
            Series(
                name=label,
                x=[member.d_sae for member in self.members],
                y=[member.number(name) for member in self.members],
                mark="lines+dots",
                labels=[f"{member.name}, L0 {member.l0:.4g}" for member in self.members],
                style={"fvu": 0, "fvu_nonlinear": 1}.get(name, 3),
            )
            for label, name in points.items()
        ]
        return Chart(
            name="breakdown",
            title=f"FVU broken down over width, L0 within {TOLERANCE:.0%} of {self.l0:.4g}",
            caption=self._caption(),
            x=WIDTH_AXIS,
            y=Axis(title="FVU (share of variance)", low=0),
            series=(*self._fitted(), *measured),
            height=460,
            wide=True,
        )

    def _fitted(self) -> list[Series]:
        """The areas under the fit, or the fit alone where they would cross."""
        if self.fit is None:
            return []
        widths = [member.d_sae for member in self.members]
        at = np.geomspace(min(widths), max(widths), 60)
        curve = self.fit.at(at).tolist()
        if self.refused is not None:
            return [Series(name="fit", x=at.tolist(), y=curve, style=5, dashed=True)]
        tops = (
            ("nonlinear error", [self.mean_nonlinear] * len(at), 1),
            ("linear error", [self.fit.c] * len(at), 2),
            ("absent features", curve, 0),
        )
        return [
            Series(name=name, x=at.tolist(), y=[*top], style=style, filled=True)
            for name, top, style in tops
        ]

    def _caption(self) -> str:
        text = (
            "Held-out FVU of one dictionary per width, and FVU_nonlinear, what is left after a "
            "linear map of the activation predicts what it can of the error."
        )
        if self.fit is not None:
            fit = self.fit
            text += (
                f" Fit: FVU = {fit.c:.4f} + {fit.a:.4g} · M^-{fit.m:.4g}, residual {fit.rms:.2g} "
                f"(root mean square); 95 % profile interval of the asymptote {fit.c_low:.4f} to "
                f"{fit.c_high:.4f}."
            )
        if self.refused is not None:
            return f"{text} {self.refused[0].upper()}{self.refused[1:]}."
        return (
            f"{text} Areas: nonlinear error up to the mean FVU_nonlinear, "
            f"{self.mean_nonlinear:.4f}; linear error from there to the asymptote; absent features "
            "from there to the fit. Where the interval is wide, so is the border between the last "
            "two."
        )

    def _asymptote(self, fit: PowerLaw) -> Chart:
        left = len(self.members) - 3
        return Chart(
            name="asymptote",
            title="How well the points determine the asymptote",
            caption="Residual of the best fit c + a · M^-m at each c. Between the two outer "
            "lines: the 95 % profile interval (F-test of one parameter against "
            f"{left} degree{'' if left == 1 else 's'} of freedom). Left of the mean FVU_nonlinear "
            "the areas of the breakdown would cross.",
            x=Axis(title="asymptote c (FVU at infinite width)"),
            y=Axis(title="residual (root mean square, FVU)", low=0),
            series=(
                Series(
                    name="best fit at each c", x=fit.profile_c.tolist(), y=fit.profile_rms.tolist()
                ),
                Series(name="best fit", x=[fit.c], y=[fit.rms], mark="dots", style=0),
            ),
            lines=(
                ReferenceLine(value=fit.c_low, label="95 % from", axis="x"),
                ReferenceLine(value=fit.c_high, label="to", axis="x"),
                ReferenceLine(value=self.mean_nonlinear, label="FVU_nonlinear", axis="x"),
            ),
        )


def break_down(members: Sequence[Member], l0: float | None) -> Breakdown:
    """Choose a dictionary per width, fit, and decide whether areas can be drawn.

    Args:
        l0: at which widths are compared; None: the one that most widths reach, nearest to 60.

    Raises:
        ConfigError: fewer than two widths at that L0.
    """
    wanted = _common_l0(members) if l0 is None else l0
    chosen, left_out = _per_width(members, wanted)
    if len(chosen) < 2:
        raise ConfigError(
            f"the breakdown over width needs dictionaries of at least two widths within "
            f"{TOLERANCE:.0%} of L0 {wanted:.4g}; there "
            + ("is one" if chosen else "are none")
            + f" among {len({member.d_sae for member in members})} widths given: train more "
            "widths at the same L0, or give another --breakdown-l0"
        )
    fvu, nonlinear = (
        np.array([member.number(name) or 0.0 for member in chosen])
        for name in ("fvu", "fvu_nonlinear")
    )
    mean = float(nonlinear.mean())
    fit, refused = None, None
    try:
        fit = fit_power_law(np.array([float(member.d_sae) for member in chosen]), fvu)
    except ConfigError as error:
        refused = f"no areas are drawn: {error}"
    if fit is not None and fit.c < mean:
        refused = (
            f"no areas are drawn: the asymptote of the fit, {fit.c:.4f} (95 % interval "
            f"{fit.c_low:.4f} to {fit.c_high:.4f}), lies below the mean FVU_nonlinear, {mean:.4f}, "
            "so they would cross"
        )
    return Breakdown(
        l0=wanted,
        members=chosen,
        left_out=left_out,
        mean_nonlinear=mean,
        fit=fit,
        refused=refused,
    )


def _near(member: Member, l0: float) -> bool:
    return abs(member.l0 - l0) <= TOLERANCE * l0


def _common_l0(members: Sequence[Member]) -> float:
    """The L0 of a member that most widths reach; of several, the one nearest to the paper's."""

    def rank(l0: float) -> tuple[int, float]:
        widths = {member.d_sae for member in members if _near(member, l0)}
        return -len(widths), abs(np.log(max(l0, 1e-9) / PAPER_L0))

    return min((member.l0 for member in members), key=rank)


def _per_width(members: Sequence[Member], l0: float) -> tuple[list[Member], list[str]]:
    chosen, left_out = [], []
    for width in sorted({member.d_sae for member in members}):
        members_of_width = [member for member in members if member.d_sae == width]
        nearest = min(members_of_width, key=lambda member: abs(member.l0 - l0))
        if _near(nearest, l0):
            chosen.append(nearest)
        else:
            left_out.append(
                f"{width:,} latents: the nearest L0 is {nearest.l0:.4g}, more than "
                f"{TOLERANCE:.0%} from {l0:.4g}"
            )
    return chosen, left_out
