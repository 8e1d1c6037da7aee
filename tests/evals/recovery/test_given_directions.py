"""The suite "recovery" on rows from elsewhere, whose true directions the user gives."""

import json

import numpy as np
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import save_file

from saelab.cache.adopt import adopt_activations
from saelab.cache.config import AdoptConfig
from saelab.cache.reader import open_cache
from saelab.cli import main
from saelab.dictionary import Dictionary, save_dictionary
from saelab.errors import ArtifactError, ConfigError
from saelab.evals.recovery.suite import RecoveryConfig, run_recovery
from saelab.report.draw import draw
from saelab.stats.cosines import random_directions
from saelab.synthetic.config import ExactSupportConfig, PlantedConfig
from saelab.synthetic.generator import planted_features, planted_rows

PLANTED = PlantedConfig(n_features=40, d_in=24, support=ExactSupportConfig(active=(3,)), seed=5)
NORMS = np.linspace(0.1, 9, 40)[:, None]


@pytest.fixture(scope="module")
def adopted(tmp_path_factory):
    """Two dictionaries of adopted rows, one of which is the truth; and the directions in files."""
    folder = tmp_path_factory.mktemp("given")
    rows = planted_rows(PLANTED, 300).rows
    np.save(folder / "rows.npy", rows.numpy())
    adopt_activations([folder / "rows.npy"], folder / "cache", AdoptConfig(name="a camera"))
    origin = open_cache(folder / "cache").provenance()
    truth = planted_features(PLANTED)
    for name, decoder in (("truth", 3 * truth), ("random", random_directions(80, 24, 1))):
        made = Dictionary(
            "topk",
            W_enc=decoder.T.contiguous(),
            W_dec=decoder,
            b_enc=torch.zeros(len(decoder)),
            b_dec=torch.zeros(24),
            k=3,
        )
        save_dictionary(
            folder / name, made, self_test_inputs=rows[:16], training={}, made_from=origin, seed=0
        )
    given = truth.double().numpy() * NORMS
    np.save(folder / "v.npy", given)
    np.savez(folder / "v.npz", directions=given.astype("f4"), frequency=NORMS[:, 0])
    save_file({"v": torch.from_numpy(given)}, folder / "v.safetensors")
    return folder


def config(folder, **changes):
    settings = {"truth": folder / "v.npy", "device": "cpu", "overwrite": True} | changes
    return RecoveryConfig(**settings)


def test_the_truth_scores_one_and_random_directions_score_chance(adopted):
    results = run_recovery([adopted / "truth", adopted / "random"], config(adopted))
    perfect, chance = results
    for name in ("frr_080", "frr_099", "frr_one_to_one_099", "mean_max_cosine_features"):
        assert perfect.value(name) == pytest.approx(1, abs=1e-6)
    assert chance.value("frr_090") == 0
    reached = chance.value("mean_max_cosine_features")
    assert reached == pytest.approx(chance.value("chance_cosine"), abs=0.03)
    v = planted_features(PLANTED).double()
    assert reached == pytest.approx(
        float((v @ random_directions(80, 24, 1).double().T).amax(dim=1).mean()), abs=1e-6
    )
    largest = float((v @ v.T).fill_diagonal_(0).abs().max())
    assert chance.value("coherence") == pytest.approx(largest, abs=1e-6)
    rows = parquet.read_table(adopted / "truth/evals/recovery_features.parquet").to_pydict()
    assert rows["best_latent"] == rows["one_to_one_latent"] == list(range(40))
    # What needs rows with known features is not there, and the result says so.
    named = {metric.name for metric in perfect.metrics}
    assert not named & {"nmse", "match_f1", "precision_090", "true_l0", "frequency_missed"}
    assert "is not measured" in perfect.notes[0]
    assert perfect.made_from["truth"]["directions"] == 40
    assert [draw(chart) for chart in perfect.charts]


@pytest.mark.parametrize("name", ["v.npz", "v.safetensors"])
def test_other_files_of_the_same_directions_give_the_same_numbers(adopted, name):
    (expected,) = run_recovery([adopted / "random"], config(adopted))
    (result,) = run_recovery([adopted / "random"], config(adopted, truth=adopted / name))
    for metric in expected.metrics:
        assert result.value(metric.name) == pytest.approx(metric.value, abs=1e-6)


def test_a_result_is_kept_until_the_directions_are_others(adopted, tmp_path):
    def run(file, **changes):
        given = config(adopted, truth=file, out=tmp_path / "out", overwrite=False, **changes)
        return run_recovery([adopted / "random"], given)[0]

    first = run(adopted / "v.npy")
    (tmp_path / "moved.npy").write_bytes((adopted / "v.npy").read_bytes())
    assert run(tmp_path / "moved.npy").created == first.created
    np.save(tmp_path / "moved.npy", np.load(adopted / "v.npy")[1:])
    with pytest.raises(ConfigError, match=r"of other settings.*directions given, of content hash"):
        run(tmp_path / "moved.npy")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"a": np.ones((2, 24)), "b": np.ones((3, 24))}, r"holds a \[2, 24\], b \[3, 24\]"),
        ({"a": np.ones(24)}, "holds none"),
        ({"a": np.ones((2, 24), dtype=int)}, "holds none"),
        ({"a": np.ones((0, 24))}, r"one matrix .* but holds a \[0, 24\]"),
        ({"a": np.eye(3, 24, k=-1)}, r"row 0 of .* is zero or not finite"),
        ({"a": np.full((2, 24), np.inf)}, "is zero or not finite"),
        ({"a": np.eye(4)}, "writes vectors of width 24, but the directions in .* have width 4"),
    ],
)
def test_a_file_that_holds_no_directions_is_refused(adopted, tmp_path, content, reason):
    np.savez(tmp_path / "v.npz", **content)
    with pytest.raises((ConfigError, ArtifactError), match=reason):
        run_recovery([adopted / "truth"], config(adopted, truth=tmp_path / "v.npz"))


def test_on_the_command_line(adopted, tmp_path, capsys):
    words = ["eval", "recovery", str(adopted / "truth"), str(adopted / "random"), "--overwrite"]
    assert main([*words, "--out", str(tmp_path)]) == 2
    assert "--truth FILE" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path), "--truth", str(tmp_path / "none.npy")]) == 2
    assert "none.npy is no file" in capsys.readouterr().err
    words += ["--truth", str(adopted / "v.npy"), "--card", str(tmp_path / "card")]
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert "score card: mean" in capsys.readouterr().out
    card = json.loads((tmp_path / "card/score_card.json").read_text())
    assert "frr_090" in json.dumps(card) and (tmp_path / "card/score_card.html").exists()
    assert main(["info", str(tmp_path / "truth" / "recovery.json")]) == 0
