"""What is judged at a cross-section: candidates with a dictionary for each of its sites.

Dictionaries of task activations record their site; those of one training recipe at several sites
have the same folder name and together are one candidate. A dictionary of the whole text's
activations serves every site without heads at its hook point.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.dictionary import Dictionary, SavedDictionary, load_dictionary, save_dictionary
from saelab.errors import ArtifactError, ConfigError
from saelab.model.identity import mismatch_with
from saelab.model.language_model import LanguageModel
from saelab.sparse import SparseCodes

from .dictionaries import SupervisedDictionary
from .sites import CrossSection, PromptSite, head_slice, site_width
from .task_cache import ORIGIN_KEY
from .tasks import Prompt, Task

MANIFEST = "saelab.json"


@dataclass(frozen=True, eq=False)
class SiteDictionaries:
    """Dictionaries of one kind, one for each site it can be judged at."""

    name: str
    """What it is called in tables: the folder name its dictionaries share."""
    group: str
    """The name without the seed of its training."""
    is_task: bool
    """Whether it was trained on the task's activations; else on a whole text's."""
    dictionaries: Mapping[str, SavedDictionary]
    """By site (task dictionaries) or by hook point."""

    @property
    def labels(self) -> dict[str, str]:
        """What its scores say of it."""
        return {"kind": "task" if self.is_task else "text", "group": self.group}

    def at(self, site: PromptSite) -> SavedDictionary | None:
        """The dictionary for a site, if there is one."""
        return self.dictionaries.get(str(site) if self.is_task else site.hook_point)

    def fits(self, section: CrossSection) -> bool:
        """Whether it has a dictionary for every site."""
        return all(self.at(site) is not None for site in section.sites)

    def encode(self, site: PromptSite, rows: Float[Tensor, "rows d_in"]) -> SparseCodes:
        """Codes f that multiply the decoder rows in the units of the activations."""
        codes = self._saved(site).dictionary.encode(rows)
        return replace(codes, value=codes.scaled_values(), row_scale=None, row_offset=None)

    def W_dec(self, site: PromptSite) -> Float[Tensor, "d_sae d_in"]:
        """Decoder rows."""
        return self._saved(site).dictionary.W_dec

    def reconstruct(
        self, site: PromptSite, rows: Float[Tensor, "rows d_in"]
    ) -> Float[Tensor, "rows d_in"]:
        """The reconstruction of activations."""
        return self._saved(site).dictionary(rows)

    def offset(
        self, site: PromptSite, rows: Float[Tensor, "rows d_in"]
    ) -> Float[Tensor, "rows d_in"]:
        """What a reconstruction adds to the codes' part."""
        return self._saved(site).dictionary.baseline(rows)

    def _saved(self, site: PromptSite) -> SavedDictionary:
        saved = self.at(site)
        assert saved is not None, f"{self.name} has no dictionary for {site}"
        return saved


def form_candidates(
    folders: Sequence[Path], model: LanguageModel, task_name: str
) -> list[SiteDictionaries]:
    """Load dictionaries and put those of one recipe together.

    Args:
        folders: of dictionaries, or folders in which some lie, such as runs.
        model: that they must be of.
        task_name: that those of task activations must be of.

    Raises:
        ArtifactError: no intact dictionary, one of another model or task, or of another width than
            its site.
        ConfigError: two dictionaries of one name for the same site.
    """
    paths: dict[Path, Path] = {}
    for folder in folders:
        inside = [folder] if (folder / MANIFEST).is_file() else []
        inside = inside or sorted(path.parent for path in folder.glob(f"**/{MANIFEST}"))
        if not inside:
            raise ArtifactError(
                f"{folder} holds no dictionary: name dictionary folders, or runs of `saelab train`"
            )
        paths |= {path.resolve(): path for path in inside}
    members: dict[tuple[str, bool], dict[str, SavedDictionary]] = {}
    for folder in paths.values():
        saved = load_dictionary(folder)
        _check(saved, model, task_name)
        saved.dictionary.float()
        name = saved.name + _control(saved)
        at_sites = members.setdefault((name, ORIGIN_KEY in saved.made_from), {})
        first = at_sites.setdefault(_location(saved), saved)
        if first is not saved:
            raise ConfigError(
                f"{folder} and {first.folder} are both called {saved.name} and both for "
                f"{_location(saved)}: give one of them, or rename a folder"
            )
    candidates = []
    for (name, is_task), at_sites in members.items():
        seed = next(iter(at_sites.values())).manifest.get("seed")
        candidates.append(SiteDictionaries(name, name.replace(f"-s{seed}", ""), is_task, at_sites))
    return candidates


