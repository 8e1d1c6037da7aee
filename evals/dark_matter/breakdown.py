"""Analysis 4: the FVU of dictionaries of rising width at one L0, cut into what could explain it.

With c the asymptote of the fit c + a M^-m over widths M (E13, E14 of arXiv 2410.14670):
absent features FVU(M) - c, linear error c - mean FVU_nonlinear, nonlinear error mean FVU_nonlinear,
of which encoder error mean FVU_nonlinear - FVU_nonlinear of pursuit codes. Where c lies below the
nonlinear part the areas would cross and mean nothing: they are not drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saelab.errors import ConfigError

from .power_law import PowerLaw, fit_power_law

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
    values: dict[str, float | int | None]
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

    def figure_data(self) -> dict[str, Any]:
        """For "breakdown" and "asymptote"."""
        pursuit = [one.number("pursuit_fvu_nonlinear") for one in self.members]
        widths = [one.d_sae for one in self.members]
        curve = None
        if self.fit is not None:
            places = np.geomspace(min(widths), max(widths), 60)
            curve = {"width": places.tolist(), "fvu": self.fit.at(places).tolist()}
        return {
            "l0": self.l0,
            "names": [one.name for one in self.members],
            "width": widths,
            "measured_l0": [one.l0 for one in self.members],
            "fvu": [one.number("fvu") for one in self.members],
            "fvu_nonlinear": [one.number("fvu_nonlinear") for one in self.members],
            "pursuit_fvu_nonlinear": None if None in pursuit else pursuit,
            "mean_nonlinear": self.mean_nonlinear,
            "fit": None if self.fit is None else self.fit.figure_data(),
            "curve": curve,
            "refused": self.refused,
        }


def break_down(members: Sequence[Member], l0: float | None) -> Breakdown:
    """Choose a dictionary per width, fit, and decide whether areas can be drawn.

    Args:
        members: of the family.
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
            + f" among {len({one.d_sae for one in members})} widths given: train more widths at "
            "the same L0, or give another --breakdown-l0"
        )
    nonlinear = [float(one.values["fvu_nonlinear"] or 0.0) for one in chosen]
    mean = sum(nonlinear) / len(nonlinear)
    fit, refused = None, None
    try:
        fit = fit_power_law(
            np.array([float(one.d_sae) for one in chosen]),
            np.array([float(one.values["fvu"] or 0.0) for one in chosen]),
        )
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
        widths = {one.d_sae for one in members if _near(one, l0)}
        return -len(widths), abs(np.log(max(l0, 1e-9) / PAPER_L0))

    return min((one.l0 for one in members), key=rank)


def _per_width(members: Sequence[Member], l0: float) -> tuple[list[Member], list[str]]:
    chosen, left_out = [], []
    for width in sorted({one.d_sae for one in members}):
        nearest = min(
            (one for one in members if one.d_sae == width), key=lambda one: abs(one.l0 - l0)
        )
        if _near(nearest, l0):
            chosen.append(nearest)
        else:
            left_out.append(
                f"{width:,} latents: the nearest L0 is {nearest.l0:.4g}, more than "
                f"{TOLERANCE:.0%} from {l0:.4g}"
            )
    return chosen, left_out
