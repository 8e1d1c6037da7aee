"""The numbers of unlearning, what they mean, and their chart and tables."""

from __future__ import annotations

from collections.abc import Mapping
from math import log1p
from typing import Any

from saelab.formats.chart import Axis, Chart, ReferenceLine, Series
from saelab.formats.evaluation_result import IN_SHORT, Table

from ..definitions import Definition, filled_in
from ..display import rounded

_CLAMPING = (
    "chosen latents held, wherever they fire, at minus a multiple of their mean code where they "
    "fire on the choosing part, x' = x + (f' - f) W_dec"
)
MEANINGS = {
    "Unlearning": {
        "rise_forget": "Greatest rise of the mean next-token loss on the held-out part of the text "
        f"to be forgotten, with {_CLAMPING} (error kept, BOS and left-out rows untouched), among "
        "settings that raise the retain text's perplexity by at most the share {bound}; 0 where "
        "none raises it within that (after SAEBench, arXiv 2503.09532, and arXiv 2410.19278).",
        "rise_forget_low": "Lower end of its 95 % interval over documents, the setting given.",
        "rise_forget_high": "Upper end of that interval.",
        "rise_retain": "Rise of the mean next-token loss on the held-out part of the text to be "
        "retained, in the same setting.",
        "rise_retain_low": "Lower end of its 95 % interval over documents.",
        "rise_retain_high": "Upper end of that interval.",
        "random_rise_forget": "rise_forget in the same setting with as many random latents of like "
        "density on the forget text, whatever theirs on the retain text: the control.",
        "random_rise_retain": "rise_retain with those random latents.",
        "rise_switch": "Rise of the forget loss with the retain text's mean row in place of every "
        "row of the forget text and of none of the retain text: a switch that knows which text it "
        "reads, the skyline.",
    },
    "The setting": {
        "clamp": "Multiple of the mean code that latents are held at below zero.",
        "retain_density": "Share of the retain text's rows that clamped latents fire on less "
        "often than.",
        "n_clamped": "Latents that are clamped.",
        "n_within": "Settings tried that keep to the bound.",
    },
    "Questions": {
        "accuracy": "Share of the questions whose likeliest choice is the answer in that setting: "
        "the greatest log-likelihood for each byte of the choice behind the question.",
        "accuracy_clean": "The same of the untouched model.",
        "accuracy_random": "The same with the random latents clamped.",
        "accuracy_chance": "The same of guessing.",
        "n_questions": "Questions asked.",
    },
    "The untouched model": {
        "loss_forget": "Mean next-token loss on the held-out part of the forget text.",
        "loss_retain": "Mean next-token loss on the held-out part of the retain text.",
        "n_positions_forget": "Predicted tokens of the forget text.",
        "n_positions_retain": "Predicted tokens of the retain text.",
    },
}
UNITS = {
    name: "nats per token"
    for texts in MEANINGS.values()
    for name in texts
    if name.startswith(("rise_", "random_rise_", "loss_"))
} | {
    "n_clamped": "latents",
    "n_within": "settings",
    "n_questions": "questions",
    "n_positions_forget": "positions",
    "n_positions_retain": "positions",
}


def unlearning_definitions(facts: Mapping[str, Any]) -> list[Definition]:
    """Every number with the facts of a measurement filled in."""
    better: dict[str, Any] = {"rise_forget": "higher", "rise_retain": "lower", "accuracy": "lower"}
    return filled_in(MEANINGS, facts, units=UNITS, better=better)


def unlearning_charts(data: Mapping[str, Any]) -> list[Chart]:
    """Rise of the forget loss against rise of the retain loss, a line of clamps for each choice."""
    settings, best, bound = data["settings"], data["best"], log1p(data["bound"])
    choices = dict.fromkeys((each.retain_density, each.n_latents) for each in settings)
    series = []
    for density, n_latents in choices:
        points = [e for e in settings if (e.retain_density, e.n_latents) == (density, n_latents)]
        points.sort(key=lambda each: each.clamp)
        series.append(
            Series(
                name=f"{n_latents} latents below density {density:g}",
                x=[*rounded([each.rise_retain for each in points])],
                y=[*rounded([each.rise_forget for each in points])],
                mark="lines+dots",
                labels=[f"clamp {each.clamp:g}, {each.n_clamped} latents" for each in points],
            )
        )
    said = (
        f"within the bound of {bound:.3g} nats the forget loss rises by at most "
        f"{best.rise_forget:.3g} nats, where the retain loss rises by {best.rise_retain:.3g}"
        if best
        else f"no setting raises the forget loss within the bound of {bound:.3g} nats"
    )
    return [
        Chart(
            name="forget_against_retain",
            title="What clamping costs on both texts",
            caption="Rise of the mean next-token loss on held-out text. Each line is a choice of "
            "latents, held further and further below zero; the best choice rises steeply. Settings "
            "right of the line raise the retain text's perplexity too much to count.",
            summary=f"Rise of the loss for {len(settings)} settings; {said}.",
            x=Axis(title="rise of the retain loss (nats per token)"),
            y=Axis(title="rise of the forget loss (nats per token)"),
            series=tuple(series),
            lines=(ReferenceLine(value=bound, label="bound", axis="x"),),
        )
    ]


def unlearning_tables(data: Mapping[str, Any]) -> list[Table]:
    """Every setting, and the latents that the best one clamps."""
    settings = sorted(data["settings"], key=lambda each: (not each.within, -each.rise_forget))
    tables = [
        Table(
            title="Settings, the best that keeps to the bound first",
            columns=(
                "retain density below",
                "latents asked for",
                "clamped",
                "clamp",
                "forget rise (nats)",
                "retain rise (nats)",
                "within the bound",
            ),
            rows=tuple(
                (
                    each.retain_density,
                    each.n_latents,
                    each.n_clamped,
                    each.clamp,
                    *rounded([each.rise_forget, each.rise_retain]),
                    "yes" if each.within else "no",
                )
                for each in settings
            ),
            section=IN_SHORT,
        )
    ]
    for kind, title in (("chosen", "Latents clamped"), ("random", "Random latents beside them")):
        if columns := data.get(f"{kind}_latents"):
            latents, *numbers = columns.values()
            rows = zip(latents, *map(rounded, numbers), strict=True)
            tables.append(
                Table(
                    title=title,
                    columns=("latent", "held at", "density, forget text", "density, retain text"),
                    rows=tuple((str(latent), *rest) for latent, *rest in rows),
                    section="Latents",
                )
            )
    return tables
