"""Runs with an entity's activation exchanged in part, and what part is learnt to be exchanged.

An edit gives the rows that are put at the last token of the base's entity. A mask over latents
gives x̂_base + Σ_j m_j (f_j(source) − f_j(base)) d_j; the skyline, which no dictionary limits, gives
x_base + Q Qᵀ (x_source − x_base) with learnt orthonormal columns Q.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from saelab.dictionary import Dictionary, Site
from saelab.model.language_model import LanguageModel
from saelab.model.patched_runs import PatchedRuns
from saelab.progress import progress_bar
from saelab.sparse import SparseCodes
from saelab.stats.seeds import seeded_generator

from .facts import EntityPrompt, alike, padded, prepared_runs
from .pairs import ExchangePair


@dataclass(frozen=True, eq=False)
class ExchangeBatch:
    """Pairs that are run together, made ready for many runs."""

    pairs: Sequence[ExchangePair]
    runs: PatchedRuns
    hook_point: str
    position: Int[Tensor, " batch"]
    """Where each edit goes, counted from the first position that runs are about."""
    base_read: Float[Tensor, "batch d_in"]
    source_read: Float[Tensor, "batch d_in"]
    base: Float[Tensor, "batch d_out"]
    """What is written at the entity in the base prompt; float32."""
    source: Float[Tensor, "batch d_out"]
    answer: Int[Tensor, " batch"]
    is_cause: Bool[Tensor, " batch"]

    def logits(self, rows: Float[Tensor, "batch d_out"]) -> Float[Tensor, "batch d_vocab"]:
        """Logits behind each prompt with these rows at its entity, float32."""

        def change(x: Tensor) -> Tensor:
            index = torch.arange(len(x), device=x.device), self.position.to(x.device)
            return x.index_put(index, rows.to(x))

        return self.runs.logits({self.hook_point: change}).float()


@torch.no_grad()
def rows_at_entities(
    model: LanguageModel, site: Site, prompts: Sequence[EntityPrompt], batch: int
) -> dict[EntityPrompt, tuple[Float[Tensor, " d_in"], Float[Tensor, " d_out"]]]:
    """What a site reads and writes at the last token of each prompt's entity, float32."""
    rows = {}
    for part in alike(prompts, batch):
        tokens, shared = padded(part), _shared_beginning(part)
        before = tokens[0, :shared] if shared else None
        captured = model.capture(tokens[:, shared:], site.hook_points, before)
        for index, prompt in enumerate(part):
            at = {name: x[index, prompt.position - shared] for name, x in captured.items()}
            read = torch.cat([at[name].float() for name in site.reads])
            rows[prompt] = read, at[site.writes[0]].float()
    return rows


def _shared_beginning(prompts: Sequence[EntityPrompt]) -> int:
    first = min(prompt.position for prompt in prompts)
    different = (len({p.tokens[i] for p in prompts}) > 1 for i in range(first))
    return next((i for i, differs in enumerate(different) if differs), first)


def exchange_batches(
    model: LanguageModel,
    site: Site,
    rows: Mapping[EntityPrompt, tuple[Tensor, Tensor]],
    pairs: Sequence[ExchangePair],
    batch: int,
) -> list[ExchangeBatch]:
    """Pairs in batches of one prompt about several bases.

    Args:
        rows: what `rows_at_entities` says of bases and sources.
        pairs: as many for each base of a prompt as for the others, as `draw_pairs` gives them.
        batch: pairs in a batch at most.
    """
    by_base: dict[EntityPrompt, list[ExchangePair]] = {}
    for pair in pairs:
        by_base.setdefault(pair.base, []).append(pair)
    (written,) = site.writes
    batches = []
    for bases in alike(by_base, batch):
        runs = prepared_runs(model, bases, written)
        position = torch.tensor([base.position for base in bases]) - runs.first_position
        # Each time every base with another source.
        for part in zip(*(by_base[base] for base in bases), strict=True):
            sources = [pair.source for pair in part]
            batches.append(
                ExchangeBatch(
                    pairs=part,
                    runs=runs,
                    hook_point=written,
                    position=position,
                    base_read=torch.stack([rows[base][0] for base in bases]),
                    source_read=torch.stack([rows[source][0] for source in sources]),
                    base=torch.stack([rows[base][1] for base in bases]),
                    source=torch.stack([rows[source][1] for source in sources]),
                    answer=torch.tensor([pair.answer for pair in part], device=model.device),
                    is_cause=torch.tensor([pair.is_cause for pair in part], device=model.device),
                )
            )
    return batches


