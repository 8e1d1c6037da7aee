"""Figures of what the parts of an error do: downstream, linear maps, planted noise, components."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .figure import BLUE, GREEN, ORANGE, PURPLE, Figure, new_plot

PART_COLOURS = {"linear": BLUE, "nonlinear": ORANGE, "error": GREEN}
PART_LABELS = {"linear": "linear error", "nonlinear": "nonlinear error", "error": "whole error"}
MEASURES = {
    "recovered_ce": "loss<br>taken back",
    "recovered_r_squared": "R²<br>taken back",
    "norm_share": "norm, of<br>mean norms",
    "norm_share_per_row": "norm,<br>per row",
    "random": "control: loss,<br>random vector",
    "shuffled": "control: loss,<br>other row's",
}
CONDITION_LABELS = {
    "identity": "both parts added",
    "sae": "reconstruction",
    "sae_linear": "+ linear error",
    "sae_nonlinear": "+ nonlinear error",
    "random_error": "activation + random, error's norm",
    "sae_linear_random": "+ random, linear's norm",
    "sae_linear_shuffled": "+ another row's linear error",
    "sae_nonlinear_random": "+ random, nonlinear's norm",
    "sae_nonlinear_shuffled": "+ another row's nonlinear error",
}


def downstream_recovery(data: dict[str, Any]) -> Figure:
    """What adding each part of the error takes back, by loss, R² and norm, with controls."""
    names = [MEASURES[name] for name in data["measure"]]
    plot = new_plot("", "share of the error's effect (%)", x_axis={"tickangle": 0})
    for part in ("linear", "nonlinear"):
        plot.add_bar(
            x=names,
            y=data[part],
            name=PART_LABELS[part],
            marker={"color": PART_COLOURS[part]},
            text=["" if value is None else f"{value:.0f}" for value in data[part]],
            textposition="outside",
            cliponaxis=False,
            hovertemplate=f"{PART_LABELS[part]} %{{y:.1f}} %<extra></extra>",
        )
    _group(plot)
    plain = [name.replace("<br>", " ") for name in names]
    stated = "; ".join(
        f"{name}: linear {_percent(one)}, nonlinear {_percent(other)}"
        for name, one, other in zip(plain, data["linear"], data["nonlinear"], strict=True)
    )
    return Figure(
        name="downstream_recovery",
        title="What each part of the error takes back",
        plot=plot,
        caption="Adding one part of the error to the reconstruction, spliced into the model over "
        f"{data['n_positions']:,} predicted positions. Loss taken back: 100 (CE_sae − CE_part) / "
        "(CE_sae − CE_original). R² taken back: the same with pooled R². Norm: the part's norm "
        "over the error's, as a ratio of means and as a mean of ratios. Controls add a vector of "
        "the part's norm in a random direction, or the part of another row. The two parts' shares "
        "of the loss need not add up to 100.",
        alt=f"Grouped bars: {stated}.",
        data={"measure": plain, "linear (%)": data["linear"], "nonlinear (%)": data["nonlinear"]},
        wide=True,
    )


def downstream_losses(data: dict[str, Any]) -> Figure:
    """Loss added and KL of every replacement."""
    names = [CONDITION_LABELS[name] for name in data["condition"]]
    plot = new_plot("nats per token", "", autorange="reversed")
    columns = (("added_loss", "loss added", BLUE), ("kl", "KL from the original", ORANGE))
    for key, label, colour in columns:
        plot.add_bar(
            y=names,
            x=data[key],
            name=label,
            orientation="h",
            marker={"color": colour},
            hovertemplate=f"{label} %{{x:.4f}}<extra></extra>",
        )
    _group(plot)
    plot.update_layout(height=460)
    stated = "; ".join(
        f"{name}: loss +{added:.4f}, KL {kl:.4f}"
        for name, added, kl in zip(names, data["added_loss"], data["kl"], strict=True)
    )
    return Figure(
        name="downstream_losses",
        title="What each replacement costs the model",
        plot=plot,
        caption=f"Mean next-token loss above the untouched model's {data['original']:.4f} nats, "
        f"and mean KL(original || spliced), over {data['n_positions']:,} predicted positions. "
        "'Both parts added' is the activation again and costs rounding only.",
        alt=f"Bars in nats per token: {stated}.",
        data={
            "in place of the activation": names,
            "loss added (nats per token)": data["added_loss"],
            "KL (nats per token)": data["kl"],
        },
        wide=True,
    )


def linear_maps(data: dict[str, Any]) -> Figure:
    """R² of the error and its parts from linear maps of dictionaries' outputs."""
    plot = new_plot("output that the map reads", "R² on held-out contexts")
    for target in ("error", "linear", "nonlinear"):
        plot.add_bar(
            x=data["source"],
            y=data[target],
            name=PART_LABELS[target],
            marker={"color": PART_COLOURS[target]},
            hovertemplate=f"{PART_LABELS[target]} %{{y:.3f}}<extra></extra>",
        )
    _group(plot)
    stated = "; ".join(
        f"{source}: error {_ratio(a)}, linear {_ratio(b)}, nonlinear {_ratio(c)}"
        for source, a, b, c in zip(
            data["source"], data["error"], data["linear"], data["nonlinear"], strict=True
        )
    )
    return Figure(
        name="linear_maps",
        title="The error from other dictionaries' outputs",
        plot=plot,
        caption="Least squares with a constant from dictionaries' reconstructions to the error and "
        f"its parts, fitted on {data['n_train_rows']:,} rows and scored on "
        f"{data['n_test_rows']:,} rows of other contexts; R² is the unweighted mean over "
        "dimensions that vary. The dictionary's own output is a control. In the table: FVU of the "
        f"reconstruction once the predicted error is added ({data['fvu']:.4f} without).",
        alt=f"Grouped bars of R²: {stated}.",
        data={
            "output": data["source"],
            **{f"R², {PART_LABELS[part]}": data[part] for part in PART_LABELS},
            **{f"pooled R², {PART_LABELS[part]}": data[f"{part}_pooled"] for part in PART_LABELS},
            "FVU with the correction": data["fvu_corrected"],
        },
        wide=True,
    )


