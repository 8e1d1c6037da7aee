"""Which rows are held out; the token-identity baseline; files with a line per token."""

import numpy as np
import pytest
import torch

from saelab.errors import ConfigError
from saelab.evals.dark_matter.linear_error import TokenMeans
from saelab.evals.dark_matter.measure import CodesSpill
from saelab.evals.dark_matter.rows import (
    CONTEXT_TEST,
    CONTEXT_TRAIN,
    TOKEN_TEST,
    RowBatch,
    Spill,
    cells_of,
    first_position_of,
    in_batches,
)
from saelab.evals.dark_matter.tokens import norms_matrix, token_writer, trace_of
from saelab.sparse import SparseCodes


def places(n_contexts=400, length=30):
    sequence = torch.arange(n_contexts).repeat_interleave(length)
    return sequence, torch.arange(length).repeat(n_contexts)


def test_contexts_are_held_out_whole_and_tokens_one_by_one():
    """P5: neighbours never straddle the split by context."""
    sequence, position = places()
    cell = cells_of(sequence, position, seed=3, train_fraction=0.6)
    by_context = torch.isin(cell, torch.tensor(CONTEXT_TEST)).reshape(400, 30)
    assert bool((by_context.all(1) | ~by_context.any(1)).all())
    assert float(by_context.float().mean()) == pytest.approx(0.4, abs=0.08)
    by_token = torch.isin(cell, torch.tensor(TOKEN_TEST)).reshape(400, 30)
    assert float(by_token.float().mean()) == pytest.approx(0.4, abs=0.02)
    assert bool((by_token.any(1) & ~by_token.all(1)).all())
    both = (by_context & by_token).float().mean()
    assert float(both) == pytest.approx(0.16, abs=0.05)


def test_a_row_has_the_same_cell_in_every_batch_and_another_under_another_seed():
    sequence, position = places()
    cell = cells_of(sequence, position, seed=0, train_fraction=0.6)
    order = torch.randperm(len(cell), generator=torch.Generator().manual_seed(0))
    again = cells_of(sequence[order], position[order], seed=0, train_fraction=0.6)
    assert torch.equal(again, cell[order])
    assert not torch.equal(cells_of(sequence, position, seed=1, train_fraction=0.6), cell)


@pytest.mark.parametrize(
    ("asked", "length", "first"), [(None, 1024, 200), (None, 400, 200), (None, 256, 0), (7, 32, 7)]
)
def test_the_first_200_positions_are_left_out_where_contexts_allow_it(asked, length, first):
    assert first_position_of(asked, length) == first


def test_a_first_position_beyond_the_context_is_refused():
    with pytest.raises(ConfigError, match="first_position: 32 leaves nothing of contexts of 32"):
        first_position_of(32, 32)


def token_data(n=4000, vocabulary=60):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (n,), generator=generator)
    values = tokens.double() + 5 * torch.randn(n, generator=generator, dtype=torch.float64)
    return tokens, values, torch.randint(4, (n,), generator=generator)


def test_token_means_are_those_of_training_rows_and_scored_on_others():
    """P10: in sample every row contributes to its own mean, which looks better."""
    tokens, values, cell = token_data()
    tokens[-50:] = 1000 + torch.arange(50)
    cell[-50:] = 3
    means = TokenMeans()
    for part in torch.arange(len(tokens)).split(333):
        means.update(tokens[part], values[part], cell[part])
    train, test = cell < 2, cell >= 2
    overall = values[train].mean()
    predicted = torch.stack(
        [
            values[train & (tokens == token)].mean()
            if bool((train & (tokens == token)).any())
            else overall
            for token in tokens[test]
        ]
    )
    error = (values[test] - predicted).square().sum()
    deviation = (values[test] - values[test].mean()).square().sum()
    held_out = means.r_squared(CONTEXT_TRAIN, CONTEXT_TEST)
    assert held_out == pytest.approx(float(1 - error / deviation), abs=1e-9)
    assert means.r_squared(None, None) > held_out


def test_token_means_without_rows_have_no_score():
    assert TokenMeans().r_squared(CONTEXT_TRAIN, CONTEXT_TEST) is None
    means = TokenMeans()
    means.update(torch.tensor([1, 2]), torch.tensor([1.0, 2.0]).double(), torch.tensor([0, 1]))
    assert means.r_squared(CONTEXT_TRAIN, CONTEXT_TEST) is None


