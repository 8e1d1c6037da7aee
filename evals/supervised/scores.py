"""A score with where it belongs; scores pooled over seeds, and what their charts share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from saelab.formats.chart import Series
from saelab.formats.evaluation_result import Table
from saelab.stats.bootstrap import Estimate
from saelab.stats.spread import spread_of

from ..suite import Definition

CLEAN = "clean"
ABLATED = "mean ablation"
RANDOM = "random decoder"
UNEDITED = "no intervention"
"""What the clean run is called beside edits."""
KINDS = ("condition", "floor", "skyline", "text", "task")
"""Kinds of contenders, in the order of legends."""
GREY = 5
"""Style of the floors; see `saelab.report.line_styles`."""
APPROXIMATION_SECTION = "Approximation and control"
INTERPRETATION_SECTION = "Interpretation and occlusion"
WHISKERS = (
    "Whiskers: 95 % bootstrap interval over prompts; ± one standard deviation where there are "
    "several seeds."
)

Key = tuple[Any, ...]
_DEFINITION = re.compile(r"(\w+) \((.+?)(?:, (higher|lower))?\): (.+)")


def define(group: str, paragraphs: str) -> tuple[Definition, ...]:
    """Definitions from paragraphs "name (unit): text" or "name (unit, better direction): text"."""
    definitions = []
    for paragraph in paragraphs.split("\n\n"):
        row: Any = _DEFINITION.fullmatch(" ".join(paragraph.split()))
        assert row is not None, paragraph
        name, unit, better, text = row.groups()
        definitions.append(
            Definition(name=name, unit=unit, better=better or "neither", text=text, group=group)
        )
    return tuple(definitions)


@dataclass(frozen=True, kw_only=True)
class ContenderScore:
    """A number of one contender, with everything that says what it is of."""

    section: str
    """Cross-section."""
    contender: str
    """Dictionary or condition."""
    measure: str
    """Name of its definition."""
    estimate: Estimate
    """The number with its interval over prompts."""
    group: str = ""
    """The contender's name without its seed."""
    kind: str = ""
    """One of `KINDS`; `text` was trained on whole texts, `task` on the task's activations."""
    edit: str = ""
    """Attributes edited, joined by +."""
    mode: str = ""
    """How an edit is made: `supervised`, `agnostic` or `aware`; or a condition's name."""
    k: int | None = None
    """Latents that may be changed."""
    threshold: float | None = None
    """F1 threshold."""
    attribute: str = ""
    """Attribute, for occlusion."""
    site: str = ""
    """Site, where it is of one."""
    prompt_seed: int = 0
    """Seed of the prompts."""

    @property
    def name(self) -> str:
        """A name for the result file, unique within one run."""
        parts = [self.section, self.contender, self.measure, self.edit, self.mode]
        parts += ["" if self.k is None else f"k{self.k}"]
        parts += ["" if self.threshold is None else f"f1_{self.threshold:g}"]
        parts += [self.attribute, self.site, f"seed{self.prompt_seed}"]
        return "/".join(part for part in parts if part)

    @property
    def text(self) -> str:
        """The number with its interval, in words."""
        estimate = self.estimate
        if estimate.value is None:
            return "undefined"
        if estimate.low is None:
            return f"{estimate.value:.3g}"
        return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"

    def to_json(self) -> dict[str, Any]:
        """As one row of plain values."""
        row = asdict(self)
        del row["estimate"]
        return row | self.estimate.to_json()


def pooled(
    scores: Iterable[ContenderScore], measure: str, key: Callable[[ContenderScore], Key]
) -> dict[Key, dict[str, float | int | None]]:
    """Scores of one measure, pooled over seeds (and whatever else the key leaves out)."""
    members: dict[Key, list[Estimate]] = {}
    for score in scores:
        if score.measure == measure:
            members.setdefault(key(score), []).append(score.estimate)
    pools: dict[Key, dict[str, float | int | None]] = {}
    for index, estimates in members.items():
        spread = spread_of([_float(estimate.value) for estimate in estimates])
        low, high = estimates[0].low, estimates[0].high
        if len(estimates) > 1:
            low = high = None
            if spread.mean is not None and spread.sd is not None:
                low, high = spread.mean - spread.sd, spread.mean + spread.sd
        pools[index] = {"value": spread.mean, "low": low, "high": high, "n": len(estimates)}
    return pools


