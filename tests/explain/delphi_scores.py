"""Runs in the peers' environment: delphi's own scorers on examples and answers read from a file.

    python delphi_scores.py INPUT.json OUTPUT.json

What delphi imports for GPUs and for its own storage is replaced by empty modules: its scorers and
its sums are the installed ones.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import random
import sys
from pathlib import Path
from unittest.mock import MagicMock

UNUSED = ("vllm", "faiss", "tiktoken", "orjson", "blobfile", "asyncer", "anyio", "httpx", "flask")
UNUSED += ("bitsandbytes", "fire", "simple_parsing", "aiofiles", "sentence_transformers")


class Empty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules of `UNUSED` that are not installed, with nothing in them."""

    def find_spec(self, fullname, path, target=None):
        if fullname.partition(".")[0] not in UNUSED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec):
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module):
        pass


sys.meta_path.append(Empty())

import pandas  # noqa: E402
import torch  # noqa: E402
from delphi.clients.client import Client, Response  # noqa: E402
from delphi.latents.latents import (  # noqa: E402
    ActivatingExample,
    Latent,
    LatentRecord,
    NonActivatingExample,
)
from delphi.log.result_analysis import (  # noqa: E402
    compute_classification_metrics,
    compute_confusion,
)
from delphi.scorers import DetectionScorer, FuzzingScorer  # noqa: E402
from delphi.scorers.simulator.simulation.scoring import correlation_score  # noqa: E402


class Answers(Client):
    """Answers by lot, and now and then in no readable form."""

    def __init__(self, seed):
        super().__init__("none")
        self.random = random.Random(seed)
        self.asked = []

    async def generate(self, prompt, **_):
        self.asked.append(prompt[-1]["content"])
        answer = json.dumps([self.random.choice([0, 1, 1]) for _ in range(5)])
        return Response("I would rather not." if self.random.random() < 0.1 else answer)


def record_of(examples):
    record = LatentRecord(Latent("layer", 0), explanation="a number")
    for example in examples:
        values = torch.tensor(example["activations"])
        tokens, texts = torch.zeros(len(values), dtype=torch.long), example["texts"]
        if example["fires"]:
            record.test.append(ActivatingExample(tokens, values, str_tokens=texts))
        else:
            record.not_active.append(NonActivatingExample(tokens, values, texts))
    return record


def main(given, wanted):
    examples = json.loads(Path(given).read_text())
    scores = {}
    for name, scorer in (("detection", DetectionScorer), ("fuzzing", FuzzingScorer)):
        client = Answers(name)
        result = scorer(client, n_examples_shown=5).call_sync(record_of(examples)).score
        rows = [
            {
                "text": "".join(one.str_tokens),
                "activating": one.activating,
                "prediction": one.prediction,
            }
            for one in result
        ]
        numbers = compute_classification_metrics(compute_confusion(pandas.DataFrame(rows)))
        scores[name] = {"rows": rows, "accuracy": numbers["accuracy"], "asked": client.asked}
    guesses = [[abs(value - 1) ** 0.5 for value in e["activations"]] for e in examples]
    true = [value for e in examples for value in e["activations"]]
    scores["guesses"] = guesses
    scores["simulation"] = float(correlation_score(true, [v for row in guesses for v in row]))
    Path(wanted).write_text(json.dumps(scores))


if __name__ == "__main__":
    main(*sys.argv[1:])
