"""A planted task and a planted model: logits are the activation itself, so every score is known.

The activation at "end" of a prompt is 2·e_a + e_{6+b}; the logits are the activation, so the model
predicts the token of attribute a. The answer depends on a alone.
"""

from __future__ import annotations

import random

import torch

from saelab.config import to_plain
from saelab.dictionary import Dictionary, save_dictionary
from saelab.evals.suite import result_of, write_result
from saelab.evals.supervised.contenders import form_candidates
from saelab.evals.supervised.judge import judge_task
from saelab.evals.supervised.suite import SUITE
from saelab.evals.supervised.task_cache import EVERY_ROW
from saelab.evals.supervised.tasks import Prompt, Task
from saelab.model.language_model import LanguageModel
from saelab.model.patched_runs import PatchedRuns

A, B = 6, 4
WIDTH = A + B
HOOK = "blocks.0.hook_resid_post"
SITE = "resid_post.0@end"


def activation(tokens):
    """[..., 2] tokens (a, 6 + b) -> [..., WIDTH]."""
    rows = torch.zeros(len(tokens), WIDTH)
    rows[torch.arange(len(tokens)), tokens[:, 0]] = 2.0
    rows[torch.arange(len(tokens)), tokens[:, 1]] = 1.0
    return rows


class PlantedRuns(PatchedRuns):
    """Runs whose only activation is the logits."""

    def __init__(self, tokens):
        self.first_position = 0
        self._rows = activation(tokens)

    def logits(self, changes):
        x = torch.zeros(len(self._rows), 2, WIDTH)
        x[:, 1] = self._rows
        for change in changes.values():
            x = change(x)
        return x[:, 1]


class PlantedModel(LanguageModel):
    """One block; tokens (a, 6 + b) give the activation 2·e_a + e_{6+b} at the second position."""

    def __init__(self):
        self.name, self.n_layers, self.n_heads, self.d_head = "planted", 1, 0, 0
        self.n_key_value_heads = 0
        self.d_model = self.d_vocab = WIDTH
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self.bos_id = None
        self.content_hash = "planted-hash"

    def width_at(self, hook_point):
        return WIDTH

    def capture(self, tokens, hook_points):
        x = torch.zeros(len(tokens), 2, WIDTH)
        x[:, 1] = activation(tokens)
        return {name: x.clone() for name in hook_points}

    def prepare_patches(self, tokens, end, hook_points, first_position=0):
        return PlantedRuns(tokens)


def prompt(a, b):
    return Prompt(
        tokens=(a, A + b),
        labels={"a": f"a{a}", "b": f"b{b}"},
        positions={"end": 1},
        correct=(a,),
        incorrect=((a + 1) % A,),
    )


def sample(n, split, seed):
    draw = random.Random(f"{split}{seed}")
    # Every pair equally often: attributes are exactly independent.
    pairs = [(i % A, i // A % B) for i in range(n)]
    draw.shuffle(pairs)
    return [prompt(a, b) for a, b in pairs]


def counterfactual(one, changes, draw):
    values = {name: int(one.labels[name][1:]) for name in ("a", "b")}
    for name in changes:
        others = [v for v in range({"a": A, "b": B}[name]) if v != values[name]]
        values[name] = draw.choice(others)
    return prompt(**values)


def planted_task(**changes):
    settings = {
        "name": "planted",
        "title": "The answer is a.",
        "attributes": {
            "a": tuple(f"a{i}" for i in range(A)),
            "b": tuple(f"b{i}" for i in range(B)),
        },
        "positions": ("end",),
        "answer_tokens": tuple(range(A)),
        "sample": sample,
        "counterfactual": counterfactual,
        "edits": (("a",), ("b",)),
    }
    return Task(**{**settings, **changes})


def mean_row():
    row = torch.zeros(WIDTH)
    row[:A], row[A:] = 2 / A, 1 / B
    return row


DICTIONARIES = {
    # One latent per direction: every code is the attribute's value itself.
    "identity": Dictionary(
        "relu",
        W_enc=torch.eye(WIDTH),
        W_dec=torch.eye(WIDTH),
        b_enc=torch.zeros(WIDTH),
        b_dec=torch.zeros(WIDTH),
    ),
    # No latent is ever on; the reconstruction is the mean.
    "empty": Dictionary(
        "relu",
        W_enc=torch.eye(WIDTH),
        W_dec=torch.eye(WIDTH),
        b_enc=torch.full((WIDTH,), -99.0),
        b_dec=mean_row(),
    ),
    # One latent that is always on, and half of the answers' directions.
    "always": Dictionary(
        "relu",
        W_enc=torch.cat([torch.eye(WIDTH)[:, :3], torch.zeros(WIDTH, 1)], dim=1),
        W_dec=torch.cat([torch.eye(WIDTH)[:3], torch.eye(WIDTH)[-1:]]),
        b_enc=torch.tensor([0.0, 0.0, 0.0, 0.25]),
        b_dec=torch.zeros(WIDTH),
    ),
}


def save(folder, name, *, task="planted", site=SITE, dictionary=None, **origin):
    """Save a dictionary as training on a cache of the planted task would."""
    made_from = {
        "model": "planted",
        "model_hash": "planted-hash",
        "hook_point": site,
        "text": {"source": f"task: {task}"},
        "context_length": 1,
        "row_rule": to_plain(EVERY_ROW),
        "norm_ceiling": None,
        "task": {"name": task, "split": "train", "seed": 0, "n_prompts": 10},
        **origin,
    }
    dictionary = dictionary or DICTIONARIES[name]
    save_dictionary(
        folder / name,
        dictionary,
        self_test_inputs=torch.rand(16, dictionary.d_in),
        training={"method": "relu"},
        made_from={key: value for key, value in made_from.items() if value != "leave out"},
        seed=0,
    )
    return folder / name


def planted_candidates(folder, names):
    model = PlantedModel()
    return form_candidates([save(folder, name) for name in names], model, "planted")


def scores_by(measured):
    """(contender, measure, edit, mode, k, threshold, attribute) -> value."""
    return {
        (
            one["contender"],
            one["measure"],
            one["edit"],
            one["mode"],
            one["k"],
            one["threshold"],
            one["attribute"],
        ): one["value"]
        for one in (score.to_json() for score in measured.data["scores"])
    }


def judge(model, task, candidates, config):
    """(measurement, result), with the result's files written."""
    measured = judge_task(model, task, candidates, config)
    result = result_of(SUITE, measured, config)
    write_result(SUITE, measured, result, page=True)
    return measured, result
