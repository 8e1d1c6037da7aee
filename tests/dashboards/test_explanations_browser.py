"""Explanations and ways between pages in a real browser: Back, Next, votes, search by meaning."""

import json
import shutil

import pytest
from browser import MISSING, Browser
from served import SECONDS, dashboard_of
from test_browser import address_of, heading, type_into
from toy_store import N_FEATURES

from saelab.explain.meaning import missing_encoder
from saelab.features.label_content import Score
from saelab.features.labels import LabelBook
from tests.explain.fake_endpoint import MODEL, FakeEndpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MISSING, reason="no Chromium is installed"),
]
FIRST = "run=all%2Fdemo&sae=first"
SCORES = (Score("detection", 0.8, 0.7, 0.9, 40, 0.52, 0.49),)


@pytest.fixture(scope="module")
def explained(world, tmp_path_factory):
    """A copy of the folder of runs, to write to."""
    return shutil.copytree(world, tmp_path_factory.mktemp("explained") / "all")


@pytest.fixture(scope="module")
def book(explained):
    path = explained / "demo" / "dictionaries" / "first" / "feature_labels.sqlite"
    book = LabelBook(path, "toyhash", N_FEATURES)
    for feature, text in {3: "machine code", 5: "greetings in Hebrew", 8: "household pets"}.items():
        book.add(feature, text, author="saelab", method="token-context", scores=SCORES)
    book.add(8, "animals <b>", author="saelab", method="language-model", model="tiny")
    book.write_note(8, "first line\nsecond line", author="Ada")
    return book


@pytest.fixture(scope="module")
def endpoint():
    with FakeEndpoint() as running:
        yield running


@pytest.fixture(scope="module")
def server(explained, book, endpoint, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAELAB_ENDPOINT", endpoint.url)
        patch.setenv("SAELAB_ENDPOINT_MODEL", MODEL)
        with dashboard_of(explained, tmp_path_factory.mktemp("server")) as address:
            yield address


@pytest.fixture
def browser(tmp_path):
    opened = Browser(tmp_path / "profile")
    yield opened
    assert opened.console == []
    opened.close()


def click_row(browser, row):
    """Press a row of the table, beside its link."""
    at_row = f"document.querySelectorAll('.linked tbody tr')[{row}]"
    browser.wait_for(f"{at_row}?.lastElementChild", SECONDS)
    browser.wait_until_still(SECONDS)
    at = browser.evaluate(
        f"(() => {{{at_row}.scrollIntoView({{block: 'center'}});"
        f"const box = {at_row}.lastElementChild.getBoundingClientRect();"
        "return {x: box.x + 5, y: box.y + box.height / 2}})()"
    )
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)


def link_named(browser, name):
    found = (
        f"[...document.querySelectorAll('a')].find(a => a.innerText.includes({json.dumps(name)}))"
    )
    browser.wait_for(found, SECONDS)
    return browser.evaluate(f"{found}.href")


def press(browser, name):
    named = f"find(b => b.innerText.includes({json.dumps(name)}))"
    button = f"[...document.querySelectorAll('button')].{named}"
    browser.wait_for(button, SECONDS)
    browser.evaluate(f"{button}.click()")


def test_back_from_a_row_returns_to_the_search_in_one_step(server, browser):
    browser.open(f"{server}/explore?{FIRST}&q=dog")
    heading(browser, "Explore")
    before = browser.evaluate("history.length")
    click_row(browser, 0)
    browser.wait_for("location.pathname === '/feature'", SECONDS)
    feature = address_of(browser)[1]["f"]
    heading(browser, f"Feature {feature}")
    assert browser.evaluate("history.length") == before + 1
    assert "q=dog" in link_named(browser, "All features")
    browser.evaluate("history.back()")
    heading(browser, "Explore")
    assert address_of(browser) == ("/explore", {"run": "all/demo", "sae": "first", "q": "dog"})
    assert browser.evaluate("document.querySelector('input[aria-label=Search]').value") == "dog"
    # The way forward is still there, and the row is not taken for chosen again.
    browser.evaluate("history.forward()")
    heading(browser, f"Feature {feature}")


