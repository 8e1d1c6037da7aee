"""A walk by keyboard alone: Tab reaches what there is, where it stands is seen, Enter follows."""

import json

import pytest
from browser import MISSING, Browser
from served import SECONDS, dashboard_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MISSING, reason="no Chromium is installed"),
]
FIRST = "run=all%2Fdemo&sae=first"
MOST_STEPS = 90
KEYS = {"Tab": 9, "Enter": 13}
FOCUSED = """(async () => {
  const e = document.activeElement, box = e.getBoundingClientRect();
  if (e === document.body) return {name: "", end: true, seen: true};
  // Some boxes are see-through, and what is drawn for them is beside or around them.
  const around = [e, e.parentElement, e.parentElement.parentElement];
  const drawn = [...around, ...around[1].children].filter(x => x.getBoundingClientRect().width > 7);
  const looks = () => drawn.filter(x => getComputedStyle(x).opacity > 0).map(x => {
    const s = getComputedStyle(x);
    return [s.outlineStyle, s.boxShadow, s.borderColor, s.backgroundColor].join();
  }).join(";");
  const next = () => new Promise(requestAnimationFrame);
  const told = {
    name: (e.ariaLabel || e.innerText || e.value || "").trim().replace(/\\s+/g, " ").slice(0, 60),
    kind: e.tagName.toLowerCase(), row: Boolean(e.closest(".linked tbody")),
    peek: e.closest("tr")?.querySelector(".peek")?.checkVisibility() || false, end: false,
  };
  await next();
  const focused = looks(), inside = box.bottom > 0 && box.top < innerHeight;
  e.blur();
  await next(); await next();
  const seen = inside && focused !== looks();
  e.focus({preventScroll: true, focusVisible: true});
  return {...told, seen, html: e.outerHTML.slice(0, 160)};
})()"""
"""What has the focus, and whether it looks otherwise without it."""


@pytest.fixture(scope="module")
def browser(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with dashboard_of(world, folder) as address:
        opened = Browser(folder / "profile")
        # Nothing moves: what is drawn is what will be.
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        opened.call("Emulation.setEmulatedMedia", features=[still])
        opened.server = address
        yield opened
        opened.close()


def opened(browser, page, title):
    browser.open(f"{browser.server}/{page}")
    heading(browser, title)


def heading(browser, title):
    named = f"some(h => h.innerText.trim() === {json.dumps(title)})"
    browser.wait_for(f"[...document.querySelectorAll('h1')].{named}", SECONDS)
    browser.wait_until_still(SECONDS)


def press(browser, key):
    for kind in ("rawKeyDown", "char", "keyUp") if key == "Enter" else ("rawKeyDown", "keyUp"):
        text = {"text": "\r"} if kind == "char" else {}
        browser.call(
            "Input.dispatchKeyEvent",
            type=kind,
            key=key,
            code=key,
            windowsVirtualKeyCode=KEYS[key],
            **text,
        )


def focused(browser):
    answer = browser.call(
        "Runtime.evaluate", expression=FOCUSED, awaitPromise=True, returnByValue=True
    )
    return answer["result"]["value"]


def walk(browser, until=lambda stop: False):
    """What Tab reaches, in turn, until one is what is looked for, or the page ends."""
    stops = []
    for _ in range(MOST_STEPS):
        press(browser, "Tab")
        stops.append(focused(browser))
        if stops[-1]["end"] or until(stops[-1]):
            break
    return stops


def in_order(stops, names):
    """Whether they are reached in this order, with others between."""
    reached = iter(stop["name"] for stop in stops)
    return all(any(name in at for at in reached) for name in names)


def unseen(stops):
    return [stop for stop in stops if not stop["seen"] and not stop["end"]]


def test_explore_is_walked_from_the_search_to_a_feature(browser):
    opened(browser, f"explore?{FIRST}", "Explore")
    stops = walk(browser, lambda stop: stop["row"])
    expected = ("Home", "Map", "Evals", "Search", "Filters and order", "density", "0")
    assert in_order(stops, expected), stops
    assert unseen(stops) == []
    assert stops[-1]["peek"], "the row that has the focus shows its example"
    press(browser, "Tab")
    assert focused(browser)["name"] == "1"
    press(browser, "Enter")
    heading(browser, "Feature 1")
    assert browser.evaluate("location.search").endswith("f=1")


def test_a_feature_is_walked_by_its_links_lists_and_buttons(browser):
    opened(browser, f"feature?{FIRST}&f=3", "Feature 3")
    stops = walk(browser)
    expected = ("Previous", "Next", "Random", "All features", "Share", "Add to a list", "Top")
    assert in_order(stops, expected), [stop["name"] for stop in stops]
    assert in_order(stops, ("Top", "context", "Save label", "Save note", "Provenance"))
    assert unseen(stops) == []
    opened(browser, f"feature?{FIRST}&f=3", "Feature 3")
    walk(browser, lambda stop: "Next" in stop["name"])
    press(browser, "Enter")
    heading(browser, "Feature 4")


def test_home_leads_to_a_feature_and_a_list_is_made_by_keyboard(browser):
    opened(browser, f"?{FIRST}", "saelab")
    stops = walk(browser, lambda stop: stop["name"].startswith("1. Guess"))
    assert unseen(stops) == []
    press(browser, "Enter")
    browser.wait_for("location.pathname.endsWith('/feature')", SECONDS)
    opened(browser, "lists", "Lists")
    stops = walk(browser)
    assert in_order(stops, ("Name", "Description", "Make it", "Upload", "Import"))
    assert unseen(stops) == []
