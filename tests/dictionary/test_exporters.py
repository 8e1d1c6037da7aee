"""Exports: round trips through the importers, the files that steer, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from saelab.cli import main
from saelab.dictionary import ARCHITECTURES, Dictionary, Site, load_dictionary, save_dictionary
from saelab.dictionary.importers import cross_layer, read_foreign, recognise, resolve
from saelab.dictionary.saelens import SAELENS_ARCHITECTURE

HOOK = "blocks.2.hook_resid_post"
ORIGIN = {"model": "m", "hook_point": HOOK, "row_rule": {}, "context_length": 8}


def save(folder, architecture, *, site=None, **settings):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    tensors = {"W_enc": draw(6, 24), "W_dec": draw(24, 6), "b_dec": draw(6)}
    if architecture != "gated":
        tensors["b_enc"] = draw(24)
    for name in ARCHITECTURES[architecture].extra_tensors:
        tensors[name] = draw(24).abs()
    k = 3 if architecture in ("topk", "groupmax") else None
    dictionary = Dictionary(architecture, k=k, **tensors, **settings)
    x = draw(20, 6)
    made_from = ORIGIN if site is None else {**ORIGIN, "hook_point": site.reads[0]}
    save_dictionary(
        folder, dictionary, self_test_inputs=x, training={}, made_from=made_from, site=site
    )
    return load_dictionary(folder).dictionary, x


@pytest.mark.parametrize(
    ("target", "architecture"),
    [
        *(("saelens", architecture) for architecture in SAELENS_ARCHITECTURE),
        *(("dictionary_learning", architecture) for architecture in SAELENS_ARCHITECTURE),
        ("sparsify", "topk"),
        ("sparsify", "groupmax"),
    ],
)
@pytest.mark.parametrize("subtracts", [True, False])
def test_round_trips_compute_the_same(target, architecture, subtracts, tmp_path):
    settings = {} if subtracts else {"b_in": torch.zeros(6)}
    dictionary, x = save(tmp_path / "ours", architecture, **settings)
    arguments = ["export", str(tmp_path / "ours"), "--to", target, "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert main(arguments) == 2  # what is there is not replaced
    source = resolve(str(tmp_path / "out"))
    assert recognise(source) == target
    (foreign,) = read_foreign(source)
    torch.testing.assert_close(foreign.dictionary(x), dictionary(x), rtol=1e-5, atol=1e-5)
    same = {"saelens": True, "sparsify": subtracts, "dictionary_learning": True}[target]
    if same and (subtracts or target == "saelens"):
        for name in ("W_enc", "W_dec", "b_dec"):
            assert torch.equal(getattr(foreign.dictionary, name), getattr(dictionary, name))


def test_a_transcoder_goes_to_sparsify_and_back(tmp_path):
    site = Site(("blocks.1.mlp.hook_in",), ("blocks.1.hook_mlp_out",))
    settings = {"b_in": torch.randn(6), "W_skip": torch.randn(6, 6)}
    dictionary, x = save(tmp_path / "ours", "topk", site=site, **settings)
    out = tmp_path / "layers.1.mlp"
    assert main(["export", str(tmp_path / "ours"), "--to", "sparsify", "--out", str(out)]) == 0
    (foreign,) = read_foreign(resolve(str(out)))
    assert foreign.site == site
    torch.testing.assert_close(foreign.dictionary(x), dictionary(x), rtol=1e-5, atol=1e-5)


def test_steering_files_hold_the_sum_of_decoder_rows(tmp_path):
    import gguf

    dictionary, _ = save(tmp_path / "ours", "relu")
    expected = 2 * dictionary.W_dec[3] - 0.5 * dictionary.W_dec[7]
    for target in ("vectors", "gguf"):
        out = tmp_path / target
        arguments = ["export", str(tmp_path / "ours"), "--to", target, "--out", str(out)]
        assert main([*arguments, "--latents", "3=2", "7=-0.5", "--name", "war"]) == 0
    content = torch.load(tmp_path / "vectors" / "war.pt", weights_only=True)
    ((module, entry),) = content.items()
    assert module == "layers.2" and entry["action"] == "add"
    torch.testing.assert_close(entry["steering_vector"][0], expected)
    reader = gguf.GGUFReader(tmp_path / "gguf" / "war.gguf")
    (tensor,) = reader.tensors
    assert tensor.name == "direction.2"
    np.testing.assert_allclose(tensor.data, expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "arguments", "message"),
    [
        ("relu", ["--to", "sparsify"], "it knows topk and groupmax alone, not relu"),
        ("groupmax", ["--to", "saelens"], "no class for a groupmax dictionary"),
        ("groupmax", ["--to", "dictionary_learning"], "it has no groupmax"),
        ("relu", ["--to", "gguf"], "latents: needed for"),
        ("relu", ["--to", "gguf", "--latents", "99=1"], "the dictionary has 0 to 23"),
        ("relu", ["--to", "vectors", "--latents", "three"], "give LATENT=STRENGTH"),
        ("relu", ["--to", "saelens", "--latents", "3=1"], "and for nothing else"),
    ],
)
def test_what_a_format_cannot_carry_is_refused(architecture, arguments, message, tmp_path, capsys):
    save(tmp_path / "ours", architecture)
    given = ["export", str(tmp_path / "ours"), *arguments, "--out", str(tmp_path / "out")]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_several_hook_points_are_refused_before_anything_is_written(tmp_path, capsys):
    both = ("blocks.1.hook_resid_post", HOOK)
    save(tmp_path / "ours", "relu", site=Site(both, both))
    out = tmp_path / "out"
    given = ["export", str(tmp_path / "ours"), "--to", "dictionary_learning", "--out", str(out)]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert "ours cannot be exported to dictionary_learning: it knows autoencoders of one" in error
    assert not list(tmp_path.rglob("ae.pt"))


FIXTURES = Path(__file__).parent / "importers" / "fixtures"


def save_foreign(folder, foreign, x):
    """What an importer read, as a dictionary folder."""
    save_dictionary(
        folder,
        foreign.dictionary,
        self_test_inputs=x,
        training={},
        made_from={**ORIGIN, "model": "tiny"},
        site=foreign.site,
    )


@pytest.mark.parametrize("limit", [0, 1e9])
@pytest.mark.parametrize("case", ["circuit-tracer-clt-jumprelu", "circuit-tracer-clt-relu-skip"])
def test_circuit_tracers_own_cross_layer_files_come_back(case, limit, tmp_path, monkeypatch):
    """Its library wrote the fixture with its codes and reconstructions: layers apart, or whole."""
    monkeypatch.setattr(cross_layer, "DENSE_LIMIT", limit)
    expected = load_file(FIXTURES / case / "expected.safetensors")
    (foreign,) = read_foreign(resolve(str(FIXTURES / case)))
    save_foreign(tmp_path / "ours", foreign, expected["x"])
    out = tmp_path / "out"
    arguments = ["export", str(tmp_path / "ours"), "--to", "circuit-tracer", "--out", str(out)]
    assert main(arguments) == 0
    written = {path.name for path in (FIXTURES / case).glob("W_*.safetensors")}
    assert {path.name for path in out.glob("*.safetensors")} == written
    for name in written:
        tensors, wanted = load_file(out / name), load_file(FIXTURES / case / name)
        assert tensors.keys() == wanted.keys()
        for key in wanted:
            torch.testing.assert_close(tensors[key].flatten(), wanted[key].flatten())
            assert key.startswith("threshold") or tensors[key].shape == wanted[key].shape
    (again,) = read_foreign(resolve(str(out)))
    assert again.site == foreign.site
    codes = again.dictionary.encode(expected["x"])
    torch.testing.assert_close(codes.to_dense(), expected["codes"])
    reconstruction = again.dictionary.decode(codes)
    torch.testing.assert_close(reconstruction, expected["reconstruction"])


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "topk"])
def test_transcoders_of_every_layer_are_a_set_of_circuit_tracers(architecture, tmp_path, capsys):
    folders, ours, x = [], [], None
    for layer in (1, 0, 2):
        site = Site((f"blocks.{layer}.mlp.hook_in",), (f"blocks.{layer}.hook_mlp_out",))
        folders.append(str(tmp_path / f"at{layer}"))
        dictionary, x = save(tmp_path / f"at{layer}", architecture, site=site, b_in=torch.randn(6))
        ours.append((layer, dictionary))
    out = tmp_path / "out"
    words = ["--to", "circuit-tracer", "--out", str(out)]
    assert main(["export", *folders, *words]) == 0
    read = list(read_foreign(resolve(str(out))))
    for (_, dictionary), foreign in zip(sorted(ours, key=lambda each: each[0]), read, strict=True):
        codes = dictionary.encode_dense(x)
        torch.testing.assert_close(foreign.dictionary.encode_dense(x), codes, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(foreign.dictionary(x), dictionary(x), rtol=1e-4, atol=1e-4)
    assert str(read[2].site) == "blocks.2.mlp.hook_in -> blocks.2.hook_mlp_out"
    capsys.readouterr()
    words[-1] = str(tmp_path / "fewer")
    assert main(["export", folders[0], folders[2], *words]) == 2
    error = capsys.readouterr().err
    assert "layers 1, 2 are given" in error and "add that of layer 0" in error
    assert error.count("\n") == 1 and not (tmp_path / "fewer").exists()


def test_what_circuit_tracer_cannot_hold_is_refused(tmp_path, capsys):
    both = ("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out")
    reads = ("blocks.0.mlp.hook_in", "blocks.1.mlp.hook_in")
    cases = [
        ("relu", Site(both, both), "no transcoder does"),
        ("relu", Site(reads[:1], both[1:]), "is of two layers"),
        ("relu", Site(reads[1:], both[1:]), "add that of layer 0"),
        ("relu", Site(reads, both), "read several layers, or write earlier ones"),
        ("topk", Site(reads, both), "relu or jumprelu, not topk: train with batch_topk"),
        ("gated", Site(reads[:1], both[:1]), "it has no gated"),
    ]
    for index, (architecture, site, message) in enumerate(cases):
        folder = tmp_path / str(index)
        save(folder, architecture, site=site)
        assert main(["export", str(folder), "--to", "circuit-tracer", "--out", f"{folder}o"]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert main(["export", f"{tmp_path}/0", f"{tmp_path}/1", "--to", "saelens", "--out", "o"]) == 2
    assert "2 dictionaries are given" in capsys.readouterr().err
