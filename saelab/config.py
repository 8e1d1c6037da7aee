"""Settings: frozen dataclasses, read strictly from YAML, overridden on the command line.

One dataclass serves Python, YAML and the command line unchanged. YAML is checked by pydantic, which
names every unknown key and wrong type at once; tyro then takes the loaded values as defaults.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import io
import math
import re
import typing
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from .errors import LONGEST_VALUE, ConfigError, did_you_mean, shown
from .formats.yaml_files import read_yaml

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Within:
    """Limits of a number, or of each in a tuple: `rate: Annotated[float, Within(0, 1)]`."""

    low: float | int = -math.inf
    """The least that is allowed; just above it where `low_open`."""
    high: float | int = math.inf
    """The most that is allowed; just below it where `high_open`."""
    low_open: bool = False
    high_open: bool = False
    words: tuple[str, ...] = ()
    """Words that may stand in place of a number."""

    def admits(self, value: float | int | str) -> bool:
        """Whether a number is finite and within the limits, or a word is one of `words`."""
        if isinstance(value, str):
            return value in self.words
        try:
            finite = math.isfinite(value)
        except OverflowError:  # an integer that no float can hold
            finite = False
        above = self.low < value or (value == self.low and not self.low_open)
        below = value < self.high or (value == self.high and not self.high_open)
        return finite and above and below

    def __str__(self) -> str:
        lower = f"{'above' if self.low_open else 'at least'} {self.low:g}"
        limits = f"{lower} and {'below' if self.high_open else 'at most'} {self.high:g}"
        if self.high == math.inf:
            limits = f"{lower}, finite"
        elif not self.low_open and not self.high_open:
            limits = f"between {self.low:g} and {self.high:g}"
        return " or ".join([limits, *map(repr, self.words)])


def problems_in(config: Any) -> list[str]:
    """What the types of a config's fields forbid: limits, and words that are no alternative."""
    problems = [
        f"{field.name} is {shown(value)}; it must fit 64 bits"
        for field in dataclasses.fields(config)
        if isinstance(value := getattr(config, field.name), int) and abs(value) >= 1 << 63
    ]
    for name, allowed in _allowed_values(type(config)).items():
        value = getattr(config, name)
        if isinstance(allowed, tuple):
            if value not in allowed:
                problems.append(f"{name}: {value!r} is not one of {', '.join(map(repr, allowed))}")
        elif isinstance(value, tuple):
            problems += [
                f"{name} contains {item}; it must be {allowed}"
                for item in value
                if not allowed.admits(item)
            ]
        elif value is not None and not allowed.admits(value):
            problems.append(f"{name} is {value}; it must be {allowed}")
    return problems


@functools.cache
def _allowed_values(config_type: type) -> dict[str, Within | tuple[Any, ...]]:
    allowed: dict[str, Within | tuple[Any, ...]] = {}
    for name, hint in typing.get_type_hints(config_type, include_extras=True).items():
        if typing.get_origin(hint) is typing.Literal:
            allowed[name] = typing.get_args(hint)
        for extra in getattr(hint, "__metadata__", ()):
            if isinstance(extra, Within):
                allowed[name] = extra
    return allowed


OMIT_DEFAULT = {"omit_default": True}
"""Metadata of a field that was added later: `to_plain` leaves it out while it has its default, so
that settings saved before it existed have the same hash as the same settings now."""


def to_plain(config: Any) -> Any:
    """A config as plain JSON values: dicts, lists, strings, numbers, booleans, None."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {
            field.name: to_plain(value)
            for field in dataclasses.fields(config)
            if (value := getattr(config, field.name)) != field.default
            or field.metadata.get("omit_default") is not True
        }
    if isinstance(config, (list, tuple)):
        return [to_plain(item) for item in config]
    if isinstance(config, dict):
        return {str(key): to_plain(value) for key, value in config.items()}
    if isinstance(config, Path):
        return str(config)
    return config


SHUFFLED = "shuffled:"
"""Before a model's name: the model with the entries of each weight matrix in random order."""


def local_place(name: str) -> str:
    """The absolute path of a local folder or file, for records that mean the same in any folder.

    What is neither, such as a name on the Hub, and a path that is absolute stay as they are.
    """
    path = Path(name).expanduser()
    local = path.is_dir() or (path.is_file() and bool(path.suffix))
    return str(path.absolute()) if local and not Path(name).is_absolute() else name


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain settings as one dict with dotted names."""
    flattened: dict[str, Any] = {}
    for name, value in settings.items():
        inner = flat(value, f"{prefix}{name}.") if isinstance(value, dict) else None
        flattened |= {prefix + name: value} if inner is None else inner
    return flattened


def from_plain(config_type: type[Config], content: Any, origin: str) -> Config:
    """Build a config from plain values, strictly.

    Args:
        config_type: the dataclass.
        content: nested dicts and lists, as YAML or JSON give.
        origin: where they came from, for the error.

    Raises:
        ConfigError: every unknown key and wrong value at once.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    _forbid_unknown_keys(config_type, ConfigDict(extra="forbid"))
    content = _as_meant(config_type, content)
    problems: list[str] = []
    while True:
        try:
            config = TypeAdapter(config_type).validate_python(content)
        except ValidationError as error:
            described = [_describe(problem, config_type, origin) for problem in error.errors()]
            problems += [problem for problem in described if problem not in problems]
            # A failing part hides what is wrong around it: give it its defaults and check again.
            smaller = _without_failing_parts(content, [p["loc"] for p in error.errors()])
            if smaller == content:
                raise ConfigError(problems) from None
            content = smaller
        else:
            if problems:
                raise ConfigError(problems)
            return config


