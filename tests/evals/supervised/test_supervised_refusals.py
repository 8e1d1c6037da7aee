"""Task caches, and what the suite refuses, in one line that says what to do."""

from __future__ import annotations

import os

import pytest
import torch

from saelab.cache.reader import open_cache
from saelab.errors import ArtifactError, ConfigError, ModelError
from saelab.evals.suite import evaluate
from saelab.evals.supervised.contenders import form_candidates
from saelab.evals.supervised.sites import CrossSection, PromptSite, write_cross_sections
from saelab.evals.supervised.suite import SUITE, SupervisedConfig
from saelab.evals.supervised.task_cache import write_task_caches
from saelab.evals.terminal import run_command
from saelab.formats.lock import writer_lock


def judge(planted, tmp_path, names=("identity",), task=None, **settings):
    config = SupervisedConfig(
        task="planted", n_fit=48, n_interpret=48, n_eval=24, resamples=5, out=tmp_path / "out",
        **settings,
    )  # fmt: skip
    candidates = planted.planted_candidates(tmp_path, names)
    return planted.judge(planted.PlantedModel(), task or planted.planted_task(), candidates, config)


def test_a_task_cache_is_an_ordinary_cache_that_names_its_site(planted, tmp_path):
    prompts = planted.sample(24, "train", 0)
    rows = torch.arange(24.0 * planted.WIDTH).reshape(24, -1)
    site = PromptSite.parse(planted.SITE)

    def write(**more):
        return write_task_caches(
            tmp_path, planted.PlantedModel(), "planted", prompts, {site: rows}, split="train",
            seed=3, **more,
        )  # fmt: skip

    (folder,) = write()
    assert folder.name == planted.SITE
    cache = open_cache(folder, None)
    assert cache.n_rows == 24
    origin = cache.provenance()
    assert origin["hook_point"] == planted.SITE
    assert origin["task"] == {"name": "planted", "split": "train", "seed": 3, "n_prompts": 24}
    assert torch.equal(next(cache.iterate(24)).activations, rows)
    with pytest.raises(ConfigError, match="already exists: give --overwrite"):
        write()
    assert write(overwrite=True) == [folder]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"notes\.txt"):
        write(overwrite=True)


def test_dictionaries_of_another_task_model_or_width_are_refused(planted, tmp_path):
    model = planted.PlantedModel()
    for name, changes, message in (
        ("task", {"task": "ioi"}, "trained on the task 'ioi', not on 'planted': give --task ioi"),
        (
            "model",
            {"model_hash": "other"},
            "is not 'planted' as it is here .it had content hash other",
        ),
        ("site", {"site": "nonsense"}, "'nonsense' names no site"),
    ):
        folder = planted.save(
            tmp_path, name, dictionary=planted.DICTIONARIES["identity"], **changes
        )
        with pytest.raises(ArtifactError, match=message):
            form_candidates([folder], model, "planted")
    wide = planted.Dictionary(
        "relu",
        W_enc=torch.eye(3),
        W_dec=torch.eye(3),
        b_enc=torch.zeros(3),
        b_dec=torch.zeros(3),
    )
    folder = planted.save(tmp_path, "wide", dictionary=wide)
    with pytest.raises(ArtifactError, match=r"takes activations of width 3, but .* has width 10"):
        form_candidates([folder], model, "planted")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ArtifactError, match="holds no dictionary"):
        form_candidates([tmp_path / "nothing"], model, "planted")


def test_a_run_stands_for_its_dictionaries_and_names_must_tell_them_apart(planted, tmp_path):
    model = planted.PlantedModel()
    for run in ("one", "two"):
        planted.save(tmp_path / run / "dictionaries", "identity")
    (candidate,) = form_candidates([tmp_path / "one"], model, "planted")
    assert candidate.name == "identity" and candidate.is_task
    with pytest.raises(ConfigError, match=r"both called identity and both for resid_post\.0@end"):
        form_candidates([tmp_path / "one", tmp_path / "two"], model, "planted")


