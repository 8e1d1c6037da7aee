"""Test 2 at a cross-section: patch every edit and compare with the ground truth; the trade-off
between how much an edit changes and how well it works.

Source: Makelov, Lange & Nanda, arXiv 2405.08366, section 5.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from saelab.formats.chart import Axis, Chart, ReferenceLine, Series
from saelab.formats.evaluation_result import Table
from saelab.sparse.kernels import combine_latents
from saelab.stats.bootstrap import UNDEFINED, Estimate

from .contenders import SiteDictionaries
from .edits import EditVariant, candidate_edits, supervised_edit
from .predicates import Interpretations, exchanged_codes
from .scores import (
    ABLATED,
    APPROXIMATION_SECTION,
    CLEAN,
    GREY,
    RANDOM,
    UNEDITED,
    WHISKERS,
    ContenderScore,
    Key,
    contenders_of,
    define,
    grouped_bars,
    in_words,
    line,
    numbers_table,
    pivot,
    pooled,
    style_of,
)
from .section import EditedPrompts, Section, label_indices
from .sites import Outcome, PromptSite

CONTROL = define(
    "Test 2: control",
    """
    accuracy (1, higher): Share of prompts at which the edit and the ground truth, which patches
    the counterfactual's own activations, predict the same token of the whole vocabulary.

    answer_accuracy (1, higher): As edit accuracy, with predictions among the task's answer
    tokens only.

    cause (1, higher): Edit accuracy over the prompts whose right answers the edit changes.

    isolation (1, higher): Edit accuracy over the prompts whose right answers the edit leaves as
    they are, because they depend on other attributes.

    counterfactual_answer (1, higher): Share of prompts at which the prediction is a right
    answer of the counterfactual prompt.

    weight_removed (1, lower): Summed weight, at the unedited activation, of the latents that
    were changed, mean over prompts and sites. A latent's weight is its signed share of the
    reconstruction; the weights of an activation sum to 1. Latents that were only added have
    none. Activations without any active latent are left out.

    n_without_weight (activations): Activations without any active latent, where weights are
    undefined.

    distance (1, lower): ‖edited − target‖ / ‖start − target‖, mean over prompts and sites; 0 is
    the counterfactual's own activation, 1 no edit.

    metric_fidelity (1): (M_edit − M_clean) / (M_truth − M_clean), of mean metrics with the
    prompts' own answers.

    target_metric_fidelity (1): As metric fidelity, with the counterfactuals' answers.

    kl (nats, lower): KL(ground truth ‖ edit) over the vocabulary at the last token, mean over
    prompts.
    """,
)

SMALLEST_GAIN = 0.1
"""Accuracy that the supervised edit must gain over no intervention for a trade-off to be defined.
"""
TRADEOFF = define(
    "Test 2: trade-off",
    """
    tradeoff_weight (1, lower): (w − w_sup) / (1 − w_sup), with w the weight removed and w_sup
    that of the supervised edit; 0 is as little as the supervised edit removes, 1 everything.

    tradeoff_accuracy (1, higher): (a − a_none) / (a_sup − a_none) with a the edit accuracy,
    a_none that without intervention, a_sup that of the supervised edit; 1 is as good as the
    supervised edit. Undefined where a_sup − a_none is below 0.1.
    """,
)


TRUTH = "ground truth"
ACCURACY_K = 2
"""Latents per attribute of the edits that the bars of accuracy show, where that was measured."""
TABLED = (
    *("accuracy", "weight_removed", "isolation", "cause"),
    *("counterfactual_answer", "metric_fidelity", "kl", "distance"),
)


class EditTest:
    """One attribute set edited at one cross-section."""

    def __init__(self, section: Section, pairs: EditedPrompts):
        self.section, self.pairs = section, pairs
        both = zip(pairs.prompts, pairs.targets, strict=True)
        self.changed = torch.tensor([set(p.correct) != set(t.correct) for p, t in both])
        """Whether each counterfactual has other right answers than its prompt."""
        self.accuracy: dict[str, float] = {}
        self._best_weight: float | None = None
        self._start = section.material.activations
        self._clean: Outcome | None = None
        self._truth: Outcome | None = None

    def measure_references(self) -> None:
        """No intervention, mean ablation, the random floor and the supervised edits."""
        section, pairs = self.section, self.pairs
        rows = {site: self._start[site][pairs.rows] for site in section.sites}
        edits = [
            supervised_edit(name, dictionaries, section.sites, self._start, pairs)
            for name, dictionaries in {**section.skylines, RANDOM: section.floor}.items()
        ]
        conditions = {CLEAN: {}, ABLATED: section.mean_rows(rows)}
        outcomes = self._run({**conditions, **{edit.name: edit.edited for edit in edits}}, "edits")
        self._clean, self._truth = outcomes[CLEAN], outcomes[TRUTH]
        for name in (TRUTH, *conditions):
            self._score(name, outcomes[name], kind="condition", mode=name)
        for edit in edits:
            kind = "floor" if edit.contender == RANDOM else "skyline"
            self._score_edit(edit, outcomes[edit.name], kind=kind, group=edit.contender)

    def gain(self) -> float:
        """Accuracy of the supervised edit beyond that of no intervention."""
        return self.accuracy[self.section.ceiling] - self.accuracy[CLEAN]

    def measure_candidate(
        self, candidate: SiteDictionaries, interpretations: Mapping[PromptSite, Interpretations]
    ) -> None:
        """Every edit of one candidate, and its codes where the right answers change."""
        section, pairs = self.section, self.pairs
        before = label_indices(section.task, pairs.prompts)
        after = label_indices(section.task, pairs.targets)
        values = {name: (before[name], after[name]) for name in pairs.edit}
        edits = candidate_edits(
            candidate, section.sites, self._start, pairs, interpretations, values, section.config
        )
        outcomes = self._run({edit.name: edit.edited for edit in edits}, candidate.name)
        for edit in edits:
            self._score_edit(edit, outcomes[edit.name], **candidate.labels)
        if bool(self.changed.any()):
            self._measure_codes(candidate, interpretations)

    def _measure_codes(
        self, candidate: SiteDictionaries, interpretations: Mapping[PromptSite, Interpretations]
    ) -> None:
        """Exchange the interpretable codes, and all others, between prompts and counterfactuals."""
        section, pairs = self.section, self.pairs
        limit = section.config.f1_patch
        exchanged: dict[str, dict[PromptSite, Tensor]] = {"sufficient": {}, "complete": {}}
        for site in section.sites:
            rows, target = self._start[site][pairs.rows], pairs.target_activations[site]
            interpretable = interpretations[site].interpretable(limit)
            codes_before, codes_after = candidate.encode(site, rows), candidate.encode(site, target)
            W_dec, offset = candidate.W_dec(site), candidate.offset(site, rows)
            for name, moved in (
                ("sufficient", interpretable),
                ("complete", ~interpretable),
            ):
                codes = exchanged_codes(codes_before, codes_after, moved)
                exchanged[name][site] = offset + combine_latents(codes, W_dec)
        outcomes = self._run(exchanged, f"codes of {candidate.name}")
        assert self._clean is not None
        hits = {
            "sufficient": self._predicts_counterfactual(outcomes["sufficient"]),
            "complete": outcomes["complete"].prediction == self._clean.prediction,
        }
        labels = {**candidate.labels, "edit": pairs.name, "threshold": limit}
        for name, hit in hits.items():
            section.add(candidate.name, f"codes_{name}", section.mean(hit.double()), **labels)
            variant = f"{candidate.name}|codes {name}"
            section.keep_prompts(variant, outcomes[name], edit=pairs.name, rows=pairs.rows)

    def _run(
        self, variants: Mapping[str, Mapping[PromptSite, Tensor]], what: str
    ) -> dict[str, Outcome]:
        pairs = self.pairs
        truth = {site: pairs.target_activations[site] for site in self.section.sites}
        return self.section.run(
            {TRUTH: truth, **variants},
            pairs.prompts,
            f"{pairs.name}, {what}",
            targets=pairs.targets,
            reference=TRUTH,
        )

    def _score_edit(self, edit: EditVariant, outcome: Outcome, **labels: Any) -> None:
        section, ceiling = self.section, self.section.ceiling
        labels |= {"mode": edit.mode, "k": edit.k}
        accuracy = self._score(edit.contender, outcome, **labels).value
        weights = torch.stack(edit.weight)
        removed = section.mean(weights.nanmean(0))
        weight = removed.value
        if edit.contender == ceiling and weight is not None:
            self._best_weight = weight
        # Relative to the supervised edit.
        beyond = relative = None
        if weight is not None and self._best_weight is not None and self._best_weight < 1:
            beyond = (weight - self._best_weight) / (1 - self._best_weight)
        if accuracy is not None and self.gain() >= SMALLEST_GAIN:
            relative = (accuracy - self.accuracy[CLEAN]) / self.gain()
        for measure, value in (
            ("weight_removed", removed),
            ("n_without_weight", int(weights.isnan().sum())),
            ("distance", section.mean(torch.stack(edit.distance).nanmean(0))),
            ("tradeoff_weight", beyond),
            ("tradeoff_accuracy", relative),
        ):
            section.add(edit.contender, measure, value, edit=self.pairs.name, **labels)

    def _score(self, contender: str, outcome: Outcome, **labels: Any) -> Estimate:
        """The measures of predictions and metrics; returns the accuracy."""
        assert self._truth is not None and self._clean is not None
        section, edit = self.section, self.pairs.name
        same = (outcome.prediction == self._truth.prediction).double()
        same_answer = outcome.answer_prediction == self._truth.answer_prediction
        scores = {
            "accuracy": section.mean(same),
            "answer_accuracy": section.mean(same_answer.double()),
            "cause": section.mean(torch.where(self.changed, same, torch.nan)),
            "isolation": section.mean(torch.where(self.changed, torch.nan, same)),
            "counterfactual_answer": section.mean(self._predicts_counterfactual(outcome).double()),
            "metric_fidelity": self._fidelity("metric", outcome),
            "target_metric_fidelity": self._fidelity("target_metric", outcome),
        }
        if outcome.kl is not None:
            scores["kl"] = section.mean(outcome.kl)
        for measure, estimate in scores.items():
            section.add(contender, measure, estimate, edit=edit, **labels)
        accuracy = scores["accuracy"]
        if accuracy.value is not None:
            self.accuracy.setdefault(contender, accuracy.value)
        variant = f"{contender}|{labels.get('mode')}|{labels.get('k')}"
        section.keep_prompts(variant, outcome, edit=edit, rows=self.pairs.rows)
        return accuracy

    def _fidelity(self, what: str, outcome: Outcome) -> Estimate:
        """How much of the way from the clean metric to the ground truth's the edit goes."""
        columns = [getattr(outcome_of, what) for outcome_of in (self._clean, self._truth, outcome)]
        if any(column is None for column in columns):
            return UNDEFINED
        return self.section.bootstrap(len(columns[0])).estimate(
            torch.stack(columns, dim=1),
            lambda m: (m[..., 2] - m[..., 0]) / (m[..., 1] - m[..., 0]),
        )

    def _predicts_counterfactual(self, outcome: Outcome) -> Bool[Tensor, " pairs"]:
        predicted = zip(outcome.prediction.tolist(), self.pairs.targets, strict=True)
        return torch.tensor([token in prompt.correct for token, prompt in predicted])


