"""Every page by axe-core's rules, in both themes, and a walk by keyboard alone."""

import importlib.util
import json
from pathlib import Path

import pytest
from browser import MISSING, Browser
from served import SECONDS, dashboard_of
from test_narrow import FIRST, PAGES

AXE = importlib.util.find_spec("axe_playwright_python")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MISSING, reason="no Chromium is installed"),
    pytest.mark.skipif(AXE is None, reason="axe-core is not installed: `make setup` does"),
]
OF_STREAMLIT: dict[str, str] = {}
"""Rules that Streamlit's own elements break: rule -> selector of what is let pass."""
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


@pytest.mark.parametrize("dark", [False, True])
def test_no_page_breaks_a_rule_of_axe(server, tmp_path, dark):
    browser = Browser(tmp_path / "profile", dark=dark)
    source = (Path(AXE.origin).parent / "axe.min.js").read_text()
    broken = {}
    try:
        for page, title in PAGES.items():
            opened(browser, server, page, title)
            browser.call("Runtime.evaluate", expression=source)
            answer = browser.call(
                "Runtime.evaluate", expression=RUN, awaitPromise=True, returnByValue=True
            )
            rows = answer["result"]["value"]
            broken[title] = [
                row
                for row in rows
                if row[0] not in OF_STREAMLIT or OF_STREAMLIT[row[0]] not in row[2]
            ]
    finally:
        browser.close()
    assert not any(broken.values()), json.dumps(broken, indent=1)


def press(browser, key, code):
    for kind in ("keyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
        )


def test_a_feature_is_found_and_left_by_keyboard_alone(server, tmp_path):
    browser = Browser(tmp_path / "profile")
    try:
        opened(browser, server, f"explore?{FIRST}", "Explore")

        def walk_to(selector):
            for _ in range(60):
                press(browser, "Tab", 9)
                if browser.evaluate(f"document.activeElement.matches({json.dumps(selector)})"):
                    return
            raise AssertionError(f"Tab does not reach {selector}")

        walk_to("input[aria-label=Search]")
        walk_to(".linked tbody a")
        press(browser, "Enter", 13)
        named = "document.querySelector('h1')?.innerText.startsWith('Feature ')"
        browser.evaluate("document.activeElement.click()")
        browser.wait_for(named, SECONDS)
        browser.wait_until_still(SECONDS)
        walk_to(".saelab-row a")
    finally:
        browser.close()
