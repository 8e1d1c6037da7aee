"""Peak memory of commands on a cross-layer transcoder whose files alone are larger than 4 GB.

`python -m own.large_cross_layer --out FOLDER`, run in `benchmarks`, writes circuit-tracer's files
of 12 layers of width 768 with 16,384 latents each as holes that a few random latents fill, and a
random model that fits. Each command has a process of its own, and a JSON line for what it took.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np

from .large_dictionary import LIMIT_GB, measured, write_model, write_text

N_LAYERS, D_MODEL, D_SAE = 12, 768, 16_384
FILLED = 256
"""Latents of each layer that are not zero."""


def main() -> None:
    """Write model and transcoder, run the commands, print what they took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="folder to work in")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--prepare", action="store_true", help="only write model and transcoder")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    if arguments.prepare:
        write_text(out / "text.txt")
        write_model(out / "model", D_MODEL, N_LAYERS)
        for layer in range(N_LAYERS):
            write_layer(out / "theirs", layer)
        return
    if not (out / "theirs").exists():
        subprocess.run([sys.executable, *sys.orig_argv[1:], "--prepare"], check=True)
    ours, tokens = str(out / "ours"), ["--n-tokens", str(arguments.tokens), "--device", "cpu"]
    data = ["--model", str(out / "model"), "--text-source", str(out / "text.txt")]
    commands = {
        "import": [str(out / "theirs"), *data, *tokens, "--context-length", "128", "--out", ours],
        "info": [ours],
        "eval core": [ours, *tokens, "--n-loss-tokens", "256"],
    }
    peaks = []
    for name, words in commands.items():
        result = measured([*name.split(), *words])
        print(json.dumps({"command": name, **result}), flush=True)
        peaks.append(result["peak_gb"])
    sys.exit(max(peaks) > LIMIT_GB)


def write_layer(folder: Path, layer: int) -> None:
    """The two files of a layer; what is zero in them takes no space on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(layer)
    filled = generator.normal(size=(FILLED, D_MODEL)).astype("f4") / math.sqrt(D_MODEL)
    targets = N_LAYERS - layer
    write_with_holes(
        folder / f"W_enc_{layer}.safetensors",
        {
            f"W_enc_{layer}": ((D_SAE, D_MODEL), filled),
            f"b_enc_{layer}": ((D_SAE,), None),
            f"b_dec_{layer}": ((D_MODEL,), None),
        },
    )
    decoder = np.repeat(filled[:, None], targets, axis=1) / targets
    shape = (D_SAE, targets, D_MODEL)
    write_with_holes(folder / f"W_dec_{layer}.safetensors", {f"W_dec_{layer}": (shape, decoder)})


def write_with_holes(
    path: Path, tensors: dict[str, tuple[tuple[int, ...], np.ndarray | None]]
) -> None:
    """A safetensors file of float32 tensors by shape, and what their first entries are."""
    header, end, starts = {}, 0, {}
    for name, (shape, _) in tensors.items():
        starts[name], end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [starts[name], end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (_, first) in tensors.items():
            if first is not None:
                file.seek(8 + len(text) + starts[name])
                file.write(first.tobytes())
        file.truncate(8 + len(text) + end)


if __name__ == "__main__":
    main()
