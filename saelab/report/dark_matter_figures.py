"""The figures of the suite "dark_matter" on one dictionary, each a function from its data alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .figure import BLUE, GREEN, ORANGE, PURPLE, Figure, new_plot
from .line_styles import GREY

LEGEND = {
    "showlegend": True,
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
    "margin_t": 56,
}
VECTORS = {
    "activation": "activation x",
    "reconstruction": "reconstruction",
    "error": "error",
    "linear_error": "linear error",
    "nonlinear_error": "nonlinear error",
    "reconstruction_plus_nonlinear": "reconstruction + nonlinear",
}
PARTS = {"error": BLUE, "linear_error": GREEN, "nonlinear_error": ORANGE}
ERROR = (
    "error = activation - reconstruction; linear error = its least-squares prediction from the "
    "activation, fitted with a constant on the training contexts; nonlinear error = the rest."
)


def error_parts(data: dict[str, Any]) -> Figure:
    """Share of the activations' variance that is explained, linear error, and nonlinear error."""
    encoders, fvu, nonlinear = data["encoders"], data["fvu"], data["fvu_nonlinear"]
    linear = [whole - rest for whole, rest in zip(fvu, nonlinear, strict=True)]
    plot = new_plot("share of the activations' variance (FVU)", "", autorange="reversed")
    plot.update_layout(barmode="stack", bargap=0.35, **LEGEND)
    for label, values, colour in (
        ("nonlinear error", nonlinear, ORANGE),
        ("linear error", linear, GREEN),
    ):
        plot.add_bar(
            x=values,
            y=encoders,
            name=label,
            orientation="h",
            marker={"color": colour, "line": {"width": 0}},
            text=[f"{value:.3f}" for value in values],
            textposition="inside",
            insidetextanchor="middle",
            hovertemplate=f"%{{y}}<br>{label} %{{x:.4f}}<extra></extra>",
        )
    plot.update_xaxes(rangemode="tozero")
    stated = "; ".join(
        f"{name}: FVU {whole:.4f}, of which nonlinear {rest:.4f}"
        for name, whole, rest in zip(encoders, fvu, nonlinear, strict=True)
    )
    return Figure(
        name="error_parts",
        title="What is not explained, in two parts",
        plot=plot,
        caption=f"The whole bar is FVU on held-out contexts, cut by FVU_nonlinear; {ERROR} "
        "Pursuit codes are found by gradient pursuit with as many latents per row as the own codes "
        "have, and get a probe of their own.",
        alt=f"Stacked bars. {stated}.",
        data={
            "codes": encoders,
            "FVU": fvu,
            "linear error": linear,
            "nonlinear error": nonlinear,
        },
    )


def norm_predictors(data: dict[str, Any]) -> Figure:
    """R² of the squared error norm by what predicts it."""
    labels, values = data["labels"], data["r_squared"]
    plot = new_plot("R² of the squared error norm", "", autorange="reversed")
    plot.add_bar(
        x=values,
        y=labels,
        orientation="h",
        marker_color=[BLUE if place == 0 else GREY for place, _ in enumerate(labels)],
        text=[f"{value:.3f}" for value in values],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}<br>R² %{x:.4f}<extra></extra>",
    )
    lowest = min(0.0, *values)
    plot.update_xaxes(range=[lowest - 0.35 if lowest < 0 else 0, max(1.0, *values) * 1.12])
    plot.update_layout(bargap=0.35)
    stated = ", ".join(f"{name} {value:.3f}" for name, value in zip(labels, values, strict=True))
    return Figure(
        name="norm_predictors",
        title="What predicts how large the error is",
        plot=plot,
        caption="R² of |activation - reconstruction|² regressed with a constant on what stands at "
        "the left, fitted on the training contexts, scored on held-out ones. “Token identity” is "
        "the mean over training rows of the same token; “in sample” scores it on the rows it was "
        "taken over, as published, which flatters rare tokens.",
        alt=f"Bars of R²: {stated}.",
        data={"predictor": labels, "R²": values},
    )


def ways_to_score(data: dict[str, Any]) -> Figure:
    """The same numbers fitted and scored in five ways."""
    labels, numbers = data["labels"], data["numbers"]
    names = {
        "fvu_nonlinear": ("FVU_nonlinear", ORANGE, "circle"),
        "error_r_squared": ("R² of the error vector", GREEN, "square"),
        "norm_r_squared": ("R² of the squared norm", BLUE, "diamond"),
    }
    plot = new_plot("share", "", autorange="reversed", tickvals=labels)
    plot.update_layout(**LEGEND)
    for name, (label, colour, symbol) in names.items():
        plot.add_scatter(
            x=numbers[name],
            y=labels,
            name=label,
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 11},
            hovertemplate=f"%{{y}}<br>{label} %{{x:.4f}}<extra></extra>",
        )
    first = {name: values[0] for name, values in numbers.items()}
    last = {name: values[-1] for name, values in numbers.items()}
    stated = "; ".join(
        f"{names[name][0]} {_number(first[name])} held out, {_number(last[name])} as published"
        for name in names
    )
    return Figure(
        name="ways_to_score",
        title="How much the way of scoring matters",
        plot=plot,
        caption="“Held-out contexts” (fitted with a constant, scored on contexts not fitted on) is "
        "used everywhere else. “Token split” holds out single tokens, whose neighbours were fitted "
        "on; “all rows” scores on fitted rows too; “as published” fits without a constant on a "
        "token split and scores on all rows.",
        alt=f"Dots for five ways of fitting and scoring. {stated}.",
        data={"way": labels, **{names[name][0]: numbers[name] for name in names}},
        wide=True,
    )