def _location(saved: SavedDictionary) -> str:
    """The site of a task's dictionary, the hook point of another."""
    return str(saved.made_from.get("site", saved.hook_point))


def _control(saved: SavedDictionary) -> str:
    """What the name of a control ends with, whose decoder was held as it was drawn or near that."""
    settings = saved.manifest.get("config")
    options = settings.get("options") if isinstance(settings, dict) else None
    if not isinstance(options, dict):
        return ""
    before = "frozen" if options.get("freeze_decoder") else "free"
    decoder = options.get("decoder", before)
    return "" if decoder == "free" else f" {decoder} decoder"


def _check(saved: SavedDictionary, model: LanguageModel, task_name: str) -> None:
    origin = saved.made_from
    differs = mismatch_with(model, origin)
    if differs is not None:
        raise ArtifactError(
            f"{saved.folder} was trained on {origin.get('model')!r}, which is not {model.name!r} "
            f"as it is here (it had {differs}): give the model it was trained on with --model"
        )
    location = _location(saved)
    if ORIGIN_KEY in origin:
        trained = origin[ORIGIN_KEY]
        named = trained.get("name") if isinstance(trained, dict) else trained
        if named != task_name:
            raise ArtifactError(
                f"{saved.folder} was trained on the task {named!r}, not on {task_name!r}: give "
                f"--task {named}, or train on a cache of `saelab eval supervised --task "
                f"{task_name} --write-cache OUT`"
            )
        try:
            width = site_width(model, PromptSite.parse(location))
        except ConfigError as error:
            raise ArtifactError(f"{saved.folder}: {error}") from None
    else:
        width = model.width_at(location)
    if width != saved.dictionary.d_in:
        raise ArtifactError(
            f"{saved.folder} takes activations of width {saved.dictionary.d_in}, but "
            f"{location} of {model.name!r} has width {width}: it was saved for another "
            "model or site"
        )


def require_sites(candidates: Sequence[SiteDictionaries], sections: Sequence[CrossSection]) -> None:
    """Refuse candidates that fit none of the cross-sections.

    Raises:
        ArtifactError: naming what the dictionary is for and what was missing.
    """
    for candidate in candidates:
        if any(candidate.fits(section) for section in sections):
            continue
        known = ", ".join(candidate.dictionaries)
        nearest = max(
            sections,
            key=lambda section: sum(candidate.at(site) is not None for site in section.sites),
        )
        missing = [str(site) for site in nearest.sites if candidate.at(site) is None]
        raise ArtifactError(
            f"{candidate.name} has dictionaries for {known}, but the cross-section "
            f"{nearest.name!r} also needs {', '.join(missing)}: train on their caches, or name "
            "other sites with --sites or another --cross-section"
        )


def dense_chunks(
    codes: SparseCodes, rows_at_once: int = 512
) -> Iterator[tuple[slice, Float[Tensor, "rows d_sae"]]]:
    """Dense codes of some rows at a time, with the slice they are of."""
    for start in range(0, codes.n_rows, rows_at_once):
        stop = min(codes.n_rows, start + rows_at_once)
        first, last = int(codes.row_pointer[start]), int(codes.row_pointer[stop])
        part = SparseCodes(
            codes.row_pointer[start : stop + 1] - first,
            codes.latent[first:last],
            codes.value[first:last],
            codes.d_sae,
        )
        yield slice(start, stop), part.to_dense()


