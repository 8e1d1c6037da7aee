"""Explaining by a language model: planted features, kills, refusals, costs, and bad input."""

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from saelab.explain.answers import AnswerBook
from saelab.explain.config import ExplainConfig, ModelOptions
from saelab.explain.endpoint import Endpoint, EndpointError
from saelab.explain.run import ANSWER_FILE, METHOD, explain_dictionary
from saelab.features.labels import LabelBook
from tests.explain import fake_endpoint
from tests.explain.fake_endpoint import MODEL, FakeEndpoint, answer_rightly
from tests.features.conftest import D_SAE, DEAD, KINGS, RIVERS

FAKE = Path(fake_endpoint.__file__)


def settings(server, **changes):
    asked = ModelOptions(endpoint=server if isinstance(server, str) else server.url, concurrency=4)
    return ExplainConfig(asked=asked, **changes)


def labels(folder):
    return {
        label.feature: label
        for label in LabelBook(folder / "feature_labels.sqlite", "d" * 64, D_SAE).all()
    }


def kept_answers(folder):
    with AnswerBook(folder / ANSWER_FILE) as answers:
        return answers.verify()


def test_planted_features_score_near_one_and_controls_at_chance(toy_folder):
    with FakeEndpoint() as server:
        summary = explain_dictionary(toy_folder, settings(server, features=(KINGS, RIVERS)))
    assert summary.chosen == len(summary.explanations) == 2
    for feature, word in ((KINGS, "king"), (RIVERS, "river")):
        label = labels(toy_folder)[feature]
        assert label.text == f"the word {word}"
        assert (label.author, label.method, label.model) == ("saelab", METHOD, MODEL)
        assert label.prompt_hash and label.score == label.score_named("detection").value
        for score in label.scores:
            chance = 0.0 if score.name == "simulation" else 0.5
            assert score.value > 0.95 and score.low > 0.9 and score.n
            assert abs(score.shuffled - chance) < 0.25 and abs(score.random - chance) < 0.05
        assert [score.name for score in label.scores] == ["detection", "fuzzing", "simulation"]
    assert summary.tally.known == summary.tally.refused == summary.tally.unreadable == 0


def test_the_same_command_asks_nothing_and_writes_the_same(toy_folder):
    few = {"features": (DEAD, *range(KINGS, KINGS + 4)), "controls": 1}
    with FakeEndpoint() as server:
        first = explain_dictionary(toy_folder, settings(server, **few))
        n_asked = len(server.requests)
        again = explain_dictionary(toy_folder, settings(server, **few))
    assert first.tally.asked == n_asked == len(server.requests) == again.tally.known
    assert sorted(map(repr, first.explanations)) == sorted(map(repr, again.explanations))
    assert DEAD not in labels(toy_folder) and first.without_examples == 1
    assert kept_answers(toy_folder) == n_asked


def test_what_came_before_a_failure_is_kept(toy_folder, monkeypatch):
    monkeypatch.setattr("saelab.explain.endpoint.FIRST_WAIT", 0.01)
    few = {"features": tuple(range(KINGS, KINGS + 4)), "controls": 0}
    answered = []

    def twenty(system, user):
        answered.append(user)
        if len(answered) > 20:
            raise ConnectionError
        return answer_rightly(system, user)

    with (
        FakeEndpoint(twenty) as server,
        Endpoint(server.url, None, retries=1) as model,
        pytest.raises(EndpointError, match=r"in 2 tries.*is kept; .* same command again"),
    ):
        explain_dictionary(toy_folder, settings(server, **few), model)
    assert kept_answers(toy_folder) == 20
    with FakeEndpoint() as server:
        explain_dictionary(toy_folder, settings(server, **few))
        rest = len(server.requests)
        (toy_folder / ANSWER_FILE).unlink()
        explain_dictionary(toy_folder, settings(server, **few))
        assert 20 + rest == len(server.requests) - rest


KILLED = """
import sys
from pathlib import Path
from saelab.explain.config import ExplainConfig, ModelOptions
from saelab.explain.run import explain_dictionary
asked = ModelOptions(endpoint=sys.argv[2], concurrency=3)
explain_dictionary(Path(sys.argv[1]), ExplainConfig(asked=asked, sample=6, controls=2))
"""


def test_no_answer_is_paid_for_twice_after_kills(toy_folder, tmp_path):
    """The server is a process that outlives the runs: what it answered whole, it is not asked."""
    log = tmp_path / "log"

    def lines():
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []

    server = subprocess.Popen([sys.executable, FAKE, log], stdout=subprocess.PIPE, text=True)
    with server:
        command = [sys.executable, "-c", KILLED, toy_folder, server.stdout.readline().strip()]
        on_their_way = set()
        for target in (1, 9, 26, 61, 90):
            process = subprocess.Popen(command)
            while len(lines()) < target and process.poll() is None:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            answered = {question for what, question in lines() if what == "answered"}
            asked = {question for what, question in lines() if what == "asked"}
            on_their_way |= asked - answered
            process.wait()
            time.sleep(0.1)
        assert subprocess.run(command, check=False).returncode == 0
        server.kill()
    counts = Counter(question for what, question in lines() if what == "asked")
    twice = {question for question, count in counts.items() if count > 1}
    assert len(counts) > 50 and kept_answers(toy_folder) == len(counts)
    assert twice <= on_their_way and len(twice) <= 3 * 5
