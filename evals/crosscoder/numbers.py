"""What the numbers of a crosscoder mean, and the charts that show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saelab.formats.chart import Axis, Chart, Series

from ..definitions import Definition, filled_in

NORM_EDGES = [round(0.05 * step, 2) for step in range(21)]
PAPER = "Minder et al., arXiv 2504.02922"
MEANINGS = {
    "All hook points": {
        "fvu": "Fraction of variance unexplained of all hook points side by side, on the {n_rows} "
        "held-out rows.",
        "l0_mean": "Mean number of positive codes of a row.",
        "n_alive": "Latents with a positive code on any row: those that shares are of.",
    },
    "Relative norms": {
        "shared_share": "Share of alive latents whose relative norm is at least {shared_from} at "
        "every hook point. Relative norm: the norm of the decoder row at a hook point over the "
        "hook point's spread (root of its total variance on these rows), over the largest of "
        "these.",
        "dedicated_share": "Share of alive latents whose relative norm is at most "
        "{dedicated_below} at all hook points but one.",
        "neither_share": "Share of alive latents that are neither.",
        "shared_cosine": "Median over shared latents of the least cosine between their decoder "
        "rows at two hook points of one width.",
    },
    "Latent scaling": {
        "dedicated_latents": "Number of dedicated latents.",
        "tested_latents": "Dedicated latents of which ν is defined: another hook point has the "
        "width, and where the latent's norm is largest its decoder explains something.",
        "confirmed_latents": "Tested latents with ν of the error at most {most_nu_error} and ν of "
        "the reconstruction at most {most_nu_reconstruction} at every other hook point "
        f"({PAPER}).",
        "unmasked_share": "Share of tested latents that are not confirmed: what they stand for "
        "lies at other hook points too.",
        "nu_error_median": "Median over tested latents of the largest ν of the error at another "
        "hook point: β there over β at m, the hook point of its largest norm, where β is the "
        "least-squares factor by which codes times the decoder row at m explain the activation "
        f"less the reconstruction without the latent, in units of the spread ({PAPER}).",
        "nu_reconstruction_median": "The same of the reconstruction, less its bias, in place of "
        f"the error ({PAPER}; theirs holds the bias).",
    },
}
OF_HOOK_POINTS = {
    "fvu_at_": "Fraction of variance unexplained at ",
    "dedicated_to_": "Dedicated latents whose norm is largest at ",
    "confirmed_at_": "Confirmed ones of those dedicated to ",
}
COUNTS = ("n_alive", "dedicated_latents", "tested_latents", "confirmed_latents")


def crosscoder_definitions(facts: Mapping[str, Any]) -> list[Definition]:
    """What the numbers mean, those of each hook point included."""
    at_each = {
        prefix + name: f"{text}{name}."
        for name in facts["hook_points"]
        for prefix, text in OF_HOOK_POINTS.items()
    }
    counts = [*COUNTS, *(name for name in at_each if not name.startswith("fvu"))]
    return filled_in(
        {**MEANINGS, "By hook point": at_each},
        facts,
        units={"l0_mean": "latents per row", **dict.fromkeys(counts, "latents")},
        better={name: "lower" for name in ("fvu", *at_each) if name.startswith("fvu")},
    )


def crosscoder_charts(data: Mapping[str, Any]) -> list[Chart]:
    """Relative norms of all latents, and ν of the dedicated ones."""
    charts = [
        Chart(
            name="relative_norms",
            title="Relative decoder norms by hook point",
            x=Axis(title="relative decoder norm (1)", low=0, high=1),
            y=Axis(title="alive latents"),
            series=tuple(
                Series(name=name, x=list(NORM_EDGES), y=counts, mark="histogram")
                for name, counts in data["norms"].items()
            ),
            caption="A latent has 1 where its decoder is longest, a shared one about 1 everywhere.",
        )
    ]
    if any(of["latent"] for of in data["nu"].values()):
        charts.append(
            Chart(
                name="latent_scaling",
                title="What dedicated latents explain elsewhere",
                x=Axis(title="largest ν of the error (1)"),
                y=Axis(title="largest ν of the reconstruction (1)"),
                series=tuple(
                    Series(
                        name=f"dedicated to {name}",
                        x=of["error"],
                        y=of["reconstruction"],
                        mark="dots",
                        labels=[f"latent {latent}" for latent in of["latent"]],
                    )
                    for name, of in data["nu"].items()
                    if of["latent"]
                ),
                caption=f"Confirmed: at most {data['most_nu_error']} to the right and "
                f"{data['most_nu_reconstruction']} upwards.",
            )
        )
    return charts
