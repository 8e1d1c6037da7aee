"""From a task's activations over the ordinary training loop to scores of the dictionaries."""

from __future__ import annotations

import pytest

from saelab.evals.supervised.contenders import form_candidates
from saelab.evals.supervised.scores import spread_over_seeds
from saelab.evals.supervised.sites import PromptSite, gather
from saelab.evals.supervised.suite import SupervisedConfig
from saelab.evals.supervised.task_cache import write_task_caches
from saelab.training.config import TrainConfig
from saelab.training.methods import MethodOptions
from saelab.training.methods.topk import TopKOptions
from saelab.training.run import train


@pytest.mark.slow
def test_task_dictionaries_and_their_frozen_control(planted, tmp_path):
    model, task = planted.PlantedModel(), planted.planted_task()
    prompts, site = task.sample(480, "train", 0), PromptSite.parse(planted.SITE)
    (cache,) = write_task_caches(
        tmp_path, model, task.name, prompts, gather(model, prompts, [site]), split="train", seed=0
    )
    for frozen in (False, True):
        train(
            TrainConfig(
                out=tmp_path / f"run-{frozen}",
                cache=cache,
                methods=("topk",),
                d_sae=(24,),
                k=(2,),
                seeds=(0, 1),
                n_tokens=24_000,
                batch_rows=120,
                product_dtype="float32",
                options=MethodOptions(topk=TopKOptions(decoder="frozen" if frozen else "free")),
            )
        )
    folders = [tmp_path / "run-False", tmp_path / "run-True"]
    candidates = form_candidates(folders, model, task.name)
    groups = {candidate.name: candidate.group for candidate in candidates}
    assert groups == {
        "topk-d24-k2-s0": "topk-d24-k2",
        "topk-d24-k2-s1": "topk-d24-k2",
        "topk-d24-k2-s0 frozen decoder": "topk-d24-k2 frozen decoder",
        "topk-d24-k2-s1 frozen decoder": "topk-d24-k2 frozen decoder",
    }
    config = SupervisedConfig(
        task="planted", n_fit=120, n_interpret=120, n_eval=48, k=(2, 4), resamples=20,
        out=tmp_path / "out", save_skylines=True, prompt_seeds=(0, 1),
    )  # fmt: skip
    measured, _ = planted.judge(model, task, candidates, config)
    accuracy = {
        row["group"]: row
        for row in spread_over_seeds(measured.data["scores"])
        if (row["measure"], row["edit"], row["mode"], row["k"]) == ("accuracy", "a", "agnostic", 4)
    }
    trained, frozen = accuracy["topk-d24-k2"], accuracy["topk-d24-k2 frozen decoder"]
    assert trained["n_seeds"] == 4 and trained["mean"] > 0.9
    assert frozen["mean"] < trained["mean"]
    # The supervised dictionary itself, saved with linear probes, is a dictionary like any other.
    (saved,) = form_candidates(
        [tmp_path / "out" / "dictionaries" / planted.SITE / "supervised-mse"], model, task.name
    )
    assert saved.at(site) is not None
    again, _ = planted.judge(
        model, task, [saved], SupervisedConfig(
            task="planted", n_fit=120, n_interpret=120, n_eval=48, k=(2,), resamples=5,
            out=tmp_path / "again",
        )
    )  # fmt: skip
    scores = planted.scores_by(again)
    assert scores["supervised-mse", "accuracy", "a", "agnostic", 2, None, ""] > 0.9
    assert scores["supervised-mse", "n_interpretable", "", "", None, 0.8, ""] == planted.WIDTH
