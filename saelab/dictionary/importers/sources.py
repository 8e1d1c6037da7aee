"""From what a user types to files on this machine: a path, a Hub repository, or a release's name.

The names of releases are those of SAELens' registry, shipped as a table (`releases.json.gz`) with
its origin and date. `python -m saelab.dictionary.importers.sources pretrained_saes.yaml VERSION`
makes it again from a newer registry.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Mapping
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from saelab.errors import ArtifactError, did_you_mean

from .foreign import Source

TABLE = Path(__file__).with_name("releases.json.gz")
HUB = "hf:"
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
        f"{source} does not exist: give a folder, a file, hf:owner/repository/path@revision, or a "
        f"release and its SAE ({did_you_mean(source.split('/')[0], releases()['releases'])})"
    )


def hub_path(source: str) -> HubPath:
    """The parts of hf:owner/repository/path@revision.

    Raises:
        ArtifactError: owner or repository is missing.
    """
    location, _, revision = source.removeprefix(HUB).partition("@")
    parts = location.strip("/").split("/")
    if len(parts) < 2 or not all(parts):
        raise ArtifactError(f"{source} names no repository: give hf:owner/repository/path")
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
        asked = f"has no SAE {sae_id!r}; {did_you_mean(sae_id, by_id)}" if sae_id else "has many"
        raise ArtifactError(
            f"the release {name} {asked}: give {name}/ID, such as {name}/{next(iter(by_id))}"
        )
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
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = [where.path, f"{where.path}/*"] if where.path else None
    if patterns and where.path.endswith(WEIGHT_SUFFIXES):
        # Settings of a single file are beside it, named for it or for the whole folder.
        patterns += [str(Path(where.path).with_name(f"*{end}")) for end in (".json", ".yaml")]
    try:
        root = snapshot_download(where.repo, revision=where.revision, allow_patterns=patterns)
    except GatedRepoError:
        raise ArtifactError(
            f"{where.repo} is gated: accept its terms at https://huggingface.co/{where.repo}, then "
            "set HF_TOKEN to a token of that account"
        ) from None
    except RevisionNotFoundError:
        raise ArtifactError(f"{where.repo} has no revision {where.revision!r}") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ArtifactError(
            f"there is no repository {where.repo} on the Hub, or it is private: check its name, or "
            "set HF_TOKEN"
        ) from None
    except Exception as error:
        raise ArtifactError(
            f"{where.repo} cannot be fetched ({type(error).__name__}): check the network, or give "
            "a folder on this machine"
        ) from None
    path = Path(root) / where.path
    if not path.exists():
        raise ArtifactError(f"{where.repo} holds no {where.path!r}: look at its files on the Hub")
    return path


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
