"""Every browse page on the planted store: its numbers, its words, its alt texts, its failures."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from urllib.parse import parse_qs

import numpy as np
import pytest
from toy_store import DEAD, DENSE, IMAGE, N_FEATURES, SCRIPT, dense_codes, write_toy_store

from saelab.dashboards.pages.map import map_method
from saelab.features.labels import LabelBook
from saelab.features.reader import FeatureStore

FIRST = {"run": "all/demo", "sae": "first"}


def words(app) -> str:
    """All text of a page, with markdown escapes taken out."""
    parts = [*app.title, *app.header, *app.markdown, *app.caption, *app.info, *app.warning]
    text = "\n".join(str(part.value) for part in parts)
    return text.replace("\\", "").replace("\u2060", "")


def html_of(app) -> str:
    return "\n".join(str(block.value) for block in app.get("html"))


def links(app):
    """(label, address) of the page's links."""
    return [(link.proto.label, link.proto.query_string) for link in app.get("page_link")]


def param(app, key):
    """A parameter of the address; AppTest gives what was set there as it was set."""
    value = app.query_params[key]
    return value[0] if isinstance(value, list) else value


def assert_clean(app):
    assert not app.exception
    assert "could not be drawn" not in words(app)


def assert_charts_have_alt(app, at_least):
    charts = app.get("plotly_chart")
    assert len(charts) >= at_least
    for chart in charts:
        assert len(chart.proto.alt) > 30
        assert any(sign.isdigit() for sign in chart.proto.alt), chart.proto.alt


def test_home_lists_runs_with_numbers(open_page):
    app = open_page("home")
    assert_clean(app)
    assert app.title[0].value == "saelab"
    assert any("all/demo" in expander.label.replace("\\", "") for expander in app.expander)
    table = Rows(app)
    assert table["dictionary"] == ["first", "second"]
    assert table["L0"] == ["2.5", "2.5"] and table["FVU"] == ["0.25", "0.25"]
    assert table.links[0] == "explore?run=all%2Fdemo&sae=first"
    assert "How to read a feature" in words(app)


def test_home_leads_through_one_feature_and_names_what_is_missing(open_page):
    app = open_page("home", **FIRST)
    assert "A tour of one feature" in words(app)
    tour = next(str(b.value) for b in app.get("html") if "1. Guess" in str(b.value))
    links_of_tour = re.findall(r'href="([^"]*)"', tour)
    assert len(links_of_tour) == 6 and links_of_tour[1].endswith("tab=Random")
    commands = [code.value for code in app.code]
    assert [command.split()[1] for command in commands] == ["explain", "eval"]
    assert all(command.endswith("demo/dictionaries/first") for command in commands)


def test_navigation_keeps_the_dictionary(open_page):
    app = open_page("explore", run="all/demo", sae="second")
    pages = [address for label, address in links(app) if label in ("Home", "Map", "Compare")]
    assert pages == ["run=all%2Fdemo&sae=second"] * 3


