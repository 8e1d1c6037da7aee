"""From what a user types to files on this machine: a path, a Hub repository, or a release's name.

The names of releases are those of SAELens' registry, shipped as a table (`releases.json.gz`) with
its origin and date. `python -m saelab.dictionary.importers.sources pretrained_saes.yaml VERSION`
makes it again from a newer registry.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from saelab.errors import ArtifactError, first_line

from .foreign import Source

TABLE = Path(__file__).with_name("releases.json.gz")
HUB = "hf:"
TOKENS = "https://huggingface.co/settings/tokens"
WEBSITE = "https://huggingface.co/"
EXPECTED = (
    "give a folder, a file, hf:owner/repository/path@revision, or a release and its SAE, such as "
    "gpt2-small-res-jb/blocks.8.hook_resid_pre"
)
WHOLE_REPOSITORY_LIMIT = 20_000_000_000
"""Bytes above which a repository is not fetched whole."""
WEIGHT_SUFFIXES = (".pt", ".pth", ".npz", ".bin", ".safetensors")
FIELDS = ("id", "path", "l0", "norm_scaling_factor")
"""What the table holds of each SAE; the rest of the registry are links."""


class HubPath(NamedTuple):
    """A folder or file of a Hub repository."""

    repo: str
    """owner/name."""
    path: str
    """Inside the repository; empty for all of it."""
    revision: str | None
    """Branch, tag or commit."""


def resolve(source: str) -> Source:
    """What a source names, on this machine; fetched from the Hub where it lies there.

    Raises:
        ArtifactError: there is no such file, repository or release, it cannot be reached, or its
            terms have to be accepted first.
    """
    if not source:
        raise ArtifactError(f"no source was given: {EXPECTED}")
    path = Path(source).expanduser()
    if path.exists():
        return Source(path, source)
    if source.startswith(HUB):
        return Source(fetch(hub_path(source)), source)
    release = find_release(source)
    if release is not None:
        where, hints = release
        return Source(fetch(where), f"{HUB}{where.repo}/{where.path}", hints)
    raise ArtifactError(
        f"{source} does not exist here and is no release of SAELens: {_meant(source)}"
    )


def _meant(source: str) -> str:
    """What somebody may have meant with what is neither here nor a release."""
    name, slash, rest = source.partition("/")
    near = get_close_matches(name, releases()["releases"])
    if near:
        return f"did you mean {' or '.join(release + slash + rest for release in near)}?"
    owner, _, repository = source.removeprefix(WEBSITE).partition("/")
    on_hub = source.startswith(WEBSITE) or owner not in ("", ".", "..", "~")
    if repository and on_hub:
        return f"of the Hub it would be {HUB}{owner}/{repository}; else {EXPECTED}"
    return EXPECTED


def hub_path(source: str) -> HubPath:
    """The parts of hf:owner/repository/path@revision.

    Raises:
        ArtifactError: owner or repository is missing, or a part climbs out of it.
    """
    location, _, revision = source.removeprefix(HUB).partition("@")
    parts = location.strip("/").split("/")
    if len(parts) < 2 or not {"", ".", ".."}.isdisjoint(parts):
        raise ArtifactError(
            f"{source} names no repository: give hf:owner/repository/path, such as "
            "hf:google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
        )
    return HubPath("/".join(parts[:2]), "/".join(parts[2:]), revision or None)


@cache
def releases() -> Mapping[str, Any]:
    """The shipped table: `made_from`, `date`, and by name the `releases`."""
    with gzip.open(TABLE, "rt", encoding="utf-8") as handle:
        return json.load(handle)


def find_release(source: str) -> tuple[HubPath, dict[str, Any]] | None:
    """Where an SAE named `release/sae_id` lies, and what the registry knows of it.

    Returns:
        None where `source` begins with no release's name.

    Raises:
        ArtifactError: the release has no such SAE; the message names the nearest.
    """
    name, _, sae_id = source.partition("/")
    release = releases()["releases"].get(name)
    if release is None:
        return None
    by_id = {entry[0]: dict(zip(FIELDS, entry, strict=True)) for entry in release["saes"]}
    if sae_id not in by_id:
        near = [f"{name}/{each}" for each in get_close_matches(sae_id, by_id)]
        asked = f"no SAE {sae_id!r}" if sae_id else f"{len(by_id):,} SAEs"
        example = f"say which, such as {name}/{next(iter(by_id))}"
        hint = f"did you mean {' or '.join(near)}?" if near else example
        raise ArtifactError(f"the release {name} has {asked}: {hint}")
    entry = by_id[sae_id]
    # A number is a layer of a transcoder over all layers, whose repository is one dictionary.
    path = entry["path"] if isinstance(entry["path"], str) else ""
    hints = {
        "model": release["model"],
        "reported_l0": entry["l0"],
        "norm_scaling_factor": entry["norm_scaling_factor"],
        **release.get("config_overrides", {}),
    }
    known = {name: value for name, value in hints.items() if value is not None}
    return HubPath(release["repo_id"], path, None), known


def fetch(where: HubPath) -> Path:
    """A folder or file of a Hub repository on this machine, from the Hub or its local cache.

    Raises:
        ArtifactError: it is not there, not reachable, or gated.
    """
    from huggingface_hub import snapshot_download

    patterns = [where.path, f"{where.path}/*"] if where.path else None
    if patterns and where.path.endswith(WEIGHT_SUFFIXES):
        # Settings of a single file are beside it, named for it or for the whole folder.
        patterns += [str(Path(where.path).with_name(f"*{end}")) for end in (".json", ".yaml")]
    _require_fetchable(where)
    try:
        root = snapshot_download(where.repo, revision=where.revision, allow_patterns=patterns)
    except Exception as error:
        raise hub_refusal(where, error, "fetched") from None
    path = Path(root) / where.path
    if not path.exists():
        raise _not_there(where, ())
    return path


def _require_fetchable(where: HubPath) -> None:
    """Refuse what is not there, and a repository of many dictionaries whole, where that is known.

    Raises:
        ArtifactError: with a path that may have been meant.
    """
    sizes = _sizes(where)
    folders = _folders(sizes)
    # Files beside the folders are of one dictionary, however large it is.
    total = sum(size for name, size in sizes.items() if "/" in name)
    if where.path and sizes and not any(f"{name}/".startswith(f"{where.path}/") for name in sizes):
        raise _not_there(where, [*folders, *sizes])
    if not where.path and total > WHOLE_REPOSITORY_LIMIT and folders:
        raise ArtifactError(
            f"{where.repo} holds {len(folders):,} folders, {total / 1e9:,.0f} GB in all: say which "
            f"is wanted, such as {HUB}{where.repo}/{folders[0]}"
        )


def _not_there(where: HubPath, known: Sequence[str]) -> ArtifactError:
    near = get_close_matches(where.path, known)
    hint = f"did you mean {' or '.join(near)}?" if near else "look at its files on the Hub"
    return ArtifactError(f"{where.repo} holds no {where.path!r}: {hint}")


def _sizes(where: HubPath) -> dict[str, int]:
    """Bytes of a repository's files by name; empty where the Hub does not say."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(where.repo, revision=where.revision, files_metadata=True)
    except Exception:
        # Whatever is wrong, fetching says it.
        return {}
    return {file.rfilename: file.size or 0 for file in info.siblings or ()}


