"""The decomposition, the first pass' numbers, and the norm test, against dense float64 algebra."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.dictionary import Dictionary
from saelab.dictionary.decomposition import ErrorProbe, decompose, load_probe, save_probe
from saelab.errors import ActivationError, ArtifactError
from saelab.evals.dark_matter.directions import DirectionSums, direction_findings, running_mean
from saelab.evals.dark_matter.linear_error import ErrorSums, fit_error
from saelab.evals.dark_matter.norm_test import (
    VECTORS,
    PartSums,
    combination,
    gaussian_r_squared,
    norm_test,
    vectors_of,
)
from saelab.evals.dark_matter.regression import RegressionStatistics
from saelab.evals.dark_matter.rows import RowBatch, cells_of
from saelab.formats.files import write_tensors

D_IN, D_SAE, N = 12, 30, 1500


def a_dictionary(seed=0, *, scaled=False):
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN, generator=generator), dim=1)
    return Dictionary(
        "jumprelu",
        W_enc=0.9 * W_dec.T.clone(),
        W_dec=W_dec,
        b_dec=torch.full((D_IN,), 0.3),
        b_enc=torch.zeros(D_SAE),
        threshold=torch.full((D_SAE,), 0.8),
        input_normalisation="constant_norm_rescale" if scaled else "none",
    )


def a_batch(n=N, seed=1):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(D_IN, D_IN, generator=generator)
    # Skewed, so that squared norms have a linear part to predict.
    x = torch.randn(n, D_IN, generator=generator).exp() @ mixing * 0.3 + 0.3
    sequence = torch.arange(n) // 10
    return RowBatch(
        activations=x,
        tokens=torch.randint(40, (n,), generator=generator),
        sequence=sequence,
        position=torch.arange(n) % 10,
        loss=torch.where(torch.arange(n) < 600, x[:, 0].double(), torch.nan),
        cell=cells_of(sequence, torch.arange(n) % 10, seed=0, train_fraction=0.6),
    )


def first_pass(dictionary, batch, size=N):
    sums = ErrorSums(dictionary)
    for part in torch.arange(len(batch.tokens)).split(size):
        piece = RowBatch(**{name: column[part] for name, column in vars(batch).items()})
        sums.update(piece, dictionary.encode(piece.activations))
    return sums


def dense(regressors, targets, train, test, *, intercept=True):
    """Held-out R² per target by plain float64 least squares, and the predictions of all rows."""
    ones = torch.ones(len(regressors), int(intercept), dtype=torch.float64)
    design = torch.cat([regressors.double(), ones], dim=1)
    solved = torch.linalg.lstsq(design[train], targets[train].double()).solution
    predicted = design @ solved
    left = (targets - predicted)[test].square().sum(0)
    spread = (targets[test] - targets[test].mean(0)).square().sum(0)
    return 1 - left / spread, predicted


@pytest.mark.parametrize("scaled", [False, True])
def test_the_three_parts_add_up_to_the_activation(scaled):
    dictionary, x = a_dictionary(scaled=scaled), a_batch().activations.double()
    weight = torch.randn(D_IN, D_IN, dtype=torch.float64)
    probe = ErrorProbe(weight, torch.randn(D_IN, dtype=torch.float64))
    parts = decompose(dictionary, probe, x)
    total = parts.reconstruction + parts.linear_error + parts.nonlinear_error
    assert torch.allclose(total, x, rtol=1e-14, atol=1e-13)
    assert torch.allclose(parts.error, x - dictionary(x.float()).double(), atol=1e-12)
    assert torch.allclose(parts.linear_error, x @ weight + probe.bias)
    single = decompose(dictionary, probe, x.float())
    summed = single.reconstruction + single.linear_error + single.nonlinear_error
    assert torch.allclose(summed, x.float(), atol=1e-4)


def test_codes_of_another_encoder_can_be_taken_apart():
    dictionary, x = a_dictionary(), a_batch().activations
    probe = ErrorProbe(torch.zeros(D_IN, D_IN), torch.zeros(D_IN))
    codes = dictionary.encode(x)
    halved = codes.with_value(codes.value / 2)
    parts = decompose(dictionary, probe, x, halved)
    assert torch.equal(parts.reconstruction, dictionary.decode(halved))


def test_activations_of_another_width_are_refused():
    probe = ErrorProbe(torch.zeros(5, 5), torch.zeros(5))
    with pytest.raises(
        ActivationError, match=r"width 12 cannot be taken apart .* probe of width 5"
    ):
        decompose(a_dictionary(), probe, a_batch().activations)


def test_probes_are_saved_and_damaged_ones_refused(tmp_path):
    probe = ErrorProbe(torch.randn(3, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64))
    save_probe(tmp_path / "probe.safetensors", probe, {"of": "test"})
    loaded = load_probe(tmp_path / "probe.safetensors")
    assert torch.equal(loaded.weight, probe.weight.float())
    tensors = {"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}
    write_tensors(tmp_path / "probe.safetensors", tensors)
    with pytest.raises(ArtifactError, match="is no error probe"):
        load_probe(tmp_path / "probe.safetensors")


@settings(deadline=None, max_examples=6)
@given(st.sampled_from([1, 7, 64, 333, 1500]))
def test_the_batch_size_decides_no_number(size):
    dictionary, batch = a_dictionary(), a_batch()
    _, whole = fit_error(first_pass(dictionary, batch), 1e-6, "test")
    _, cut = fit_error(first_pass(dictionary, batch, max(size, 50)), 1e-6, "test")
    for name, value in whole.items():
        assert cut[name] == pytest.approx(value, rel=1e-8), name


def test_every_number_of_the_first_pass_equals_dense_algebra():
    dictionary, batch = a_dictionary(), a_batch()
    _, values = fit_error(first_pass(dictionary, batch, 256), 1e-12, "test")
    x = batch.activations.double()
    hat = dictionary(batch.activations).double()
    error, cell = x - hat, batch.cell
    train, test = cell < 2, cell >= 2
    square = error.square().sum(1, keepdim=True)
    spread = (x[test] - x[test].mean(0)).square().sum()
    r2, predicted = dense(x, error, train, test)
    left = (error - predicted)[test].square().sum()
    assert values["error_r_squared"] == pytest.approx(float(r2.mean()), abs=1e-7)
    assert values["fvu"] == pytest.approx(float(error[test].square().sum() / spread))
    assert values["fvu_nonlinear"] == pytest.approx(float(left / spread), rel=1e-7)
    assert values["error_explained"] == pytest.approx(
        float(1 - left / error[test].square().sum()), rel=1e-7
    )
    norm, _ = dense(x, square, train, test)
    assert values["norm_r_squared"] == pytest.approx(float(norm), abs=1e-7)
    no_bias, _ = dense(x, square, train, test, intercept=False)
    assert values["norm_r_squared_no_bias"] == pytest.approx(float(no_bias), abs=1e-7)
    by_token = cell % 2 == 1
    split, _ = dense(x, error, ~by_token, by_token)
    assert values["error_r_squared_token_split"] == pytest.approx(float(split.mean()), abs=1e-7)
    everywhere = torch.ones(N, dtype=torch.bool)
    published, _ = dense(x, error, ~by_token, everywhere, intercept=False)
    assert values["error_r_squared_as_published"] == pytest.approx(
        float(published.mean()), abs=1e-7
    )
    l0 = (dictionary.encode_dense(batch.activations) > 0).double().sum(1)
    assert values["l0_mean"] == pytest.approx(float(l0.mean()))
    for name, number in {"l0": l0, "activation_norm": x.norm(dim=1)}.items():
        one, _ = dense(number[:, None], square, train, test)
        assert values[f"norm_r_squared_{name}"] == pytest.approx(float(one), abs=1e-7)
    known = batch.loss.isfinite()
    one, _ = dense(batch.loss[known, None], square[known], train[known], test[known])
    assert values["norm_r_squared_token_loss"] == pytest.approx(float(one), abs=1e-7)
    about = hat - dictionary.b_dec.double()
    gamma = (about * (x - 0.3)).sum() / (x - 0.3).square().sum()
    assert values["shrinkage_gamma"] == pytest.approx(float(gamma), rel=1e-6)
    rescaled = ((x - 0.3) - about / gamma).square().sum() / (x - x.mean(0)).square().sum()
    assert values["fvu_rescaled"] == pytest.approx(float(rescaled), rel=1e-6)


def test_a_constant_dictionary_has_a_wholly_linear_error_and_gamma_says_so():
    """The reviewer's caveat: Sae(x) = const gives x - const, which is 100 % linear."""
    dictionary = a_dictionary()
    dictionary.threshold.fill_(1e9)
    _, values = fit_error(first_pass(dictionary, a_batch()), 1e-9, "test")
    assert values["error_r_squared"] == pytest.approx(1, abs=1e-6)
    assert values["fvu_nonlinear"] == pytest.approx(0, abs=1e-6)
    assert values["shrinkage_gamma"] == 0
    assert values["fvu_rescaled"] is None


