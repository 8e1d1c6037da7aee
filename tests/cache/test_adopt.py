"""Activations from other people's files: what is read is what is in them, and nothing else."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import save_file

from saelab.cache import adopt, adopted_source
from saelab.cache.adopt import adopt_activations
from saelab.cache.config import AdoptConfig, TokenFilter
from saelab.cache.reader import open_cache
from saelab.errors import ConfigError, SaelabError

ROWS, D_IN = 300, 6
VALUES = np.random.default_rng(0).normal(size=(ROWS, D_IN)).astype("f4")
CONTEXTS = VALUES.reshape(60, 5, D_IN)
TOKENS = np.arange(ROWS).reshape(60, 5)


def _hf(path, values, tokens=None):
    """A folder as `datasets` and SAELens save one: a column per hook point."""
    from datasets import Array2D, Dataset, Features, Sequence, Value

    features = {"blocks.1.hook_resid_post": Array2D(values.shape[1:], "float32")}
    columns = {"blocks.1.hook_resid_post": list(values)}
    if tokens is not None:
        features["token_ids"] = Sequence(Value("int32"))
        columns["token_ids"] = tokens.tolist()
    Dataset.from_dict(columns, features=Features(features)).save_to_disk(path)


def _parquet(path, values):
    column = pyarrow.array(values.tolist(), pyarrow.list_(pyarrow.float32()))
    parquet.write_table(pyarrow.table({"embedding": column}), path, row_group_size=70)


def _fixed_parquet(path, values):
    flat = pyarrow.array(values.reshape(-1))
    column = pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1])
    parquet.write_table(pyarrow.table({"embedding": column, "id": range(len(values))}), path)


WRITERS = {
    "a.npy": np.save,
    "fortran.npy": lambda path, values: np.save(path, np.asfortranarray(values)),
    "big_endian.npy": lambda path, values: np.save(path, values.astype(">f4")),
    "a.npz": lambda path, values: np.savez(path, rows=values),
    "compressed.npz": lambda path, values: np.savez_compressed(path, rows=values),
    "a.pt": lambda path, values: torch.save(torch.tensor(values), path),
    "dict.pt": lambda path, values: torch.save({"layer": torch.tensor(values)}, path),
    "a.safetensors": lambda path, values: save_file({"layer": torch.tensor(values)}, path),
    "a.parquet": _parquet,
    "fixed.parquet": _fixed_parquet,
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks and shards of a few rows, so that their borders are met."""
    monkeypatch.setattr(adopted_source, "BLOCK_BYTES", 4 * D_IN * 37)
    monkeypatch.setattr(adopt, "SHARD_ROWS", 64)


def read_all(out):
    """All rows by their context and position in the files, and which are held out."""
    found, held = {}, set()
    for folder in (out, out / "held_out"):
        cache = open_cache(folder, verify=True)
        for batch in cache.iterate(50):
            for row, context, position, token in zip(
                batch.activations, batch.sequence, batch.position, batch.tokens, strict=True
            ):
                key = (int(context), int(position))
                assert key not in found
                found[key] = (row.numpy(), int(token))
                if folder != out:
                    held.add(key[0])
    return found, held


