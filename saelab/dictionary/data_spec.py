"""What decides the rows a dictionary reads: model, hook point, text, contexts and the token filter.

Dictionaries of the same data spec are evaluated in one pass over the text.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.cache.config import TokenFilter
from saelab.cache.rows import RowSelection, select_rows
from saelab.config import from_plain
from saelab.errors import ArtifactError, ConfigError
from saelab.model.language_model import LanguageModel
from saelab.synthetic.truth import ORIGIN_KEY
from saelab.text.contexts import TextConfig, context_batches

from . import SavedDictionary
from .decomposition import ORIGIN_KEY as ERROR_ORIGIN_KEY

RECORDED = ("model", "hook_point", "text", "context_length", "row_rule", "norm_ceiling")


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Which rows of which text are evaluated."""

    model: str
    """Name or folder of the language model."""
    model_hash: str | None
    """Content hash the model must have; None where none was recorded."""
    model_dtype: str
    """Dtype the model computes in."""
    hook_point: str
    """Where the dictionary reads and is spliced in."""
    text: TextConfig
    """The text; its held-out part is read."""
    context_length: int
    """Tokens in a context."""
    token_filter: TokenFilter
    """Which rows count."""
    norm_ceiling: float | None
    """Norm above which rows are excluded; None where no row is for that reason."""


@typing.runtime_checkable
class DataOverrides(typing.Protocol):
    """What a suite's settings may put in place of what a dictionary recorded; None: nothing."""

    @property
    def text_source(self) -> str | None:
        """Text in place of the dictionary's own."""

    @property
    def text_field(self) -> str | None:
        """Field that holds the text."""

    @property
    def context_length(self) -> int | None:
        """Tokens in a context."""

    @property
    def model(self) -> str | None:
        """Where the language model lies."""

    @property
    def model_dtype(self) -> str | None:
        """Dtype the model computes in."""


def data_spec_of(saved: SavedDictionary, config: DataOverrides) -> DataSpec:
    """The data spec a dictionary recorded, with the overrides of a suite's config.

    Raises:
        ArtifactError: the dictionary's manifest does not say what it was trained on.
        ConfigError: its recorded text settings or token filter are not of this version.
    """
    require_origin(saved)
    origin = saved.made_from
    text = from_plain(TextConfig, saved.text, f"text settings of {saved.folder}")
    overrides = {"source": config.text_source, "text_field": config.text_field}
    return DataSpec(
        model=config.model or saved.model_name,
        model_hash=origin.get("model_hash"),
        model_dtype=config.model_dtype or origin.get("model_dtype", "bfloat16"),
        hook_point=saved.hook_point,
        text=replace(
            text, **{name: value for name, value in overrides.items() if value is not None}
        ),
        context_length=config.context_length or saved.context_length,
        token_filter=TokenFilter.from_json(saved.token_filter),
        norm_ceiling=saved.norm_ceiling,
    )


def require_origin(saved: SavedDictionary, recorded: Sequence[str] = RECORDED) -> None:
    """Refuse a dictionary of anything but a language model's activations, or of unknown ones.

    Args:
        saved: the dictionary.
        recorded: what its manifest must say.

    Raises:
        ArtifactError: it was trained on planted features or on errors, or does not say enough.
    """
    origin = saved.manifest.get("made_from", {})
    if ORIGIN_KEY in origin:
        raise ArtifactError(
            f"{saved.folder} was trained on planted features, so there is no language model to "
            "judge it on: use `saelab eval recovery`"
        )
    if ERROR_ORIGIN_KEY in origin:
        part = origin[ERROR_ORIGIN_KEY]
        raise ArtifactError(
            f"{saved.folder} was trained on the {part['component']} component of the error of the "
            f"dictionary {part['dictionary']!r}, not on activations: judge it with `saelab eval "
            f"dark-matter {part['dictionary']} --analyses components --component-dictionaries "
            f"{saved.folder}`"
        )
    missing = [name for name in recorded if name not in origin]
    if missing:
        raise ArtifactError(
            f"{saved.folder} does not record its {', '.join(missing)}, so it cannot be read on the "
            "rows it was trained for: train or save it again"
        )


