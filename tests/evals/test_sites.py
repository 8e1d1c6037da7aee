"""Suites and feature stores on dictionaries that write elsewhere, or at several hook points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from saelab.cache.config import HarvestConfig
from saelab.cache.writer import write_caches
from saelab.cli import main
from saelab.dictionary import Site, load_dictionary
from saelab.evals.compare.suite import CompareConfig, run_compare
from saelab.evals.core.config import CoreConfig
from saelab.evals.core.suite import run_core
from saelab.features.reader import FeatureStore
from saelab.formats.evaluation_result import read_evaluation_result
from saelab.formats.run import dictionary_folders
from saelab.model.language_model import load_language_model
from saelab.stats.metrics import fvu
from saelab.training.config import OptimizerConfig, TrainConfig
from saelab.training.run import train
from tests.conftest import context_batches, document_windows

CONTEXT = 32
READ, MLP, RESIDUAL = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out", "blocks.0.hook_resid_post"
SITES = {
    "transcoder": Site((READ,), (MLP,)),
    "crosscoder": Site((RESIDUAL, MLP), (RESIDUAL, MLP)),
}


@pytest.fixture(scope="module")
def dictionaries(tiny_model_folder, model_text, tmp_path_factory):
    """By kind of site, the folders of two seeds, from harvest through training."""
    folder = tmp_path_factory.mktemp("sites")
    harvest = HarvestConfig(
        model=str(tiny_model_folder),
        hook_points=(READ, MLP, RESIDUAL),
        text=model_text,
        context_length=CONTEXT,
        n_tokens=1024,
        batch_contexts=8,
        contexts_per_shard=32,
        model_dtype="float32",
        device="cpu",
    )
    write_caches(folder / "caches", harvest)
    saved = {}
    for name, site in SITES.items():
        config = TrainConfig(
            out=folder / name,
            cache=folder / "caches",
            reads=site.reads,
            writes=site.writes,
            d_sae=(48,),
            k=(6,),
            seeds=(0, 1),
            n_tokens=256 * 40,
            batch_rows=256,
            device="cpu",
            optimizer=OptimizerConfig(learning_rate=5e-3),
        )
        run = train(config)
        saved[name] = [folder / name / "dictionaries" / key for key in run["dictionaries"]]
    return saved


@pytest.mark.parametrize("kind", SITES)
def test_core_equals_brute_force(dictionaries, kind, model_text, tiny_model_folder):
    """What is read is encoded, what is written is compared and replaced, on the rows of both."""
    folder, site = dictionaries[kind][0], SITES[kind]
    saved = load_dictionary(folder)
    config = CoreConfig(n_tokens=8 * CONTEXT, n_loss_tokens=8 * CONTEXT, device="cpu")
    [result] = run_core([folder], config)
    values = {metric.name: metric.value for metric in result.metrics}

    model = load_language_model(str(tiny_model_folder), dtype="float32", device="cpu")
    batches = context_batches(
        model_text, model, split="held_out", context_length=CONTEXT, batch_contexts=8
    )
    tokens = next(batches)

    def rows_of(tokens):
        captured = model.capture(tokens, site.hook_points)
        keep = torch.ones_like(tokens, dtype=torch.bool)
        keep[:, 0] = False
        for special in model.special_ids:
            keep &= tokens != special
        for name, ceiling in saved.made_from["norm_ceilings"].items():
            if name in site.hook_points:
                keep &= captured[name].norm(dim=-1) <= ceiling
        inputs = torch.cat([captured[name][keep] for name in site.reads], dim=1)
        targets = torch.cat([captured[name][keep] for name in site.writes], dim=1)
        return keep, inputs, targets

    keep, inputs, targets = rows_of(tokens)
    reconstruction = saved.dictionary(inputs)
    assert values["n_rows"] == int(keep.sum())
    assert values["fvu"] == pytest.approx(fvu(targets, reconstruction), rel=1e-5)
    tokens, _ = document_windows(model_text, model, CONTEXT, 8)
    keep, inputs, targets = rows_of(tokens)
    reconstruction = saved.dictionary(inputs)
    widths = [model.width_at(name) for name in site.writes]
    replacement = dict(zip(site.writes, reconstruction.split(widths, dim=1), strict=True))

    def spliced(name):
        def change(x):
            x = x.clone()
            x[keep] = replacement[name]
            return x

        return change

    loss = model.run(tokens, {name: spliced(name) for name in site.writes}).loss.mean()
    assert values["loss_spliced"] == pytest.approx(float(loss), rel=1e-5)
    assert values["loss_spliced"] != pytest.approx(values["loss_clean"], rel=1e-4)
    mean = torch.tensor(saved.made_from["mean" if site.is_autoencoder else "target_mean"])
    replacement = dict(zip(site.writes, mean.expand_as(targets).split(widths, dim=1), strict=True))
    loss = model.run(tokens, {name: spliced(name) for name in site.writes}).loss.mean()
    assert values["loss_mean_ablation"] == pytest.approx(float(loss), rel=1e-5)
    assert result.made_from["hook_point"] == str(site)


@pytest.mark.parametrize("kind", SITES)
def test_a_feature_store_counts_what_the_dictionary_encodes(dictionaries, kind, tiny_model_folder):
    folder, site = dictionaries[kind][0], SITES[kind]
    assert main(["features", str(folder), "--n-tokens", "512", "--device", "cpu"]) == 0
    saved = load_dictionary(folder)
    model = load_language_model(str(tiny_model_folder), dtype="float32", device="cpu")
    with FeatureStore(folder / "features.sqlite") as store:
        assert store.manifest["made_from"]["hook_point"] == str(site)
        tokens = torch.tensor(np.stack([store.tokens(index) for index in range(16)]), dtype=int)
        counted = np.stack([store.context_pieces(index).counted for index in range(16)])
        count = store.table()["n_active"]
    captured = model.capture(tokens, site.reads)
    inputs = torch.cat([captured[name][torch.tensor(counted)] for name in site.reads], dim=1)
    dense = saved.dictionary.encode_dense(inputs)
    assert count.tolist() == (dense > 0).sum(0).tolist()


def test_consistency_compares_what_latents_write(dictionaries):
    folders = [str(folder) for folder in dictionaries["transcoder"]]
    assert main(["eval", "consistency", *folders, "--n-tokens", "256", "--device", "cpu"]) == 0


def test_steering_adds_where_a_transcoder_writes(dictionaries, capsys):
    options = ["--n-tokens", "256", "--n-latents", "4", "--n-random", "4", "--n-contexts", "4"]
    options += ["--prompt-tokens", "8", "--device", "cpu"]
    transcoder, crosscoder = (str(dictionaries[kind][0]) for kind in SITES)
    assert main(["eval", "steering", transcoder, *options]) == 0
    assert main(["eval", "steering", crosscoder, *options]) == 2
    assert "steering adds a direction at one hook point" in capsys.readouterr().err


@pytest.mark.parametrize("kind", SITES)
def test_what_needs_an_sae_says_so(dictionaries, kind, capsys):
    folder = str(dictionaries[kind][0])
    assert main(["eval", "dark-matter", folder, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "needs a sparse autoencoder" in error and error.count("\n") == 1


def test_transcoders_are_compared_with_autoencoders_of_what_they_write_at_equal_l0(
    dictionaries, tmp_path
):
    """Two of each at two L0: every table says which is which, and all stand at the L0 between."""
    config = TrainConfig(
        out=tmp_path / "autoencoder",
        cache=dictionaries["transcoder"][0].parents[2] / "caches",
        hook_point=MLP,
        d_sae=(48,),
        k=(4, 8),
        n_tokens=256 * 8,
        batch_rows=256,
        device="cpu",
    )
    site = {"reads": (READ,), "writes": (MLP,), "hook_point": TrainConfig().hook_point}
    kinds = {
        "topk (autoencoder)": config,
        f"topk (transcoder from {READ})": replace(config, out=tmp_path / "plain", **site),
        f"topk (transcoder with a skip from {READ})": replace(
            config, out=tmp_path / "skip", skip=True, **site
        ),
    }
    for each in kinds.values():
        train(each)
    few = CompareConfig(
        out=tmp_path / "comparison",
        n_tokens=8 * CONTEXT,
        n_loss_tokens=8 * CONTEXT,
        consistency=False,
        steering=False,
        device="cpu",
        common_l0=(6.0,),
    )
    [result] = run_compare([each.out for each in kinds.values()], few)
    tables = {table.title: table for table in result.tables}
    listed = {row[1] for row in tables["What was compared"].rows}
    assert listed == set(kinds)
    [at_equal] = [table for table in result.tables if table.section == "At the same L0"]
    assert [row[0] for row in at_equal.rows] == [*kinds]
    assert {row[2] for row in at_equal.rows} == {"6"}
    for row in at_equal.rows:
        assert "outside" not in str(row) and row[-1] == "1 of 1"
    values = {}
    for label, each in kinds.items():
        for folder in dictionary_folders([each.out]):
            core = read_evaluation_result(folder / "evals" / "core.json")
            values.setdefault(label, []).append((core.value("l0_mean"), core.value("fvu")))
    shown = {row[0]: float(row[3].split()[0]) for row in at_equal.rows}
    for label, ((low, a), (high, b)) in values.items():
        share = np.log(6 / low) / np.log(high / low)
        assert shown[label] == pytest.approx((1 - share) * a + share * b, abs=1e-4)