def test_next_previous_and_random_keep_list_and_window(server, browser):
    browser.open(f"{server}/feature?{FIRST}&f=8&tab=Random&window=full")
    heading(browser, "Feature 8")
    kept = "tab=Random&window=full"
    assert all(kept in link_named(browser, name) for name in ("Previous", "Next", "Random"))
    press(browser, "Near misses")
    browser.wait_for_text("Where a neighbour is active", SECONDS)
    browser.wait_until_still(SECONDS)
    assert all(
        "tab=Near+misses&window=full" in link_named(browser, name)
        for name in ("Previous", "Next", "Random")
    )
    drawn = set()
    for _ in range(8):
        drawn.add(link_named(browser, "Random"))
        browser.open(f"{server}/feature?{FIRST}&f=8")
        heading(browser, "Feature 8")
    assert len(drawn) > 2


def test_title_and_note_of_a_feature(server, browser):
    browser.open(f"{server}/feature?{FIRST}&f=8")
    heading(browser, "Feature 8")
    assert browser.evaluate("document.title").startswith("Feature 8 · ")
    browser.wait_for_text("first line\nsecond line", SECONDS)


def test_explanations_stand_first_side_by_side_and_are_voted_on(server, browser, book):
    browser.open(f"{server}/feature?{FIRST}&f=8")
    heading(browser, "Feature 8")
    tops = browser.evaluate(
        "[...document.querySelectorAll('.saelab-said p')].map(p => p.getBoundingClientRect().top)"
    )
    assert len(tops) == 2 and tops[0] == tops[1]
    assert tops[0] < browser.evaluate(
        "document.querySelector('.saelab-strip').getBoundingClientRect().top"
    )
    browser.wait_for_text("0.70–0.90", SECONDS)
    assert browser.evaluate("document.querySelectorAll('.saelab-said p b').length") == 0
    press(browser, "Agree (0)")
    type_into(browser, "Your name, which a vote needs", "Ada")
    browser.wait_for_text("Agree (1)", SECONDS)
    (voted,) = [label for label in book.of(8) if label.votes_up]
    press(browser, "Agree (1)")
    browser.wait_until_still(SECONDS)
    assert [label.votes_up for label in book.of(8) if label.id == voted.id] == [1]


def test_a_feature_is_explained_on_request(server, browser, book, endpoint):
    asked = []
    for _ in range(2):  # What was answered once is not asked again.
        browser.open(f"{server}/feature?{FIRST}&f=7")
        heading(browser, "Feature 7")
        assert browser.evaluate("document.querySelectorAll('.saelab-said').length") == 0
        press(browser, "Explain this feature")
        browser.wait_for("document.querySelectorAll('.saelab-said table').length === 1", SECONDS)
        (label,) = book.of(7)
        assert (label.method, label.model) == ("language-model", MODEL)
        assert label.text.startswith("the word ") and label.scores
        asked.append(len(endpoint.requests))
        book.delete(label.id)
    assert asked[0] == asked[1] > 3


def test_why_no_explanation_came_is_said(server, browser, book, endpoint, monkeypatch):
    monkeypatch.setattr(endpoint, "key", "another")
    browser.open(f"{server}/feature?{FIRST}&f=4")
    heading(browser, "Feature 4")
    press(browser, "Explain this feature")
    browser.wait_for_text("OPENAI_API_KEY", SECONDS)
    assert book.of(4) == []


@pytest.mark.skipif(missing_encoder() is not None, reason="no sentence encoder is installed")
def test_explore_searches_by_meaning(server, browser):
    browser.open(f"{server}/explore?{FIRST}&q=cats+and+dogs&in=explanations")
    heading(browser, "Explore")
    browser.wait_for_text("of 3 features, of 12 in all", 3 * SECONDS)
    click_row(browser, 0)
    heading(browser, "Feature 8")


def test_a_damaged_label_file_takes_no_page_away(server, browser, explained):
    path = explained / "demo" / "dictionaries" / "second" / "feature_labels.sqlite"
    path.write_text("not a database at all, but some text " * 50)
    for page, title in (("explore", "Explore"), ("feature", "Feature 0"), ("map", "Map")):
        browser.open(f"{server}/{page}?run=all%2Fdemo&sae=second")
        heading(browser, title)
        browser.wait_for_text("cannot be read or written", SECONDS)
        browser.wait_for("document.querySelector('[role=figure]')", SECONDS)
