"""What is judged at a cross-section: candidates with a dictionary for each of its sites.

Dictionaries of task activations record their site; those of one training recipe at several sites
have the same folder name and together are one candidate. A dictionary of the whole text's
activations serves every site without heads at its hook point.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from saelab.dictionary import SavedDictionary, load_dictionary
from saelab.errors import ArtifactError, ConfigError
from saelab.model.language_model import LanguageModel
from saelab.sparse import SparseCodes

from .sites import CrossSection, Site, site_width
from .task_cache import ORIGIN_KEY

MANIFEST = "saelab.json"
FROZEN = " frozen decoder"
"""What the name of a control whose decoder was not trained ends with."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """Dictionaries of one kind, one for each site it can be judged at."""

    name: str
    """What it is called in tables: the folder name its dictionaries share."""
    group: str
    """The name without the seed."""
    seed: int | None
    """Seed of its training."""
    is_task: bool
    """Whether it was trained on the task's activations; else on a whole text's."""
    dictionaries: Mapping[str, SavedDictionary]
    """By site (task dictionaries) or by hook point."""

    @property
    def kind(self) -> str:
        """`task` or `text`: what it was trained on."""
        return "task" if self.is_task else "text"

    def at(self, site: Site) -> SavedDictionary | None:
        """The dictionary for a site, if there is one."""
        return self.dictionaries.get(str(site) if self.is_task else site.hook_point)

    def fits(self, section: CrossSection) -> bool:
        """Whether it has a dictionary for every site."""
        return all(self.at(site) is not None for site in section.sites)

    def encode(self, site: Site, rows: Float[Tensor, "rows d_in"]) -> SparseCodes:
        """Codes f that multiply the decoder rows in the units of the activations."""
        codes = self._saved(site).dictionary.encode(rows)
        if codes.row_scale is None:
            return codes
        scaled = codes.value * codes.row_scale[codes.pair_rows()]
        return replace(codes, value=scaled, row_scale=None)

    def W_dec(self, site: Site) -> Float[Tensor, "d_sae d_in"]:
        """Decoder rows."""
        return self._saved(site).dictionary.W_dec

    def reconstruct(
        self, site: Site, rows: Float[Tensor, "rows d_in"]
    ) -> Float[Tensor, "rows d_in"]:
        """The reconstruction of activations."""
        return self._saved(site).dictionary(rows)

    def offset(self, site: Site, rows: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """What a reconstruction adds to the codes' part: b_dec, times the row's scale."""
        dictionary = self._saved(site).dictionary
        scale = dictionary.row_scale(rows)
        bias = dictionary.b_dec.expand_as(rows)
        return bias if scale is None else bias * scale.unsqueeze(1)

    def _saved(self, site: Site) -> SavedDictionary:
        saved = self.at(site)
        assert saved is not None, f"{self.name} has no dictionary for {site}"
        return saved


def find_dictionaries(folders: Sequence[Path]) -> list[Path]:
    """The dictionary folders that are named, or that lie in folders that are, such as runs.

    Raises:
        ArtifactError: a folder that is no dictionary and holds none.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        inside = [folder] if (folder / MANIFEST).is_file() else []
        inside = inside or sorted(path.parent for path in folder.glob(f"**/{MANIFEST}"))
        if not inside:
            raise ArtifactError(
                f"{folder} holds no dictionary: name dictionary folders, or runs of `saelab train`"
            )
        found |= {path.resolve(): path for path in inside}
    return list(found.values())


def form_candidates(
    folders: Sequence[Path], model: LanguageModel, task_name: str
) -> list[Candidate]:
    """Load dictionaries and put those of one recipe together.

    Raises:
        ArtifactError: no intact dictionary, one of another model or task, or of another width than
            its site.
        ConfigError: two dictionaries of one name for the same site.
    """
    members: dict[tuple[str, bool], dict[str, SavedDictionary]] = {}
    for folder in find_dictionaries(folders):
        saved = load_dictionary(folder)
        _check(saved, model, task_name)
        saved.dictionary.float()
        name = saved.name + (FROZEN if _is_frozen(saved) else "")
        group = members.setdefault((name, ORIGIN_KEY in saved.made_from), {})
        twin = group.setdefault(_place(saved), saved)
        if twin is not saved:
            raise ConfigError(
                f"{folder} and {twin.folder} are both called {saved.name} and both for "
                f"{_place(saved)}: give one of them, or rename a folder"
            )
    return [_candidate(name, is_task, found) for (name, is_task), found in members.items()]


def _candidate(name: str, is_task: bool, found: Mapping[str, SavedDictionary]) -> Candidate:
    first = next(iter(found.values()))
    seed = first.manifest.get("seed")
    group = name.replace(f"-s{seed}", "")
    return Candidate(name, group, seed, is_task, found)


def _place(saved: SavedDictionary) -> str:
    """The site of a task's dictionary, the hook point of another."""
    return str(saved.made_from.get("site", saved.hook_point))


def _is_frozen(saved: SavedDictionary) -> bool:
    """Whether only the encoder was trained, as the manifest's training settings say."""
    settings = saved.manifest.get("config")
    options = settings.get("options") if isinstance(settings, dict) else None
    return isinstance(options, dict) and bool(options.get("freeze_decoder"))


def _check(saved: SavedDictionary, model: LanguageModel, task_name: str) -> None:
    origin = saved.made_from
    if origin.get("model_hash") not in (None, model.content_hash):
        raise ArtifactError(
            f"{saved.folder} was trained on {origin.get('model')!r} with another content hash than "
            f"{model.name!r} here: give the model it was trained on with --model"
        )
    place = _place(saved)
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
            width = site_width(model, Site.parse(place))
        except ConfigError as error:
            raise ArtifactError(f"{saved.folder}: {error}") from None
    else:
        width = model.width_at(place)
    if width != saved.dictionary.d_in:
        raise ArtifactError(
            f"{saved.folder} takes activations of width {saved.dictionary.d_in}, but "
            f"{place} of {model.name!r} has width {width}: it was saved for another "
            "model or site"
        )


def require_sites(candidates: Sequence[Candidate], sections: Sequence[CrossSection]) -> None:
    """Refuse candidates that fit none of the cross-sections.

    Raises:
        ArtifactError: naming what the dictionary is for and what was missing.
    """
    for candidate in candidates:
        if any(candidate.fits(section) for section in sections):
            continue
        here = ", ".join(candidate.dictionaries)
        nearest = max(
            sections, key=lambda one: sum(candidate.at(site) is not None for site in one.sites)
        )
        missing = [str(site) for site in nearest.sites if candidate.at(site) is None]
        raise ArtifactError(
            f"{candidate.name} has dictionaries for {here}, but the cross-section {nearest.name!r} "
            f"also needs {', '.join(missing)}: train on their caches, or name other sites with "
            "--sites or another --cross-section"
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
