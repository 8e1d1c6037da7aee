"""Training that begins from a saved dictionary: the same function at step 0, records, refusals."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from saelab.dictionary import Dictionary, load_dictionary, save_dictionary
from saelab.dictionary.reference import reference_codes, reference_reconstruction
from saelab.errors import ConfigError
from saelab.formats.files import read_json, read_tensors
from saelab.training.interface import DictionarySettings, Normalisation, TrainingBatch
from saelab.training.loop import normalisation_of as normalisation_of_stream
from saelab.training.methods import METHODS, MethodOptions
from saelab.training.run import TrainingRun, train

from .conftest import HOOK_POINT
from .test_run import _raise_after, log_without_times, weights_of

D_IN, D_SAE, K, ROWS = 16, 48, 4, 64
FIXTURES = Path(__file__).parents[1] / "dictionary" / "importers" / "fixtures"
FOREIGN = FIXTURES / "saelens-topk-rescaled"


def source_of(architecture, *, seed=0, unit=True, d_out=D_IN, **more):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    W_dec = draw(D_SAE, d_out)
    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    if not unit:
        W_dec = W_dec * (0.5 + torch.rand(D_SAE, 1, generator=generator))
    tensors = {"W_enc": draw(D_IN, D_SAE) / 4, "W_dec": W_dec, "b_dec": draw(d_out)}
    if architecture == "gated":
        names = {"b_gate": -0.5, "b_mag": 0.2, "r_mag": 0.1}
        tensors |= {name: 0.3 * draw(D_SAE) + mean for name, mean in names.items()}
    else:
        tensors["b_enc"] = 0.3 * draw(D_SAE)
    if architecture == "jumprelu":
        tensors["threshold"] = draw(D_SAE).abs()
    if d_out != D_IN:
        tensors["b_in"] = draw(D_IN)
    return Dictionary(
        architecture, k=K if architecture in ("topk", "groupmax") else None, **tensors, **more
    )


def rows_of(width=D_IN, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(ROWS, width, generator=generator) + 0.5


def normalisation_of(x):
    mean = x.mean(0)
    return Normalisation.of(mean, float((x - mean).square().sum(1).mean()))


def begun(name, source, *, k=K, d_out=None):
    """A method begun from a dictionary, what it says of that, and a batch of raw rows for it."""
    x = rows_of()
    settings = DictionarySettings(
        d_in=D_IN,
        d_out=d_out,
        d_sae=D_SAE,
        k=k,
        seed=0,
        batch_rows=ROWS,
        n_steps=100,
        product_dtype=None,
    )
    method, normalisation = (
        METHODS[name](settings, getattr(MethodOptions(), name)),
        normalisation_of(x),
    )
    written = x
    if d_out is not None:
        written = rows_of(d_out, seed=2)
        normalisation = dataclasses.replace(normalisation, written=normalisation_of(written))
    changes = method.begin_from(source, normalisation)
    inputs = normalisation.apply(x)
    targets = inputs if d_out is None else normalisation.of_targets.apply(written)
    batch = TrainingBatch(
        inputs,
        targets,
        torch.ones_like(targets),
        step=0,
        normalisation=normalisation,
    )
    return method, changes, batch, x


@pytest.mark.parametrize(
    ("architecture", "name", "unit"),
    [
        ("topk", "topk", True),
        ("topk", "gradient_topk", True),
        ("relu", "relu", False),
        ("relu", "jumprelu", False),
        ("relu", "gated", False),
        ("jumprelu", "jumprelu", False),
        ("jumprelu", "gated", False),
        ("gated", "gated", False),
        ("gated", "jumprelu", False),
        ("gated", "gated", True),
    ],
)
@pytest.mark.parametrize("d_out", [None, 12])
def test_step_zero_reconstructs_what_the_source_does(architecture, name, unit, d_out):
    source = source_of(architecture, unit=unit, d_out=d_out or D_IN)
    method, changes, batch, x = begun(name, source, d_out=d_out)
    expected = reference_reconstruction(source, reference_codes(source, x), x)
    output = method.losses(batch)
    undone = batch.normalisation.of_targets.undo(output.reconstruction.detach())
    torch.testing.assert_close(undone.double(), expected, rtol=1e-4, atol=1e-4)
    assert changes == []


def test_what_it_becomes_without_a_step_is_the_source():
    for architecture in ("topk", "relu", "jumprelu", "gated"):
        source = source_of(architecture)
        method, _, batch, _ = begun(architecture, source)
        becomes = method.to_dictionary(batch.normalisation)
        for name, tensor in source.tensors().items():
            torch.testing.assert_close(becomes.tensors()[name], tensor, rtol=1e-4, atol=1e-5)


def test_bias_adaptation_begins_from_its_own_kind_alone():
    directions = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN), dim=1)
    scales, thresholds = torch.rand(D_SAE, 1) + 0.5, torch.rand(D_SAE)
    source = Dictionary(
        "jumprelu",
        W_enc=directions.T,
        b_enc=torch.zeros(D_SAE),
        W_dec=directions * scales,
        b_dec=torch.randn(D_IN),
        threshold=thresholds,
        input_normalisation="constant_norm_rescale",
    )
    method, changes, batch, x = begun("bias_adaptation", source)
    expected = reference_reconstruction(source, reference_codes(source, x), x)
    output = method.losses(batch)
    undone = batch.normalisation.undo(output.reconstruction.detach())
    torch.testing.assert_close(undone.double(), expected, rtol=1e-4, atol=1e-4)
    assert changes == []
    with pytest.raises(ConfigError, match="bias adaptation begins from dictionaries of bias ad"):
        begun("bias_adaptation", source_of("jumprelu"))
    with pytest.raises(ConfigError, match="rows go through constant_norm_rescale"):
        begun("topk", source)


def test_what_is_not_taken_over_is_said():
    method, changes, batch, x = begun("relu", source_of("jumprelu"))
    assert changes == [
        "its thresholds are taken off the biases: the same latents fire, with codes that are less "
        "by them"
    ]
    codes = method.losses(batch).codes
    fired = codes.to_dense() > 0
    assert torch.equal(fired, reference_codes(source_of("jumprelu"), x) > 0)
    _, changes, _, _ = begun("batch_topk", source_of("jumprelu"))
    assert changes == [
        "its thresholds play no part: the largest pre-activations, 4 of each row on average, are "
        "taken"
    ]
    _, changes, _, _ = begun("topk", source_of("topk", unit=False), k=5)
    assert (
        changes[0] == "k is 5, not its 4" and "decoder rows were brought to norm one" in changes[1]
    )


@pytest.mark.parametrize("name", ["relu", "jumprelu", "gated"])
def test_thresholds_that_the_source_lacks_come_from_the_first_batch(name):
    method, changes, batch, _ = begun(name, source_of("topk"))
    assert changes == ["it has no thresholds: they start where the first batch's L0 is 4"]
    output = method.losses(batch)
    l0 = (output.codes.to_dense() > 0).sum(1).double().mean()
    assert abs(float(l0) - K) < 0.2
    method.after_update(batch, output)
    assert method.controller.mean_error.abs() < 0.1  # no approach from another L0


def test_a_foreign_topk_reproduces_its_reconstruction_at_step_zero(run_config, caplog):
    """Whole runs: what sae_lens itself computed is what the first step reconstructs."""
    config = dataclasses.replace(
        run_config, k=(5,), d_sae=(48,), init_from=FOREIGN, product_dtype="float32"
    )
    training = TrainingRun(config, None, [])
    expected = read_tensors(FOREIGN / "expected.safetensors")
    normalisation = normalisation_of_stream(training.stream, torch.device("cpu"))
    inputs = normalisation.apply(expected["x"])
    batch = TrainingBatch(inputs, inputs, None, step=0, normalisation=normalisation)
    output = training.learners[0].method.losses(batch)
    undone = normalisation.undo(output.reconstruction.detach())
    torch.testing.assert_close(undone, expected["reconstruction"], rtol=1e-4, atol=1e-4)
    assert "begins from" not in caplog.text


def test_a_run_records_its_source_and_resumes_without_it(run_config, tmp_path, monkeypatch):
    source = tmp_path / "source"
    train(dataclasses.replace(run_config, out=source, k=(4,)))
    folder = shutil.copytree(source / "dictionaries" / "topk-d64-k4-s0", tmp_path / "first")
    config = dataclasses.replace(run_config, init_from=folder, methods=("topk", "jumprelu"))
    whole = dataclasses.replace(config, out=tmp_path / "whole")
    run = train(whole)
    origin = run["initialised_from"]
    assert origin["content_hash"] == load_dictionary(folder).content_hash
    assert origin["architecture"] == "topk" and origin["changes"]["topk-d64-k4-s0"] == []
    assert origin["changes"]["topk-d64-k8-s0"] == ["k is 8, not its 4"]
    saved = load_dictionary(whole.out / "dictionaries" / "topk-d64-k4-s0")
    assert saved.manifest["config"]["initialised_from"] == origin
    first = log_without_times(whole.out)[0]
    assert first["fvu"] < log_without_times(source)[0]["fvu"]

    from saelab.training import loop

    # Before the first checkpoint the source is read again, after it no more.
    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingLoop, "_stop_if_asked", _raise_after(5))
        with pytest.raises(Exception, match="halt"):
            train(config)
    other = dataclasses.replace(config, init_from=source / "dictionaries" / "topk-d64-k4-s0")
    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingLoop, "_stop_if_asked", _raise_after(9))
        with pytest.raises(Exception, match="halt"):
            train(other, resume=True)
    shutil.rmtree(folder)
    with pytest.raises(ConfigError, match=r"other settings \(init_from differ\)"):
        train(dataclasses.replace(config, init_from=None), resume=True)
    train(config, resume=True)
    assert weights_of(config.out) == weights_of(whole.out)
    assert (
        read_json(config.out / "run.json")["initialised_from"]["content_hash"]
        == (origin["content_hash"])
    )


def test_another_source_before_the_first_checkpoint_is_refused(run_config, tmp_path, monkeypatch):
    from saelab.training import loop

    config = dataclasses.replace(run_config, k=(5,), d_sae=(48,), init_from=FOREIGN)
    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingLoop, "_stop_if_asked", _raise_after(3))
        with pytest.raises(Exception, match="halt"):
            train(config)
    other = save(
        tmp_path / "other",
        dictionary=Dictionary(
            "topk",
            W_enc=torch.eye(32, 48),
            W_dec=torch.eye(48, 32),
            b_enc=torch.zeros(48),
            b_dec=torch.zeros(32),
            k=5,
        ),
    )
    with pytest.raises(ConfigError, match="began from another dictionary than lies in"):
        train(dataclasses.replace(config, init_from=other), resume=True)


def save(folder, *, dictionary, **more):
    save_dictionary(
        folder,
        dictionary,
        self_test_inputs=torch.randn(16, dictionary.d_in),
        training={},
        made_from={"hook_point": HOOK_POINT},
        **more,
    )
    return folder


def test_a_source_that_does_not_fit_is_refused_in_one_line(run_config, tmp_path):
    wide = save(tmp_path / "wide", dictionary=source_of("topk"))
    normalised = FIXTURES / "saelens-layer-norm"
    skipping = FIXTURES / "saelens-skip-transcoder"
    latents = load_dictionary(normalised).dictionary.d_sae
    for folder, d_sae, reason in (
        (wide, D_SAE, r"reads width 16 and writes 16; the activations here have width 32 and 32"),
        (FOREIGN, 64, r"has 48 latents and the run's d_sae is 64: give --d-sae 48"),
        (normalised, latents, r"cannot begin from .*: its rows go through layer_norm"),
        (skipping, 48, r"is of .* -> .*, and this run writes what it reads"),
    ):
        config = dataclasses.replace(run_config, k=(4,), d_sae=(d_sae,), init_from=folder)
        with pytest.raises(ConfigError, match=reason) as caught:
            train(config)
        assert "\n" not in str(caught.value)
        assert not (config.out / "run.json").exists()
    with pytest.raises(ConfigError, match="seeds would train the same dictionary again"):
        dataclasses.replace(run_config, init_from=FOREIGN, seeds=(0, 1))