def test_a_dictionary_for_another_site_is_refused(planted, tmp_path):
    other = CrossSection("elsewhere", (PromptSite("resid_pre", 0, None, "end"),), (("a",),))
    write_cross_sections(tmp_path / "sites.json", [other], model="planted", task="planted")
    with pytest.raises(
        ArtifactError,
        match=r"identity has dictionaries for resid_post\.0@end, but the cross-section 'elsewhere' "
        r"also needs resid_pre\.0@end",
    ):
        judge(planted, tmp_path, sites=tmp_path / "sites.json")
    with pytest.raises(ConfigError, match="has no cross-section 'elswhere'; did you mean"):
        judge(planted, tmp_path, sites=tmp_path / "sites.json", cross_section=("elswhere",))
    with pytest.raises(ConfigError, match="no sites: give --sites FILE"):
        judge(planted, tmp_path, names=())


def test_a_value_without_examples_and_a_model_that_cannot_do_the_task(planted, tmp_path):
    values = tuple(f"a{i}" for i in range(planted.A + 1))
    task = planted.planted_task(attributes={"a": values, "b": ("b0", "b1", "b2", "b3")})
    with pytest.raises(ConfigError, match="1 of 7 values of 'a' have no example among 48 prompts"):
        judge(planted, tmp_path, task=task)
    backwards = planted.planted_task(metric=lambda logits, prompts: -torch.ones(len(prompts)))
    with pytest.raises(ModelError, match="prefers the right answer in 0% of 24 prompts"):
        judge(planted, tmp_path, task=backwards)


def test_where_the_supervised_dictionary_fails_nothing_is_judged(planted, tmp_path):
    # The metric does not see the activation's a, so mean ablation hardly hurts and edits of a
    # cannot be told from no intervention by a prediction that is always the same.
    task = planted.planted_task(predict=lambda logits: torch.zeros(len(logits), dtype=torch.int64))
    measured, result = judge(planted, tmp_path, task=task)
    notes = result.notes
    assert any("accuracies are shown but left out of averages" in note for note in notes)
    assert (
        planted.scores_by(measured)["identity", "tradeoff_accuracy", "a", "agnostic", 2, None, ""]
        is None
    )


def test_the_gate_keeps_dictionaries_from_being_judged(planted, tmp_path, monkeypatch):
    from saelab.evals.supervised import judge as judging
    from saelab.evals.supervised.judge import Gate

    monkeypatch.setattr(judging, "GATE", Gate(sufficiency=1.5))
    measured, result = judge(planted, tmp_path)
    assert not any(score.contender == "identity" for score in measured.data["scores"])
    notes = " ".join(result.notes)
    assert "fails test 1 here: sufficiency 1.00 (below 1.5)" in notes
    monkeypatch.setattr(judging, "GATE", Gate(accuracy=1.5))
    measured, _ = judge(planted, tmp_path, overwrite=True, judge_anyway=False)
    judged = [score for score in measured.data["scores"] if score.contender == "identity"]
    assert judged and not any(score.edit for score in judged)


def test_command_line_refusals():
    with pytest.raises(ConfigError, match="toys: nothing is judged with it"):
        run_command(SUITE, ["y", "--toys", "x"])
    with pytest.raises(ConfigError, match="exclude one another"):
        run_command(SUITE, ["--toys", "x", "--find-sites", "y"])
    with pytest.raises(ConfigError, match="which sites"):
        run_command(SUITE, ["--write-cache", "x"])


def test_a_result_that_is_there_is_not_replaced_unasked(tmp_path):
    (tmp_path / "supervised.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"supervised\.json exists already: add --overwrite"):
        evaluate(SUITE, [], SupervisedConfig(out=tmp_path))
    with pytest.raises(ConfigError, match="exists already: add --overwrite to replace it"):
        run_command(SUITE, ["--find-sites", str(tmp_path / "supervised.json")])


@pytest.mark.parametrize("option", ["--find-sites", "--write-cache", "--toys"])
def test_a_second_writer_is_refused_in_one_line_that_names_the_first(tmp_path, option):
    target = tmp_path / "out" / "target"
    arguments = [option, str(target), "--sites", str(tmp_path / "sites.json")]
    with (
        writer_lock(target),
        pytest.raises(
            ConfigError, match=rf"is being written by process {os.getpid()} on "
        ) as caught,
    ):
        run_command(SUITE, arguments)
    assert "\n" not in str(caught.value) and not target.exists()