Edit = Callable[[int, float], Tensor]
"""From the index of a batch and a temperature to the rows that are put in."""


def learn(
    parameter: Tensor,
    edit: Edit,
    batches: Sequence[ExchangeBatch],
    *,
    epochs: int,
    learning_rate: float,
    last_temperature: float,
    seed: int,
    name: str,
) -> None:
    """Change a parameter so that edits give the right answers: cross-entropy, Adam, in place.

    Args:
        parameter: what `edit` depends on.
        edit: rows for a batch at a temperature, which falls from 1 to the last one, equally in log.
        epochs: times every batch is learnt on, in another order each time.
    """
    generator = seeded_generator("ravel", "order", seed)
    order = [i for _ in range(epochs) for i in torch.randperm(len(batches), generator=generator)]
    parameter.requires_grad_(True)
    optimiser = torch.optim.Adam([parameter], lr=learning_rate)
    with progress_bar(len(order), name, "steps") as bar, torch.enable_grad():
        for step, index in enumerate(map(int, order)):
            temperature = last_temperature ** (step / max(1, len(order) - 1))
            logits = batches[index].logits(edit(index, temperature))
            loss = functional.cross_entropy(logits, batches[index].answer)
            # Of this parameter alone: the model's are not to be differentiated.
            (parameter.grad,) = torch.autograd.grad(loss, [parameter])
            optimiser.step()
            bar.update(1)
    parameter.requires_grad_(False)


@torch.no_grad()
def scores(batches: Sequence[ExchangeBatch], edit: Edit) -> dict[str, float]:
    """Share of cause and of isolation pairs with the right likeliest token, and their mean."""
    right = [b.logits(edit(i, 0.0)).argmax(1) == b.answer for i, b in enumerate(batches)]
    correct = torch.cat(right).double()
    is_cause = torch.cat([batch.is_cause for batch in batches])
    cause, isolation = float(correct[is_cause].mean()), float(correct[~is_cause].mean())
    return {"cause": cause, "isolation": isolation, "disentanglement": (cause + isolation) / 2}


class LatentMask:
    """A mask over the latents that differ between bases and sources of the pairs learnt on.

    Args:
        dictionary: whose latents are exchanged.
        batches: learnt on.
        keep_error: whether the base's error is kept.
    """

    def __init__(
        self, dictionary: Dictionary, batches: Sequence[ExchangeBatch], *, keep_error: bool
    ):
        self.dictionary, self.keep_error = dictionary, keep_error
        codes = [dictionary.encode(x) for b in batches for x in (b.base_read, b.source_read)]
        self.latents = torch.cat([code.latent for code in codes]).unique()
        self.theta = torch.zeros(len(self.latents), device=self.latents.device)

    @torch.no_grad()
    def prepared(self, batches: Sequence[ExchangeBatch]) -> list[tuple[Tensor, Tensor]]:
        """For each batch the rows without exchange, and codes' differences [batch latents]."""
        prepared = []
        for batch in batches:
            before = self.dictionary.encode(batch.base_read)
            after = self.dictionary.encode(batch.source_read)
            rows = batch.base if self.keep_error else self.dictionary.decode(before)
            prepared.append((rows, self._columns(after) - self._columns(before)))
        return prepared

    def _columns(self, codes: SparseCodes) -> Float[Tensor, "rows latents"]:
        return codes.with_value(codes.scaled_values()).to_dense()[:, self.latents]

    def edit_of(self, prepared: Sequence[tuple[Tensor, Tensor]], hard: Tensor | None) -> Edit:
        """Edits by the mask that is learnt, or by a hard one over the same latents."""
        rows_of_latents = self.dictionary.W_dec[self.latents]

        def edit(index: int, temperature: float) -> Tensor:
            rows, difference = prepared[index]
            mask = torch.sigmoid(self.theta / temperature) if hard is None else hard
            return rows + (difference * mask) @ rows_of_latents

        return edit

    def random(self, count: int, seed: int) -> Float[Tensor, " latents"]:
        """A hard mask over as many of the same latents, drawn at random."""
        order = torch.randperm(len(self.theta), generator=seeded_generator("ravel", "mask", seed))
        mask = torch.zeros_like(self.theta)
        mask[order[:count].to(mask.device)] = 1
        return mask
