"""Figures, tables, matches and exports as pure functions on the planted store."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_store import DEAD, DENSE, N_FEATURES, SCRIPT, decoder, dense_codes, write_toy_store

from saelab.dashboards.pages.compare import decoder_rows, match
from saelab.dashboards.widgets.feature_html import (
    distinct,
    feature_html,
    feature_json,
    numbers_of,
)
from saelab.dashboards.widgets.feature_table import (
    FeatureFilter,
    best_explained,
    clean_token_scores,
    curated_groups,
    map_regions,
    select_features,
)
from saelab.dashboards.widgets.figures import (
    activation_histogram,
    density_histogram,
    feature_map,
    logit_histogram,
    match_histogram,
    pareto,
    probability_shift,
    signed_bars,
)
from saelab.dashboards.widgets.page_parts import csv_text, plain
from saelab.dashboards.widgets.token_html import format_number
from saelab.errors import ArtifactError
from saelab.features.label_content import Label, Score
from saelab.features.reader import FeatureStore
from saelab.report.draw import draw


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return FeatureStore(write_toy_store(tmp_path_factory.mktemp("store") / "features.sqlite"))


def figures_of(store):
    record = store.feature(8)
    densities = store.table()["density"]
    yield draw(activation_histogram(record))
    yield draw(activation_histogram(record, log_counts=False))
    yield draw(logit_histogram(record.logit_lens))
    tokens = {"one": 266, "two": 266}
    yield draw(density_histogram({"one": densities, "two": densities[:5]}, tokens))
    table = dict(store.table()) | {"map_x": np.arange(12.0), "map_y": np.arange(12.0)}
    yield feature_map(table, [str(i) for i in range(N_FEATURES)])
    yield feature_map(table, [str(i) for i in range(N_FEATURES)], lit=("have a label", [True] * 12))
    yield draw(match_histogram({"a": [0.1, 0.9], "b": [0.75]}))
    yield draw(pareto([{"name": "a", "l0": 8.0, "fvu": 0.25}], ["a"]))
    yield draw(bars_of([("1 up", 2.0), ("2 down", -1.0)]))
    yield draw(probability_shift([("a", 0.1, 0.2)], [("<b>", 0.2, 0.1)], 0.5))


def bars_of(rows):
    words = {"caption": "What is drawn.", "positive": "go up", "negative": "go down"}
    return signed_bars(name="bars", title="Bars", axis="change", rows=rows, **words)


def test_every_figure_says_what_it_shows(store):
    for figure in figures_of(store):
        assert figure.alt.endswith(".") and any(sign.isdigit() for sign in figure.alt)
        assert figure.caption and figure.title and figure.data
        assert figure.plot.layout.xaxis.title.text and figure.plot.layout.yaxis.title.text
        assert len({len(column) for column in figure.data.values()}) == 1
        assert figure.plot.layout.title.text is None


def test_regions_of_the_map_are_named_by_what_is_rare_elsewhere():
    rng = np.random.default_rng(0)
    x = np.concatenate([np.full(20, -100.0), np.full(20, 100.0), rng.uniform(-50, 50, 360)])
    words = ["Peace"] * 20 + [" tax"] * 20 + ["common" if i % 2 else f"w{i}" for i in range(360)]
    table = {"map_x": x, "map_y": rng.normal(size=400), "top_tokens": words}
    regions = {word: at for word, at, _ in map_regions(table)}
    assert set(regions) == {"peace", "tax"}
    assert abs(regions["peace"] + 100) < 2 and abs(regions["tax"] - 100) < 2
    assert map_regions({name: values[:9] for name, values in table.items()}) == []


def test_the_best_explained_beat_both_controls_in_every_score():
    def label(feature, *scores):
        parts = [Score(name="detection", value=v, shuffled=s, random=r) for v, s, r in scores]
        return Label(
            id=feature,
            feature=feature,
            text="words",
            author="a",
            method="m",
            created="2026-01-01",
            scores=tuple(parts),
        )

    labels = [
        label(1, (0.9, 0.5, 0.6), (0.9, 0.8, 0.5)),
        label(2, (0.8, 0.5, 0.5)),
        label(3, (0.9, 0.5, 0.95)),
        label(4),
    ]
    assert best_explained(labels).features == (2, 1)
    assert best_explained(labels[2:]) is None


def test_activation_histogram_counts_every_active_token(store):
    codes = dense_codes()[..., 8]
    figure = draw(activation_histogram(store.feature(8), log_counts=False))
    assert sum(figure.data["tokens"]) == (codes > 0).sum() == sum(figure.plot.data[0].y)
    assert figure.data["activation from"][0] == 0
    assert figure.data["activation to"][-1] == pytest.approx(codes.max())
    assert activation_histogram(store.feature(DEAD)) is None


def test_density_histogram_counts_every_feature(store):
    densities = store.table()["density"]
    chart = density_histogram({"one": densities}, {"one": 266})
    assert sum(chart.table()["features"]) == N_FEATURES - 1 and "1 never active" in chart.summary
    two = density_histogram({"one": densities, "two": densities}, {"one": 266, "two": 266})
    assert sum(two.table()["features"]) == 2 * (N_FEATURES - 1)
    silent = density_histogram({"none": np.zeros(2)}, {"none": 0})
    assert "2 never active" in silent.summary and "2 of none" in silent.caption


def test_bars_of_both_signs_differ_in_colour_and_equal_names_stay_apart():
    rows = [("5", 2.0), ("<b>", 1.0), ("<b>", -1.0), ("<b>", -2.0)]
    figure = draw(bars_of(rows))
    [bars] = figure.plot.data
    assert list(bars.y) == ["5", "&lt;b&gt;", "&lt;b&gt; (2)", "&lt;b&gt; (3)"]
    assert figure.plot.layout.yaxis.type == "category"
    assert bars.marker.color[0] == bars.marker.color[1] != bars.marker.color[2]
    assert (
        figure.alt
        == "Bars. 2 go up, most of all 5 +2, <b> +1. 2 go down, most of all <b> -1, <b> -2."
    )


def test_map_splits_silent_from_active():
    places = {"id": np.arange(2), "map_x": np.arange(2.0), "map_y": np.arange(2.0)}
    figure = feature_map(places | {"density": np.array([0.0, 0.1])}, ["a", "b"])
    assert [trace.name for trace in figure.plot.data] == ["active", "never active"]
    assert [list(trace.customdata) for trace in figure.plot.data] == [[1], [0]]


def test_pareto_without_measurements_is_none():
    assert pareto([{"name": "a", "l0": None, "fvu": 0.1}], []) is None


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(0, 10**6))
def test_matches_equal_brute_force(n_first, n_second, d_in, seed):
    generator = np.random.default_rng(seed)
    first, second = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (generator.normal(size=(n, d_in)) for n in (n_first, n_second))
    )
    found = match(first, second)
    cosines = first @ second.T
    np.testing.assert_allclose(found.forward_cosine, cosines.max(axis=1))
    np.testing.assert_allclose(found.backward_cosine, cosines.max(axis=0))
    np.testing.assert_allclose(cosines[np.arange(n_first), found.forward], found.forward_cosine)
    np.testing.assert_allclose(cosines[found.backward, np.arange(n_second)], found.backward_cosine)


def test_matches_across_chunks(monkeypatch):
    monkeypatch.setattr("saelab.dashboards.pages.compare.CHUNK_ROWS", 3)
    found = match(decoder(), decoder()[::-1])
    assert found.forward.tolist() == found.backward.tolist() == list(range(N_FEATURES))[::-1]
    assert found.mutual().tolist() == list(range(N_FEATURES))


def test_decoders_that_cannot_be_compared_are_sentences(tmp_path):
    with pytest.raises(ArtifactError, match="have width 6 and 3"):
        match(decoder(), np.eye(3))
    with pytest.raises(ArtifactError, match="cannot be read"):
        decoder_rows(tmp_path)
    (tmp_path / "sae_weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="cannot be read"):
        decoder_rows(tmp_path)


def test_sorting_puts_undefined_last_both_ways(store):
    for descending in (False, True):
        chosen, _ = select_features(
            store, {}, FeatureFilter(sort="mean activation", descending=descending)
        )
        assert chosen.tolist()[-1] == DEAD and len(chosen) == N_FEATURES


def test_search_takes_labels_first(store):
    chosen, found = select_features(
        store, {11: "a cat in a label"}, FeatureFilter(query="cat", sort="best match")
    )
    assert chosen.tolist()[0] == 11 and found(11) == "label"
    assert {0, 8} <= set(chosen.tolist())


def test_curated_features_are_active_and_appear_once(store):
    groups = curated_groups(store.table(), per_group=1)
    chosen = [feature for group in groups for feature in group.features]
    assert chosen and len(chosen) == len(set(chosen)) and DEAD not in chosen
    assert next(g for g in groups if g.title == "Almost always on").features == (DENSE,)
    one_word = next(g for g in groups if g.title == "Fire on one word").features
    assert len(store.feature(one_word[0]).top_tokens) == 1


def test_curated_reasons_describe_the_number_they_sort_by():
    """A feature's different top tokens are what is counted: its examples are not in the table."""
    tokens = ["cat\x1f cat\x1fdog\x1fCat", "x\x1fy", "\x1f".join("abcdefghijk")]
    tokens += ["\x1f".join("lmnopqrstuv")]
    n = len(tokens)
    table = {
        "n_sequences": np.full(n, 50),
        "flags": np.zeros(n, int),
        "top_tokens": tokens,
        "density": np.array([0.5, 0.4, 0.01, 0.02]),
        "kurtosis": np.array([3.0, 9.0, 1.0, 2.0]),
        "logit_kurtosis": np.full(n, np.nan),
    }
    groups = {group.title: group for group in curated_groups(table)}
    one_word = groups["Fire on one word"]
    assert one_word.features == (0, 1) and "different tokens" in one_word.reason
    assert "highest kurtosis of activations first" in one_word.reason
    many = groups["Fire on many different words"]
    assert many.features == (3, 2) and many.reason.startswith("highest density among those")
    assert "example has another token" not in many.reason


