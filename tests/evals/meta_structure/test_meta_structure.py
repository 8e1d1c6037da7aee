"""A dictionary of decoder rows: planted sums of shared directions, and numpy in float64."""

import numpy as np
import pytest
import torch

from saelab.cli import main
from saelab.evals.meta_structure.meta_dictionary import (
    MetaDictionary,
    MetaTraining,
    explained,
    random_rows,
)
from saelab.evals.meta_structure.suite import MetaStructureConfig, run_meta_structure
from saelab.stats.cosines import unit_rows

FAST = {"device": "cpu", "n_steps": 70, "batch_rows": 256, "learning_rate": 2e-2}


def made_of(n_directions, per_row, n_rows=256, d=32, seed=0):
    """Decoder rows that are each a sum of a few shared directions."""
    generator = np.random.default_rng(seed)
    directions = generator.normal(size=(n_directions, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    chosen = [generator.choice(n_directions, per_row, replace=False) for _ in range(n_rows)]
    return torch.tensor(np.stack([directions[c].sum(0) for c in chosen]), dtype=torch.float32)


def test_what_is_explained_equals_numpy_in_float64():
    rows = unit_rows(torch.randn(90, 16, generator=torch.Generator().manual_seed(0)))
    meta = MetaTraining(width=22, k=3, n_steps=20, batch_rows=64, learning_rate=1e-2).of(rows, 0)
    share, errors, codes = explained(meta, rows, 3)
    encoder, decoder, b_enc, b_dec = (
        getattr(meta, name).detach().double().numpy()
        for name in ("encoder", "decoder", "b_enc", "b_dec")
    )
    w = rows.double().numpy()
    pre = (w - b_dec) @ encoder.T + b_enc
    floor = np.sort(pre.ravel())[-3 * 90]
    f = np.where((pre >= floor) & (pre > 0), pre, 0)
    expected = np.square(w - f @ decoder - b_dec).sum(1)
    np.testing.assert_allclose(errors, expected, rtol=1e-4, atol=1e-6)
    assert share == pytest.approx(
        1 - expected.sum() / np.square(w - w.mean(0)).sum(), rel=1e-5, abs=1e-6
    )
    assert int(codes.l0().sum()) == 3 * 90
    np.testing.assert_allclose(np.linalg.norm(decoder, axis=1), 1, rtol=1e-5)


def test_gradients_equal_dense_autograd():
    rows = unit_rows(torch.randn(40, 12, generator=torch.Generator().manual_seed(1)))
    meta = MetaDictionary(rows, 10, torch.Generator().manual_seed(2))
    codes, hat, _ = meta(rows, 80)
    (rows - hat).square().sum().backward()
    active = codes.to_dense() > 0
    plain = {n: p.detach().clone().requires_grad_(True) for n, p in meta.named_parameters()}
    pre = (rows - plain["b_dec"]) @ plain["encoder"].T + plain["b_enc"]
    dense = torch.where(active, pre, 0) @ plain["decoder"] + plain["b_dec"]
    (rows - dense).square().sum().backward()
    for name, parameter in meta.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name].grad, rtol=1e-4, atol=1e-5)


def test_random_rows_have_the_covariance_they_are_to_have():
    spread = torch.tensor([1.5, 1.2, 1.0, 0.5]).repeat(8)
    rows = unit_rows(torch.randn(200, 32, generator=torch.Generator().manual_seed(0)) * spread)
    same, plain = (
        random_rows(rows, torch.Generator().manual_seed(1), same_covariance=given)
        for given in (True, False)
    )
    spectra = []
    for part in (rows, same, plain):
        torch.testing.assert_close(part.norm(dim=1), torch.ones(200))
        spectra.append(torch.linalg.svdvals(part - part.mean(0)).square() / 200)
    torch.testing.assert_close(spectra[1], spectra[0], rtol=0.1, atol=0.002)
    assert float((spectra[2] - spectra[0]).abs().max()) > 0.01
    assert float((rows.T @ rows - same.T @ same).norm() / (rows.T @ rows).norm()) < 0.1


def test_sums_of_shared_directions_are_told_from_rows_of_their_own(save_trained, topk_dictionary):
    """Two of 40 directions each share structure; rows of a direction of their own do not."""
    torch.manual_seed(0)
    made = {"shared": made_of(40, 2), "single": torch.randn(256, 32)}
    folders = [
        save_trained(topk_dictionary(d_sae=256, W_dec=rows), name) for name, rows in made.items()
    ]
    shared, single = run_meta_structure(folders, MetaStructureConfig(**FAST))
    assert shared.value("explained") > 0.85
    assert shared.value("shared") > 0.2
    assert abs(single.value("shared")) < 0.05
    assert single.value("explained") == pytest.approx(single.value("explained_random"), abs=0.05)
    assert shared.value("well_explained") > 0.9 and shared.value("n_rows") == 256


def test_too_narrow_a_dictionary_is_refused_in_a_line(save_trained, topk_dictionary, capsys):
    folder = save_trained(topk_dictionary(d_sae=12), "narrow")
    assert main(["eval", "meta-structure", str(folder), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "12 decoder rows" in error and error.count("\n") == 1
