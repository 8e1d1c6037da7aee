"""Labels that are paths of images, shown as images where that is safe.

Only files that lie in a folder the dashboard was started on are opened, so that a store somebody
else made cannot show what else is on the disk; only small bitmaps, whose first bytes are theirs.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

BITMAPS = {
    ".png": ("png", b"\x89PNG"),
    ".jpg": ("jpeg", b"\xff\xd8\xff"),
    ".jpeg": ("jpeg", b"\xff\xd8\xff"),
    ".gif": ("gif", b"GIF8"),
    ".webp": ("webp", b"RIFF"),
}
"""By suffix: the type, and how such files begin."""
MOST_BYTES = 300_000
STYLE = "max-height:9rem;max-width:100%;display:block;border-radius:6px"


def picture(label: str, folders: Sequence[Path]) -> str:
    """The image that a label is the path of, as HTML; empty where it is none to be shown.

    Args:
        label: a path, absolute or from one of the folders, with ` · position …` behind it where
            the row is a part of an image.
        folders: where images may lie.
    """
    path = label.partition(" · position ")[0]
    kind = BITMAPS.get(Path(path).suffix.lower())
    if kind is None:
        return ""
    for folder in folders:
        try:
            root = folder.resolve()
            file = (root / path).resolve()
            if not (file.is_relative_to(root) and file.is_file()):
                continue
            if file.stat().st_size > MOST_BYTES:
                return ""
            content = file.read_bytes()
        except (OSError, ValueError):
            continue
        if content.startswith(kind[1]):
            source = f"data:image/{kind[0]};base64,{base64.b64encode(content).decode()}"
            return f'<img src="{source}" alt="{escape(label)}" style="{STYLE}">'
    return ""
