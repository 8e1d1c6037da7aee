"""Dictionaries of models with processed weights, on raw ones: the same codes and the same loss.

TransformerLens once folded layer norms and value biases and centred writing weights by default, and
most GPT-2 dictionaries were trained on that. `--processed-weights` makes the same function of the
raw model: held here against TransformerLens' own processing, of a model whose norms have gains and
biases and whose attention has a value bias.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_tiny_gpt2

from saelab.cli import main
from saelab.dictionary import Dictionary, Site, load_dictionary
from saelab.dictionary.importers.processed import on_raw_weights, value_bias
from saelab.errors import ConfigError
from saelab.formats.files import write_json, write_tensors
from saelab.model.language_model import load_language_model

WRITTEN = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.0.hook_mlp_out")
VALUES = ("blocks.1.attn.hook_z", "blocks.0.attn.hook_v")
SAME = ("ln2.hook_normalized", "mlp.hook_pre", "mlp.hook_post", "attn.hook_q", "attn.hook_k")


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory):
    """A tiny GPT-2 with gains and biases everywhere."""
    from transformers import GPT2LMHeadModel

    folder = write_tiny_gpt2(tmp_path_factory.mktemp("gains"))
    model = GPT2LMHeadModel.from_pretrained(folder)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def raw(gpt2_folder):
    return load_language_model(str(gpt2_folder), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def processed(gpt2_folder):
    """The same with TransformerLens' own processing."""
    bridge = load_language_model(str(gpt2_folder), dtype="float32", device="cpu")._forward.bridge
    bridge.enable_compatibility_mode()
    return bridge


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 250, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def cached(processed, tokens):
    with torch.no_grad():
        return processed.run_with_cache(tokens)[1]


def random_dictionary(b_dec: float = 0.0) -> Dictionary:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(96, 32, generator=generator) / 32**0.5
    bias = 0.1 * torch.randn(96, generator=generator)
    tensors: dict[str, Any] = {"W_enc": directions.T.clone(), "W_dec": directions, "b_enc": bias}
    return Dictionary("relu", **tensors, b_dec=torch.full((32,), b_dec))


@pytest.mark.parametrize("hook_point", [*WRITTEN, *VALUES])
def test_a_dictionary_on_raw_weights_is_the_one_on_processed_weights(
    hook_point, raw, processed, cached, tokens
):
    plain = random_dictionary(0.0 if hook_point in WRITTEN else 0.2)
    ours = on_raw_weights(plain, Site.of(hook_point), raw)
    theirs = cached[hook_point].reshape(60, 32)
    rows = raw.capture(tokens, [hook_point])[hook_point].flatten(0, 1)
    assert float((theirs - rows).abs().max()) > 0.01, "processing must change something"
    codes = plain.encode_dense(theirs)
    torch.testing.assert_close(ours.encode_dense(rows), codes, rtol=1e-4, atol=1e-5)
    if hook_point.endswith("hook_v"):
        return

    def spliced(dictionary):
        return lambda x, hook=None: dictionary(x.reshape(60, 32)).reshape(x.shape)

    logits = raw.run(tokens, {hook_point: spliced(ours)}).logits.log_softmax(-1)
    with torch.no_grad():
        wanted = processed.run_with_hooks(tokens, fwd_hooks=[(hook_point, spliced(plain))])
    torch.testing.assert_close(logits, wanted.log_softmax(-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("end", SAME)
def test_where_processing_changes_nothing_the_flag_is_refused(end, raw, cached, tokens):
    """Behind a layer norm, `hook_normalized` is before the gain: with and without folding alike."""
    name = f"blocks.1.{end}"
    rows = raw.capture(tokens, [name])[name]
    torch.testing.assert_close(rows, cached[name].reshape(rows.shape), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="the same with raw weights"):
        on_raw_weights(random_dictionary(), Site.of(name), raw)


@pytest.mark.parametrize(
    ("end", "norm"), [("ln2.hook_out", "ln2"), ("mlp.hook_in", "ln2"), ("attn.hook_in", "ln1")]
)
def test_behind_a_folded_norm_the_hook_point_of_the_raw_model_is_named(
    end, norm, raw, cached, tokens
):
    instead = f"blocks.1.{norm}.hook_normalized"
    theirs = cached[f"blocks.1.{end}"]
    rows = raw.capture(tokens, [instead])[instead]
    torch.testing.assert_close(rows, theirs, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match=f"is {instead} of the raw model"):
        on_raw_weights(random_dictionary(), Site.of(f"blocks.1.{end}"), raw)


def test_other_sites_and_normalised_rows_are_refused(raw):
    two = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
    for site in (Site(two, two), Site(two[:1], two[1:])):
        with pytest.raises(ConfigError, match="read and write one hook point"):
            on_raw_weights(random_dictionary(), site, raw)
    tensors: dict[str, Any] = dict(random_dictionary().tensors())
    normed = Dictionary("relu", input_normalisation="layer_norm", **tensors)
    with pytest.raises(ConfigError, match="normalises each row already"):
        on_raw_weights(normed, Site.of(two[0]), raw)


def test_a_folded_value_bias_is_found_and_the_flag_mends_it(
    raw, gpt2_folder, model_text, tmp_path, capsys
):
    """Planted: the principal directions of z without its value bias, each in both signs."""
    at = "blocks.1.attn.hook_z"
    (document,) = raw.tokenize([Path(model_text.source).read_text()[:4000]])
    rows = raw.capture(torch.tensor(document[:640]).view(20, 32), [at])[at].flatten(0, 1)
    rows = rows - value_bias(raw, at)
    main_directions = torch.linalg.svd(rows - rows.mean(0))[2][:12]
    W_dec = torch.cat([main_directions, -main_directions])
    tensors = {"W_enc": W_dec.T, "W_dec": W_dec, "b_enc": torch.zeros(24), "b_dec": rows.mean(0)}
    metadata = {"hook_name": at, "model_name": str(gpt2_folder), "context_size": 32, "l0": 12.0}
    config = {"architecture": "standard", "d_in": 32, "d_sae": 24, "metadata": metadata}
    write_tensors(tmp_path / "sae" / "sae_weights.safetensors", tensors)
    write_json(tmp_path / "sae" / "cfg.json", config)
    words = ["import", str(tmp_path / "sae"), "--text-source", str(model_text.source)]
    words += ["--held-out-fraction", "0.5", "--n-tokens", "640", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "without")]) == 0
    cause = "it was trained on a model with value biases folded away (--processed-weights)"
    assert f"Likely cause: {cause}" in capsys.readouterr().out
    assert main([*words, "--out", str(tmp_path / "with"), "--processed-weights"]) == 0
    assert "WARNING" not in capsys.readouterr().out
    assert main(["info", str(tmp_path / "with")]) == 0
    ours = load_dictionary(tmp_path / "with").dictionary
    torch.testing.assert_close(ours.b_dec, rows.mean(0) + value_bias(raw, at))
