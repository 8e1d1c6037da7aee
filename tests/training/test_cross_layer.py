"""Cross-layer transcoders from caches to saved layers: against dense float64, resumed, refused."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from saelab.cache.aligned import open_caches
from saelab.cache.writer import write_caches
from saelab.cli import main
from saelab.dictionary import Site, load_dictionary
from saelab.dictionary.layered import LayeredDictionary
from saelab.errors import ActivationError, ConfigError, ResourceError, Stopped
from saelab.formats.evaluation_result import read_evaluation_result
from saelab.stats.metrics import fvu
from saelab.training.config import DictionarySpec, OptimizerConfig, TrainConfig
from saelab.training.interface import Normalisation, TrainingBatch
from saelab.training.learner import Learner
from saelab.training.methods import MethodOptions
from saelab.training.methods.jumprelu import JumpReLUOptions
from saelab.training.options import AuxiliaryOptions
from saelab.training.run import train
from saelab.training.run_folder import clear_folder
from saelab.training.schedule import Schedule

LAYERS, D, SIZE, ROWS = 3, 6, 16, 64
READS = tuple(f"blocks.{layer}.hook_resid_mid" for layer in range(2))
WRITES = tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(2))
ABLE = ["topk", "batch_topk", "jumprelu"]


def rows_of(seed, n=ROWS):
    """What is read at three layers, and what each writes from what it and earlier ones read."""
    fixed = torch.Generator().manual_seed(7)
    directions = torch.randn(LAYERS, 20, D, generator=fixed)
    matrices = torch.randn(LAYERS, 20, LAYERS * D, generator=fixed)
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(n, LAYERS, 20, generator=generator)
    strengths = (active < 0.1) * (1 + active)
    read = torch.einsum("nls,lsd->nld", strengths, directions).flatten(1)
    for layer in range(LAYERS):
        matrices[layer, :, : layer * D] = 0
    return read, torch.einsum("nls,lsd->nd", strengths, matrices)


def normalisation(rows):
    """That of hook points side by side, each with its own mean and scale."""
    deviation = (rows - rows.mean(0)).square().sum(0).unflatten(0, (LAYERS, D)).sum(1) / len(rows)
    means = rows.mean(0).split(D)
    parts = zip(means, deviation.tolist(), strict=True)
    return Normalisation.joined([Normalisation.of(mean, norm) for mean, norm in parts])


NORMALISATION, WRITTEN = (normalisation(side) for side in rows_of(12345, 2000))
NORMALISATION = dataclasses.replace(NORMALISATION, written=WRITTEN)


def batch(step, n=ROWS):
    read, written = rows_of(step, n)
    inputs = NORMALISATION.apply(read)
    targets = NORMALISATION.of_targets.apply(written)
    return TrainingBatch(inputs, targets, None, step=step, normalisation=NORMALISATION)


def build(name, n_steps=48, product_dtype=None, **options):
    settings = MethodOptions()
    changed = dataclasses.replace(getattr(settings, name), **options)
    return Learner.build(
        DictionarySpec(name, LAYERS * SIZE, 6, 0),
        d_in=LAYERS * D,
        d_out=LAYERS * D,
        n_layers=LAYERS,
        schedule=Schedule.of(n_steps),
        batch_rows=ROWS,
        options=dataclasses.replace(settings, **{name: changed}),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        product_dtype=product_dtype,
        device=torch.device("cpu"),
    )


def finished(learner):
    if learner.method.needs_calibration:
        learner.method.calibrate(batch(1000, 1024).inputs)
    return learner.method.to_dictionary(NORMALISATION)


def dense_weights(learner):
    """The encoder's blocks and the decoder's triangle in float64, as leaves of their own."""
    w = learner.method.weights
    encoder = torch.block_diag(*w.W_enc.detach().double().split(SIZE, dim=1))
    decoder = torch.zeros(LAYERS * SIZE, LAYERS * D, dtype=torch.float64)
    for index, part in enumerate(w.by_latent(w.W_dec.detach().double())):
        decoder[index * SIZE : (index + 1) * SIZE, index * D :] = part
    biases = (w.b_enc.detach().double(), w.b_dec.detach().double())
    return [each.requires_grad_() for each in (encoder, decoder, *biases)]


def packed(decoder):
    """A block triangle as the weights keep it: by source, latent and target."""
    parts = [
        decoder[index * SIZE : (index + 1) * SIZE, index * D :].reshape(-1, D)
        for index in range(LAYERS)
    ]
    return torch.cat(parts)


@pytest.mark.parametrize("name", ABLE)
def test_losses_and_gradients_are_those_of_plain_dense_code(name):
    """TopK per source, BatchTopK and JumpReLU with tanh penalty, with latents that are dead."""
    options = {"auxiliary": AuxiliaryOptions(kind="none")}
    if name == "jumprelu":
        options |= {"penalty": "tanh", "sparsity_weight": 0.3, "bandwidth": 1e-4}
    learner = build(name, **options)
    for step in range(3):
        learner.step(batch(step))
    w = learner.method.weights
    with torch.no_grad():
        w.b_enc[SIZE : SIZE + 4] = -100.0  # dead ones
    encoder, decoder, b_enc, b_dec = leaves = dense_weights(learner)
    data = batch(50)
    pre = data.inputs.double() @ encoder + b_enc
    if name == "topk":
        chosen = pre.unflatten(1, (LAYERS, SIZE)).topk(2, dim=2).indices
        kept = torch.zeros(ROWS, LAYERS, SIZE).scatter(2, chosen, 1.0).flatten(1).bool()
    elif name == "batch_topk":
        # Rows in which nothing happens are alike, so of equal ones either may have been taken.
        kept = learner.method.select(data).to_dense() > 0
        assert kept.sum() == 6 * ROWS and pre[kept].min() > pre[~kept].max() - 1e-6
    else:
        kept = pre > learner.method.threshold().double()
    codes = torch.where(kept, pre, 0.0).relu()
    reconstruction = codes @ decoder + b_dec
    loss = (data.targets.double() - reconstruction).square().mean()
    if name == "jumprelu":
        loss = loss + 0.3 * torch.tanh(codes).sum() / data.targets.numel()
    expected = torch.autograd.grad(loss, leaves)

    learner.optimizer.zero_grad()
    output = learner.method.losses(data)
    total = torch.stack(list(output.losses.values())).sum()
    total.backward()
    torch.testing.assert_close(total.double(), loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        output.codes.to_dense().detach().double(), codes, rtol=1e-4, atol=1e-5
    )
    blocks = [
        expected[0][index * D : (index + 1) * D, index * SIZE : (index + 1) * SIZE]
        for index in range(LAYERS)
    ]
    pairs = {
        "encoder": (w.encoder_rows.grad, torch.cat(blocks, dim=1).T),
        "decoder": (w.W_dec.grad, packed(expected[1])),
        "b_enc": (w.b_enc.grad, expected[2]),
        "b_dec": (w.b_dec.grad, expected[3]),
    }
    for what, (gradient, wanted) in pairs.items():
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-3, atol=1e-6, msg=what)


@pytest.mark.parametrize("name", ABLE)
def test_it_learns_keeps_unit_norms_and_goes_on_bit_for_bit(name):
    dead_soon = AuxiliaryOptions(dead_after_tokens=5 * ROWS, weight=0.1)
    whole, first = (build(name, auxiliary=dead_soon) for _ in range(2))
    seen = set()
    for step in range(48):
        output = whole.step(batch(step))
        seen |= output.losses.keys()
        if step < 33:
            first.step(batch(step))
    assert "auxk" in seen
    second = build(name, auxiliary=dead_soon)
    second.restore({key: tensor.detach().clone() for key, tensor in first.state().items()})
    for step in range(33, 48):
        second.step(batch(step))
    for key, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[key]), key
    w = whole.method.weights
    for part in w.by_latent(w.W_dec.detach()):
        torch.testing.assert_close(part.norm(dim=1), torch.ones(SIZE))
    read, written = rows_of(99, 500)
    dictionary = finished(whole)
    assert isinstance(dictionary, LayeredDictionary)
    assert (dictionary.d_in, dictionary.d_sae, dictionary.d_out) == (18, 48, 18)
    assert fvu(written, dictionary(read)) < 0.85
    counts = dictionary.encode(read).l0().double().mean()
    assert 3 < float(counts) < 10


@pytest.mark.parametrize("name", ABLE)
def test_what_is_saved_computes_what_was_trained(name):
    """Mean and scale of every hook point folded in, source by source."""
    learner = build(name)
    for step in range(10):
        learner.step(batch(step))
    dictionary, data = finished(learner), batch(50)
    encoder, decoder, b_enc, b_dec = (each.detach() for each in dense_weights(learner))
    pre = data.inputs.double() @ encoder + b_enc
    unit = NORMALISATION.code_scale
    codes = dictionary.encode(NORMALISATION.undo(data.inputs)).to_dense().double() * unit
    torch.testing.assert_close(codes, torch.where(codes > 0, pre, 0.0), rtol=1e-3, atol=1e-3)
    if name == "topk":
        assert (codes.unflatten(1, (LAYERS, SIZE)).count_nonzero(2) <= 2).all()
        assert (dictionary.k, dictionary.k_of_layer) == (6, 2)
    expected = NORMALISATION.of_targets.undo((codes @ decoder + b_dec).float())
    found = dictionary(NORMALISATION.undo(data.inputs))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def layer_caches(tiny_harvest, tmp_path_factory):
    """What both layers' MLPs read and write, from one harvest."""
    folder = tmp_path_factory.mktemp("clt") / "caches"
    harvest = dataclasses.replace(tiny_harvest, hook_points=(*READS, *WRITES), gradients=False)
    write_caches(folder, harvest)
    return folder