def test_clean_tokens_ignore_case_and_spaces():
    scores = clean_token_scores(["\x1f".join([" The", "the", "THE"]), "a\x1fb", "", " "])
    assert scores.tolist() == [1.0, 0.5, 0.0, 0.0]


def test_repeats_are_hidden_on_request(store):
    examples = [*store.feature(8).top_examples, *store.feature(8).top_examples]
    assert len(list(distinct(examples, True))) == len(examples) / 2
    assert len(list(distinct(examples, False))) == len(examples)


def test_numbers_carry_definitions(store):
    for feature in (0, DEAD, DENSE):
        for name, value, definition in numbers_of(store.feature(feature)):
            assert name and value and len(definition) > 20


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("feature", [0, DEAD, DENSE, 3, 7])
def test_exported_page_stands_alone(store, feature):
    page = feature_html("<toy>", store, feature)
    reader = Tags()
    reader.feed(page)
    tags = {tag for tag, _ in reader.found}
    assert not tags & {"script", "link", "img", "iframe", "object", "a"}
    assert not any(name in attributes for _, attributes in reader.found for name in ("src", "href"))
    assert "http" not in re.sub(r"http(://www\.w3\.org|://evil)", "", page).replace(
        "http-equiv", ""
    )
    assert SCRIPT not in page and "&lt;toy&gt;" in page
    assert "prefers-color-scheme" in page or "light-dark" in page
    figures = [a for _, a in reader.found if a.get("role") == "figure"]
    assert all(attributes["aria-label"] for attributes in figures)
    assert len(figures) == (1 if feature == DEAD else 2)
    assert len(page.encode()) < 400_000


