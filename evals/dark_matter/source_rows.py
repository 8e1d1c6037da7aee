"""Rows of several hook points at the same tokens, from one pass of the model over held-out text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.dictionary import SavedDictionary
from saelab.dictionary.data_spec import DataSpec, check_fit, data_spec_of, held_out_batches, select
from saelab.errors import ArtifactError, ConfigError
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar

from .config import DarkMatterConfig


@dataclass(frozen=True, eq=False, kw_only=True)
class SourceRows:
    """Rows of the judged hook point and, at the same tokens, of the sources' hook points."""

    activations: Float[Tensor, "rows d_in"]
    """Of the judged dictionary's hook point, float32."""
    sources: dict[str, Float[Tensor, "rows _"]]
    """Of each source's hook point, float32."""
    sequence: Int[Tensor, " rows"]
    """Index of the context in the text."""
    position: Int[Tensor, " rows"]
    """Position in the context."""


def source_data_specs(
    model: LanguageModel,
    spec: DataSpec,
    sources: Sequence[SavedDictionary],
    config: DarkMatterConfig,
) -> dict[str, tuple[SavedDictionary, DataSpec]]:
    """Name the sources by their hook points and check that each fits the judged one's model.

    Args:
        model: of all of them.
        data spec: of the judged dictionary.
        sources: dictionaries of other hook points.
        config: settings of the suite.

    Raises:
        ArtifactError: a source of another model.
        ConfigError: two sources of one hook point, or one of the judged hook point itself.
    """
    found: dict[str, tuple[SavedDictionary, DataSpec]] = {}
    for saved in sources:
        name, own = saved.hook_point, data_spec_of(saved, config)
        if name == spec.hook_point:
            raise ConfigError(
                f"sources: {saved.folder} is of {name}, the hook point that is judged: its own "
                "output is a control that is always there; give other hook points"
            )
        if name in found:
            raise ConfigError(
                f"sources: {found[name][0].folder} and {saved.folder} are both of {name}: give one "
                "dictionary for each hook point"
            )
        if own.model_hash != spec.model_hash:
            raise ArtifactError(
                f"{saved.folder} was trained on another model than the dictionary it is to explain "
                f"(content hashes {str(own.model_hash)[:12]}… and "
                f"{str(spec.model_hash)[:12]}…): give dictionaries of one model"
            )
        check_fit(model, replace(own, context_length=spec.context_length), saved)
        found[name] = (saved, own)
    return found


@torch.no_grad()
def source_rows(
    model: LanguageModel,
    spec: DataSpec,
    sources: Mapping[str, tuple[SavedDictionary, DataSpec]],
    *,
    n_tokens: int,
    batch_contexts: int,
    first_position: int = 0,
) -> Iterator[SourceRows]:
    """Rows that every dictionary's own rule keeps, one batch of contexts at a time.

    Args:
        model: of all of them.
        data spec: of the judged dictionary; its text is read.
        sources: by name, as `source_protocols` gives them.
        n_tokens: tokens of text, rounded up to contexts.
        batch_contexts: contexts in one forward pass.
        first_position: rows at earlier positions are left out.

    Raises:
        ActivationError: activations that are not finite.
        TextError: the held-out text does not fill one context.
    """
    wanted = [spec.hook_point, *sources]
    specs = [spec, *(own for _, own in sources.values())]
    first_context = 0
    with progress_bar(n_tokens, "sources", "tokens") as bar:
        for tokens in held_out_batches(model, spec, n_tokens, batch_contexts):
            captured = model.capture(tokens, wanted)
            position = torch.arange(tokens.shape[1]).expand(tokens.shape)
            keep = (position >= first_position).to(captured[spec.hook_point].device)
            for name, own in zip(wanted, specs, strict=True):
                keep = keep & select(model, own, tokens, captured[name], first_context).keep
            context = torch.arange(len(tokens))[:, None].expand(tokens.shape) + first_context
            first_context += len(tokens)
            yield SourceRows(
                activations=captured[spec.hook_point][keep].float(),
                sources={name: captured[name][keep].float() for name in sources},
                sequence=context[keep.cpu()],
                position=position[keep.cpu()],
            )
            bar.update(tokens.numel())
