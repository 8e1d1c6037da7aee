"""Prompt and Steer on a tiny language model: their numbers, links, hostile texts and failures."""

from __future__ import annotations

import re
import shutil
from urllib.parse import parse_qs, urlsplit

import pytest
import streamlit as st
import torch
from live_world import HOOK, TEXT, tiny_dictionary, write_live_run
from toy_store import N_FEATURES, page_opener

from saelab.dashboards.app import FOLLOW_LINKS

HERE = {"run": "live", "sae": "tiny"}
HOSTILE = [
    "<script>document.title='HACKED'</script>",
    "🙂 e\u0301 \u200b end",
    "שלום עולם مرحبا",
    "line\nbreak\ttab \"quotes\" 'single' &amp; <b>bold</b>",
    "$x$ **b** [a](http://evil.example) :red[r]",
    "=cmd()",
]


@pytest.fixture(scope="module")
def live_root(tiny_model, tmp_path_factory):
    root = tmp_path_factory.mktemp("pages") / "live"
    write_live_run(root / "tiny", tiny_model)
    return root


@pytest.fixture
def open_live(live_root, monkeypatch):
    opener = page_opener(monkeypatch, live_root)
    return lambda name, **params: opener(name, **HERE, **params)


def words(app):
    parts = [*app.title, *app.subheader, *app.markdown, *app.caption, *app.info, *app.warning]
    return "\n".join(str(part.value) for part in parts).replace("\\", "").replace("\u2060", "")


def html_of(app):
    blocks = [str(block.value) for block in app.get("html")]
    return "\n".join(block for block in blocks if block != FOLLOW_LINKS)


def assert_clean(app):
    assert not app.exception
    assert not app.warning, words(app)
    for chart in app.get("plotly_chart"):
        assert len(chart.proto.alt) > 30 and re.search(r"\d", chart.proto.alt)


def reading_of(model, text):
    """Dense codes of the counted positions, by the dictionary alone."""
    ids = [model.bos_id, *model.tokenize([text])[0]]
    x = model.capture(torch.tensor([ids]), [HOOK])[HOOK][0].float()
    return ids, tiny_dictionary().encode_dense(x[1:])


def test_prompt_shows_the_active_features_of_a_text(open_live, tiny_model):
    app = open_live("prompt", text=TEXT)
    assert_clean(app)
    ids, codes = reading_of(tiny_model, TEXT)
    assert app.text_area[0].value == TEXT
    n_features = int((codes > 0).any(0).sum())
    l0 = float((codes > 0).sum(1).double().mean())
    said = f"{len(ids) - 1} tokens that count, {l0:.1f} active features per token, {n_features} d"
    assert said in words(app)
    assert app.radio(key="prompt_order").value == "relative", "raw strength is no default"
    app.radio(key="prompt_order").set_value("strength").run()
    table = app.dataframe[0].value
    peak, place = codes.max(0)
    expected = sorted(peak.nonzero().flatten().tolist(), key=lambda f: -float(peak[f]))
    assert table["feature"].tolist() == expected
    assert table["largest activation"].tolist() == pytest.approx(peak[expected].tolist(), rel=1e-4)
    assert table["tokens"].tolist() == (codes[:, expected] > 0).sum(0).tolist()
    text_of = dict(enumerate(tiny_model.token_strings(ids)[1:]))
    assert table["at the token"].tolist() == [text_of[int(place[f])] for f in expected]


def test_a_text_is_tried_on_the_feature_s_own_page(open_live, tiny_model):
    _, codes = reading_of(tiny_model, TEXT)
    feature = int(codes.amax(0).argmax())
    app = open_live("feature", f=str(feature))
    assert_clean(app)
    assert "largest activation" not in words(app), "the model is loaded when it is asked for"
    app.text_area(key="feature_text").set_value(TEXT).run()
    assert_clean(app)
    peak = float(codes[:, feature].max())
    active = int((codes[:, feature] > 0).sum())
    assert f"Active on {active} of {len(codes)} tokens, largest activation {peak:.3g}" in words(app)
    assert f"<sub>{peak:.3g}</sub>" in html_of(app)
    app.text_area(key="feature_text").set_value(HOSTILE[0]).run()
    assert_clean(app)
    assert "<script>" not in html_of(app)


def test_every_feature_of_the_prompt_page_is_a_real_link(open_live):
    page = html_of(open_live("prompt", text=TEXT))
    links = [urlsplit(found.replace("&amp;", "&")) for found in re.findall(r'href="([^"]+)"', page)]
    assert len(links) > 20
    for link in links:
        query = {name: values[0] for name, values in parse_qs(link.query).items()}
        assert link.path == "feature" and not link.netloc
        assert query["run"] == "live" and query["sae"] == "tiny"
        assert 0 <= int(query["f"]) < N_FEATURES