def test_exported_data_has_every_activation(store):
    text = feature_json("toy", store, 8)
    content = json.loads(text)
    codes = dense_codes()[..., 8]
    example = content["feature"]["top_examples"][0]
    assert max(example["activations"].values()) == pytest.approx(float(codes.max()))
    assert example["activations"][str(example["anchor"])] == pytest.approx(float(codes.max()))
    assert len(text) < 100_000
    assert content["feature"]["n_active"] == (codes > 0).sum()
    assert content["store_id"] == "toy-store-1"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_csv_round_trips_and_starts_no_formula(cells):
    rows = list(csv.reader(io.StringIO(csv_text({"cell": cells}), newline="")))
    assert rows[0] == ["cell"] and len(rows) == len(cells) + 1
    for row, cell in zip(rows[1:], cells, strict=True):
        shown = row[0] if row else ""
        assert shown == cell or shown == f"'{cell}"
        assert shown[:1] not in ("=", "+", "-", "@")


@pytest.mark.parametrize(
    "text", ["[a](http://evil)", "**b**", "$x$", ":red[r]", "<b>", "www.evil.com", "# h", "`c`"]
)
def test_plain_text_is_not_markdown(text):
    made_safe = plain(text)
    for sign in "[]()*$<>#`":
        assert sign not in re.sub(r"\\.", "", made_safe)
    assert "://" not in made_safe and "www." not in made_safe.replace("\\", "")
    assert made_safe.replace("\\", "").replace("\u2060", "") == text


def test_numbers_as_text():
    assert [format_number(v) for v in (None, float("nan"), 3, 12345, 0.12345, 12345.6)] == [
        "–", "–", "3", "12,345", "0.123", "12,346",
    ]  # fmt: skip