def config_of(folder, out, **changes):
    config = TrainConfig(
        out=out,
        cache=folder,
        reads=READS,
        writes=WRITES,
        cross_layer=True,
        d_sae=(64,),
        k=(8,),
        n_tokens=256 * 16,
        batch_rows=256,
        calibration_rows=2048,
        device="cpu",
        optimizer=OptimizerConfig(learning_rate=5e-3),
    )
    return dataclasses.replace(config, **changes)


def test_trained_saved_opened_described_and_judged(layer_caches, tmp_path, capsys):
    options = MethodOptions(jumprelu=JumpReLUOptions(penalty="tanh"))
    methods = ("topk", "batch_topk", "jumprelu")
    run = train(config_of(layer_caches, tmp_path / "run", methods=methods, options=options))
    caches = open_caches(layer_caches, Site(READS, WRITES))
    rows = caches.rows(torch.arange(caches.n_rows))
    for name, figures in run["dictionaries"].items():
        folder = tmp_path / "run" / "dictionaries" / name
        saved = load_dictionary(folder)
        assert isinstance(saved.dictionary, LayeredDictionary)
        assert saved.site == Site(READS, WRITES)
        assert sorted(path.name for path in folder.glob("layer_*")) == [
            "layer_0.safetensors",
            "layer_1.safetensors",
        ]
        reconstruction = saved.dictionary(rows.activations)
        assert fvu(rows.targets, reconstruction) < 0.95
        assert figures["fvu"] == pytest.approx(fvu(rows.targets, reconstruction), abs=0.05)
    capsys.readouterr()
    folder = tmp_path / "run" / "dictionaries" / "topk-d64-k8-s0"
    assert main(["info", str(folder)]) == 0
    assert "topk" in capsys.readouterr().out
    numbers = ["--n-tokens", "256", "--n-loss-tokens", "64", "--device", "cpu"]
    assert main(["eval", "core", str(folder), *numbers]) == 0
    result = read_evaluation_result(folder / "evals" / "core.json")
    values = {metric.name: metric.value for metric in result.metrics}
    assert 0 < values["fvu"] < 1 and values["l0_mean"] == pytest.approx(8, abs=0.5)
    (by_hook_point,) = [table for table in result.tables if "hook point" in table.columns]
    names, errors, l0 = zip(*by_hook_point.rows, strict=True)
    assert names == WRITES and sum(l0) == pytest.approx(values["l0_mean"])
    assert min(errors) < values["fvu"] < max(errors)
    clear_folder(tmp_path / "run")
    assert not [*(tmp_path / "run").rglob("layer_*")] and (folder / "evals" / "core.json").exists()


