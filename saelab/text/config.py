"""Settings of the text: which it is and how it is divided; `contexts` says what they mean.

This module imports no torch, so that a command line can show its help at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from saelab.errors import ConfigError

EMBEDDED_TEXT = "sotu"


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Which text is read and how it is divided."""

    source: str = EMBEDDED_TEXT
    """"sotu" (embedded), a .txt/.jsonl/.parquet file, a folder of them, or a `datasets` name,
    with ":config" behind it where the dataset has several."""
    text_field: str = "text"
    """Field or column that holds the text, in JSONL, parquet and `datasets`."""
    held_out_fraction: float = 0.1
    """Fraction of the documents that training never sees."""
    seed: int = 0
    """Decides the order of documents, which are held out, and where windows lie."""
    max_tokens_per_document: int | None = None
    """Tokens taken from one document at most, as one window; None takes whole documents."""

    def __post_init__(self) -> None:
        problems = []
        if not self.source.strip():
            problems.append("text source is empty: give 'sotu', a file, a folder or a dataset name")
        if not self.text_field:
            problems.append("text_field is empty: name the field that holds the text")
        if not 0 <= self.held_out_fraction < 1:
            problems.append(
                f"held_out_fraction is {self.held_out_fraction}: expected at least 0 and below 1"
            )
        if self.max_tokens_per_document is not None and self.max_tokens_per_document < 1:
            problems.append(
                f"max_tokens_per_document is {self.max_tokens_per_document}: expected at least 1, "
                "or none for whole documents"
            )
        if problems:
            raise ConfigError(problems)