def load_yaml(config_type: type[Config], path: Path) -> Config:
    """Read a config from a YAML file, strictly.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not fit.
    """
    return from_plain(config_type, read_yaml(path), str(path))


def to_yaml(config: Any) -> str:
    """A config as YAML that `load_yaml` reads back to an equal config."""
    import yaml

    return yaml.safe_dump(to_plain(config), sort_keys=False, default_flow_style=False)


def parse_arguments(
    config_type: type[Config],
    arguments: Sequence[str],
    *,
    program: str,
    default: Config | None = None,
) -> Config:
    """Read a config from command-line words, starting from `default` or the fields' defaults.

    `--help` prints the fields with their docstrings and exits.

    Raises:
        ConfigError: an unknown option, a value of the wrong type, or values that do not fit.
    """
    import tyro

    complaint = io.StringIO()
    start: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                config_type,
                args=_spelt_out(config_type, arguments),
                prog=program,
                config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff),
                **start,
            )
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise ConfigError(_one_line(complaint.getvalue(), program)) from None


def option_strings(config_type: Any, prefix: str = "--") -> list[str]:
    """Every command-line option of a config, as `parse_arguments` spells it."""
    return [name for name, _ in _options(config_type, prefix)]


def _options(config_type: Any, prefix: str = "--") -> list[tuple[str, Any]]:
    """Every command-line option of a config with the type of its value."""
    import tyro

    options: list[tuple[str, Any]] = []
    hints = typing.get_type_hints(config_type)
    marked = typing.get_type_hints(config_type, include_extras=True)
    (positional,) = typing.get_args(tyro.conf.Positional[int])[1:]
    for field in dataclasses.fields(config_type):
        nested = _dataclasses_in(hints[field.name])
        if field.metadata.get("flatten"):
            options += _options(nested[0], prefix)
        elif nested:
            # Of several alternatives, the options are those of the one that is the default.
            chosen = type(field.default_factory()) if len(nested) > 1 else nested[0]  # type: ignore[misc]
            options += _options(chosen, f"{prefix}{_dashed(field.name)}.")
        elif positional not in getattr(marked[field.name], "__metadata__", ()):
            # A flag that is on by default is spelt as what turns it off.
            negation = "no-" if hints[field.name] is bool and field.default is True else ""
            options.append((f"{prefix}{negation}{_dashed(field.name)}", hints[field.name]))
    return options


_NUMBER = re.compile(r"([+-]?\d[\d_]*(?:\.\d+)?(?:[eE]\+?\d{1,3})?)([kMB]?)")
_TIMES = {"": 1, "k": 1_000, "M": 1_000_000, "B": 1_000_000_000}


