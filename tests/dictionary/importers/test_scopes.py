"""The suites' formats: where others are wrong, what is refused, and what names alone say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_files import change, load, read_one, save
from safetensors.torch import load_file

from saelab.cli import main
from saelab.dictionary import Site, load_dictionary, save_dictionary
from saelab.dictionary.importers import FORMATS, Source, read_foreign
from saelab.errors import ArtifactError

FIXTURES = Path(__file__).parent / "fixtures"
CASES = sorted(path.name for path in FIXTURES.iterdir())


def folder_of(case: str) -> Path:
    return next(path for path in (FIXTURES / case).rglob("source"))


def expected_of(case: str) -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / case / "expected.safetensors")


def off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.fixture
def copied(tmp_path):
    """A function that copies a case's folders, and gives the one with the dictionary's files."""

    def copy(case: str) -> Path:
        source = folder_of(case)
        target = tmp_path / source.relative_to(FIXTURES)
        shutil.copytree(source, target)
        return target

    return copy


def change_weights(path: Path, **changes: torch.Tensor | None) -> None:
    save(path, load(path) | changes)


@pytest.mark.parametrize("case", CASES)
def test_one_format_alone_takes_a_folder_for_its_own(case):
    folder = next((path for path in (FIXTURES / case).rglob("source")), None)
    folder = folder or next((p for p in (FIXTURES / case).iterdir() if p.is_dir()), FIXTURES / case)
    matching = [name for name, entry in FORMATS.items() if entry.matches(folder)]
    assert len(matching) == 1, f"{case}: {matching}"


def test_thresholds_of_llama_scope_are_of_raw_activations():
    """With rows of norm one SAELens agrees; a transcoder's are in units of what it writes."""
    for case, norm in (("llama-scope-residual", 9.0), ("llama-scope-transcoder", 1.5)):
        dictionary = read_one(folder_of(case), "llama-scope").dictionary
        scaled = dictionary.W_dec * (32**0.5 / norm)
        gate = dictionary.threshold * scaled.norm(dim=1)
        assert torch.allclose(gate, torch.full_like(gate, 0.3 * 32**0.5 / norm), rtol=1e-5)


