"""What can be dropped: numpy oracles on toy numbers, planted idle latents, the tiny model."""

import math

import numpy as np
import pytest
import torch

from saelab.cli import main
from saelab.dictionary import Dictionary, load_dictionary
from saelab.dictionary.data_spec import data_spec_of
from saelab.evals.activation_sparsity.measure import SplicedCodes, _rows_of
from saelab.evals.activation_sparsity.neurons import MlpNeurons
from saelab.evals.activation_sparsity.runs import WindowRuns
from saelab.evals.activation_sparsity.search import (
    LayerErrors,
    largest_within,
    smallest,
    top_share,
)
from saelab.evals.activation_sparsity.suite import (
    ActivationSparsityConfig,
    run_activation_sparsity,
)
from saelab.evals.core.losses import windows_of
from saelab.formats.evaluation_result import read_evaluation_result

SMALL = {"device": "cpu", "n_loss_tokens": 256, "n_calibration_tokens": 100}


def test_the_smallest_are_dropped_of_all_or_of_each_row():
    generator = np.random.default_rng(0)
    row = np.sort(generator.integers(0, 9, 70))
    sizes = generator.random(70)
    dropped = smallest(torch.tensor(sizes), 0.3).numpy()
    assert dropped.sum() == 21 and sizes[dropped].max() < sizes[~dropped].min()
    dropped = smallest(torch.tensor(sizes), 0.3, torch.tensor(row)).numpy()
    for r in np.unique(row):
        of_row = np.sort(sizes[row == r])
        n = int(np.round(np.float32(0.3) * len(of_row)))
        np.testing.assert_array_equal(np.sort(sizes[(row == r) & dropped]), of_row[:n])


def test_the_search_ends_where_the_limit_is_met_and_never_beyond():
    tried = []

    def rise(at):
        tried.append(at)
        return math.expm1(3 * at) ** 2

    expected = math.log1p(math.sqrt(0.01)) / 3
    at = largest_within(rise, 0.01)
    assert at <= expected and at == pytest.approx(expected, abs=0.01)
    assert len(tried) < 20 and len(set(tried)) == len(tried)
    assert largest_within(lambda at: 0.001 * at, 0.01) == 1.0


def cett_in_numpy(a, rows, threshold):
    """As the paper has it, in float64: mean over tokens of |Σ dropped| / |Σ all|."""
    out = a[:, :, None] * rows
    weak = np.linalg.norm(out, axis=2) < threshold
    return np.mean(
        np.linalg.norm((out * weak[:, :, None]).sum(1), axis=1) / np.linalg.norm(out.sum(1), axis=1)
    )


def test_a_layer_is_given_the_threshold_that_bisection_finds():
    generator = np.random.default_rng(0)
    a, rows = generator.normal(size=(60, 40)) ** 3, generator.normal(size=(40, 12))
    errors = LayerErrors.of(torch.tensor(a), torch.tensor(rows))
    for level in (3, 17, 30):
        # A neuron at the threshold is kept, whatever rounding makes of its norm.
        expected = cett_in_numpy(a, rows, errors.thresholds[level] * (1 - 1e-9))
        assert errors.cett[level] == pytest.approx(expected, rel=1e-10)
    for target in (0.05, 0.2, 0.5):
        low, high = 0.0, 1000.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if cett_in_numpy(a, rows, middle) < target else (low, middle)
        got = errors.threshold(target)
        assert got == pytest.approx(low, rel=0.1)
        assert cett_in_numpy(a, rows, got) == pytest.approx(target, abs=0.02)