def edit_tests(section: Section) -> Iterator[EditTest]:
    """A test for every attribute set of the cross-section that has counterfactuals."""
    for edit in section.section.edits:
        pairs = section.material.edits.get(edit)
        if pairs is not None:
            yield EditTest(section, pairs)
        else:
            section.results.notes.append(
                f"{section.section.name}: no prompt has a counterfactual in {'+'.join(edit)}"
            )


def accuracy_charts(scores: Sequence[ContenderScore]) -> list[Chart]:
    """Edit accuracy at the smallest edit: references, and dictionaries with the fewest changes."""
    ks = sorted({score.k for score in scores if score.k is not None})
    shown_k = ACCURACY_K if ACCURACY_K in ks else (ks[0] if ks else None)

    def name(score: ContenderScore) -> str | None:
        if score.kind == "condition":
            return UNEDITED if score.mode == CLEAN else None
        if score.kind in ("floor", "skyline"):
            return score.group
        # Each edit changes at least two latents per attribute, as the supervised one does.
        wanted = (shown_k or 0) * (score.edit.count("+") + 1)
        return f"{score.group} ({score.mode})" if score.k == wanted else None

    shown = [score for score in scores if score.measure == "accuracy" and name(score) is not None]
    values = pooled(
        shown, "accuracy", lambda score: (name(score), f"{score.edit} at {score.section}")
    )
    names = dict.fromkeys(str(name(score)) for score in shown)
    bars = grouped_bars(values, sorted(names, key=lambda name: "(" in name))
    if not bars:
        return []
    return [
        Chart(
            name="edit_accuracy",
            title=f"Test 2: edits of {shown_k} latents per attribute",
            caption="Share of prompts at which the edited run predicts the same token as the run "
            "with the counterfactual's own activations patched. No intervention, the random "
            "decoder and the supervised dictionary (one feature out, one in per attribute) are the "
            "floors and the ceiling; agnostic edits are greedy, aware ones (hatched) chosen by F1. "
            f"{WHISKERS}",
            x=Axis(title="edited attributes and cross-section"),
            y=Axis(title="edit accuracy", low=0, high=1.02),
            series=bars,
            summary=f"Bars of edit accuracy: {in_words(bars)}.",
            height=420,
            wide=True,
            section=APPROXIMATION_SECTION,
        )
    ]


