"""A comparison of planted runs: the numbers, the files, and what is used again."""

from __future__ import annotations

import math
import re

import pytest
from pyarrow import parquet

from saelab.cli import main as cli
from saelab.commands.info import describe
from saelab.errors import ArtifactError
from saelab.evals.compare import jobs as jobs_module
from saelab.evals.compare.suite import CompareConfig, run_compare
from saelab.formats.evaluation_result import read_evaluation_result
from saelab.formats.files import read_json
from saelab.formats.manifest import write_manifest

from .conftest import contents

COLUMNS = {
    "fvu": lambda method, k, seed: 1 / k + 0.01 * seed - (0.02 if method == "other" else 0),
    "l0": lambda method, k, seed: k * (1.0 if method == "topk" else 1.02),
}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def compare(runs, out, *, page=False, **settings):
    """Compare; the page, which takes longer than all the rest, only where a test reads it."""
    run_compare(runs, CompareConfig(out=out, device="cpu", **settings), pages=page)


def row_of(content, label, k):
    (row,) = [row for row in content["rows"] if row["label"] == label and row["k"] == k]
    return row["values"]


def test_rows_are_means_and_deviations_over_seeds(plant, out):
    compare([plant.run(**COLUMNS)], out)
    content = contents(out)
    assert [(row["label"], row["k"]) for row in content["rows"]] == [
        (label, k) for label in ("topk", "other") for k in (4, 8, 16)
    ]
    values = row_of(content, "topk", 8)
    assert values["fvu"] == pytest.approx(
        {"mean": 0.13, "sd": 0.01 / math.sqrt(2), "n": 2}, abs=1e-12
    )
    assert values["mcs_share"]["mean"] == pytest.approx(0.5)
    assert values["train_seconds"] == pytest.approx(
        {"mean": 10.0, "sd": 10 / math.sqrt(2), "n": 2}
    ), "10 steps of 0.5 and of 1.5 seconds"
    assert values["state_mib"]["mean"] == 1.0
    assert values["effective_latents"]["mean"] == pytest.approx(48)
    assert values["steering_size"] == {"mean": 9.0, "sd": None, "n": 1}, "one seed is steered with"
    assert row_of(content, "topk", 4)["steering_size"]["n"] == 0, "only at the middle L0"


def test_methods_are_compared_at_the_same_l0_and_paired_by_seed(plant, out):
    compare([plant.run(**COLUMNS)], out)
    content = contents(out)
    assert content["reference"] == "topk"
    at = {(one["label"], one["metric"], one["l0"]): one for one in content["common_l0"]}
    assert sorted({l0 for _, _, l0 in at}) == [5.66, 8.0, 11.3]
    share = math.log(8 / 4.08) / math.log(2)
    own = [0.25 - 0.02 + share * (0.125 - 0.25) + 0.01 * seed for seed in (0, 1)]
    one = at["other", "fvu", 8.0]
    assert one["value"]["mean"] == pytest.approx(sum(own) / 2)
    assert one["difference"]["mean"] == pytest.approx(own[0] - 0.125)
    assert one["difference"]["sd"] == pytest.approx(0, abs=1e-12), "seeds are paired"
    assert at["topk", "fvu", 8.0]["difference"]["n"] == 0


def test_an_l0_outside_a_methods_points_gives_no_number(plant, out):
    compare([plant.run(**COLUMNS)], out, page=True, common_l0=(4.0, 8.0))
    at = {
        (one["label"], one["l0"]): one
        for one in contents(out)["common_l0"]
        if one["metric"] == "fvu"
    }
    assert at["topk", 4.0]["value"]["n"] == 2
    assert at["other", 4.0]["value"] == {"mean": None, "sd": None, "n": 0}
    assert at["other", 4.0]["outside"] == [0, 1]
    assert "outside its range" in (out / "compare.html").read_text()


def test_the_table_has_a_row_per_dictionary(plant, out):
    run = plant.run(**COLUMNS)
    compare([run], out)
    table = parquet.read_table(out / "compare_dictionaries.parquet").to_pylist()
    assert len(table) == 12
    content = contents(out)
    assert [row["hash"] for row in table] == [one["hash"] for one in content["dictionaries"]]
    assert content["result"].made_from["dictionaries"] == [row["hash"] for row in table]
    first = table[0]
    assert (first["method"], first["k"], first["seed"]) == ("topk", 4, 0)
    assert first["fvu"] == pytest.approx(0.25)
    used = [
        {suite for suite in ("core", "consistency", "steering") if one[f"{suite}_sha256"]}
        for one in content["dictionaries"]
    ]
    assert used[0] == {"core", "consistency"}
    assert used[2] == {"core", "consistency", "steering"}, "the lowest seed at the middle L0"
    assert content["definitions"] < set(table[0])


