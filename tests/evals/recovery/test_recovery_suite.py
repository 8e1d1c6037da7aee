"""The suite "recovery" on dictionaries whose score is known, and against loops that define it."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from pyarrow import parquet

from saelab.cli import main
from saelab.dictionary import Dictionary, save_dictionary
from saelab.errors import ArtifactError, ConfigError
from saelab.evals.recovery import measure
from saelab.evals.recovery.scorecard import score_card
from saelab.evals.recovery.suite import RecoveryConfig, run_recovery
from saelab.formats.evaluation_result import read_evaluation_result
from saelab.report.draw import draw
from saelab.synthetic.cache import planted_manifest
from saelab.synthetic.config import (
    BernoulliSupportConfig,
    ExactSupportConfig,
    HierarchyConfig,
    PlantedConfig,
)
from saelab.synthetic.generator import planted_features, planted_rows
from saelab.synthetic.presets import PRESETS
from saelab.synthetic.streams import feature_frequencies

N_ROWS = 1500
QUICK = RecoveryConfig(n_rows=N_ROWS, device="cpu")
# Fewer features than dimensions, so that an encoder can read every coefficient exactly.
ROOMY = PlantedConfig(
    n_features=12, d_in=16, support=BernoulliSupportConfig(highest=0.4, lowest=0.05), seed=3
)
FAMILY = replace(ROOMY, hierarchy=HierarchyConfig(n_parents=2, children_per_parent=1))
PARENT, CHILD = 0, 10


@pytest.fixture
def save(tmp_path):
    """A function that saves a dictionary as if trained on a planted cache."""

    def save_it(config, name="sae", *, seed=0, training=None, **tensors):
        d_sae = len(tensors["W_dec"])
        tensors = {
            "b_dec": torch.zeros(config.d_in),
            "b_enc": torch.full((d_sae,), -1e-4),
        } | tensors
        save_dictionary(
            tmp_path / name,
            Dictionary("relu", **tensors),
            self_test_inputs=planted_rows(config, 16).rows,
            training=training or {},
            made_from=planted_manifest(config)["made_from"] | {"cache_hash": "c"},
            seed=seed,
        )
        return tmp_path / name

    return save_it


def reader(config):
    """Encoder weights that give every coefficient exactly; there are fewer than dimensions."""
    return torch.linalg.pinv(planted_features(config).double()).float()


def evaluate(folder, **changes):
    (result,) = run_recovery([folder], replace(QUICK, overwrite=True, **changes))
    return result, parquet.read_table(folder / "evals/recovery_features.parquet").to_pydict()


def test_a_perfect_dictionary_scores_perfectly(save):
    v = planted_features(ROOMY)
    norms = torch.linspace(0.1, 5, 12)[:, None]
    folder = save(ROOMY, W_enc=reader(ROOMY) / norms.T, W_dec=norms * v)
    result, features = evaluate(folder)
    ones = ["frr_080", "frr_099", "frr_one_to_one_099", "mean_max_cosine_features"]
    ones += ["mean_max_cosine_latents", "precision_099", "frr_quartile_1", "frr_quartile_4"]
    ones += ["match_f1", "match_mass_share", "latents_per_match"]
    assert [result.value(name) for name in ones] == pytest.approx([1.0] * len(ones), abs=0.01)
    zeros = ["split_share", "absorption_rate", "absorbed_features", "dead_fraction", "nmse"]
    assert [result.value(name) for name in zeros] == pytest.approx([0.0] * 5, abs=1e-3)
    assert result.value("frequency_error") < 0.01
    assert result.value("frequency_missed") is None
    assert result.value("l0_mean") == pytest.approx(result.value("true_l0"), rel=0.01)
    assert features["best_latent"] == features["one_to_one_latent"] == list(range(12))
    assert features["frequency"] == pytest.approx(feature_frequencies(ROOMY).tolist())
    assert features["parent"] == [None] * 12


def test_an_untrained_dictionary_recovers_nothing(save):
    config = PRESETS["smoke"]
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(128, 24, generator=generator)
    result, _ = evaluate(save(config, W_enc=w.T.contiguous(), W_dec=w))
    assert result.value("frr_080") <= 1 / 64
    assert result.value("frr_090") == 0
    chance = result.value("chance_cosine")
    assert result.value("mean_max_cosine_features") == pytest.approx(chance, abs=0.03)
    for name in ("match_f1", "absorption_rate", "split_share", "frequency_matched"):
        assert result.value(name) is None
    assert len([draw(chart) for chart in result.charts]) == 5


def test_duplicates_splits_dead_and_zero_latents_are_told_apart(save):
    v, w_enc = planted_features(ROOMY), reader(ROOMY)
    # Latents 0 to 10 are features 0 to 10; 11 and 12 are feature 0 again, 12 dead; 13 is zero.
    order = torch.tensor([*range(11), 0, 0])
    w_dec = torch.cat([v[order], torch.zeros(1, 16)])
    b_enc = torch.full((14,), -1e-4)
    b_enc[12] = -100.0
    tensors = {"W_enc": torch.cat([w_enc[:, order], torch.zeros(16, 1)], dim=1), "b_enc": b_enc}
    result, features = evaluate(save(ROOMY, W_dec=w_dec, **tensors))
    assert result.value("frr_090") == result.value("frr_one_to_one_090") == pytest.approx(11 / 12)
    assert features["n_latents"] == [2] + [1] * 10 + [0]
    assert result.value("split_share") == pytest.approx(1 / 11)
    assert result.value("latents_per_match") == pytest.approx(12 / 11)
    assert result.value("dead_fraction") == pytest.approx(2 / 14)
    # The dead copy and the zero row do not count as alive.
    assert result.value("precision_090") == 1
    assert result.value("frequency_missed") == pytest.approx(0.05)
    assert result.value("frr_quartile_4") == pytest.approx(2 / 3)
    assert features["absorbed_share"][11] is None


def test_one_latent_cannot_stand_for_two_features(save, monkeypatch):
    # Two features 20 degrees apart, and one latent between them.
    v = planted_features(ROOMY).clone()
    across = v[1] - (v[1] @ v[0]) * v[0]
    v[1] = math.cos(math.radians(20)) * v[0] + math.sin(math.radians(20)) * across / across.norm()
    between = v[0] + v[1]
    w_dec = torch.cat([between[None], v[2:]])

    class TwoNear(measure.PlantedSource):
        features = v

    monkeypatch.setattr(measure, "PlantedSource", TwoNear)
    result, features = evaluate(save(ROOMY, W_enc=w_dec.T.contiguous(), W_dec=w_dec))
    assert result.value("frr_090") == 1
    assert result.value("frr_one_to_one_090") == pytest.approx(11 / 12)
    assert features["best_latent"][:2] == [0, 0]
    assert features["one_to_one_latent"].count(None) == 1
    assert result.value("coherence") == pytest.approx(math.cos(math.radians(20)), abs=1e-5)


@pytest.mark.parametrize(("weight", "absorbed"), [(1.0, True), (0.4, True), (0.0, False)])
def test_absorption_is_found_where_it_was_made(save, weight, absorbed):
    """The parent's latent is silent where the child is active, whose latent then holds `weight` of
    the parent as well."""
    v, w_enc = planted_features(FAMILY), reader(FAMILY)
    w_dec = v.clone()
    w_dec[CHILD] = v[CHILD] + weight * v[PARENT]
    w_enc[:, PARENT] -= 100 * w_enc[:, CHILD]
    result, features = evaluate(save(FAMILY, W_enc=w_enc, W_dec=w_dec))
    active = planted_rows(FAMILY, N_ROWS, stream="held_out").coefficients.to_dense() > 0
    with_child = active[active[:, PARENT], CHILD].double().mean()
    assert features["parent"][CHILD] == PARENT
    assert with_child > 0.1
    expected = float(with_child) if absorbed else 0.0
    assert features["absorbed_share"][PARENT] == pytest.approx(expected, abs=1e-9)
    others = [share for place, share in enumerate(features["absorbed_share"]) if place != PARENT]
    assert all(share in (0.0, None) for share in others)
    matched = sum(features["matched"])
    assert result.value("absorption_rate") == pytest.approx(expected / matched)
    assert result.value("absorbed_features") == (pytest.approx(1 / matched) if absorbed else 0)


def test_silence_alone_is_not_absorption(save):
    w_enc = reader(FAMILY)
    b_enc = torch.full((12,), -1e-4)
    b_enc[PARENT] = -0.5
    folder = save(FAMILY, W_enc=w_enc, W_dec=planted_features(FAMILY), b_enc=b_enc)
    result, features = evaluate(folder)
    assert features["f1"][PARENT] < 0.95 and features["f1"][3] > 0.99
    assert result.value("absorption_rate") == 0


def literal(config, tensors, n_rows, threshold):
    """The definitions, feature by feature and row by row."""
    v = planted_features(config).double()
    w = tensors["W_dec"].double()
    w = w / w.norm(dim=1, keepdim=True)
    held_out = planted_rows(config, n_rows, stream="held_out")
    x, h = held_out.rows.double(), held_out.coefficients.to_dense() > 0
    f = (x @ tensors["W_enc"].double() + tensors["b_enc"].double()).clamp(min=0)
    n, m = len(v), len(w)
    cosine = [[float(v[i] @ w[k]) for k in range(m)] for i in range(n)]
    alive = [k for k in range(m) if bool((f[:, k] > 0).any())]
    best = [max(range(m), key=lambda k: cosine[i][k]) for i in range(n)]
    matched = [i for i in range(n) if cosine[i][best[i]] >= threshold]
    f1, mass, gap, absorbed, latents = [], [], [], [], []
    for i in matched:
        fires = f[:, best[i]] > 0
        both = int((fires & h[:, i]).sum())
        f1.append(2 * both / (int(fires.sum()) + int(h[:, i].sum())))
        if fires.any():
            mass.append(float(f[h[:, i], best[i]].sum() / f[:, best[i]].sum()))
            gap.append(abs(math.log10(int(fires.sum()) / int(h[:, i].sum()))))
        nearest = {k: max(range(n), key=lambda j: cosine[j][k]) for k in alive}
        latents.append(sum(nearest[k] == i and cosine[i][k] >= threshold for k in alive))
        rows = [r for r in range(n_rows) if h[r, i]]
        absorbed.append(
            sum(is_absorbed(r, i, v, w, f, h, cosine, threshold) for r in rows) / len(rows)
        )
    mean = [sum(values) / len(values) for values in (f1, mass, gap, absorbed, latents)]
    error = x - f @ tensors["W_dec"].double()
    return {
        "frr_090": len(matched) / n,
        "precision_090": sum(max(cosine[i][k] for i in range(n)) >= 0.9 for k in alive)
        / len(alive),
        "mean_max_cosine_features": sum(cosine[i][best[i]] for i in range(n)) / n,
        "mean_max_cosine_latents": sum(max(row[k] for row in cosine) for k in alive) / len(alive),
        "match_f1": mean[0],
        "match_mass_share": mean[1],
        "frequency_error": mean[2],
        "absorption_rate": mean[3],
        "latents_per_match": mean[4],
        "dead_fraction": 1 - len(alive) / m,
        "nmse": float(error.square().sum() / x.square().sum()),
        "z_score_median": float(
            ((f.max(0).values - f.mean(0)) / f.std(0, correction=0))[alive].quantile(0.5)
        ),
    }


def is_absorbed(row, i, v, w, f, h, cosine, threshold):
    fires = [k for k in range(len(w)) if f[row, k] > 0]
    if any(cosine[i][k] >= threshold for k in fires):
        return False
    for k in fires:
        host = max((j for j in range(len(v)) if j != i), key=lambda j: cosine[j][k])
        pair = torch.stack([v[i], v[host]])
        weights = torch.linalg.lstsq(pair.T, w[k][:, None]).solution[:, 0]
        if cosine[host][k] >= 0.5 and h[row, host] and weights[0] >= 0.3:
            return True
    return False


def test_every_number_against_its_definition(save):
    """A blurred dictionary of a planted family: matches, misses, absorbers and dead latents."""
    generator = torch.Generator().manual_seed(2)
    v, n = planted_features(FAMILY), 20
    order = torch.arange(n) % 12
    w_dec = v[order] + 0.1 * torch.randn(n, 16, generator=generator)
    w_dec[12:] = v[order[12:]] + 0.7 * v[(order[12:] + 3) % 12]
    tensors = {
        "W_dec": w_dec,
        "W_enc": reader(FAMILY)[:, order] + 0.05 * torch.randn(16, n, generator=generator),
        "b_enc": -0.35 * torch.rand(n, generator=generator),
    }
    tensors["b_enc"][5] = -50.0
    result, _ = evaluate(save(FAMILY, **tensors), n_rows=300)
    expected = literal(FAMILY, tensors, 300, 0.9)
    assert 0.2 < expected["frr_090"] <= 1 and expected["absorption_rate"] > 0
    found = {name: result.value(name) for name in expected}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_passes_in_pieces_give_the_same_numbers(save, monkeypatch):
    from saelab.evals.recovery import firing, matching
    from saelab.stats import cosines

    folder = save(ROOMY, W_enc=reader(ROOMY), W_dec=planted_features(ROOMY))
    whole, _ = evaluate(folder)
    monkeypatch.setattr(firing, "MOST_ENTRIES", 12 * 70)
    monkeypatch.setattr(cosines, "BLOCK_ENTRIES", 12)
    pieces, _ = evaluate(folder)
    assert [m.value for m in pieces.metrics] == pytest.approx([m.value for m in whole.metrics])
    monkeypatch.setattr(matching, "MOST_ASSIGNED_ENTRIES", 10)
    unassigned, features = evaluate(folder)
    assert unassigned.value("frr_one_to_one_090") is None
    assert features["one_to_one_latent"] == [None] * 12
    assert len([draw(chart) for chart in unassigned.charts]) == 5


def test_the_result_says_what_it_is_and_can_be_drawn_again(save):
    folder = save(ROOMY, W_enc=reader(ROOMY), W_dec=planted_features(ROOMY))
    result, features = evaluate(folder)
    again = read_evaluation_result(folder / "evals/recovery.json")
    assert again.metrics == result.metrics and again.suite == "recovery"
    assert again.made_from["planted"]["n_features"] == 12 and again.seed == 3
    for metric in result.metrics:
        assert metric.unit and len(metric.definition) > 10
        assert "{" not in metric.definition
    assert "at least 0.9)" in json.dumps([metric.definition for metric in result.metrics])
    figures = [draw(chart) for chart in again.charts]
    assert [figure.name for figure in figures] == [
        "recovery_curve",
        "cosine_by_frequency",
        "cosine_histogram",
        "matched_frequencies",
        "precision",
    ]
    for figure in figures:
        assert figure.plot.layout.xaxis.title.text and figure.plot.layout.yaxis.title.text
        assert len(figure.caption) > 40 and any(letter.isdigit() for letter in figure.alt)
        assert len({len(column) for column in figure.data.values()}) == 1
    page = (folder / "evals/recovery.html").read_text()
    assert "Recovery by sae" in page and "Feature recovery rate at 0.9" in page
    assert len(features["feature"]) == 12


def test_equal_frequencies_have_no_quartiles_and_can_be_drawn(save):
    config = replace(ROOMY, support=ExactSupportConfig(active=(2, 3)))
    folder = save(config, W_enc=reader(config), W_dec=planted_features(config))
    result, _ = evaluate(folder)
    assert result.value("frr_quartile_1") is None
    assert len([draw(chart) for chart in result.charts]) == 5


def test_seeds_are_compared_and_averaged(save, capsys, tmp_path):
    v, w_enc = planted_features(ROOMY), reader(ROOMY)
    training = {"method": "topk", "target_l0": 3, "fvu_on_training_rows": 0.1}
    folders = []
    for seed in range(2):
        folders.append(save(ROOMY, f"s{seed}", seed=seed, training=training, W_enc=w_enc, W_dec=v))
    blind = {"W_enc": w_enc, "W_dec": v.flip(1)}
    folders.append(save(ROOMY, "s2", seed=2, training=training, **blind))
    other = training | {"target_l0": 4}
    folders.append(save(ROOMY, "other", training=other, W_enc=w_enc, W_dec=v))
    results = run_recovery(folders, QUICK)
    # Two alike and one that shares no direction: the mean over both others is below 0.9.
    assert [result.value("mcs_090") for result in results[:3]] == [0, 0, 0]
    assert results[3].value("mcs_090") is None
    entries = score_card(results)
    assert [(entry.label, entry.n_runs) for entry in entries] == [
        ("topk d12 k3 on planted:custom", 3),
        ("topk d12 k4 on planted:custom", 1),
    ]
    assert entries[0].values["frr_090"].mean == pytest.approx(2 / 3)
    assert entries[0].values["frr_090"].sd == pytest.approx(3**-0.5)
    assert (entries[1].values["frr_090"].mean, entries[1].values["frr_090"].sd) == (1.0, None)
    assert entries[1].values["mcs_090"].mean is None
    pair = run_recovery(folders[:2], replace(QUICK, overwrite=True))
    assert [result.value("mcs_090") for result in pair] == [1, 1]

    words = [*map(str, folders), "--n-rows", "500", "--overwrite", "--device", "cpu"]
    assert main(["eval", "recovery", *words]) == 0
    printed = capsys.readouterr().out
    assert "score card" in printed and "±0.58" in printed, printed
    card = tmp_path / "card"
    assert main(["eval", "recovery", *words, "--card", str(card)]) == 0
    assert f"score card: {card / 'score_card.html'}" in capsys.readouterr().out.replace("\n", "")
    entries = json.loads((card / "score_card.json").read_text())["entries"]
    assert sorted(entry["n_runs"] for entry in entries)[-1] == 3
    assert any(round((e["values"]["frr_090"] or {}).get("sd") or 0, 3) == 0.577 for e in entries)
    page = (card / "score_card.html").read_text()
    assert "Features recovered" in page and "± 0.58" in page
    assert printed.count("report: ") == 4
    assert main(["info", str(folders[0] / "evals")]) == 0
    assert "frr_090: 1" in capsys.readouterr().out


def test_what_cannot_be_judged_is_refused_in_one_line(save, tmp_path, capsys):
    folder = save(ROOMY, W_enc=reader(ROOMY), W_dec=planted_features(ROOMY))
    run_recovery([folder], QUICK)
    for words, message in (
        ([str(folder)], "recovery.json exists already, of other settings: add --overwrite"),
        ([], "no dictionary was given"),
        ([str(tmp_path / "nowhere")], "does not exist"),
        ([str(folder), "--threshold", "0.3"], "threshold: 0.3 is not between 0.5"),
        ([str(folder), "--n-rows", "1", "--overwrite"], "n_rows is 1; it must be at least 2"),
        ([str(folder), "--device", "abacus", "--overwrite"], "device 'abacus' cannot be used"),
    ):
        assert main(["eval", "recovery", *words]) == 2
        err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("saelab:")]
        assert len(err) == 1 and message in err[0]
    with pytest.raises(ConfigError, match="would write to the same folder"):
        run_recovery([folder, folder], replace(QUICK, overwrite=True))


def test_dictionaries_of_models_and_broken_ones_are_refused(save, tmp_path):
    save_dictionary(
        tmp_path / "model",
        Dictionary(
            "relu",
            W_enc=torch.eye(16),
            W_dec=torch.eye(16),
            b_dec=torch.zeros(16),
            b_enc=torch.zeros(16),
        ),
        self_test_inputs=torch.eye(16),
        training={},
        made_from={"model": "smollm2-135m", "hook_point": "x"},
    )
    with pytest.raises(ArtifactError, match=r"trained on 'smollm2-135m', not on planted features"):
        run_recovery([tmp_path / "model"], QUICK)
    huge = save(ROOMY, "huge", W_enc=reader(ROOMY) * 1e38, W_dec=planted_features(ROOMY) * 1e38)
    with pytest.raises(ArtifactError, match=r"huge cannot be evaluated: .* NaN or infinite"):
        run_recovery([huge], QUICK)
    assert not (huge / "evals").exists()


@pytest.mark.slow
def test_training_on_a_planted_cache_recovers_features(tmp_path, capsys, monkeypatch):
    """Cache, train and judge as typed, with the steps cut short."""
    monkeypatch.chdir(tmp_path)
    assert main(["synthetic", "smoke", "planted", "--n-rows", "20000"]) == 0
    training = "--cache planted --d-sae 128 --k 2 --n-tokens 100000 --batch-rows 512 --device cpu"
    assert main(["train", *training.split(), "--out", "run"]) == 0
    (folder,) = (tmp_path / "run/dictionaries").iterdir()
    shutil.copytree(folder, tmp_path / "copy")
    assert main(["eval", "recovery", "copy", "--device", "cpu"]) == 0
    result = read_evaluation_result(tmp_path / "copy/evals/recovery.json")
    assert result.value("frr_080") > 0.5
    assert result.made_from["training"]["method"] == "topk"
    assert "FRR@.8" in capsys.readouterr().out
