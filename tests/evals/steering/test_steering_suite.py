"""The suite "steering" on a tiny model: against a slow literal loop, and against misuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saelab.dictionary import Dictionary
from saelab.errors import ArtifactError, ConfigError, ModelError, TextError
from saelab.evals.steering import effects as effects_module
from saelab.evals.steering.measure import draw_prompts
from saelab.evals.steering.numbers import summarise
from saelab.evals.steering.suite import SUITE, SteeringConfig, run_steering
from saelab.evals.terminal import run_command
from saelab.formats.evaluation_result import read_evaluation_result
from saelab.report.draw import draw
from saelab.stats.bootstrap import difference_interval
from saelab.stats.cosines import random_directions
from saelab.stats.seeds import seeded_generator

HOOK = "blocks.1.hook_resid_post"
SMALL = SteeringConfig(
    n_latents=7,
    n_contexts=5,
    prompt_tokens=9,
    n_random=6,
    n_top_tokens=4,
    n_bootstrap=50,
    n_tokens=256,
    batch_variants=5,
    strengths=(0.5, 2.0),
    device="cpu",
)


def features(folder):
    from pyarrow import parquet

    return parquet.read_table(folder / "evals" / "steering_features.parquet").to_pydict()


def literal_effects(model, prompts, direction, length, n_top):
    """Size, consistency and promoted tokens: one whole forward pass per context, in float64."""
    changes = []
    for context in prompts:

        def splice(x):
            changed = x.clone()
            changed[0, -1] += length * direction
            return changed

        steered = model.run(context[None], {HOOK: splice}).logits[0, -1].double()
        change = steered - model.run(context[None]).logits[0, -1].double()
        changes.append(change - change.mean())
    changes = torch.stack(changes)
    half = len(prompts) // 2
    promoted = changes[:half].mean(0).topk(n_top).indices
    size = changes.amax(1).mean().item()
    return size, changes[half:][:, promoted].mean().item(), promoted.tolist()


def drawn_in(result, chart: str, series: str):
    [drawn] = [one for one in result.charts if one.name == chart]
    return next(one for one in drawn.series if one.name == series)


@pytest.fixture
def saved(save_trained, topk_dictionary):
    return save_trained(topk_dictionary(W_dec=None), "sae")


def test_numbers_equal_the_literal_loop(saved, tiny_model, model_text, topk_dictionary):
    from saelab.dictionary import load_dictionary
    from saelab.dictionary.data_spec import data_spec_of

    [result] = run_steering([saved], SMALL)
    one = features(saved)
    spec = data_spec_of(load_dictionary(saved), SMALL)
    prompts = draw_prompts(tiny_model, spec, count=5, length=9, seed=0)
    W_dec = topk_dictionary().W_dec
    mean_norm = result.value("mean_norm")
    sizes = {c: [] for c in SMALL.strengths}
    for row, latent in enumerate(one["latent"]):
        for c in SMALL.strengths:
            size, consistency, promoted = literal_effects(
                tiny_model, prompts, W_dec[latent], c * mean_norm, 4
            )
            sizes[c].append(size)
            assert one[f"size_c{c:g}"][row] == pytest.approx(size, rel=1e-4)
            assert one[f"consistency_c{c:g}"][row] == pytest.approx(consistency, rel=1e-3, abs=1e-4)
            assert one[f"tokens_c{c:g}"][row] == tiny_model.token_strings(promoted)
    for c, values in sizes.items():
        values = torch.tensor(values).double()
        assert result.value(f"size_mean_c{c:g}") == pytest.approx(values.mean().item(), rel=1e-4)
        expected = values.quantile(0.95).item()
        assert result.value(f"size_q95_c{c:g}") == pytest.approx(expected, rel=1e-4)
    directions = random_directions(6, 32, 0)
    floor = [literal_effects(tiny_model, prompts, d, 2.0 * mean_norm, 4)[0] for d in directions]
    drawn = sorted(drawn_in(result, "size_distribution", "random, strength 2").x)
    assert drawn == pytest.approx(sorted(floor), rel=1e-3)


def test_numbers_do_not_depend_on_batches(saved, monkeypatch):
    [one] = run_steering([saved], SMALL)
    monkeypatch.setattr(effects_module, "ACCUMULATED_ENTRIES", 1)
    [other] = run_steering([saved], replace(SMALL, batch_variants=100, overwrite=True))
    first = {metric.name: metric.value for metric in one.metrics}
    second = {metric.name: metric.value for metric in other.metrics}
    assert first == pytest.approx(second, rel=1e-4, abs=1e-4)


def test_an_unembedding_direction_promotes_its_token(save_trained, tiny_model):
    """At the last block's output the largest change is that of the direction's own token."""
    unembedding = tiny_model._forward.plain.get_output_embeddings().weight.float()
    gain = tiny_model._forward.plain.model.norm.weight.float()
    tokens = [40, 77, 123, 200]
    rows = unembedding[tokens] * gain
    dictionary = Dictionary(
        "relu",
        W_enc=torch.zeros(32, 4),
        W_dec=rows,
        b_dec=torch.zeros(32),
        b_enc=torch.ones(4),
    )
    folder = save_trained(
        dictionary, "unembedding", hook_point="blocks.2.hook_resid_post", norm_ceiling=None
    )
    config = replace(SMALL, strengths=(4.0,), n_contexts=8)
    [result] = run_steering([folder], config)
    one = features(folder)
    assert one["latent"] == [0, 1, 2, 3]
    for token, promoted in zip(tokens, one["tokens_c4"], strict=True):
        assert promoted[0] == tiny_model.token_strings([token])[0]
    assert result.value("consistency_mean_c4") > result.value("consistency_random_mean_c4")
    assert result.value("consistency_difference_low_c4") > 0
    assert result.value("consistency_share_above_random_c4") == 1


def test_dictionaries_share_contexts_and_random_directions(
    save_trained, topk_dictionary, tiny_model, monkeypatch
):
    folders = [save_trained(topk_dictionary(seed), f"sae{seed}") for seed in range(2)]
    alone = [run_steering([folder], SMALL)[0] for folder in folders]
    calls = []
    original = type(tiny_model).last_logits

    def counted(self, context, hook_point, additions):
        calls.append(len(additions) - 1)
        return original(self, context, hook_point, additions)

    monkeypatch.setattr(type(tiny_model), "last_logits", counted)
    together = run_steering(folders, replace(SMALL, overwrite=True))
    assert sum(calls) == 5 * 2 * (6 + 7 + 7)
    for one, other in zip(alone, together, strict=True):
        assert one.metrics == other.metrics
        assert (one.charts, one.tables) == (other.charts, other.tables)
    floors = [drawn_in(result, "size_distribution", "random, strength 2") for result in alone]
    assert floors[0] == floors[1]


def test_latents_do_not_depend_on_the_norm_of_their_rows(save_trained, topk_dictionary):
    one = topk_dictionary()
    W_dec = 5 * one.W_dec
    other = Dictionary("topk", W_enc=one.W_enc, W_dec=W_dec, b_dec=one.b_dec, b_enc=one.b_enc, k=6)
    results = run_steering([save_trained(one, "one"), save_trained(other, "other")], SMALL)
    first, second = ({m.name: m.value for m in result.metrics} for result in results)
    assert first == pytest.approx(second, rel=1e-4)


def test_files_are_complete_and_figures_can_be_drawn_from_json(saved):
    [result] = run_steering([saved], SMALL)
    evals = saved / "evals"
    assert sorted(path.name for path in evals.iterdir()) == [
        "steering.html",
        "steering.json",
        "steering_features.parquet",
    ]
    assert read_evaluation_result(evals / "steering.json") == result
    assert len({metric.name for metric in result.metrics}) == len(result.metrics) == 3 + 2 * 2 * 16
    assert all("{" not in metric.definition for metric in result.metrics)
    assert result.value("n_latents") == 7
    figures = [draw(chart) for chart in read_evaluation_result(evals / "steering.json").charts]
    assert [figure.name for figure in figures] == [
        "size_distribution",
        "consistency_distribution",
        "size_and_consistency",
    ]
    for figure in figures:
        assert figure.plot.layout.xaxis.title.text and figure.plot.layout.yaxis.title.text
        assert any(letter.isdigit() for letter in figure.alt)
        assert len({len(column) for column in figure.data.values()}) == 1
    page = (evals / "steering.html").read_text()
    assert "What the most consistent latents promote" in page


def test_seeds_draw_other_latents_contexts_and_directions(saved, tmp_path):
    [one] = run_steering([saved], SMALL)
    [same] = run_steering([saved], replace(SMALL, out=tmp_path / "same"))
    [other] = run_steering([saved], replace(SMALL, seed=1, out=tmp_path / "other"))
    assert one.metrics == same.metrics
    floors = [drawn_in(r, "size_distribution", "random, strength 2") for r in (one, other)]
    assert floors[0] != floors[1]
    steered = [drawn_in(r, "size_and_consistency", "latents").labels for r in (one, other)]
    assert [label.split(":")[0] for label in steered[0]] != [
        label.split(":")[0] for label in steered[1]
    ]


def test_the_bootstrap_interval_is_that_of_a_difference_of_means():
    generator = torch.Generator().manual_seed(0)
    latents = 3 + torch.randn(400, generator=generator)
    random = 1 + 2 * torch.randn(300, generator=generator)
    generator = seeded_generator("steering", "bootstrap", 0)
    low, high = difference_interval(latents, random, n_resamples=4000, generator=generator)
    centre = (latents.mean() - random.mean()).item()
    error = (latents.var() / 400 + random.var() / 300).sqrt().item()
    assert low == pytest.approx(centre - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(centre + 1.96 * error, abs=0.15 * error)
    values = summarise(latents, random, n_bootstrap=10, seed=0)
    assert values["difference"] == pytest.approx(centre, rel=1e-5)
    above = (latents > random.double().quantile(0.95)).double().mean().item()
    assert values["share_above_random"] == pytest.approx(above)


@pytest.mark.parametrize(
    ("origin", "error", "message"),
    [
        (
            {"hook_point": "blocks.1.hook_resid_mid"},
            ModelError,
            r"cannot splice at 'blocks\.1\.hook_resid_mid'",
        ),
        ({"model": "planted:smoke"}, ArtifactError, r"trained on planted features: there is no"),
        ({"model_hash": "0" * 64}, ArtifactError, r"trained on .* content hash 000000000000…"),
    ],
)
def test_what_cannot_be_steered_is_refused(save_trained, topk_dictionary, origin, error, message):
    folder = save_trained(topk_dictionary(), "sae", **origin)
    with pytest.raises(error, match=message):
        run_steering([folder], SMALL)
    assert not (folder / "evals").exists()


def test_dead_latents_and_too_little_text_are_refused(save_trained, topk_dictionary):
    dead = topk_dictionary()
    dead.b_enc -= 1e4
    folder = save_trained(dead, "dead")
    with pytest.raises(ArtifactError, match=r"dead has 0 live latents of 48 on \d+ held-out rows"):
        run_steering([folder], SMALL)
    with pytest.raises(TextError, match=r"gives \d+ contexts of 9 tokens .* 5000 were asked for"):
        run_steering([save_trained(topk_dictionary(), "a")], replace(SMALL, n_contexts=5000))
    with pytest.raises(ConfigError, match=r"prompt_tokens: 129 is longer than the 128 tokens"):
        run_steering([save_trained(topk_dictionary(), "b")], replace(SMALL, prompt_tokens=129))


def test_settings_that_do_not_fit_are_named_together():
    with pytest.raises(
        ConfigError, match=r"n_contexts is 1; it must be at least 2.*-1\.0 is not a pos"
    ):
        SteeringConfig(n_contexts=1, strengths=(-1.0, 2.0))
    with pytest.raises(ConfigError, match="must be one or more different numbers"):
        SteeringConfig(strengths=(1.0, 1.0))


def test_the_command_steers_and_shows_a_table(saved, capsys):
    words = "--n-latents 4 --n-random 4 --n-contexts 2 --prompt-tokens 8 --n-tokens 64"
    run_command(SUITE, [str(saved), *words.split(), "--strengths", "1", "--device", "cpu"])
    shown = capsys.readouterr().out
    assert "consistency" in shown
    assert "steering.html" in shown
    with pytest.raises(ConfigError, match="no dictionary was given: type `saelab eval steering"):
        run_command(SUITE, [])