def test_a_dictionary_alone_finds_its_costs_in_the_run_it_lies_in(plant, out):
    run = plant.run(methods=("topk",), seeds=(0,))
    folders = sorted((run / "dictionaries").iterdir())
    compare(folders, out)
    assert [one["train_seconds"] for one in contents(out)["dictionaries"]] == [5.0] * 3


def test_one_seed_has_no_spread(plant, out):
    compare([plant.run(seeds=(3,))], out, page=True)
    content = contents(out)
    assert row_of(content, "topk", 8)["fvu"] == {"mean": 0.125, "sd": None, "n": 1}
    assert "mcs_share" not in content["definitions"]
    assert any("Only one seed" in note and "“—”" in note for note in content["notes"])
    assert "0.1250\u00a0±\u00a0—" in (out / "compare.html").read_text()


def test_variants_of_a_method_are_told_apart_by_what_differs(plant, out):
    one = plant.run("one", methods=("topk",), options={"aux": {"kind": "auxk"}, "same": 1})
    other = plant.run("other", methods=("topk",), options={"aux": {"kind": "none"}, "same": 1})
    compare([one, other], out)
    found = contents(out)
    assert list(dict.fromkeys(row["label"] for row in found["rows"])) == [
        "topk (aux.kind auxk)",
        "topk (aux.kind none)",
    ]
    assert found["reference"] == "topk (aux.kind auxk)"


def test_several_widths_have_figures_of_their_own(plant, out):
    narrow = plant.run("narrow", ks=(4, 8))
    wide = plant.run("wide", ks=(4, 8), d_sae=64)
    compare([narrow, wide], out, page=True)
    names = contents(out)["charts"]
    assert [name[-2:] for name in names if name.startswith("pareto")] == ["48", "48", "64", "64"]
    assert len(set(names)) == len(names)
    assert "Training memory, 64 latents" in (out / "compare.html").read_text()


def test_a_reference_that_is_not_there_is_said(plant, out):
    compare([plant.run()], out, reference="gated")
    content = contents(out)
    assert content["reference"] == "topk"
    assert "No dictionary is of the method gated" in " ".join(content["notes"])


def test_other_inference_modes_stand_in_a_table_apart(plant, out):
    run = plant.run(methods=("topk", "gradient_topk"))
    for seed in (0, 1):
        folder = run / "dictionaries" / f"gradient_topk-d48-k8-s{seed}"
        modes = {
            f"mode_{mode}_{name}": 0.5 + place / 10
            for place, mode in enumerate(("plain", "gradient_assisted"))
            for name in ("l0_mean", "fvu", "loss_recovered_zero", "loss_recovered_mean", "kl")
        }
        plant.core(folder, l0=8.0, fvu=0.2, extra=modes)
    compare([run], out, page=True)
    content = contents(out)
    assert [one["mode"] for one in content["inference_modes"]] == ["plain", "gradient_assisted"]
    page = (out / "compare.html").read_text()
    after = page[page.index("Other inference modes") :]
    assert "gradient-assisted (uses labels)" in after
    assert "mode_gradient" not in repr(content["result"].charts)


def test_a_method_without_live_latents_is_compared_as_far_as_it_goes(plant, out):
    run = plant.run(methods=("topk", "dead"))
    for folder in (run / "dictionaries").glob("dead-*"):
        plant.core(folder, l0=0.0, fvu=1.0, extra={"dead_fraction": 1.0})
        for suite in ("consistency", "steering"):
            (folder / "evals" / f"{suite}.json").unlink()
    compare([run], out)
    content = contents(out)
    assert row_of(content, "dead", 8)["fvu"]["mean"] == 1.0
    assert row_of(content, "dead", 8)["mcs_share"]["mean"] is None
    assert "neither consistency nor steering: dead-d48-k4-s0" in " ".join(content["notes"])


