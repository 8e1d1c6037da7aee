"""The suite end to end on the tiny model: from text and from a cache, one dictionary and many."""

import pytest
import torch
from pyarrow import parquet

from saelab.cache.config import HarvestConfig, TokenFilter
from saelab.cache.writer import write_caches
from saelab.dictionary.decomposition import load_probe
from saelab.errors import ActivationError, ConfigError
from saelab.evals.command import main
from saelab.evals.dark_matter.suite import SUITE, DarkMatterConfig
from saelab.evals.suite import evaluate
from saelab.formats.evaluation_result import read_evaluation_result

HOOK = "blocks.1.hook_resid_post"
PLAIN = ("linear", "norm-test", "directions", "pursuit")


def config(tmp_path, **changes):
    settings = {
        "analyses": PLAIN,
        "n_tokens": 1500,
        "n_loss_tokens": 320,
        "n_downstream_tokens": 64,
        "n_synthetic_rows": 400,
        "out": tmp_path / "out",
        "device": "cpu",
        "overwrite": True,
    }
    return DarkMatterConfig(**{**settings, **changes})


def run_dark_matter(folders, settings):
    return [result for _, result in evaluate(SUITE, folders, settings)]


@pytest.fixture
def dictionary_folder(save_trained, topk_dictionary):
    return save_trained(topk_dictionary(), "one")


def numbers(result):
    return {metric.name: metric.value for metric in result.metrics}


def test_one_dictionary_on_held_out_text(tmp_path, dictionary_folder):
    written = run_dark_matter([dictionary_folder], config(tmp_path))
    out = tmp_path / "out"
    result = read_evaluation_result(out / "dark_matter.json")
    values = numbers(result)
    assert values == numbers(written[0])
    assert values["n_rows"] == 1500
    assert values["n_train_rows"] + values["n_test_rows"] == 1500
    assert values["l0_mean"] <= 6
    assert values["fvu_nonlinear"] < values["fvu"]
    assert values["error_explained"] == pytest.approx(1 - values["fvu_nonlinear"] / values["fvu"])
    assert values["norm_test_error"] == pytest.approx(values["norm_r_squared"], abs=1e-9)
    assert values["pursuit_fvu"] < values["fvu"]
    assert values["pursuit_n_rows"] == 1500
    assert all(metric.definition and metric.unit for metric in result.metrics)
    tokens = parquet.read_table(out / "dark_matter_tokens.parquet")
    assert tokens.num_rows == 1500
    losses = tokens.column("loss")
    assert 0 < losses.null_count < 1500
    probe = load_probe(out / "dark_matter_probe.safetensors")
    assert probe.weight.shape == (32, 32)
    names = {chart.name for chart in result.charts}
    assert {"error_parts", "norm_predictors", "norm_test", "error_trace"} <= names
    page = (out / "dark_matter.html").read_text()
    assert "pursuit codes" in page
    assert not list(out.glob(".dark_matter*"))
    assert not (out / "dark_matter_family.json").exists()


