"""What a search box takes: every part finds itself, mistakes are one line, time is bounded."""

import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saelab.errors import ConfigError
from saelab.features.query import Matcher, Term, parse_query
from saelab.features.search import TokenIndex, search
from saelab.features.unpacking import join_tokens

FEATURES = (
    [" war", " War", "peace"],
    ["civil", " war"],
    [],
    ['"', "/", "-"],
    ["Émile", "émigré"],
    ["a" * 40 + "!"],
)
PROMOTED = ([" navy"], [" war"], [], [" Peace"], [], [])
LABELS = {0: "war and peace", 3: "the civil war"}


def found(query, labels=LABELS):
    indices = {
        "top_tokens": TokenIndex(list(map(join_tokens, FEATURES))),
        "promoted_tokens": TokenIndex(list(map(join_tokens, PROMOTED))),
    }
    return search(indices, labels, len(FEATURES), query)


@pytest.mark.parametrize(
    ("query", "features"),
    [
        ("war", [0, 3, 1]),
        ("WAR", [0, 3, 1]),
        ("token:war", [0, 1]),
        ("promotes:war", [1]),
        ("label:war", [0, 3]),
        ("war -civil", [0]),
        ('"civil war"', [3]),
        ("war peace", [0, 3]),
        ("ar", []),
        ('token:"ar"', [0, 1]),
        ("token:/^ [A-Z]/", [0]),
        ("token:/^ ?[a-z]+$/ -label:peace", [1]),
        ("/^$/", []),
        ("emi", [4]),
        ('"', [3]),
        ("/", [3]),
        ("-", [3]),
        ("-token:war -label:war", [2, 4, 5]),
        ("", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_a_query_finds_what_it_says(query, features):
    hits = found(query)
    assert (sorted if query.startswith("-") or not query else list)(
        hits.features.tolist()
    ) == features


def test_a_hit_is_where_it_says():
    hits = found("war")
    assert hits.where(0) == "label, top tokens" and hits.where(1) == "top tokens, promoted tokens"
    assert hits.where(2) == ""


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("token:", "token: stands alone: write what to look for behind it"),
        ('"civil war', "the phrase '\"civil' is not closed: end it with \""),
        ("/usr/bin", "the expression '/usr/bin' is not closed: end it with /"),
        ("/(/", "/(/ is no regular expression: missing )"),
        ("/" + "a" * 300 + "/", "the expression has 300 characters: at most 200"),
    ],
)
def test_mistakes_are_one_line(query, said):
    with pytest.raises(ConfigError, match=re.escape(said)) as error:
        found(query)
    assert "\n" not in str(error.value)


def test_an_expression_that_would_never_end_is_stopped():
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"takes longer than 1 s: repeat nothing inside a repeat"):
        found(r"token:/^(a|a)+(a|a)+(a|aa)+$/")
    assert time.monotonic() - start < 10


def test_expressions_of_one_query_share_their_second():
    matcher = Matcher()
    slow = matcher.of(Term(r"^(a|a)+(a|a)+(a|aa)+$", "expression"))
    for _ in range(2):
        with pytest.raises(ConfigError):
            slow("a" * 40 + "!")
    start = time.monotonic()
    with pytest.raises(ConfigError):
        slow("a" * 40 + "!")
    assert time.monotonic() - start < 0.5


@given(st.text(max_size=60))
def test_any_text_is_a_query_or_one_line(text):
    try:
        terms = parse_query(text)
    except ConfigError as error:
        assert "\n" not in str(error)
        return
    assert bool(terms) == bool(text.strip())


@given(st.text(st.characters(exclude_characters="\x00\x1f", codec="utf-8"), min_size=1))
def test_a_phrase_finds_the_text_it_quotes(text):
    quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    (term,) = parse_query(quoted)
    assert term == Term(text, "phrase") and Matcher().of(term)(text)
    (term,) = parse_query(f"-token:{quoted}")
    assert term == Term(text, "phrase", "token", True)


@given(st.from_regex(r"[^\W_]\w{0,20}", fullmatch=True), st.sampled_from(["", " ", "(", "the "]))
def test_a_word_is_found_from_its_start(word, before):
    (term,) = parse_query(word)
    assert Matcher().of(term)(before + word + "x")
    if word[0].isalnum() and word.strip("xX"):  # nothing but x begins there too
        assert not Matcher().of(Term(word, "word"))("x" + word)


@given(st.lists(st.lists(st.text("ab ", min_size=1, max_size=3), max_size=4), max_size=12))
def test_places_are_those_of_plain_python(features):
    joined = list(map(join_tokens, features))
    split = [text.split("\x1f") if text else [] for text in joined]
    places = TokenIndex(joined).places(lambda token: "a" in token)
    for tokens, place in zip(split, places.tolist(), strict=True):
        plain = [index for index, token in enumerate(tokens) if "a" in token]
        assert place == (plain[0] if plain else np.iinfo(np.int32).max)