def control_table(scores: Sequence[ContenderScore]) -> Table:
    """Test 2, edit by edit."""
    rows = pivot(
        ((s.contender, s.section, s.edit, s.mode, s.k, s.prompt_seed), s.measure, s.text)
        for s in scores
        if s.edit and s.measure in TABLED
    )
    return numbers_table(
        "Test 2: edits (95 % interval over prompts)",
        (
            *("contender", "cross-section", "edit", "how", "k", "prompt seed"),
            *(name.replace("_", " ") for name in TABLED),
        ),
        [(*key, *map(texts.get, TABLED)) for key, texts in rows.items()],
    )


def tradeoff_charts(scores: Sequence[ContenderScore]) -> list[Chart]:
    """Per cross-section and edit: weight removed against accuracy, along k."""

    def key(score: ContenderScore) -> Key:
        return (score.section, score.edit, score.group, score.mode, score.k)

    clean = [score for score in scores if score.kind == "condition" and score.mode == CLEAN]
    unedited = pooled(clean, "accuracy", lambda score: (score.section, score.edit))
    edits = [score for score in scores if score.kind != "condition"]
    weight = pooled(edits, "weight_removed", key)
    panels: dict[Key, dict[Key, list[tuple[Any, Any, Any]]]] = {}
    for index, values in pooled(edits, "accuracy", key).items():
        x, y, k = weight[index]["value"], values["value"], index[-1]
        if x is not None and y is not None:
            panels.setdefault(index[:2], {}).setdefault(index[2:4], []).append((k, x, y))
    names = contenders_of(scores)
    return [
        Chart(
            name=f"tradeoff_{number}",
            title=f"Test 2: {edit} at {section}, control against what is changed",
            caption="Along each line the number of changed latents k grows. Weight removed is the "
            "signed share of the reconstruction that the changed latents held (1: all of it). "
            "Solid: greedy edits; dashed: latents chosen by F1. Single points: supervised and "
            "random dictionaries.",
            x=Axis(title="weight removed"),
            y=Axis(title="edit accuracy", low=-0.03, high=1.05),
            series=tuple(
                replace(line(group, points, style_of(group, names), dashed=False), mark="dots")
                if mode == "supervised"
                else line(
                    f"{group}, {mode}",
                    points,
                    style_of(group, names),
                    dashed=mode == "aware",
                    labels=[f"k = {k}" for k in sorted(k for k, _, _ in points)],
                )
                for (group, mode), points in panel.items()
            ),
            lines=tuple(
                ReferenceLine(value=values["value"], label=UNEDITED)
                for at, values in unedited.items()
                if at == (section, edit) and values["value"] is not None
            ),
            section=APPROXIMATION_SECTION,
        )
        for number, ((section, edit), panel) in enumerate(panels.items())
    ]


