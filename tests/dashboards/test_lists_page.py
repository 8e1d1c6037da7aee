"""Lists in the dashboard: collected on the pages, read, steered, compared, and exchanged."""

import shutil
from urllib.parse import parse_qs, urlsplit

import pytest
from test_live_pages import html_of, words
from toy_store import N_FEATURES

from saelab.dashboards.run_index import scan
from saelab.dashboards.widgets.cards import list_html
from saelab.features.lists import FeatureList, ListedFeature, shelf_of

FIRST = {"run": "all/demo", "sae": "first"}


@pytest.fixture
def root(world, tmp_path):
    return shutil.copytree(world, tmp_path / "all")


def item(feature, dictionary="toyhash", note=""):
    return ListedFeature(dictionary=dictionary, name="first", feature=feature, note=note)


def button(app, label):
    return next(each for each in app.button if each.label == label)


def test_a_feature_is_added_on_its_page_and_to_the_same_list_again(open_page_of, root):
    app = open_page_of(root)("feature", **FIRST, f="3")
    app.text_input(key="feature_3_name").set_value("Kings")
    app.text_area(key="feature_3_note").set_value("a\nb")
    button(app, "Add").click().run()
    assert not app.exception and not app.warning
    (kept,), _ = shelf_of([root]).all()
    assert kept.features == (item(3, note="a\nb"),)
    app = open_page_of(root)("feature", **{**FIRST, "sae": "second"}, f="4")
    app.selectbox(key="feature_4_id").set_value(kept.id)
    button(app, "Add").click().run()
    assert [i.dictionary for i in shelf_of([root]).of(kept.id).features] == ["toyhash", "otherhash"]
    app.text_input(key="feature_4_name").set_value("Kings")
    app.selectbox(key="feature_4_id").set_value("")
    button(app, "Add").click().run()
    assert "there is a list 'Kings' already" in words(app)


def test_rows_of_explore_are_added_as_searched_or_as_chosen(open_page_of, root):
    app = open_page_of(root)("explore", **FIRST, q="cat")
    app.text_input(key="explore_name").set_value("Cats")
    button(app, "Add").click().run()
    (kept,), _ = shelf_of([root]).all()
    shown = app.multiselect(key="explore_which").options
    assert [str(i.feature) for i in kept.features] == shown and shown
    app.multiselect(key="explore_which").set_value([int(shown[-1])])
    app.text_input(key="explore_name").set_value("One cat")
    app.selectbox(key="explore_id").set_value("")
    button(app, "Add").click().run()
    assert {len(each.features) for each in shelf_of([root]).all()[0]} == {len(shown), 1}


def test_a_list_is_a_page(open_page_of, root):
    shelf = shelf_of([root])
    items = [item(feature) for feature in range(10)]
    items += [item(5, "otherhash", "<b>\u202e"), item(1, "elsewhere")]
    kept = shelf.add(FeatureList(name="War \u202e", description="a\nb").with_features(items))
    app = open_page_of(root)("lists", **FIRST)
    assert not app.exception and "War ·U+202E·" in html_of(app)
    app = open_page_of(root)("lists", **FIRST, list_=kept.id)
    assert not app.exception and not app.warning
    assert app.title[0].value == "War ·U\\+202E·"
    assert kept.sha256[:12] in words(app) and "12 features of first" in words(app)
    page = html_of(app)
    assert page.count('<article class="saelab-card">') == 12
    assert "&lt;b&gt;" in page and "\u202e" not in page
    assert "no feature store of this dictionary is here" in page
    (chart,) = app.get("plotly_chart")
    assert "cosine" in chart.proto.alt
    steer = [
        urlsplit(link.proto.page) for link in app.get("page_link") if "Steer w" in link.proto.label
    ]
    assert len(steer) == 2, "one for each dictionary that is here"
    labels = [link.proto.label.replace("\\", "") for link in app.get("page_link")]
    assert "Steer with the first 8 of first" in labels and "Steer with all of second" in labels


def test_the_link_to_steering_names_eight_features(open_page_of, root):
    kept = shelf_of([root]).add(FeatureList(name="n").with_features(map(item, range(10))))
    app = open_page_of(root)("lists", **FIRST, list_=kept.id)
    (link,) = [link.proto for link in app.get("page_link") if "Steer with" in link.proto.label]
    query = parse_qs(link.query_string)
    assert query["n"] == ["8"] and [query[f"f{n}"] for n in range(1, 9)] == [
        [str(n)] for n in range(8)
    ]


