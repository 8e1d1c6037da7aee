"""decode-clt: a training step of its cross-layer transcoder, BatchTopK over all layers.

Its model and its way through a batch are its own. The loss is its mean squared error alone, and
clipping and Adam are as its trainer has them; what that adds (penalties of weight zero, dead
latents, a second encoding for its logs) is left out, in its favour.
"""

from __future__ import annotations

import json
import time

import torch
from protocol import layer_arguments


def main() -> None:
    """Print one JSON line: CPU seconds of every step but the first."""
    from clt.config import CLTConfig
    from clt.models.clt import CrossLayerTranscoder

    given = layer_arguments()
    config = CLTConfig(
        num_features=given.size,
        num_layers=given.layers,
        d_model=given.d,
        activation_fn="batchtopk",
        batchtopk_k=given.layers * given.k,
        clt_dtype="float32",
    )
    model = CrossLayerTranscoder(config, process_group=None, device=torch.device("cpu"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    seconds = []
    for _ in range(given.steps):
        inputs, targets = (
            dict(enumerate(torch.randn(given.layers, given.rows, given.d))) for _ in range(2)
        )
        begun = time.process_time()
        optimizer.zero_grad()
        outputs = model(inputs)
        errors = [(outputs[layer] - target).square().mean() for layer, target in targets.items()]
        torch.stack(errors).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds.append(time.process_time() - begun)
    # The first step also makes Adam's moments.
    print(json.dumps({"decode-clt": seconds[1:]}))


if __name__ == "__main__":
    main()