def test_winas_score_is_optimal_where_columns_are_orthogonal():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    columns = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    rows = columns * torch.logspace(-1, 1, 8, dtype=torch.float64)[:, None]
    mlps = MlpNeurons({"mlp": x}, {"mlp": rows})
    (wina,) = mlps.gate_errors(0.5, weighted=True)
    (magnitude,) = mlps.gate_errors(0.5, weighted=False)
    best = []
    for row in x.numpy():
        squares = np.sort(np.square(row * np.linalg.norm(rows.numpy(), axis=1)))
        best.append(np.sqrt(squares[:4].sum() / squares.sum()))
    assert wina == pytest.approx(np.mean(best), rel=1e-10) and wina < magnitude
    assert top_share(x, 0.5).sum(1).tolist() == [4] * 50


def test_what_a_neuron_writes_is_the_last_layers_column(tiny_model, tiny_gpt2):
    rows = tiny_model.rows_read("blocks.1.mlp.hook_post")
    weights = tiny_model._forward.plain.model.layers[1].mlp.down_proj.weight
    torch.testing.assert_close(rows, weights.T, rtol=1e-5, atol=1e-6)
    rows = tiny_gpt2.rows_read("blocks.1.mlp.hook_post")
    weights = tiny_gpt2._forward.plain.transformer.h[1].mlp.c_proj.weight
    torch.testing.assert_close(rows, weights, rtol=1e-5, atol=1e-6)


def with_idle_latents(scale):
    """Rows exactly, by 64 latents; and as many that fire with them but write next to nothing."""
    eye = torch.cat([torch.eye(32), -torch.eye(32)])
    return Dictionary(
        "relu",
        W_enc=torch.cat([eye, eye]).T.clone(),
        W_dec=torch.cat([eye, scale * eye]),
        b_dec=torch.zeros(32),
        b_enc=torch.zeros(128),
    )


@pytest.mark.parametrize("drop", ["threshold", "token"])
def test_latents_that_write_nothing_are_droppable(save_trained, tiny_model, drop):
    folder = save_trained(with_idle_latents(1e-6), f"idle-{drop}")
    config = ActivationSparsityConfig(**SMALL, mlps=False, drop=drop)
    (result,) = run_activation_sparsity([folder], config)
    values = {metric.name: metric.value for metric in result.metrics}
    assert values["l0_mean"] == pytest.approx(64)
    assert values["droppable_share"] >= 0.49
    assert values["functional_l0"] <= 32.7
    rise = math.exp(values["loss_dropped"] - values["loss_spliced"]) - 1
    assert rise <= 0.01 + 1e-6 and math.isfinite(values["rise_random"])
    saved = load_dictionary(folder)
    spec = data_spec_of(saved, config)
    runs = WindowRuns(tiny_model, windows_of(tiny_model, spec, 256), 4)
    spliced = SplicedCodes(saved, spec, runs, _rows_of(tiny_model, spec, runs))
    idle = torch.cat([codes.latent for codes in spliced.codes]) >= 64
    clean = runs.loss(lambda _: {})
    assert spliced.loss(idle) == pytest.approx(clean, abs=1e-5)
    assert values["loss_spliced"] == pytest.approx(clean, abs=1e-4)


def test_the_neurons_of_all_dictionaries_are_measured_once(save_trained, topk_dictionary, tmp_path):
    folders = [str(save_trained(topk_dictionary(seed), f"sae-{seed}")) for seed in range(2)]
    words = ["--device", "cpu", "--n-loss-tokens", "256", "--n-calibration-tokens", "100"]
    assert main(["eval", "activation-sparsity", *folders, *words, "--out", str(tmp_path)]) == 0

    first, second = (
        read_evaluation_result(tmp_path / f"sae-{seed}" / "activation_sparsity.json")
        for seed in range(2)
    )
    for name in ("mlp_sparsity", "mlp_sparsity_random", "wina_error", "mlp_cett", "wina_rise"):
        assert first.value(name) == second.value(name)
    assert first.value("loss_spliced") != second.value("loss_spliced")
    assert 0 < first.value("mlp_sparsity") < 1
    assert first.value("wina_error") <= first.value("magnitude_error")
    assert len(first.tables[0].rows) == 3
