"""`saelab dashboard`: start the feature browser on this machine, for this machine only."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from saelab.config import parse_arguments
from saelab.errors import ConfigError, ResourceError

ADDRESS = "127.0.0.1"
HOSTS = (ADDRESS, "localhost")
"""Names by which a browser may call this server."""
SCRIPT = Path(__file__).parent / "pages" / "start.py"
"""What Streamlit runs. Beside a folder called `pages` it would not run it on a link to a page."""
ROOTS_VARIABLE = "SAELAB_DASHBOARD_ROOTS"
"""Environment variable by which the pages are told the folders given, as a JSON list."""
DEFAULT_ROOTS = (Path("runs"),)


@dataclass(frozen=True, kw_only=True)
class DashboardCommand:
    """Browse runs, features and evaluation results in the web browser, offline."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = DEFAULT_ROOTS
    """Folders with runs or dictionaries, or single feature stores. Nothing outside them can be
    reached from the pages."""
    port: int = 8501
    """TCP port on 127.0.0.1; 0 takes a free one."""

    def __post_init__(self) -> None:
        if problems := problems_of(self.runs, self.port):
            raise ConfigError(problems)


CONFIG = DashboardCommand


def problems_of(runs: Sequence[Path], port: int) -> list[str]:
    """What keeps folders from being served at a port."""
    problems = []
    if not 0 <= port <= 65535:
        problems.append(f"--port must be 0 to 65535; got {port}")
    if not runs:
        problems.append("give at least one folder with runs")
    return problems + [
        f"{path} does not exist: give a folder with runs, such as the --out of `saelab train`"
        for path in runs
        if not path.exists()
    ]


def main(arguments: Sequence[str]) -> None:
    """Serve until interrupted."""
    command = parse_arguments(DashboardCommand, arguments, program="saelab dashboard")
    port = usable_port(command.port)
    os.environ[ROOTS_VARIABLE] = json.dumps([str(path.resolve()) for path in command.runs])
    names = ", ".join(str(path) for path in command.runs)
    print(f"saelab dashboard of {names}: http://{ADDRESS}:{port}  (stop with Ctrl-C)", flush=True)
    serve(port)


def serve(port: int) -> None:
    """Run Streamlit in this process, on this machine's loopback address, until it is stopped."""
    end_on_signals()
    import streamlit as st
    from starlette.middleware import Middleware

    threading.Thread(target=_warm_up, daemon=True).start()
    app = st.App(SCRIPT, middleware=[Middleware(OwnPagesOnly)])
    app.run(config=server_options(port))


class OwnPagesOnly:
    """Refuses what pages of other sites ask a browser on this machine to send, before Streamlit.

    A name of theirs that resolves to 127.0.0.1 is told by `Host`, all else by `Origin`. Streamlit
    checks `Host` on its socket alone, and compares an `Origin` with the machine's external address,
    which it would ask of another host.
    """

    def __init__(self, app: Any, hosts: Collection[str] = HOSTS):
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request or socket of ASGI."""
        if scope["type"] in ("http", "websocket"):
            from starlette.datastructures import Headers
            from starlette.responses import PlainTextResponse

            headers = Headers(scope=scope)
            host, origin = headers.get("host", ""), headers.get("origin")
            # Any port: the page may come through a tunnel.
            if host.partition(":")[0] not in self._hosts or origin not in (None, f"http://{host}"):
                refusal = PlainTextResponse(
                    f"This server answers its own pages at {' or '.join(self._hosts)} only; "
                    f"asked with Host {host!r} and Origin {origin!r}.\n",
                    status_code=403,
                )
                return await refusal(scope, receive, send)
        return await self._app(scope, receive, send)


def end_on_signals() -> None:
    """End the process on Ctrl-C and SIGTERM; called before any thread is started.

    Streamlit's handlers ask its server to stop, which a server that is starting may never do.
    Nothing is lost by ending at once: labels are written in transactions.
    """
    if not hasattr(signal, "sigwait"):
        return
    wanted = {signal.SIGINT, signal.SIGTERM}
    # Threads inherit the mask, so these signals wait for the thread that asks for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)

    def end() -> None:
        signal.sigwait(wanted)
        os._exit(0)

    threading.Thread(target=end, daemon=True).start()


def _warm_up() -> None:
    """Import what the first page needs while the browser is still being opened."""
    for module in ("pandas", "pyarrow", "plotly.graph_objects", "saelab.dashboards.pages.explore"):
        importlib.import_module(module)


def server_options(port: int) -> dict[str, Any]:
    """Streamlit's settings; given in the call, they win over any config file of the user's."""
    options: dict[str, Any] = {
        "server.address": ADDRESS,
        "server.port": port,
        "server.headless": True,
        "server.fileWatcherType": "none",
        # Otherwise a page shows the words that describe its constants.
        "runner.magicEnabled": False,
        "server.runOnSave": False,
        "server.enableStaticServing": False,
        "server.maxUploadSize": 1,
        "browser.gatherUsageStats": False,
        "browser.serverAddress": ADDRESS,
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": False,
        "global.developmentMode": False,
        "logger.level": "warning",
        "logger.hideWelcomeMessage": True,
        "theme.baseFontSize": 15,
        "theme.headingFontSizes": ["1.9rem", "1.35rem", "1.15rem", "1.05rem", "1rem", "1rem"],
    }
    for part, light, dark in (
        ("primaryColor", "#0b62ab", "#4f9fe0"),
        ("backgroundColor", "#ffffff", "#14171b"),
        ("secondaryBackgroundColor", "#f1f4f7", "#1f242b"),
        ("textColor", "#1b1f24", "#e8eaed"),
        ("linkColor", "#0b62ab", "#7ab8ee"),
    ):
        options |= {f"theme.light.{part}": light, f"theme.dark.{part}": dark}
    return options


def usable_port(port: int = 0, address: str = ADDRESS) -> int:
    """This port, or any for 0, on which nothing listens; checked before anything heavy is loaded.

    Raises:
        ResourceError: something listens there, or the system keeps the port for itself.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise ResourceError(
                f"port {port} of {address} cannot be used ({error.strerror}): give another --port, "
                "or --port 0 for any free one"
            ) from error
        return probe.getsockname()[1]
