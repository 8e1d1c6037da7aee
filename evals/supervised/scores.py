"""The suite's numbers: what each measure means, and a score with where it belongs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from saelab.stats.bootstrap import Estimate


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A kind of number."""

    test: str
    """Test it belongs to: approximation, control, interpretation or occlusion."""
    label: str
    """In tables and figures."""
    unit: str
    """"1" for ratios."""
    definition: str
    """How it is computed."""


MEASURES: dict[str, Measure] = {
    "sufficiency": Measure(
        test="approximation",
        label="sufficiency",
        unit="1",
        definition="Mean metric with the reconstructions in place of the activations at all sites "
        "at once, over the mean metric of the clean runs. 1 is best. With an empty dictionary, "
        "which reconstructs the mean, it is the metric under mean ablation over the clean one.",
    ),
    "necessity": Measure(
        test="approximation",
        label="necessity",
        unit="1",
        definition="1 − |M_ablated − M_rest| / |M_ablated − M_clean|, of mean metrics M, where "
        "“rest” puts the mean plus what the reconstruction misses in place of the activations. 1 "
        "is best. Undefined where mean ablation moves the metric by less than a tenth.",
    ),
    "recovered": Measure(
        test="approximation",
        label="recovered",
        unit="1",
        definition="(M_reconstruction − M_ablated) / (M_clean − M_ablated), of mean metrics, with "
        "its sign: above 1 it overshoots, below 0 it is worse than mean ablation. Undefined as "
        "necessity.",
    ),
    "metric": Measure(
        test="approximation",
        label="mean metric",
        unit="metric of the task",
        definition="The task's metric (for most tasks the logit of the right answer minus that of "
        "the wrong one, in logits), mean over prompts, under the named condition.",
    ),
    "fvu": Measure(
        test="approximation",
        label="FVU",
        unit="1",
        definition="Fraction of variance unexplained of the activations at the site, about the "
        "mean of the fitting prompts.",
    ),
    "l0": Measure(
        test="approximation",
        label="L0",
        unit="latents",
        definition="Active latents per activation, mean over prompts and sites.",
    ),
    "attribute_variance": Measure(
        test="approximation",
        label="variance of an attribute",
        unit="1",
        definition="Share of the activations' variance at the site that the supervised features of "
        "the attribute have: their squared norms, weighted by how often the values occur, over the "
        "total variance of the fitting prompts.",
    ),
    "accuracy": Measure(
        test="control",
        label="edit accuracy",
        unit="1",
        definition="Share of prompts at which the edit and the ground truth, which patches the "
        "counterfactual's own activations, predict the same token of the whole vocabulary.",
    ),
    "answer_accuracy": Measure(
        test="control",
        label="edit accuracy among answers",
        unit="1",
        definition="As edit accuracy, with predictions among the task's answer tokens only.",
    ),
    "cause": Measure(
        test="control",
        label="cause",
        unit="1",
        definition="Edit accuracy over the prompts whose right answers the edit changes.",
    ),
    "isolation": Measure(
        test="control",
        label="isolation",
        unit="1",
        definition="Edit accuracy over the prompts whose right answers the edit leaves as they "
        "are, because they depend on other attributes.",
    ),
    "counterfactual_answer": Measure(
        test="control",
        label="counterfactual answer",
        unit="1",
        definition="Share of prompts at which the prediction is a right answer of the "
        "counterfactual prompt.",
    ),
    "weight_removed": Measure(
        test="control",
        label="weight removed",
        unit="1",
        definition="Summed weight, at the unedited activation, of the latents that were changed, "
        "mean over prompts and sites. A latent's weight is its signed share of the reconstruction; "
        "the weights of an activation sum to 1. Latents that were only added have none. "
        "Activations without any active latent are left out.",
    ),
    "n_without_weight": Measure(
        test="control",
        label="activations without weight",
        unit="activations",
        definition="Activations without any active latent, where weights are undefined.",
    ),
    "distance": Measure(
        test="control",
        label="distance left",
        unit="1",
        definition="‖edited − target‖ / ‖start − target‖, mean over prompts and sites; 0 is the "
        "counterfactual's own activation, 1 no edit.",
    ),
    "metric_fidelity": Measure(
        test="control",
        label="metric fidelity",
        unit="1",
        definition="(M_edit − M_clean) / (M_truth − M_clean), of mean metrics with the prompts' "
        "own answers.",
    ),
    "target_metric_fidelity": Measure(
        test="control",
        label="metric fidelity, counterfactual answers",
        unit="1",
        definition="As metric fidelity, with the counterfactuals' answers.",
    ),
    "kl": Measure(
        test="control",
        label="KL",
        unit="nats",
        definition="KL(ground truth ‖ edit) over the vocabulary at the last token, mean over "
        "prompts.",
    ),
    "tradeoff_weight": Measure(
        test="control",
        label="weight beyond the supervised edit",
        unit="1",
        definition="(w − w_sup) / (1 − w_sup), with w the weight removed and w_sup that of the "
        "supervised edit; 0 is as little as the supervised edit removes, 1 everything.",
    ),
    "tradeoff_accuracy": Measure(
        test="control",
        label="accuracy relative to the supervised edit",
        unit="1",
        definition="(a − a_none) / (a_sup − a_none) with a the edit accuracy, a_none that without "
        "intervention, a_sup that of the supervised edit; 1 is as good as the supervised edit. "
        "Undefined where a_sup − a_none is below 0.1.",
    ),
    "n_live": Measure(
        test="interpretation",
        label="live latents",
        unit="latents",
        definition="Latents that are on at one interpreted prompt at least.",
    ),
    "n_always_on": Measure(
        test="interpretation",
        label="always-on latents",
        unit="latents",
        definition="Latents that are on at 90 % of the prompts or more; their F1 says nothing.",
    ),
    "n_interpretable": Measure(
        test="interpretation",
        label="interpretable latents",
        unit="latents",
        definition="Live latents, always-on ones left out, whose best F1 over all predicates and "
        "unions reaches the threshold.",
    ),
    "kept_sufficiency": Measure(
        test="interpretation",
        label="only interpretable latents kept",
        unit="1",
        definition="Sufficiency where the contributions of all active latents with a best F1 below "
        "the threshold are subtracted from the activations.",
    ),
    "removed_necessity": Measure(
        test="interpretation",
        label="interpretable latents removed",
        unit="1",
        definition="Necessity, as in test 1, where the contributions of all active latents with a "
        "best F1 of at least the threshold are subtracted from the activations. 1: as bad as mean "
        "ablation.",
    ),
    "codes_sufficient": Measure(
        test="interpretation",
        label="interpretable codes exchanged",
        unit="1",
        definition="Interpretable codes from the counterfactual, the others from the prompt, "
        "decoded and patched: share of prompts that predict a right answer of the counterfactual.",
    ),
    "codes_complete": Measure(
        test="interpretation",
        label="other codes exchanged",
        unit="1",
        definition="Interpretable codes from the prompt, all others from the counterfactual, "
        "decoded and patched: share of prompts whose prediction stays that of the clean run.",
    ),
    "values_found": Measure(
        test="occlusion",
        label="values found",
        unit="values",
        definition="Values of the attribute for which some latent (always-on ones left out) has an "
        "F1 of at least the threshold.",
    ),
    "n_values": Measure(
        test="occlusion",
        label="values",
        unit="values",
        definition="Values of the attribute that occur in the interpreted prompts.",
    ),
    "n_splinters": Measure(
        test="occlusion",
        label="splinters",
        unit="latents",
        definition="Live latents at least 95 % of whose prompts have one value of the attribute, "
        "and that are on at less than half of the prompts with that value: over-splitting.",
    ),
    "missing_f1": Measure(
        test="occlusion",
        label="1 − best F1",
        unit="1",
        definition="1 − the highest F1 of any latent for any value of the attribute.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Score:
    """A number of one contender, with everything that says what it is of."""

    section: str
    """Cross-section."""
    contender: str
    """Dictionary or condition."""
    measure: str
    """Key of `MEASURES`."""
    estimate: Estimate
    """The number with its interval over prompts."""
    group: str = ""
    """The contender's name without its seed."""
    kind: str = ""
    """`skyline`, `floor`, `task`, `text` (trained on whole texts) or `condition`."""
    edit: str = ""
    """Attributes edited, joined by +."""
    mode: str = ""
    """How an edit is made: `supervised`, `agnostic` or `aware`; or a condition's name."""
    k: int | None = None
    """Latents that may be changed."""
    threshold: float | None = None
    """F1 threshold."""
    attribute: str = ""
    """Attribute, for occlusion."""
    site: str = ""
    """PromptSite, where it is of one."""
    prompt_seed: int = 0
    """Seed of the prompts."""

    @property
    def name(self) -> str:
        """A name for the result file, unique within one run."""
        parts = [self.section, self.contender, self.measure, self.edit, self.mode]
        parts += ["" if self.k is None else f"k{self.k}"]
        parts += ["" if self.threshold is None else f"f1_{self.threshold:g}"]
        parts += [self.attribute, self.site, f"seed{self.prompt_seed}"]
        return "/".join(part for part in parts if part)

    def to_json(self) -> dict[str, Any]:
        """As one row of plain values."""
        row = asdict(self)
        del row["estimate"]
        return row | self.estimate.to_json()
