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
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError, did_you_mean

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

    def admits(self, value: float | int) -> bool:
        """Whether a number is finite and within the limits."""
        above = self.low < value or (value == self.low and not self.low_open)
        below = value < self.high or (value == self.high and not self.high_open)
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'above' if self.low_open else 'at least'} {self.low:g}, finite"
        if not self.low_open and not self.high_open:
            return f"between {self.low:g} and {self.high:g}"
        lower = f"{'above' if self.low_open else 'at least'} {self.low:g}"
        return f"{lower} and {'below' if self.high_open else 'at most'} {self.high:g}"


def problems_in(config: Any) -> list[str]:
    """What the types of a config's fields forbid: limits, and words that are no alternative."""
    problems = []
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


def read_yaml(path: Path) -> Any:
    """Parse a YAML file.

    Raises:
        ConfigError: the file is missing or not YAML.
    """
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise ConfigError(
            f"recipe {path} does not exist; `saelab recipes` lists those shipped"
        ) from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid YAML: {reason}") from None


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
                args=list(arguments),
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
    import tyro

    options: list[str] = []
    hints = typing.get_type_hints(config_type)
    marked = typing.get_type_hints(config_type, include_extras=True)
    (positional,) = typing.get_args(tyro.conf.Positional[int])[1:]
    for field in dataclasses.fields(config_type):
        nested = _dataclasses_in(hints[field.name])
        if field.metadata.get("flatten"):
            options += option_strings(nested[0], prefix)
        elif nested:
            # Of several alternatives, the options are those of the one that is the default.
            chosen = type(field.default_factory()) if len(nested) > 1 else nested[0]  # type: ignore[misc]
            options += option_strings(chosen, f"{prefix}{_dashed(field.name)}.")
        elif positional not in getattr(marked[field.name], "__metadata__", ()):
            # A flag that is on by default is spelt as what turns it off.
            negation = "no-" if hints[field.name] is bool and field.default is True else ""
            options.append(f"{prefix}{negation}{_dashed(field.name)}")
    return options


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


def _describe(problem: Any, config_type: Any, origin: str) -> str:
    path = [str(part) for part in problem["loc"]]
    field = ".".join(path)
    if problem["type"] == "unexpected_keyword_argument":
        known = _field_names(config_type, path[:-1])
        return f"{origin}: unknown field {field!r}; {did_you_mean(path[-1], known)}"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    shown = f" (got {given!r})" if not isinstance(given, dict) else ""
    return f"{origin}: {field or 'settings'}: {message}{shown}"


def _field_names(config_type: Any, path: list[str]) -> list[str]:
    for part in path:
        nested = _dataclasses_in(typing.get_type_hints(config_type).get(part))
        if not nested:
            return []
        config_type = nested[0]
    return [field.name for field in dataclasses.fields(config_type)]
