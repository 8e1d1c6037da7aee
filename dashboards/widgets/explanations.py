"""What people and explainers say of a feature, side by side, with scores beside their controls."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from saelab.features.label_content import SCORE_DEFINITIONS, TOO_WEAK, Label, Score, prominence

from .token_html import visible_text

CONTROLS = (
    ("shuffled", "another's", "the same score of another feature's explanation"),
    ("random", "nothing's", "the same score of a text that explains nothing"),
)
"""Field of a score, heading of its column, definition."""


def by_prominence(labels: Sequence[Label]) -> list[Label]:
    """People's words first, then what has more votes, then the newest."""
    return sorted(labels, key=prominence, reverse=True)


def explanation_html(label: Label) -> str:
    """One label or explanation: its words, where they are from, and its scores."""
    origin = [label.author, label.method, label.model, label.created[:10]]
    facts = " · ".join(visible_text(part) for part in origin if part)
    if label.score is not None:
        facts += f" · score {label.score:.2g}"
    if label.prompt_hash:
        facts += f" · prompt {visible_text(label.prompt_hash[:8])}"
    if label.method == TOO_WEAK:
        facts += (
            " · by a model too weak to explain: it shows how this works, and is not worth reading"
        )
    rows = "".join(_score_rows(score) for score in label.scores)
    table = "" if not rows else f"<table>{_HEAD}<tbody>{rows}</tbody></table>"
    return (
        f'<style>{STYLE}</style><div class="saelab-said"><p><bdi>'
        f"{escape(visible_text(label.text))}</bdi></p><small>{escape(facts)}</small>{table}</div>"
    )


def _score_rows(score: Score) -> str:
    interval = (
        "" if score.low is None or score.high is None else f"{score.low:.2f}–{score.high:.2f}"
    )
    controls = [getattr(score, field) for field, *_ in CONTROLS]
    cells = "".join(f"<td>{'–' if value is None else f'{value:.2f}'}</td>" for value in controls)
    meaning = SCORE_DEFINITIONS.get(score.name, "as the program that measured it says")
    ticks = "".join(
        f'<i class="tick" style="left:{_percent(value)}"></i>'
        for value in controls
        if value is not None
    )
    whisker = ""
    if interval:
        low, high = _share(score.low), _share(score.high)
        whisker = f'<i class="range" style="left:{low:.1f}%;width:{high - low:.1f}%"></i>'
    return (
        f'<tr><th scope="row" title="{escape(meaning)}">{escape(visible_text(score.name))}</th>'
        f"<td><b>{score.value:.2f}</b></td><td>{interval}</td>{cells}"
        f"<td>{score.n or '–'}</td></tr>"
        f'<tr class="bar" aria-hidden="true"><td colspan="6"><div class="track">'
        f'<i class="fill" style="width:{_percent(score.value)}"></i>{whisker}{ticks}</div>'
        "</td></tr>"
    )


def _share(value: float | None) -> float:
    return 100 * min(1.0, max(0.0, value or 0.0))


def _percent(value: float | None) -> str:
    return f"{_share(value):.1f}%"


def definitions_html(labels: Sequence[Label]) -> str:
    """What the scores that are shown mean, and their controls; empty where there are none."""
    names = list(dict.fromkeys(score.name for label in labels for score in label.scores))
    if not names:
        return ""
    terms = [(name, SCORE_DEFINITIONS.get(name, "measured by another program")) for name in names]
    terms += [
        (title, f"control: {meaning}; a thin line on the bar") for _, title, meaning in CONTROLS
    ]
    terms.append(("95 %", "interval of the value over the items judged; the dark line on the bar"))
    items = "".join(
        f"<dt>{escape(visible_text(name))}</dt><dd>{escape(meaning)}</dd>"
        for name, meaning in terms
    )
    return (
        '<details class="saelab-said"><summary>What the scores mean: one is worth something only '
        f"where it is above both of its controls</summary><dl>{items}</dl></details>"
    )


_HEAD = (
    '<thead><tr><th scope="col">score</th><th scope="col">value</th><th scope="col">95 %</th>'
    + "".join(
        f'<th scope="col" title="control: {meaning}">{title}</th>' for _, title, meaning in CONTROLS
    )
    + '<th scope="col" title="items judged">n</th></tr></thead>'
)
STYLE = (
    ".saelab-said p{font-size:1.12rem;font-weight:600;margin:0 0 .15rem;overflow-wrap:anywhere;"
    "line-height:1.35}"
    ".saelab-said small,.saelab-said summary,.saelab-said thead th,.saelab-said dd"
    "{color:light-dark(#55606c,#a7b0ba);font-size:.8rem}"
    ".saelab-said small{display:block;line-height:1.4;overflow-wrap:anywhere}"
    ".saelab-said table{border-collapse:collapse;width:100%;margin:.5rem 0 0;font-size:.86rem}"
    ".saelab-said th,.saelab-said td{padding:.1rem .3rem .1rem 0;border:0;text-align:right;"
    "font-variant-numeric:tabular-nums;white-space:nowrap;font-weight:400}"
    ".saelab-said tr>:first-child{text-align:left}.saelab-said tr>:last-child{padding-right:0}"
    # A name of another program's score is broken, so that a narrow card holds its table.
    ".saelab-said tbody th{white-space:normal;overflow-wrap:anywhere;min-width:4.7rem}"
    ".saelab-said thead th{font-size:.74rem}"
    ".saelab-said .bar td{padding:0 0 .3rem}"
    ".saelab-said .track{position:relative;height:.42rem;border-radius:3px;"
    "background:light-dark(#e3e7ec,#2b323b)}"
    ".saelab-said .track i{position:absolute;top:0;bottom:0;display:block}"
    ".saelab-said .fill{left:0;background:light-dark(#7fb0dd,#3d78ad);border-radius:3px}"
    ".saelab-said .range{top:.15rem!important;bottom:.15rem!important;"
    "background:light-dark(#1b1f24,#e8eaed)}"
    ".saelab-said .tick{width:2px;background:light-dark(#b4590b,#f0a45c)}"
    ".saelab-said summary{cursor:pointer}"
    ".saelab-said dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem .8rem;"
    "margin:.4rem 0;font-size:.85rem}.saelab-said dd{margin:0}"
)