def test_sort_and_ceiling_come_from_the_address_and_go_back_there(open_live):
    app = open_live("prompt", text=TEXT, order="rarity", dens="0.1")
    assert_clean(app)
    density = app.dataframe[0].value["density, %"].tolist()
    assert density == sorted(density) and max(density) <= 10
    assert "above the density ceiling are hidden" in words(app)
    app.radio(key="prompt_order").set_value("strength").run()
    assert app.query_params["order"] == "strength"
    app.radio(key="prompt_order").set_value("relative").run()
    assert "order" not in app.query_params
    shares = app.dataframe[0].value["share of its maximum"].dropna().tolist()
    assert shares == sorted(shares, reverse=True)
    app.text_area(key="prompt_text").set_value("a small boat").run()
    assert app.query_params["text"] == "a small boat"


def test_a_feature_in_the_address_is_highlighted(open_live, tiny_model):
    _, codes = reading_of(tiny_model, TEXT)
    active = codes.amax(0) > 0
    last = int(codes.amax(0).masked_fill(~active, float("inf")).argmin())
    app = open_live("prompt", text=TEXT, f=str(last))
    assert_clean(app)
    assert app.selectbox(key="prompt_hl").value == last
    assert "hl" not in app.query_params
    app = open_live("prompt", text="the", f="999")
    assert "Feature 999 is not active in this text" in words(app)


def test_a_ceiling_that_hides_everything_is_said(open_live):
    app = open_live("prompt", text=TEXT, dens="1e-05")
    assert "No active feature is as rare as that" in words(app) or app.dataframe
    assert not app.exception


@pytest.mark.parametrize("mode", ["read", "contrast", "attribute"])
def test_hostile_texts_are_shown_and_never_run(open_live, mode):
    text = "\n".join(HOSTILE)
    app = open_live("prompt", mode=mode, text=text, a=text, b="the king")
    assert_clean(app)
    page = html_of(app)
    assert "<script>" not in page and "<b>bold" not in page
    for block in app.markdown:
        assert "](http" not in block.value and ":red[" not in block.value


@pytest.mark.parametrize("mode", ["read", "contrast", "attribute"])
def test_empty_texts_get_a_sentence(open_live, mode):
    app = open_live("prompt", mode=mode, text="x", a="x", b="y")
    for box in app.text_area:
        box.set_value(" \n\n ")
    app.run()
    assert not app.exception and not app.warning
    assert re.search(r"Type a text|at least one text", words(app))


def test_a_long_text_is_cut_and_said(open_live):
    app = open_live("prompt", text="the river " * 390)
    assert_clean(app)
    assert re.search(r"its first 128 tokens are read, \d+ are left out", words(app))


def test_contrast_lists_what_differs(open_live, tiny_model):
    a, b = ["the king met the queen", "the old mill"], ["a small boat on the river"]
    app = open_live("prompt", mode="contrast", a="\n".join(a), b="\n".join(b))
    assert_clean(app)
    one, other = (
        torch.cat([reading_of(tiny_model, text)[1] for text in texts]).double() for texts in (a, b)
    )
    difference = one.mean(0) - other.mean(0)
    squares = sum(((side - side.mean(0)) ** 2).sum(0) for side in (one, other))
    effect = difference / (squares / (len(one) + len(other) - 2)).sqrt()
    for place, sign in ((1, 1), (2, -1)):
        table = app.dataframe[place].value
        expected = [f for f in range(N_FEATURES) if sign * difference[f] > 0]
        expected.sort(key=lambda f: -abs(float(difference[f])))
        assert table["feature"].tolist() == expected
        assert table["A − B"].tolist() == pytest.approx(difference[expected].tolist(), rel=1e-4)
        assert table["effect size"].tolist() == pytest.approx(effect[expected].tolist(), rel=1e-4)
    assert "Cohen's d" in words(app)


def test_attribution_names_its_parts_and_keeps_the_token_in_the_address(open_live, tiny_model):
    ids, _ = reading_of(tiny_model, TEXT)
    target = tiny_model.tokenize([" the"])[0][0]
    app = open_live("prompt", mode="attribute", text=TEXT, next=str(target))
    assert_clean(app)
    x, gradient, value = tiny_model.next_token_gradients(torch.tensor(ids), HOOK, target)
    total = float((x.double() * gradient.double()).sum())
    said = words(app)
    assert f"The logit of “ the” after this text is {value:.4g}" in said
    assert float(re.search(r"adds up to (-?[\d.e-]+): ", said)[1]) == pytest.approx(total, rel=1e-3)
    table = app.dataframe[1].value if len(app.dataframe) > 2 else app.dataframe[-1].value
    assert len(app.get("plotly_chart")) == 2
    dictionary = tiny_dictionary()
    codes = dictionary.encode_dense(x[1:].float()).double()
    expected = (codes * (gradient[1:].double() @ dictionary.W_dec.double().T)).sum(0)
    frames = [f.value for f in app.dataframe if "attribution" in f.value.columns]
    (table,) = frames
    for feature, found in zip(table["feature"], table["attribution"], strict=True):
        assert found == pytest.approx(float(expected[feature]), rel=1e-3, abs=1e-5)
    app.radio(key="prompt_of").set_value("log_probability").run()
    assert app.query_params["of"] == "log_probability"
    assert app.query_params["next"] == str(target)


