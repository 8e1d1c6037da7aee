"""A headless Chromium steered over its DevTools protocol: enough for the main paths, no more.

It needs no driver: `websockets` comes with Streamlit, Chromium is the system's.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = CHROMIUM is None and not os.environ.get("CI")
"""In CI a browser that is not there is a failure, not a test left out."""
START = 120
"""Seconds a browser may take to start on a busy machine."""
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--disable-extensions",
    "--remote-debugging-port=0",
)


class NavigatedError(Exception):
    """The page was left while it was asked."""


class Browser:
    """One page of one browser."""

    def __init__(self, profile: Path, size: tuple[int, int] = (1300, 1000), *, dark: bool = False):
        from websockets.sync.client import connect

        assert CHROMIUM is not None
        theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
        self.process = subprocess.Popen(
            [
                CHROMIUM,
                *FLAGS,
                *theme,
                f"--user-data-dir={profile}",
                f"--window-size={size[0]},{size[1]}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._connect(profile / "DevToolsActivePort", connect)
        except BaseException:
            self._end()
            raise

    def _connect(self, port_file: Path, connect) -> None:
        _wait(lambda: port_file.exists() and "\n" in port_file.read_text(), START, "chromium")
        port = port_file.read_text().splitlines()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            pages = [entry for entry in json.load(answer) if entry["type"] == "page"]
        self._open = contextlib.ExitStack()
        self.socket = self._open.enter_context(
            connect(pages[0]["webSocketDebuggerUrl"], max_size=None)
        )
        self._number = 0
        self.requests: list[str] = []
        self.console: list[str] = []
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params):
        """One DevTools call; events that arrive meanwhile are noted."""
        self._number += 1
        self.socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv(timeout=60))
            if message.get("id") == self._number:
                if "navigated" in message.get("error", {}).get("message", ""):
                    raise NavigatedError
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message):
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        elif message.get("method") == "Network.webSocketCreated":
            self.requests.append(message["params"]["url"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.console.append(message["params"]["exceptionDetails"]["text"])

    def open(self, url: str) -> None:
        """Go to an address."""
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str):
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 30) -> None:
        """Wait until a JavaScript expression is true."""
        _wait(lambda: self._holds(expression), seconds, expression)

    def _holds(self, expression: str) -> bool:
        try:
            return self.evaluate(f"Boolean({expression})")
        except NavigatedError:  # asked of a page that was just being left
            return False

    def wait_for_text(self, text: str, seconds: float = 30) -> None:
        """Wait until the page shows a text and Streamlit is not running."""
        self.wait_for(f"document.body.innerText.includes({json.dumps(text)})", seconds)

    def wait_until_still(self, seconds: float = 30) -> None:
        """Wait until Streamlit has finished and nothing on the page is a placeholder."""
        self.wait_for(
            "document.querySelector('[data-testid=stApp]') && "
            "document.querySelector('[data-test-script-state=notRunning]') && "
            "!document.querySelector('[data-testid=stSkeleton]')",
            seconds,
        )

    def click(self, selector: str) -> None:
        """Click the first element of a CSS selector."""
        self.wait_for(f"document.querySelector({json.dumps(selector)})")
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """The page as PNG."""
        if whole:
            height = self.evaluate(
                "Math.max(...[...document.querySelectorAll('[data-testid=stMain],"
                "[data-testid=stSidebarContent]')].map(e => e.scrollHeight), 600)"
            )
            width = self.evaluate("window.innerWidth")
            self.call(
                "Emulation.setDeviceMetricsOverride",
                width=int(width),
                height=int(min(height + 20, 6000)),
                deviceScaleFactor=1,
                mobile=False,
            )
            time.sleep(1.0)
        image = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(image))

    def close(self) -> None:
        """End the browser."""
        self._open.close()
        self._end()

    def _end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(timeout=20)


def _wait(done, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.05)
