"""Every problem of a config at once, nested ones and those around them."""

from dataclasses import dataclass, field

import pytest

from saelab.config import from_plain
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
