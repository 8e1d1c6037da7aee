"""Figures of a family of dictionaries token by token, and of the norm test over the family."""

from __future__ import annotations

from typing import Any

from .dark_matter_figures import LEGEND, VECTORS
from .figure import BLUE, GREEN, ORANGE, PURPLE, Figure, new_plot
from .line_styles import GREY, line_style, name_lines

SHADES = [[0, "rgba(47,129,196,0.04)"], [1, "rgba(47,129,196,0.7)"]]
"""Light enough for dark text on a light page, dark enough for light text on a dark one."""


def scaling_matrix(data: dict[str, Any]) -> Figure:
    """R² of each dictionary's error norm on each narrower one's."""
    return _matrix(
        data,
        "r_squared",
        title="Do wider dictionaries fail on the same tokens?",
        caption="Held-out R² of the norm of the column's error regressed on the norm of the row's "
        "error and a constant, token by token; from narrow to wide, upper triangle. Near 1: the "
        "wider dictionary's errors are large where the narrower one's are.",
    )


def scaling_gain(data: dict[str, Any]) -> Figure:
    """What the nonlinear error adds to that prediction."""
    return _matrix(
        data,
        "gain",
        title="What the norm of the nonlinear error adds",
        caption="Share of the residual variance of the prediction beside it that is removed when "
        "the norm of the row's nonlinear error is a second regressor: (R²_new - R²_old) / "
        "(1 - R²_old); 0 on the diagonal.",
    )


def _matrix(data: dict[str, Any], key: str, *, title: str, caption: str) -> Figure:
    labels, matrix = data["labels"], data[key]
    upper = [
        [value if column >= row else None for column, value in enumerate(line)]
        for row, line in enumerate(matrix)
    ]
    plot = new_plot("predicted: error of", "from the error of", autorange="reversed")
    plot.update_xaxes(type="category")
    plot.update_yaxes(type="category")
    plot.update_layout(height=max(340, 90 + 34 * len(labels)))
    plot.add_heatmap(
        x=labels,
        y=labels,
        z=upper,
        colorscale=SHADES,
        texttemplate="%{z:.2f}" if len(labels) <= 10 else None,
        hoverongaps=False,
        colorbar={"thickness": 14},
        hovertemplate="%{y} → %{x}<br>%{z:.4f}<extra></extra>",
    )
    known = [
        value
        for row, line in enumerate(upper)
        for column, value in enumerate(line)
        if value is not None and column > row
    ]
    reach = f"from {min(known):.3f} to {max(known):.3f}" if known else "undefined"
    return Figure(
        name=f"scaling_{key}",
        title=title,
        plot=plot,
        caption=caption,
        alt=f"Upper triangle of a {len(labels)} by {len(labels)} matrix; off the diagonal {reach}.",
        data={"from": labels}
        | {f"to {label}": [line[place] for line in upper] for place, label in enumerate(labels)},
    )


def family_trace(data: dict[str, Any]) -> Figure:
    """The norm of a part of the error at neighbouring tokens, a line per dictionary."""
    position, labels, norms = data["position"], data["labels"], data["norm"]
    part = VECTORS[data["part"]]
    every = [value for line in norms for value in line]
    low, high = min(every, default=0.0), max(every, default=1.0)
    margin = 0.05 * (high - low) or 1.0
    plot = new_plot(
        "position in the context",
        f"norm of the {part} (activation units)",
        x_axis={"range": [position[0] - 1, position[-1] + 1]},
        range=[low - margin, high + margin],
    )
    plot.update_layout(height=380)
    for label, line in zip(labels, norms, strict=True):
        style = line_style(label, labels)
        plot.add_scatter(
            x=position,
            y=line,
            mode="lines",
            line=style.line(1),
            hovertemplate=f"{label}<br>position %{{x}}: %{{y:.4g}}<extra></extra>",
        )
    name_lines(
        plot,
        [(label, float(position[-1]), line[-1]) for label, line in zip(labels, norms, strict=True)],
        labels,
        edge=float(position[-1] + 1),
        y_range=(low - margin, high + margin),
    )
    means = "; ".join(
        f"{label}: {sum(line) / max(1, len(line)):.3g}"
        for label, line in zip(labels, norms, strict=True)
    )
    return Figure(
        name=f"family_trace_{data['part']}",
        title=f"Norm of the {part}, token by token",
        plot=plot,
        caption=f"Norm of the {part} at {len(position)} neighbouring tokens of one held-out "
        "context, a line per dictionary.",
        alt=f"Lines over {len(position)} tokens; means {means}.",
        data={"position": position, **dict(zip(labels, norms, strict=True))},
        wide=True,
    )


