"""One table of every kind of file that a command writes.

Writers and readers take schema versions from it, `saelab info` is generated from it, and a test
runs over it. Imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """One kind of file."""

    name: str
    """What its manifest calls it; just a name where the file has no manifest."""
    files: tuple[str, ...]
    """Names or patterns it is found under in a folder."""
    made_by: str
    """The command that makes it, and makes it again where it was damaged."""
    intact: str = ""
    """What was checked, in the words `saelab info` says; empty: people or a run add to it, so that
    nothing can be promised."""
    _: KW_ONLY
    schema_version: int = 2
    """The version written; newer ones are refused."""
    sealed_since: int | None = 2
    """First version whose manifest holds a hash of itself; None: it is checked in another way."""
    has_manifest: bool = True
    """Whether it is or holds JSON with kind and schema version."""

    def sealed(self, schema_version: int) -> bool:
        """Whether a manifest of this version must hold a hash of itself."""
        return self.sealed_since is not None and schema_version >= self.sealed_since


_SEALED = "its content has the SHA-256 it was written with"
_WITH_FILES = "its content and the files it names have the SHA-256 they were written with"
_UNSEALED: Any = {"schema_version": 1, "sealed_since": None}
_NO_MANIFEST: Any = {**_UNSEALED, "has_manifest": False}
_SUITES = (
    "core recovery consistency steering dark_matter dark_matter_family supervised toys compare "
    "probing scr_tpp"
)
_KINDS = (
    Kind(
        "dictionary",
        ("saelab.json",),
        "saelab train",
        "every file has the SHA-256 it was saved with, and the self-test passes",
        **_UNSEALED,
    ),
    Kind(
        "training_run",
        ("run.json",),
        "saelab train",
        f"{_SEALED}, and every dictionary passes its checks",
    ),
    Kind(
        "activation_cache",
        ("manifest.json",),
        "saelab cache",
        "every shard has the size and SHA-256 it was written with",
    ),
    Kind(
        "checkpoint",
        ("checkpoint.json",),
        "saelab train",
        "it and the states it names have their SHA-256",
    ),
    Kind("tuning", ("tuning.json",), "saelab tune", _SEALED),
    Kind(
        "quickstart_report",
        ("report.json",),
        "saelab quickstart",
        "its dictionary and its cache pass their checks and are those it was made from",
    ),
    Kind("quickstart_state", ("quickstart.json",), "saelab quickstart", _SEALED),
    Kind(
        "evaluation_result",
        tuple(f"{suite}.json" for suite in _SUITES.split()),
        "saelab eval",
        _WITH_FILES,
    ),
    # Comparisons and families were kinds of their own until they became results.
    Kind("comparison", ("compare.json",), "saelab compare", _WITH_FILES),
    Kind(
        "dark_matter_family", ("dark_matter_family.json",), "saelab eval dark-matter", **_UNSEALED
    ),
    Kind("recovery_score_card", ("score_card.json",), "saelab eval recovery", _SEALED),
    Kind("supervised_sites", ("sites.json",), "saelab eval supervised", **_UNSEALED),
    Kind("supervised_circuit", ("*.circuit.json",), "saelab eval supervised", _SEALED),
    Kind(
        "feature_store",
        ("features.sqlite", "*.sqlite"),
        "saelab features",
        "every table has the SHA-256 it was written with, and every feature can be read",
    ),
    Kind(
        "feature_labels",
        ("feature_labels.sqlite",),
        "saelab dashboard",
        **_NO_MANIFEST | {"schema_version": 2},
    ),
    Kind("feature_list", ("*.list.json",), "saelab dashboard", _SEALED),
    Kind(
        "feature_shards",
        ("features.build/shard-*.safetensors", "shard-*.safetensors"),
        "saelab features",
        "every shard has the SHA-256 it was written with",
        **_NO_MANIFEST,
    ),
    Kind(
        "explanation_answers",
        ("explanation_answers.sqlite",),
        "saelab explain",
        "every answer has the SHA-256 it was written with",
        **_NO_MANIFEST,
    ),
    Kind(
        "feature_meanings",
        ("feature_meanings.safetensors",),
        "saelab dashboard",
        "its vectors have the SHA-256 they were written with",
        **_NO_MANIFEST,
    ),
    Kind(
        "error_probe",
        ("*probe*.safetensors",),
        "saelab eval dark-matter",
        "its tensors have the SHA-256 they were written with",
        **_NO_MANIFEST,
    ),
    Kind(
        "rows",
        ("*.parquet",),
        "saelab eval",
        "it has the SHA-256 that the result beside it names",
        **_NO_MANIFEST,
    ),
    Kind("training_log", ("metrics.jsonl",), "saelab train", **_NO_MANIFEST),
)
KINDS: dict[str, Kind] = {kind.name: kind for kind in _KINDS}
"""By name, in the order in which a folder is searched."""
