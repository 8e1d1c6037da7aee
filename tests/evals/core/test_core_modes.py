"""The inference modes in the suite "core": a tiny gradient_topk run against a literal account."""

from __future__ import annotations

import json
import logging
import random
import shutil
from dataclasses import replace

import pytest
import torch

from saelab.cache.config import HarvestConfig, TokenFilter
from saelab.cache.reader import open_cache
from saelab.cache.writer import write_caches
from saelab.dictionary import load_dictionary, save_dictionary
from saelab.evals.core.charts import MODE_LABELS, WARNING
from saelab.evals.core.config import CoreConfig
from saelab.evals.core.modes import SHUFFLE_SEED
from saelab.evals.core.suite import SUITE, run_core
from saelab.evals.terminal import show
from saelab.formats.evaluation_result import read_evaluation_result
from saelab.stats.metric_definitions import INFERENCE_MODES, METRICS, MODES_GROUP
from saelab.text.contexts import TextConfig
from saelab.training.config import TrainConfig
from saelab.training.methods import MethodOptions
from saelab.training.methods.gradient_topk import GradientTopKOptions
from saelab.training.run import train
from tests.conftest import document_windows

HOOK = "blocks.1.hook_resid_post"
CONTEXT, D_IN, K, BETA = 32, 32, 4, 2.0
WORDS = ("king", "queen", "mill", "river", "boat", "corn", "salt", "congress", "winter", "war")
SMALL = CoreConfig(n_tokens=10 * CONTEXT, n_loss_tokens=7 * CONTEXT, device="cpu", controls=())
USES_LABELS = "no measure of a dictionary one could use without labels"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model_folder):
    """A gradient_topk dictionary of the tiny model, trained for some steps."""
    folder = tmp_path_factory.mktemp("modes")
    generator = random.Random(0)
    documents = [" ".join(generator.choices(WORDS, k=30)) for _ in range(80)]
    (folder / "text.txt").write_text("\n<|endoftext|>\n".join(documents))
    harvest = HarvestConfig(
        model=str(tiny_model_folder),
        hook_points=(HOOK,),
        text=TextConfig(source=str(folder / "text.txt"), held_out_fraction=0.5),
        context_length=CONTEXT,
        n_tokens=64 * CONTEXT,
        batch_contexts=8,
        model_dtype="float32",
        device="cpu",
        gradients=True,
        rows=TokenFilter(max_norm_ratio=1.1),
    )
    config = TrainConfig(
        out=folder / "run",
        cache=write_caches(folder / "cache", harvest)[0],
        methods=("gradient_topk",),
        d_sae=(64,),
        k=(K,),
        n_tokens=256 * 30,
        batch_rows=256,
        calibration_rows=1024,
        device="cpu",
        options=MethodOptions(gradient_topk=GradientTopKOptions(beta=BETA)),
    )
    train(config)
    return folder / "run" / "dictionaries" / f"gradient_topk-d64-k{K}-s0"


@pytest.fixture
def sae(trained, tmp_path):
    """A copy of the dictionary's folder, without results."""
    return shutil.copytree(trained, tmp_path / "sae", ignore=shutil.ignore_patterns("evals"))


def saved_again(folder, out, **training):
    """The same dictionary with other words about its training."""
    saved = load_dictionary(folder)
    save_dictionary(
        out,
        saved.dictionary,
        self_test_inputs=torch.randn(16, D_IN),
        training=saved.manifest["config"] | training,
        made_from=saved.made_from,
        seed=0,
    )
    return out


def values_of(result):
    return {metric.name: metric.value for metric in result.metrics}