@pytest.mark.parametrize("name", WRITERS)
def test_every_row_of_a_file_is_in_one_of_the_two_caches(tmp_path, name):
    WRITERS[name](tmp_path / name, VALUES)
    adopt_activations([tmp_path / name], tmp_path / "out", AdoptConfig())
    found, held = read_all(tmp_path / "out")
    assert sorted(found) == [(row, 0) for row in range(ROWS)]
    for (row, _), (values, _) in found.items():
        assert np.array_equal(values, VALUES[row])
    assert len(held) == 30
    statistics = open_cache(tmp_path / "out").statistics
    kept = np.array([VALUES[row] for row in range(ROWS) if row not in held], dtype=np.float64)
    assert np.allclose(statistics.mean, kept.mean(0), atol=1e-6)
    assert statistics.mean_squared_norm == pytest.approx(float((kept**2).sum(1).mean()), rel=1e-9)
    norms = np.sort(np.linalg.norm(VALUES.astype(np.float64), axis=1))
    median = norms[(ROWS - 1) // 2]
    quantile = norms[297] / median  # at 99 %, where the bulk of 300 rows ends
    expected = median * max(2, quantile * min(quantile**2, 4))
    assert statistics.norm_ceiling == pytest.approx(expected, rel=1e-6)


def test_a_saelens_folder_brings_hook_point_contexts_and_tokens(tmp_path):
    _hf(tmp_path / "hf", CONTEXTS, TOKENS)
    adopt_activations([tmp_path / "hf"], tmp_path / "out", AdoptConfig())
    cache = open_cache(tmp_path / "out")
    assert cache.hook_point == "blocks.1.hook_resid_post"
    assert cache.manifest["context_length"] == 5
    found, held = read_all(tmp_path / "out")
    assert len(held) == 6
    for (context, position), (values, token) in found.items():
        assert np.array_equal(values, CONTEXTS[context, position])
        assert token == TOKENS[context, position]


def test_what_saelens_itself_wrote_is_read_as_datasets_reads_it(tmp_path):
    from datasets import load_from_disk

    folder = Path(__file__).parent / "fixtures" / "saelens-cached"
    adopt_activations([folder], tmp_path / "out", AdoptConfig())
    expected = load_from_disk(folder).with_format("numpy")
    cache = open_cache(tmp_path / "out")
    assert (cache.hook_point, cache.d_in) == ("blocks.1.hook_resid_post", 8)
    found, _ = read_all(tmp_path / "out")
    assert len(found) == len(expected) * 8 == 192
    for (context, position), (values, token) in found.items():
        assert np.array_equal(values, expected[context][cache.hook_point][position])
        assert token == expected[context]["token_ids"][position]


def test_files_are_joined_in_order_with_their_tokens(tmp_path):
    paths, tokens = [], []
    for index, part in enumerate((slice(0, 40), slice(40, 60))):
        paths.append(tmp_path / f"part{index}.npy")
        tokens.append(tmp_path / f"tokens{index}.npy")
        np.save(paths[-1], CONTEXTS[part].astype("f8"))
        np.save(tokens[-1], TOKENS[part])
    adopt_activations(paths, tmp_path / "out", AdoptConfig(tokens=tuple(tokens)))
    found, _ = read_all(tmp_path / "out")
    assert len(found) == ROWS
    for (context, position), (values, token) in found.items():
        assert np.array_equal(values, CONTEXTS[context, position])
        assert token == TOKENS[context, position]


def test_several_arrays_are_hook_points_with_the_same_rows(tmp_path):
    loud = VALUES.copy()
    loud[7] *= 1000
    save_file(
        {"early": torch.tensor(loud), "late": -torch.tensor(VALUES)}, tmp_path / "a.safetensors"
    )
    adopt_activations(
        [tmp_path / "a.safetensors"], tmp_path / "out", AdoptConfig(held_out_fraction=0.0)
    )
    early, late = (open_cache(tmp_path / "out", name) for name in ("early", "late"))
    assert early.excluded == {"bos": 0, "separator": 0, "position": 0, "norm": 1, "norm_at:late": 0}
    assert late.excluded["norm_at:early"] == 1
    assert early.n_rows == late.n_rows == ROWS - 1
    assert not (tmp_path / "out" / "held_out").exists()


def test_bfloat16_is_a_choice(tmp_path):
    np.save(tmp_path / "a.npy", VALUES)
    adopt_activations([tmp_path / "a.npy"], tmp_path / "out", AdoptConfig(cache_dtype="bfloat16"))
    found, _ = read_all(tmp_path / "out")
    for (row, _), (values, _) in found.items():
        assert np.array_equal(values, torch.tensor(VALUES[row]).bfloat16().float().numpy())


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def _with(index, value):
    changed = VALUES.copy()
    changed[index] = value
    return changed


def _ragged(path):
    lists = [[0.5] * (4 if row == 13 else 3) for row in range(20)]
    parquet.write_table(pyarrow.table({"x": lists}), path, row_group_size=5)


def _holes(path):
    lists = [[0.5, None if row == 17 else 1.0] for row in range(20)]
    parquet.write_table(pyarrow.table({"x": lists}), path)


def _truncated(path):
    np.save(path, VALUES)
    path.write_bytes(path.read_bytes()[:-100])


BAD = {
    "nan.npy": (lambda p: np.save(p, _with((211, 2), np.nan)), "row 211 holds a NaN"),
    "inf.npz": (lambda p: np.savez(p, x=_with((299, 0), np.inf)), "row 299 holds a NaN or an inf"),
    "huge.npy": (lambda p: np.save(p, VALUES.astype("f8") * 1e300), "row 0 holds a NaN or an inf"),
    "objects.npy": (lambda p: np.save(p, np.array([{}, 1], object)), "cannot be read"),
    "objects.npz": (lambda p: np.savez(p, x=np.array([{}], object)), "array of Python objects"),
    "integers.npy": (lambda p: np.save(p, VALUES.astype(int)), "holds no activations"),
    "words.npy": (lambda p: np.save(p, np.array([["a", "b"]])), "array of <U1"),
    "flat.npy": (lambda p: np.save(p, VALUES[0]), "holds no activations"),
    "empty.npy": (lambda p: np.save(p, VALUES[:0]), "shape [0, 6]"),
    "truncated.npy": (_truncated, "cannot be read"),
    "text.npy": (lambda p: p.write_text("hello"), "cannot be read"),
    "code.pt": (lambda p: torch.save(Harmful(p.with_suffix(".made")), p), "pickled code"),
    "pickle.pt": (lambda p: p.write_bytes(pickle.dumps(VALUES)), "is a bare pickle"),
    "list.pt": (lambda p: torch.save([torch.zeros(3, 2)], p), "holds a list of 1 entries"),
    "nested.pt": (lambda p: torch.save({"a": {"b": torch.zeros(3, 2)}}, p), "'a' of"),
    "sparse.pt": (lambda p: torch.save(torch.eye(3).to_sparse(), p), "sparse"),
    "ragged.parquet": (_ragged, "row 13 has 4 entries where others have 3"),
    "holes.parquet": (_holes, "row 17 holds a missing value"),
    "notes.csv": (lambda p: p.write_text("a,b"), "is not a file of activations"),
    "zeros.npy": (lambda p: np.save(p, _with(slice(0, 200), 0)), "median norm is no measure"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", BAD)
def test_what_is_no_rows_is_refused_in_one_line_and_costs_nothing(tmp_path, name):
    np.save(tmp_path / "good.npy", VALUES)
    out = tmp_path / "out"
    adopt_activations([tmp_path / "good.npy"], out, AdoptConfig())
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write, words = BAD[name]
    write(tmp_path / name)
    with pytest.raises(SaelabError) as refusal:
        adopt_activations([tmp_path / name], out, AdoptConfig(), overwrite=True)
    assert words in str(refusal.value)
    assert name in str(refusal.value) or name == "zeros.npy"
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 600
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "code.made").exists()


def test_files_that_do_not_fit_together_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", VALUES)
    np.save(tmp_path / "wide.npy", np.zeros((4, D_IN + 1), "f4"))
    np.save(tmp_path / "tokens.npy", TOKENS.reshape(-1)[:7])
    both = [tmp_path / "a.npy", tmp_path / "wide.npy"]
    refusals = {
        "wide.npy has rows of shape [7]": (both, AdoptConfig()),
        "give one for each": (both, AdoptConfig(tokens=(tmp_path / "tokens.npy",))),
        "[300] was expected": (both[:1], AdoptConfig(tokens=(tmp_path / "tokens.npy",))),
        "does not exist": ([tmp_path / "none.npy"], AdoptConfig()),
        "no 'x'": (both[:1], AdoptConfig(arrays=("x",))),
        "lie outside": (both[:1], AdoptConfig(rows=TokenFilter(exclude_positions=(1,)))),
        "name of a folder": (both[:1], AdoptConfig(hook_point="../up")),
        "no file of activations": ([], AdoptConfig()),
    }
    for words, (paths, config) in refusals.items():
        with pytest.raises(SaelabError) as refusal:
            adopt_activations(paths, tmp_path / "out", config)
        assert words in str(refusal.value), refusal.value
    with pytest.raises(ConfigError, match="held_out_fraction"):
        AdoptConfig(held_out_fraction=1.0)


@pytest.mark.parametrize("stop_at", [0, 1, 3, 5])
def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch, stop_at):
    _hf(tmp_path / "hf", CONTEXTS, TOKENS)
    adopt_activations([tmp_path / "hf"], tmp_path / "whole", AdoptConfig())
    commit, committed = adopt.HookFolder.commit, []

    def failing(self, contexts):
        if len(committed) == stop_at:
            raise KeyboardInterrupt
        committed.append(contexts)
        commit(self, contexts)

    monkeypatch.setattr(adopt.HookFolder, "commit", failing)
    with pytest.raises(KeyboardInterrupt):
        adopt_activations([tmp_path / "hf"], tmp_path / "out", AdoptConfig())
    monkeypatch.undo()
    monkeypatch.setattr(adopt, "SHARD_ROWS", 64)
    with pytest.raises(ConfigError, match="already exists"):
        adopt_activations([tmp_path / "hf"], tmp_path / "out", AdoptConfig())
    with pytest.raises(ConfigError, match="other settings"):
        adopt_activations([tmp_path / "hf"], tmp_path / "out", AdoptConfig(seed=1), resume=True)
    adopt_activations([tmp_path / "hf"], tmp_path / "out", AdoptConfig(), resume=True)
    for whole in (tmp_path / "whole").rglob("*"):
        mine = tmp_path / "out" / whole.relative_to(tmp_path / "whole")
        if whole.suffix == ".safetensors":
            assert mine.read_bytes() == whole.read_bytes()
        elif whole.is_file():
            assert (
                json.loads(mine.read_text())["content_hash"]
                == (json.loads(whole.read_text())["content_hash"])
            )


def test_the_command_reads_files_and_prints_what_it_wrote(tmp_path, capsys):
    from saelab.cli import main

    np.save(tmp_path / "a.npy", VALUES)
    words = ["cache", "adopt", str(tmp_path / "a.npy"), "--out", str(tmp_path / "out")]
    assert main([*words, "--name", "a camera"]) == 0
    printed = capsys.readouterr().out
    assert "270 rows of width 6" in printed and "30 rows of width 6" in printed
    assert open_cache(tmp_path / "out").model_name == "a camera"
    assert main(words) == 2
    assert "already exists" in capsys.readouterr().err
