"""Text as contexts of tokens: how documents are packed, padded and mixed.

Packing. The tokens of the documents, each followed by the model's separator, form one stream.
A context is BOS and the next context_length - 1 tokens of the stream, or the next context_length
where the model has no BOS. A context may begin and end inside a document and may hold several.
What is left at the end and fills no context is dropped. With `max_tokens_per_document`, a longer
document gives one window of that many of its tokens; seed and text decide where it begins.

One document per context. A context is BOS (once, where the tokens begin with it already) and the
tokens of one document, padded at its end; a longer document is split over several contexts, each
with a BOS of its own. No separator follows.

Mixture. Each source gives contexts of its own; the next one comes from the source that is furthest
behind its share, so that after any number of contexts no source is off by more than one. The text
ends where a source is used up that is due.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import chain, count
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Bool, Int, Shaped, UInt8
from torch import Tensor

from saelab.config import to_plain
from saelab.errors import ConfigError, ModelError, TextError
from saelab.formats.files import hash_of
from saelab.model.language_model import LanguageModel

from .config import EMBEDDED_TEXT, TextConfig
from .documents import (
    fraction_of,
    is_held_out,
    is_streamed,
    local_path,
    near_duplicates,
    read_documents,
    sotu_files,
)
from .listing import text_files
from .records import Document
from .sources import hash_files
from .tokens import PADDING, TokenisedDocument, Tokeniser

logger = logging.getLogger(__name__)

GROUP_DOCUMENTS = 64
GROUP_CHARACTERS = 1 << 20
"""Documents are tokenised in groups of at most this many, whichever limit comes first."""

Counts = defaultdict[str, Counter[str]]
"""What became of the text so far, by source; `what_was_read` puts it into words."""


@dataclass(frozen=True, eq=False)
class TextBatch:
    """Some contexts."""

    tokens: Int[Tensor, "batch seq"]
    """Token ids, int64 on the CPU."""
    left_out: UInt8[Tensor, "batch seq"] | None = None
    """0, or why a position can be no row: `OTHER_ROLE` or `PADDING`. None: every one can."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, contexts: slice | Tensor) -> TextBatch:
        left_out = None if self.left_out is None else self.left_out[contexts]
        return TextBatch(self.tokens[contexts], left_out)

    @staticmethod
    def joined(batches: Sequence[TextBatch]) -> TextBatch:
        """The contexts of several batches as one."""
        tokens = torch.cat([batch.tokens for batch in batches])
        if all(batch.left_out is None for batch in batches):
            return TextBatch(tokens)
        return TextBatch(tokens, torch.cat([batch.states() for batch in batches]))

    def states(self) -> UInt8[Tensor, "batch seq"]:
        """`left_out`, zeros where it is None."""
        if self.left_out is None:
            return torch.zeros(self.tokens.shape, dtype=torch.uint8)
        return self.left_out

    def lengths(self) -> Int[Tensor, " batch"]:
        """Tokens of each context without its padding."""
        return (self.states() != PADDING).sum(1)

    def predicted(self) -> Bool[Tensor, "batch predictions"]:
        """Which positions have a next token that is no padding."""
        return self.states()[:, 1:] != PADDING

    def of_text(
        self, predictions: Shaped[Tensor, "batch positions *rest"], first: int = 0
    ) -> Shaped[Tensor, "*some"]:
        """Losses or logits at predicting the next token, without those of padding.

        Args:
            predictions: entry i of each context is about its token i + 1.
            first: entries before it are left out as well.

        Returns:
            The entries that count; flattened over contexts and positions if there is padding.
        """
        predictions, predicted = predictions[:, first:], self.predicted()[:, first:]
        return predictions if predicted.all() else predictions[predicted.to(predictions.device)]


def sources_of(config: TextConfig) -> list[tuple[TextConfig, float]]:
    """Each source of a mixture as a text of its own, with its share; else the text itself."""
    rest = 1.0 - sum(share for _, share in config.mixture)
    shares = [(config.source, rest), *config.mixture]
    return [(replace(config, source=name, mixture=()), share) for name, share in shares]