METHOD = "supervised"
RIDGE = 1e-4
"""Added to the activations' covariance, as a share of its mean diagonal."""


def save_supervised(
    folder: Path,
    dictionary: SupervisedDictionary,
    *,
    model: LanguageModel,
    task: Task,
    site: PromptSite,
    prompts: Sequence[Prompt],
    activations: Float[Tensor, "prompts d_in"],
    parametrisation: str = "independent",
) -> str:
    """Save a supervised dictionary with an encoder that needs no labels, from the prompts and the
    activations that it was fitted to; returns the content hash."""
    index = dictionary.design.index([prompt.labels for prompt in prompts])
    part = head_slice(model, site)
    return save_dictionary(
        folder,
        with_linear_encoder(dictionary, index, activations),
        self_test_inputs=activations,
        training={
            "method": METHOD,
            "kind": dictionary.kind,
            "parametrisation": parametrisation,
            "attributes": {name: list(v) for name, v in dictionary.design.attributes.items()},
            "nested": dict(dictionary.design.nested),
            "counts": dictionary.counts.tolist(),
            "n_prompts": len(prompts),
            "latents": dictionary.design.feature_names,
            "encoder": "linear probes of the labels with the threshold of best F1",
        },
        made_from={
            "model": model.name,
            "model_hash": model.content_hash,
            "model_dtype": str(model.dtype).removeprefix("torch."),
            "hook_point": site.hook_point,
            "task": task.name,
            "site": str(site),
            "entries": [part.start or 0, part.stop or model.width_at(site.hook_point)],
        },
    )


def with_linear_encoder(
    dictionary: SupervisedDictionary,
    index: Int[Tensor, "prompts attributes"],
    x: Float[Tensor, "prompts d_in"],
) -> Dictionary:
    """The dictionary with a linear probe and a threshold for each latent, from the columns and the
    activations of the fitting prompts."""
    size = dictionary.design.n_features
    codes = torch.zeros(len(x), size, dtype=torch.float64).scatter_(1, index, 1.0)
    centred = x.double().cpu() - dictionary.bias.double()
    covariance = centred.T @ centred
    covariance.diagonal().add_(RIDGE * covariance.diagonal().mean().clamp_min(1e-30))
    frequency = codes.mean(0)
    encoder = torch.linalg.solve(covariance, centred.T @ (codes - frequency))
    threshold = best_thresholds(centred @ encoder + frequency, codes > 0)
    return Dictionary(
        "jumprelu",
        W_enc=encoder.float(),
        b_enc=frequency.float(),
        W_dec=dictionary.W_dec.float(),
        b_dec=dictionary.bias.float(),
        threshold=threshold.float(),
    )


def best_thresholds(
    scores: Float[Tensor, "prompts features"], truth: Tensor
) -> Float[Tensor, " features"]:
    """The positive threshold of best F1 for each column, halfway between two scores.

    A column that is never true gets the largest score, so it is never on.
    """
    ordered, order = scores.sort(0, descending=True)
    hits = truth.gather(0, order).double().cumsum(0)
    chosen = torch.arange(1, len(scores) + 1, dtype=torch.float64)[:, None]
    f1 = 2 * hits / (chosen + truth.sum(0))
    below = torch.cat([ordered[1:], ordered[-1:] - 1])
    # Equal scores cannot be told apart, and codes have to be positive.
    f1 = torch.where((ordered > below) & (ordered > 0), f1, -1.0)
    best = f1.argmax(0, keepdim=True)
    middle = (ordered.gather(0, best) + below.gather(0, best).clamp_min(0)).squeeze(0) / 2
    return torch.where(truth.any(0), middle, ordered[0].clamp_min(0))
