"""What a dictionary reads and writes: the Site itself, and dictionaries that write elsewhere."""

import json

import pytest
import torch

from saelab.dictionary import ARCHITECTURES, Dictionary, Site, load_dictionary, save_dictionary
from saelab.dictionary.data_spec import require_width
from saelab.dictionary.saelens import settings_of
from saelab.errors import ArtifactError, ConfigError
from saelab.formats.files import read_json, read_tensors
from saelab.formats.manifest import write_manifest

MADE_FROM = {"model": "tiny", "hook_point": "blocks.0.ln2.hook_normalized"}
SITE = Site(("blocks.0.ln2.hook_normalized",), ("blocks.0.hook_mlp_out",))


def transcoder(architecture, d_in=6, d_out=4, d_sae=24):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    tensors = {name: draw(d_sae).abs() * 0.3 for name in ARCHITECTURES[architecture].extra_tensors}
    if architecture != "gated":
        tensors["b_enc"] = draw(d_sae)
    return Dictionary(
        architecture,
        W_enc=draw(d_in, d_sae),
        W_dec=draw(d_sae, d_out),
        b_dec=draw(d_out),
        b_in=draw(d_in),
        k=3 if architecture in ("topk", "groupmax") else None,
        **tensors,
    )


def test_a_site_says_what_it_is():
    sae = Site.of("blocks.3.hook_resid_post")
    assert sae.is_autoencoder and sae.hook_point == "blocks.3.hook_resid_post"
    assert not SITE.is_autoencoder and SITE.hook_points == SITE.reads + SITE.writes
    assert str(SITE) == "blocks.0.ln2.hook_normalized -> blocks.0.hook_mlp_out"
    for site in (sae, SITE):
        assert Site.from_json(json.loads(json.dumps(site.to_json()))) == site
    with pytest.raises(ConfigError, match="no single hook point"):
        _ = SITE.hook_point


@pytest.mark.parametrize(
    ("reads", "writes", "message"),
    [
        ((), ("a",), "reads: .* names no hook point"),
        (("a",), ("",), "writes: .* no hook point"),
        (("a", "a"), ("a",), "names a hook point twice"),
    ],
)
def test_a_site_that_is_none_is_refused(reads, writes, message):
    with pytest.raises(ConfigError, match=message):
        Site(reads, writes)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_transcoder_subtracts_one_bias_and_adds_another(architecture):
    dictionary = transcoder(architecture)
    x, targets = torch.randn(9, 6), torch.randn(9, 4)
    codes = dictionary.encode_dense(x)
    shifted = Dictionary(
        architecture,
        k=dictionary.k or None,
        **dictionary.tensors() | {"b_in": torch.zeros(6)},
    )
    torch.testing.assert_close(shifted.encode_dense(x - dictionary.b_in), codes)
    reconstruction = codes @ dictionary.W_dec + dictionary.b_dec
    torch.testing.assert_close(dictionary(x), reconstruction)
    torch.testing.assert_close(dictionary.error(x, targets), targets - reconstruction)
    folded = dictionary.with_input_bias(torch.zeros_like(dictionary.b_in))
    torch.testing.assert_close(folded(x), dictionary(x), rtol=1e-4, atol=1e-4)


def test_widths_that_differ_need_two_biases():
    given = transcoder("relu").tensors()
    del given["b_in"]
    with pytest.raises(ConfigError, match="give b_in"):
        Dictionary("relu", **given)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_transcoder_is_the_same_function(architecture, tmp_path):
    dictionary, x = transcoder(architecture), torch.randn(30, 6)
    save_dictionary(
        tmp_path,
        dictionary,
        self_test_inputs=x,
        training={},
        made_from=MADE_FROM,
        site=SITE,
    )
    saved = load_dictionary(tmp_path)
    assert saved.site == SITE and read_json(tmp_path / "saelab.json")["site"] == SITE.to_json()
    assert (saved.dictionary.d_in, saved.dictionary.d_out) == (6, 4)
    torch.testing.assert_close(saved.dictionary(x), dictionary(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="no single hook point"):
        _ = saved.hook_point


@pytest.mark.parametrize(
    ("architecture", "name"), [("relu", "transcoder"), ("jumprelu", "jumprelu_transcoder")]
)
def test_what_saelens_can_express_is_its_transcoder(architecture, name, tmp_path):
    save_dictionary(
        tmp_path,
        transcoder(architecture),
        self_test_inputs=torch.randn(16, 6),
        training={},
        made_from=MADE_FROM,
        site=SITE,
    )
    config = read_json(tmp_path / "cfg.json")
    assert config["architecture"] == name and config["apply_b_dec_to_input"] is False
    assert config["d_out"] == 4
    assert config["metadata"]["hook_name"] == SITE.reads[0]
    assert config["metadata"]["hook_name_out"] == SITE.writes[0]
    assert "b_in" not in read_tensors(tmp_path / "sae_weights.safetensors")


@pytest.mark.parametrize("d_out", [32, 4])
def test_widths_are_checked_at_what_is_read_and_at_what_is_written(tiny_model, tmp_path, d_out):
    site = Site(("blocks.1.mlp.hook_post",), ("blocks.1.hook_mlp_out",))
    save_dictionary(
        tmp_path,
        transcoder("topk", d_in=64, d_out=d_out),
        self_test_inputs=torch.randn(16, 64),
        training={},
        made_from=MADE_FROM,
        site=site,
    )
    saved = load_dictionary(tmp_path)
    if d_out == 32:
        require_width(tiny_model, saved.site, saved.dictionary, saved.folder)
        return
    with pytest.raises(ArtifactError, match=r"writes activations of width 4, but .*width 32"):
        require_width(tiny_model, saved.site, saved.dictionary, saved.folder)


def test_a_manifest_without_a_site_opens_as_an_autoencoder(tmp_path):
    from saelab.dictionary.storage import content_hash_of

    weights = transcoder("relu", d_out=6).tensors()
    del weights["b_in"]
    save_dictionary(
        tmp_path,
        Dictionary("relu", **weights),
        self_test_inputs=torch.randn(16, 6),
        training={},
        made_from=MADE_FROM,
    )
    manifest = read_json(tmp_path / "saelab.json")
    del manifest["site"]
    manifest["content_hash"] = content_hash_of(manifest)
    write_manifest(tmp_path / "saelab.json", manifest)
    assert load_dictionary(tmp_path).site == Site.of(MADE_FROM["hook_point"])
    manifest["site"] = {"reads": []}
    manifest["content_hash"] = content_hash_of(manifest)
    write_manifest(tmp_path / "saelab.json", manifest)
    with pytest.raises(ArtifactError, match="names no hook points"):
        load_dictionary(tmp_path)


@pytest.mark.parametrize(
    ("names", "hook_point"),
    [
        ({"hook_name": "model.layers.12"}, "blocks.12.hook_resid_post"),
        ({"hook_name": "transformer.h.3.attn"}, "blocks.3.hook_attn_out"),
        ({"hook_name": "model.layers.2.input_layernorm"}, None),
        ({"hook_name": "model.layers.2", "hook_name_out": "model.layers.2.post_norm"}, None),
    ],
)
def test_a_module_of_hugging_face_is_named_as_a_hook_point(names, hook_point):
    """As SAELens records it; where its output has no name, neither has the site."""
    metadata = {"model_class_name": "AutoModelForCausalLM", **names}
    assert settings_of({"metadata": metadata})["hook_name"] == hook_point
    ours = {"metadata": {"hook_name": "blocks.3.hook_mlp_out"}}
    assert settings_of(ours)["hook_name"] == "blocks.3.hook_mlp_out"