SPREAD_OVER = ("section", "group", "measure", "edit", "mode", "k", "threshold", "attribute", "site")


def spread_over_seeds(scores: Sequence[ContenderScore]) -> list[dict[str, Any]]:
    """Mean and deviation of every score that several seeds, of training or prompts, give."""
    members: dict[Key, list[float | None]] = {}
    for score in scores:
        row = score.to_json() | {"group": score.group or score.contender}
        key = tuple(row[name] for name in SPREAD_OVER)
        members.setdefault(key, []).append(_float(score.estimate.value))
    spreads = {key: spread_of(values) for key, values in members.items() if len(values) > 1}
    return [
        dict(zip(SPREAD_OVER, key, strict=True))
        | {"n_seeds": spread.n, "mean": spread.mean, "standard_deviation": spread.sd}
        for key, spread in spreads.items()
    ]


def _float(value: float | int | None) -> float | None:
    return None if value is None else float(value)


def contenders_of(scores: Sequence[ContenderScore]) -> list[str]:
    """Names of what is compared, floors and skylines before the dictionaries."""
    kinds: dict[str, str] = {}
    for score in scores:
        if score.kind and score.kind != "condition":
            kinds.setdefault(score.group, score.kind)
    return sorted(kinds, key=lambda name: KINDS.index(kinds[name]))


def style_of(name: str, names: Sequence[str]) -> int:
    """The style of a contender, the same in every chart; floors are grey."""
    bases = dict.fromkeys(name.rsplit(" (", 1)[0] for name in names)
    judged = [base for base in bases if base not in (UNEDITED, RANDOM)]
    base = name.rsplit(" (", 1)[0]
    if base not in judged:
        return GREY
    index = judged.index(base)
    return index + index // GREY


def grouped_bars(
    values: Mapping[Key, Mapping[str, Any]],
    names: Sequence[str],
    *,
    whiskers: bool = True,
    labels: Mapping[Key, str] | None = None,
) -> tuple[Series, ...]:
    """A group of bars per category, one bar per name; edits by interpretation are hatched.

    Args:
        values: (name, category) -> value, low and high; undefined values are left out.
        labels: text of a bar.
    """
    series = []
    for name in names:
        keys = [key for key in values if key[0] == name and values[key]["value"] is not None]
        if not keys:
            continue
        known = whiskers and all(values[key]["low"] is not None for key in keys)
        series.append(
            Series(
                name=name,
                mark="bars",
                x=[key[1] for key in keys],
                y=[values[key]["value"] for key in keys],
                low=[values[key]["low"] for key in keys] if known else None,
                high=[values[key]["high"] for key in keys] if known else None,
                labels=[labels.get(key, "") for key in keys] if labels else None,
                style=style_of(name, names),
                dashed=name.endswith("(aware)"),
            )
        )
    return tuple(series)


def line(
    name: str, points: Iterable[tuple[Any, Any, Any]], style: int, dashed: bool, **more: Any
) -> Series:
    """A line through (order, x, y), in the order of the first."""
    ordered = sorted(points, key=lambda point: point[0] or 0)
    return Series(
        name=name,
        mark="lines+dots",
        x=[x for _, x, _ in ordered],
        y=[y for _, _, y in ordered],
        style=style,
        dashed=dashed,
        **more,
    )


def pivot(cells: Iterable[tuple[Key, str, str]]) -> dict[Key, dict[str, str]]:
    """Row -> column -> text, of (row, column, text)."""
    rows: dict[Key, dict[str, str]] = {}
    for row, column, text in cells:
        rows.setdefault(row, {})[column] = text
    return rows


def numbers_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], missing: str = "–"
) -> Table:
    """A table of the page's section "Numbers"; `missing` stands for None."""
    return Table(
        title=title,
        columns=tuple(columns),
        rows=tuple(tuple(missing if cell is None else cell for cell in row) for row in rows),
        section="Numbers",
    )


def in_words(series: Iterable[Series], joint: str = ", ") -> str:
    """Every bar in words: "identity, a: 0.50; …"."""
    return "; ".join(
        f"{bars.name}{joint}{category}: {value:.2f}"
        for bars in series
        for category, value in zip(bars.x, bars.y, strict=True)
        if isinstance(value, int | float)
    )