def test_a_typed_token_must_be_one(open_live):
    app = open_live("prompt", mode="attribute", text=TEXT, next="-1")
    app.selectbox(key="prompt_next").set_value(-1).run()
    assert "Type the token to explain" in words(app)
    app.text_input(key="prompt_typed").set_value("king of the old river").run()
    assert "is not one token" in words(app)
    app.text_input(key="prompt_typed").set_value(" the").run()
    assert "The logit of “ the”" in words(app)


def test_steering_writes_both_texts_and_the_shift(open_live, live_root, tiny_model):
    app = open_live("steer", text=TEXT, f1="3", s1="6.0", len="5", temp="0.0")
    assert_clean(app)
    assert "Press Generate" in words(app)
    app.button(key="steer_write").click().run()
    assert_clean(app)
    assert "+6 × maximum of feature 3" in words(app)
    assert re.search(r"moved by KL = [\d.]+(e-\d+)? nats", words(app))
    assert "KL" in app.get("plotly_chart")[0].proto.alt
    ids, _ = reading_of(tiny_model, TEXT)
    for _ in range(5):
        ids.append(int(tiny_model.run(torch.tensor([ids])).logits[0, -1].argmax()))
    written = tiny_model.text_of(ids[-5:])
    assert f"<span>{written}</span>".replace("�", "") in html_of(app).replace("�", "")
    app.number_input(key="steer_seed").set_value(7).run()
    assert "settings have changed" in words(app)
    assert app.query_params["seed"] == "7" and app.query_params["f1"] == "3"


def test_a_sweep_of_samples_stands_side_by_side_and_becomes_a_vector(open_live):
    app = open_live("steer", text=TEXT, f1="3", s1="2.0", len="5", sweep="3", samples="2")
    app.button(key="steer_write").click().run()
    assert_clean(app)
    page = html_of(app)
    titles = re.findall(r"<section><b>([^<]*)</b>", page)
    assert titles == ["Baseline", "Steered ×0.5", "Steered ×1", "Steered ×2"] * 2
    assert page.count("perplexity ") == 8 and page.count("KL of the next token") == 6
    assert "Seed 0" in words(app) and "Seed 1" in words(app)
    assert [b.label for b in app.get("download_button") if "For" in b.label]


def test_one_text_through_every_dictionary_of_the_model(tiny_model, tmp_path, monkeypatch):
    root = tmp_path / "live"
    for name in ("tiny", "twin"):
        write_live_run(root / name, tiny_model)
    app = page_opener(monkeypatch, root)("prompt", mode="layers", text=TEXT)
    assert_clean(app)
    (chart,) = app.get("plotly_chart")
    assert "2" in chart.proto.alt and app.dataframe
    assert html_of(app).count('class="chip"') >= 2


def test_more_features_and_a_dead_one(open_live):
    app = open_live("steer", text=TEXT, f1="0", f2="1", k1="ablate", n="2", len="5")
    assert [box.value for box in app.number_input if box.label == "Feature"] == [0, 1]
    app.button(key="steer_write").click().run()
    assert not app.exception
    assert "feature 1 has no maximum in the feature store" in words(app)
    app.button(key="steer_fewer").click().run()
    assert "n" not in app.query_params
    app.button(key="steer_write").click().run()
    assert "feature 0 ablated" in words(app)


@pytest.mark.parametrize(
    "params",
    [
        {"f1": "999"},
        {"f1": "-1", "s1": "nan", "k1": "boost"},
        {"n": "77", "len": "1e9", "temp": "-3", "seed": "x"},
        {"mode": "<script>", "order": "size", "dens": "2", "hl": "99999999999", "next": "10000000"},
    ],
)
@pytest.mark.parametrize("page", ["prompt", "steer"])
def test_addresses_that_make_no_sense_give_the_defaults(open_live, page, params):
    app = open_live(page, **params)
    assert_clean(app)
    assert app.text_area


def test_mismatches_and_missing_parts_are_sentences(tiny_model, tmp_path, monkeypatch):
    root = tmp_path / "live"
    folder = write_live_run(root / "tiny", tiny_model, model_hash="e" * 64)
    opener = page_opener(monkeypatch, root)
    app = opener("prompt", **HERE, text=TEXT)
    assert "content hash eeeeeeeeeeee…" in words(app) and not app.exception
    assert app.dataframe
    shutil.rmtree(folder)
    st.cache_resource.clear()
    write_live_run(root / "tiny", tiny_model, model="nobody/has-this-model")
    app = opener("steer", **HERE)
    assert "is not on this machine, and the dashboard downloads nothing" in words(app)
    (folder / "features.sqlite").unlink()
    st.cache_resource.clear()
    app = page_opener(monkeypatch, root)("prompt", **HERE)
    assert not app.exception and "saelab features" in words(app)


def test_live_modules_load_no_torch_at_import():
    import subprocess
    import sys

    code = (
        "import sys; import saelab.dashboards.pages.prompt, saelab.dashboards.pages.steer, "
        "saelab.dashboards.pages.training, saelab.dashboards.pages.evals; "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
