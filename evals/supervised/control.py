"""Test 2 at a cross-section: patch every edit and compare with the ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from saelab.formats.chart import Axis, Chart
from saelab.formats.evaluation_result import Table
from saelab.sparse.kernels import combine_latents
from saelab.stats.bootstrap import UNDEFINED, Estimate

from ..suite import Definition
from .contenders import Candidate
from .edits import EditVariant, candidate_edits, supervised_edit
from .predicates import Interpretations, exchanged_codes
from .scores import (
    ABLATED,
    APPROXIMATION_SECTION,
    CLEAN,
    RANDOM,
    UNEDITED,
    WHISKERS,
    Key,
    Score,
    grouped_bars,
    in_words,
    pooled,
)
from .section import EditedPrompts, Section, label_indices, mean_rows
from .sites import Outcome, PromptSite
from .tradeoff import relative_tradeoff

CONTROL_GROUP = "Test 2: control"
CONTROL = (
    Definition(
        name="accuracy",
        unit="1",
        better="higher",
        group=CONTROL_GROUP,
        text="Share of prompts at which the edit and the ground truth, which patches the "
        "counterfactual's own activations, predict the same token of the whole vocabulary.",
    ),
    Definition(
        name="answer_accuracy",
        unit="1",
        better="higher",
        group=CONTROL_GROUP,
        text="As edit accuracy, with predictions among the task's answer tokens only.",
    ),
    Definition(
        name="cause",
        unit="1",
        better="higher",
        group=CONTROL_GROUP,
        text="Edit accuracy over the prompts whose right answers the edit changes.",
    ),
    Definition(
        name="isolation",
        unit="1",
        better="higher",
        group=CONTROL_GROUP,
        text="Edit accuracy over the prompts whose right answers the edit leaves as they "
        "are, because they depend on other attributes.",
    ),
    Definition(
        name="counterfactual_answer",
        unit="1",
        better="higher",
        group=CONTROL_GROUP,
        text="Share of prompts at which the prediction is a right answer of the "
        "counterfactual prompt.",
    ),
    Definition(
        name="weight_removed",
        unit="1",
        better="lower",
        group=CONTROL_GROUP,
        text="Summed weight, at the unedited activation, of the latents that were changed, "
        "mean over prompts and sites. A latent's weight is its signed share of the reconstruction; "
        "the weights of an activation sum to 1. Latents that were only added have none. "
        "Activations without any active latent are left out.",
    ),
    Definition(
        name="n_without_weight",
        unit="activations",
        group=CONTROL_GROUP,
        text="Activations without any active latent, where weights are undefined.",
    ),
    Definition(
        name="distance",
        unit="1",
        better="lower",
        group=CONTROL_GROUP,
        text="‖edited − target‖ / ‖start − target‖, mean over prompts and sites; 0 is the "
        "counterfactual's own activation, 1 no edit.",
    ),
    Definition(
        name="metric_fidelity",
        unit="1",
        group=CONTROL_GROUP,
        text="(M_edit − M_clean) / (M_truth − M_clean), of mean metrics with the prompts' "
        "own answers.",
    ),
    Definition(
        name="target_metric_fidelity",
        unit="1",
        group=CONTROL_GROUP,
        text="As metric fidelity, with the counterfactuals' answers.",
    ),
    Definition(
        name="kl",
        unit="nats",
        better="lower",
        group=CONTROL_GROUP,
        text="KL(ground truth ‖ edit) over the vocabulary at the last token, mean over prompts.",
    ),
)

TRUTH = "ground truth"
ACCURACY_K = 2
"""Latents per attribute of the edits that the bars of accuracy show, where that was measured."""
TABLED = (
    *("accuracy", "weight_removed", "isolation", "cause"),
    *("counterfactual_answer", "metric_fidelity", "kl", "distance"),
)


class EditTest:
    """One attribute set edited at one cross-section.

    Args:
        section: the cross-section.
        pairs: prompts with counterfactuals in these attributes.
    """

    def __init__(self, section: Section, pairs: EditedPrompts):
        self.section, self.pairs = section, pairs
        self.bootstrap = section.bootstrap(len(pairs.prompts))
        self.changed = answers_change(pairs)
        self.accuracy: dict[str, float] = {}
        self.weight: dict[str, float] = {}
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
        conditions = {CLEAN: {}, ABLATED: mean_rows(section, rows)}
        outcomes = self._run({**conditions, **{edit.name: edit.edited for edit in edits}}, "edits")
        self._clean, self._truth = outcomes[CLEAN], outcomes[TRUTH]
        for name in (TRUTH, *conditions):
            self._score(name, outcomes[name], {"kind": "condition", "mode": name})
        for edit in edits:
            kind = "floor" if edit.contender == RANDOM else "skyline"
            self._score_edit(edit, outcomes[edit.name], kind, edit.contender)

    def gain(self) -> float:
        """Accuracy of the supervised edit beyond that of no intervention."""
        return self.accuracy[self.section.ceiling] - self.accuracy[CLEAN]

    def measure_candidate(
        self, candidate: Candidate, interpretations: Mapping[PromptSite, Interpretations]
    ) -> None:
        """Every edit of one candidate."""
        section, pairs = self.section, self.pairs
        before = label_indices(section.task, pairs.prompts)
        after = label_indices(section.task, pairs.targets)
        labels = {name: (before[name], after[name]) for name in pairs.edit}
        edits = candidate_edits(
            candidate, section.sites, self._start, pairs, interpretations, labels, section.config
        )
        outcomes = self._run({edit.name: edit.edited for edit in edits}, candidate.name)
        kind = candidate.kind
        for edit in edits:
            self._score_edit(edit, outcomes[edit.name], kind, candidate.group)

    def measure_codes(
        self, candidate: Candidate, interpretations: Mapping[PromptSite, Interpretations]
    ) -> None:
        """Exchange the interpretable codes, and all others, between prompts and counterfactuals."""
        section, pairs = self.section, self.pairs
        limit = section.config.f1_patch
        exchanged: dict[str, dict[PromptSite, Tensor]] = {"sufficient": {}, "complete": {}}
        for site in section.sites:
            rows, target = self._start[site][pairs.rows], pairs.target_activations[site]
            meant = interpretations[site].interpretable(limit)
            codes_before, codes_after = candidate.encode(site, rows), candidate.encode(site, target)
            W_dec, offset = candidate.W_dec(site), candidate.offset(site, rows)
            for name, moved in (("sufficient", meant), ("complete", ~meant)):
                codes = exchanged_codes(codes_before, codes_after, moved)
                exchanged[name][site] = offset + combine_latents(codes, W_dec)
        outcomes = self._run(exchanged, f"codes of {candidate.name}")
        owner = {
            "kind": candidate.kind,
            "group": candidate.group,
            "edit": pairs.name,
            "threshold": limit,
        }
        wanted = self._predicts_counterfactual(outcomes["sufficient"])
        assert self._clean is not None
        kept = outcomes["complete"].prediction == self._clean.prediction
        for name, hits in (("codes_sufficient", wanted), ("codes_complete", kept)):
            self.section.add(candidate.name, name, self._share(hits), **owner)
        for name, outcome in outcomes.items():
            if name != TRUTH:
                label = f"{candidate.name}|codes {name}"
                section.keep_prompts(pairs.rows, pairs.name, label, outcome)

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

    def _score_edit(self, edit: EditVariant, outcome: Outcome, kind: str, group: str) -> None:
        owner = {"kind": kind, "group": group, "mode": edit.mode, "k": edit.k}
        accuracy = self._score(edit.contender, outcome, owner)
        where = {"edit": self.pairs.name, **owner}
        weight = torch.stack(edit.weight)
        estimate = self.bootstrap.estimate(weight.nanmean(0).unsqueeze(1))
        add = self.section.add
        add(edit.contender, "weight_removed", estimate, **where)
        add(edit.contender, "n_without_weight", int(weight.isnan().sum()), **where)
        distance = torch.stack(edit.distance).nanmean(0).unsqueeze(1)
        add(edit.contender, "distance", self.bootstrap.estimate(distance), **where)
        if edit.contender == self.section.ceiling and estimate.value is not None:
            self.weight[edit.contender] = estimate.value
        beyond, relative = relative_tradeoff(
            accuracy.value,
            estimate.value,
            unedited_accuracy=self.accuracy[CLEAN],
            best_accuracy=self.accuracy[self.section.ceiling],
            best_weight=self.weight.get(self.section.ceiling),
        )
        add(edit.contender, "tradeoff_weight", beyond, **where)
        add(edit.contender, "tradeoff_accuracy", relative, **where)

    def _score(self, contender: str, outcome: Outcome, owner: Mapping[str, object]) -> Estimate:
        """The measures of predictions and metrics; returns the accuracy."""
        assert self._truth is not None and self._clean is not None
        where = {"edit": self.pairs.name, **owner}
        same = outcome.prediction == self._truth.prediction
        among = outcome.answer_prediction == self._truth.answer_prediction
        accuracy = self._share(same)
        found: dict[str, Estimate] = {
            "accuracy": accuracy,
            "answer_accuracy": self._share(among),
            "cause": self._share(same, self.changed),
            "isolation": self._share(same, ~self.changed),
            "counterfactual_answer": self._share(self._predicts_counterfactual(outcome)),
            "metric_fidelity": self._fidelity("metric", outcome),
            "target_metric_fidelity": self._fidelity("target_metric", outcome),
        }
        if outcome.kl is not None:
            found["kl"] = self.bootstrap.estimate(outcome.kl.unsqueeze(1))
        for measure, estimate in found.items():
            self.section.add(contender, measure, estimate, **where)
        if accuracy.value is not None:
            self.accuracy.setdefault(contender, accuracy.value)
        variant = f"{contender}|{owner.get('mode')}|{owner.get('k')}"
        self.section.keep_prompts(self.pairs.rows, self.pairs.name, variant, outcome)
        return accuracy

    def _share(self, hits: Bool[Tensor, " pairs"], among: Tensor | None = None) -> Estimate:
        column = hits.double()
        if among is not None:
            if not bool(among.any()):
                return UNDEFINED
            column = torch.where(among, column, torch.nan)
        return self.bootstrap.estimate(column.unsqueeze(1))

    def _fidelity(self, what: str, outcome: Outcome) -> Estimate:
        """How much of the way from the clean metric to the ground truth's the edit goes."""
        columns = [getattr(outcome_of, what) for outcome_of in (self._clean, self._truth, outcome)]
        if any(column is None for column in columns):
            return UNDEFINED
        return self.bootstrap.estimate(
            torch.stack(columns, dim=1),
            lambda m: (m[..., 2] - m[..., 0]) / (m[..., 1] - m[..., 0]),
        )

    def _predicts_counterfactual(self, outcome: Outcome) -> Bool[Tensor, " pairs"]:
        predicted = outcome.prediction.tolist()
        return torch.tensor(
            [
                token in prompt.correct
                for token, prompt in zip(predicted, self.pairs.targets, strict=True)
            ]
        )