def test_too_few_rows_are_refused_with_the_dictionary_named():
    sums = first_pass(a_dictionary(), a_batch(15))
    with pytest.raises(ActivationError, match=r"error of mine from its activations has .* rows"):
        fit_error(sums, 1e-6, "mine")


def second_pass(dictionary, batch, probe):
    parts = PartSums(D_IN)
    taken = decompose(dictionary, probe, batch.activations.double())
    norms = parts.update(batch, taken)
    return parts, taken, norms


def test_vectors_are_the_combinations_that_moments_are_made_by():
    dictionary, batch = a_dictionary(), a_batch()
    probe, _ = fit_error(first_pass(dictionary, batch), 1e-6, "test")
    _, taken, _ = second_pass(dictionary, batch, probe)
    vectors = dict(vectors_of(taken, batch.activations))
    joint = torch.cat([vectors["activation"], vectors["error"]], dim=1)
    for name in VECTORS:
        made, offset = combination(name, probe)
        assert torch.allclose(joint @ made + offset, vectors[name], atol=1e-10), name


def test_the_norm_test_equals_direct_regressions():
    dictionary, batch = a_dictionary(), a_batch()
    sums = first_pass(dictionary, batch, 300)
    probe, _ = fit_error(sums, 1e-12, "test")
    parts, taken, norms = second_pass(dictionary, batch, probe)
    found = norm_test(sums, parts, probe, 1e-12)
    cell, x = batch.cell, batch.activations.double()
    train, test = cell < 2, cell >= 2
    for name, vector in vectors_of(taken, batch.activations):
        square = vector.square().sum(1, keepdim=True)
        assert torch.allclose(norms[name], square.sqrt().squeeze(1))
        from_x, _ = dense(x, square, train, test)
        assert found[f"norm_test_{name}"] == pytest.approx(float(from_x), abs=1e-6), name
        from_norm, _ = dense(x.square().sum(1, keepdim=True), square, train, test)
        assert found[f"norm_test_norm_only_{name}"] == pytest.approx(float(from_norm), abs=1e-6), (
            name
        )
        if name != "linear_error":
            own, _ = dense(vector, square, train, test)
            assert found[f"norm_test_self_{name}"] == pytest.approx(float(own), abs=1e-4), name
    assert set(found) == {
        f"norm_test{kind}_{name}"
        for kind in ("", "_self", "_gaussian", "_norm_only")
        for name in VECTORS
    }


