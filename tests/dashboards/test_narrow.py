"""Every page on a phone and on a small screen, in a real browser: nothing is cut or squeezed."""

import json

import pytest
from browser import MISSING, Browser
from served import SECONDS, dashboard_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MISSING, reason="no Chromium is installed"),
]
FIRST = "run=all%2Fdemo&sae=first"
PAGES = {
    "": "saelab",
    f"explore?{FIRST}": "Explore",
    f"feature?{FIRST}&f=3&tab=Quantiles": "Feature 3",
    f"map?{FIRST}": "Map",
    f"compare?{FIRST}&with=all%2Fdemo+%E2%80%BA+second": "Compare",
    "training": "Training",
    f"evals?{FIRST}": "Evals",
    f"prompt?{FIRST}": "Prompt",
    f"steer?{FIRST}": "Steer",
}
MEASURED = """(() => {
  const main = document.querySelector("[data-testid=stMain]");
  const all = selector => [...document.querySelectorAll(selector)].filter(e => e.checkVisibility());
  const width = e => e.getBoundingClientRect().width;
  const line = e => parseFloat(getComputedStyle(e).lineHeight);
  return {
    over: main.scrollWidth - main.clientWidth,
    plots: all(".js-plotly-plot").map(width),
    definitions: all(".defined td:last-child").map(e => width(e) / (line(e) / 3)),
    broken: all(".saelab-table .token, .saelab-strip dt").filter(
      e => e.getBoundingClientRect().height > 1.9 * line(e)).map(e => e.innerText),
    cells: all(".linked td:not(.number)").filter(
      e => e.scrollWidth > e.clientWidth && getComputedStyle(e).textOverflow !== "ellipsis").length,
  };
})()"""


@pytest.fixture(scope="module")
def server(world, tmp_path_factory):
    with dashboard_of(world, tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.mark.parametrize("width", [390, 1024])
def test_no_page_is_cut_or_squeezed(server, tmp_path, width):
    browser = Browser(tmp_path / "profile")
    seen = {"plots": 0, "definitions": 0}
    try:
        browser.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        for page, title in PAGES.items():
            browser.open(f"{server}/{page}")
            named = f"some(h => h.innerText.trim() === {json.dumps(title)})"
            browser.wait_for(f"[...document.querySelectorAll('h1')].{named}", SECONDS)
            browser.wait_until_still(SECONDS)
            browser.wait_for(
                "[...document.querySelectorAll('[data-testid=stPlotlyChart]')]"
                ".every(e => e.querySelector('.js-plotly-plot .main-svg'))",
                SECONDS,
            )
            measured = browser.evaluate(MEASURED)
            assert measured["over"] <= 1, (page, measured)
            assert min(measured["plots"], default=999) >= 280, (page, measured)
            assert min(measured["definitions"], default=999) >= 24, (page, measured)
            assert measured["broken"] == [] and measured["cells"] == 0, (page, measured)
            for name in seen:
                seen[name] += len(measured[name])
    finally:
        browser.close()
    assert all(seen.values()), seen
