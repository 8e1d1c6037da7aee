"""Endpoints that are slow, limited, broken, refusing or half dead, and keys that stay secret."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from saelab.errors import ArtifactError, ConfigError
from saelab.explain import endpoint as module
from saelab.explain.answers import AnswerBook, Asker
from saelab.explain.endpoint import Answer, Endpoint, EndpointError, Question
from tests.explain.fake_endpoint import MODEL, FakeEndpoint

KEY = "sk-very-secret-0123456789"
QUESTION = Question(
    'say {"answers": …}', "the word king\n1. a king\n2. a queen", {"type": "object"}, 64
)


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def ask(server, **settings):
    with Endpoint(server.url, None, **settings) as client:
        return client.ask(QUESTION)


def test_it_asks_the_only_model_for_structured_output_and_counts_tokens():
    with FakeEndpoint() as server:
        answer = ask(server)
    assert answer.text == '{"answers": [true, false]}'
    assert (answer.prompt_tokens, answer.completion_tokens) == (len(QUESTION.user) // 4, 9)
    (request,) = server.requests
    assert request["model"] == MODEL and request["temperature"] == 0
    assert request["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert "Authorization" not in server.headers[0]


def test_it_tries_again_after_what_may_pass():
    fails = ((503, {}), ("broken", {}), ("drop", {}), (429, {"Retry-After": "0"}))
    with FakeEndpoint(fails=fails) as server:
        assert ask(server).text
    assert len(server.requests) == 5


def test_all_wait_as_long_as_a_limited_server_says():
    with FakeEndpoint(fails=((429, {"Retry-After": "0.4"}),)) as server:
        began = time.monotonic()
        with Endpoint(server.url, None) as client, ThreadPoolExecutor(4) as pool:
            pool.submit(client.ask, QUESTION)
            time.sleep(0.2)
            list(pool.map(client.ask, [QUESTION] * 3))
    assert 0.4 <= time.monotonic() - began < 3


def test_no_more_at_once_and_a_minute_than_allowed():
    def slowly(system, user):
        time.sleep(0.05)
        return "{}"

    with FakeEndpoint(slowly) as server:
        began = time.monotonic()
        limits = {"concurrency": 2, "requests_per_minute": 1200}
        with Endpoint(server.url, None, **limits) as client, ThreadPoolExecutor(2) as pool:
            list(pool.map(client.ask, [QUESTION] * 6))
    assert time.monotonic() - began >= 5 * 0.05
    assert server.most_at_once <= 2


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        (((500, {}),) * 3, "no answer in 3 tries.*HTTP 500, not now.*same command"),
        ((("drop", {}),) * 3, "no answer in 3 tries"),
        (((404, {}),), "refuses to answer as fake-1: HTTP 404, not now"),
        (((429, {"Retry-After": "86400"}),), "left alone for 86400 s"),
    ],
)
def test_it_gives_up_in_one_line(fails, words):
    with FakeEndpoint(fails=fails) as server, pytest.raises(EndpointError, match=words):
        ask(server, retries=2)


def test_a_server_that_answers_too_slowly():
    def never(system, user):
        time.sleep(1)
        return "{}"

    with FakeEndpoint(never) as server, pytest.raises(EndpointError, match=r"no answer in 0\.2 s"):
        ask(server, time_limit=0.2, retries=0)


def test_nothing_answers():
    with pytest.raises(EndpointError, match=r"nothing answers at http://127.0.0.1:9/v1"):
        Endpoint("http://127.0.0.1:9/v1", "m")


@pytest.mark.parametrize(
    ("refuses", "left"),
    [
        (("response_format",), {"temperature", "seed", "max_tokens"}),
        (("temperature", "seed", "max_tokens"), {"response_format", "max_completion_tokens"}),
    ],
)
def test_it_goes_on_without_what_a_server_does_not_take(refuses, left):
    with FakeEndpoint(refuses=refuses) as server:
        assert ask(server).text and ask(server).text
    assert set(server.requests[-1]) == {"model", "messages"} | left
    assert len(server.requests) == 2 * (len(refuses) + 1)


def test_the_schema_is_sent_in_the_form_that_the_server_takes():
    with (
        FakeEndpoint(refuses=("json_schema",)) as server,
        Endpoint(server.url, None) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        list(pool.map(client.ask, [QUESTION] * 8))
    last = server.requests[-1]["response_format"]
    assert last == {"type": "json_object", "schema": {"type": "object"}}
    assert 9 <= len(server.requests) <= 12


def test_a_key_goes_to_the_server_alone(monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level("DEBUG", "saelab")
    fails = ((400, {}),) * 2
    with FakeEndpoint(key=KEY, fails=fails) as server:
        with pytest.raises(EndpointError) as refused:
            ask(server, key_variable="MY_KEY")
        ask(server, key_variable="MY_KEY")
        assert server.headers[-1]["Authorization"] == f"Bearer {KEY}"
        with pytest.raises(EndpointError, match=r"without a key: none is in .* OPENAI_API_KEY"):
            ask(server)
    with FakeEndpoint(key="another") as server, pytest.raises(EndpointError) as wrong:
        ask(server, key_variable="MY_KEY")
    assert "refuses the key in the environment variable MY_KEY (HTTP 401)" in str(wrong.value)
    assert KEY not in f"{refused.value} {wrong.value} {caplog.text}"


def test_odd_keys_and_addresses_are_refused_unrepeated(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "two words")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY holds spaces") as odd:
        Endpoint("http://127.0.0.1:9/v1", "m")
    assert "two words" not in str(odd.value)
    for url in (f"http://me:{KEY}@host/v1", f"https://host/v1?key={KEY}"):
        with pytest.raises(ConfigError, match="more than scheme, host, port and path") as secret:
            Endpoint(url, "m")
        assert KEY not in str(secret.value)
    for url in ("localhost:8080", "ftp://host/v1", "http://", "http://host:port/v1"):
        with pytest.raises(ConfigError, match="endpoint: "):
            Endpoint(url, "m")


def test_a_refusal_is_an_answer():
    with FakeEndpoint(refusal="I will not.") as server:
        assert ask(server).refused


def test_nothing_is_asked_twice(tmp_path):
    with FakeEndpoint() as server, Endpoint(server.url, None) as client:
        for _ in range(2):
            with AnswerBook(tmp_path / "answers.sqlite") as answers:
                asker = Asker(client, answers)
                assert asker(QUESTION).text == '{"answers": [true, false]}'
    assert len(server.requests) == 1
    assert (asker.tally.asked, asker.tally.known) == (0, 1)
    assert KEY.encode() not in (tmp_path / "answers.sqlite").read_bytes()


def test_a_book_of_answers_that_lost_its_end_or_its_answers_is_no_intact_one(tmp_path):
    path = tmp_path / "explanation_answers.sqlite"
    with AnswerBook(path) as answers:
        for number in range(10):
            answers.put(f"key {number}", "m", Answer(f"answer {number}", 1, 1))
        assert answers.verify() == 10
    whole = path.read_bytes()
    # What is cut off is a part of the index: every answer is there, and none is found by its key.
    path.write_bytes(whole[:-3000])
    with pytest.raises(ArtifactError, match=r"cannot be read or written .* move it away"):
        AnswerBook(path)
    path.write_bytes(b"")
    with pytest.raises(ArtifactError, match="holds no answers"), AnswerBook(path) as answers:
        answers.verify()
    with AnswerBook(path) as answers:
        answers.put("key", "m", Answer("again", 1, 1))
        assert answers.verify() == 1
