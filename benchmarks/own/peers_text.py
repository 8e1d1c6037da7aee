"""The embedded text for a peer that tokenises itself, and the held-out tokens it is judged on.

Writes `train.jsonl`, one document a line, and `held_out.safetensors` with `tokens` [n, context]:
the contexts that `saelab eval core` reads first, so that both count the same tokens.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from saelab.formats.files import write_tensors
from saelab.model.language_model import load_language_model
from saelab.model.model_files import EMBEDDED_MODEL, resolve_model
from saelab.text.contexts import TextConfig, is_held_out, read_documents, text_batches


def main() -> None:
    """Write both files and print the folder of the language model as one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--context-length", type=int, default=128)
    parser.add_argument("--contexts", type=int, default=32, help="held out")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = TextConfig()
    with (arguments.out / "train.jsonl").open("w", encoding="utf-8") as file:
        for document in read_documents(text):
            if not is_held_out(text, document.text):
                file.write(json.dumps({"text": document.text}) + "\n")
    model = load_language_model(arguments.model, dtype="float32", device="cpu")
    batches = text_batches(
        text,
        model,
        split="held_out",
        context_length=arguments.context_length,
        batch_contexts=arguments.contexts,
    )
    tokens = next(batches).tokens
    write_tensors(arguments.out / "held_out.safetensors", {"tokens": tokens})
    print(json.dumps({"model_folder": str(resolve_model(arguments.model).folder)}))


if __name__ == "__main__":
    main()
