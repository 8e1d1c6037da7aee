"""Intervals over documents: against resamples written down once more, and paired."""

from __future__ import annotations

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from saelab.evals.compare.suite import CompareConfig, run_compare
from saelab.evals.document_sums import EFFECTS, SUMS, intervals, over_documents

from .conftest import contents

N = 23


def sums_of(cost: float, seed: int) -> dict[str, np.ndarray]:
    """Sums of a dictionary whose splice costs so many nats; documents differ far more."""
    documents = np.random.default_rng(0)
    positions = documents.integers(200, 400, N).astype(float)
    clean = positions * documents.normal(3.5, 0.3, N)
    hard = positions * documents.lognormal(-2.5, 0.8, N)
    spliced = clean + hard * (1 + cost + np.random.default_rng(seed).normal(0, 0.01, N))
    columns = (positions, clean, clean + 10 * positions, spliced, clean + 5 * positions, hard)
    return dict(zip(SUMS, columns, strict=True))


def tensor(sums) -> torch.Tensor:
    return torch.tensor(np.stack([*sums.values()], axis=1))


def test_a_paired_difference_is_known_better_than_either():
    one, other = sums_of(0.0, 1), sums_of(0.1, 2)
    found = over_documents([tensor(other), tensor(one)], [1.0, -1.0], "loss_recovered_mean")
    drawn = np.random.default_rng(5).integers(N, size=(6000, N))

    def recovered(sums, of):
        mean, spliced, clean = (
            sums[name][of].sum(-1) for name in ("mean_ablation", "spliced", "clean")
        )
        return (mean - spliced) / (mean - clean)

    everything = np.arange(N)
    assert found.value == pytest.approx(recovered(other, everything) - recovered(one, everything))
    low, high = np.quantile(recovered(other, drawn) - recovered(one, drawn), (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.2 * (high - low))
    assert found.high < 0, "the difference is sure"
    alone = intervals(tensor(one))
    width = alone["loss_recovered_mean_high"] - alone["loss_recovered_mean_low"]
    assert width > 5 * (found.high - found.low), "though neither number is"
    assert set(alone) == {f"{name}_{end}" for name in EFFECTS for end in ("low", "high")}


def test_one_document_says_nothing_of_others():
    assert over_documents([tensor(sums_of(0.0, 1))[:1]], [1.0], "kl").low is None


@pytest.fixture
def measured(plant):
    """A run whose core results have sums by document: `other` costs a tenth more."""
    run = plant.run(l0=lambda method, k, seed: k, results=True)
    for folder in (run / "dictionaries").iterdir():
        method, _, k, seed = folder.name.split("-")
        cost = {"topk": 0.0, "other": 0.1}[method]
        path = folder / "evals" / "core_documents.parquet"
        sums = sums_of(cost, int(seed[1:]) + 1)
        parquet.write_table(pyarrow.table({"document": [str(i) for i in range(N)], **sums}), path)
        named = {"features": "core_features.parquet", "documents": path.name}
        plant.core(folder, l0=float(k[1:]), fvu=1 / int(k[1:]), item_files=named)
    return run


def test_rows_and_differences_have_intervals_over_documents(measured, tmp_path):
    config = CompareConfig(out=tmp_path / "out", device="cpu", consistency=False, steering=False)
    [result] = run_compare([measured], config)
    content = contents(tmp_path / "out")
    at = [
        row
        for row in content["common_l0"]
        if (row["label"], row["metric"]) == ("other", "loss_recovered_mean")
    ]
    assert len(at) == 3
    pairs = [(tensor(sums_of(0.1, seed)), tensor(sums_of(0.0, seed))) for seed in (1, 2)]
    expected = over_documents(
        [side for pair in pairs for side in pair], [0.5, -0.5] * 2, "loss_recovered_mean"
    )
    for row in at:
        ends = (row["difference_low"], row["difference_high"])
        assert ends == pytest.approx((expected.low, expected.high), rel=1e-9)
    row = next(row for row in content["rows"] if (row["label"], row["k"]) == ("topk", 8))
    own = over_documents([ours for _, ours in pairs], [0.5, 0.5], "kl")
    assert (row["kl_low"], row["kl_high"]) == pytest.approx((own.low, own.high))
    table = next(
        t for t in result.tables if t.title.startswith("Loss recovered (mean) at the same")
    )
    assert any(f"[{expected.low:.4f}, {expected.high:.4f}]" in str(cell) for cell in table.rows[1])
    assert not any("[" in str(cell) for cell in result.tables[1].rows[1]), "FVU is over rows"


def test_results_on_other_documents_are_not_paired(plant, measured, tmp_path):
    folder = next((measured / "dictionaries").glob("topk*k8-s0"))
    path = folder / "evals" / "core_documents.parquet"
    table = parquet.read_table(path).to_pydict()
    parquet.write_table(pyarrow.table(table | {"positions": table["positions"][::-1]}), path)
    named = {"features": "core_features.parquet", "documents": path.name}
    plant.core(folder, l0=8.0, fvu=1 / 8, item_files=named)
    config = CompareConfig(out=tmp_path / "out", device="cpu", consistency=False, steering=False)
    run_compare([measured], config)
    at = contents(tmp_path / "out")["common_l0"]
    assert all(row["difference_low"] is None for row in at if row["l0"] == 8.0)
