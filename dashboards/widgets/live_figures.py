"""The charts of the Prompt and Steer pages: pure functions from plain numbers to a `Figure`."""

from __future__ import annotations

from collections.abc import Sequence

from saelab.report.figure import BLUE, ORANGE, Figure, new_plot

from .token_html import visible_text

BAR_PIXELS = 26
LONGEST_NAME = 34


def signed_bars(
    *,
    name: str,
    title: str,
    axis: str,
    caption: str,
    rows: Sequence[tuple[str, float]],
    positive: str,
    negative: str,
) -> Figure:
    """Horizontal bars to both sides of zero, the first row on top; the sign is written out.

    Args:
        name: key of the figure.
        title: heading.
        axis: what the bars measure, with its unit.
        caption: definition.
        rows: name and value of each bar.
        positive: what a bar to the right means, for the sentence.
        negative: what a bar to the left means.
    """
    plot = new_plot(axis, "", autorange="reversed", type="category")
    shown = [_fitting(label) for label, _ in rows]
    plot.add_bar(
        x=[value for _, value in rows],
        y=list(range(len(rows))),
        orientation="h",
        marker={"color": [BLUE if value >= 0 else ORANGE for _, value in rows]},
        text=[f"{value:+.3g}" for _, value in rows],
        textposition="outside",
        cliponaxis=False,
        customdata=shown,
        hovertemplate="%{customdata}: %{x:+.3g}<extra></extra>",
    )
    largest = max((abs(value) for _, value in rows), default=1.0) or 1.0
    low = min((value for _, value in rows), default=0.0)
    plot.update_xaxes(
        range=[-1.25 * largest if low < 0 else 0, 1.25 * largest],
        zeroline=True,
        zerolinecolor="rgba(128,128,128,0.8)",
    )
    plot.update_yaxes(tickvals=list(range(len(rows))), ticktext=shown, type="linear")
    plot.update_layout(height=120 + BAR_PIXELS * len(rows))
    ups = [(label, value) for label, value in rows if value > 0]
    downs = [(label, value) for label, value in rows if value < 0]
    parts = [_sentence(ups, positive), _sentence(downs, negative)]
    return Figure(
        name=name,
        title=title,
        plot=plot,
        caption=caption,
        alt=f"{title}. " + " ".join(part for part in parts if part),
        data={"name": [visible_text(label) for label, _ in rows], axis: [v for _, v in rows]},
    )


def probability_shift(
    gaining: Sequence[tuple[str, float, float]],
    losing: Sequence[tuple[str, float, float]],
    kl: float,
) -> Figure:
    """Probabilities of next tokens before and after steering, as pairs of points."""
    rows = [*gaining, *losing]
    plot = new_plot("probability", "", x_axis={"rangemode": "tozero"}, autorange="reversed")
    places = list(range(len(rows)))
    names = [_fitting(repr_token(token)) for token, _, _ in rows]
    for place, (_, before, after) in enumerate(rows):
        plot.add_scatter(
            x=[before, after],
            y=[place, place],
            mode="lines",
            line={"color": BLUE if after > before else ORANGE, "width": 2},
            hoverinfo="skip",
            showlegend=False,
        )
    for label, column, symbol in (("baseline", 1, "circle-open"), ("steered", 2, "diamond")):
        plot.add_scatter(
            x=[row[column] for row in rows],
            y=places,
            mode="markers",
            name=label,
            cliponaxis=False,
            customdata=names,
            marker={
                "symbol": symbol,
                "size": 10,
                "color": [BLUE if after > before else ORANGE for _, before, after in rows],
                "line": {"width": 2},
            },
            hovertemplate="%{customdata}: %{x:.3g}<extra>" + label + "</extra>",
        )
    plot.update_yaxes(tickvals=places, ticktext=names)
    plot.update_layout(
        height=120 + BAR_PIXELS * len(rows),
        showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        margin={"t": 40},
    )
    if gaining:
        plot.add_hline(y=len(gaining) - 0.5, line={"color": "rgba(128,128,128,0.5)", "dash": "dot"})
    described = ", ".join(
        f"{repr_token(token)} from {before:.3g} to {after:.3g}"
        for token, before, after in (*gaining[:3], *losing[:3])
    )
    return Figure(
        name="next_token_shift",
        title="The next token, before and after",
        plot=plot,
        caption="Circles: probability without the edits; diamonds: with them. Above the dotted "
        "line the tokens that gain most, below it those that lose most.",
        alt=f"Next-token probabilities before and after steering, KL {kl:.3g} nats: "
        f"{described or 'no change'}.",
        data={
            "token": [visible_text(token) for token, _, _ in rows],
            "baseline": [before for _, before, _ in rows],
            "steered": [after for _, _, after in rows],
        },
    )


def repr_token(token: str) -> str:
    """A token in quotes, its spaces and line ends visible."""
    return f"“{visible_text(token)}”"


def _fitting(text: str) -> str:
    """A name beside a bar: plotly reads some HTML, so its signs are taken apart."""
    shown = visible_text(text)
    shown = shown if len(shown) <= LONGEST_NAME else f"{shown[: LONGEST_NAME - 1]}…"
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _sentence(rows: Sequence[tuple[str, float]], meaning: str) -> str:
    if not rows:
        return ""
    listed = ", ".join(f"{visible_text(label)} {value:+.3g}" for label, value in rows[:3])
    return f"{len(rows)} {meaning}, most of all {listed}."