def check_fit(model: LanguageModel, spec: DataSpec, saved: SavedDictionary) -> None:
    """Check that a dictionary belongs to a model.

    Raises:
        ArtifactError: it was trained on another model, or its width is not the hook point's.
        ConfigError: contexts longer than the model's.
        ModelError: the model has no such hook point.
    """
    if spec.context_length > model.max_context:
        raise ConfigError(
            f"context_length: {spec.context_length} is longer than the {model.max_context} "
            "tokens "
            f"that {model.name} takes"
        )
    if spec.model_hash is not None and spec.model_hash != model.content_hash:
        raise ArtifactError(
            f"{saved.folder} was trained on {saved.model_name!r} with content hash "
            f"{spec.model_hash[:12]}…, but {model.name!r} here has {model.content_hash[:12]}…: "
            "give the model it was trained on with --model"
        )
    check_width(model, saved)


def check_width(model: LanguageModel, saved: SavedDictionary) -> None:
    """Check that a dictionary takes and writes what the model has at its hook points.

    Raises:
        ArtifactError: its width is not the hook point's.
        ModelError: the model has no such hook point.
    """
    site, dictionary = saved.site, saved.dictionary
    ends = [("takes", site.reads, dictionary.d_in)]
    if not site.is_autoencoder:
        ends.append(("writes", site.writes, dictionary.d_out))
    for does, hook_points, expected in ends:
        width = sum(model.width_at(name) for name in hook_points)
        if width != expected:
            raise ArtifactError(
                f"{saved.folder} {does} activations of width {expected}, but "
                f"{' + '.join(hook_points)} of {model.name!r} has width {width}: it was saved for "
                "another model or hook point"
            )


def held_out_batches(
    model: LanguageModel, spec: DataSpec, n_tokens: int, batch_contexts: int
) -> Iterator[Int[Tensor, "batch seq"]]:
    """The first contexts of the held-out text, `n_tokens` rounded up to whole contexts.

    Raises:
        TextError: the held-out text does not fill one context.
    """
    contexts = context_batches(
        spec.text,
        model,
        split="held_out",
        context_length=spec.context_length,
        batch_contexts=1,
    )
    # Batched here rather than there, so that text shorter than one batch is evaluated too.
    wanted = islice(contexts, -(-n_tokens // spec.context_length))
    while batch := list(islice(wanted, batch_contexts)):
        yield torch.cat(batch)


def select(
    model: LanguageModel,
    spec: DataSpec,
    tokens: Int[Tensor, "batch seq"],
    activations: Float[Tensor, "batch seq d_in"],
    first_context: int = 0,
) -> RowSelection:
    """The rows of a batch that count, by the dictionary's own rule."""
    return select_rows(
        spec.token_filter,
        tokens.to(activations.device),
        activations,
        special_ids=model.special_ids,
        bos_id=model.bos_id,
        norm_ceiling=spec.norm_ceiling,
        first_context=first_context,
    )


@torch.no_grad()
def held_out_rows(
    model: LanguageModel, spec: DataSpec, n_tokens: int, batch_contexts: int
) -> Iterator[Float[Tensor, "rows d_in"]]:
    """The evaluated rows themselves, float32 on the model's device, one batch at a time.

    Raises:
        ActivationError: activations that are not finite.
        TextError: the held-out text does not fill one context.
    """
    first_context = 0
    for tokens in held_out_batches(model, spec, n_tokens, batch_contexts):
        activations = model.capture(tokens, [spec.hook_point])[spec.hook_point]
        selection = select(model, spec, tokens, activations, first_context)
        first_context += tokens.shape[0]
        yield activations[selection.keep].float()


def recorded_mean(saved: SavedDictionary, device: torch.device) -> Float[Tensor, " d_in"] | None:
    """The mean of the training activations as the manifest recorded it; None where it did not.

    Raises:
        ArtifactError: the recorded mean is not a finite vector of the dictionary's width.
    """
    recorded = saved.manifest.get("made_from", {}).get("mean")
    if recorded is None:
        return None
    try:
        mean = torch.tensor(recorded, dtype=torch.float32, device=device)
    except (TypeError, ValueError):
        mean = torch.zeros(0)
    if mean.shape != (saved.dictionary.d_in,) or not bool(mean.isfinite().all()):
        raise ArtifactError(
            f"{saved.folder} records a mean activation that is not {saved.dictionary.d_in} finite "
            "numbers: the manifest was edited; train or save it again"
        )
    return mean