def synthetic_grid(data: dict[str, Any]) -> Figure:
    """Both estimates against both planted noises."""
    plot = new_plot(
        "planted noise (standard deviations of the rows)", "estimate (share of variance)"
    )
    lines = (
        ("dense", "introduced", "linear", "linear share by dense noise", BLUE),
        ("dense", "introduced", "fvu_nonlinear", "nonlinear share by dense noise", GREEN),
        ("introduced", "dense", "linear", "linear share by introduced noise", PURPLE),
        ("introduced", "dense", "fvu_nonlinear", "nonlinear share by introduced noise", ORANGE),
    )
    for along, fixed, estimate, label, colour in lines:
        chosen = [place for place, level in enumerate(data[fixed]) if level == 0]
        plot.add_scatter(
            x=[data[along][place] for place in chosen],
            y=[data[estimate][place] for place in chosen],
            name=label,
            mode="lines+markers",
            line={"color": colour, "dash": "solid" if along == "dense" else "dash"},
            hovertemplate=f"{label} %{{y:.3f}} at %{{x}}<extra></extra>",
        )
    _legend_beside(plot)
    stated = ", ".join(
        f"{noise} noise with the {estimate} share {_ratio(value)}"
        for noise, estimate, value in data["correlations"]
    )
    return Figure(
        name="synthetic_grid",
        title="Planted noise and what the split finds",
        plot=plot,
        caption="Noise planted on the dictionary's own reconstructions: dense noise on the "
        "activation, introduced noise on the reconstruction. Linear share: FVU − FVU_nonlinear; "
        "nonlinear share: FVU_nonlinear; fitted on "
        f"{data['n_train_rows']:,} rows, scored on {data['n_test_rows']:,} others. Each line has "
        "the other noise at zero; the table holds the whole grid. Pearson correlations over the "
        f"5 × 5 grid: {stated}.",
        alt=f"Lines of estimates against planted noise. Correlations over the grid: {stated}.",
        data=_cells(data),
        wide=True,
    )


