"""The HTML report of a "steering" result."""

from __future__ import annotations

from pathlib import Path

from saelab.formats.evaluation_result import EvaluationResult
from saelab.report import Report, figures_of

from .result import QUANTITIES, headline


def write_report(path: Path, result: EvaluationResult) -> Path:
    """Write the report of a result: the numbers that matter, figures, latents, definitions."""
    origin, settings = result.made_from, result.settings
    report = Report(
        f"Steering with {result.dictionary_name}",
        f"{origin['architecture']}, {origin['d_sae']:,} latents, at {origin['hook_point']} of "
        f"{origin['model']}. {settings['n_latents']} live latents added at the last position of "
        f"{settings['n_contexts']} held-out contexts. Dictionary {result.dictionary_hash[:12]}.",
    )
    report.add_heading("In short")
    rows = []
    for quantity in QUANTITIES:
        for strength in settings["strengths"]:
            numbers = headline(result, quantity, strength)
            low, high = numbers["difference_low"], numbers["difference_high"]
            rows.append(
                [
                    f"{quantity}, strength {strength:g}",
                    numbers["mean"],
                    numbers["random_mean"],
                    f"{low:+.3g} to {high:+.3g}",
                    numbers["share_above_random"],
                ]
            )
    report.add_table(
        "Effect on the logits; all numbers and their definitions are at the end",
        [
            "quantity (logits)",
            "mean of latents",
            "mean of random directions",
            "difference (95 % interval)",
            "share of latents above 95 % of random",
        ],
        rows,
    )
    report.add_heading("Figures").add_figures(figures_of(result))
    listed = result.figure_data["most_consistent"]
    columns = ["latent", "density", "size", "consistency", "tokens"]
    report.add_heading("What the most consistent latents promote")
    report.add_table(
        f"Latents of the largest consistency at strength {listed['strength']:g}, and the tokens "
        "they promote",
        columns,
        [
            [str(latent), *rest]
            for latent, *rest in zip(*(listed[name] for name in columns), strict=True)
        ],
    )
    report.add_heading("Every number and its definition")
    report.add_metrics("All strengths", list(result.metrics))
    report.add_heading("Settings").add_table(
        "What decided the numbers",
        ["setting", "value"],
        [[name, str(value)] for name, value in settings.items()],
    )
    return report.write(path)
