"""Questions to any server that speaks OpenAI's chat completions: llama.cpp, vLLM, Ollama, hosted.

The key comes from an environment variable alone and stands in no file, log, message or hash.
Servers differ in what they accept: a parameter that one refuses by name is left out from then on.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

from saelab.errors import ConfigError, ResourceError, shown
from saelab.formats.files import hash_of

logger = logging.getLogger(__name__)

LONGEST_BODY = 1 << 22
"""Bytes of an answer that are read; no explanation needs more."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds to wait after the first failure, and after any; a server may ask for more itself."""
LONGEST_ASKED_WAIT = 600.0
"""Seconds that a server may ask to be left alone before that counts as a failure."""
TRANSIENT = frozenset({408, 409, 425, 429})
OPTIONAL = ("response_format", "temperature", "seed", "max_tokens")
"""Parameters that some servers refuse, in the order in which they are given up unnamed."""


class EndpointError(ResourceError):
    """A server that gives no answers; what it answered before is kept."""


@dataclass(frozen=True)
class Question:
    """What is asked of a language model: everything that decides its answer but the model."""

    system: str
    user: str
    schema: dict[str, Any]
    """JSON schema of the answer, for servers with structured outputs."""
    max_tokens: int

    def messages(self) -> list[dict[str, str]]:
        """As a conversation."""
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": self.user},
        ]

    def key(self, model: str) -> str:
        """SHA-256 of the question and the name of the model that is asked."""
        return hash_of({"model": model, **vars(self)})


@dataclass(frozen=True)
class Answer:
    """What came back."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    refused: bool = False
    """The server said that the model refuses, or that a filter stopped it."""


@runtime_checkable
class Answerer(Protocol):
    """A language model that answers questions."""

    name: str
    """Names the model: the same name, the same answers."""
    concurrency: int
    """Questions that may be asked at once."""

    def ask(self, question: Question) -> Answer:
        """Ask, and wait for the answer."""
        ...


class Endpoint:
    """An OpenAI-compatible server; safe to share between threads. For arguments see `ModelOptions`.

    Raises:
        ConfigError: an address that is none, or a key that cannot be sent.
        EndpointError: nothing answers there, the key is refused, or the model is not named.
    """

    def __init__(
        self,
        url: str,
        model: str | None,
        *,
        key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        requests_per_minute: float | int | None = None,
        time_limit: float | int = 120,
        retries: int = 6,
    ):
        import httpx

        self._url = checked_url(url)
        self._key_variable = key_variable
        self._key = _key(key_variable)
        self.concurrency = concurrency
        self._spacing = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._time_limit, self._retries = time_limit, retries
        self._lock = threading.Lock()
        self._next_slot = 0.0
        self._refused_parameters: set[str] = set()
        self._takes_json_schema = True
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(time_limit, connect=min(time_limit, 10.0)),
            limits=httpx.Limits(max_connections=concurrency + 1),
        )
        try:
            self.name: str = self._named(model)
        except BaseException:
            self._client.close()
            raise

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    def ask(self, question: Question) -> Answer:
        """Ask until an answer is whole.

        Raises:
            EndpointError: it was asked as often as allowed, or refused for good.
        """
        # Servers that honour the header do not charge twice for what a kill or a lost line cut off.
        unique = {"Idempotency-Key": question.key(self.name)}
        waited, problem = 0, ""
        while waited <= self._retries:
            self._take_slot()
            parameters = self._parameters(question)
            status, body, retry_after = self._exchange(
                "POST", "/chat/completions", parameters, unique
            )
            if status == 200:
                answer = _answer(body)
                if answer is not None:
                    return answer
                problem = "an answer that is not JSON of a chat completion"
            elif status == 400 and "content_filter" in body:
                return Answer("", 0, 0, refused=True)
            elif (
                status is not None  # llama-cpp-python's server says it with 500
                and (status in (400, 422, 501) or "response_format" in body)
                and self._give_up_a_parameter(parameters, body)
            ):
                continue
            elif status is None or status in TRANSIENT or status >= 500:
                problem = self._words(status, body)
                if "insufficient_quota" in body:
                    break
            else:
                raise self._refusal(status, body)
            waited += 1
            if waited <= self._retries:
                self._wait(waited, retry_after, problem)
        raise EndpointError(
            f"{self._url} gave no answer in {waited} tries ({problem}): what it answered before is "
            "kept; see to the server and give the same command again"
        )

    def _named(self, model: str | None) -> str:
        """The model's name, after a first request that costs nothing."""
        status, body, _ = self._exchange("GET", "/models", None, {})
        if status is None:
            raise EndpointError(
                f"nothing answers at {self._url} ({body}): start the server, or give its address "
                "with --endpoint, as in http://localhost:8080/v1"
            )
        if status in (401, 403):
            raise self._refusal(status, body)
        if model is not None:
            return model
        content = _json(body)
        entries = content.get("data") if isinstance(content, dict) else None
        names = [
            entry["id"]
            for entry in (entries if isinstance(entries, list) else [])
            if isinstance(entry, dict) and isinstance(entry.get("id"), str)
        ]
        if status != 200 or len(names) != 1:
            listed = f"it lists {', '.join(names[:5])}" if names else f"it lists none ({status})"
            raise EndpointError(
                f"{self._url} does not say which model to ask: {listed}; give --model"
            )
        return names[0]

    def _parameters(self, question: Question) -> dict[str, Any]:
        schema = {"name": "answer", "strict": True, "schema": question.schema}
        form = {"type": "json_schema", "json_schema": schema}
        if not self._takes_json_schema:  # as llama-cpp-python's server wants it
            form = {"type": "json_object", "schema": question.schema}
        optional = {
            "response_format": form,
            "temperature": 0,
            "seed": 0,
            "max_tokens": question.max_tokens,
        }
        parameters = {"model": self.name, "messages": question.messages(), **optional}
        for name in self._refused_parameters:
            limit = parameters.pop(name)
            if name == "max_tokens":
                parameters["max_completion_tokens"] = limit
        return parameters

    def _give_up_a_parameter(self, sent: dict[str, Any], body: str) -> bool:
        """Whether what the server refuses can be said otherwise, or left out: what it names, or
        else the schema."""
        if "json_object" in body and '"json_schema"' in json.dumps(sent.get("response_format")):
            self._takes_json_schema = False
            return True
        left = [name for name in OPTIONAL if name in sent]
        named = [name for name in left if name in body]
        if "response_format" in left and re.search("json_schema|grammar|guided|structured", body):
            named = ["response_format"]
        gone = (named or [name for name in left if name == "response_format"])[:1]
        with self._lock:
            self._refused_parameters.update(gone)
        for name in gone:
            logger.info("%s does not take %s: going on without it", self._url, name)
        return bool(gone)

    def _exchange(
        self, method: str, path: str, content: Any, headers: dict[str, str]
    ) -> tuple[int | None, str, float | None]:
        """Status, body and the seconds that the server asks to wait; no status: what failed."""
        import httpx

        deadline = time.monotonic() + self._time_limit
        try:
            with self._client.stream(
                method, self._url + path, json=content, headers=headers
            ) as response:
                body = bytearray()
                for part in response.iter_bytes():
                    body += part
                    if len(body) > LONGEST_BODY:
                        return None, f"more than {LONGEST_BODY:,} bytes in one answer", None
                    if time.monotonic() > deadline:
                        return None, f"no whole answer in {self._time_limit:g} s", None
                wait = _seconds(response.headers.get("retry-after"))
                return response.status_code, body.decode("utf-8", "replace"), wait
        except httpx.TimeoutException:
            return None, f"no answer in {self._time_limit:g} s", None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return None, self._scrubbed(str(error) or type(error).__name__), None

    def _take_slot(self) -> None:
        """Wait for this request's turn under the rate limit, and while the server wants peace."""
        with self._lock:
            slot = max(self._next_slot, time.monotonic())
            self._next_slot = slot + self._spacing
        time.sleep(max(0.0, slot - time.monotonic()))

    def _wait(self, failures: int, asked: float | None, problem: str) -> None:
        """Back off; all threads do for as long as the server says."""
        if asked is not None and asked > LONGEST_ASKED_WAIT:
            raise EndpointError(
                f"{self._url} asks to be left alone for {asked:.0f} s ({problem}): give the same "
                "command again then; what it answered is kept"
            )
        backoff = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (failures - 1)) * random.uniform(0.5, 1.0)
        logger.info("%s: %s; waiting %.1f s", self._url, problem, max(backoff, asked or 0.0))
        with self._lock:
            self._next_slot = max(self._next_slot, time.monotonic() + (asked or 0.0))
        time.sleep(backoff)

    def _refusal(self, status: int, body: str) -> EndpointError:
        """What a server that refuses for good is reported as."""
        if status in (401, 403):
            # Its own words may repeat the key.
            given = "the key in" if self._key else "a request without a key: none is in"
            return EndpointError(
                f"{self._url} refuses {given} the environment variable {self._key_variable} (HTTP "
                f"{status}): set the right key there, or name another with --key-variable"
            )
        return EndpointError(f"{self._url} refuses to answer as {self._words(status, body)}")

    def _words(self, status: int | None, body: str) -> str:
        """Status and the server's message, on one line."""
        content = _json(body)
        error = content.get("error", content) if isinstance(content, dict) else body
        message = error.get("message", error) if isinstance(error, dict) else error
        words = self._scrubbed(" ".join(str(message).split())[:200])
        return words if status is None else f"{self.name}: HTTP {status}, {words or 'no reason'}"

    def _scrubbed(self, text: str) -> str:
        return text.replace(self._key, "(the key)") if self._key else text