def _folders(sizes: Mapping[str, int]) -> list[str]:
    """The folders with weights in them, as paths in their repository."""
    weights = (Path(name) for name in sorted(sizes) if name.endswith(WEIGHT_SUFFIXES))
    return [name for name in dict.fromkeys(str(path.parent) for path in weights) if name != "."]


def hub_refusal(where: HubPath, error: Exception, what: str) -> ArtifactError:
    """What to tell a user whose request the Hub refused, or never saw.

    Args:
        where: what was asked for.
        error: what huggingface_hub raised.
        what: "fetched" or "written".
    """
    from huggingface_hub import errors

    # It reports a missing cache where the Hub answered badly, and that as the cause.
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else None
    error = cause if isinstance(cause, Exception) else error
    failed = f"{where.repo} cannot be {what}"
    page = f"https://huggingface.co/{where.repo}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError):
        return ArtifactError(
            f"{failed}: it is gated; log in and accept its terms at {page}, make a token at "
            f"{TOKENS}, and set HF_TOKEN to it"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ArtifactError(
            f"{where.repo} has no revision {where.revision or 'main'}: look at {page}"
        )
    if isinstance(error, errors.HFValidationError):
        return ArtifactError(f"{where.repo} is no name of a repository: give hf:owner/repository")
    # Who may see a repository and not write to it is answered like one who may not see it.
    hidden = what == "fetched" or status == 404
    if isinstance(error, errors.RepositoryNotFoundError) and hidden:
        return ArtifactError(
            f"there is no repository {where.repo} on the Hub, or it is private: check its name, or "
            "set HF_TOKEN to a token of an account that may see it"
        )
    if status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
        said = "no token is set" if status is None else f"the Hub does not allow it ({status})"
        return ArtifactError(
            f"{failed}: {said}; set HF_TOKEN to a token from {TOKENS} that may do this (a "
            "fine-grained one needs access to gated repositories to fetch, or write to push)"
        )
    if status is not None:
        return ArtifactError(f"{failed}: the Hub answers with error {status}; try again later")
    if isinstance(error, errors.OfflineModeIsEnabled):
        remedy = ": unset it" if what == "written" else ", and it is not in the local cache"
        return ArtifactError(f"{failed}: HF_HUB_OFFLINE is set{remedy}")
    if isinstance(error, errors.IncompleteSnapshotError) or _is_no_connection(error):
        return ArtifactError(
            f"{failed}: the Hub cannot be reached ({type(error).__name__}); check the network, or "
            "copy the files to this machine and give their folder"
        )
    return ArtifactError(f"{failed} ({first_line(error)})")


def _is_no_connection(error: Exception) -> bool:
    names = {each.__name__ for each in type(error).__mro__}
    return bool(names & {"TransportError", "ConnectionError", "TimeoutError", "TimeoutException"})


def make_table(registry: Path, version: str) -> None:
    """Write the table from SAELens' `pretrained_saes.yaml`."""
    import yaml

    content = yaml.safe_load(registry.read_text(encoding="utf-8"))
    kept = {
        name: {
            **{key: release[key] for key in ("repo_id", "model")},
            **({"config_overrides": o} if (o := release.get("config_overrides")) else {}),
            "saes": [[sae.get(key) for key in FIELDS] for sae in release["saes"] if "path" in sae],
        }
        for name, release in content.items()
    }
    table = {
        "made_from": f"the registry of sae-lens {version} (MIT)",
        "date": date.today().isoformat(),
        "releases": kept,
    }
    packed = json.dumps(table, separators=(",", ":"), sort_keys=True).encode()
    TABLE.write_bytes(gzip.compress(packed, 9, mtime=0))


if __name__ == "__main__":
    make_table(Path(sys.argv[1]), sys.argv[2])
