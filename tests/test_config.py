"""Every problem of a config at once, nested ones and those around them."""

import os
from dataclasses import dataclass, field

import pytest
import tyro

from saelab.config import from_plain, load_yaml, parse_arguments
from saelab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 1.0

    def __post_init__(self):
        if self.rate <= 0:
            raise ConfigError("rate must be positive")


@dataclass(frozen=True, kw_only=True)
class Middle:
    inner: Inner = field(default_factory=Inner)
    size: int = 1

    def __post_init__(self):
        if self.size < 1:
            raise ConfigError("size must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Outer:
    middle: Middle = field(default_factory=Middle)
    other: Inner = field(default_factory=Inner)
    k: int = 2
    width: int = 4

    def __post_init__(self):
        if self.k > self.width:
            raise ConfigError("k is more than width")


@dataclass(frozen=True, kw_only=True)
class Written:
    """Settings that people write in several ways."""

    folder: tyro.conf.Positional[str | None] = None
    count: int | None = 1
    numbers: tuple[int, ...] = (1,)
    names: tuple[str, ...] = ()


def problems(content):
    with pytest.raises(ConfigError) as caught:
        from_plain(Outer, content, "recipe")
    return caught.value.problems


def test_a_failing_part_does_not_hide_what_is_wrong_around_it():
    content = {"middle": {"inner": {"rate": -1}, "size": 0}, "other": {"rate": -2}, "k": 9}
    assert problems(content) == [
        "recipe: middle.inner: rate must be positive",
        "recipe: other: rate must be positive",
        "recipe: middle: size must be at least 1",
        "recipe: settings: k is more than width",
    ]
    assert content["middle"]["inner"] == {"rate": -1}, "the caller's content was changed"


def test_wrong_types_and_unknown_fields_are_collected_with_them():
    found = problems({"middle": {"inner": {"rat": 1}}, "k": 9})
    assert len(found) == 2
    assert "unknown field 'middle.inner.rat'; did you mean 'rate'?" in found[0]
    assert "k is more than width" in found[1]
    assert len(problems({"k": "many", "widht": 3, "other": {"rate": -1}})) == 3


@pytest.mark.parametrize("content", [[], "text", {"middle": 3}, {"middle": None}])
def test_content_of_another_shape_ends_too(content):
    assert len(problems(content)) == 1


def test_good_content_is_built():
    built = from_plain(Outer, {"middle": {"inner": {"rate": 2}}, "k": 1}, "recipe")
    assert built == Outer(middle=Middle(inner=Inner(rate=2.0)), k=1)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--count", "1e6"], 1_000_000),
        (["--count=1.5M"], 1_500_000),
        (["--count", "64k"], 64_000),
        (["--count", "none"], None),
        (["--numbers", "16,32", "1k"], (16, 32, 1000)),
        (["--numbers=16,32"], (16, 32)),
        (["--count", "5", "2k"], "2k"),
    ],
)
def test_numbers_are_taken_as_people_write_them(words, expected):
    config = parse_arguments(Written, words, program="p")
    if isinstance(expected, str):
        assert (config.folder, config.count) == (expected, 5)
    else:
        assert expected in (config.numbers, config.count)


@pytest.mark.parametrize("words", [["--count", "1.5"], ["--count", "x"], ["--numbers", "1;2"]])
def test_what_is_no_number_is_said_without_jargon(words):
    with pytest.raises(ConfigError, match=f"{words[0]}: '{words[1]}' is no whole number") as caught:
        parse_arguments(Written, words, program="p")
    assert "int()" not in str(caught.value)


def test_a_lone_value_in_yaml_is_a_list_of_one(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("numbers: 32\nnames: topk\ncount: 1M\n")
    config = load_yaml(Written, path)
    assert (config.numbers, config.names, config.count) == ((32,), ("topk",), 1_000_000)
    path.write_text("numbers: 16,32\ncount: none\n")
    config = load_yaml(Written, path)
    assert (config.numbers, config.count) == ((16, 32), None)
    path.write_text("count: many\nnumbers: {a: 1}\n")
    with pytest.raises(ConfigError, match=r"must be a whole number .got 'many'.*must be a list"):
        load_yaml(Written, path)


def test_a_value_of_any_size_is_cut_in_a_message(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(f"count: '{'x' * 100_000}'\n? {'y' * 900}\n: 1\n")
    with pytest.raises(ConfigError) as caught:
        load_yaml(Written, path)
    assert len(str(caught.value)) < 600
    with pytest.raises(ConfigError, match="and 80 more"):
        raise ConfigError([f"problem {number}" for number in range(100)])


BOMBS = {
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{f'*{chr(97 + i)},' * 9}]\n" for i in range(9)),
    "merges": "a: &a {x: 1}\n"
    + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [{f'*{chr(97 + i)},' * 9}]}}\n" for i in range(9)
    ),
    "itself": "a: &a [*a]\n",
    "deep": "[" * 5_000,
    "deep, closed": "a: " + "[" * 300 + "]" * 300,
    "digits": "a: " + "9" * 5_000,
    "no time": "a: 2001-99-99",
    "no integer": "a: !!int ''",
    "no truth": "a: !!bool maybe",
    "no bytes": "a: !!binary '\u20ac'",
    "an object": "a: !!python/object/apply:os.system [ls]",
    "large": "a: 1\n" * 100_000,
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_yaml_bomb_is_refused_in_a_short_line(text, tmp_path):
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bomb\.yaml") as caught:
        load_yaml(Written, path)
    assert len(str(caught.value)) < 500


def test_aliases_that_people_use_are_read(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("numbers: &n [1, 2]\nnames: [a]\ncount: 3\n")
    assert load_yaml(Written, path).numbers == (1, 2)
    path.write_text("middle: {inner: &i {rate: 2}}\nother: {<<: *i}\n")
    assert load_yaml(Outer, path).other.rate == 2


@pytest.mark.parametrize("make", ["folder", "pipe"])
def test_a_recipe_that_is_no_file_is_not_opened(make, tmp_path):
    path = tmp_path / "a.yaml"
    path.mkdir() if make == "folder" else os.mkfifo(path)
    with pytest.raises(ConfigError, match=rf"is a {make}; a YAML file was expected"):
        load_yaml(Written, path)