def norm_test_violin(data: dict[str, Any]) -> Figure:
    """The norm-prediction test over all dictionaries."""
    colours = (GREY, PURPLE, BLUE, GREEN, ORANGE, PURPLE)
    plot = new_plot("", "R² of the squared norm from x")
    plot.update_layout(height=420)
    means = []
    for name, colour in zip(data["vectors"], colours, strict=True):
        values = [value for value in data["values"][name] if value is not None]
        label = VECTORS[name]
        plot.add_violin(
            x=[label] * len(values),
            y=values,
            name=label,
            line={"color": colour, "width": 1.5},
            points="all",
            pointpos=0,
            jitter=0.25,
            marker={"color": colour, "size": 6, "opacity": 0.8},
            meanline_visible=True,
            spanmode="hard",
            hovertemplate=f"{label}<br>R² %{{y:.4f}}<extra></extra>",
        )
        means.append(f"{label} {sum(values) / len(values):.3f}" if values else f"{label} none")
    undefined = sum(value is None for values in data["values"].values() for value in values)
    return Figure(
        name="norm_test_violin",
        title="Norm-prediction test over the family",
        plot=plot,
        caption="Held-out R² of the squared norm of each kind of vector regressed on the "
        f"activation; one point per dictionary ({len(data['names'])}), none left out"
        + (f" but {undefined} that are undefined" if undefined else "")
        + ". Line across: mean.",
        alt=f"Violins; means: {', '.join(means)}.",
        data={"dictionary": data["names"]}
        | {VECTORS[name]: data["values"][name] for name in data["vectors"]},
        wide=True,
    )


def family_recovery(data: dict[str, Any]) -> Figure:
    """What adding a part of the error recovers, by loss, by R² and by norm, per dictionary."""
    labels = data["labels"]
    words = {
        "recovered_ce": ("loss recovered", BLUE),
        "recovered_r_squared": ("R² recovered", GREEN),
        "norm_share": ("share of the norm", PURPLE),
    }
    plot = new_plot("dictionary", "per cent")
    plot.update_xaxes(type="category")
    plot.update_layout(barmode="group", height=420, bargap=0.25, **LEGEND)
    table: dict[str, list[Any]] = {"dictionary": labels}
    for part, pattern in (("linear", ""), ("nonlinear", "/")):
        for name, (text, colour) in words.items():
            values = data["measures"][name][part]
            label = f"{text}, + {part}"
            plot.add_bar(
                x=labels,
                y=values,
                name=label,
                marker={
                    "color": colour,
                    "pattern": {"shape": pattern, "fillmode": "overlay", "fgcolor": "#ffffff"},
                },
                hovertemplate=f"%{{x}}<br>{label}: %{{y:.1f}} %<extra></extra>",
            )
            table[label] = values
    loss = data["measures"]["recovered_ce"]
    return Figure(
        name="family_recovery",
        title="What each part of the error is worth to the model",
        plot=plot,
        caption="Per cent of what the reconstruction loses that adding the linear error (plain) or "
        "the nonlinear error (hatched) takes back: of the next-token loss, of R², and beside them "
        "the mean norm of the part over that of the error. The two parts need not add up to 100.",
        alt="Grouped bars; loss recovered by the linear error "
        f"{_reach(loss['linear'])}, by the nonlinear error {_reach(loss['nonlinear'])} per cent.",
        data=table,
        wide=True,
    )


def _reach(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{min(known):.1f} to {max(known):.1f}" if known else "undefined"