def test_only_what_is_missing_is_evaluated(plant, out, monkeypatch):
    """Suites are called with the dictionaries that lack a result, and never with others."""
    run = plant.run()
    called = []
    folder = run / "dictionaries" / "other-d48-k8-s1"
    twin = run / "dictionaries" / "other-d48-k8-s0"
    (folder / "evals" / "core.json").unlink()
    (folder / "evals" / "consistency.json").unlink()

    def run_suite(suite, folders, *_args, **_kwargs):
        called.append((suite.name, [folder.name for folder in folders]))
        for seed, one in enumerate(folders):
            if suite.name == "core":
                plant.core(one, l0=8.0, fvu=0.1)
            else:
                others = [(other, s) for s, other in enumerate(folders) if other != one]
                plant.consistency(one, others, share=0.1 * seed)
        return [read_evaluation_result(one / "evals" / f"{suite.stem}.json") for one in folders]

    monkeypatch.setattr("saelab.evals.suite.Suite.run", run_suite)
    compare([run], out)
    assert called == [("core", [folder.name]), ("consistency", [twin.name, folder.name])]
    called.clear()
    compare([run], out)
    assert called == []


def test_a_comparison_that_was_stopped_goes_on_where_it_stopped(plant, out, monkeypatch):
    run = plant.run(results=False, ks=(4, 8))
    monkeypatch.setattr("saelab.evals.compare.jobs.MOST_AT_ONCE", 2)
    done = []

    def run_suite(suite, folders, config, *, pages):
        assert suite.name == "core"
        if len(done) == 4:
            raise KeyboardInterrupt
        for folder in folders:
            plant.core(folder, l0=4.0 + len(done), fvu=0.1)
            done.append(folder.name)
        return [read_evaluation_result(folder / "evals" / "core.json") for folder in folders]

    monkeypatch.setattr("saelab.evals.suite.Suite.run", run_suite)
    with pytest.raises(KeyboardInterrupt):
        compare([run], out, consistency=False, steering=False)
    assert not out.exists()
    assert len(done) == 4
    first = [*done]
    done.clear()
    monkeypatch.setattr("saelab.evals.compare.jobs.MOST_AT_ONCE", 32)
    compare([run], out, consistency=False, steering=False)
    assert len(done) == 4
    assert not set(first) & set(done)


def test_units_are_never_divided_and_clashing_ones_kept_apart(plant, tmp_path):
    from saelab.evals.compare.candidates import read_candidates
    from saelab.evals.compare.jobs import by_group, parts_of

    one, other = plant.run("one", seeds=(0, 1, 2)), plant.run("two", n_tokens=7, seeds=(0, 1, 2))
    candidates = read_candidates([one, other], CompareConfig())
    units = [*by_group(candidates).values()]
    parts = [*parts_of(units, jobs_module.group_of_suite)]
    assert sum(map(len, parts)) == 36
    assert [len(part) for part in parts] == [18, 18], "the suite would mix them: same seeds"


def test_settings_of_held_out_text_reach_the_suites():
    config = CompareConfig(context_length=16, text_source="elsewhere", batch_contexts=2)
    for suite in (jobs_module.CORE, jobs_module.CONSISTENCY, jobs_module.STEERING):
        settings = jobs_module.settings_for(suite, config)
        assert (settings.context_length, settings.text_source) == (16, "elsewhere")
        assert (settings.batch_contexts, settings.n_tokens) == (2, config.n_tokens)
        assert settings.overwrite and settings.out is None


def test_the_command_prints_a_table_and_the_page(plant, out, capsys):
    assert cli(["compare", str(plant.run(**COLUMNS)), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"k 8 +8\.00 +0\.130", printed)
    assert "difference to topk" in printed
    assert "standard deviation over seeds" in printed
    assert f"report: {out / 'compare.html'}" in printed


def test_info_knows_a_comparison(plant, out):
    compare([plant.run()], out)
    lines = describe(out)
    assert lines[0] == "evaluation result (schema version 2)"
    assert "topk/d48/k8/fvu: 0.125" in lines
    assert lines[-1].startswith("intact: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("metrics"), "'metrics' is missing"),
        (lambda content: content.update(metrics=[7]), "metric 0 needs exactly"),
        (lambda content: content["metrics"][0].pop("name"), "metric 0 needs exactly"),
        (lambda content: content["charts"][0].pop("series"), "series"),
        (lambda content: content.update(charts=3), "charts"),
    ],
)
def test_info_names_what_is_wrong_with_a_damaged_comparison(plant, out, change, message):
    compare([plant.run(methods=("topk",), ks=(4, 8), seeds=(0,))], out)
    content = read_json(out / "compare.json")
    change(content)
    write_manifest(out / "compare.json", content)
    with pytest.raises(ArtifactError, match=message):
        describe(out)