class Rows(HTMLParser):
    """The rows of a page's linked table: by title the text, and the address."""

    def __init__(self, app):
        super().__init__()
        self.titles, self.rows, self.links, self.caption, self._text = [], [], [], "", None
        self.peeks, self._peeking = [], 0
        self.feed(next(b.value for b in app.get("html") if "saelab-table linked" in b.value))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "table":
            self.caption = attrs["aria-label"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self._text = ""
        if tag == "div" and (self._peeking or attrs.get("class") == "peek"):
            self._peeking += 1
            if self._peeking == 1:
                self.peeks.append("")
        if tag == "a" and self.titles:
            self.links.append(attrs["href"])

    def handle_data(self, data):
        if self._peeking:
            self.peeks[-1] += data
        elif self._text is not None:
            self._text += data

    def handle_endtag(self, tag):
        if tag == "div" and self._peeking:
            self._peeking -= 1
        if tag in ("th", "td"):
            self.rows[-1].append(self._text)
            self._text = None
        if tag == "thead":
            (self.titles,), self.rows = self.rows, []
            self.titles = [title.rstrip(" ▾▴") for title in self.titles]

    def __getitem__(self, title):
        return [row[self.titles.index(title)] for row in self.rows]

    @property
    def features(self):
        return list(map(int, self["feature"]))


def test_explore_lists_every_feature(open_page):
    app = open_page("explore", **FIRST)
    assert_clean(app)
    assert_charts_have_alt(app, 1)
    # Folded on a phone and elsewhere, until one of them is set.
    folded = [e.proto.expanded for e in app.expander if e.label == "Filters and order"]
    assert folded == [False]
    table = Rows(app)
    assert table.features == list(range(N_FEATURES))
    active = (dense_codes() > 0).sum(axis=(0, 1))
    shown_density = list(map(float, table["density, %"]))
    np.testing.assert_allclose(shown_density, 100 * active / 266, rtol=0.006)
    assert table["flags"][DEAD] == "dead" and table["flags"][DENSE] == "dense"
    assert table.caption.startswith("Table of 12 features")
    assert table.links[3] == "feature?run=all%2Fdemo&sae=first&f=3"
    # Every row but the dead one's shows an example when it is pointed at; its tokens are text.
    assert len(table.peeks) == N_FEATURES - 1 and all(table.peeks)
    assert SCRIPT not in html_of(app)


def test_explore_searches_filters_and_sorts_by_the_address(open_page):
    table = Rows(open_page("explore", q="cat", sort="density", desc="True", **FIRST))
    assert "top tokens" in table["found in"][0]
    densities = list(map(float, table["density, %"]))
    assert densities == sorted(densities, reverse=True) and {0, 8} <= set(table.features)
    assert Rows(open_page("explore", show="dead", **FIRST)).features == [DEAD]
    common = open_page("explore", from_="0.3", **FIRST)
    assert Rows(common).features == [DENSE]
    nothing = open_page("explore", q="zebra", **FIRST)
    assert "No feature matches" in words(nothing)
    without = Rows(open_page("explore", q="-cat", **FIRST)).features
    assert not {0, 8} & set(without) and DEAD in without
    refused = open_page("explore", q="token:/(/", **FIRST)
    assert_clean(refused)
    assert "/(/ is no regular expression: missing ) at position 1." in words(refused)


def test_explore_has_pages_and_a_new_search_begins_on_the_first(open_page, monkeypatch):
    from saelab.dashboards.widgets import feature_table

    monkeypatch.setattr(feature_table, "ROWS", 5)
    app = open_page("explore", page="3", **FIRST)
    assert Rows(app).features == [10, 11]
    app.number_input(key="explore_page").set_value(2).run()
    assert Rows(app).features == list(range(5, 10)) and param(app, "page") == "2"
    app.text_input(key="explore_q").input("-cat").run()
    assert "page" not in app.query_params and len(Rows(app).rows) == 5
    assert Rows(open_page("explore", page="99", **FIRST)).features == list(range(5))


def test_explore_writes_its_boxes_to_the_address_and_back_restores_them(open_page):
    app = open_page("explore", **FIRST)
    app.text_input(key="explore_q").input("dog").run()
    assert param(app, "q") == "dog"
    app.selectbox(key="explore_sort").select("density").run()
    assert param(app, "sort") == "density"
    # Back in the browser: the address changes under the page.
    del app.query_params["q"]
    app.query_params["sort"] = "index"
    app.run()
    assert app.text_input(key="explore_q").value == ""
    assert app.selectbox(key="explore_sort").value == "index"
    assert "q" not in app.query_params


@pytest.mark.parametrize("bad", ["-1", "12", "999999999999", "abc", "1e3", "", "٣"])
def test_feature_that_does_not_exist_is_a_sentence(open_page, bad):
    app = open_page("feature", f=bad, **FIRST)
    assert_clean(app)
    assert "features 0 to 11" in words(app)
    assert ("Open feature 0", "run=all%2Fdemo&sae=first&f=0") in links(app)


def test_feature_page_shows_every_element(open_page):
    app = open_page("feature", f="8", **FIRST)
    assert_clean(app)
    # Its charts are HTML: loading plotly.js takes longer than all else on the page.
    assert not app.get("plotly_chart") and not app.dataframe
    alts = re.findall(r'role="figure" aria-label="([^"]*)"', html_of(app))
    assert len(alts) == 2 and all(re.search("[0-9]", alt) and len(alt) > 30 for alt in alts)
    codes = dense_codes()[..., 8]
    page = html_of(app)
    assert app.title[0].value == "Feature 8"
    assert f"active on {(codes > 0).sum()} of the 266 tokens counted" in page
    assert f"<b>{codes.max():.3g}</b>" in page
    assert "+ Promoted tokens" in page and "− Suppressed tokens" in page
    steps = next(str(block.value) for block in app.get("html") if "saelab-row" in str(block.value))
    assert '<a href="feature?run=all%2Fdemo&amp;sae=first&amp;f=7">← Previous</a>' in steps
    assert '<a href="feature?run=all%2Fdemo&amp;sae=first&amp;f=9">Next →</a>' in steps
    headings = [heading.value for heading in app.header]
    assert headings == ["Examples", "Neighbours", "Label and notes"]
    assert "What the numbers were counted on" in page and "blocks" in page
    assert page.count('class="ex"') == 13


@pytest.mark.parametrize(
    ("tab", "text"),
    [
        ("Quantiles", "≤ maximum"),
        ("Random", "unbiased sample"),
        ("Near misses", "Where a neighbour is active"),
    ],
)
def test_feature_lists_by_address(open_page, tab, text):
    app = open_page("feature", f="3", tab=tab, window="full", **FIRST)
    assert_clean(app)
    assert text in words(app)
    app.segmented_control(key="feature_window").set_value("±8").run()
    assert param(app, "window") == "±8" and param(app, "f") == "3"


def test_near_misses_are_silent_and_name_the_neighbour(open_page):
    page = html_of(open_page("feature", f="3", tab="Near misses", **FIRST))
    link = (
        f'<a href="feature?run=all%2Fdemo&amp;sae=first&amp;f={DENSE}" title="Opens the neighbour">'
    )
    said = (
        f"silent here; its neighbour, {link}feature {DENSE}</a>, has activation 1.5 at the anchor"
    )
    assert said in page
    assert "activation 0" not in page


def test_a_context_is_opened_whole_with_what_is_read_around_it(world, open_page):
    app = open_page("feature", f="3", window="±8", **FIRST)
    opened = re.search(r'href="feature\?([^"]*context=(\d+))"', html_of(app))
    assert opened is not None
    app = open_page("feature", f="3", context=opened[2], window="±8", **FIRST)
    assert_clean(app)
    assert f"Context {opened[2]}, all of it" in words(app)
    panel = next(str(b.value) for b in app.get("html") if 'class="meta ctx"' in str(b.value))
    with FeatureStore(world / "demo/dictionaries/first/features.sqlite") as store:
        texts = store.context_pieces(int(opened[2])).texts
    assert panel.count('class="tok') == len(texts) > 17 and SCRIPT not in panel
    (close,) = (parse_qs(address) for label, address in links(app) if label == "Close")
    assert close == {"run": ["all/demo"], "sae": ["first"], "f": ["3"], "window": ["±8"]}
    assert "all of it" not in words(open_page("feature", f="3", context="999999", **FIRST))


def test_commands_of_empty_states_can_be_copied(open_page_of, tmp_path):
    app = open_page_of(tmp_path)("home")
    assert [code.value for code in app.code] == ["saelab quickstart"]


def test_values_can_be_printed(open_page):
    app = open_page("feature", f="3", **FIRST)
    assert "<sub>" not in html_of(app)
    app.toggle(key="feature_values").set_value(True).run()
    assert "<sub>" in html_of(app)


def test_hostile_tokens_are_text(open_page):
    for feature in ("3", "7", "9"):
        app = open_page("feature", f=feature, **FIRST)
        page = html_of(app)
        assert SCRIPT not in page and IMAGE not in page
        assert "&lt;script&gt;" in page
        # In markdown nothing of a token is a link, a formula or a colour.
        shown = "\n".join(str(part.value) for part in [*app.markdown, *app.caption])
        assert "[a](" not in shown and "$x$" not in shown and "http://" not in shown


def test_dead_feature_has_a_page(open_page):
    app = open_page("feature", f=str(DEAD), **FIRST)
    assert_clean(app)
    assert "was never active on the 266 tokens" in words(app)
    assert [heading.value for heading in app.header] == ["Neighbours", "Label and notes"]


def test_labels_are_written_beside_the_store_and_found(world, open_page):
    app = open_page("feature", f="5", **FIRST)
    app.text_input(key="text_5").input("greeting <b>")
    app.text_input(key="label_by_5").input("me")
    app.button(key="FormSubmitter:label_5-Save label").click().run()
    assert_clean(app)
    store = world / "demo" / "dictionaries" / "first" / "features.sqlite"
    book = LabelBook(store.with_name("feature_labels.sqlite"), "toyhash", N_FEATURES)
    assert [label.text for label in book.of(5)] == ["greeting <b>"]
    found = Rows(open_page("explore", q="greeting", **FIRST))
    assert found.features == [5] and found["found in"] == ["label"]
    map_page = open_page("map", colour="label", **FIRST)
    assert "whether they have a label" in map_page.get("plotly_chart")[0].proto.alt
    book.delete(book.of(5)[0].id)


def test_characters_that_turn_text_round_are_seen_in_labels_and_notes(world, open_page):
    store = world / "demo" / "dictionaries" / "first" / "features.sqlite"
    book = LabelBook(store.with_name("feature_labels.sqlite"), "toyhash", N_FEATURES)
    label = book.add(4, "good\u202edab", author="me")
    book.write_note(4, "first\u202e line\n\nthird", author="me")
    try:
        for page, params in (("explore", {}), ("feature", {"f": "4"}), ("home", {})):
            app = open_page(page, **FIRST, **params)
            assert_clean(app)
            assert "\u202e" not in html_of(app) + words(app), page
            if page != "home":
                assert "good·U+202E·dab" in html_of(app)
            if page == "feature":
                assert "first·U+202E· line\n\nthird" in html_of(app)
    finally:
        book.delete(label.id)
        book.write_note(4, "", author="me")


def test_a_wrong_label_is_refused_in_words(open_page):
    app = open_page("feature", f="5", **FIRST)
    app.text_input(key="label_by_5").input("me")
    app.button(key="FormSubmitter:label_5-Save label").click().run()
    assert "the label is empty" in words(app)


def test_map_draws_every_feature(open_page):
    app = open_page("map", **FIRST)
    assert_clean(app)
    assert_charts_have_alt(app, 1)
    spec = json.loads(app.get("plotly_chart")[0].proto.spec)
    assert {trace["type"] for trace in spec["data"]} == {"scattergl"}
    assert sum(len(trace["x"]) for trace in spec["data"]) == N_FEATURES


@pytest.mark.parametrize("other", [3, 4])
def test_compare_says_when_both_began_from_the_same_weights(world, tmp_path, open_page_of, other):
    shutil.copytree(world, tmp_path / "all")
    for name, seed in (("first", 3), ("second", other)):
        manifest_of(tmp_path, name, seed)
    app = open_page_of(tmp_path / "all")("compare", with_="all/demo › second", **FIRST)
    said = [warning.value for warning in app.warning]
    assert any("from the same initial weights" in one for one in said) == (other == 3)
    seeds = f"Seed of the initial weights</th><td>3</td><td>{other}</td>"
    assert seeds in html_of(app)


def manifest_of(folder, name, seed):
    path = folder / "all" / "demo" / "dictionaries" / name / "saelab.json"
    content = json.loads(path.read_text())
    content["seed"] = seed
    content.setdefault("config", {})["method"] = "topk"
    path.write_text(json.dumps(content))


def test_the_map_lights_hits_and_says_how_it_was_made(open_page):
    app = open_page("map", q="cat", **FIRST)
    assert "features match the search" in words(app)
    spec = json.loads(app.get("plotly_chart")[0].proto.spec)
    traces = {trace["name"]: trace for trace in spec["data"]}
    hits = traces["match the search"]["customdata"]
    assert {0, 8} <= set(hits) and len(hits) < N_FEATURES
    assert len(hits) + len(traces["others"]["customdata"]) == N_FEATURES
    # The toy's store is one of before.
    assert "Placed by PCA (40.0 % and 30.0 % of the variance), as stores were made" in words(app)
    described = {"method": "t-SNE of unit decoder rows", "kept": 0.237, "chance": 0.00217}
    assert map_method(described | {"nearest": 10}).startswith(
        "Placed by t-SNE of unit decoder rows; 23.7 % of a feature's 10 nearest by cosine are "
        "among its 10 nearest here (by chance 0.2 %)."
    )


def test_compare_matches_both_ways(open_page):
    app = open_page("compare", with_="all/demo › second", **FIRST)
    assert_clean(app)
    assert_charts_have_alt(app, 3)
    fvu = "Fraction of variance unexplained (FVU)"
    assert f"{fvu}</th><td>0.25</td><td>0.5</td>" in html_of(app)
    assert f"**{fvu}**, in 1: as planted" in words(app) and "core evaluation)" not in words(app)
    assert "12 of the 12 features of the first are shared" in words(app)
    assert "of as many random directions do" in words(app)
    assert not app.warning, "nothing says that they began from the same weights"
    assert "12 pairs are each other's nearest" in words(app)
    pairs = Rows(app)
    sums = [a + int(b) for a, b in zip(pairs.features, pairs["nearest"], strict=True)]
    assert set(sums) == {N_FEATURES - 1}
    assert DEAD not in pairs.features
    only = open_page("compare", view="only in the second", **FIRST)
    assert "No feature is of this kind" in words(only)


def test_address_of_another_folder_is_refused(open_page, tmp_path):
    for run in ("../../etc", str(tmp_path), "all/../all/demo", "all%2Fdemo", "nothing"):
        app = open_page("explore", run=run, sae="first")
        assert_clean(app)
        assert "not below the folders given" in words(app)
        assert not app.dataframe
    app = open_page("feature", run="all/demo", sae="../first", f="0")
    assert "has no dictionary" in words(app)


def test_empty_and_missing_folders_are_sentences(open_page_of, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    app = open_page_of(empty, tmp_path / "missing")("home")
    assert_clean(app)
    assert "Nothing to show yet" in words(app) and "does not exist" in words(app)
    for page in ("explore", "feature", "map", "compare"):
        app = open_page_of(empty)(page)
        assert_clean(app)
        assert "No dictionary lies below" in words(app)


@pytest.mark.parametrize("damage", ["empty", "foreign", "half", "newer", "missing"])
def test_damaged_stores_are_sentences(open_page_of, tmp_path, damage):
    import sqlite3

    folder = tmp_path / "runs"
    store = write_toy_store(folder / "dictionary" / "features.sqlite")
    if damage == "empty":
        store.write_bytes(b"")
    elif damage == "foreign":
        store.write_text("not a database at all, but some text " * 50)
    elif damage == "half":
        content = store.read_bytes()
        store.write_bytes(content[: len(content) // 2])
    elif damage == "newer":
        connection = sqlite3.connect(store)
        (text,) = connection.execute("SELECT content FROM manifest").fetchone()
        newer = json.dumps(json.loads(text) | {"schema_version": 99})
        connection.execute("UPDATE manifest SET content = ?", (newer,))
        connection.commit()
        connection.close()
    else:
        (folder / "dictionary" / "cfg.json").write_text("{}")
        store.unlink()
    for page in ("home", "explore", "feature", "map"):
        app = open_page_of(folder)(page)
        assert_clean(app)
        if page != "home" or damage != "missing":
            text = words(app)
            assert "features.sqlite" in text or "saelab features" in text, (page, damage, text)


def test_damaged_manifests_are_sentences(open_page_of, tmp_path, world):
    folder = tmp_path / "runs"
    shutil.copytree(world, folder)
    (folder / "demo" / "run.json").write_text('{"kind": "training_run", "sch')
    (folder / "demo" / "dictionaries" / "first" / "saelab.json").write_text("[1, 2]")
    app = open_page_of(folder)("home")
    assert_clean(app)
    assert "run.json is not valid JSON" in words(app)
    assert "saelab.json is not a saelab manifest" in words(app)


def test_a_store_of_another_checkpoint_says_so(open_page_of, tmp_path, world):
    folder = tmp_path / "runs"
    shutil.copytree(world, folder)
    manifest = folder / "demo" / "dictionaries" / "first" / "saelab.json"
    manifest.write_text(manifest.read_text().replace("0" * 64, "f" * 64))
    app = open_page_of(folder)("feature", f="0", run="runs/demo", sae="first")
    assert "different checkpoint" in words(app)


def test_pages_of_adopted_rows_speak_of_rows(open_page, monkeypatch):
    from saelab.dashboards.widgets import feature_html

    monkeypatch.setattr(feature_html, "shows_rows", lambda store: True)
    for page, params in (("explore", {}), ("feature", {"f": "3"}), ("feature", {"f": str(DEAD)})):
        app = open_page(page, **FIRST, **params)
        assert_clean(app)
        charts = [chart.proto.alt + chart.proto.spec for chart in app.get("plotly_chart")]
        said = [*words(app).splitlines(), *charts]
        assert [text for text in said if "tokens" in text and "logit" not in text.lower()] == []
        said.append(html_of(app))
        assert any(" rows" in text for text in said)
        assert "Tokens on either side" not in [group.label for group in app.get("button_group")]
        assert "tokens counted" not in html_of(app)
