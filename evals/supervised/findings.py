"""What a run finds out, gathered over cross-sections and seeds of the prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .contenders import Candidate
from .predicates import Interpretations, histogram_by_kind
from .scores import Score
from .section import Section
from .sites import PromptSite


@dataclass(eq=False)
class Findings:
    """Everything that a run found out."""

    ceiling: str
    """Name of the supervised dictionary that is the ceiling."""
    scores: list[Score] = field(default_factory=list)
    prompt_rows: list[dict[str, Any]] = field(default_factory=list)
    latent_rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader should know, in sentences."""
    histograms: list[dict[str, Any]] = field(default_factory=list)
    """Per cross-section, candidate and seed: live latents by F1 and kind of predicate."""
    checks: dict[str, Any] = field(default_factory=dict)
    """Seed of the prompts -> what was checked before anything was judged."""

    def add_section(self, section: Section) -> None:
        """Take in the scores of a cross-section."""
        self.scores += section.scores
        self.prompt_rows += section.prompt_rows
        self.notes += section.notes

    def add_latents(
        self, section: Section, candidate: Candidate, found: dict[PromptSite, Interpretations]
    ) -> None:
        """Take in what a candidate's latents mean."""
        for site, one in found.items():
            self.histograms.append(
                {"group": candidate.group, "site": str(site), "counts": histogram_by_kind(one)}
            )
            for latent in one.live().nonzero().flatten().tolist():
                self.latent_rows.append(
                    {
                        "seed": section.material.seed,
                        "section": section.section.name,
                        "dictionary": candidate.name,
                        "site": str(site),
                        "latent": latent,
                        "on_rate": float(one.on_rate[latent]),
                        "f1": float(one.f1[latent]),
                        "kind": one.families[int(one.family[latent])].kind,
                        "interpretation": one.words[latent],
                    }
                )