REFUSED = {
    "a batch chooses": ("llamascopium-topk", {"act_fn": "batchtopk"}, "topk_to_jumprelu_convers"),
    "layers choose": ("llamascopium-clt-layertopk", {"act_fn": "topk"}, "of each layer by itself"),
    "a batch of layers chooses": (
        "llamascopium-clt-layertopk",
        {"act_fn": "batchlayertopk"},
        "saves no threshold",
    ),
    "hook points choose": ("llamascopium-crosscoder", {"act_fn": "topk"}, "of each hook point by"),
    "attention": ("llamascopium-relu", {"sae_type": "lorsa"}, "is a lorsa: .* whole sequence"),
    "low rank": ("llamascopium-relu", {"sae_type": "molt"}, "is a molt: .* low-rank"),
    "unheard of": ("llamascopium-relu", {"sae_type": "cnnsae"}, "is a cnnsae"),
    "gated linear unit": ("llamascopium-jumprelu", {"use_glu_encoder": True}, "use_glu_encoder"),
    "batches normalise": ("llamascopium-relu", {"norm_activation": "batch-wise"}, "the batch"),
    "targets normalise": (
        "llamascopium-transcoder",
        {"norm_activation": "token-wise"},
        "what is written",
    ),
    "other width": ("llamascopium-relu", {"d_model": 16}, "W_enc has shape"),
    "other hook points": ("llamascopium-clt-relu", {"hook_points_out": ["a"]}, "as many must be"),
    "no threshold": ("llamascopium-topk", {"act_fn": "jumprelu"}, "without thresholds"),
    "a crosscoder of other layers": (
        "gemma-scope-2-crosscoder",
        {"hf_hook_point_in": "model.layers.{5,9,12,15}.output"},
        "holds 3 layers .* after the blocks 5, 9, 12, 15",
    ),
    "another architecture": ("gemma-scope-2-attn", {"architecture": "topk"}, "only jump_relu"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_expressed_is_refused_with_the_reason(name, copied):
    case, changes, message = REFUSED[name]
    folder = copied(case)
    change(folder / "config.json", **changes)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_one(folder, "gemma-scope-2" if case.startswith("gemma") else "llamascopium")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("norm", [0.0, -3.0, 1e-30, 4e17, float("nan"), None])
def test_norms_that_nobody_measured_are_refused(norm, copied):
    folder = copied("llamascopium-transcoder")
    name = "dataset_average_activation_norm.blocks.1.b"
    change_weights(
        folder / "sae_weights.safetensors", **{name: None if norm is None else torch.tensor(norm)}
    )
    with pytest.raises(ArtifactError, match=r"no plausible average norm of blocks\.1\.b"):
        read_one(folder, "llamascopium")


def test_a_crosscoder_of_gemma_scope_2_reads_and_writes_the_residual_stream(copied):
    """Which blocks is said by its settings, else by its folder's name."""
    folder = copied("gemma-scope-2-crosscoder")
    hook_points = tuple(f"blocks.{block}.hook_resid_post" for block in (5, 9, 12))
    for _ in range(2):
        foreign = read_one(folder, "gemma-scope-2")
        assert foreign.site == Site(hook_points, hook_points)
        assert foreign.model == "google/gemma-3-270m"
        assert "reported_l0" not in foreign.origin
        (folder / "config.json").unlink(missing_ok=True)
    assert not foreign.dictionary.W_dec[48:96, :32].any()  # a later layer writes no earlier one


@pytest.mark.parametrize("by_norm", [True, False])
def test_each_hook_point_of_a_crosscoder_has_its_own_gate(by_norm, copied):
    """h · ‖W_D‖ of each hook point is held against the threshold; by formula, in float64."""
    folder = copied("llamascopium-crosscoder")
    path, x = folder / "sae_weights.safetensors", expected_of("llamascopium-crosscoder")["x"]
    change(folder / "config.json", act_fn="jumprelu", sparsity_include_decoder_norm=by_norm)
    logs = torch.linspace(-1.5, 0.5, 48)
    change_weights(path, **{"activation_function.log_jumprelu_threshold": logs})
    held = {name: tensor.double() for name, tensor in load(path).items()}
    norm = "dataset_average_activation_norm.blocks.{}.a"
    scale = torch.stack([32**0.5 / held[norm.format(block)] for block in range(2)])
    inputs = x.double().unflatten(1, (2, 32)) * scale[:, None]
    h = torch.einsum("nhd,hdf->nf", inputs, held["W_E"]) + held["b_E"].sum(0)
    gates = h[:, None] * (held["W_D"].norm(dim=2) if by_norm else torch.ones(2, 48))
    codes = h[:, None].relu() * (gates > logs.double().exp())
    decoded = torch.einsum("nhf,hfd->nhd", codes, held["W_D"]) + held["b_D"]
    dictionary = read_one(folder, "llamascopium").dictionary
    assert off(dictionary.encode_dense(x), codes.flatten(1)) < 1e-6
    assert off(dictionary(x), (decoded / scale[:, None]).flatten(1)) < 1e-6
    assert ((codes[:, 0] > 0) != (codes[:, 1] > 0)).any() == by_norm and (codes > 0).any()


FILES = {
    "gemma-scope-res": ("gemma-scope", "params.npz"),
    "gemma-scope-2-transcoder": ("gemma-scope-2", "params.safetensors"),
    "gemma-scope-2-clt": ("gemma-scope-2", "params_layer_1.safetensors"),
    "llama-scope-residual": ("llama-scope", "checkpoints/final.safetensors"),
    "llamascopium-jumprelu": ("llamascopium", "sae_weights.safetensors"),
    "qwen-scope": ("qwen-scope", "layer5.sae.pt"),
}


@pytest.mark.parametrize("case", FILES)
def test_damaged_files_are_named(case, copied):
    format_name, name = FILES[case]
    path = copied(case) / name
    folder = path.parents[name.count("/")]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match=path.name) as caught:
        read_one(folder, format_name)
    assert "\n" not in str(caught.value)
    path.unlink()
    if format_name == "qwen-scope":
        assert not FORMATS[format_name].matches(folder)
        return
    with pytest.raises(ArtifactError, match=path.name):
        read_one(folder, format_name)


def test_tensors_that_do_not_fit_are_named(copied):
    folder = copied("gemma-scope-2-clt")
    change_weights(folder / "params_layer_2.safetensors", w_enc=torch.zeros(16, 48))
    with pytest.raises(ArtifactError, match=r"params_layer_2.*w_enc has shape \(16, 48\)"):
        read_one(folder, "gemma-scope-2")
    (folder / "params_layer_2.safetensors").unlink()
    with pytest.raises(ArtifactError, match="needs every layer"):
        read_one(folder, "gemma-scope-2")
    folder = copied("llamascopium-relu")
    config = json.loads((folder / "config.json").read_text())
    del config["expansion_factor"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="settings lack expansion_factor"):
        read_one(folder, "llamascopium")
    folder = copied("gemma-scope-2-resid")
    change_weights(folder / "params.safetensors", w_dec=torch.zeros(48, 3, 32))
    with pytest.raises(ArtifactError, match="must be a matrix"):
        read_one(folder, "gemma-scope-2")
    folder = copied("llama-scope-residual")
    change(folder / "hyperparams.json", d_model=64)
    with pytest.raises(ArtifactError, match=r"W_enc has shape \(32, 48\)"):
        read_one(folder, "llama-scope")
    path = copied("gemma-scope-res") / "params.npz"
    held = dict(np.load(path))
    np.savez(path, **(held | {"scaling_factor": np.full(48, 2.0)}))
    with pytest.raises(ArtifactError, match="scaling_factor other than one"):
        read_one(path.parent, "gemma-scope")
    np.savez(path, **(held | {"scaling_factor": np.ones(48), "b_enc": held["b_enc"][:9]}))
    with pytest.raises(ArtifactError, match=r"b_enc has shape \(9,\)"):
        read_one(path.parent, "gemma-scope")
    np.savez(path, **{name: held[name] for name in held if name != "threshold"})
    with pytest.raises(ArtifactError, match="lacks the tensors threshold"):
        read_one(path, "gemma-scope")


def test_two_formats_in_a_folder_are_a_question(copied, capsys):
    folder = copied("gemma-scope-res")
    shutil.copytree(folder_of("llamascopium-relu"), folder, dirs_exist_ok=True)
    assert main(["import", str(folder)]) == 2
    error = capsys.readouterr().err.strip()
    assert "gemma-scope or llamascopium" in error and "\n" not in error


def test_other_weight_files_of_llamascopium(copied):
    folder = copied("llamascopium-clt-jumprelu")
    expected = expected_of("llamascopium-clt-jumprelu")
    tensors = load_file(folder / "sae_weights.safetensors")
    (folder / "sae_weights.safetensors").unlink()
    (folder / "checkpoints/pruned.dcp").mkdir(parents=True)
    with pytest.raises(ArtifactError, match=r"pruned\.dcp: save it with save_pretrained"):
        read_one(folder, "llamascopium")
    torch.save({"sae": tensors, "version": "2.0.0b34"}, folder / "sae_weights.pt")
    dictionary = read_one(folder, "llamascopium").dictionary
    assert off(dictionary(expected["x"]), expected["reconstruction"]) < 1e-6
    change(folder / "config.json", norm_activation="inference")
    (note,) = read_one(folder, "llamascopium").notes
    assert "leaves thresholds in the old scale" in note


TC = ("blocks.4.ln2.hook_normalized", "blocks.4.hook_mlp_out")
MEANINGS = [
    ("gemma-scope-res", "google/gemma-2-2b", Site.of("blocks.12.hook_resid_post"), 82),
    ("gemma-scope-att", "google/gemma-2-2b", Site.of("blocks.3.attn.hook_z"), 82),
    ("gemma-scope-transcoder", "google/gemma-2-2b", Site((TC[0],), (TC[1],)), 82),
    ("gemma-scope-embedding", "google/gemma-2-2b", Site.of("hook_embed"), 82),
    ("gemma-scope-2-resid", "google/gemma-3-1b-pt", Site.of("blocks.7.hook_resid_post"), 20),
    ("gemma-scope-2-attn", "google/gemma-3-1b-pt", Site.of("blocks.7.attn.hook_z"), 20),
    (
        "gemma-scope-2-skip-transcoder",
        "google/gemma-3-1b-pt",
        Site(("blocks.7.mlp.hook_in",), ("blocks.7.hook_mlp_out",)),
        20,
    ),
    ("qwen-scope", "Qwen/Qwen3-1.7B-Base", Site.of("blocks.5.hook_resid_post"), 5),
    ("llama-scope-residual", "meta-llama/Llama-3.1-8B", Site.of("blocks.5.hook_resid_post"), 50),
    (
        "llamascopium-r1-distill",
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        Site.of("blocks.5.hook_resid_post"),
        None,
    ),
]


@pytest.mark.parametrize(("case", "model", "site", "l0"), MEANINGS)
def test_model_and_hook_point_are_read_from_settings_and_names(case, model, site, l0, copied):
    format_name = max((name for name in FORMATS if case.startswith(name)), key=len)
    foreign = read_one(folder_of(case), format_name)
    assert (foreign.model, foreign.site) == (model, site)
    assert foreign.origin.get("reported_l0") == l0
    assert "hook point" in foreign.conventions and "selection" in foreign.conventions
    folder = copied(case)
    if format_name in ("gemma-scope-2", "qwen-scope"):
        (folder / "config.json").unlink()
        without = read_one(folder, format_name)
        assert (without.model, without.site) == (model, site)


def test_llama_scope_2_says_its_model_by_its_repository(tmp_path):
    named = "OpenMOSS-Team/Llama-Scope-2-Qwen3-1.7B/transcoder/8x/k128/layer12_transcoder_8x_k128"
    shutil.copytree(folder_of("llamascopium-transcoder"), tmp_path / named)
    change(
        tmp_path / named / "config.json",
        act_fn="topk",
        top_k=5,
        hook_point_in="blocks.1.a",
        hook_point_out="blocks.1.b",
    )
    (foreign,) = read_foreign(Source(tmp_path / named, f"hf:{named}"))
    assert foreign.model == "Qwen/Qwen3-1.7B" and foreign.dictionary.k == 5
    assert foreign.site == Site(("blocks.1.a",), ("blocks.1.b",))
    assert foreign.dictionary.b_in is not None and not foreign.dictionary.b_in.any()


def test_files_without_their_folders_leave_the_hook_point_to_the_user(tmp_path):
    shutil.copy(folder_of("gemma-scope-att") / "params.npz", tmp_path)
    foreign = read_one(tmp_path, "gemma-scope")
    assert foreign.site is None and "do not say where it belongs" in foreign.notes[0]
    shutil.copy(folder_of("qwen-scope") / "layer5.sae.pt", tmp_path)
    with pytest.raises(ArtifactError, match="how many latents are active"):
        read_one(tmp_path / "layer5.sae.pt", "qwen-scope")


def test_every_layer_of_qwen_scope_is_read(copied):
    folder = copied("qwen-scope")
    shutil.copy(folder / "layer5.sae.pt", folder / "layer11.sae.pt")
    read = list(read_foreign(Source(folder, str(folder)), "qwen-scope"))
    assert [foreign.name for foreign in read] == ["layer5", "layer11"]
    assert read[1].site == Site.of("blocks.11.hook_resid_post")


@pytest.mark.parametrize("case", ["llamascopium-clt-jumprelu", "gemma-scope-2-clt"])
def test_a_cross_layer_transcoder_is_kept_as_ours(case, tmp_path):
    format_name = max((name for name in FORMATS if case.startswith(name)), key=len)
    foreign, expected = read_one(folder_of(case), format_name), expected_of(case)
    made_from = {"model": foreign.model}
    save_dictionary(
        tmp_path / "ours",
        foreign.dictionary,
        self_test_inputs=expected["x"],
        training={},
        made_from=made_from,
        site=foreign.site,
    )
    saved = load_dictionary(tmp_path / "ours")
    assert off(saved.dictionary(expected["x"]), expected["reconstruction"]) < 1e-6
    assert saved.site == foreign.site


@pytest.mark.parametrize("generation", [2, 3])
def test_hook_points_of_gemma_are_where_the_suites_read(generation, tmp_path):
    """TransformerLens' names against the modules that the suites' papers and settings name."""
    from tokenizers import Tokenizer, models
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        PreTrainedTokenizerFast,
    )

    from saelab.model.language_model import load_language_model

    model_class, config_class = (
        (Gemma2ForCausalLM, Gemma2Config)
        if generation == 2
        else (Gemma3ForCausalLM, Gemma3TextConfig)
    )
    widths = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "head_dim": 6}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    model = model_class(config_class(**widths, **heads, **special)).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    words = {word: index for index, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(tmp_path)

    seen: dict[str, torch.Tensor] = {}
    layer = model.model.layers[0]
    layer.self_attn.o_proj.register_forward_pre_hook(
        lambda _, given: seen.update({"blocks.0.attn.hook_z": given[0]})
    )
    layer.pre_feedforward_layernorm.register_forward_pre_hook(
        lambda _, given: seen.update({"before": given[0]})
    )
    for module, name in {
        layer.pre_feedforward_layernorm: "blocks.0.mlp.hook_in",
        layer.post_feedforward_layernorm: "blocks.0.hook_mlp_out",
        model.model.embed_tokens: "embeddings",
    }.items():
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    layer.register_forward_pre_hook(lambda _, given: seen.update({"hook_embed": given[0]}))
    tokens = torch.tensor([[1, 5, 6, 7, 8]])
    with torch.no_grad():
        model(tokens)
    before = seen.pop("before")
    seen["blocks.0.ln2.hook_normalized"] = before / before.pow(2).mean(-1, keepdim=True).sqrt()
    embeddings = seen.pop("embeddings")
    assert off(seen["hook_embed"], embeddings) < 1e-5
    table = model.model.embed_tokens.weight[tokens]
    assert off(seen["hook_embed"], table * 16**0.5) < 1e-5, "embeddings are scaled by √d"
    ours = load_language_model(str(tmp_path), dtype="float32", device="cpu")
    captured = ours.capture(tokens, list(seen))
    for name, activation in seen.items():
        assert off(captured[name], activation) < 1e-4, name
