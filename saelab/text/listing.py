"""Which files of a folder are text: one split, without cards, hidden files and descriptions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from saelab.errors import TextError

TEXT_SUFFIXES = (".txt", ".text", ".md")
JSONL_SUFFIXES = (".jsonl", ".ndjson")
RECORD_SUFFIXES = (*JSONL_SUFFIXES, ".json", ".csv")
PARQUET_SUFFIXES = (".parquet",)
ARROW_SUFFIXES = (".arrow",)
SUFFIXES = (*TEXT_SUFFIXES, *RECORD_SUFFIXES, *PARQUET_SUFFIXES, *ARROW_SUFFIXES)
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
"""Suffix behind the others -> compression."""
KINDS = f"{', '.join(SUFFIXES)}; all but the last two also with .gz or .zst behind them"

CARDS = ("readme", "license", "licence", "citation", "contributing", "changelog", "notice")
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What `datasets` writes beside the data itself."""
SPLITS = {
    "train": "train",
    "training": "train",
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Word in a path -> split that it names."""
NO_SPLITS = ("data", "part")
"""What shards are called that tell no split, as by `save_to_disk`."""
_SHARD = re.compile(r"(\w+)-\d+-of-\d+")
NAMES_SHOWN = 3


@dataclass(frozen=True)
class TextFiles:
    """The files that are read, and why the others are not."""

    read: list[Path]
    """In the order of their names."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> names below the folder."""

    def summary(self) -> str:
        """What is read and what is not, in one line."""
        left_out = [f"{_shown(names)} ({reason})" for reason, names in self.left_out.items()]
        names = _shown([path.name for path in self.read])
        return f"reads {names}" + (f"; leaves out {', '.join(left_out)}" if left_out else "")


def file_kind(path: Path) -> tuple[str, str | None]:
    """Suffix of a text file, and how it is compressed; "" where its type is unknown."""
    name = PurePosixPath(path.name.lower())
    compression = COMPRESSED.get(name.suffix)
    suffix = PurePosixPath(name.stem).suffix if compression else name.suffix
    known = TEXT_SUFFIXES + RECORD_SUFFIXES if compression else SUFFIXES
    return (suffix if suffix in known else ""), compression


def text_files(path: Path, split: str) -> TextFiles:
    """The files to read: the file itself, or those below a folder.

    Args:
        path: a file or a folder.
        split: the one that is read where the names of files or folders name several.

    Raises:
        TextError: no such path, a file of unknown type, a folder without a known file, or one
            that has other splits only.
    """
    if path.is_file():
        if not file_kind(path)[0]:
            raise TextError(f"text file {path} has an unknown type: expected one of {KINDS}")
        if path.stat().st_size == 0:
            raise TextError(f"text file {path} is empty")
        return TextFiles([path])
    if path.exists() and not path.is_dir():
        raise TextError(f"text source {path} is neither a file nor a folder")
    if not path.is_dir():
        raise TextError(f"text source {path} does not exist")
    left_out: dict[str, list[str]] = {}
    names: list[str] = []
    for name in sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()):
        reason = _reason_against(path / name, name)
        (names if reason is None else left_out.setdefault(reason, [])).append(name)
    if not names:
        empty = left_out.get("empty")
        held = f"{len(empty)} empty ones" if empty else "none"
        raise TextError(f"no text found in folder {path}: expected files {KINDS}, found {held}")
    chosen = _of_split(path, names, split, left_out)
    return TextFiles([path / name for name in chosen], left_out)


def split_of(name: str) -> str | None:
    """The split that a file's path names, as shards or in words; None where it names none."""
    for part in reversed(PurePosixPath(name).parts):
        shard = _SHARD.match(part)
        if shard and shard[1] not in NO_SPLITS:
            return SPLITS.get(shard[1].lower(), shard[1])
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in SPLITS:
                return SPLITS[word]
    return None


def _reason_against(file: Path, name: str) -> str | None:
    """Why a file is no text; None where it is."""
    parts = PurePosixPath(name).parts
    if any(part.startswith(".") for part in parts):
        return "hidden"
    if not file_kind(file)[0]:
        return "not of a known type"
    stem, file_name = parts[-1].lower().split(".")[0], parts[-1].lower()
    if file_name in DESCRIPTIONS or (
        file_name.endswith(".arrow") and file_name.startswith(("cache-", "indices"))
    ):
        return "description of the data"
    if stem in CARDS and file_name.endswith((".md", ".txt", ".text")):
        return "card"
    return "empty" if file.stat().st_size == 0 else None


def _of_split(
    folder: Path, names: list[str], split: str, left_out: dict[str, list[str]]
) -> list[str]:
    """The files of one split, where there are several; the others go to `left_out`."""
    by_name = {name: split_of(name) for name in names}
    wanted = SPLITS.get(split, split)
    splits = sorted({part for part in by_name.values() if part is not None})
    if not splits:
        return names
    if wanted not in splits:
        if None not in by_name.values():
            raise TextError(
                f"folder {folder} has no split {split!r}, but {', '.join(splits)}: choose one with "
                "--text.dataset-split"
            )
        wanted = None
    for name, part in by_name.items():
        if part != wanted:
            left_out.setdefault(f"split {part}" if part else "of no split", []).append(name)
    return [name for name, part in by_name.items() if part == wanted]


def _shown(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