def synthetic_ablation(data: dict[str, Any]) -> Figure:
    """FVU and its nonlinear part as latents are left out."""
    plot = new_plot("latents left out (%)", "share of variance")
    cells = list(dict.fromkeys(zip(data["dense"], data["introduced"], strict=True)))
    colours = (BLUE, ORANGE, GREEN, PURPLE, "#808080")
    for place, (dense, introduced) in enumerate(cells):
        chosen = [
            row
            for row, cell in enumerate(zip(data["dense"], data["introduced"], strict=True))
            if cell == (dense, introduced)
        ]
        for key, label, dash in (("fvu", "FVU", "solid"), ("fvu_nonlinear", "nonlinear", "dash")):
            name = f"{label}, dense {dense:g}, introduced {introduced:g}"
            plot.add_scatter(
                x=[100 * data["ablated"][row] for row in chosen],
                y=[data[key][row] for row in chosen],
                name=name,
                mode="lines+markers",
                line={"color": colours[place % len(colours)], "dash": dash},
                hovertemplate=f"{name} %{{y:.3f}}<extra></extra>",
            )
    _legend_beside(plot)
    last = max(data["ablated"])
    stated = "; ".join(
        f"dense {dense:g} and introduced {introduced:g}: FVU {fvu:.3f}, nonlinear {nonlinear:.3f}"
        for dense, introduced, ablated, fvu, nonlinear in zip(
            data["dense"],
            data["introduced"],
            data["ablated"],
            data["fvu"],
            data["fvu_nonlinear"],
            strict=True,
        )
        if ablated == last
    )
    return Figure(
        name="synthetic_ablation",
        title="Planted noise while latents are left out",
        plot=plot,
        caption="Latents of the lowest mean code are left out of the reconstruction first. FVU "
        "(solid) should rise; FVU_nonlinear (dashed) should stay where the planted noise puts it. "
        "Noise in standard deviations of the rows.",
        alt=f"Lines over the share of latents left out. At {last:.0%}: {stated}.",
        data=_cells(data),
        wide=True,
    )


def error_components(data: dict[str, Any]) -> Figure:
    """FVU of dictionaries trained on the parts of an error, by settings."""
    plot = new_plot("settings of the training", "FVU of the component, held out")
    for part in ("linear", "nonlinear", "error"):
        chosen = [place for place, name in enumerate(data["component"]) if name == part]
        if not chosen:
            continue
        plot.add_bar(
            x=[data["settings"][place] for place in chosen],
            y=[data["fvu"][place] for place in chosen],
            name=PART_LABELS[part],
            marker={"color": PART_COLOURS[part]},
            text=[f"{data['fvu'][place]:.3f}" for place in chosen],
            textposition="outside",
            cliponaxis=False,
            hovertemplate=f"{PART_LABELS[part]} %{{y:.4f}}<extra></extra>",
        )
    _group(plot)
    shares = ", ".join(
        f"{PART_LABELS[part]} {share:.3f}" for part, share in data["variance_share"].items()
    )
    stated = "; ".join(
        f"{PART_LABELS[part]}, {settings}: {fvu:.3f}"
        for part, settings, fvu in zip(
            data["component"], data["settings"], data["fvu"], strict=True
        )
    )
    return Figure(
        name="error_components",
        title="Dictionaries trained on the parts of the error",
        plot=plot,
        caption="FVU of dictionaries trained by the ordinary loop on one component of this "
        f"dictionary's error, each on {data['n_rows']:,} held-out rows of its own component. "
        "Compare bars of equal settings. Share of the activations' variance: "
        f"{shares}.",
        alt=f"Bars of FVU: {stated}.",
        data={
            "component": data["component"],
            "settings": data["settings"],
            "FVU": data["fvu"],
            "L0": data["l0"],
            "share of latents never active": data["dead"],
        },
    )


DARK_MATTER_EFFECT_FIGURES: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "downstream_recovery": downstream_recovery,
    "downstream_losses": downstream_losses,
    "linear_maps": linear_maps,
    "error_components": error_components,
    "synthetic_grid": synthetic_grid,
    "synthetic_ablation": synthetic_ablation,
}
"""By the name in a result's figure data, in reading order."""


def _cells(data: dict[str, Any]) -> dict[str, list[Any]]:
    return {
        "dense noise": data["dense"],
        "introduced noise": data["introduced"],
        "left out": data["ablated"],
        "FVU": data["fvu"],
        "linear share": data["linear"],
        "nonlinear share": data["fvu_nonlinear"],
    }


def _group(plot: Any) -> None:
    plot.update_layout(barmode="group", bargap=0.25)
    _legend(plot)


def _legend(plot: Any) -> None:
    plot.update_layout(
        showlegend=True, legend={"orientation": "h", "y": 1.15, "x": 0}, margin_t=56, height=400
    )


def _legend_beside(plot: Any) -> None:
    plot.update_layout(showlegend=True, legend={"x": 1.02, "y": 1}, height=400)


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.0f} %"


def _ratio(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