def answers_change(pairs: EditedPrompts) -> Bool[Tensor, " pairs"]:
    """Whether each counterfactual has other right answers than its prompt."""
    both = zip(pairs.prompts, pairs.targets, strict=True)
    return torch.tensor([set(prompt.correct) != set(target.correct) for prompt, target in both])


def edit_tests(section: Section) -> list[EditTest]:
    """A test for every attribute set of the cross-section that has counterfactuals."""
    found = []
    for edit in section.section.edits:
        pairs = section.material.edits.get(edit)
        if pairs is None:
            section.notes.append(
                f"{section.section.name}: no prompt has a counterfactual in {'+'.join(edit)}"
            )
            continue
        found.append(EditTest(section, pairs))
    return found


def measure_edit(
    test: EditTest, candidate: Candidate, interpretations: Mapping[PromptSite, Interpretations]
) -> None:
    """Test 2 of a candidate in one edit, and its codes where the answers change."""
    test.measure_candidate(candidate, interpretations)
    if bool(test.changed.any()):
        test.measure_codes(candidate, interpretations)


def accuracy_charts(scores: Sequence[Score]) -> list[Chart]:
    """Edit accuracy at the smallest edit: references, and dictionaries with the fewest changes."""
    ks = sorted({score.k for score in scores if score.k is not None})
    shown_k = ACCURACY_K if ACCURACY_K in ks else (ks[0] if ks else None)

    def name(score: Score) -> str | None:
        if score.kind == "condition":
            return UNEDITED if score.mode == CLEAN else None
        if score.kind in ("floor", "skyline"):
            return score.group
        # Each edit changes at least two latents per attribute, as the supervised one does.
        wanted = (shown_k or 0) * (score.edit.count("+") + 1)
        return f"{score.group} ({score.mode})" if score.k == wanted else None

    kept = [score for score in scores if score.measure == "accuracy" and name(score) is not None]
    found = pooled(
        kept, "accuracy", lambda score: (name(score), f"{score.edit} at {score.section}")
    )
    names = list(dict.fromkeys(str(name(score)) for score in kept))
    bars = grouped_bars(found, sorted(names, key=lambda name: "(" in name))
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


def control_table(scores: Sequence[Score]) -> Table:
    """Test 2, edit by edit."""
    rows: dict[Key, dict[str, str]] = {}
    for score in scores:
        if score.edit and score.measure in TABLED:
            key = (score.contender, score.section, score.edit, score.mode, score.k)
            rows.setdefault((*key, score.prompt_seed), {})[score.measure] = score.text
    return Table(
        title="Test 2: edits (95 % interval over prompts)",
        columns=(
            *("contender", "cross-section", "edit", "how", "k", "prompt seed"),
            *(name.replace("_", " ") for name in TABLED),
        ),
        rows=tuple(
            (*("–" if part is None else part for part in key), *(f.get(n, "–") for n in TABLED))
            for key, f in rows.items()
        ),
        section="Numbers",
    )
