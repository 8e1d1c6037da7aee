"""Exports: round trips through the importers, the files that steer, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saelab.cli import main
from saelab.dictionary import ARCHITECTURES, Dictionary, Site, load_dictionary, save_dictionary
from saelab.dictionary.importers import read_foreign, recognise, resolve
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
