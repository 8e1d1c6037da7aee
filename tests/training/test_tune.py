"""Tuning by successive halving: what is trained, what is judged, what is kept and gone on with."""

import dataclasses
import json

import pytest
import torch

from saelab.cache.cache_stream import CacheStream
from saelab.cache.reader import open_cache
from saelab.cli import main
from saelab.commands.info import describe
from saelab.dictionary import load_dictionary
from saelab.errors import ActivationError, ConfigError, Stopped
from saelab.formats.files import read_json
from saelab.stats.metrics import batch_fvu
from saelab.training import tune as tuning
from saelab.training.recipe import WHOLE, load_recipe
from saelab.training.run import train
from saelab.training.tune import RungLoop, TuneCommand, candidates_of, tune, usual

PLAN = {"rungs": 2, "keep_one_in": 2, "held_out_rows": 500}
RATES = ("learning_rate=1e-4,1e-3,4e-3",)


def command(config, vary=RATES, **changes):
    return TuneCommand(method="topk", config=config, vary=vary, **(PLAN | changes))


@pytest.fixture
def config(run_config):
    return dataclasses.replace(run_config, k=(4,), seeds=(0, 1), n_tokens=256 * 12)


def test_the_best_goes_on_and_its_recipe_trains_to_the_same_figure(config, tmp_path):
    content = tune(command(config))
    short, full = content["rungs"]
    assert (short["n_tokens"], short["seeds"]) == (256 * 6, [0])
    assert (full["n_tokens"], full["seeds"]) == (256 * 12, [0, 1])
    ranked = list(short["candidates"])
    assert len(ranked) == 3 and set(full["candidates"]) == set(ranked[:2])
    scores = [figures["score"] for figures in full["candidates"].values()]
    assert scores == sorted(scores) and content["best"] == next(iter(full["candidates"]))
    assert "best: learning_rate=" in "\n".join(describe(config.out))

    recipe = load_recipe(config.out / "recipe.yaml")[WHOLE]
    assert f"# {content['best']}: 0." in (config.out / "recipe.yaml").read_text()
    assert recipe.options.topk.learning_rate == float(content["best"].partition("=")[2])

    # The same rows in the same order give the same dictionary, judged by the rows left out.
    class FirstRows(CacheStream):
        def __init__(self, cache, *args, **more):
            super().__init__(cache, *args, **more, n_rows=cache.n_rows - 500)

    out = tmp_path / "again"
    again = dataclasses.replace(recipe, cache=config.cache, out=out, seeds=(0,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saelab.training.run.CacheStream", FirstRows)
        train(again)
    (folder,) = (out / "dictionaries").iterdir()
    cache = open_cache(config.cache)
    rows = cache.rows(torch.arange(cache.n_rows - 500, cache.n_rows)).activations
    found = batch_fvu(rows, load_dictionary(folder).dictionary(rows))
    assert found == pytest.approx(full["candidates"][content["best"]]["fvu"][0], rel=1e-5)


def test_rows_held_back_are_never_handed_out(tiny_cache):
    cache = open_cache(tiny_cache)
    stream = CacheStream(cache, 256, 0, n_rows=600)
    batches = [stream.next_batch().activations for _ in range(7)]
    state = stream.state()
    expected = stream.next_batch().activations
    stream.restore(state)
    assert torch.equal(stream.next_batch().activations, expected)
    seen = torch.cat(batches).unique(dim=0)
    allowed = cache.rows(torch.arange(600)).activations.unique(dim=0)
    assert torch.equal(seen, allowed)


def test_a_tuning_that_is_stopped_goes_on_to_the_same_figures(config, tmp_path, monkeypatch):
    expected = tune(command(config))
    moved = dataclasses.replace(config, out=tmp_path / "other")
    step = RungLoop._take_step

    def stop_in_the_second_rung(loop):
        outputs = step(loop)
        if loop.config.n_steps == 12 and loop.step == 9:
            raise Stopped("stopped", "SIGTERM")
        return outputs

    with monkeypatch.context() as patch:
        patch.setattr(RungLoop, "_take_step", stop_in_the_second_rung)
        with pytest.raises(Stopped):
            tune(command(moved))
    assert "unfinished: continue with `saelab tune … --resume`" in describe(tmp_path / "other")
    taken = []
    monkeypatch.setattr(RungLoop, "_take_step", lambda loop: taken.append(loop.step) or step(loop))
    content = tune(command(moved, resume=True))
    assert content["rungs"] == expected["rungs"] and taken == [7, 8, 9, 10, 11]
    with pytest.raises(ConfigError, match="tuned with other settings or on another cache"):
        tune(command(moved, keep_one_in=3, resume=True))
    with pytest.raises(ConfigError, match="already holds a tuning: give another --out, or"):
        tune(command(moved))
    (config.out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"files that are no tuning's \(notes.txt\)"):
        tune(command(config, overwrite=True))


def test_a_candidate_that_diverges_costs_the_others_nothing(config, caplog):
    content = tune(command(config, ("learning_rate=1e-3,1e30,3e38",)))
    figures = content["rungs"][-1]["candidates"]
    assert content["best"] == "learning_rate=1e-3"
    assert list(figures.values())[1]["score"] is None
    assert "diverged at step 1 and is left out" in caplog.text
    again = dataclasses.replace(config, out=config.out / "all")
    with pytest.raises(ActivationError, match="every candidate diverged: try lower"):
        tune(command(again, ("learning_rate=1e38,3e38",)))


def test_what_is_compared_is_fvu_at_the_l0_asked_for():
    near = [{"fvu": 0.2, "l0": 8.0, "silent": 0.0}, {"fvu": 0.3, "l0": 4.0, "silent": 0.0}]
    score = tuning._figures(near, 4)["score"]
    assert score == pytest.approx((0.2 * 2**tuning.L0_POWER + 0.3) / 2)
    assert tuning._figures([{"fvu": 0.1, "l0": 8.1, "silent": 0.0}], 4)["score"] is None
    assert tuning._figures([{"fvu": None, "l0": None, "silent": None}], 4)["score"] is None


def test_candidates_are_every_combination_and_the_usual_ones_surround_the_defaults(config):
    found = candidates_of(config, ("auxiliary.weight=0,0.1", "optimizer.warmup-fraction=0,0.05"))
    assert len(found) == 4
    last = found["auxiliary.weight=0.1 optimizer.warmup_fraction=0.05"]
    assert last.options.topk.auxiliary.weight == 0.1
    assert last.optimizer.warmup_fraction == 0.05
    assert len(candidates_of(config, usual(config))) == 18
    tied = dataclasses.replace(config, methods=("bias_adaptation",), n_tokens=256 * 2000)
    assert usual(tied)[0] == "learning_rate=0.003,0.006,0.012" and len(usual(tied)) == 2


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (("learning_rate=1e-3",), "gives 1 candidates; expected 2 to 200"),
        (("learning_rate=1,2", "learning-rate=3"), "give at most 6, each once"),
        (("learing_rate=1,2",), "unknown field 'options.topk.learing_rate'; did you mean"),
        (("learning_rate=fast,slow",), "options.topk.learning_rate: must be a number (got "),
        (("learning_rate=1e-3,0.001",), "vary gives learning_rate=0.001 twice"),
        (("encoder_scale.x=1,2",), "'encoder_scale' in 'encoder_scale.x' holds no settings"),
    ],
)
def test_values_that_make_no_candidates_are_refused(config, vary, message):
    with pytest.raises(ConfigError) as refused:
        candidates_of(config, vary)
    assert message in str(refused.value)


def test_what_cannot_be_tuned_is_refused(config):
    for changes, message in (
        ({"cache": None}, "give --cache"),
        ({"k": (4, 8)}, "tuning takes one d_sae and one k"),
    ):
        with pytest.raises(ConfigError, match=message):
            command(dataclasses.replace(config, **changes))
    with pytest.raises(ConfigError, match="leaves less than one batch of 256"):
        tune(command(config, held_out_rows=1 << 20))


def test_the_command(config, capsys):
    words = ["tune", "jumprelu", "--cache", str(config.cache), "--out", str(config.out)]
    words += ["--d-sae", "32", "--k", "4", "--n-tokens", "2048", "--batch-rows", "256"]
    words += ["--device", "cpu", "--rungs", "1", "--held-out-rows", "400", "--seeds", "0"]
    assert main([*words, "--vary", "bandwidth=0.5,1", "learning_rate=1e-3,3e-3"]) == 0
    assert "recipe: " in capsys.readouterr().out
    content = read_json(config.out / "tuning.json")
    assert json.dumps(content["config"]).count("bandwidth=0.5 learning_rate") == 2
    assert main(["tune", "topkk"]) == 2
    assert "unknown method 'topkk'; did you mean 'topk'?" in capsys.readouterr().err
