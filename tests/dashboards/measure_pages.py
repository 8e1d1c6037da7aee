"""How fast pages are, by hand: `python tests/dashboards/measure_pages.py RUNS [FEATURE]`.

For every page of the runs' first dictionary, from the moment a fresh browser asks for it: when its
heading stands there, and when it has settled, after which nothing changes for a second. Then Next,
from the click.
Times are those of the browser's own clock, medians of several rounds.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from browser import Browser
from served import dashboard_of

PAGES = ("", "explore", "feature?f={f}", "map", "compare", "training", "evals")
ROUNDS, STILL, LIMIT = 5, 1000, 90
WATCH = """
window.began = 0; window.heading = window.changed = null;
new MutationObserver(() => {
  window.changed = performance.now();
  const title = document.querySelector("h1")?.innerText;
  if (title && title !== window.before && window.heading === null) window.heading = window.changed;
}).observe(document, {childList: true, subtree: true, characterData: true, attributes: true});
"""
SETTLED = f"window.heading !== null && performance.now() - window.changed > {STILL}"
TIMES = "[window.heading - window.began, window.changed - window.began]"
NEXT = """
window.before = document.querySelector("h1").innerText; window.heading = null;
window.began = performance.now();
[...document.querySelectorAll("a")].find(a => a.innerText.includes("Next")).click();
"""


def measured(browser: Browser) -> list[float]:
    """Milliseconds to the heading and to the last change, once there was none for a second."""
    browser.wait_for(SETTLED, LIMIT)
    return browser.evaluate(TIMES)


def show(name: str, times: list[list[float]]) -> None:
    """One line of the table."""
    heading, settled = (statistics.median(part) / 1000 for part in zip(*times, strict=True))
    print(f"{name:14} heading {heading:5.2f} s   settled {settled:5.2f} s", flush=True)


def main(root: Path, feature: int = 3) -> None:
    """Measure, with a browser of its own for every opening of a page."""
    with tempfile.TemporaryDirectory() as folder, dashboard_of(root, Path(folder)) as server:

        def fresh(url: str, number: int) -> Browser:
            browser = Browser(Path(folder) / f"profile{time.monotonic_ns()}{number}")
            browser.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
            browser.open(url)
            return browser

        steps = []
        for page in PAGES:
            times = []
            for number in range(ROUNDS):
                browser = fresh(f"{server}/{page.format(f=feature)}", number)
                times.append(measured(browser))
                if page.startswith("feature"):
                    browser.evaluate(NEXT)
                    steps.append(measured(browser))
                if page.startswith("feature") and not number:
                    blocks = "document.querySelectorAll('[data-testid=stElementContainer]').length"
                    print(f"elements of a feature's page: {browser.evaluate(blocks)}")
                browser.close()
            show(page.partition("?")[0] or "home", times)
        show("Next", steps)
        print(json.dumps({"load": Path("/proc/loadavg").read_text().split()[0]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