def test_the_contexts_in_a_pass_decide_no_number(tmp_path, dictionary_folder):
    runs = [
        numbers(
            run_dark_matter(
                [dictionary_folder],
                config(tmp_path, analyses=("linear", "norm-test"), batch_contexts=size),
            )[0]
        )
        for size in (1, 8)
    ]
    for name, value in runs[0].items():
        assert runs[1][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_a_family_has_a_report_of_its_own(tmp_path, save_trained, topk_dictionary, capsys):
    folders = [
        save_trained(topk_dictionary(seed=width, d_sae=width), f"w{width}")
        for width in (36, 48, 64, 96)
    ]
    out = tmp_path / "family"
    main(
        [
            "dark-matter",
            *map(str, folders),
            *("--n-tokens", "900", "--n-loss-tokens", "0", "--out", str(out)),
            *("--analyses", "linear", "norm-test", "downstream", "family", "--device", "cpu"),
            *("--n-downstream-tokens", "64"),
        ]
    )
    printed = capsys.readouterr().out
    assert "dark_matter_family.html" in printed
    family = read_evaluation_result(out / "dark_matter_family.json")
    assert [row[1] for row in family.tables[0].rows] == [36, 48, 64, 96]
    charts = {chart.name: chart for chart in family.charts}
    assert charts["breakdown"].series[-1].x == [36, 48, 64, 96]
    assert len(charts["scaling_r_squared"].series[0].z) == 4
    assert {"asymptote", "norm_test_violin", "family_trace_error", "family_recovery"} <= set(charts)
    assert any("No contours over width and L0" in note for note in family.notes)
    columns = parquet.read_table(out / family.item_files["dictionaries"])
    assert columns.column("d_sae").to_pylist() == [36, 48, 64, 96]
    assert "<h2>Charts</h2>" in (out / "dark_matter_family.html").read_text()
    with pytest.raises(ConfigError, match="exists already, of other settings: add --overwrite"):
        run_dark_matter(folders, config(tmp_path, out=out, overwrite=False))


def test_a_family_that_was_not_written_is_written_when_the_command_is_repeated(
    tmp_path, save_trained, topk_dictionary, monkeypatch
):
    folders = [save_trained(topk_dictionary(d_sae=width), f"w{width}") for width in (36, 48)]
    settings = config(tmp_path, analyses=("linear", "family"), overwrite=False, n_loss_tokens=0)
    family = tmp_path / "out" / "dark_matter_family.json"

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("saelab.evals.dark_matter.judge.family_of", killed)
        run_dark_matter(folders, settings)
    first = {path: path.stat().st_mtime_ns for path in family.parent.rglob("dark_matter.json")}
    assert len(first) == 2 and not family.exists()
    monkeypatch.setattr("saelab.evals.dark_matter.judge.measure", killed)
    *dictionaries, written = run_dark_matter(folders, settings)
    assert read_evaluation_result(family) == written
    assert [row[0] for row in written.tables[0].rows] == ["w36", "w48"]
    assert written.made_from["dictionaries"] == [d.dictionary_hash for d in dictionaries]
    assert {path: path.stat().st_mtime_ns for path in first} == first


@pytest.fixture
def cache_folder(tmp_path, tiny_model, tiny_model_folder, model_text):
    settings = HarvestConfig(
        model=str(tiny_model_folder),
        hook_points=(HOOK,),
        text=model_text,
        context_length=32,
        n_tokens=2000,
        model_dtype="float32",
        rows=TokenFilter(),
        device="cpu",
    )
    return write_caches(tmp_path / "cache", settings, model=tiny_model)[0]


def test_rows_of_a_cache_with_token_losses(tmp_path, dictionary_folder, cache_folder):
    settings = config(tmp_path, cache=cache_folder, analyses=("linear",), first_position=5)
    result = run_dark_matter([dictionary_folder], settings)[0]
    values = numbers(result)
    assert result.settings["first_position"] == 5
    assert values["norm_r_squared_token_loss"] is not None
    tokens = parquet.read_table(tmp_path / "out" / "dark_matter_tokens.parquet")
    assert min(tokens.column("position").to_pylist()) == 5
    assert tokens.column("loss").null_count < tokens.num_rows == values["n_rows"]
    without = run_dark_matter(
        [dictionary_folder], config(tmp_path, cache=cache_folder, n_loss_tokens=0)
    )[0]
    assert numbers(without)["norm_r_squared_token_loss"] is None
    assert not result.made_from["seen_in_training"]


def test_caches_that_do_not_fit_are_refused(tmp_path, save_trained, topk_dictionary, cache_folder):
    other = save_trained(topk_dictionary(), "rule", row_rule={"exclude_bos": False})
    settings = config(tmp_path, cache=cache_folder, n_loss_tokens=0)
    with pytest.raises(ConfigError, match="filters tokens by"):
        run_dark_matter([other], settings)
    layer = save_trained(topk_dictionary(), "layer", hook_point="blocks.0.hook_resid_post")
    with pytest.raises(ActivationError, match=r"is a cache of 'blocks.1.hook_resid_post'"):
        run_dark_matter([layer], settings)
    wide = save_trained(topk_dictionary(d_in=24), "wide")
    with pytest.raises(ActivationError, match=r"holds activations of width 32; .* takes 24"):
        run_dark_matter([wide], settings)


def test_dictionaries_of_different_hook_points_are_no_family(
    tmp_path, save_trained, topk_dictionary, dictionary_folder
):
    layer = save_trained(topk_dictionary(), "layer", hook_point="blocks.0.hook_resid_post")
    with pytest.raises(ConfigError, match=r"must read the same rows, but hook_point of .*one is"):
        run_dark_matter([dictionary_folder, layer], config(tmp_path))


def test_too_few_tokens_for_the_regression_are_refused(tmp_path, dictionary_folder):
    with pytest.raises(ActivationError, match=r"rows to fit 33 coefficients .*give more tokens"):
        run_dark_matter([dictionary_folder], config(tmp_path, n_tokens=40))
    assert not (tmp_path / "out" / "dark_matter.json").exists()


def test_splicing_and_planted_noise_are_part_of_the_result(tmp_path, dictionary_folder):
    settings = config(tmp_path, analyses=("linear", "downstream", "synthetic"))
    values = numbers(run_dark_matter([dictionary_folder], settings)[0])
    assert values["downstream_loss_identity"] == pytest.approx(
        values["downstream_loss_original"], abs=1e-4
    )
    assert any(name.startswith("synthetic_") for name in values)


def test_components_must_have_been_trained_on_a_part_of_the_error(tmp_path, dictionary_folder):
    settings = config(
        tmp_path,
        analyses=("linear", "components"),
        component_dictionaries=(dictionary_folder,),
    )
    with pytest.raises(
        ConfigError, match="were trained on activations, not on a part of the error"
    ):
        run_dark_matter([dictionary_folder], settings)


def test_settings_that_do_not_fit_are_all_named(tmp_path):
    with pytest.raises(ConfigError) as caught:
        DarkMatterConfig(
            n_tokens=0,
            train_fraction=1.0,
            ridge=2.0,
            n_loss_tokens=-1,
            analyses=("linear-maps", "components"),
        )
    text = str(caught.value)
    for part in ("n_tokens is 0;", "train_fraction", "ridge is 2.0;", "n_loss_tokens", "--sources"):
        assert part in text
    assert "--component-dictionaries" in text


def test_results_without_numbers_are_none_not_nan(tmp_path, save_trained, topk_dictionary):
    """A dictionary that is never active: everything it does not explain is linear."""
    silent = topk_dictionary()
    silent.b_enc.fill_(-1e6)
    values = numbers(run_dark_matter([save_trained(silent, "silent")], config(tmp_path))[0])
    assert values["l0_mean"] == 0
    assert values["error_explained"] == pytest.approx(1, abs=1e-6)
    assert values["shrinkage_gamma"] == pytest.approx(0, abs=1e-9)
    assert all(value is None or torch.tensor(float(value)).isfinite() for value in values.values())
