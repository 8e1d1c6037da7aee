"""How fast pages are, by hand: `python tests/dashboards/measure_pages.py RUNS [PAGE …]`.

For every page of the runs' first dictionary, from the moment a fresh browser asks for it: when its
heading stands there, and when it has settled, after which nothing changes for a second; and how
long the browser's main thread worked. Then Next, from the click; and, to compare with, the page of
the feature as the one static file that Share gives.
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

from saelab.dashboards.run_index import scan
from saelab.dashboards.widgets.feature_html import feature_html
from saelab.features.reader import FeatureStore

PAGES = ("", "explore", "feature?f={f}", "map", "compare", "training", "evals", "static")
ROUNDS, STILL, LIMIT = 5, 1000, 90
WATCH = """
window.began = 0; window.heading = window.changed = null;
new MutationObserver(() => {
  window.changed = performance.now();
  const title = document.querySelector("h1")?.innerText;
  if (title && title !== window.before && window.heading === null) window.heading = window.changed;
}).observe(document, {childList: true, subtree: true, characterData: true, attributes: true});
"""
SETTLED = (
    f"window.heading !== null && performance.now() - window.changed > {STILL} && ("
    "!document.querySelector('[data-testid=stApp]') || "
    "document.querySelector('[data-test-script-state=notRunning]'))"
)
TIMES = "[window.heading - window.began, window.changed - window.began]"
LINK = '[...document.querySelectorAll("a")].find(a => a.innerText.includes("Next"))'
NEXT = f"""
window.before = document.querySelector("h1").innerText; window.heading = null;
window.began = performance.now();
{LINK}.click();
"""


def measured(browser: Browser, before: float = 0) -> list[float]:
    """Milliseconds to the heading, to the last change before a second without one, and of work."""
    browser.wait_for(SETTLED, LIMIT)
    return [*browser.evaluate(TIMES), worked(browser) - before]


def worked(browser: Browser) -> float:
    """Milliseconds that the page's main thread was busy."""
    metrics = browser.call("Performance.getMetrics")["metrics"]
    return 1000 * next(m["value"] for m in metrics if m["name"] == "TaskDuration")


def write_static(root: Path, feature: int, path: Path) -> str:
    """Address of the feature's page as one file."""
    entries = scan([root]).dictionaries
    store = next(entry.store_path for entry in entries if entry.store_path)
    path.write_text(feature_html("static", FeatureStore(store), feature))
    return path.as_uri()


def show(name: str, times: list[list[float]]) -> None:
    """One line of the table."""
    heading, settled, work = (statistics.median(part) / 1000 for part in zip(*times, strict=True))
    print(
        f"{name:10} heading {heading:5.2f} s   settled {settled:5.2f} s   worked {work:5.2f} s",
        flush=True,
    )


def main(root: Path, *asked: str, feature: int = 3) -> None:
    """Measure, with a browser of its own for every opening of a page."""
    pages = [page for page in PAGES if not asked or (page.partition("?")[0] or "home") in asked]
    with tempfile.TemporaryDirectory() as folder, dashboard_of(root, Path(folder)) as server:

        def fresh(url: str, number: int) -> Browser:
            browser = Browser(Path(folder) / f"profile{time.monotonic_ns()}{number}")
            browser.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
            browser.call("Performance.enable")
            browser.open(url)
            return browser

        steps, static = [], write_static(root, feature, Path(folder) / "feature.html")
        for page in pages:
            times = []
            for number in range(ROUNDS):
                url = static if page == "static" else f"{server}/{page.format(f=feature)}"
                browser = fresh(url, number)
                times.append(measured(browser))
                if page.startswith("feature"):
                    browser.wait_for(LINK, LIMIT)
                    before = worked(browser)
                    browser.evaluate(NEXT)
                    steps.append(measured(browser, before))
                if page.startswith("feature") and not number:
                    blocks = "document.querySelectorAll('[data-testid=stElementContainer]').length"
                    print(f"elements of a feature's page: {browser.evaluate(blocks)}")
                browser.close()
            show(page.partition("?")[0] or "home", times)
        if steps:
            show("Next", steps)
        print(json.dumps({"load": Path("/proc/loadavg").read_text().split()[0]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