def relative_tradeoff_charts(scores: Sequence[ContenderScore]) -> list[Chart]:
    """Mean trade-off relative to the supervised edit, over the edits where it is defined."""

    def edit_of(score: ContenderScore) -> Key:
        edit = (score.section, score.edit, score.prompt_seed)
        return (*edit, score.contender, score.group, score.mode, score.k)

    judged = [score for score in scores if score.kind in ("task", "text")]
    # Both coordinates of a point must come from the same cross-sections, edits and seeds.
    by_weight, by_accuracy = (
        {edit_of(s) for s in judged if s.measure == measure and s.estimate.value is not None}
        for measure in ("tradeoff_weight", "tradeoff_accuracy")
    )
    kept = [score for score in judged if edit_of(score) in by_weight & by_accuracy]
    x, y = (
        pooled(kept, measure, lambda score: (score.group, score.mode, score.k))
        for measure in ("tradeoff_weight", "tradeoff_accuracy")
    )
    lines: dict[Key, list[tuple[Any, Any, Any]]] = {}
    for index, values in x.items():
        lines.setdefault(index[:2], []).append((index[2], values["value"], y[index]["value"]))
    if not lines:
        return []
    names = contenders_of(scores)
    return [
        Chart(
            name="tradeoff_normalised",
            title="Test 2 relative to the supervised edit",
            caption="Means over the cross-sections and edits where the supervised edit gains at "
            f"least {SMALLEST_GAIN:g} over no intervention; numbers are k. The grey point at "
            "(0, 1) is the supervised edit: it removes w_sup of the weight and reaches accuracy "
            "a_sup. (1, 0) would remove everything and change nothing.",
            x=Axis(title="(w − w_sup) / (1 − w_sup)"),
            y=Axis(title="(a − a_none) / (a_sup − a_none)"),
            series=(
                *(
                    line(
                        f"{group}, {mode}",
                        points,
                        style_of(group, names),
                        dashed=mode == "aware",
                        text=[str(k) for k in sorted(k for k, _, _ in points)],
                    )
                    for (group, mode), points in lines.items()
                ),
                Series(name="supervised edit", mark="dots", x=[0], y=[1], style=GREY),
            ),
            height=420,
            section=APPROXIMATION_SECTION,
        )
    ]
