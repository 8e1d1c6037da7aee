"""The bytes that each token of a tokenizer stands for.

The text of a token loses bytes that are no whole character: an emoji or a letter of some scripts
often takes several tokens. As bytes, neighbouring tokens can be joined again.
"""

from __future__ import annotations

import json
import re
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: Any, n_tokens: int) -> list[bytes]:
    """Bytes of every token id below `n_tokens`; an id that has no token shows its number.

    Byte-level vocabularies write each byte as one printable character, sentencepiece ones write a
    space as "▁" and single bytes as "<0x0A>". Special tokens are what they are called.
    """
    pieces = tokenizer.convert_ids_to_tokens(list(range(min(n_tokens, len(tokenizer)))))
    added = tokenizer.added_tokens_decoder
    alphabet = _byte_alphabet() if _is_byte_level(tokenizer) else None
    content = [
        str(added[id_]).encode() if id_ in added else _piece_bytes(piece, alphabet)
        for id_, piece in enumerate(pieces)
    ]
    content += [None] * (n_tokens - len(content))
    return [
        f"[token {id_}]".encode() if piece is None else piece for id_, piece in enumerate(content)
    ]


def _piece_bytes(piece: str | None, alphabet: dict[str, int] | None) -> bytes | None:
    if piece is None:
        return None
    if alphabet is not None:
        if all(char in alphabet for char in piece):
            return bytes(alphabet[char] for char in piece)
        return piece.encode()
    match = _BYTE_TOKEN.fullmatch(piece)
    if match:
        return bytes([int(match[1], 16)])
    return piece.replace("▁", " ").encode()


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return any("Ġ" in piece for piece in tokenizer.get_vocab())
    return "ByteLevel" in json.dumps(json.loads(backend.to_str()).get("decoder"))


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte, as GPT-2's tokenizer wrote bytes: printable ones as they are, the rest
    from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}