def test_resumed_after_a_stop_it_ends_the_same(layer_caches, tmp_path, monkeypatch):
    from saelab.training.loop import TrainingLoop

    config = config_of(layer_caches, tmp_path / "whole", methods=("batch_topk",))
    hashes = []
    train(config)
    stopped = dataclasses.replace(config, out=tmp_path / "stopped", checkpoint_every_steps=4)
    take = TrainingLoop._take_step

    def dies(loop):
        if loop.step == 9:
            raise Stopped("here", "SIGTERM")
        return take(loop)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_take_step", dies)
        with pytest.raises(Stopped):
            train(stopped)
    train(stopped, resume=True)
    for folder in ("whole", "stopped"):
        (saved,) = (tmp_path / folder / "dictionaries").iterdir()
        hashes.append(load_dictionary(saved).content_hash)
    assert hashes[0] == hashes[1]


def test_without_a_cache(tiny_harvest, tmp_path):
    stream = dataclasses.replace(tiny_harvest, gradients=False)
    run = train(config_of(None, tmp_path / "run", stream=stream, stream_pool_rows=512))
    ((_, figures),) = run["dictionaries"].items()
    assert figures["fvu"] < 0.97


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reads": (), "writes": ()}, "cross_layer needs reads and writes"),
        ({"reads": READS[:1]}, "reads are of layers 0 and writes of layers 0, 1"),
        ({"reads": READS[::-1]}, "reads are of layers 1, 0 .* none missing"),
        ({"reads": ("ln_final.hook_in", READS[1])}, "reads are of layers None, 1"),
        ({"d_sae": (65,)}, "d_sae = 65 does not divide among 2 layers: .* such as 66"),
        ({"k": (7,)}, "k = 7 does not divide among 2 layers: give a multiple, such as 8"),
        ({"methods": ("gated",)}, "gated does not train cross-layer transcoders: use topk"),
        ({"init_from": Path("there")}, "begins from drawn weights"),
    ],
)
def test_settings_that_do_not_fit_are_refused(layer_caches, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        config_of(layer_caches, tmp_path, **changes)


def test_a_layer_missing_from_the_settings_or_the_cache(layer_caches, tmp_path, capsys):
    skipped = ("blocks.2.hook_resid_mid", "blocks.2.hook_mlp_out")
    sides = [[READS[0], skipped[0]], [WRITES[0], skipped[1]]]
    given = ["train", "--cache", str(layer_caches), "--cross-layer", "--out", str(tmp_path / "o")]
    assert main([*given, "--reads", *sides[0], "--writes", *sides[1]]) == 2
    error = capsys.readouterr().err
    assert "layers 0, 2 (1 missing)" in error and "none missing" in error and error.count("\n") == 1
    folder = tmp_path / "caches"
    shutil.copytree(layer_caches, folder)
    shutil.rmtree(folder / WRITES[1])
    given[2] = str(folder)
    words = ["--d-sae", "64", "--k", "8", "--batch-rows", "256"]
    assert main([*given, "--reads", *READS, "--writes", *WRITES, *words]) == 2
    error = capsys.readouterr().err
    assert WRITES[1] in error and error.count("\n") == 1


def test_caches_whose_rows_do_not_align(layer_caches, tiny_harvest, tmp_path):
    folder = tmp_path / "caches"
    shutil.copytree(layer_caches, folder)
    shutil.rmtree(folder / WRITES[1])
    fewer = dataclasses.replace(
        tiny_harvest, hook_points=(WRITES[1],), n_tokens=2048, gradients=False
    )
    write_caches(folder, fewer)
    with pytest.raises(ActivationError, match="not side by side; harvest both"):
        train(config_of(folder, tmp_path / "run"))


def test_one_larger_than_memory_is_refused_before_it_is_made(layer_caches, tmp_path, monkeypatch):
    """64 latents of width 32 in two layers: 64 · 32 · 2.5 weights of 16 bytes."""
    from saelab.training import learner

    monkeypatch.setattr(learner, "memory_of", lambda device: 64 * 32 * 5 // 2 * 16 - 1)
    with pytest.raises(ResourceError, match=r"across 2 layers takes .* GB: lower --d-sae"):
        train(config_of(layer_caches, tmp_path / "run"))
    monkeypatch.setattr(learner, "memory_of", lambda device: 64 * 32 * 5 // 2 * 16)
    train(config_of(layer_caches, tmp_path / "run", n_tokens=512))


@pytest.mark.parametrize(
    ("module", "changes", "message"),
    [
        (
            "saelab.training.learner",
            {"methods": ("batch_topk",)},
            r"2,048 rows .* --calibration-rows",
        ),
        ("saelab.cache.model_stream", {"cache": None}, r"takes .* GB.* --stream-pool-rows"),
    ],
)
def test_rows_larger_than_memory_are_refused_before_the_run(
    layer_caches, tiny_harvest, tmp_path, monkeypatch, module, changes, message
):
    import importlib

    stream = dataclasses.replace(tiny_harvest, gradients=False)
    config = config_of(layer_caches, tmp_path / "run", stream=stream, **changes)
    monkeypatch.setattr(importlib.import_module(module), "memory_of", lambda device: 100_000)
    with pytest.raises(ResourceError, match=message):
        train(config)
    assert not (tmp_path / "run" / "run.json").exists()
