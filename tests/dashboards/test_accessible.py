"""Every page by axe-core's rules, run in the page and offline."""

import importlib.util
import json
from pathlib import Path

import pytest
from browser import MISSING, Browser
from served import SECONDS, dashboard_of
from test_narrow import PAGES

AXE = importlib.util.find_spec("axe_playwright_python")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MISSING, reason="no Chromium is installed"),
    pytest.mark.skipif(AXE is None, reason="axe-core is not installed: `make setup` does"),
]
RUN = """axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}).then(
  r => r.violations.flatMap(v => v.nodes.map(n => [v.id, n.target.join(" "), n.html.slice(0, 200)]))
)"""


@pytest.fixture(scope="module")
def server(world, tmp_path_factory):
    with dashboard_of(world, tmp_path_factory.mktemp("server")) as address:
        yield address


def opened(browser, server, page, title):
    browser.open(f"{server}/{page}")
    named = f"some(h => h.innerText.trim() === {json.dumps(title)})"
    browser.wait_for(f"[...document.querySelectorAll('h1')].{named}", SECONDS)
    browser.wait_until_still(SECONDS)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_page_breaks_a_rule_of_axe(server, tmp_path, theme):
    browser = Browser(tmp_path / "profile", dark=theme == "dark")
    source = (Path(AXE.origin).parent / "axe.min.js").read_text()
    broken = {}
    try:
        assert browser.evaluate(f"matchMedia('(prefers-color-scheme: {theme})').matches")
        for page, title in PAGES.items():
            opened(browser, server, page, title)
            browser.call("Runtime.evaluate", expression=source)
            answer = browser.call(
                "Runtime.evaluate", expression=RUN, awaitPromise=True, returnByValue=True
            )
            broken[title] = answer["result"]["value"]
    finally:
        browser.close()
    assert not any(broken.values()), json.dumps(broken, indent=1)
