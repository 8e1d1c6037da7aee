"""What decides the rows a dictionary reads: model, site, text, contexts and the token filter.

Dictionaries of the same data spec are evaluated in one pass over the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.cache.config import DataOverrides, TokenFilter
from saelab.cache.rows import select_rows
from saelab.config import from_plain
from saelab.errors import ArtifactError, ConfigError
from saelab.model.language_model import LanguageModel
from saelab.synthetic.truth import ORIGIN_KEY
from saelab.text.contexts import TextBatch, TextConfig, check_text, text_batches

from . import Dictionary, SavedDictionary
from .decomposition import ORIGIN_KEY as ERROR_ORIGIN_KEY
from .site import Site

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
    site: Site
    """Where the dictionary reads, and where it is spliced in."""
    text: TextConfig
    """The text; its held-out part is read."""
    context_length: int
    """Tokens in a context."""
    token_filter: TokenFilter
    """Which rows count."""
    norm_ceilings: tuple[float | None, ...]
    """Norm above which rows are excluded, at each of the site's hook points; None: no row is."""

    @property
    def hook_point(self) -> str:
        """The one hook point of a sparse autoencoder.

        Raises:
            ConfigError: the site has several.
        """
        return self.site.hook_point

    @property
    def norm_ceiling(self) -> float | dict[str, float | None] | None:
        """The ceiling as results record it; by hook point where the site has several."""
        if len(self.norm_ceilings) == 1:
            return self.norm_ceilings[0]
        return dict(zip(self.site.hook_points, self.norm_ceilings, strict=True))


