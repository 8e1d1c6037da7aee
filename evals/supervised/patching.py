"""Runs of the model with activations replaced at many sites at once, and what they answer.

Every edited activation is computed beforehand, from the clean run; one forward pass then has all of
them. Editing while the pass goes on would apply an edit twice, because the first edit reaches the
later sites. Prompts are batched so that what no patch can change is computed once for all variants.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.model.language_model import LanguageModel
from saelab.model.patched_runs import PatchedRuns
from saelab.progress import progress_bar

from .sites import Site, head_slice
from .tasks.interface import Prompt, Task, most_likely_of, padded_tokens, positions_of


@dataclass(frozen=True)
class PreparedBatch:
    """Prompts that are ready to be run many times with sites patched.

    Attributes:
        rows: which of the prompts that were given.
        prompts: these prompts.
    """

    rows: Int[Tensor, " batch"]
    prompts: list[Prompt]
    model: LanguageModel
    runs: PatchedRuns

    @torch.no_grad()
    def logits(
        self, edits: Mapping[Site, Float[Tensor, "batch _"]]
    ) -> Float[Tensor, "batch d_vocab"]:
        """Float32 logits at the end of each prompt, with every edit in one pass.

        Args:
            edits: site -> what takes the place of its activation; none: the clean run.
        """
        by_hook: dict[str, list[tuple[Site, Tensor]]] = {}
        for site, values in edits.items():
            by_hook.setdefault(site.hook_point, []).append((site, values))

        def changed(x: Tensor, placed: list[tuple[Site, Tensor]]) -> Tensor:
            x = x.clone()
            rows = torch.arange(len(x), device=x.device)
            for site, values in placed:
                places = positions_of(self.prompts, site.position) - self.runs.first_position
                part = head_slice(self.model, site)
                view = x[..., part]
                view[rows, places.to(x.device)] = values.to(dtype=x.dtype, device=x.device)
            return x

        changes = {
            hook: (lambda x, placed=placed: changed(x, placed)) for hook, placed in by_hook.items()
        }
        return self.runs.logits(changes).float()


@torch.no_grad()
def prepared_batches(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    sites: Sequence[Site],
    *,
    batch_prompts: int = 64,
) -> Iterator[PreparedBatch]:
    """Batches of prompts for runs with some of the sites patched.

    Raises:
        ModelError: a site at a hook point that cannot be patched.
        ConfigError: a position that the prompts do not have.
    """
    first = [positions_of(prompts, site.position) for site in sites]
    starts = torch.stack(first).amin(0) if first else torch.zeros(len(prompts), dtype=torch.int64)
    lengths = [len(prompt.tokens) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda row: (int(starts[row]), lengths[row]))
    hooks = sorted({site.hook_point for site in sites})
    for begin in range(0, len(order), batch_prompts):
        rows = torch.tensor(order[begin : begin + batch_prompts])
        batch = [prompts[row] for row in rows.tolist()]
        runs = model.prepare_patches(
            padded_tokens(batch), positions_of(batch, "end"), hooks, int(starts[rows].min())
        )
        yield PreparedBatch(rows, batch, model, runs)


@dataclass(frozen=True)
class Outcome:
    """What the model answers in one variant, in the order of the prompts.

    Attributes:
        metric: the task's metric with each prompt's own answers.
        prediction: the predicted token over the whole vocabulary.
        answer_prediction: the token with the largest logit among the task's answers.
        target_metric: the metric with the answers of the counterfactual; None without one.
        kl: KL(reference ‖ variant) over the vocabulary, in nats; None without a reference.
    """

    metric: Float[Tensor, " prompts"]
    prediction: Int[Tensor, " prompts"]
    answer_prediction: Int[Tensor, " prompts"]
    target_metric: Float[Tensor, " prompts"] | None = None
    kl: Float[Tensor, " prompts"] | None = None


def patched_outcomes(
    model: LanguageModel,
    task: Task,
    prompts: Sequence[Prompt],
    variants: Mapping[str, Mapping[Site, Float[Tensor, "prompts _"]]],
    *,
    targets: Sequence[Prompt] | None = None,
    reference: str | None = None,
    batch_prompts: int = 64,
    batches: Iterable[PreparedBatch] | None = None,
    description: str = "patched runs",
) -> dict[str, Outcome]:
    """Run prompts once per variant and keep what the model answers.

    Args:
        model: the language model.
        task: says how answers are judged.
        prompts: the prompts.
        variants: name -> site -> what takes the place of its activation, a row per prompt; no
            site: the clean run.
        targets: counterfactuals, whose answers give `target_metric`.
        reference: the variant that the divergences are from.
        batch_prompts: prompts in one pass; the numbers do not depend on it beyond rounding.
        batches: these prompts as `prepared_batches` made them ready for all sites, where more than
            one call is about them; None: they are made ready here.
        description: beside the progress bar.

    Raises:
        ModelError: a site at a hook point that cannot be patched.
    """
    sites = list(dict.fromkeys(site for edits in variants.values() for site in edits))
    found: dict[str, dict[str, list[Tensor]]] = {name: {} for name in variants}
    order = []
    ahead = [reference] if reference is not None else []
    names = [*ahead, *(name for name in variants if name not in ahead)]
    with progress_bar(len(prompts) * len(variants), description, "prompt") as bar:
        if batches is None:
            batches = prepared_batches(model, prompts, sites, batch_prompts=batch_prompts)
        for batch in batches:
            order.append(batch.rows)
            compared: Tensor | None = None
            for name in names:
                edits = {site: values[batch.rows] for site, values in variants[name].items()}
                logits = batch.logits(edits)
                kept = {
                    "metric": task.metric(logits, batch.prompts),
                    "prediction": task.predict(logits),
                    "answer_prediction": most_likely_of(logits, task.answer_tokens),
                }
                if targets is not None:
                    aims = [targets[row] for row in batch.rows.tolist()]
                    kept["target_metric"] = task.metric(logits, aims)
                if reference is not None:
                    log_p = logits.log_softmax(-1)
                    compared = log_p if compared is None else compared
                    kept["kl"] = (compared.exp() * (compared - log_p)).sum(-1).clamp_min(0)
                for field, value in kept.items():
                    found[name].setdefault(field, []).append(value.cpu())
                bar.update(len(batch.rows))
    back = torch.cat(order).argsort()
    return {
        name: Outcome(**{field: torch.cat(parts)[back] for field, parts in kept.items()})
        for name, kept in found.items()
    }
