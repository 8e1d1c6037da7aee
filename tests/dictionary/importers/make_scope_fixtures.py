"""Write the fixtures of the suites' formats: Gemma Scope, Llama Scope, Llamascopium, Qwen Scope.

    python tests/dictionary/importers/make_scope_fixtures.py [CASE …]

in an environment with sae-lens 6.54.12 and llamascopium 2.0.0b34. Where a library reads or writes
the format, the expected numbers are its own; where none does, or the one that does is wrong, they
are the documented formula in float64, and the case's README says so. The folder `source` of a case
lies in folders named as on the Hub, since some formats say by names alone what they are.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_fixtures import D_IN, D_SAE, FIXTURES, ROWS, K, rows
from safetensors.torch import load_file, save_file

LAYERS = 3
Tensors = dict[str, torch.Tensor]


def drawn(*shape: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + 1000 * seed)
    return torch.randn(shape, generator=generator) * scale


def random_weights(seed: int = 0) -> Tensors:
    """Thresholds of either sign among them."""
    return {
        "W_enc": drawn(D_IN, D_SAE, scale=D_IN**-0.5, seed=seed),
        "b_enc": drawn(D_SAE, scale=0.3, seed=seed),
        "W_dec": drawn(D_SAE, D_IN, scale=D_SAE**-0.5, seed=seed),
        "b_dec": drawn(D_IN, scale=0.3, seed=seed + 1),
        "threshold": drawn(D_SAE, scale=0.7, seed=seed + 2),
    }


def expect(case: Path, **tensors: torch.Tensor) -> None:
    held = {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}
    save_file(held, case / "expected.safetensors")


def by_formula(case: Path, words: str) -> None:
    (case / "README.md").write_text(f"Expected numbers by formula, in float64: {words}.\n")


def by_saelens(
    case: Path, loader: str, repo: str, folder: str, scale: float | None = None, **overrides: Any
) -> None:
    """Expect what SAELens makes of the files, once they lie where it believes the Hub to be."""
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def local(repo_id: str, filename: str, subfolder: str = "", **_: Any) -> str:
        return str(case / repo_id.split("/")[1] / subfolder / filename)

    loaders.hf_hub_download = local
    loaders.get_safetensors_tensor_shapes = lambda repo_id, filename: {
        name: list(tensor.shape) for name, tensor in load_file(local(repo_id, filename)).items()
    }
    config, weights, _ = getattr(loaders, loader)(repo, folder, "cpu", cfg_overrides=overrides)
    sae = SAE.from_dict(loaders.handle_config_defaulting(config | {"dtype": "float32"}))
    sae.process_state_dict_for_loading(weights)
    sae.load_state_dict(weights)
    if scale is not None:
        sae.fold_activation_norm_scaling_factor(scale)
    x = rows()
    read = x.unflatten(1, (4, -1)) if sae.cfg.reshape_activations == "hook_z" else x
    expect(case, x=x, codes=sae.encode(read), reconstruction=sae(read).reshape(x.shape))


def gemma_scope(case: Path, kind: str, folder: str, spelling: str = "W") -> None:
    weights = random_weights()
    repo, inside = f"gemma-scope-2b-pt-{kind}", f"{folder}/width_16k/average_l0_82/source"
    (case / repo / inside).mkdir(parents=True)
    arrays = {name.replace("W", spelling): tensor.numpy() for name, tensor in weights.items()}
    np.savez(case / repo / inside / "params.npz", **arrays)
    if folder != "embedding":
        loader = "gemma_2_transcoder" if kind == "transcoders" else "gemma_2_sae"
        widths = {"d_in": D_IN, "d_sae": D_SAE}
        out = {"d_out": D_IN} if kind == "transcoders" else {}
        loader += "_huggingface_loader"
        return by_saelens(case, loader, f"google/{repo}", inside, **widths, **out)
    held = {name: tensor.double() for name, tensor in weights.items()}
    x = rows()
    h = x.double() / D_IN**0.5 @ held["W_enc"] + held["b_enc"]
    codes = h.relu() * (h > held["threshold"])
    scaled = (codes @ held["W_dec"] + held["b_dec"]) * D_IN**0.5
    by_formula(case, "all in units of the embeddings before √d; SAELens leaves b_dec unscaled")
    return expect(case, x=x, codes=codes, reconstruction=scaled)


def gemma_scope_2(case: Path, kind: str, hooks: tuple[str, str], affine: bool = False) -> None:
    repo = "gemma-scope-2-1b-pt"
    inside = f"{kind}/layer_7_width_16k_l0_small{'_affine' if affine else ''}/source"
    folder = case / repo / inside
    folder.mkdir(parents=True)
    held = {name.replace("W", "w"): tensor for name, tensor in random_weights().items()}
    if affine:
        held["affine_skip_connection"] = drawn(D_IN, D_IN, scale=D_IN**-0.5, seed=5)
    save_file(held, folder / "params.safetensors")
    config = {
        "hf_hook_point_in": f"model.layers.7.{hooks[0]}",
        "hf_hook_point_out": f"model.layers.7.{hooks[1]}",
        "width": D_SAE,
        "model_name": "gemma-v3-1b-pt",
        "architecture": "jump_relu",
        "l0": 20,
        "affine_connection": affine,
        "type": "transcoder" if "transcoder" in kind else "sae",
    }
    (folder / "config.json").write_text(json.dumps(config))
    by_saelens(case, "gemma_3_sae_huggingface_loader", f"google/{repo}", inside)


def gemma_scope_2_clt(case: Path, crosscoder: bool = False) -> None:
    kind = "clt/width_262k_l0_medium_affine"
    hooks = ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output")
    blocks = "all"
    if crosscoder:
        kind, hooks, blocks = (
            "crosscoder/layer_5_9_12_width_65k_l0_medium",
            ("output",) * 2,
            "5,9,12",
        )
    folder = case / f"gemma-scope-2-270m-pt/{kind}/source"
    folder.mkdir(parents=True)
    x = drawn(ROWS, LAYERS, D_IN, scale=3, seed=9)
    codes, summed, layers = [], [], []
    for layer in range(LAYERS):
        held = {name.replace("W", "w"): value for name, value in random_weights(layer).items()}
        held["w_dec"] = drawn(D_SAE, LAYERS, D_IN, scale=D_SAE**-0.5, seed=20 + layer)
        if crosscoder:
            held["w_dec"][:, :layer] = 0
        else:
            held["affine_skip_connection"] = drawn(D_IN, D_IN, scale=D_IN**-0.5, seed=30 + layer)
        save_file(held, folder / f"params_layer_{layer}.safetensors")
        held = {name: value.double() for name, value in held.items()}
        h = x[:, layer].double() @ held["w_enc"] + held["b_enc"]
        codes.append(h.relu() * (h > held["threshold"]))
        summed.append(codes[-1] @ held["w_dec"].sum(1) + held["b_dec"])
        layers.append(held)
    config = {
        "hf_hook_point_in": f"model.layers.{{{blocks}}}.{hooks[0]}",
        "hf_hook_point_out": f"model.layers.{{{blocks}}}.{hooks[1]}",
        "model_name": "google/gemma-3-270m-pt",
        "width": D_SAE,
        "architecture": "jump_relu",
        "l0": 60,
        "affine_connection": not crosscoder,
        "type": "crosscoder" if crosscoder else "clt",
    }
    (folder / "config.json").write_text(json.dumps(config))
    reconstruction = torch.stack(
        [
            sum(codes[source] @ layers[source]["w_dec"][:, target] for source in range(target + 1))
            + layers[target]["b_dec"]
            + (
                0
                if crosscoder
                else x[:, target].double() @ layers[target]["affine_skip_connection"]
            )
            for target in range(LAYERS)
        ],
        1,
    )
    others = (
        "no library loads it; the layout is that of the cross-layer transcoders, as users of the "
        "published files describe it, and what a latent reads and writes as the report says it"
        if crosscoder
        else "circuit-tracer 2026-04 loses the last layer and does not load it; SAELens 6.54.12 "
        "reads one layer with decoders of all targets added up (`summed`)"
    )
    by_formula(case, others)
    expect(
        case,
        x=x.flatten(1),
        codes=torch.cat(codes, 1),
        reconstruction=reconstruction.flatten(1),
        summed=torch.cat(summed, 1),
    )


def qwen_scope(case: Path) -> None:
    repo = f"SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}"
    folder = case / repo / "source"
    folder.mkdir(parents=True)
    held = random_weights()
    del held["threshold"]
    held |= {name: held[name].T.contiguous() for name in ("W_enc", "W_dec")}
    torch.save(held, folder / "layer5.sae.pt")
    config = {"model_type": "topk_sae", "base_model": "Qwen/Qwen3-1.7B-Base", "k": K}
    (folder / "config.json").write_text(json.dumps(config))
    widths = {"d_in": D_IN, "d_sae": D_SAE}
    loader = "qwen_scope_sae_huggingface_loader"
    by_saelens(case, loader, f"Qwen/{repo}", "source/layer5.sae.pt", **widths)


def old_names(held: Tensors) -> Tensors:
    return {
        "encoder.weight": held["W_enc"].T.contiguous(),
        "encoder.bias": held["b_enc"],
        "decoder.weight": held["W_dec"].T.contiguous(),
        "decoder.bias": held["b_dec"],
    }


def llama_scope(case: Path, kind: str, hooks: tuple[str, str], norms: tuple[float, float]) -> None:
    repo, name = f"Llama3_1-8B-Base-LX{kind}-8x", f"Llama3_1-8B-Base-L5{kind}-8x"
    folder = case / repo / name / "source"
    (folder / "checkpoints").mkdir(parents=True)
    held = random_weights()
    if kind == "R":  # as published: rows of norm one, which SAELens takes for granted
        held["W_dec"] = torch.nn.functional.normalize(held["W_dec"], dim=1)
    save_file(old_names(held), folder / "checkpoints/final.safetensors")
    theta = 0.3
    config = {
        "hook_point_in": f"blocks.5.{hooks[0]}",
        "hook_point_out": f"blocks.5.{hooks[1]}",
        "d_model": D_IN,
        "d_sae": D_SAE,
        "expansion_factor": D_SAE / D_IN,
        "top_k": 50,
        "act_fn": "jumprelu",
        "jump_relu_threshold": theta,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": norms[0], "out": norms[1]},
        "sparsity_include_decoder_norm": True,
    }
    (folder / "hyperparams.json").write_text(json.dumps(config))
    inward, outward = (D_IN**0.5 / norm for norm in norms)
    if kind == "R":
        loader = "llama_scope_sae_huggingface_loader"
        settings = {"scale": inward, "dtype": "float32"}
        return by_saelens(case, loader, f"fnlp/{repo}", f"{name}/source", **settings)
    held = {name: tensor.double() for name, tensor in held.items()}
    x = rows()
    h = inward * x.double() @ held["W_enc"] + held["b_enc"]
    codes = h.relu() * (h * held["W_dec"].norm(dim=1) / outward > theta)
    by_formula(
        case,
        "the threshold bounds h · ‖W_D‖ / s_out, as OpenMOSS's initialiser measures it after it "
        "folded the scales in and made decoder rows of norm one; no library reads transcoders",
    )
    reconstruction = (codes @ held["W_dec"] + held["b_dec"]) / outward
    return expect(case, x=x, codes=codes, reconstruction=reconstruction)


def llama_scope_r1(case: Path) -> None:
    repo, inside = "Llama-Scope-R1-Distill", "800M-Slimpajama-0-OpenR1-Math-220k/L5R/source"
    folder = case / repo / inside
    folder.mkdir(parents=True)
    held, hook, norm = random_weights(), "blocks.5.hook_resid_post", 9.0
    saved = old_names(held) | {"log_jumprelu_threshold": held["threshold"]}
    saved[f"dataset_average_activation_norm.{hook}"] = torch.tensor(norm)
    save_file(saved, folder / "sae_weights.safetensors")
    config = {
        "sae_type": "sae",
        "hook_point_in": hook,
        "hook_point_out": hook,
        "d_model": D_IN,
        "expansion_factor": D_SAE / D_IN,
        "act_fn": "jumprelu",
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    settings = {"d_sae": D_SAE, "scale": D_IN**0.5 / norm}
    loader = "llama_scope_r1_distill_sae_huggingface_loader"
    by_saelens(case, loader, f"fnlp/{repo}", inside, **settings)


def llamascopium(
    case: Path, kind: str, act_fn: str, norms: dict[str, float] | None = None, **settings: Any
) -> None:
    """A dictionary of Llamascopium's with its numbers; `standardised`: after its own folding."""
    from llamascopium.models.clt import CLTConfig, CrossLayerTranscoder
    from llamascopium.models.crosscoder import Crosscoder, CrosscoderConfig
    from llamascopium.models.sae import SAEConfig, SparseAutoEncoder

    hooks = {
        "sae": {"hook_point_in": "blocks.1.a", "hook_point_out": "blocks.1.a"},
        "transcoder": {"hook_point_in": "blocks.1.a", "hook_point_out": "blocks.1.b"},
        "crosscoder": {"hook_points": ["blocks.0.a", "blocks.1.a"]},
        "clt": {
            f"hook_points_{way}": [f"blocks.{layer}.{hook}" for layer in range(LAYERS)]
            for way, hook in (("in", "a"), ("out", "b"))
        },
    }[kind]
    classes = {
        "clt": (CrossLayerTranscoder, CLTConfig),
        "crosscoder": (Crosscoder, CrosscoderConfig),
    }
    model_class, config_class = classes.get(kind, (SparseAutoEncoder, SAEConfig))
    common = {"d_model": D_IN, "expansion_factor": D_SAE / D_IN, "top_k": K, "device": "cpu"}
    settings = {"norm_activation": "dataset-wise"} | settings
    model = model_class(
        config_class(act_fn=act_fn, dtype=torch.float32, **hooks, **common, **settings)
    )
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            scale = 0.3 if "b_" in name or "threshold" in name else 1 / tensor.shape[-2] ** 0.5
            tensor.copy_(drawn(*tensor.shape, scale=scale))
    points = list(dict.fromkeys([*model.cfg.hooks_in, *model.cfg.hooks_out]))
    norms = norms or {name: 4.0 + 5 * index for index, name in enumerate(points)}
    model.set_dataset_average_activation_norm(norms)
    (case / "source").mkdir()
    model.save_pretrained(str(case / "source"))
    model.cfg.save_hyperparameters(str(case / "source"))
    x = {name: drawn(ROWS, D_IN, scale=2, seed=40 + i) for i, name in enumerate(points)}
    # Codes of topk are in units of the reconstruction here: times the norm they are chosen by.
    norm = 1.0
    if act_fn.endswith("topk") and model.cfg.sparsity_include_decoder_norm:
        norm = model.decoder_norm_per_feature() if kind == "clt" else model.decoder_norm()
    numbers = {}
    folded = copy.deepcopy(model)
    if settings["norm_activation"] == "dataset-wise":
        folded.standardize_parameters_of_dataset_norm()
    for label, variant in {"": model, "standardised_": folded}.items():
        batch, scales = variant.normalize_activations(x, return_scale_factor=True)
        read, _, _ = variant.prepare_input(batch)
        codes = variant.encode(read)
        decoded = (
            variant.decode(codes, batch_first=True) if kind == "clt" else variant.decode(codes)
        )
        outward = torch.stack([scales[name].expand(ROWS, 1) for name in model.cfg.hooks_out], 1)
        decoded = decoded.reshape(ROWS, len(model.cfg.hooks_out), -1) / outward
        if kind == "crosscoder":  # relu: the same codes for every hook point
            assert torch.equal(codes[:, 0] > 0, codes[:, 1] > 0)
            codes = codes[:, 0]
        numbers[f"{label}codes"] = (codes * norm).flatten(1)
        numbers[f"{label}reconstruction"] = decoded.flatten(1)
    expect(case, x=torch.cat([x[name] for name in model.cfg.hooks_in], 1), **numbers)