def test_spilled_rows_and_codes_come_back_as_they_went(tmp_path):
    spill = Spill(tmp_path, "rows")
    x = torch.randn(10, 3).bfloat16()
    spill.append(x=x[:4], tokens=torch.arange(4))
    spill.append(x=x[4:], tokens=torch.arange(4, 10))
    batches = list(in_batches(spill.batches(), 3))
    assert [len(batch["tokens"]) for batch in batches] == [3, 3, 3, 1]
    assert torch.equal(torch.cat([batch["x"] for batch in batches]), x)
    assert torch.equal(torch.cat([batch["tokens"] for batch in batches]), torch.arange(10))
    spill = CodesSpill(tmp_path, "codes", 7)
    written = []
    for seed in range(3):
        dense = torch.relu(torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)))
        codes = SparseCodes.from_dense(dense)
        if seed == 1:
            codes = SparseCodes.from_dense(torch.zeros(2, 7))
        written.append(codes)
        spill.append(codes)
    for before, after in zip(written, spill.batches(), strict=True):
        assert torch.equal(before.to_dense(), after.to_dense())
        assert after.row_scale is None


def write_tokens(path, n_contexts=6, length=150, shift=0.0):
    sequence, position = places(n_contexts, length)
    n = len(sequence)
    norms = {
        name: shift + torch.arange(n).double() + place
        for place, name in enumerate(
            ("activation", "reconstruction", "error", "linear_error", "nonlinear_error")
        )
    }
    cell = cells_of(sequence, position, seed=0, train_fraction=0.6)
    loss = torch.full((n,), torch.nan, dtype=torch.float64)
    loss[:7] = 1.5
    with token_writer(path) as write:
        for part in torch.arange(n).split(64):
            batch = RowBatch(
                activations=torch.zeros(len(part), 2),
                tokens=part,
                sequence=sequence[part],
                position=position[part],
                loss=loss[part],
                cell=cell[part],
            )
            write(
                batch,
                torch.ones(len(part), dtype=torch.int64),
                {name: norm[part] for name, norm in norms.items()},
            )
    return cell, norms


def test_token_files_hold_every_row_and_nulls_where_no_loss_is_known(tmp_path):
    from pyarrow import parquet

    cell, norms = write_tokens(tmp_path / "tokens.parquet")
    table = parquet.read_table(tmp_path / "tokens.parquet")
    assert table.num_rows == len(cell)
    assert table.column("loss").null_count == len(cell) - 7
    assert table.column("held_out").to_pylist() == [value >= 2 for value in cell.tolist()]
    assert table.column("error_norm").to_pylist() == norms["error"].tolist()


def test_a_trace_is_a_run_of_neighbours_in_one_held_out_context(tmp_path):
    cell, _ = write_tokens(tmp_path / "tokens.parquet")
    trace = trace_of(tmp_path / "tokens.parquet")
    assert len(trace["position"]) == 100
    assert trace["position"] == list(range(100))
    assert len(set(trace["sequence"])) == 1
    assert int(cell[trace["sequence"][0] * 150]) >= 2


def test_token_files_of_other_rows_are_not_read_side_by_side(tmp_path):
    write_tokens(tmp_path / "a.parquet")
    write_tokens(tmp_path / "b.parquet", shift=5)
    write_tokens(tmp_path / "c.parquet", length=151)
    norms, held_out = next(
        norms_matrix([tmp_path / "a.parquet", tmp_path / "b.parquet"], ["error"])
    )
    assert norms.shape == (900, 2)
    assert bool((norms[:, 1] - norms[:, 0] == 5).all())
    assert set(held_out.tolist()) == {0, 1}
    with pytest.raises(ValueError, match="token files of different rows"):
        list(norms_matrix([tmp_path / "a.parquet", tmp_path / "c.parquet"], ["error"]))


def test_spill_reads_numbers_of_every_kind(tmp_path):
    spill = Spill(tmp_path, "kinds")
    spill.append(a=torch.tensor([1.5, 2.5], dtype=torch.float64), b=torch.tensor([1, 2]))
    read = next(spill.batches())
    assert np.isclose(read["a"][1].item(), 2.5)
    assert read["b"][1].item() == 2 and read["a"].dtype == torch.float64
