"""The main path in a real browser: Home, Explore, feature, Back; nothing leaves the machine.

What needs a browser is skipped where no Chromium is installed, except in CI: AppTest covers the
pages' content, this the addresses, the Back button, the escaping and the network.
"""

import json
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest
from browser import MISSING, Browser
from served import SECONDS, dashboard_of
from sessions import visit
from toy_store import dense_codes

pytestmark = pytest.mark.slow
needs_browser = pytest.mark.skipif(MISSING, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def server(world, tmp_path_factory):
    """Address of a running dashboard, started as a user does, from another folder."""
    with dashboard_of(world, tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture
def browser(tmp_path):
    opened = Browser(tmp_path / "profile")
    yield opened
    opened.close()


def heading(browser, text):
    named = f"some(h => h.innerText.trim() === {json.dumps(text)})"
    browser.wait_for(f"[...document.querySelectorAll('h1')].{named}", SECONDS)
    browser.wait_until_still(SECONDS)


def address_of(browser):
    parts = urlparse(browser.evaluate("location.href"))
    return parts.path, {key: values[0] for key, values in parse_qs(parts.query).items()}


def type_into(browser, label, text):
    browser.wait_for(f"document.querySelector('input[aria-label={json.dumps(label)}]')", SECONDS)
    browser.evaluate(f"document.querySelector('input[aria-label={json.dumps(label)}]').focus()")
    browser.call("Input.insertText", text=text)
    for kind in ("keyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13
        )


@needs_browser
def test_home_explore_feature_and_back(server, browser):
    browser.open(f"{server}/")
    heading(browser, "saelab")
    browser.click("a[href*='explore']")
    heading(browser, "Explore")
    path, params = address_of(browser)
    assert path == "/explore" and params["sae"] == "first"

    type_into(browser, "Search", "script")
    browser.wait_for("location.search.includes('q=script')", SECONDS)
    browser.wait_for_text("features", SECONDS)
    browser.wait_until_still(SECONDS)

    # A table is drawn on a canvas, so the feature is opened by its address, as a link would be.
    browser.open(f"{server}/feature?run=all%2Fdemo&sae=first&f=3")
    heading(browser, "Feature 3")
    browser.wait_for("document.querySelectorAll('.saelab-tokens .ex').length > 3", SECONDS)
    assert browser.evaluate("document.title").startswith("Feature 3 · ")
    assert browser.evaluate("document.querySelectorAll('.saelab-tokens script').length") == 0
    assert browser.evaluate("document.querySelectorAll('.saelab-tokens img').length") == 0
    assert "<script>document.title" in browser.evaluate(
        "document.querySelector('.saelab-tokens').innerText"
    )
    figures = browser.evaluate(
        "[...document.querySelectorAll('[role=figure]')].map(f => f.ariaLabel)"
    )
    assert any("activations of feature 3" in (alt or "") for alt in figures)

    # Previous and next are real links, and Back takes both steps in turn.
    browser.evaluate(
        "[...document.querySelectorAll('a')].find(a => a.innerText.includes('Next')).click()"
    )
    heading(browser, "Feature 4")
    assert address_of(browser)[1]["f"] == "4"
    browser.evaluate("history.back()")
    heading(browser, "Feature 3")
    browser.evaluate("history.back()")
    heading(browser, "Explore")
    browser.wait_for("location.search.includes('q=script')", SECONDS)
    browser.wait_for(
        "document.querySelector('input[aria-label=Search]').value === 'script'", SECONDS
    )

    outside = [
        url
        for url in browser.requests
        if not url.startswith((server, server.replace("http", "ws"), "data:", "blob:", "about:"))
    ]
    assert outside == []
    assert browser.console == []


@needs_browser
def test_two_dictionaries_are_compared(server, browser):
    browser.open(f"{server}/compare?run=all%2Fdemo&sae=first&with=all%2Fdemo+%E2%80%BA+second")
    heading(browser, "Compare")
    browser.wait_for("document.querySelectorAll('[role=figure]').length > 1", SECONDS)
    assert browser.console == []


@needs_browser
def test_pages_can_be_read_in_the_dark(server, tmp_path):
    opened = Browser(tmp_path / "profile", dark=True)
    try:
        opened.open(f"{server}/feature?run=all%2Fdemo&sae=first&f=8")
        heading(opened, "Feature 8")
        opened.wait_for("document.querySelector('.saelab-tokens .s20')", SECONDS)
        style = "getComputedStyle(document.querySelector('.saelab-tokens .s1, .saelab-tokens .s5'))"
        red, green, blue = _rgb(opened.evaluate(f"{style}.color"))
        assert min(red, green, blue) > 200, "faint highlights have light text on a dark page"
        page = _rgb(
            opened.evaluate("getComputedStyle(document.querySelector('.stApp')).backgroundColor")
        )
        assert max(page) < 60
    finally:
        opened.close()


def _rgb(text):
    return [int(float(part)) for part in text[text.index("(") + 1 : -1].split(",")][:3]


def test_ten_readers_at_once(server):
    """Ten new sessions ask for ten features at the same moment; each gets its own."""
    from concurrent.futures import ThreadPoolExecutor

    def read(feature):
        query = f"run=all%2Fdemo&sae=first&f={feature}"
        return visit(server, "feature", query, SECONDS)

    read(0)
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(read, range(2, 12)))
    for feature, (seconds, drawn) in zip(range(2, 12), answers, strict=True):
        active = int((dense_codes()[..., feature] > 0).sum())
        assert any(f"active on {active:,} of the 266" in block for block in drawn), feature
        print(f"feature {feature}: {seconds:.2f} s")


def test_only_this_machine_is_served(server):
    """The server is bound to 127.0.0.1 and to no other address of the machine."""
    port = int(server.rsplit(":", 1)[1])
    listening = Path("/proc/net/tcp").read_text() if Path("/proc/net/tcp").exists() else ""
    if not listening:
        pytest.skip("no list of listening sockets on this system")
    rows = [line.split() for line in listening.splitlines()[1:]]
    bound = [row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")]
    assert bound == [f"0100007F:{port:04X}"]