RESIDUAL, AFTER_NORM = "output", "post_feedforward_layernorm.output"
BEFORE_MLP = "pre_feedforward_layernorm.output"
CASES: dict[str, Callable[[Path], None]] = {
    "gemma-scope-res": lambda case: gemma_scope(case, "res", "layer_12"),
    "gemma-scope-att": lambda case: gemma_scope(case, "att", "layer_3", spelling="w"),
    "gemma-scope-transcoder": lambda case: gemma_scope(case, "transcoders", "layer_4"),
    "gemma-scope-embedding": lambda case: gemma_scope(case, "res", "embedding"),
    "gemma-scope-2-resid": lambda case: gemma_scope_2(case, "resid_post", (RESIDUAL, RESIDUAL)),
    "gemma-scope-2-attn": lambda case: gemma_scope_2(
        case, "attn_out_all", ("self_attn.o_proj.input",) * 2
    ),
    "gemma-scope-2-transcoder": lambda case: gemma_scope_2(
        case, "transcoder", (BEFORE_MLP, AFTER_NORM)
    ),
    "gemma-scope-2-skip-transcoder": lambda case: gemma_scope_2(
        case, "transcoder_all", (BEFORE_MLP, AFTER_NORM), affine=True
    ),
    "gemma-scope-2-clt": gemma_scope_2_clt,
    "gemma-scope-2-crosscoder": lambda case: gemma_scope_2_clt(case, crosscoder=True),
    "qwen-scope": qwen_scope,
    "llama-scope-residual": lambda case: llama_scope(
        case, "R", ("hook_resid_post", "hook_resid_post"), (9.0, 9.0)
    ),
    "llama-scope-transcoder": lambda case: llama_scope(
        case, "TC", ("ln2.hook_normalized", "hook_mlp_out"), (D_IN**0.5, 1.5)
    ),
    "llamascopium-r1-distill": llama_scope_r1,
    "llamascopium-relu": lambda case: llamascopium(case, "sae", "relu", use_decoder_bias=False),
    "llamascopium-jumprelu": lambda case: llamascopium(case, "sae", "jumprelu"),
    "llamascopium-jumprelu-plain": lambda case: llamascopium(
        case, "sae", "jumprelu", sparsity_include_decoder_norm=False
    ),
    "llamascopium-topk": lambda case: llamascopium(case, "sae", "topk"),
    "llamascopium-token-wise": lambda case: llamascopium(
        case, "sae", "jumprelu", norm_activation="token-wise"
    ),
    "llamascopium-transcoder": lambda case: llamascopium(case, "transcoder", "jumprelu"),
    "llamascopium-crosscoder": lambda case: llamascopium(case, "crosscoder", "relu"),
    "llamascopium-clt-relu": lambda case: llamascopium(case, "clt", "relu"),
    "llamascopium-clt-jumprelu": lambda case: llamascopium(case, "clt", "jumprelu"),
    "llamascopium-clt-layertopk": lambda case: llamascopium(case, "clt", "layertopk"),
}


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        shutil.rmtree(FIXTURES / case, ignore_errors=True)
        (FIXTURES / case).mkdir(parents=True)
        CASES[case](FIXTURES / case)
        print(case)