def _whole_number(text: str) -> int | None:
    """The whole number that people write as 1e6, 1.5M, 64k or 1_000_000; None: it is none."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None or len(text) > LONGEST_VALUE:
        return None
    number = Fraction(match[1].replace("_", "")) * _TIMES[match[2]]
    return int(number) if number.denominator == 1 else None


def _values_of(hint: Any) -> tuple[bool, set[Any]]:
    """Whether a type is that of a tuple of any length, and the types that a value may have."""
    if typing.get_origin(hint) is tuple and typing.get_args(hint)[1:] == (...,):
        return True, {typing.get_args(hint)[0]}
    return False, set(typing.get_args(hint)) or {hint}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _value_meant(kinds: set[Any], value: Any) -> Any:
    """A value that was written another way than its type is, as that type; else as it is."""
    if not isinstance(value, str) or str in kinds:
        return value
    if type(None) in kinds and value.lower() in ("none", "null"):
        return None
    number = _whole_number(value) if int in kinds else None
    return value if number is None else number


def _word_meant(option: str, kinds: set[Any], word: str) -> str:
    """A word of the command line as tyro reads it.

    Raises:
        ConfigError: the option takes numbers, and this is none.
    """
    literals = {kind for kind in kinds if typing.get_origin(kind) is typing.Literal}
    words = [each for kind in literals for each in typing.get_args(kind)]
    meant, kinds = _value_meant(kinds, word), kinds - literals
    if isinstance(meant, str) and kinds and kinds <= {int, float, type(None)}:
        if word in words or not kinds & {int, float}:
            return word
        if float not in kinds:
            what = "whole number, such as 400000, 1e6 or 1M"
        elif _is_number(word):
            return word
        else:
            what = "number"
        instead = [*words, *(["none"] if type(None) in kinds else [])]
        nor = "".join(f", nor {each}" for each in instead)
        raise ConfigError(f"Error parsing {option}: {shown(word)} is no {what}{nor}")
    return str(meant)


def _as_meant(config_type: Any, content: Any) -> Any:
    """Plain values in which a lone value stands as the tuple of one that its field holds, and 1M
    and none as what they mean."""
    if not isinstance(content, dict):
        return content
    hints = typing.get_type_hints(config_type)
    meant = dict(content)
    for name in hints.keys() & content.keys():
        value, nested = content[name], _dataclasses_in(hints[name])
        several, kinds = _values_of(hints[name])
        if len(nested) == 1 and isinstance(value, dict):
            meant[name] = _as_meant(nested[0], value)
        elif several:
            lone = isinstance(value, str | int | float)
            values = [value] if lone else value if isinstance(value, list | tuple) else None
            if values is not None and not dataclasses.is_dataclass(next(iter(kinds))):
                meant[name] = [
                    _value_meant(kinds, part) for each in values for part in _split(kinds, each)
                ]
        else:
            meant[name] = _value_meant(kinds, value)
    return meant


def _split(kinds: set[Any], value: Any) -> list[Any]:
    """The numbers of "16,32"; any other value alone."""
    return value.split(",") if isinstance(value, str) and kinds & {int, float} else [value]


def _spelt_out(config_type: Any, arguments: Sequence[str]) -> list[str]:
    """Command-line words in which 1M, none and 16,32 are spelt as tyro reads them."""
    hints = dict(_options(config_type))
    words: list[str] = []
    option, several, kinds = "", False, set()
    for word in arguments:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            hint = hints.get(_dashed(name))
            several, kinds = (False, set()) if hint is None else _values_of(hint)
            option = name
            if not (equals and kinds):
                words.append(word)
                continue
            words.append(name)
            word = value
        parts = _split(kinds, word) if several else [word]
        words += [_word_meant(option, kinds, part) for part in parts]
        if not several:
            kinds = set()
    return words


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _one_line(complaint: str, program: str) -> str:
    """tyro's boxed complaint as one line: what is wrong, and its suggestion where it has one."""
    kept: list[str] = []
    _title, *body = complaint.strip().splitlines()
    for line in body:
        words = line.strip("│|+╰╯ ")
        if words.startswith("For full helptext"):
            break
        if words.strip("─-"):
            kept.append(words)
    text = " ".join(kept)
    text, _, _ = text.partition(" Argument helptext:")
    text, _, suggestion = text.partition(" Perhaps you meant: ")
    if suggestion:
        text += f"; did you mean {suggestion.split()[0]}?"
    return f"{text} (`{program} --help` lists the options)"


def _forbid_unknown_keys(config_type: Any, setting: Any) -> None:
    """Make unknown keys errors for pydantic, in a dataclass and in every one inside it."""
    config_type.__pydantic_config__ = setting
    for hint in typing.get_type_hints(config_type).values():
        for nested in _dataclasses_in(hint):
            _forbid_unknown_keys(nested, setting)


def _dataclasses_in(hint: Any) -> list[Any]:
    """The dataclasses among a type and its alternatives."""
    return [
        candidate
        for candidate in (hint, *typing.get_args(hint))
        if dataclasses.is_dataclass(candidate)
    ]


def _without_failing_parts(content: Any, locations: Sequence[tuple[int | str, ...]]) -> Any:
    """A copy without the innermost nested settings that each of the locations is in."""
    content = copy.deepcopy(content)
    for location in locations:
        owner, key, inner = None, None, content
        for part in location:
            if not isinstance(inner, dict) or not isinstance(inner.get(part), dict):
                break
            owner, key, inner = inner, part, inner[part]
        if owner is not None:
            del owner[key]
    return content


_PLAIN_WORDS = {
    "Input should be a valid": "must be a",
    "Input should be": "must be",
    "a integer": "a whole number",
    "a tuple": "a list",
    "a string": "text",
    "a dictionary": "a table",
}
"""What pydantic says, and how this library says it."""


def _describe(problem: Any, config_type: Any, origin: str) -> str:
    path = [str(part)[:LONGEST_VALUE] for part in problem["loc"]]
    field = ".".join(path)
    if problem["type"] == "unexpected_keyword_argument":
        known = _field_names(config_type, path[:-1])
        return f"{origin}: unknown field {field!r}; {did_you_mean(path[-1], known)}"
    message = problem["msg"].removeprefix("Value error, ").partition(", unable to parse")[0]
    for term, plain in _PLAIN_WORDS.items():
        message = message.replace(term, plain)
    given = problem.get("input")
    got = "" if isinstance(given, dict) else f" (got {shown(given)})"
    return f"{origin}: {field or 'settings'}: {message}{got}"


def _field_names(config_type: Any, path: list[str]) -> list[str]:
    for part in path:
        nested = _dataclasses_in(typing.get_type_hints(config_type).get(part))
        if not nested:
            return []
        config_type = nested[0]
    return [field.name for field in dataclasses.fields(config_type)]
