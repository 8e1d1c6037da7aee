"""A Hub's refusals and failures in words for a user: the real client, and a local server.

The server knows one repository, `me/saes`, of one commit; a test says what it answers instead.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from huggingface_hub import constants

from saelab.cli import main
from saelab.dictionary.importers import sources

COMMIT = "1" * 40


class Hub(BaseHTTPRequestHandler):
    files: ClassVar[dict[str, bytes]] = {}
    refusal: ClassVar[tuple[int, str, str] | None] = None
    """Status, code of the error, and what addresses it is given for begin with."""
    sizes: ClassVar[dict[str, int]] = {}
    """What it says of files, where that is not their size."""

    def log_message(self, *args):
        del args

    def do_GET(self):
        if self.refusal is not None and self.path.startswith(self.refusal[2]):
            status, code, _ = self.refusal
            return self.answer(status, b"{}", {"X-Error-Code": code} if code else {})
        api, resolve = "/api/models/me/saes/", f"/me/saes/resolve/{COMMIT}/"
        sizes = {name: len(content) for name, content in self.files.items()} | self.sizes
        if self.path.startswith(api + "revision/") or self.path.split("?")[0] == api[:-1]:
            siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
            return self.tell({"id": "me/saes", "sha": COMMIT, "siblings": siblings})
        if self.path.startswith(api + "tree/"):
            tree = [{"type": "file", "path": n, "size": s, "oid": n} for n, s in sizes.items()]
            return self.tell(tree)
        if self.path == "/api/repos/create":
            return self.tell({"url": "https://huggingface.co/me/saes"})
        name = self.path.removeprefix(resolve)
        if name not in self.files:
            return self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        head = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}
        return self.answer(200, self.files[name], head, sizes[name])

    do_HEAD = do_POST = do_GET

    def tell(self, content):
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def answer(self, status, content, head, size=None):
        self.send_response(status)
        for name, value in {**head, "Content-Length": str(size or len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.close_connection = True


def lies_at(monkeypatch, address: str) -> None:
    """Have the client ask another Hub."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The class that answers, whose attributes a test sets."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    lies_at(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits before it retries
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Hub, "files", {"layers.1/cfg.json": b"{}", "layers.1/sae.pt": b"weights"})
    monkeypatch.setattr(Hub, "refusal", None)
    monkeypatch.setattr(Hub, "sizes", {})
    yield Hub
    server.shutdown()
    server.server_close()


def said(capsys, *words: str) -> str:
    """The line that a command ends with, after what the client says of its progress."""
    assert main(list(words)) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "GatedRepo", "accept its terms at https://huggingface.co/me/saes"),
        (403, "GatedRepo", "set HF_TOKEN to it"),
        (401, "RepoNotFound", "there is no repository me/saes on the Hub, or it is private"),
        (401, "", "the Hub does not allow it (401); set HF_TOKEN"),
        (403, "", "fine-grained one needs access to gated repositories"),
        (404, "RevisionNotFound", "me/saes has no revision main"),
        (500, "", "answers with error 500; try again later"),
    ],
)
def test_a_refusal_says_what_to_do(hub, capsys, status, code, words):
    hub.refusal = (status, code, "/")
    assert words in said(capsys, "import", "hf:me/saes/layers.1")
    assert words in said(capsys, "pull", "hf:me/saes/layers.1", "--out", "nowhere")


def test_files_can_be_gated_where_their_names_are_not(hub, capsys):
    hub.refusal = (403, "GatedRepo", "/me/saes/resolve")
    assert "accept its terms" in said(capsys, "import", "hf:me/saes/layers.1")


def test_a_file_cut_short_on_its_way_is_said(hub, capsys):
    hub.sizes = {"layers.1/sae.pt": 700}
    assert "cannot be reached (RemoteProtocolError)" in said(
        capsys, "import", "hf:me/saes/layers.1"
    )


def test_what_was_fetched_before_opens_without_a_network_and_nothing_else(hub, capsys, monkeypatch):
    where = sources.hub_path("hf:me/saes/layers.1")
    assert (sources.fetch(where) / "sae.pt").read_bytes() == b"weights"
    lies_at(monkeypatch, "http://127.0.0.1:9")
    assert (sources.fetch(where) / "sae.pt").is_file()
    error = said(capsys, "import", "hf:you/saes/layers.1")
    assert "the Hub cannot be reached (ConnectError); check the network" in error


def test_a_mistyped_path_is_answered_with_the_nearest(hub, capsys):
    error = said(capsys, "import", "hf:me/saes/layer.1")
    assert "holds no 'layer.1': did you mean layers.1 or" in error


def test_a_repository_of_hundreds_of_gigabytes_is_not_fetched_whole(hub, capsys):
    hub.sizes = {"layers.1/sae.pt": 300_000_000_000}
    error = said(capsys, "import", "hf:me/saes")
    assert "300 GB in all: say which is wanted, such as hf:me/saes/layers.1" in error
    # A dictionary of that size that lies at the top, some small files in a folder beside it.
    sources._require_fetchable(sources.hub_path("hf:me/saes/layers.1"))
    hub.files = {"W_enc_0.safetensors": b"", "features/layer_0.bin": b"", "cfg.json": b"{}"}
    hub.sizes = {"W_enc_0.safetensors": 300_000_000_000}
    sources._require_fetchable(sources.hub_path("hf:me/saes"))


@pytest.mark.parametrize(
    ("status", "begins", "words"),
    [
        (401, "/api/models/me/saes/preupload", "the Hub does not allow it (401); set HF_TOKEN"),
        (401, "/", "the Hub does not allow it (401); set HF_TOKEN"),
        (403, "/", "a fine-grained one needs access to gated repositories to fetch, or write to"),
        (403, "/api/models/me/saes/preupload", "the Hub does not allow it (403); set HF_TOKEN"),
        (409, "/api/models/me/saes/preupload", "answers with error 409; try again later"),
        (500, "/", "me/saes cannot be written: the Hub answers with error 500; try again later"),
    ],
)
def test_a_push_that_is_refused_says_what_to_do(hub, folder, capsys, status, begins, words):
    hub.refusal = (status, "", begins)
    assert words in said(capsys, "push", str(folder), "hf:me/saes/a", "--yes")


def test_a_push_without_a_network_or_kept_from_it_says_so(hub, folder, capsys, monkeypatch):
    lies_at(monkeypatch, "http://127.0.0.1:9")
    words = ["push", str(folder), "hf:me/saes/a"]
    assert "me/saes cannot be written: the Hub cannot be reached" in said(capsys, *words, "--yes")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused = said(capsys, *words, "--yes")
    assert "me/saes cannot be written: HF_HUB_OFFLINE is set: unset it" in refused
    assert main(words) == 0  # which only looks
    fetched = said(capsys, "import", "hf:me/saes/layers.1")
    assert "HF_HUB_OFFLINE is set, and it is not in the local cache" in fetched
