"""Model families as tiny random models: every hook point listed gives right rows, or a refusal."""

import dataclasses
import importlib

import pytest
import torch

from saelab.cache.config import HarvestConfig
from saelab.cache.reader import open_cache
from saelab.cache.writer import write_caches
from saelab.errors import ModelError
from saelab.model.language_model import load_language_model
from tests.conftest import write_tiny_tokenizer

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
CAUSAL = SHAPE | {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = EXPERTS | {
    "num_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "moe_k": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
}
LATENT = (SHAPE | ROUTED) | {
    "intermediate_size": 64,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
}
GPT = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
LIKE_LLAMA = (  # noqa: SIM905
    "Apertus Arcee BitNet Cohere Cohere2 Ernie4_5 Exaone4 Gemma Gemma2 Gemma3 Glm Glm4 Granite "
    "HunYuanDenseV1 Llama Ministral3 Mistral ModernBertDecoder NanoChat Nemotron Olmo Olmo2 Olmo3 "
    "OlmoHybrid Phi Phi3 Qwen2 SeedOss SmolLM3 StableLm Starcoder2 VaultGemma"
).split()
LIKE_QWEN2_MOE = "Afmoe Ernie4_5_Moe FlexOlmo Glm4Moe GraniteMoe MiniMaxM2 Olmoe Qwen2Moe".split()  # noqa: SIM905
FAMILIES = {
    "opt": ("OPT", "ForCausalLM", SHAPE | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "mixtral": ("Mixtral", "ForCausalLM", CAUSAL | EXPERTS),
    "qwen3_moe": (
        "Qwen3Moe",
        "ForCausalLM",
        CAUSAL | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    "gpt_oss": (
        "GptOss",
        "ForCausalLM",
        CAUSAL | EXPERTS | {"layer_types": ["full_attention"] * 2},
    ),
    "gpt_neox": ("GPTNeoX", "ForCausalLM", SHAPE | {"intermediate_size": 64}),
    "qwen3": ("Qwen3", "ForCausalLM", CAUSAL),
    "gpt2": ("GPT2", "LMHeadModel", GPT),
    "gpt2_bare": ("GPT2", "Model", GPT),
    "gptj": ("GPTJ", "ForCausalLM", GPT | {"rotary_dim": 4}),
    "codegen": ("CodeGen", "ForCausalLM", GPT | {"rotary_dim": 4}),
    "gpt_bigcode": ("GPTBigCode", "ForCausalLM", GPT),
    "gpt_neo": (
        "GPTNeo",
        "ForCausalLM",
        SHAPE | {"num_heads": 4, "num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    ),
    "bloom": ("Bloom", "ForCausalLM", {"vocab_size": 300, "hidden_size": 32, "n_layer": 2}),
    "falcon": ("Falcon", "ForCausalLM", SHAPE),
    "mpt": (
        "Mpt",
        "ForCausalLM",
        {"vocab_size": 300, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    ),
    "xglm": (
        "XGLM",
        "ForCausalLM",
        SHAPE | {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64},
    ),
    "deepseek_v2": ("DeepseekV2", "ForCausalLM", LATENT | {"topk_method": "greedy"}),
    "deepseek_v3": ("DeepseekV3", "ForCausalLM", LATENT),
    "glm4_moe_lite": ("Glm4MoeLite", "ForCausalLM", LATENT),
    "jamba": (
        "Jamba",
        "ForCausalLM",
        CAUSAL | {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    ),
    "lfm2": ("Lfm2", "ForCausalLM", CAUSAL | {"layer_types": ["conv", "full_attention"]}),
    **{name.lower(): (name, "ForCausalLM", CAUSAL) for name in LIKE_LLAMA},
    **{name.lower(): (name, "ForCausalLM", CAUSAL | ROUTED) for name in LIKE_QWEN2_MOE},
    "openai_gpt": ("OpenAIGPT", "LMHeadModel", GPT),
    "mamba": (
        "Mamba",
        "ForCausalLM",
        {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2},
    ),
    "rwkv": ("Rwkv", "ForCausalLM", {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2}),
    "qwen3_next": ("Qwen3Next", "ForCausalLM", CAUSAL | ROUTED),
    "bert": ("Bert", "ForMaskedLM", SHAPE | {"intermediate_size": 64}),
    "bare_bert": ("Bert", "Model", SHAPE | {"intermediate_size": 64}),
    "roberta": ("Roberta", "ForMaskedLM", SHAPE | {"intermediate_size": 64}),
}
IN_EVERY_RUN = ("opt", "mixtral", "gpt2", "gpt_neox", "falcon", "deepseek_v3", "bert")
"""The most unlike one another; all of them run where slow tests do."""
WITHOUT_MLP = ("openai_gpt", "mamba", "rwkv", "qwen3_next")
EDIT = lambda x, tokens, first: x  # noqa: E731
TOKENS = torch.arange(3 * 7).reshape(3, 7) + 5


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """By a family's name: the transformers model, the folder, and the loaded model."""
    made = {}

    def get(name):
        if name not in made:
            prefix, suffix, settings = FAMILIES[name]
            transformers = importlib.import_module("transformers")
            torch.manual_seed(0)
            kind = getattr(transformers, prefix + suffix)
            plain = kind(kind.config_class(**settings)).eval()
            folder = tmp_path_factory.mktemp(name)
            plain.save_pretrained(folder)
            write_tiny_tokenizer(folder)
            model = load_language_model(str(folder), dtype="float32", device="cpu")
            made[name] = plain, folder, model
        return made[name]

    return get


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in IN_EVERY_RUN else pytest.mark.slow)
        for name in FAMILIES
        if name not in WITHOUT_MLP
    ],
)
def test_every_listed_hook_point_gives_rows_and_blocks_those_of_transformers(family, name):
    plain, _, model = family(name)
    names = model.hook_points()
    assert {"blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"} <= set(names)
    for hook_point in names:
        if hook_point.startswith("blocks.1.") and hook_point != "blocks.1.hook_mlp_out":
            continue  # as block 0
        rows = model.capture(TOKENS, [hook_point])[hook_point]
        assert rows.shape == (3, 7, model.width_at(hook_point)), hook_point
        assert rows.isfinite().all(), hook_point
    hidden = plain(input_ids=TOKENS, output_hidden_states=True).hidden_states
    for at, hook_point in ((0, "blocks.0.hook_resid_pre"), (1, "blocks.0.hook_resid_post")):
        rows = model.capture(TOKENS, [hook_point])[hook_point]
        torch.testing.assert_close(rows, hidden[at], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "block"), [("mamba", "backbone.layers.0"), ("rwkv", "rwkv.blocks.0")]
)
def test_what_has_no_mlp_of_its_own_gives_its_blocks(family, name, block):
    plain, _, model = family(name)
    seen = []
    plain.get_submodule(block).register_forward_hook(lambda module, args, out: seen.append(out))
    plain(input_ids=TOKENS)
    hook_point = "blocks.0.hook_out"
    rows = model.capture(TOKENS, [hook_point])[hook_point]
    expected = seen[0] if isinstance(seen[0], torch.Tensor) else seen[0][0]
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-6)


def test_modules_that_give_lists_are_read(family):
    _, _, model = family("openai_gpt")  # of whose blocks transformer_lens gives the parts alone
    names = model.hook_points()
    assert "blocks.0.attn.hook_out" in names and "blocks.0.hook_resid_post" not in names
    for name in names:
        assert model.capture(TOKENS, [name])[name].shape == (3, 7, model.width_at(name))


def test_a_model_that_transformer_lens_boots_and_cannot_run_is_a_line(family):
    _, _, model = family("qwen3_next")
    with pytest.raises(ModelError, match=r"transformer_lens cannot run this model \(Qwen3Next"):
        model.hook_points()


def test_opt_gives_its_mlp_and_its_neurons_row_by_row_and_takes_them_back(family):
    plain, _, model = family("opt")
    seen = {}
    layer = plain.model.decoder.layers[1]
    layer.fc1.register_forward_hook(lambda module, args, out: seen.update(pre=out))
    layer.fc2.register_forward_hook(lambda module, args, out: seen.update(out=out))
    expected_logits = plain(input_ids=TOKENS).logits
    expected = {
        "blocks.1.mlp.hook_pre": seen["pre"].reshape(3, 7, 64),
        "blocks.1.mlp.hook_post": seen["pre"].relu().reshape(3, 7, 64),
        "blocks.1.hook_mlp_out": seen["out"].reshape(3, 7, 32),
    }
    for name, rows in expected.items():
        assert name in model.hook_points()
        torch.testing.assert_close(model.capture(TOKENS, [name])[name], rows, rtol=1e-5, atol=1e-6)
        logits = model.run(TOKENS, {name: lambda x: x.clone()}).logits
        torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-6)
        changed = model.run(TOKENS, {name: torch.zeros_like}).logits
        assert (changed - expected_logits).abs().max() > 1e-4
    with pytest.raises(ModelError, match=r"gradient at blocks\.1\.mlp\.hook_post cannot be had"):
        model.capture_with_gradients(TOKENS, ["blocks.1.mlp.hook_post"])


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_a_mixture_of_experts_has_no_neurons_by_the_name_of_its_output(family, name):
    _, _, model = family(name)
    for hidden, instead in (("hook_post", "mlp.hook_out"), ("hook_pre", "mlp.hook_in")):
        hook_point = f"blocks.0.mlp.{hidden}"
        assert hook_point not in model.hook_points()
        with pytest.raises(ModelError, match=f"no hook point '{hook_point}'.*'blocks.0.{instead}'"):
            model.capture(TOKENS, [hook_point])
    of_mlp = [name for name in model.hook_points() if name.startswith("blocks.0.mlp.hook_")]
    assert of_mlp == ["blocks.0.mlp.hook_in", "blocks.0.mlp.hook_out"]


@pytest.mark.parametrize("name", ["bert", "bare_bert", "roberta"])
def test_an_encoder_is_cached_and_says_what_it_cannot(family, name, model_text, tmp_path):
    _, folder, model = family(name)
    assert model.is_encoder and not family("qwen3")[2].is_encoder
    later = TOKENS.clone()
    later[:, -1] += 1
    hook_point = "blocks.0.hook_resid_post"
    first, other = (model.capture(t, [hook_point])[hook_point][:, 0] for t in (TOKENS, later))
    assert (first - other).abs().max() > 0  # the first token sees the last
    captured = model.capture(TOKENS, ["blocks.0.mlp.hook_out", "blocks.0.mlp.out.hook_out"])
    torch.testing.assert_close(*captured.values())
    with pytest.raises(ModelError, match=r"no hook point 'blocks\.0\.hook_resid_mid'"):
        model.width_at("blocks.0.hook_resid_mid")
    longest = torch.full((1, model.max_context), 7)
    assert model.capture(longest, [hook_point])[hook_point].shape == (1, model.max_context, 32)
    config = HarvestConfig(
        model=str(folder),
        hook_points=(hook_point,),
        text=model_text,
        context_length=16,
        n_tokens=256,
        batch_contexts=4,
        model_dtype="float32",
        device="cpu",
    )
    assert open_cache(write_caches(tmp_path / "c", config)[0]).n_rows > 200
    with pytest.raises(ModelError, match="gradients of the loss need a model that predicts"):
        write_caches(tmp_path / "g", dataclasses.replace(config, gradients=True))
    for refused in (
        lambda: model.run(TOKENS),
        model.logit_lens,
        lambda: model.last_logits(TOKENS[0], hook_point, torch.zeros(1, 32)),
        lambda: model.next_token_gradients(TOKENS[0], hook_point, 5),
        lambda: model.generate(TOKENS[0], hook_point, EDIT, n_versions=1, n_tokens=2),
        lambda: model.prepare_patches(TOKENS, torch.full((3,), 6), [hook_point]),
    ):
        with pytest.raises(ModelError, match="need a model that predicts the next token") as caught:
            refused()
        assert "\n" not in str(caught.value)
