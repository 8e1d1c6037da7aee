"""What decides the rows a dictionary reads: model, site, text, contexts and the token filter.

Dictionaries of the same data spec are evaluated in one pass over the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.cache.config import DataOverrides, TokenFilter, recorded_name
from saelab.cache.format import ADOPTED_KEY
from saelab.config import SHUFFLED, from_plain
from saelab.errors import ArtifactError, ConfigError
from saelab.model.identity import mismatch_with
from saelab.model.language_model import LanguageModel, load_language_model
from saelab.model.several import SeveralModels
from saelab.synthetic.truth import ORIGIN_KEY
from saelab.text.contexts import (
    TextConfig,
    check_text,
    describe_text,
)

from . import Dictionary, SavedDictionary
from .decomposition import ORIGIN_KEY as ERROR_ORIGIN_KEY
from .site import Site

RECORDED = ("model", "hook_point", "text", "context_length", "row_rule", "norm_ceiling")


ModelKey = tuple[str, str, tuple[str, ...]]
"""What tells models apart that are loaded for several data specs: name, dtype, `model_kwargs`."""


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """Caches of activations from elsewhere, as `saelab cache adopt` wrote them."""

    folder: Path
    """The folder that holds the caches of the training rows, and in `held_out` the others."""
    text_hash: str
    """Content hash of the files they are of."""


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Which rows of which text are evaluated."""

    model: str
    """Name or folder of the language model."""
    model_hash: str | None
    """Content hash the model must have; None where none was recorded."""
    model_dtype: str
    """Dtype the model computes in."""
    model_kwargs: tuple[str, ...] = ()
    """What transformers is given for loading it."""
    models: tuple[tuple[str, str], ...] = ()
    """Labels and names of the models of a crosscoder over several; empty: there is one."""
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
    adopted: Adopted | None = None
    """The caches that rows are read from where no language model reads text for them."""

    @property
    def model_key(self) -> ModelKey:
        """What the language model is loaded by."""
        names = " + ".join(name for _, name in self.models)
        return names or self.model, self.model_dtype, self.model_kwargs

    def load_model(self, device: str) -> LanguageModel:
        """The language model, or the models side by side.

        Raises:
            ModelError: it is unknown, or cannot be loaded.
        """
        loaded = {
            label: load_language_model(
                name, dtype=self.model_dtype, device=device, model_kwargs=self.model_kwargs
            )
            for label, name in self.models or (("", self.model),)
        }
        return SeveralModels(loaded) if self.models else loaded[""]

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

    @property
    def in_words(self) -> str:
        """Which rows are evaluated, in words."""
        if self.adopted is not None:
            return "Held-out rows of activations from elsewhere"
        return f"Held-out part of {self.text.source}, contexts of {self.context_length} tokens"

    def text_described(self) -> dict[str, Any]:
        """What results record of the text."""
        if self.adopted is not None:
            return {"source": self.text.source, "content_hash": self.adopted.text_hash}
        return describe_text(self.text)


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
        text = replace(text, source=recorded_name(config.text_source), mixture=())
    if config.text_field is not None:
        text = replace(text, text_field=config.text_field)
    if config.text_source is not None or config.text_field is not None:
        # What the user names is looked at before a model is loaded.
        check_text(text)
    site, models = saved.site, origin.get("models", {})
    if models and config.model is not None:
        raise ConfigError(
            f"model: {saved.folder} is of several models ({', '.join(models)}), which are loaded "
            "from where they were: leave --model out"
        )
    model = config.model or saved.model_name
    if saved.model_name.startswith(SHUFFLED) and not model.startswith(SHUFFLED):
        model = SHUFFLED + model  # of a moved model, too, it is the shuffled one
    adopted = _adopted(saved, config)
    ceilings = origin.get("norm_ceilings") or {site.hook_points[0]: saved.norm_ceiling}
    return DataSpec(
        model=recorded_name(model),
        model_hash=origin.get("model_hash"),
        model_dtype=config.model_dtype or origin.get("model_dtype", "bfloat16"),
        model_kwargs=(
            tuple(origin.get("model_kwargs", ()))
            if config.model_kwargs is None
            else config.model_kwargs
        ),
        models=tuple((label, recorded_name(made["model"])) for label, made in models.items()),
        site=site,
        text=text,
        context_length=config.context_length or saved.context_length,
        token_filter=TokenFilter.from_json(saved.token_filter),
        norm_ceilings=tuple(ceilings[name] for name in site.hook_points),
        adopted=adopted,
    )


def _adopted(saved: SavedDictionary, config: DataOverrides) -> Adopted | None:
    """Where the rows of a dictionary of adopted activations lie; None: a model reads its text.

    Raises:
        ConfigError: settings that only a language model can follow, or the other way round.
    """
    origin = saved.made_from
    if ADOPTED_KEY not in origin:
        if config.activations is not None:
            raise ConfigError(
                f"activations: {saved.folder} was not trained on adopted activations: its rows are "
                "those of its language model"
            )
        return None
    if config.text_source is None:
        given = {"model": config.model, "context_length": config.context_length}
        if odd := [name for name, value in given.items() if value is not None]:
            raise ConfigError(
                f"{odd[0]}: {saved.folder} is of adopted activations, which are rows and no text: "
                "name the text that a language model is to read with --text-source too"
            )
        recorded = config.activations or Path(origin["activations"])
        return Adopted(folder=recorded, text_hash=origin["text_hash"])
    if config.model is None and origin.get("model_hash") is None:
        raise ConfigError(f"text_source: {needs_model(saved)}")
    return None


def needs_model(saved: SavedDictionary) -> str:
    """Why what only a language model can do cannot be done with adopted activations."""
    return (
        f"{saved.folder} is of adopted activations ({saved.model_name}), and this needs the "
        "language model they are of: name it with --model, and text with --text-source"
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
            f"rows it was trained for: say them with `saelab import {saved.folder}`"
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
    of_several = saved.made_from.get("models", {})
    several = model.models if isinstance(model, SeveralModels) else {"": model}
    for label, each in several.items():
        recorded = of_several.get(label, saved.made_from)
        differs = mismatch_with(each, recorded)
        if differs is not None:
            raise ArtifactError(
                f"{saved.folder} was trained on {recorded.get('model')!r}, which is not "
                f"{each.name!r} as it is here (it had {differs}): give the model it was trained on "
                "with --model"
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
