"""`saelab serve`: the features over HTTP, on this machine alone or behind a token."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import os
import secrets
import socket
import stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from saelab.config import parse_arguments
from saelab.errors import ArtifactError, ConfigError

from .command import ADDRESS, DEFAULT_ROOTS, HOSTS, OwnPagesOnly, end_on_signals, problems_of
from .command import usable_port as usable

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from starlette.responses import Response

TOKEN_VARIABLE = "SAELAB_SERVE_TOKEN"
"""Environment variable with the token that requests must carry."""
SHORTEST_TOKEN = 16
FRAMED = "/embed/"
"""What pages of other sites may show in a frame."""


@dataclass(frozen=True, kw_only=True)
class ServeCommand:
    """Answer for features, searches, activations and steering over HTTP, offline.

    On this machine's own address everyone may read. Elsewhere, and for everything but GET, a
    request needs the token: as the header x-api-key, as a bearer, or as a browser's password. It is
    taken from the environment variable SAELAB_SERVE_TOKEN, else from --token-file.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]] = DEFAULT_ROOTS
    """Folders with runs or dictionaries, or single feature stores. Nothing outside them can be
    reached."""
    port: int = 8502
    """TCP port; 0 takes a free one."""
    address: str = ADDRESS
    """Address to listen at; another than 127.0.0.1 needs the token for everything."""
    hosts: tuple[str, ...] = ()
    """Further names or addresses by which clients may call this server."""
    token_file: Path | None = None
    """File with the token; made where it is missing, for its owner alone."""

    def __post_init__(self) -> None:
        problems = problems_of(self.runs, self.port)
        if ":" in self.address:
            problems.append(f"--address must be an IPv4 address or a name; got {self.address}")
        if problems:
            raise ConfigError(problems)

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine reach it."""
        try:
            return ipaddress.ip_address(self.address).is_loopback
        except ValueError:
            return self.address == "localhost"


CONFIG = ServeCommand


def main(arguments: Sequence[str]) -> None:
    """Serve until interrupted."""
    command = parse_arguments(ServeCommand, arguments, program="saelab serve")
    port = usable(command.port, command.address)
    token, said = _token(command)
    end_on_signals()
    import uvicorn

    from .api import make_app

    app = make_app([path.resolve() for path in command.runs])
    names = [command.address, socket.gethostname(), *command.hosts]
    protect(app, token, hosts=(*HOSTS, *names), open_to_read=command.is_local)
    print(f"saelab serve: http://{command.address}:{port}  (stop with Ctrl-C)", flush=True)
    if said:
        print(said, flush=True)
    # Its lines would name what is asked for, and by whom.
    uvicorn.run(app, host=command.address, port=port, log_level="warning", access_log=False)


def _token(command: ServeCommand) -> tuple[str | None, str]:
    """The token, if there is to be one, and the line that tells of it.

    Raises:
        ConfigError: a server for others without a token, or one that is too short.
        ArtifactError: a file that others may read.
    """
    if token := os.environ.get(TOKEN_VARIABLE):
        said = f"token: the one in {TOKEN_VARIABLE}"
    elif command.token_file is not None:
        token, made = _token_of(command.token_file)
        said = f"token: {token if made else 'the one'} in {command.token_file}"
    elif command.is_local:
        return None, ""
    else:
        raise ConfigError(
            f"at {command.address} others reach this server, so it needs a token: add --token-file "
            f"FILE, which is made where it is missing, or set {TOKEN_VARIABLE}"
        )
    if len(token) < SHORTEST_TOKEN or not token.isascii():
        raise ConfigError(f"the token needs {SHORTEST_TOKEN} ASCII characters or more")
    return token, said


def _token_of(path: Path) -> tuple[str, bool]:
    """The token in a file, and whether it was made just now."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ArtifactError(
                f"{path} can be read by others, so it keeps no secret: `chmod 600 {path}`"
            ) from None
        return path.read_text(encoding="utf-8", errors="replace").strip(), False
    token = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    return token, True


def protect(app: FastAPI, token: str | None, *, hosts: Sequence[str], open_to_read: bool) -> None:
    """Let nothing through to an app but what may ask.

    Args:
        app: the app; more middleware added later comes before this.
        token: what a request must carry; None: whatever needs one is refused.
        hosts: names by which it may be called.
        open_to_read: whether GET needs none.
    """
    from starlette.responses import JSONResponse

    @app.middleware("http")
    async def permit(
        request: Request, answer: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        """Pages of other sites cannot read an answer, but could keep this machine busy."""
        path, foreign = request.url.path, request.headers.get("sec-fetch-site") == "cross-site"
        if foreign and not path.startswith(FRAMED):
            return JSONResponse({"detail": "pages of other sites may not ask for this"}, 403)
        reads = request.method in ("GET", "HEAD")
        if (open_to_read and reads) or (token is not None and _carries(request, token)):
            return await answer(request)
        if token is None:
            told = f"only GET is answered without a token: set {TOKEN_VARIABLE} and start again"
            return JSONResponse({"detail": told}, 403)
        # A browser asks for the password, so that its pages and frames can be seen.
        asks = {"WWW-Authenticate": 'Basic realm="saelab: any name, the token as password"'}
        told = "this needs the token, as the header x-api-key, a bearer or a password"
        return JSONResponse({"detail": told}, 401, asks)

    app.add_middleware(OwnPagesOnly, hosts=tuple(dict.fromkeys(hosts)))


def _carries(request: Request, token: str) -> bool:
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "basic":
        try:
            value = base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return False
    given = request.headers.get("x-api-key") or value
    return hmac.compare_digest(given.encode(), token.encode())