def data_spec_of(saved: SavedDictionary, config: DataOverrides) -> DataSpec:
    """The data spec a dictionary recorded, with the overrides of a suite's config.

    Raises:
        ArtifactError: the dictionary's manifest does not say what it was trained on.
        ConfigError: its recorded text settings or token filter are not of this version.
    """
    require_origin(saved)
    origin = saved.made_from
    text = from_plain(TextConfig, saved.text, f"text settings of {saved.folder}")
    if config.text_source is not None:
        text = replace(text, source=config.text_source, mixture=())
    if config.text_field is not None:
        text = replace(text, text_field=config.text_field)
    if config.text_source is not None or config.text_field is not None:
        # What the user names is looked at before a model is loaded.
        check_text(text)
    site = saved.site
    ceilings = origin.get("norm_ceilings") or {site.hook_points[0]: saved.norm_ceiling}
    return DataSpec(
        model=config.model or saved.model_name,
        model_hash=origin.get("model_hash"),
        model_dtype=config.model_dtype or origin.get("model_dtype", "bfloat16"),
        site=site,
        text=text,
        context_length=config.context_length or saved.context_length,
        token_filter=TokenFilter.from_json(saved.token_filter),
        norm_ceilings=tuple(ceilings[name] for name in site.hook_points),
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
            "rows it was trained for: say them with `saelab import`, or train it again"
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
    require_width(model, saved.site, saved.dictionary, saved.folder)


def require_width(
    model: LanguageModel, site: Site, dictionary: Dictionary, source: Path | str
) -> None:
    """Check that a dictionary takes and writes what the model has at its hook points.

    Args:
        model: the model.
        site: where the dictionary belongs.
        dictionary: the dictionary.
        source: where it lies, for messages.

    Raises:
        ArtifactError: its width is not the hook point's.
        ModelError: the model has no such hook point.
    """
    ends = [("takes", site.reads, dictionary.d_in)]
    if not site.is_autoencoder:
        ends.append(("writes", site.writes, dictionary.d_out))
    for does, hook_points, expected in ends:
        width = sum(model.width_at(name) for name in hook_points)
        if width != expected:
            raise ArtifactError(
                f"{source} {does} activations of width {expected}, but "
                f"{' + '.join(hook_points)} of {model.name!r} has width {width}: it was saved for "
                "another model or hook point"
            )


def held_out_batches(
    model: LanguageModel, spec: DataSpec, n_tokens: int, batch_contexts: int
) -> Iterator[TextBatch]:
    """The first contexts of the held-out text, `n_tokens` rounded up to whole contexts.

    Raises:
        TextError: the held-out text does not fill one context.
    """
    contexts = text_batches(
        spec.text,
        model,
        split="held_out",
        context_length=spec.context_length,
        batch_contexts=1,
    )
    # Batched here rather than there, so that text shorter than one batch is evaluated too.
    wanted = islice(contexts, -(-n_tokens // spec.context_length))
    while batch := list(islice(wanted, batch_contexts)):
        yield TextBatch.joined(batch)


@dataclass(frozen=True, eq=False)
class SiteRows:
    """The rows of some contexts that count, as a dictionary reads them and is to write them."""

    keep: Bool[Tensor, "batch seq"]
    """True where a position is a row."""
    excluded: dict[str, int]
    """Positions excluded, by the first reason that applies."""
    inputs: Float[Tensor, "rows d_in"]
    """What is read, float32; several hook points side by side."""
    targets: Float[Tensor, "rows d_out"]
    """What is to be written, float32: for a sparse autoencoder the same tensor."""


def select(
    model: LanguageModel,
    spec: DataSpec,
    batch: TextBatch,
    captured: Mapping[str, Float[Tensor, "batch seq _"]],
    first_context: int = 0,
) -> tuple[Bool[Tensor, "batch seq"], dict[str, int]]:
    """Which positions count, by the dictionary's own filter, and how many do not for what reason.

    As in training, a row excluded at one hook point of the site is excluded at all.

    Raises:
        ActivationError: activations that are not finite.
    """
    keep, excluded = None, {}
    for name, ceiling in zip(spec.site.hook_points, spec.norm_ceilings, strict=True):
        selection = select_rows(
            spec.token_filter,
            batch.tokens,
            captured[name],
            special_ids=model.special_ids,
            bos_id=model.bos_id,
            norm_ceiling=ceiling,
            first_context=first_context,
            left_out=batch.left_out,
        )
        if keep is None:
            keep, excluded = selection.keep, dict(selection.excluded)
        else:
            # Tokens and positions are the same everywhere, so only a norm can tell them apart.
            excluded["norm"] += int((keep & ~selection.keep).sum())
            keep = keep & selection.keep
    assert keep is not None  # a site names at least one hook point
    return keep, excluded


def site_rows(
    model: LanguageModel,
    spec: DataSpec,
    batch: TextBatch,
    captured: Mapping[str, Float[Tensor, "batch seq _"]],
    first_context: int = 0,
) -> SiteRows:
    """The rows of some contexts that count, from what their hook points hold.

    Args:
        model: whose special tokens the filter knows.
        spec: site and token filter.
        batch: the contexts.
        captured: activations at every hook point of the site.
        first_context: index of the first context in the text, for messages.

    Raises:
        ActivationError: activations that are not finite.
    """
    keep, excluded = select(model, spec, batch, captured, first_context)
    rows = {name: captured[name][keep].float() for name in spec.site.hook_points}
    inputs = _side_by_side([rows[name] for name in spec.site.reads])
    if spec.site.is_autoencoder:
        return SiteRows(keep, excluded, inputs, inputs)
    return SiteRows(
        keep, excluded, inputs, _side_by_side([rows[name] for name in spec.site.writes])
    )


def _side_by_side(parts: Sequence[Float[Tensor, "rows _"]]) -> Float[Tensor, "rows width"]:
    return parts[0] if len(parts) == 1 else torch.cat([*parts], dim=1)


def splice_at(
    model: LanguageModel,
    site: Site,
    keep: Bool[Tensor, "batch seq"],
    rows: Float[Tensor, "rows d_out"],
) -> dict[str, Callable[[Tensor], Tensor]]:
    """What `LanguageModel.run` takes to put rows in place of what a site writes.

    Args:
        model: gives the width of each hook point.
        site: whose written hook points are replaced.
        keep: the positions that are replaced; all others keep their activation.
        rows: what replaces them, hook points side by side.
    """
    ends = [*accumulate(model.width_at(name) for name in site.writes)]

    def replacing(part: Tensor) -> Callable[[Tensor], Tensor]:
        def change(activations: Tensor) -> Tensor:
            replaced = activations.clone()
            replaced[keep] = part.to(activations)
            return replaced

        return change

    return {
        name: replacing(rows[:, start:end])
        for name, start, end in zip(site.writes, [0, *ends], ends, strict=False)
    }


@torch.no_grad()
def held_out_rows(
    model: LanguageModel, spec: DataSpec, n_tokens: int, batch_contexts: int
) -> Iterator[SiteRows]:
    """The evaluated rows themselves, on the model's device, one batch at a time.

    Raises:
        ActivationError: activations that are not finite.
        TextError: the held-out text does not fill one context.
    """
    first_context = 0
    for batch in held_out_batches(model, spec, n_tokens, batch_contexts):
        captured = model.capture(batch.tokens, spec.site.hook_points)
        yield site_rows(model, spec, batch, captured, first_context)
        first_context += len(batch)


def recorded_mean(saved: SavedDictionary, device: torch.device) -> Float[Tensor, " d_out"] | None:
    """The mean of what it writes in training, as the manifest records it; None where it does not.

    Raises:
        ArtifactError: the recorded mean is not a finite vector of the dictionary's width.
    """
    width = saved.dictionary.d_out
    name = "mean" if saved.site.is_autoencoder else "target_mean"
    recorded = saved.manifest.get("made_from", {}).get(name)
    if recorded is None:
        return None
    try:
        mean = torch.tensor(recorded, dtype=torch.float32, device=device)
    except (TypeError, ValueError):
        mean = torch.zeros(0)
    if mean.shape != (width,) or not bool(mean.isfinite().all()):
        raise ArtifactError(
            f"{saved.folder} records a mean activation that is not {width} finite "
            "numbers: the manifest was edited; train or save it again"
        )
    return mean