def norm_test(data: dict[str, Any]) -> Figure:
    """R² of the squared norm of each kind of vector, with controls."""
    labels = [VECTORS[name] for name in data["vectors"]]
    looks = {
        "from x": (BLUE, "circle"),
        "from itself": (GREEN, "square-open"),
        "from |x|²": (PURPLE, "diamond-open"),
        "Gaussian": (GREY, "x"),
    }
    every = [
        value for values in data["r_squared"].values() for value in values if value is not None
    ]
    low = min([0.0, *every])
    plot = new_plot(
        "R² of the squared norm",
        "",
        x_axis={"range": [max(low, -1.0) - 0.05, 1.05]},
        autorange="reversed",
        tickvals=labels,
    )
    plot.update_layout(height=400, **LEGEND)
    for label, values in data["r_squared"].items():
        colour, symbol = looks[label]
        plot.add_scatter(
            x=values,
            y=labels,
            name=label,
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 12, "line": {"width": 2}},
            hovertemplate=f"%{{y}}, {label}<br>R² %{{x:.4f}}<extra></extra>",
        )
    own = dict(zip(labels, data["r_squared"]["from x"], strict=True))
    stated = ", ".join(f"{name} {_number(value)}" for name, value in own.items())
    return Figure(
        name="norm_test",
        title="Norm-prediction test",
        plot=plot,
        caption="Held-out R² of the squared norm of each kind of vector regressed on the "
        "activation x (the test), on the vector itself, on |x|² alone (control), and what Gaussian "
        "vectors with the same means and covariances would give on x (control). Sums of few nearly "
        "orthogonal features reach 0.75 to 1, Gaussians 0; random overcomplete sums of features "
        "only 0.1 to 0.3, so a low value alone does not say that there are none. No value is left "
        "out; those below -1 lie beyond the edge and are in the data.",
        alt=f"Dots of R² of the squared norm from x: {stated}.",
        data={"vector": labels, **data["r_squared"]},
        wide=True,
    )


def error_trace(data: dict[str, Any], *, codes: str) -> Figure:
    """Norms of the error and its parts at neighbouring tokens."""
    position = data["position"]
    plot = new_plot("position in the context", "norm (activation units)", rangemode="tozero")
    plot.update_layout(**LEGEND)
    table: dict[str, list[Any]] = {"position": position, "token": data["token"]}
    means = []
    for name, colour in PARTS.items():
        values = [float(f"{value:.5g}") for value in data[f"{name}_norm"]]
        label = VECTORS[name]
        plot.add_scatter(
            x=position,
            y=values,
            name=label,
            mode="lines",
            line={"color": colour, "width": 2, "dash": "dot" if name == "error" else "solid"},
            hovertemplate=f"position %{{x}}<br>{label} %{{y:.4g}}<extra></extra>",
        )
        table[label] = values
        means.append(f"{label} {sum(values) / max(1, len(values)):.3g}")
    context = data["sequence"][0] if data["sequence"] else "none"
    return Figure(
        name="error_trace",
        title=f"Error token by token, {codes} codes",
        plot=plot,
        caption=f"Norms at {len(position)} neighbouring tokens of a held-out context (number "
        f"{context} of the text); {ERROR}",
        alt=f"Lines over {len(position)} tokens; mean norms: {', '.join(means)}.",
        data=table,
        wide=True,
    )


def probe_directions(data: dict[str, Any], *, codes: str) -> Figure:
    """The norm probe's inner product with each latent, beside its codes."""
    rank = list(range(1, len(data["latent"]) + 1))
    plot = new_plot("latent, by falling mean code", "activation units")
    plot.update_layout(**LEGEND)
    lines = {
        "mean code when active": (data["mean_when_active"], GREY, "dot"),
        "E[w³] / E[w²]": (data["cubic"], ORANGE, "dash"),
        "probe · decoder row": (data["inner_product"], BLUE, "solid"),
    }
    for label, (values, colour, dash) in lines.items():
        plot.add_scatter(
            x=rank,
            y=values,
            name=label,
            mode="lines",
            line={"color": colour, "width": 2, "dash": dash},
            hovertemplate=f"rank %{{x}}<br>{label} %{{y:.4g}}<extra></extra>",
        )
    return Figure(
        name="probe_directions",
        title=f"Norm probe against single latents, {codes} codes",
        plot=plot,
        caption="The squared norm of Sae(x) - b is regressed on Sae(x) - b. Inner product of that "
        "probe with each latent's unit decoder row, the mean of the latent's positive codes w, and "
        "E[w³] / E[w²], to which the inner product tends for sparse orthogonal features (all codes "
        f"times the row's norm). Probe and E[w³] / E[w²] are running means over {data['window']} "
        "latents.",
        alt=f"Lines over {data['n_latents']:,} live latents; correlation of the probe's inner "
        f"product with the mean code {_number(data['correlation_mean'])}, with E[w³]/E[w²] "
        f"{_number(data['correlation_cubic'])}.",
        data={"latent": data["latent"], **{label: line[0] for label, line in lines.items()}},
        wide=True,
    )


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


DARK_MATTER_FIGURES: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "error_parts": error_parts,
    "norm_predictors": norm_predictors,
    "ways_to_score": ways_to_score,
    "norm_test": norm_test,
    "error_trace": partial(error_trace, codes="own"),
    "pursuit_error_trace": partial(error_trace, codes="pursuit"),
    "probe_directions": partial(probe_directions, codes="own"),
    "pursuit_probe_directions": partial(probe_directions, codes="pursuit"),
}
