"""An OpenAI-compatible server for tests: right, wrong, slow, limited, broken, or dying halfway.

Runs inside a test (`with FakeEndpoint() as server`) or as a process of its own, which survives what
it serves: `python fake_endpoint.py LOG` prints its address and writes a line for every question
that arrives and for every answer that was sent whole.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODEL = "fake-1"


def answer_rightly(system: str, user: str) -> str:
    """What a model answers that names the commonest marked token, and judges by its word alone."""
    lines = [line for line in user.splitlines() if re.match(r"\d+\. ", line)]
    if '"explanation"' in system:
        marked = [token.strip() for token in re.findall("«([^»]*)»", user)]
        common = max(sorted(set(marked)), key=marked.count, default="")
        return json.dumps({"explanation": f"the word {common}"})
    word = user.partition("\n")[0].partition("the word ")[2] or "(no word)"
    if '"active"' in system:
        guesses = [
            {"excerpt": number, "token": int(token), "strength": 9}
            for number, line in enumerate(lines, 1)
            for token, text in re.findall(r"(\d+):'([^']*)'", line)
            if text.strip() == word
        ]
        return json.dumps({"active": guesses})
    if '"answers"' in system:
        if "«" in system:
            lines = [" ".join(re.findall("«([^»]*)»", line)) for line in lines]
        return json.dumps({"answers": [word in line for line in lines]})
    first = user.partition("\nA. ")[2].partition("\nB. ")[0]
    return json.dumps({"text": "A" if word in first else "B"})


class FakeEndpoint:
    """A server on a free port of this machine.

    Args:
        answer: from system and user message to the model's text; may sleep or raise.
        key: what it wants as key; None: it takes any.
        fails: statuses of its first answers, in order, each with headers; "drop" closes the line
            halfway through an answer, "broken" sends half a JSON.
        refuses: parameters that it calls unknown.
        log: file with a line per question and per answer, written at once.
    """

    def __init__(
        self,
        answer: Callable[[str, str], str] = answer_rightly,
        *,
        key: str | None = None,
        fails: tuple[tuple[int | str, dict[str, str]], ...] = (),
        refuses: tuple[str, ...] = (),
        refusal: str | None = None,
        log: Path | None = None,
    ):
        self.answer, self.key, self.fails = answer, key, list(fails)
        self.refuses, self.refusal, self.log = refuses, refusal, log
        self.requests: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.at_once = self.most_at_once = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                if owner.knows(self):
                    self.reply(200, {"data": [{"id": MODEL}]})

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if owner.knows(self):
                    owner.serve(self, json.loads(body), self.headers["Idempotency-Key"])

            def reply(self, status, content, headers=(), cut=False):
                body = json.dumps(content).encode()
                self.send_response(status)
                for name, value in dict(headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if cut else body)
                self.wfile.flush()
                self.close_connection = self.close_connection or cut

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *about: None  # clients that were killed
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> FakeEndpoint:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def knows(self, handler) -> bool:
        given = handler.headers.get("Authorization", "")
        if self.key is not None and given != f"Bearer {self.key}":
            handler.reply(401, {"error": {"message": f"Incorrect API key provided: {given}"}})
            return False
        return True

    def note(self, *words: str) -> None:
        if self.log is not None:
            with self.lock, self.log.open("a") as log:
                log.write(" ".join(words) + "\n")

    def serve(self, handler, request: dict, question: str) -> None:
        with self.lock:
            self.requests.append(request)
            self.headers.append(dict(handler.headers))
            failure = self.fails.pop(0) if self.fails else None
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self.note("asked", question)
        try:
            unknown = next((name for name in self.refuses if name in request), None)
            form = request.get("response_format", {}).get("type")
            if "json_schema" in self.refuses and form == "json_schema":
                said = (
                    "'response_format', 'type'), 'msg': \"Input should be 'text' or 'json_object'\""
                )
                handler.reply(500, {"error": {"message": said}})  # as llama-cpp-python's
            elif unknown is not None:
                message = f"Unsupported parameter: '{unknown}'"
                handler.reply(400, {"error": {"message": message}})
            elif failure is not None and isinstance(failure[0], int):
                handler.reply(failure[0], {"error": {"message": "not now"}}, failure[1])
            elif failure is not None and failure[0] == "broken":
                handler.reply(200, "no completion")
            else:
                handler.reply(200, self.completion(request), cut=failure is not None)
                self.note("answered", question)
        finally:
            with self.lock:
                self.at_once -= 1

    def completion(self, request: dict) -> dict:
        system, user = (message["content"] for message in request["messages"])
        message = {"role": "assistant", "content": self.answer(system, user)}
        if self.refusal is not None:
            message = {"role": "assistant", "content": None, "refusal": self.refusal}
        usage = {"prompt_tokens": len(user) // 4, "completion_tokens": 9}
        return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}


def main() -> None:
    """Serve until killed, a little slowly, so that kills find questions on their way."""

    def slowly(system: str, user: str) -> str:
        time.sleep(0.02)
        return answer_rightly(system, user)

    with FakeEndpoint(slowly, log=Path(sys.argv[1])) as server:
        print(server.url, flush=True)
        threading.Event().wait(120)


if __name__ == "__main__":
    main()
