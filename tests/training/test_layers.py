"""One run, dictionaries of several layers: each as if its own run had been given its own rows."""

import dataclasses
from pathlib import Path

import pytest
import torch

from saelab.cache.aligned import open_caches
from saelab.cache.writer import write_caches
from saelab.dictionary import Site, load_dictionary
from saelab.errors import ConfigError
from saelab.training.config import TrainConfig
from saelab.training.run import train

READ, WRITTEN = "blocks.{layer}.mlp.hook_in", "blocks.{layer}.hook_mlp_out"
NAMES = [name.format(layer=layer) for layer in (0, 1) for name in (READ, WRITTEN)]


@pytest.fixture(scope="module")
def caches(tiny_harvest, tmp_path_factory):
    """What both MLPs of the tiny model read and write, from one harvest."""
    folder = tmp_path_factory.mktemp("layers") / "caches"
    rows = dataclasses.replace(tiny_harvest.rows, max_norm_ratio=None)
    write_caches(
        folder,
        dataclasses.replace(tiny_harvest, hook_points=tuple(NAMES), gradients=False, rows=rows),
    )
    return folder


def config_of(out, **changes):
    config = TrainConfig(
        out=out,
        reads=(READ,),
        writes=(WRITTEN,),
        layers=(0, 1),
        d_sae=(48,),
        k=(4,),
        n_tokens=256 * 12,
        batch_rows=256,
        device="cpu",
        product_dtype="float32",
        checkpoint_every_steps=5,
        skip=True,
    )
    return dataclasses.replace(config, **changes)


def test_dictionaries_of_layers_are_those_of_runs_of_their_own(caches, tmp_path):
    run = train(config_of(tmp_path / "both", cache=caches))
    assert list(run["dictionaries"]) == ["layer00-topk-d48-k4-s0", "layer01-topk-d48-k4-s0"]
    for layer in (0, 1):
        names = {"reads": READ, "writes": WRITTEN}
        site = {role: (name.format(layer=layer),) for role, name in names.items()}
        alone = config_of(tmp_path / f"alone{layer}", cache=caches, layers=(), **site)
        train(alone)
        expected = load_dictionary(alone.out / "dictionaries" / "topk-d48-k4-s0")
        folder = tmp_path / "both" / "dictionaries" / f"layer0{layer}-topk-d48-k4-s0"
        found = load_dictionary(folder)
        assert found.site == Site(**site) == expected.site
        for name, tensor in expected.dictionary.tensors().items():
            assert torch.equal(tensor, found.dictionary.tensors()[name]), name
        kept = {"cache_hash", "cache_hashes", "norm_ceilings", "hook_point", "target_mean"}
        assert {name: found.made_from[name] for name in kept} == {
            name: expected.made_from[name] for name in kept
        }
        assert found.made_from["cache_hash"] == open_caches(caches, found.site).content_hash
        assert bool(found.dictionary.W_skip.any())


def test_all_layers_from_one_stream_of_the_model(tiny_harvest, tmp_path):
    stream = dataclasses.replace(tiny_harvest, gradients=False)
    for name, changes in {
        "transcoders": {},
        "autoencoders": {"reads": (), "writes": (), "hook_point": WRITTEN, "skip": False},
    }.items():
        out = tmp_path / name
        run = train(config_of(out, stream=stream, stream_pool_rows=512, **changes))
        for index, (of_layer, figures) in enumerate(run["dictionaries"].items()):
            saved = load_dictionary(out / "dictionaries" / of_layer)
            assert saved.site.writes == (WRITTEN.format(layer=index),)
            assert set(saved.made_from.get("norm_ceilings", saved.site.hook_points)) == set(
                saved.site.hook_points
            )
            assert figures["layer"] == index and figures["fvu"] < 1


@pytest.mark.parametrize(
    ("reads", "writes"),
    [
        ("blocks.1.attn.hook_in", "blocks.1.hook_attn_out"),
        ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_post"),
        ("blocks.1.hook_attn_out", "blocks.1.hook_resid_post"),
    ],
)
def test_any_pair_of_hook_points_trains(tiny_harvest, tmp_path, reads, writes):
    stream = dataclasses.replace(tiny_harvest, gradients=False)
    changes = {"reads": (reads,), "writes": (writes,), "layers": ()}
    run = train(config_of(tmp_path / "run", stream=stream, stream_pool_rows=512, **changes))
    ((name, figures),) = run["dictionaries"].items()
    saved = load_dictionary(tmp_path / "run" / "dictionaries" / name)
    assert saved.site == Site((reads,), (writes,)) and figures["fvu"] < 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ()}, "no layers are given"),
        ({"writes": ("blocks.1.hook_mlp_out",)}, "lacks the {layer}"),
        ({"reads": (), "writes": ()}, "need a hook_point"),
        ({"init_from": Path("somewhere")}, "init_from is of one dictionary"),
        ({"reads": (WRITTEN,)}, "skip: of a dictionary that writes what it reads"),
        ({"layers": (1, 1)}, "layers names a value twice"),
    ],
)
def test_layers_that_fit_nothing_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        config_of(tmp_path, **changes)
