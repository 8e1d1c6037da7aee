"""Prompt and Steer in a real browser: type, click through, go back, write; nothing leaves."""

from __future__ import annotations

import json
from urllib.parse import parse_qs, quote, urlparse

import pytest
from browser import MISSING, Browser
from live_world import TEXT, write_live_run
from served import SECONDS, dashboard_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MISSING, reason="no chromium on this machine"),
]
HERE = "run=live&sae=tiny"
HOSTILE = "<script>document.title='HACKED'</script> <img src=x onerror=\"document.title='HACKED'\">"


@pytest.fixture(scope="module")
def live_server(tiny_model, tmp_path_factory):
    """Address of a dashboard on a run whose model is tiny."""
    root = tmp_path_factory.mktemp("served") / "live"
    write_live_run(root / "tiny", tiny_model)
    with dashboard_of(root, root.parent) as address:
        yield address


def heading(browser, text):
    named = f"some(h => h.innerText.trim() === {json.dumps(text)})"
    browser.wait_for(f"[...document.querySelectorAll('h1')].{named}", SECONDS)
    browser.wait_until_still(SECONDS)


def test_prompt_to_feature_and_back_then_steer(live_server, browser_page):
    browser = browser_page
    text = f"{TEXT} {HOSTILE}"
    browser.open(f"{live_server}/prompt?{HERE}&text={quote(text)}&order=rarity")
    browser.wait_for("document.querySelectorAll('.saelab-table a.chip').length > 10", SECONDS)
    heading(browser, "Prompt")
    assert browser.evaluate("document.title") == "saelab"
    assert not browser.evaluate(
        "document.querySelectorAll('.saelab-table script, .saelab-table img').length"
    )
    tokens = browser.evaluate(
        "[...document.querySelectorAll('.saelab-table .token')].map(t => t.innerText).join('')"
    )
    assert "<" in tokens and "HACKED" in tokens

    browser.click(".saelab-table a.chip")
    browser.wait_for("location.pathname === '/feature'", SECONDS)
    browser.wait_until_still(SECONDS)
    query = parse_qs(urlparse(browser.evaluate("location.href")).query)
    heading(browser, f"Feature {query['f'][0]}")
    browser.evaluate("history.back()")
    heading(browser, "Prompt")
    browser.wait_for("document.querySelector('textarea').value.includes('HACKED')", SECONDS)
    browser.wait_for("location.search.includes('order=rarity')", SECONDS)

    browser.open(f"{live_server}/steer?{HERE}&text={quote(TEXT)}&f1=3&s1=6.0&len=5")
    heading(browser, "Steer")
    browser.evaluate(
        "[...document.querySelectorAll('button')].find(b => b.innerText.trim() === 'Generate')"
        ".click()"
    )
    browser.wait_for_text("moved by KL", SECONDS)
    browser.wait_for("document.querySelector('[role=figure][aria-label*=KL]')", SECONDS)
    assert browser.evaluate("document.querySelectorAll('.saelab-written').length") == 2
    allowed = (live_server, live_server.replace("http", "ws"), "data:", "blob:", "about:")
    assert [url for url in browser.requests if not url.startswith(allowed)] == []
    assert browser.console == []


@pytest.fixture
def browser_page(tmp_path):
    opened = Browser(tmp_path / "profile")
    yield opened
    opened.close()