def check_text(config: TextConfig) -> list[str]:
    """Look at a text before anything expensive: is it there, readable, and partly held out?

    Every local source is read until a document of each split was seen, which is early but where
    there is none; what is streamed from the network is not asked.

    Returns:
        A line for each folder: which of its files are read and which are not.

    Raises:
        TextError: a source that cannot be read, without the text field, or with nothing held out.
    """
    lines, conversations, local = [], False, True
    for part, _ in sources_of(config):
        path = None if part.source == EMBEDDED_TEXT else local_path(part.source)
        if path is None and part.source != EMBEDDED_TEXT:
            local = False
            continue
        if path is not None and path.is_dir():
            lines.append(f"{part.source}: {text_files(path, part.dataset_split).summary()}")
        seen: Counter[bool] = Counter()
        for document in read_documents(part):
            conversations |= document.messages is not None
            seen[is_held_out(part, document.text)] += 1
            if seen[False] and (seen[True] or not part.held_out_fraction):
                break
        if part.held_out_fraction and not seen[True]:
            raise TextError(_nothing_held_out(part, seen[False], "documents"))
        if not seen[False]:
            raise TextError(
                f"every document of {part.source} is held out ({seen[True]} of them): cut them "
                "into smaller ones with --text.span-characters 2000, give more text, or another "
                "--text.seed"
            )
    if config.roles and local and not conversations:
        raise TextError(
            f"roles {', '.join(config.roles)} were asked for and {config.source} holds no "
            "conversations: leave --text.roles away, or name their field with --text.text-field"
        )
    return lines


def _nothing_held_out(config: TextConfig, held: int, what: str) -> str:
    return (
        f"none of the {held} {what} of {config.source} is held out (held_out_fraction "
        f"{config.held_out_fraction:g}), so nothing could be evaluated on it: cut them into "
        "smaller ones with --text.span-characters 2000, give more text, or say "
        "--text.held-out-fraction 0 and evaluate on other text"
    )


def left_out_of_training(config: TextConfig) -> list[str]:
    """Ids of the documents of each source that are in neither part of the text, sorted."""
    return sorted(name for part, _ in sources_of(config) for name in near_duplicates(part))


def require_held_out(config: TextConfig, model: LanguageModel, context_length: int) -> None:
    """Check that what is held out of each local source fills a context, so that it can be judged.

    Raises:
        TextError: it does not.
        ModelError: a conversation and no template for it.
    """
    for part, _ in sources_of(config):
        if not part.held_out_fraction or is_streamed(part.source):
            continue
        tokenise = Tokeniser(part, model, Counter())
        held_out = (d for d in read_documents(part) if is_held_out(part, d.text))
        n_tokens = 0
        for document in held_out:
            n_tokens += len(tokenise([document])[0].ids) + 1
            if n_tokens >= context_length or part.one_document_per_context:
                break
        else:
            raise TextError(
                f"what is held out of {part.source} has {n_tokens} tokens, less than one context "
                f"of {context_length}, so nothing could be evaluated on it: give more text, a "
                "smaller --context-length or a larger --text.held-out-fraction, or say "
                "--text.held-out-fraction 0 and evaluate on other text"
            )


