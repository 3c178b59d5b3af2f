"""Build the frozen dataclasses of a recipe from its settings; the declared type of a field is its check.

>>> @dataclasses.dataclass(frozen=True)
... class Optim:
...     peak_lr: Annotated[float, Bounds(0, above=True)] = 1e-4
>>> settings = Settings({"peak_lr": Setting("fast", "fast", "mine.yaml:3")}, [], set())
>>> build(Optim, settings)
Optim(peak_lr=0.0001)
>>> settings.problems
["mine.yaml:3: peak_lr: expected a number, not 'fast'"]
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import reprlib
import types
import unicodedata
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from medunifier_cli.recipe.bounds import Bounds
from medunifier_cli.recipe.settings import Setting, Settings, field_types

LONGEST_QUOTE = 40
"""Characters of a wrong value that a message quotes."""
LONGEST_TEXT = 4096
"""Characters of a text: paths, the longest of them, have fewer on every system."""
LONGEST_LIST = 1000
"""Items of a list; the only list there is, that of a report's sections, has a handful."""


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, LONGEST_QUOTE, LONGEST_QUOTE


class WrongValueError(Exception):
    """A value of the wrong type or out of range: what was expected and what was given, in one line."""


def build(schema: type, settings: Settings, prefix: str = "") -> Any:
    """An instance of `schema` with the values of `settings`.

    A wrong value leaves the default and adds a line to `settings.problems`, so that all mistakes are found.

    Args:
        schema: frozen dataclass whose every field has a default.
        prefix: dotted key of the section, with its final dot.
    """
    values = {}
    for name, kind in field_types(schema).items():
        key = prefix + name
        setting = settings.by_key.get(key)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            if setting is not None:
                known = ", ".join(field_types(kind))
                _problem(settings, key, setting, f"is a section with the keys {known}; got {_quote(setting)}")
            values[name] = build(kind, settings, f"{key}.")
        elif setting is not None:
            try:
                values[name] = check(kind, setting)
            except WrongValueError as wrong:
                _problem(settings, key, setting, str(wrong))
    return schema(**values)


def check(kind: Any, setting: Setting) -> Any:
    """The value of `setting` as the type `kind`.

    Raises:
        WrongValueError: it is of another type or out of range.
        TypeError: a mistake in the schema: recipes cannot hold such a type.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _bounded(check(args[0], setting), args[1:], setting)
    if origin is Literal:
        return _choice(args, setting)
    if origin in (Union, types.UnionType):
        return _optional(args, setting)
    if origin is tuple:
        return _tuple(args, setting)
    if kind is bool:
        if not isinstance(setting.value, bool):
            raise WrongValueError(f"expected true or false, not {_quote(setting)}")
        return setting.value
    if kind is int:
        if not isinstance(setting.value, int) or isinstance(setting.value, bool):
            raise WrongValueError(f"expected a whole number, not {_quote(setting)}")
        if not -(2**63) <= setting.value < 2**63:  # no seed, size or step is larger in PyTorch
            raise WrongValueError(f"{_quote(setting)} is out of range; it must fit 64 bits")
        return setting.value
    if kind is float:
        return _float(setting)
    if kind is str:
        return _text(setting)
    raise TypeError(f"a recipe field cannot be of type {kind}")


def _float(setting: Setting) -> float:
    value = setting.value
    if isinstance(value, str) and value == setting.raw:  # YAML reads 1e-4, unquoted, as text
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WrongValueError(f"expected a number, not {_quote(setting)}")
    with contextlib.suppress(OverflowError):  # a whole number of 400 digits
        if math.isfinite(value := float(value)):
            return value
    raise WrongValueError(f"expected a number, not {_quote(setting)}")


def _text(setting: Setting) -> str:
    if isinstance(setting.value, str):
        # names become folders and lines on a terminal; a half character is of a file name that is no UTF-8
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in setting.value[:LONGEST_TEXT]):
            raise WrongValueError(f"{_quote(setting)} holds control characters or is no UTF-8")
        if len(setting.value) > LONGEST_TEXT:
            raise WrongValueError(f"{_quote(setting)} is longer than {LONGEST_TEXT:,} characters")
        return setting.value
    if setting.from_override and not isinstance(setting.value, list | dict):
        return setting.raw  # `-o name=2024` is a name
    hint = "" if isinstance(setting.value, list | dict) else "; put it in quotes if it is meant as text"
    raise WrongValueError(f"expected text, not {_quote(setting)}{hint}")


def _bounded(value: Any, metadata: tuple[Any, ...], setting: Setting) -> Any:
    for bounds in metadata:
        if not isinstance(bounds, Bounds):
            continue
        if value < bounds.low or value > bounds.high or (bounds.above and value == bounds.low):
            raise WrongValueError(f"{_quote(setting)} is out of range; it must be {_range(bounds)}")
    return value


def _range(bounds: Bounds) -> str:
    low = f"{'above' if bounds.above else 'at least'} {bounds.low:g}"
    if bounds.high == math.inf:
        return low
    return f"{low} and at most {bounds.high:g}" if bounds.low > -math.inf else f"at most {bounds.high:g}"


def _choice(choices: tuple[Any, ...], setting: Setting) -> Any:
    for choice in choices:
        if type(choice) is type(setting.value) and choice == setting.value:
            return choice
        if isinstance(choice, str) and choice == setting.raw:  # `precision: no` is not False
            return choice
    shown = ", ".join(str(choice) or "'' (nothing)" for choice in choices)
    raise WrongValueError(f"{_quote(setting)} is none of: {shown}")


def _optional(kinds: tuple[Any, ...], setting: Setting) -> Any:
    if setting.value is None and type(None) in kinds:
        return None
    problems = []
    for kind in kinds:
        if kind is not type(None):
            try:
                return check(kind, setting)
            except WrongValueError as wrong:
                problems.append(str(wrong))
    raise WrongValueError("; or ".join(problems))


def _tuple(kinds: tuple[Any, ...], setting: Setting) -> tuple[Any, ...]:
    """`tuple[X, ...]`, the only kind of list in a recipe."""
    if not isinstance(setting.value, list):
        raise WrongValueError(f"expected a list such as [a, b], not {_quote(setting)}")
    if len(setting.value) > LONGEST_LIST:
        raise WrongValueError(f"{_quote(setting)} has more than {LONGEST_LIST:,} items")
    items = [dataclasses.replace(setting, value=item, raw=as_text(item)) for item in setting.value]
    return tuple(check(kinds[0], item) for item in items)


def _quote(setting: Setting) -> str:
    if setting.value is None:
        return "nothing"
    text = setting.raw or as_text(setting.value)
    return repr(text if len(text) <= LONGEST_QUOTE else text[: LONGEST_QUOTE - 3] + "...")


def as_text(value: object) -> str:
    """A value as text; of a list or mapping only the beginning, as it may be large through aliases."""
    return _SHORT.repr(value) if isinstance(value, list | dict | set) else str(value)


def _problem(settings: Settings, key: str, setting: Setting, what: str) -> None:
    line = what if setting.from_override else f"{key}: {what}"  # `where` of an override names the key
    settings.problems.append(f"{setting.where}: {line}")
    settings.suspects.add(key)
