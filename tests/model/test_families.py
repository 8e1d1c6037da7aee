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
    "bert": ("Bert", "ForMaskedLM", SHAPE | {"intermediate_size": 64}),
    "bare_bert": ("Bert", "Model", SHAPE | {"intermediate_size": 64}),
    "roberta": ("Roberta", "ForMaskedLM", SHAPE | {"intermediate_size": 64}),
}
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
            config = getattr(transformers, f"{prefix}Config")(**settings)
            plain = getattr(transformers, prefix + suffix)(config).eval()
            folder = tmp_path_factory.mktemp(name)
            plain.save_pretrained(folder)
            write_tiny_tokenizer(folder)
            model = load_language_model(str(folder), dtype="float32", device="cpu")
            made[name] = plain, folder, model
        return made[name]

    return get


@pytest.mark.parametrize("name", FAMILIES)
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
