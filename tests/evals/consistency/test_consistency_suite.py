"""The suite "consistency" on a tiny model: files, groups, and what a user can get wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saelab.errors import ArtifactError, ConfigError
from saelab.evals.consistency import measure
from saelab.evals.consistency.suite import SUITE, ConsistencyConfig, run_consistency
from saelab.evals.terminal import run_command
from saelab.formats.evaluation_result import read_evaluation_result
from saelab.report.draw import draw

SMALL = ConsistencyConfig(n_tokens=256, device="cpu", top_fraction=0.1)


def noisy(W_dec, seed, noise=0.02):
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(W_dec, dim=1)
    return W_dec + noise * torch.randn(W_dec.shape, generator=generator)


@pytest.fixture
def runs(save_trained, topk_dictionary):
    """Three seeds: half of the latents are the same up to noise, half are of their own."""
    shared = torch.randn(24, 32, generator=torch.Generator().manual_seed(9))
    folders = []
    for seed in range(3):
        own = torch.randn(24, 32, generator=torch.Generator().manual_seed(100 + seed))
        W_dec = torch.cat([noisy(shared, seed), own])
        dictionary = topk_dictionary(seed, W_dec=W_dec)
        folders.append(save_trained(dictionary, f"topk-s{seed}", seed=seed))
    return folders


def literal_mcs(folders, place, alive):
    """MCS written down once more: dense and in float64."""
    from saelab.dictionary import load_dictionary

    rows = [
        torch.nn.functional.normalize(load_dictionary(folder).dictionary.W_dec.double(), dim=1)
        for folder in folders
    ]
    found = [
        (rows[place][alive[place]] @ rows[other][alive[other]].T).amax(1)
        for other in range(len(folders))
        if other != place
    ]
    return torch.stack(found).mean(0)


def features(folder):
    from pyarrow import parquet

    return parquet.read_table(folder / "evals" / "consistency_features.parquet").to_pydict()


def test_numbers_rows_and_figures_equal_the_literal_ones(runs):
    results = run_consistency(runs, SMALL)
    rows = [features(folder) for folder in runs]
    alive = [torch.tensor(one["compared"]) for one in rows]
    for place, (result, one) in enumerate(zip(results, rows, strict=True)):
        expected = literal_mcs(runs, place, alive)
        mcs = torch.tensor([value for value in one["mcs"] if value is not None])
        torch.testing.assert_close(mcs.double(), expected, rtol=1e-5, atol=1e-6)
        assert result.value("mcs_mean") == pytest.approx(expected.mean().item(), rel=1e-5)
        assert result.value("mcs_share") == pytest.approx((expected > 0.9).double().mean().item())
        assert result.value("n_compared") == int(alive[place].sum())
        assert result.value("n_others") == 2
        assert result.value("mcs_random") < result.value("mcs_mean")
        assert result.value("one_to_one_mean") <= result.value("mcs_mean")
        assert result.settings["compared_with"].keys() == {"seed 0", "seed 1", "seed 2"} - {
            f"seed {place}"
        }
        other = (place + 1) % 3
        partners = one[f"partner_seed_{other}"]
        taken = [partner for partner in partners if partner is not None]
        assert len(taken) == len(set(taken))
        assert set(taken) <= set(alive[other].nonzero().flatten().tolist())
        for latent in range(48):
            if not alive[place][latent]:
                assert one["mcs"][latent] is None and one["density"][latent] == 0
            elif latent < 24 and alive[other][latent]:
                assert partners[latent] == one[f"nearest_seed_{other}"][latent] == latent
        order = sorted(
            (latent for latent in range(48) if alive[place][latent]),
            key=lambda latent: -one["max_activation"][latent],
        )
        top = order[: max(1, round(0.1 * len(order)))]
        share = sum(one["mcs"][latent] > 0.9 for latent in top) / len(top)
        assert result.value("mcs_share_top_max_activation") == pytest.approx(share)


def test_files_are_complete_and_one_page_serves_the_whole_group(runs):
    results = run_consistency(runs, SMALL)
    pages = []
    for folder, result in zip(runs, results, strict=True):
        evals = folder / "evals"
        assert sorted(path.name for path in evals.iterdir()) == [
            "consistency.html",
            "consistency.json",
            "consistency_features.parquet",
        ]
        assert read_evaluation_result(evals / "consistency.json") == result
        assert all("{" not in metric.definition for metric in result.metrics)
        pages.append((evals / "consistency.html").read_text())
    numbers = [f"{result.value('mcs_mean'):.4g}" for result in results]
    assert all(number in page for number in numbers for page in pages)
    figures = [draw(chart) for chart in results[0].charts]
    assert [figure.name for figure in figures] == [
        "share_by_rank",
        "mcs_distribution",
        "mcs_by_max_activation",
        "mcs_by_z_score",
        "mcs_by_density",
    ]
    again = read_evaluation_result(runs[1] / "evals" / "consistency.json")
    assert again.charts == results[0].charts
    for figure in figures:
        assert figure.plot.layout.xaxis.title.text and figure.plot.layout.yaxis.title.text
        assert any(letter.isdigit() for letter in figure.alt)
        assert len({len(column) for column in figure.data.values()}) == 1


def test_without_activity_all_latents_count_and_no_model_is_run(runs, monkeypatch):
    monkeypatch.setattr(measure, "rank", lambda *given: pytest.fail("the model was run"))
    config = replace(SMALL, activity=False)
    results = run_consistency(runs, config)
    everyone = [torch.ones(48, dtype=torch.bool)] * 3
    for place, result in enumerate(results):
        expected = literal_mcs(runs, place, everyone).mean().item()
        assert result.value("mcs_mean") == pytest.approx(expected, rel=1e-5)
        assert result.value("n_compared") == 48
        assert not [metric for metric in result.metrics if "_top_" in metric.name]
        assert "all 48" in next(m.definition for m in result.metrics if m.name == "n_compared")
    assert [chart.name for chart in results[0].charts] == ["mcs_distribution"]
    assert "density" not in features(runs[0])


def test_across_compares_groups_and_single_dictionaries(runs, save_trained, topk_dictionary):
    other = save_trained(
        topk_dictionary(7, d_sae=64), "other-s0", training={"method": "mutual", "target_l0": None}
    )
    results = run_consistency([*runs[:2], other], replace(SMALL, across=True))
    charts = {chart.name: chart for chart in results[0].charts}
    [matrix] = charts["across"].series
    assert matrix.y == ["1: topk, 48 latents, L0 6", "2: mutual, 64 latents"]
    assert charts["across"] in results[2].charts
    assert matrix.z[1][1] is None
    assert matrix.z[0][0] == pytest.approx(
        (results[0].value("mcs_mean") + results[1].value("mcs_mean")) / 2
    )
    assert matrix.z[0][1] != matrix.z[1][0]
    assert [series.name for series in charts["share_across"].series] == [
        measure.OWN_RUNS,
        "mutual, 64 latents",
    ]
    assert [metric.name for metric in results[2].metrics] == ["n_others", "n_compared"]
    assert {chart.name for chart in results[2].charts} == {
        "across",
        "share_across",
        "distribution_across",
    }


def test_planted_dictionaries_are_ranked_on_planted_rows(tmp_path, topk_dictionary, save_trained):
    from saelab.synthetic.cache import planted_manifest
    from saelab.synthetic.config import PlantedConfig
    from saelab.synthetic.generator import PlantedSource

    truth = PlantedConfig(n_features=64, d_in=24, n_rows=1024)
    origin = planted_manifest(truth)["made_from"]
    V = PlantedSource(truth).features
    folders = [
        save_trained(
            topk_dictionary(seed, W_dec=noisy(V, seed)), f"planted-s{seed}", seed=seed, **origin
        )
        for seed in range(2)
    ]
    results = run_consistency(folders, SMALL)
    assert results[0].made_from["rows"] == "held-out planted rows"
    assert results[0].value("mcs_share") > 0.9
    held_out = PlantedSource(truth).rows(SMALL.n_tokens, stream="held_out").rows
    codes = topk_dictionary(0, W_dec=noisy(V, 0)).encode_dense(held_out)
    assert features(folders[0])["density"] == pytest.approx((codes > 0).double().mean(0).tolist())


def test_one_dictionary_of_a_kind_needs_others(runs, save_trained, topk_dictionary):
    odd = save_trained(topk_dictionary(1), "odd", training={"options": {"k_aux": 3}})
    with pytest.raises(
        ConfigError,
        match=r"odd is the only dictionary of its kind \(topk, 48 latents, L0 6, k_aux 3\): "
        r"consistency compares at least two .*--seeds 0 1 2.*--across",
    ):
        run_consistency([*runs, odd], SMALL)
    with pytest.raises(ConfigError, match="is the only dictionary: name at least two"):
        run_consistency(runs[:1], replace(SMALL, across=True))
    assert not (runs[0] / "evals").exists()


def test_other_models_hook_points_and_widths_are_refused(runs, save_trained, topk_dictionary):
    hook = {"hook_point": "blocks.0.hook_resid_post"}
    elsewhere = [save_trained(topk_dictionary(s), f"hook-s{s}", seed=s, **hook) for s in range(2)]
    with pytest.raises(ConfigError, match=r"are of different hook points .* with --across"):
        run_consistency([*runs, *elsewhere], SMALL)
    model = {"model": "another", "model_hash": None}
    elsewhere = [save_trained(topk_dictionary(s), f"mod-s{s}", seed=s, **model) for s in range(2)]
    with pytest.raises(ConfigError, match="are of different models"):
        run_consistency([*runs, *elsewhere], SMALL)
    narrow = save_trained(topk_dictionary(1, d_in=24), "narrow")
    with pytest.raises(ConfigError, match=r"dictionaries of widths \[24, 32\] cannot be compared"):
        run_consistency([*runs, narrow], replace(SMALL, across=True))


def test_the_same_dictionary_or_seed_twice_is_refused(runs, save_trained, topk_dictionary):
    import shutil

    shutil.copytree(runs[0], runs[0].parent / "copy")
    with pytest.raises(ConfigError, match=r"copy is the same dictionary as .*topk-s0: name it"):
        run_consistency([*runs, runs[0].parent / "copy"], SMALL)
    again = save_trained(topk_dictionary(5), "again", training={"n_tokens": 7})
    first = save_trained(topk_dictionary(6), "first", training={"n_tokens": 5})
    with pytest.raises(
        ConfigError, match=r"both seed 0 of topk, 48 latents, L0 6, with n_tokens 5 and 7: runs of"
    ):
        run_consistency([first, again], SMALL)


def test_a_dictionary_without_a_live_latent_is_refused(runs, save_trained):
    from saelab.dictionary import Dictionary

    dead = Dictionary(
        "topk",
        W_enc=torch.zeros(32, 48),
        W_dec=torch.randn(48, 32),
        b_dec=torch.zeros(32),
        b_enc=torch.full((48,), -1.0),
        k=6,
    )
    folder = save_trained(dead, "dead", seed=8)
    with pytest.raises(ArtifactError, match=r"dead has no live latent: none of 48 was active"):
        run_consistency([*runs, folder], SMALL)
    assert not (runs[0] / "evals").exists()


def test_an_existing_result_is_kept_unless_overwrite_is_asked_for(runs, tmp_path):
    config = replace(SMALL, activity=False)
    run_consistency(runs, config)
    before = (runs[0] / "evals" / "consistency.json").read_bytes()
    run_consistency(runs, config)
    assert (runs[0] / "evals" / "consistency.json").read_bytes() == before
    with pytest.raises(
        ConfigError, match=r"consistency\.json exists already, of other settings: add --overwrite"
    ):
        run_consistency(runs[:2], config)
    run_consistency(runs, replace(config, overwrite=True))
    run_consistency(runs, replace(config, out=tmp_path / "out"))
    assert (tmp_path / "out" / "topk-s2" / "consistency.html").exists()


def test_settings_that_do_not_fit_are_named_together():
    with pytest.raises(
        ConfigError,
        match=r"threshold is 1\.5; .*top_fraction is 0.*n_tokens is 0; it must be at least 1",
    ):
        ConsistencyConfig(n_tokens=0, threshold=1.5, top_fraction=0.0)


def test_the_command_shows_numbers_matrix_and_page(runs, capsys):
    run_command(SUITE, [*map(str, runs), "--no-activity", "--across", "--device", "cpu"])
    shown = capsys.readouterr().out
    assert "topk, 48 latents, L0 6" in shown and "seed 2" in shown
    assert "mean MCS of the row's latents" in shown
    assert shown.count("consistency.html") == 3
    with pytest.raises(ConfigError, match="no dictionary was given: type `saelab eval consist"):
        run_command(SUITE, [])