def test_a_list_is_named_ordered_and_removed(open_page_of, root):
    shelf = shelf_of([root])
    kept = shelf.add(FeatureList(name="n").with_features(map(item, range(3))))
    app = open_page_of(root)("lists", **FIRST, list_=kept.id)
    next(t for t in app.text_input if t.label == "Name").set_value("A better name")
    button(app, "Save").click().run()
    assert shelf.of(kept.id).name == "A better name" and app.title[0].value == "A better name"
    next(c for c in app.checkbox if "Remove" in c.label).set_value(True)
    button(app, "Save").click().run()
    assert shelf.all() == ([], []) and app.title[0].value == "Lists"
    next(t for t in app.text_input if t.label == "Name").set_value("New")
    button(app, "Make it").click().run()
    assert [each.name for each in shelf.all()[0]] == ["New"] and app.title[0].value == "New"


def test_a_list_is_put_in_order_and_keeps_what_others_add_meanwhile(open_page_of, root):
    from saelab.dashboards.pages.lists import rearranged

    shelf = shelf_of([root])
    items = [item(0), item(1, note="x"), item(2)]
    kept = shelf.add(FeatureList(name="n", features=tuple(items)))
    app = open_page_of(root)("lists", **FIRST, list_=kept.id)
    button(app, "Save the order and the notes").click().run()
    assert not app.exception and shelf.of(kept.id).features == kept.features
    old = kept.with_features([item(7)])
    edited = {"order": [3, None, 1], "keep": [True, True, True], "note": ["a", None, " b "]}
    assert rearranged(old, items, edited).features == (
        item(2, note="b"),
        item(0, note="a"),
        item(1),
        item(7),
    )
    edited["keep"] = [False, True, False]
    assert rearranged(old, items, edited).features == (item(1), item(7))


def test_a_damaged_list_is_a_sentence(open_page_of, root):
    shelf = shelf_of([root])
    _, hurt = (shelf.add(FeatureList(name=name)) for name in ("whole", "hurt"))
    path = shelf.folder / f"{hurt.id}.list.json"
    path.write_bytes(path.read_bytes()[:50])
    app = open_page_of(root)("lists", **FIRST)
    assert path.name in words(app) and "whole" in html_of(app)
    app = open_page_of(root)("lists", **FIRST, list_=hurt.id)
    assert not app.exception and path.name in words(app)
    app = open_page_of(root)("lists", **FIRST, list_="../../etc/passwd")
    assert not app.exception and "there is no list" in words(app)
    app = open_page_of(root)("feature", **FIRST, f="3")
    assert app.title and not app.exception


def test_a_feature_or_a_list_is_shared_as_one_file(root, tmp_path, capsys):
    from saelab.dashboards.share_command import main
    from saelab.errors import ConfigError

    items = [item(feature, note="\u202e<script>") for feature in range(N_FEATURES)]
    kept = shelf_of([root]).add(FeatureList(name="All").with_features(items))
    main([str(root), "--list-name", "All", "--out", str(tmp_path / "list.html")])
    page = (tmp_path / "list.html").read_text()
    assert page == list_html(kept, scan([root]))
    assert page.count("<article") == N_FEATURES and kept.sha256 in page
    assert "<script" not in page and "\u202e" not in page
    for words_, message in (
        (["--list-name", "Nothing"], "there is no list 'Nothing': 'All'"),
        (["--feature", "3"], "name one by --dictionary"),
        (["--feature", "99", "--dictionary", "first"], "feature 99 does not exist"),
        ([], "one of the two"),
    ):
        with pytest.raises(ConfigError, match=message):
            main([str(root), *words_, "--out", str(tmp_path / "b.html")])
    words_ = [
        "--feature",
        "3",
        "--dictionary",
        "all/demo/second",
        "--out",
        str(tmp_path / "a.html"),
    ]
    main([str(root), *words_])
    assert "second · feature 3" in (tmp_path / "a.html").read_text()
    with pytest.raises(ConfigError, match="exists already"):
        main([str(root), *words_])
    assert "shared: " in capsys.readouterr().out
