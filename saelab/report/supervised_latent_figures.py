"""Test 3 of the suite "supervised": what latents mean, what they carry, what is occluded."""

from __future__ import annotations

from typing import Any

from .figure import BLUE, GREEN, ORANGE, PURPLE, Figure, new_plot
from .line_styles import short_name
from .supervised_parts import colour_of, grouped_bars, panels

KIND_COLOURS = {"value": BLUE, "intersection": ORANGE, "either": GREEN, "group": PURPLE}
KIND_WORDS = {
    "value": "one attribute's value",
    "intersection": "values of two attributes",
    "either": "a value in either of several attributes",
    "group": "a group of values",
}


def f1_histogram(data: dict[str, Any]) -> Figure:
    """Test 3: live latents by best F1, stacked by kind of predicate."""
    plot, axes = panels(
        [panel["title"] for panel in data["panels"]], "best F1", "live latents", columns=3
    )
    table: dict[str, list[Any]] = {
        key: [] for key in ("dictionary", "kind of predicate", "F1 from", "latents")
    }
    stated = []
    for place, ((x_name, y_name), panel) in enumerate(zip(axes, data["panels"], strict=True)):
        high = total = 0
        for kind, counts in panel["counts"].items():
            width = 1 / len(counts)
            starts = [bar * width for bar in range(len(counts))]
            plot.add_bar(
                x=[start + width / 2 for start in starts],
                y=counts,
                width=width,
                name=KIND_WORDS[kind],
                legendgroup=kind,
                showlegend=place == 0,
                marker={"color": KIND_COLOURS[kind], "line": {"width": 0}},
                xaxis=x_name,
                yaxis=y_name,
                hovertemplate=f"{KIND_WORDS[kind]}<br>F1 %{{x:.2f}}: %{{y}}<extra></extra>",
            )
            for start, count in zip(starts, counts, strict=True):
                row = (panel["title"], KIND_WORDS[kind], start, count)
                for key, value in zip(table, row, strict=True):
                    table[key].append(value)
            total += sum(counts)
            high += sum(c for s, c in zip(starts, counts, strict=True) if s >= 0.8 - 1e-9)
        stated.append(f"{panel['title']}: {high} of {total} at 0.8 or more")
    plot.update_layout(barmode="stack")
    return Figure(
        name="f1_histogram",
        title="Test 3: what the latents mean",
        plot=plot,
        caption="Live latents of all sites, seeds and cross-sections by the F1 of their best "
        "predicate or union of predicates, coloured by its kind; latents that are on at 90 % of "
        "the prompts or more are left out. One that is on nearly always scores 2p/(1 + p) for a "
        "predicate of probability p, so bars below 0.8 may mean little.",
        alt="Stacked histograms of best F1; " + "; ".join(stated) + ".",
        data=table,
        wide=True,
    )


def f1_sweep(data: dict[str, Any]) -> Figure:
    """Test 3: what is lost when latents below, or above, an F1 are subtracted."""
    names = data["contenders"]
    plot, axes = panels(
        [panel["title"] for panel in data["panels"]], "F1 threshold", "score", columns=3
    )
    words = {
        "kept_sufficiency": "sufficiency, latents below removed",
        "removed_necessity": "necessity, latents above removed",
    }
    shown: set[str] = set()
    table: dict[str, list[Any]] = {
        key: [] for key in ("cross-section", "dictionary", "measure", "F1 threshold", "score")
    }
    for (x_name, y_name), panel in zip(axes, data["panels"], strict=True):
        for line in panel["lines"]:
            name, measure, points = line["series"], line["measure"], line["points"]
            label = f"{short_name(name)}: {words[measure]}"
            plot.add_scatter(
                x=[point["threshold"] for point in points],
                y=[point["value"] for point in points],
                mode="lines+markers",
                name=label,
                legendgroup=label,
                showlegend=label not in shown,
                line={
                    "color": colour_of(name, names),
                    "width": 2,
                    "dash": "dash" if measure == "removed_necessity" else "solid",
                },
                xaxis=x_name,
                yaxis=y_name,
                hovertemplate=f"{label}<br>F1 %{{x:.2f}}: %{{y:.3f}}<extra></extra>",
            )
            shown.add(label)
            for point in points:
                row = (panel["title"], name, words[measure], point["threshold"], point["value"])
                for key, value in zip(table, row, strict=True):
                    table[key].append(value)
    return Figure(
        name="f1_sweep",
        title="Test 3: do the interpretable latents carry the task?",
        plot=plot,
        caption="Solid: sufficiency when all active latents with a best F1 below the threshold "
        "are subtracted from the activations; it stays near 1 as long as interpretable latents "
        "suffice. Dashed: necessity when those at or above it are subtracted; near 1 where they "
        "are needed.",
        alt=f"Lines of two scores against the F1 threshold in {len(data['panels'])} panels.",
        data=table,
        wide=True,
    )


def occlusion(data: dict[str, Any]) -> Figure:
    """For how many values of each attribute there is a latent."""
    names, there = data["contenders"], data["n_values"]
    bars = [
        {**bar, "value": bar["value"] / there[bar["category"]], "count": bar["value"]}
        for bar in data["bars"]
        if there.get(bar["category"])
    ]
    splinters = {(bar["series"], bar["category"]): bar["value"] for bar in data["splinters"]}
    plot = new_plot(
        "attribute", f"share of values with F1 ≥ {data['threshold']:g}", range=[0, 1.02]
    )
    grouped_bars(plot, bars, names, whiskers=False)
    return Figure(
        name="occlusion",
        title="Occlusion: attributes whose values have latents",
        plot=plot,
        caption=f"Share of an attribute's values for which some latent reaches F1 "
        f"{data['threshold']:g} (always-on latents left out), mean over sites and seeds. An "
        "attribute with a low bar beside one with a high bar is occluded. The table has the mean "
        "number of splinters too: latents that are pure in one value but cover less than half of "
        "its prompts.",
        alt="Bars of the share of values found: "
        + "; ".join(f"{b['series']}, {b['category']}: {b['value']:.2f}" for b in bars)
        + ".",
        data={
            "dictionary": [bar["series"] for bar in bars],
            "attribute": [bar["category"] for bar in bars],
            "values found (mean)": [bar["count"] for bar in bars],
            "values": [there[bar["category"]] for bar in bars],
            "splinters (mean)": [splinters.get((b["series"], b["category"])) for b in bars],
        },
    )