def literal(model, folder, config):
    """The modes' numbers written down once more: dense, in float64, all contexts at once."""
    saved = load_dictionary(folder)
    d = saved.dictionary
    recorded = saved.manifest["config"]["inference"]
    text = TextConfig(source=saved.text["source"], held_out_fraction=0.5)
    tokens, _ = document_windows(text, model, CONTEXT, config.n_loss_tokens // CONTEXT)
    x, g = model.capture_with_gradients(tokens, [HOOK])[HOOK]
    keep = torch.ones_like(tokens, dtype=torch.bool)
    keep[:, 0] = False
    for special in model.special_ids:
        keep &= tokens != special
    keep &= x.norm(dim=-1) <= saved.norm_ceiling

    others = []
    for context in range(len(tokens)):
        donor = g[context - 1][keep[context - 1]]
        generator = torch.Generator().manual_seed(SHUFFLE_SEED + context)
        order = torch.randperm(len(donor), generator=generator)
        others += [donor[order[i % len(donor)]] for i in range(int(keep[context].sum()))]
    rows, own, other = (t.double() for t in (x[keep], g[keep], torch.stack(others)))

    W_dec = d.W_dec.double()
    z = (rows - d.b_dec.double()) @ d.W_enc.double() + d.b_enc.double()
    boost, control = (
        1 + recorded["beta"] * (t / recorded["gradient_rms"] @ W_dec.T).abs() for t in (own, other)
    )

    def top(score):
        chosen = score.topk(K, dim=1).indices
        return torch.zeros_like(z).scatter(1, chosen, z.gather(1, chosen).relu())

    codes_of = {
        "plain": top(z),
        "threshold": torch.where(z > recorded["threshold"], z, 0.0),
        "gradient_assisted": top(z * boost),
        "gradient_shuffled": top(z * control),
    }

    def run(replacement):
        def splice(activations):
            replaced = activations.clone()
            replaced[keep] = replacement.to(activations)
            return replaced

        return model.run(tokens, {HOOK: splice})

    def mean_loss(output):
        return output.loss.double().mean().item()

    clean = model.run(tokens)
    p = clean.logits[:, :-1].double().log_softmax(-1)
    training_mean = torch.tensor(saved.made_from["mean"])
    zero = mean_loss(run(torch.zeros_like(rows)))
    mean = mean_loss(run(training_mean.expand_as(rows)))
    found = {"mode_n_rows": len(rows)}
    for mode, codes in codes_of.items():
        hat = codes @ W_dec + d.b_dec.double()
        output = run(hat)
        loss = mean_loss(output)
        q = output.logits[:, :-1].double().log_softmax(-1)
        deviation = (rows - rows.mean(0)).square().sum()
        values = {
            "l0_mean": (codes > 0).sum(1).double().mean().item(),
            "fvu": ((rows - hat).square().sum() / deviation).item(),
            "loss_spliced": loss,
            "loss_recovered_zero": (zero - loss) / (zero - mean_loss(clean)),
            "loss_recovered_mean": (mean - loss) / (mean - mean_loss(clean)),
            "kl": (p.exp() * (p - q)).sum(-1).mean().item(),
        }
        found |= {f"mode_{mode}_{name}": value for name, value in values.items()}
    return found


def test_every_number_of_every_mode_equals_the_literal_one(sae, tiny_model):
    [result] = run_core([sae], SMALL)
    expected = literal(tiny_model, sae, SMALL)
    assert len(expected) == 4 * 6 + 1
    assert result.value("n_excluded_norm") > 0, "the test needs rows above the ceiling"
    found = {name: value for name, value in values_of(result).items() if name.startswith("mode_")}
    assert found == pytest.approx(expected, rel=2e-5, abs=1e-6)
    assert len({found[f"mode_{mode}_fvu"] for mode in INFERENCE_MODES}) == 4
    assert found["mode_plain_loss_spliced"] == result.value("loss_spliced")
    assert found["mode_plain_kl"] == result.value("kl")


def test_numbers_do_not_depend_on_the_batch_size_nor_on_company(sae, tmp_path):
    alone = run_core([sae], SMALL)[0]
    other = saved_again(sae, tmp_path / "other", note="the same under another name")
    for result in run_core([sae, other], replace(SMALL, batch_contexts=3, overwrite=True)):
        assert values_of(result) == pytest.approx(values_of(alone), rel=1e-5, abs=1e-6)


def test_dictionaries_without_modes_get_what_they_always_got(sae, tmp_path, monkeypatch):
    plain = saved_again(sae, tmp_path / "plain", method="topk", inference={})
    with_modes, without = run_core([sae, plain], SMALL)
    ours = [m for m in with_modes.metrics if not m.name.startswith("mode_")]
    assert tuple(ours) == without.metrics == with_modes.metrics[: len(ours)]
    assert without.seed is None and with_modes.seed == SHUFFLE_SEED
    assert "inference_modes" not in without.settings
    assert "inference_modes" not in [chart.name for chart in without.charts]
    html = (plain / "evals" / "core.html").read_text()
    assert MODES_GROUP not in html and "labels" not in html.split("<script>")[0]

    def refuse(*given):
        raise AssertionError("no gradient is needed")

    from saelab.model.language_model import LanguageModel

    monkeypatch.setattr(LanguageModel, "capture_with_gradients", refuse)
    [again] = run_core([plain], replace(SMALL, overwrite=True))
    assert again.metrics == without.metrics


def test_what_sees_the_labels_says_so_wherever_it_is_shown(sae, capsys):
    [result] = run_core([sae], SMALL)
    content = json.loads((sae / "evals" / "core.json").read_text())
    assert read_evaluation_result(sae / "evals" / "core.json") == result
    by_name = {metric["name"]: metric for metric in content["metrics"]}
    assisted = [m for name, m in by_name.items() if name.startswith("mode_gradient_assisted_")]
    assert len(assisted) == 6
    for metric in assisted:
        assert "uses labels" in metric["definition"]
        assert "reads the true next tokens" in metric["definition"]
        assert USES_LABELS in metric["definition"]
    for mode in ("plain", "threshold"):
        assert "no gradient, no labels" in by_name[f"mode_{mode}_fvu"]["definition"]
    assert all(METRICS[name].group == MODES_GROUP for name in by_name if name.startswith("mode_"))
    assert content["settings"]["inference_modes"]["beta"] == BETA
    table = content["tables"][0]
    assert [row[0] for row in table["rows"]] == [MODE_LABELS[mode] for mode in INFERENCE_MODES]

    page = (sae / "evals" / "core.html").read_text().split("<script>")[0]
    assert page.count(WARNING) == 2, "above the table and under the figure"
    before, section = page.split(f"<h2>{MODES_GROUP}</h2>")
    assert "gradient" not in before.split("<main", 1)[1], (
        "headlines and figures are the plain mode's"
    )
    for label in MODE_LABELS.values():
        assert f'<th scope="row">{label}</th>' in section
    assert "(uses labels)" in MODE_LABELS["gradient_assisted"]

    show(SUITE, [(sae / "evals" / "core.json", result)])
    assert "mode" not in capsys.readouterr().out


def test_settings_that_cannot_be_used_leave_the_modes_out_in_words(sae, tmp_path, caplog):
    recorded = load_dictionary(sae).manifest["config"]["inference"]
    never = saved_again(sae, tmp_path / "never", inference=recorded | {"threshold": -1.0})
    with caplog.at_level(logging.WARNING):
        result, usual = run_core([never, sae], SMALL)
    assert "inference modes are left out of the result: the threshold of" in caplog.text
    assert "was never calibrated" in caplog.text
    assert not any(metric.name.startswith("mode_") for metric in result.metrics)
    assert result.value("fvu") == usual.value("fvu")
    assert usual.value("mode_n_rows") > 0


def test_one_context_is_enough(sae):
    [result] = run_core([sae], CoreConfig(n_tokens=CONTEXT, n_loss_tokens=CONTEXT, device="cpu"))
    assert 0 < result.value("mode_n_rows") == result.value("n_loss_rows_replaced") < CONTEXT


def test_the_rows_trained_on_are_judged_beside_the_held_out_ones(trained, tmp_path):
    """FVU of all rows of the cache that the run names, in plain float64; none of another cache."""
    saved = load_dictionary(trained)
    [result] = run_core([trained], replace(SMALL, out=tmp_path / "a"))
    cache = open_cache(trained.parents[2] / "cache")
    x = torch.cat([batch.activations for batch in cache.iterate(256)]).double()
    hat = saved.dictionary(x.float()).double()
    fvu = float((x - hat).square().sum() / (x - x.mean(0)).square().sum())
    assert result.value("fvu_train") == pytest.approx(fvu, rel=1e-5)
    assert result.value("fvu_gap") == pytest.approx(result.value("fvu") - fvu, rel=1e-4)
    assert f"on {len(x):,} rows" in next(
        metric.definition for metric in result.metrics if metric.name == "fvu_train"
    )
    # A copy is in no run; one of another cache is not judged on this one.
    alone = shutil.copytree(trained, tmp_path / "alone", ignore=shutil.ignore_patterns("evals"))
    assert "fvu_train" not in values_of(run_core([alone], SMALL)[0])