def what_was_read(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A line for each source: what was read of it, and what was left out, replaced and cut."""
    lines = []
    for source, of_source in counts.items():
        parts = [
            words.format(f"{of_source[name]:,}")
            for name, words in COUNT_WORDS.items()
            if of_source.get(name)
        ]
        lines.append(f"{source}: {', '.join(parts)}")
    return lines


COUNT_WORDS = {
    "documents": "{} documents read",
    "other_split": "{} of them of the other split",
    "near_duplicates": "{} left out, which share passages with held-out ones",
    "blank": "{} blank ones left out",
    "surrogates": "{} lone surrogates replaced by U+FFFD",
    "windows": "{} cut to a window",
    "divided": "{} split over several contexts",
    "control_strings": "{} spell control tokens",
    "tokens": "{} tokens",
    "contexts": "{} contexts",
    "dropped": "{} tokens dropped at the end, which fill no context",
}
"""Count -> what is said of it."""


def text_batches(
    config: TextConfig,
    model: LanguageModel,
    *,
    split: Literal["train", "held_out"],
    context_length: int,
    batch_contexts: int,
    skip_contexts: int = 0,
    counts: Counts | None = None,
) -> Iterator[TextBatch]:
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
        counts: gets, by source, what became of all text read up to a batch, skipped text included.

    Raises:
        ModelError: the context is longer than the model's, or there is no template for a
            conversation.
        TextError: the split gives fewer contexts than one batch.
    """
    check_shape(model, context_length, batch_contexts, skip_contexts)
    counts = defaultdict(Counter) if counts is None else counts

    def batches() -> Iterator[TextBatch]:
        streams = [
            (_contexts(part, model, split, context_length, counts[part.source]), share)
            for part, share in sources_of(config)
        ]
        total = 0
        batch: list[Context] = []
        # The first batch must fill even where all of it is skipped: too little text is an error on
        # every call, not only on the first.
        for context in mixed(streams):
            total += 1
            if total > skip_contexts:
                batch.append(context)
            if len(batch) == batch_contexts:
                yield batch_of(batch)
                batch = []
        if total < batch_contexts:
            raise TextError(
                f"the {split} split of {config.source} fills {total} contexts of {context_length} "
                f"tokens, less than one batch of {batch_contexts}: give more text, or lower "
                "context_length or batch_contexts"
            )
        if batch:
            yield batch_of(batch)

    return batches()


Context = tuple[list[int], bytes]
"""Tokens of one context, and what each position is."""
_Item = TypeVar("_Item")


def batch_of(contexts: Sequence[Context]) -> TextBatch:
    """Some contexts as a batch."""
    tokens = torch.tensor([ids for ids, _ in contexts])
    states = b"".join(states for _, states in contexts)
    if not any(states):
        return TextBatch(tokens)
    return TextBatch(
        tokens, torch.frombuffer(bytearray(states), dtype=torch.uint8).view(tokens.shape)
    )


def mixed(streams: Sequence[tuple[Iterator[_Item], float]]) -> Iterator[_Item]:
    """Contexts of several streams by their shares, until one that is due has ended."""
    taken = [0] * len(streams)
    for total in count(1):
        behind = [share * total - n for (_, share), n in zip(streams, taken, strict=True)]
        due = behind.index(max(behind))
        context = next(streams[due][0], None)
        if context is None:
            return
        taken[due] += 1
        yield context


def _contexts(
    config: TextConfig, model: LanguageModel, split: str, length: int, counts: Counter[str]
) -> Iterator[Context]:
    """The contexts of one source."""
    documents = chain.from_iterable(_token_groups(config, model, split, counts))
    bos = [] if model.bos_id is None else [model.bos_id]
    body = length - len(bos)
    if config.one_document_per_context:
        bodies = one_per_context(documents, model, body, counts)
    else:
        bodies = _packed(documents, model, body, counts)
    for ids, states in bodies:
        counts["contexts"] += 1
        yield bos + ids, bytes(len(bos)) + states


def _packed(
    documents: Iterator[TokenisedDocument], model: LanguageModel, body: int, counts: Counter[str]
) -> Iterator[Context]:
    """Documents one behind the other, each with a separator behind it, cut in pieces."""
    separator = [] if model.separator_id is None else [model.separator_id]
    ids: list[int] = []
    states = bytearray()
    for document in documents:
        ended = separator and document.tokenised_before and document.ids[-1:] == separator
        ids += document.ids if ended else document.ids + separator
        states += document.left_out if ended else document.left_out + bytes(len(separator))
        start = 0
        while len(ids) - start >= body:
            yield ids[start : start + body], bytes(states[start : start + body])
            start += body
        del ids[:start], states[:start]
    counts["dropped"] += len(ids)


def one_per_context(
    documents: Iterator[TokenisedDocument], model: LanguageModel, body: int, counts: Counter[str]
) -> Iterator[Context]:
    """Each document in contexts of its own, padded."""
    # Any token will do: nothing before it can see it, and no position of it counts.
    padding = model.separator_id or 0
    for document in documents:
        skip = int(model.bos_id is not None and document.ids[:1] == [model.bos_id])
        ids, states = document.ids[skip:], document.left_out[skip:]
        counts["divided"] += len(ids) > body
        for start in range(0, len(ids), body):
            part, part_states = ids[start : start + body], states[start : start + body]
            missing = body - len(part)
            yield part + [padding] * missing, part_states + bytes([PADDING]) * missing


def describe_text(config: TextConfig) -> dict[str, Any]:
    """What a manifest says about the text: settings, exact origin and the rules in force.

    Returns:
        The fields of the config, `kind` ("embedded", "files", "dataset" or "mixture"),
        `content_hash` (of the embedded text or the files, or of all sources of a mixture; None
        where a stream is among them), `version` (of the package; None elsewhere), and `packing`,
        `order`, `split` as sentences; of a mixture also `sources`.
    """
    origins = [_origin_of(part) for part, _ in sources_of(config)]
    if config.mixture:
        hashes = [origin["content_hash"] for origin in origins]
        digest = None if None in hashes else hash_of(hashes)
        origin = {"kind": "mixture", "version": None, "content_hash": digest, "sources": origins}
    else:
        (origin,) = origins
    streamed = any(each["kind"] == "dataset" for each in origins)
    packing = (
        "one document per context, padded; longer ones are split over several"
        if config.one_document_per_context
        else "documents joined by the separator; contexts are BOS and the next tokens; "
        "the last partial context is dropped"
    )
    return {
        **to_plain(config),
        **origin,
        "order": "as streamed" if streamed else "documents shuffled under the seed",
        "split": "by document: hash of seed and text below held_out_fraction is held out",
        "packing": packing,
    }


def _origin_of(config: TextConfig) -> dict[str, Any]:
    path = local_path(config.source)
    if config.source == EMBEDDED_TEXT:
        files = [file for _, file in sotu_files()]
        return {"kind": "embedded", "version": version("sotu"), "content_hash": hash_files(files)}
    if path is not None:
        digest = hash_files(text_files(path, config.dataset_split).read)
        return {"kind": "files", "version": None, "content_hash": digest}
    return {"kind": "dataset", "version": None, "content_hash": None}


def _token_groups(
    config: TextConfig, model: LanguageModel, split: str, counts: Counter[str]
) -> Iterator[list[TokenisedDocument]]:
    tokenise = Tokeniser(config, model, counts)
    for documents in _grouped(of_split(config, split, counts)):
        group = []
        for document, tokenised in zip(documents, tokenise(documents), strict=True):
            window = window_of(config, document.text, tokenised)
            counts["windows"] += window is not tokenised
            counts["tokens"] += len(window.ids)
            group.append(window)
        yield group


def of_split(config: TextConfig, split: str, counts: Counter[str]) -> Iterator[Document]:
    """The documents of one source that are in a split."""
    left_out = near_duplicates(config) if split == "train" else frozenset()
    for document in read_documents(config, counts):
        if is_held_out(config, document.text) != (split == "held_out"):
            counts["other_split"] += 1
        elif document.id in left_out:
            counts["near_duplicates"] += 1
        else:
            yield document


def _grouped(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Small groups: tokenising several at once is faster, and memory stays bounded."""
    group: list[Document] = []
    characters = 0
    for document in documents:
        group.append(document)
        characters += len(document.text)
        if len(group) == GROUP_DOCUMENTS or characters >= GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def window_of(config: TextConfig, text: str, document: TokenisedDocument) -> TokenisedDocument:
    """What is read of a document: all of it, or the window that seed and text decide."""
    length = config.max_tokens_per_document
    if length is None or len(document.ids) <= length:
        return document
    start = int(fraction_of(config, "window", text) * (len(document.ids) - length + 1))
    end = start + length
    return replace(document, ids=document.ids[start:end], left_out=document.left_out[start:end])


def check_shape(model: LanguageModel, context: int, batch: int, skip: int) -> None:
    """Refuse contexts and batches of impossible sizes.

    Raises:
        ConfigError: a number is too small.
        ModelError: the context is longer than the model's.
    """
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
