"""One table of every kind of file that a command writes.

Writers and readers take schema versions from here, `saelab info` is generated from it, and a test
runs over it. Imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of file."""

    name: str
    """What its manifest calls it; a word of our own where the file has no manifest."""
    files: tuple[str, ...]
    """Names or patterns it is found under in a folder."""
    schema_version: int
    """The version written; newer ones are refused."""
    has_manifest: bool = True
    """Whether it is or holds JSON with kind and schema version."""
    sealed_since: int | None = None
    """First version whose manifest holds a hash of itself; None: it is checked in another way."""
    made_by: str
    """The command that makes it, and makes it again where it was damaged."""
    intact: str
    """What was checked, in the words `saelab info` says; empty: people or a run add to it, so that
    nothing can be promised."""

    def sealed(self, schema_version: int) -> bool:
        """Whether a manifest of this version must hold a hash of itself."""
        return self.sealed_since is not None and schema_version >= self.sealed_since


_SEALED = "its content has the SHA-256 it was written with"
_KINDS = (
    Kind(
        name="dictionary",
        files=("saelab.json",),
        schema_version=1,
        made_by="saelab train",
        intact="every file has the SHA-256 it was saved with, and the self-test passes",
    ),
    Kind(
        name="training_run",
        files=("run.json",),
        schema_version=2,
        sealed_since=2,
        made_by="saelab train",
        intact=f"{_SEALED}, and every dictionary passes its checks",
    ),
    Kind(
        name="activation_cache",
        files=("manifest.json",),
        schema_version=2,
        sealed_since=2,
        made_by="saelab cache",
        intact="every shard has the size and SHA-256 it was written with",
    ),
    Kind(
        name="checkpoint",
        files=("checkpoint.json",),
        schema_version=2,
        sealed_since=2,
        made_by="saelab train",
        intact="it and the states it names have their SHA-256",
    ),
    Kind(
        name="quickstart_report",
        files=("report.json",),
        schema_version=2,
        sealed_since=2,
        made_by="saelab quickstart",
        intact="its dictionary and its cache pass their checks and are those it was made from",
    ),
    Kind(
        name="quickstart_state",
        files=("quickstart.json",),
        schema_version=2,
        sealed_since=2,
        made_by="saelab quickstart",
        intact=_SEALED,
    ),
    Kind(
        name="evaluation_result",
        files=(
            "core.json",
            "recovery.json",
            "consistency.json",
            "steering.json",
            "dark_matter.json",
            "dark_matter_family.json",
            "supervised.json",
            "toys.json",
        ),
        schema_version=2,
        sealed_since=2,
        made_by="saelab eval",
        intact="its content and the files it names have the SHA-256 they were written with",
    ),
    Kind(
        name="comparison",
        files=("compare.json",),
        schema_version=2,
        sealed_since=2,
        made_by="saelab compare",
        intact="its content and the files it names have the SHA-256 they were written with",
    ),
    Kind(
        # Until results stored charts a family was a kind of its own; now it is a result.
        name="dark_matter_family",
        files=("dark_matter_family.json",),
        schema_version=1,
        made_by="saelab eval dark-matter",
        intact="",
    ),
    Kind(
        name="recovery_score_card",
        files=("score_card.json",),
        schema_version=2,
        sealed_since=2,
        made_by="saelab eval recovery",
        intact=_SEALED,
    ),
    Kind(
        name="supervised_sites",
        files=("sites.json",),
        schema_version=1,
        made_by="saelab eval supervised",
        intact="",
    ),
    Kind(
        name="supervised_circuit",
        files=("*.circuit.json",),
        schema_version=2,
        sealed_since=2,
        made_by="saelab eval supervised",
        intact=_SEALED,
    ),
    Kind(
        name="feature_store",
        files=("features.sqlite", "*.sqlite"),
        schema_version=2,
        sealed_since=2,
        made_by="saelab features",
        intact="every table has the SHA-256 it was written with, and every feature can be read",
    ),
    Kind(
        name="feature_labels",
        has_manifest=False,
        files=("feature_labels.sqlite",),
        schema_version=1,
        made_by="saelab dashboard",
        intact="",
    ),
    Kind(
        name="feature_shards",
        has_manifest=False,
        files=("features.build/shard-*.safetensors", "shard-*.safetensors"),
        schema_version=1,
        made_by="saelab features",
        intact="every shard has the SHA-256 it was written with",
    ),
    Kind(
        name="error_probe",
        has_manifest=False,
        files=("*probe*.safetensors",),
        schema_version=1,
        made_by="saelab eval dark-matter",
        intact="its tensors have the SHA-256 they were written with",
    ),
    Kind(
        name="rows",
        has_manifest=False,
        files=("*.parquet",),
        schema_version=1,
        made_by="saelab eval",
        intact="it has the SHA-256 that the result beside it names",
    ),
    Kind(
        name="training_log",
        has_manifest=False,
        files=("metrics.jsonl",),
        schema_version=1,
        made_by="saelab train",
        intact="",
    ),
)
KINDS: dict[str, Kind] = {kind.name: kind for kind in _KINDS}
"""By name, in the order in which a folder is searched."""
