"""One steering run: its settings, and what came out, kept while the page is open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from ..live import MAX_TOKENS, LivePage

if TYPE_CHECKING:
    from saelab.live.edits import Kind


@dataclass(frozen=True, kw_only=True)
class EditChoice:
    """What a person chose to do to one feature."""

    feature: int
    kind: Kind
    strength: float
    """In multiples of the feature's maximum."""


@dataclass(frozen=True, kw_only=True)
class SteerSettings:
    """Everything that decides what a run writes."""

    dictionary: tuple[str, str]
    text: str
    edits: tuple[EditChoice, ...]
    n_tokens: int
    temperature: float
    seed: int
    from_end: bool
    """Whether features are edited from the text's last token on only."""


@dataclass(frozen=True, kw_only=True)
class SteerResult:
    """What a run wrote, without and with the edits."""

    settings: SteerSettings
    baseline: str
    steered: str
    kl: float
    """KL(baseline ‖ steered) of the next token after the text, nats."""
    gaining: tuple[tuple[str, float, float], ...]
    """Tokens whose probability rises most: text, before, after."""
    losing: tuple[tuple[str, float, float], ...]
    """Tokens whose probability falls most."""


def steer(page: LivePage, settings: SteerSettings, show: Callable[[str, str], None]) -> SteerResult:
    """Write both versions, showing them as they grow.

    Args:
        page: with the live session.
        settings: what to do.
        show: takes both texts after every token.

    Raises:
        SaelabError: a text, edit or length that cannot be used.
    """
    from saelab.live.edits import FeatureEdit
    from saelab.live.session import BASELINE, STEERED
    from saelab.live.shift import next_token_shift

    edits = [
        FeatureEdit(
            feature=edit.feature,
            kind=edit.kind,
            strength=edit.strength,
            maximum=float(page.numbers.maximum[edit.feature]),
        )
        for edit in settings.edits
    ]
    steps = page.session.steer(
        settings.text,
        edits,
        n_tokens=settings.n_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
        max_tokens=MAX_TOKENS,
        from_end_of_prompt=settings.from_end,
    )
    written: list[list[int]] = [[], []]
    over = [False, False]
    texts = ["", ""]
    shift = None
    for step in steps:
        if shift is None:
            shift = next_token_shift(step.logits[BASELINE], step.logits[STEERED])
        for version in (BASELINE, STEERED):
            if not over[version]:
                over[version] = bool(step.finished[version])
                if not over[version]:
                    written[version].append(int(step.tokens[version]))
                texts[version] = page.session.text_of(written[version])
                texts[version] += " ⏹" if over[version] else ""
        show(texts[BASELINE], texts[STEERED])
    assert shift is not None

    def named(rows: list[tuple[int, float, float]]) -> tuple[tuple[str, float, float], ...]:
        names = page.session.token_strings([id_ for id_, _, _ in rows])
        return tuple((name, *row[1:]) for name, row in zip(names, rows, strict=True))

    return SteerResult(
        settings=settings,
        baseline=texts[BASELINE],
        steered=texts[STEERED],
        kl=shift.kl,
        gaining=named(shift.gaining),
        losing=named(shift.losing),
    )


def written_html(prompt: str, written: str) -> str:
    """A prompt and what was written after it; all of it is shown as text."""
    return (
        f'<style>{STYLE}</style><div class="saelab-written" dir="auto">'
        f'<span class="prompt">{escape(prompt)}</span>'
        f"<span>{escape(written) or '…'}</span></div>"
    )


STYLE = (
    ".saelab-written{white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.6;min-height:8rem;"
    "padding:.6rem .8rem;border:1px solid light-dark(#d5dae0,#3a424c);border-radius:8px}"
    ".saelab-written .prompt{color:light-dark(#55606c,#a7b0ba)}"
)
