"""sae-dashboard's feature data, built for one batch of features of a prepared SAE.

Everything for a batch of features costs the same whichever features they are: the activations are
encoded again for every batch, then each feature is taken in turn. So one batch is timed. The
language model is replaced by its stored activations and costs nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_lens import SAE
from safetensors.torch import load_file

HOOK_POINT = "blocks.0.hook_resid_post"


class StoredModel:
    """What sae-dashboard asks of a model, answered from stored activations.

    Contexts are asked for in order, minibatch by minibatch, once per batch of features.
    """

    def __init__(self, activations: torch.Tensor, unembedding: torch.Tensor):
        self.hook_dict = {HOOK_POINT: SimpleNamespace(ctx={})}
        self.W_U = unembedding.T.contiguous()
        self._activations = activations
        self._next = 0

    def run_with_hooks(self, tokens: torch.Tensor, **_: Any) -> None:
        """Put the next contexts' activations where the wrapper's hook would have put them."""
        start = self._next % len(self._activations)
        self._next = start + len(tokens)
        self.hook_dict[HOOK_POINT].ctx["activation"] = self._activations[start : self._next]


def main() -> None:
    """Build one batch and print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="folder that was prepared")
    parser.add_argument("--features", type=int, default=256, help="features of the batch")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with contextlib.redirect_stdout(sys.stderr):
        sae = SAE.load_from_disk(arguments.out / "dictionary", device="cpu")
        # It folds the decoder's norms into the codes. All are 1, so that changes no code.
        sae.cfg.rescale_acts_by_decoder_norm = True
        inputs = load_file(arguments.out / "inputs.safetensors")
        model = StoredModel(inputs["activations"], inputs["unembedding"])
        config = SaeVisConfig(
            hook_point=HOOK_POINT,
            features=list(range(arguments.features)),
            minibatch_size_features=arguments.features,
        )
        start = time.perf_counter()
        vis_data = SaeVisRunner(config).run(sae, model, inputs["tokens"])  # type: ignore[arg-type]
        seconds = time.perf_counter() - start
    built = len(vis_data.feature_data_dict)
    result = {"seconds": seconds, "features": built, "features_per_second": built / seconds}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
