"""A dashboard started as a user starts it, from another folder, for tests that talk to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saelab.dashboards.command import usable_port

SECONDS = 90
"""Longest wait for one step: a loaded machine is slow, and a wait that is over ends at once."""


@contextmanager
def dashboard_of(root: Path, folder: Path, **environment: str) -> Iterator[str]:
    """Address of a dashboard of `root`, run in `folder`; afterwards its log holds no traceback."""
    port, log = usable_port(), folder / "log.txt"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "saelab.cli", "dashboard", str(root), "--port", str(port)],
            stdout=out,
            stderr=out,
            cwd=folder,
            env={**os.environ, "HOME": str(folder), **environment},
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + SECONDS
        while True:
            assert process.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(f"{address}/_stcore/health", timeout=5):
                    break
            except OSError:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
    text = log.read_text()
    assert "Traceback" not in text and address in text, text
