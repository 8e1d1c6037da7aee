"""What the numbers of a description length mean, and the chart of bits against error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saelab.formats.chart import Axis, Chart, ReferenceLine, Series

from ..definitions import Definition, filled_in

PAPER = "Ayonrinde et al., arXiv 2410.11179"
MEANINGS = {
    "At the tolerance": {
        "bits_per_token": "bits_which + bits_strength: mean bits to say the codes of one of the "
        "{n_rows} held-out rows to somebody who has the dictionary, each latent by itself "
        f"({PAPER}). Bins are as wide as they can be with an FVU of at most (1 + {{tolerance}}) "
        "times fvu.",
        "bits_which": "Sum over latents of the entropy of a coin of the latent's density: what "
        "it takes to say which fire, as if they fired independently.",
        "bits_strength": "Sum over latents of density times the entropy of the bin that the "
        "contribution (code times row's scale times norm of the decoder row) falls into when the "
        "latent fires. Entropies are corrected for few values (Miller, 1955).",
        "bin_width": "Width of the bins, the same for the contributions of all latents; each bin "
        "is told by its middle.",
        "fvu": "Fraction of variance unexplained by the codes as they are.",
        "fvu_binned": "The most that is allowed with bins: (1 + {tolerance}) times fvu.",
    },
    "Other ways to say it": {
        "bits_which_sets": "Mean log2 C(alive latents, L0) plus the entropy of L0: which latents "
        "fire, if every set of that size were as likely.",
        "bits_pca": "Bits per row to say {n_baseline_rows} of these rows by their principal "
        "components, all in bins of one width, at the FVU fvu_binned. The components are those of "
        "these very rows, and cost nothing.",
        "bits_channels": "The same of the channels of the hook point itself.",
        "share_of_pca": "bits_per_token over bits_pca: below 1, the dictionary's way of saying an "
        "activation is shorter than that of principal components at equal error.",
        "share_of_channels": "bits_per_token over bits_channels.",
    },
    "What was counted": {
        "l0_mean": "Mean number of positive codes of a row.",
        "n_alive": "Latents with a positive code on any row.",
        "n_rows": "Rows whose codes were counted.",
    },
}
_BITS = [n for texts in MEANINGS.values() for n in texts if n.startswith("bits_")]
_LOWER = ("bits_per_token", "bits_strength", "share_of_pca", "share_of_channels", "fvu")


def description_length_definitions(facts: Mapping[str, Any]) -> list[Definition]:
    """Every number with the facts of a measurement filled in."""
    return filled_in(
        MEANINGS,
        facts,
        units=dict.fromkeys(_BITS, "bits per token")
        | {"bin_width": "activation units", "l0_mean": "latents per row"}
        | {"n_alive": "latents", "n_rows": "rows"},
        better=dict.fromkeys(_LOWER, "lower"),
    )


def description_length_charts(data: Mapping[str, Any]) -> list[Chart]:
    """Bits against the error, of the codes and of the principal components."""
    series = (
        Series(name="codes of the dictionary", x=data["fvu"], y=data["bits"], mark="lines+dots"),
        Series(
            name="principal components",
            x=data["fvu"],
            y=data["bits_pca"],
            mark="lines+dots",
            dashed=True,
        ),
    )
    return [
        Chart(
            name="bits_by_error",
            title="Bits per token against the error",
            caption="Bits to say an activation against the fraction of variance that is left "
            "unexplained, with bins of one width that doubles from point to point. Lower is "
            "shorter, further left nearer. No bins bring the codes below the dotted line, the "
            "dictionary's own error.",
            x=Axis(title="FVU with bins"),
            y=Axis(title="bits per token", low=0),
            series=series,
            lines=(ReferenceLine(value=data["without"], label="without bins", axis="x"),),
        )
    ]
