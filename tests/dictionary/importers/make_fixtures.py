"""Write the fixtures of the importers' tests with the libraries themselves.

    .venv-peers/bin/python tests/dictionary/importers/make_fixtures.py [CASE …]

Each case is a folder in `fixtures/`: a dictionary with random weights as its library saves it, and
`expected.safetensors` with rows x, the library's dense codes and its reconstruction of them.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

FIXTURES = Path(__file__).parent / "fixtures"
D_IN, D_SAE, K, ROWS = 32, 48, 5, 32


def rows() -> torch.Tensor:
    return 3 * torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(1)) + 0.5


def randomise(module: torch.nn.Module) -> None:
    """Random weights in place, thresholds of either sign among them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            scale = 0.3 if tensor.ndim == 1 else 1 / tensor.shape[-1] ** 0.5
            drawn = torch.randn(tensor.shape, generator=generator) * scale
            tensor.copy_(drawn.abs() if name.endswith("log_threshold") else drawn)


def saelens(folder: Path, architecture: str, **settings: object) -> None:
    from sae_lens.registry import get_sae_class

    sae_class, config_class = get_sae_class(architecture)
    outside = {"d_out": D_IN} if "transcoder" in architecture else {}
    config = config_class(
        d_in=D_IN, d_sae=D_SAE, dtype="float32", device="cpu", **outside, **settings
    )
    config.metadata.model_name = "tiny"
    config.metadata.hook_name = "blocks.1.hook_resid_post"
    if outside:
        config.metadata.hook_name = "blocks.1.mlp.hook_in"
        config.metadata.hook_name_out = "blocks.1.hook_mlp_out"
    config.metadata.context_size = 32
    sae = sae_class(config)
    randomise(sae)
    sae.save_model(str(folder))
    x = rows()
    expect(folder, x, sae.encode(x), sae(x))


def sparsify(folder: Path, **settings: object) -> None:
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=K, **settings), device="cpu")
    randomise(coder)
    coder.save_to_disk(folder)
    x = rows()
    output = coder(x)
    codes = torch.zeros(ROWS, D_SAE).scatter_(1, output.latent_indices, output.latent_acts)
    expect(folder, x, codes, output.sae_out)


def expect(
    folder: Path, x: torch.Tensor, codes: torch.Tensor, reconstruction: torch.Tensor
) -> None:
    tensors = {"x": x, "codes": codes, "reconstruction": reconstruction}
    save_file(
        {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()},
        folder / "expected.safetensors",
    )


CASES: dict[str, Callable[[Path], None]] = {
    "saelens-standard": lambda folder: saelens(folder, "standard"),
    "saelens-layer-norm": lambda folder: saelens(
        folder, "standard", normalize_activations="layer_norm"
    ),
    "saelens-topk-rescaled": lambda folder: saelens(
        folder, "topk", k=K, rescale_acts_by_decoder_norm=True
    ),
    "saelens-jumprelu-no-input-bias": lambda folder: saelens(
        folder, "jumprelu", apply_b_dec_to_input=False
    ),
    "saelens-gated": lambda folder: saelens(folder, "gated"),
    "saelens-transcoder": lambda folder: saelens(folder, "transcoder"),
    "saelens-skip-transcoder": lambda folder: saelens(folder, "skip_transcoder"),
    "saelens-jumprelu-transcoder": lambda folder: saelens(folder, "jumprelu_transcoder"),
    "sparsify-topk": lambda folder: sparsify(folder / "layers.1"),
    "sparsify-skip-transcoder": lambda folder: sparsify(
        folder / "layers.1.mlp", transcode=True, skip_connection=True
    ),
}


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        shutil.rmtree(FIXTURES / case, ignore_errors=True)
        (FIXTURES / case).mkdir(parents=True)
        CASES[case](FIXTURES / case)
        print(case)
