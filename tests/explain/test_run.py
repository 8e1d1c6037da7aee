"""Explaining by a language model: planted features, kills, refusals, costs, and bad input."""

import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from saelab.cli import main
from saelab.errors import ModelError, Stopped
from saelab.explain.answers import ANSWER_FILE, AnswerBook
from saelab.explain.config import ExplainConfig, ModelOptions
from saelab.explain.cost import estimated_cost
from saelab.explain.endpoint import Endpoint, EndpointError, Question
from saelab.explain.intervention import SteeredTexts
from saelab.explain.judge import read_choice, read_explanation, read_verdicts
from saelab.explain.local import LocalModel
from saelab.explain.run import METHOD, answering, explain_dictionary
from saelab.features.labels import LabelBook
from saelab.features.records import Example
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
explain_dictionary(Path(sys.argv[1]), ExplainConfig(asked=asked, sample=5, controls=2))
"""


@pytest.mark.slow
def test_no_answer_is_paid_for_twice_after_kills(toy_folder, tmp_path):
    """The server outlives the runs: only what was on its way at a kill is asked again."""
    log = tmp_path / "log"

    def asked():
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return [question for what, question in lines if what == "asked"]

    server = subprocess.Popen([sys.executable, FAKE, log], stdout=subprocess.PIPE, text=True)
    with server:
        try:
            command = [sys.executable, "-c", KILLED, toy_folder, server.stdout.readline().strip()]
            kills = []
            for target in (1, 6, 19, 30):
                process = subprocess.Popen(command)
                while len(asked()) < target and process.poll() is None:
                    time.sleep(0.002)
                process.send_signal(signal.SIGKILL)
                assert process.wait() == -signal.SIGKILL
                time.sleep(0.1)
                kills.append(len(asked()))
            assert subprocess.run(command, check=False).returncode == 0
        finally:
            server.kill()
    questions = asked()
    assert kept_answers(toy_folder) == len(set(questions)) > 40
    for first, last in itertools.pairwise([*kills, len(questions)]):
        again = set(questions[:first]) & set(questions[first:last])
        # One for each thread, whose answer was not there yet; each under the key it had before.
        assert len(again) <= 3


def test_the_estimate_is_what_is_asked(toy_folder):
    few = {"features": tuple(range(KINGS, KINGS + 4)), "price_in": 2.0}
    with FakeEndpoint() as server:
        alone, controlled = (settings(server, **few, controls=n) for n in (0, None))
        with answering(alone.asked) as model:
            cost, more = (estimated_cost(toy_folder, one, model) for one in (alone, controlled))
            assert not server.requests and not (toy_folder / ANSWER_FILE).exists()
            summary = explain_dictionary(toy_folder, alone, model)
            assert cost.questions == summary.tally.asked == len(server.requests)
            assert estimated_cost(toy_folder, alone, model).questions == 0
            explain_dictionary(toy_folder, controlled, model)
    assert more.questions == len(server.requests)
    assert cost.money == pytest.approx(2 * cost.prompt_tokens / 1e6)
    assert "at the prices given" in str(cost)


def test_a_signal_stops_it_and_every_answer_is_kept(toy_folder):
    asked = []

    def stopping(system, user):
        asked.append(user)
        if len(asked) == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return answer_rightly(system, user)

    with FakeEndpoint(stopping) as server:
        with pytest.raises(Stopped, match="same command goes on") as stopped:
            explain_dictionary(toy_folder, settings(server, sample=6, controls=0))
        assert stopped.value.signal_name == "SIGTERM"
        assert kept_answers(toy_folder) == len(server.requests) < 9 + 4


def test_answers_in_no_readable_form_are_counted_and_never_guessed(toy_folder):
    def chatty(system, user):
        if '"answers"' in system:
            return "Well, the first three, I think."
        return answer_rightly(system, user)

    with FakeEndpoint(chatty) as server:
        summary = explain_dictionary(toy_folder, settings(server, features=(KINGS,), controls=0))
    (explanation,) = summary.explanations
    assert [score.name for score in explanation.scores] == ["simulation"]
    assert explanation.score is None and summary.tally.unreadable >= 2


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('Sure! {"explanation": "forms of address"}', "forms of address"),
        ("forms of address", "forms of address"),
        ("Explanation: forms of address.", "forms of address"),
        ("Here it is:\n\n1. Forms of address, as Sir. They are polite.\n2. Names.",
         "Forms of address, as Sir"),
        ("**Explanation:** words of kings\nI hope this helps!", "words of kings"),
        ('{"explanation": "forms of', None),
        ("I'm sorry, I cannot tell.\nAsk again.", None),
        ("yes\nno", None),
        ("word " * 61, None),
        ("", None),
    ],
)  # fmt: skip
def test_an_explanation_may_be_a_bare_sentence(answer, expected):
    assert read_explanation(answer) == expected
    assert read_verdicts(answer, 1) is None and read_choice(answer) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "language-model"], "no language model to ask: give --endpoint"),
        (["--method", "token-context", "--model", "local"], "asks no language model"),
        (["--endpoint", "http://127.0.0.1:9/v1"], "nothing answers at http://127.0.0.1:9/v1"),
        (["--endpoint", "127.0.0.1:9"], "is no http address"),
        (["--endpoint", "URL", "--features", "24"], "24 does not exist"),
        (["--endpoint", "URL", "--features", str(DEAD)], "no examples of these features"),
        (["--features", str(DEAD)], "no examples of these features"),
        (["--sample", "2", "--densest", "2"], "densest and sample choose features"),
        (["--key-variable", "sk-1234-5678"], "name of an environment variable"),
        (["--model", "no/such-model-here"], "no/such-model-here"),
    ],
)
def test_bad_input_is_one_line(toy_folder, capsys, words, said):
    with FakeEndpoint() as server:
        words = [server.url if word == "URL" else word for word in words]
        assert main(["explain", str(toy_folder), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error and "sk-1234" not in error
    assert not (toy_folder / "feature_labels.sqlite").exists()


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"refusal": "I will not."}, "explained none of 10 features: it refused 1"),
        ({"answer": lambda system, user: "I'm sorry, but no."}, "it refused 1"),
        ({"answer": lambda system, user: "a\nb"}, "answers that could not be read"),
        ({"key": "right"}, "refuses the key in the environment variable OPENAI_API_KEY"),
    ],
)
def test_models_and_servers_that_refuse_are_one_line(
    toy_folder, capsys, monkeypatch, answers, said
):
    monkeypatch.setenv("OPENAI_API_KEY", "wrong-key-of-mine")
    with FakeEndpoint(**answers) as server:
        assert main(["explain", str(toy_folder), "--endpoint", server.url]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error and "wrong-key" not in error
    assert len(server.requests) < 20


@pytest.mark.parametrize("damage", [b"no database", "cut", "score", "a view"])
def test_a_damaged_label_file_is_one_line_and_stays_as_it_is(toy_folder, capsys, damage):
    """What people wrote by other means is read as it stands; what cannot be is never replaced."""
    path = toy_folder / "feature_labels.sqlite"
    book = LabelBook(path, "d" * 64, D_SAE)
    for feature in range(D_SAE):
        book.add(feature, f"written by hand {feature} times", author="Ada")
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE label SET text = 'put right' WHERE feature = 3")
    assert [label.text for label in book.of(3)] == ["put right"]
    with connection:
        if damage == "score":
            connection.execute("UPDATE label SET scores = '[{\"name\": 1}]'")
        if damage == "a view":
            connection.execute("CREATE VIEW other AS SELECT * FROM label")
    connection.close()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5000])
    elif isinstance(damage, bytes):
        path.write_bytes(damage)
    before = path.read_bytes()
    words = ["--features", str(KINGS)]
    if damage == "score":  # is met where it is read
        words = ["--write", str(toy_folder / "out")]
    assert main(["explain", str(toy_folder), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert str(path) in error and "\n" not in error
    assert path.read_bytes() == before


def test_a_store_of_another_dictionary_or_none(toy_folder, capsys):
    saved = toy_folder / "saelab.json"
    saved.write_text(saved.read_text().replace("e" * 64, "f" * 64))
    assert main(["explain", str(toy_folder)]) == 2
    assert "built from a different checkpoint" in capsys.readouterr().err
    (toy_folder / "features.sqlite").unlink()
    assert main(["explain", str(toy_folder)]) == 2
    assert "build it with `saelab features`" in capsys.readouterr().err


def test_the_command_shows_scores_beside_controls(toy_folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    words = ["explain", str(toy_folder), "--features", str(KINGS), str(RIVERS)]
    with FakeEndpoint() as server:
        asking = [*words, "--endpoint", server.url]
        assert main([*asking, "--dry-run"]) == 0
        assert "questions" in capsys.readouterr().out and not server.requests
        assert main(asking) == 0
    shown = capsys.readouterr().out
    for part in ("detection", "simulation", "shuffled", "explained: 2 of 2", "0 refusals"):
        assert part in shown
    assert main([*words, "--method", "token-context"]) == 0
    answers = toy_folder / ANSWER_FILE
    assert main(["info", str(answers)]) == 0
    assert f"answers: {len(server.requests)}" in capsys.readouterr().out
    connection = sqlite3.connect(answers)
    with connection:
        connection.execute("UPDATE answer SET text = 'another'")
    connection.close()
    assert main(["info", str(answers)]) == 2
    assert "not the one that was written" in capsys.readouterr().err


def test_a_model_on_this_machine_answers_through_its_chat_template(tiny_model_folder, tmp_path):
    text, answers = ({"type": "string"}, {"type": "array"})
    question = Question("say something", "king", {"properties": {"explanation": text}}, 8)
    with pytest.raises(ModelError, match="no chat template"):
        LocalModel(str(tiny_model_folder), dtype="float32", device="cpu")
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "chat"))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}<|eos|>{% endfor %}"
    )
    model = LocalModel(str(folder), dtype="float32", device="cpu")
    first, second = model.ask(question), model.ask(question)
    assert first == second and first.completion_tokens <= 8
    assert set(json.loads(first.text)) == {"explanation"}
    some = model.ask(replace(question, schema={"properties": {"answers": answers}}))
    assert some.text.startswith('{"answers": [') and read_verdicts(some.text, 2) is None
    with pytest.raises(ModelError, match="does not fit the 128"):
        model.ask(replace(question, user="river " * 200))


def test_scores_by_meaning_and_by_intervention(toy_folder, monkeypatch):
    def embed(texts):
        return np.array([[word in text for word in ("king", "river")] for text in texts], float)

    def text(words):
        texts = tuple(words.split(" "))
        rows = np.arange(len(texts))
        return Example(
            0, texts, tuple((i,) for i in range(len(texts))), rows, 0.0 * rows, rows >= 0, 0, 0.0
        )

    class Steering:
        def texts(self, feature, maximum, prompts):
            assert maximum > 0
            word = {KINGS: "king", RIVERS: "river"}[feature]
            one = SteeredTexts(text("a b"), text(f"a {word}"), text("a c"))
            return [one] * len(prompts)

    monkeypatch.setattr("saelab.explain.meaning.embed", embed)
    monkeypatch.setattr("saelab.explain.run._steering", lambda *about: Steering())
    with FakeEndpoint() as server:
        config = settings(
            server, features=(KINGS, RIVERS), scores=("embedding", "intervention"), controls=1
        )
        summary = explain_dictionary(toy_folder, config)
    for explanation in summary.explanations:
        meaning, boosted = explanation.scores
        assert (meaning.name, boosted.name) == ("embedding", "intervention")
        assert meaning.value > 0.95 and boosted.value == 1.0
    (meaning,) = [score for score in summary.scores_named("embedding") if score.random is not None]
    assert meaning.random == 0.5 and meaning.shuffled < meaning.value