def test_the_gaussian_control_is_what_gaussians_give():
    generator = torch.Generator().manual_seed(0)
    n, d = 200_000, 3
    mixing = torch.randn(2 * d, 2 * d, generator=generator, dtype=torch.float64)
    z = torch.randn(n, 2 * d, generator=generator, dtype=torch.float64) @ mixing + 1.5
    statistics = RegressionStatistics(2 * d, 1)
    statistics.update(z, z[:, d:].square().sum(1, keepdim=True))
    second = torch.eye(2 * d, dtype=torch.float64)[:, d:]
    offset = torch.zeros(d, dtype=torch.float64)
    predicted = gaussian_r_squared(statistics.moments(), second, offset, d)
    everywhere = torch.ones(n, dtype=torch.bool)
    direct, _ = dense(z[:, :d], z[:, d:].square().sum(1, keepdim=True), everywhere, everywhere)
    assert predicted == pytest.approx(float(direct), abs=0.01)


def test_probe_directions_find_the_cubic_ratio_of_sparse_orthogonal_features():
    """A12: with orthogonal features the probe's inner product with each is E[w³] / E[w²]."""
    generator = torch.Generator().manual_seed(0)
    dictionary = Dictionary(
        "relu",
        W_enc=torch.eye(D_IN),
        W_dec=torch.eye(D_IN),
        b_dec=torch.zeros(D_IN),
        b_enc=torch.zeros(D_IN),
    )
    n = 20_000
    sizes = torch.linspace(0.5, 3, D_IN)
    active = torch.rand(n, D_IN, generator=generator) < 0.02
    x = active * sizes * (0.5 + torch.rand(n, D_IN, generator=generator))
    batch = RowBatch(
        activations=x,
        tokens=torch.zeros(n, dtype=torch.int64),
        sequence=torch.arange(n) // 10,
        position=torch.arange(n) % 10,
        loss=torch.full((n,), torch.nan, dtype=torch.float64),
        cell=cells_of(torch.arange(n) // 10, torch.arange(n) % 10, seed=0, train_fraction=0.6),
    )
    sums = first_pass(dictionary, batch, n)
    directions = DirectionSums(dictionary, seed=0)
    directions.update(dictionary.encode(x), batch.cell)
    found = direction_findings(dictionary, sums, directions, 1e-9)
    values = found.values
    assert values["directions_correlation_cubic"] == pytest.approx(1, abs=0.01)
    assert torch.allclose(found.inner_product, found.cubic, rtol=0.12)
    control = values["directions_independent_r_squared"]
    assert values["directions_r_squared"] == pytest.approx(control, abs=0.03)
    assert running_mean(torch.arange(500.0))[250] == pytest.approx(249.5)


def test_sums_are_kept_and_made_where_the_dictionary_is(monkeypatch):
    far = a_dictionary().to("meta")
    sums, parts, directions = ErrorSums(far), PartSums(D_IN, "meta"), DirectionSums(far, 0)
    kept = [sums.errors, parts.squares]
    for regression in (
        sums.regression,
        *sums.baselines.values(),
        parts.from_square,
        directions.reconstructed,
        directions.control,
    ):
        kept += [regression.design, regression.cross]
    tensors = [statistics.merged().cross for statistics in kept]
    tensors += [sums.code_powers, sums.sparsity.count, sums.tokens._count]
    assert {tensor.device.type for tensor in tensors} == {"meta"}

    def refuse(_):
        raise AssertionError("rows are brought to the CPU")

    dictionary, batch = a_dictionary(), a_batch()
    codes = dictionary.encode(batch.activations)
    probe = ErrorProbe(torch.zeros(D_IN, D_IN), torch.zeros(D_IN))
    monkeypatch.setattr(torch.Tensor, "cpu", refuse)
    ErrorSums(dictionary).update(batch, codes)
    DirectionSums(dictionary, 0).update(codes, batch.cell)
    PartSums(D_IN).update(batch, decompose(dictionary, probe, batch.activations.double(), codes))
