"""The main path in a real browser: Home, Explore, feature, Back; nothing leaves the machine.

What needs a browser is skipped where no Chromium is installed, except in CI: AppTest covers the
pages' content, this the addresses, the Back button, the escaping and the network.
"""

import http.client
import json
import socket
import time
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest
from browser import MISSING, Browser
from served import SECONDS, dashboard_of
from sessions import visit
from toy_store import dense_codes

from saelab.formats.lock import writer_lock

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
def test_a_row_of_explore_is_a_link_wherever_it_is_clicked(server, browser):
    """It shows an example when pointed at, stays in the session, and Back finds the search."""
    browser.open(f"{server}/explore?run=all%2Fdemo&sae=first&q=-zebra&sort=density&desc=True")
    heading(browser, "Explore")
    row = "document.querySelectorAll('.linked tbody tr')[2]"
    browser.wait_for(f"{row}?.querySelector('.peek .tok')", SECONDS)
    assert browser.evaluate(f"getComputedStyle({row}.querySelector('.peek')).display") == "none"
    at = browser.evaluate(
        f"(() => {{{row}.scrollIntoView({{block: 'center'}});"
        f"const box = {row}.getBoundingClientRect(), last = {row}.lastElementChild;"
        "return {x: last.getBoundingClientRect().x + 5, y: box.y + box.height / 2}})()"
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", **at)
    browser.wait_for(f"getComputedStyle({row}.querySelector('.peek')).display === 'block'", SECONDS)
    link = browser.evaluate(f"{row}.querySelector('a').href")
    entries = browser.evaluate("history.length")
    sockets = [url for url in browser.requests if url.startswith("ws")]
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)
    heading(browser, f"Feature {parse_qs(urlparse(link).query)['f'][0]}")
    assert browser.evaluate("location.href") == link
    assert browser.evaluate("history.length") == entries + 1
    assert [url for url in browser.requests if url.startswith("ws")] == sockets
    browser.evaluate("history.back()")
    heading(browser, "Explore")
    assert address_of(browser)[1]["q"] == "-zebra"
    browser.wait_for("document.querySelector('.linked th[aria-sort=descending]')", SECONDS)
    # The title of a column sorts by it; the other way round the second time.
    title = "[...document.querySelectorAll('.linked thead a')].find(a => /^density/.test(a.text))"
    browser.evaluate(f"{title}.click()")
    browser.wait_for("document.querySelector('.linked th[aria-sort=ascending]')", SECONDS)
    assert "desc" not in address_of(browser)[1] and address_of(browser)[1]["sort"] == "density"
    assert browser.console == []


@needs_browser
def test_two_dictionaries_are_compared(server, browser):
    browser.open(f"{server}/compare?run=all%2Fdemo&sae=first&with=all%2Fdemo+%E2%80%BA+second")
    heading(browser, "Compare")
    browser.wait_for("document.querySelectorAll('[role=figure]').length > 1", SECONDS)
    assert browser.console == []


@needs_browser
def test_a_click_on_the_map_opens_the_feature(server, browser):
    browser.open(f"{server}/map?run=all%2Fdemo&sae=first")
    heading(browser, "Map")
    browser.wait_for("document.querySelector('.js-plotly-plot')?._fullData?.length", SECONDS)
    spot = browser.evaluate(
        "(() => {const plot = document.querySelector('.js-plotly-plot');"
        "plot.scrollIntoView({block: 'center'});"
        "const {xaxis, yaxis} = plot._fullLayout, all = plot._fullData[0];"
        "const corner = plot.getBoundingClientRect();"
        "return {feature: all.customdata[0], x: corner.x + xaxis._offset + xaxis.d2p(all.x[0]),"
        "y: corner.y + yaxis._offset + yaxis.d2p(all.y[0])}})()"
    )
    at = {"x": spot["x"], "y": spot["y"]}
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", **at)
    # Plotly looks for the point below the pointer a moment later.
    browser.wait_for("document.querySelector('.hoverlayer .hovertext')", SECONDS)
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)
    heading(browser, f"Feature {spot['feature']}")


@needs_browser
def test_a_run_under_way_never_goes_blank(tmp_path, browser):
    """Its first drawing takes longer than a look; lines come in all the while."""
    run = tmp_path / "runs" / "going"
    run.mkdir(parents=True)
    about = {"kind": "training_run", "schema_version": 1, "status": "running"}
    about |= {"created": "2026-01-01T00:00:00+00:00", "config": {"n_tokens": 10**7}}
    (run / "run.json").write_text(json.dumps(about))

    def lines(start, end):
        names = ("loss", "fvu", "l0", "dead_fraction", "density_q50")
        return "".join(
            json.dumps(
                {"step": n, "dictionary": "a", "tokens": 100 * n} | dict.fromkeys(names, 0.5)
            )
            + "\n"
            for n in range(start, end)
        )

    log, n = run / "metrics.jsonl", 20_000
    log.write_text(lines(1, n))
    (tmp_path / "server").mkdir()
    with writer_lock(run), dashboard_of(tmp_path / "runs", tmp_path / "server") as address:
        browser.open(f"{address}/training")
        charts = "document.querySelectorAll('.js-plotly-plot').length"
        browser.wait_for(f"{charts} >= 5", SECONDS)
        first = browser.evaluate("document.body.innerText")
        for _ in range(40):
            with log.open("a") as file:
                file.write(lines(n, n + 10))
            n += 10
            time.sleep(0.25)
            assert browser.evaluate(charts) >= 5
        assert "runs/going: running" in first
        browser.wait_for_text(f"{100 * (n - 1):,} tokens of 10,000,000", SECONDS)
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


HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "c2FlbGFiIGRhc2hib2FyZA==",
    "Sec-WebSocket-Version": "13",
}


def test_pages_of_other_sites_are_refused_and_the_network_is_asked_nothing(world, tmp_path):
    """A name that resolves to this machine reads nothing; an Origin is looked up nowhere."""
    with socket.create_server(("127.0.0.1", 0)) as outside:
        proxy = f"http://127.0.0.1:{outside.getsockname()[1]}"
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), proxy)
        with dashboard_of(world, tmp_path, **proxies) as address:
            port = int(address.rsplit(":", 1)[1])

            def statuses(host, origin):
                asked = {"Host": host} | ({} if origin is None else {"Origin": origin})
                for path, more in (("/", {}), ("/_stcore/stream", HANDSHAKE)):
                    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
                    connection.request("GET", path, headers={**asked, **more})
                    yield connection.getresponse().status
                    connection.close()

            for host in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost:9000"):
                for origin in (None, f"http://{host}"):
                    assert list(statuses(host, origin)) == [200, 101], (host, origin)
            own, evil = f"127.0.0.1:{port}", f"evil.example:{port}"
            for host, origin in (
                (evil, None),
                (evil, f"http://{evil}"),
                (own, f"http://{evil}"),
                (own, "http://127.0.0.1:1"),
                (own, "null"),
            ):
                assert list(statuses(host, origin)) == [403, 403], (host, origin)
        outside.setblocking(False)
        with pytest.raises(BlockingIOError):
            outside.accept()