def checked_url(url: str) -> str:
    """A base address, without its last slash.

    Raises:
        ConfigError: it is none, or it holds a password or a key, which is not repeated.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise ConfigError("endpoint: the address cannot be read, such as its port") from None
    problem = None if usable else f"{shown(url)} is no http address"
    if parts.username or parts.password or parts.query or parts.fragment:
        problem = (
            "the address holds more than scheme, host, port and path; a key comes from the "
            "environment alone (--key-variable)"
        )
    if problem:
        raise ConfigError(f"endpoint: {problem}: expected one such as http://localhost:8080/v1")
    return url.rstrip("/")


def _key(variable: str) -> str | None:
    """The key, unless the variable is unset or empty."""
    key = os.environ.get(variable, "").strip()
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(
            f"the key in the environment variable {variable} holds spaces or characters that no "
            "key has: set it again"
        )
    return key or None


def _json(body: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _answer(body: str) -> Answer | None:
    """The answer in a chat completion; None where the body is none."""
    content = _json(body)
    try:
        choice, usage = content["choices"][0], content.get("usage") or {}
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
        counts = [int(usage.get(f"{part}_tokens") or 0) for part in ("prompt", "completion")]
    except (TypeError, KeyError, IndexError, AttributeError, ValueError):
        return None
    if isinstance(text, list):  # as parts, of which those with text count
        text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
    refused = bool(refusal) or choice.get("finish_reason") == "content_filter"
    # Half a surrogate pair, as broken JSON may spell, can be kept nowhere.
    plain = str(refusal or text or "").encode("utf-8", "replace").decode()
    return Answer(plain, counts[0], counts[1], refused)


def _seconds(header: str | None) -> float | None:
    """The seconds that a Retry-After header asks for; a date, which hosts do not send, is none."""
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:
        return None
