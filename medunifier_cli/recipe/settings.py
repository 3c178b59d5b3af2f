"""Read recipe text into settings by dotted key, each with the place where it was written.

The place is a file and line, or an option `-o`. Names of keys are checked here, against the schema; values
are checked in `build.py`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_type_hints

import yaml

from medunifier_cli import budget

SIMILAR = 0.6
"""Ratio of matching characters, from 0 to 1, from which on a key is suggested (difflib's own default)."""
LONGEST_KEY = 80
"""Characters of a wrong key that are compared and shown; the longest of ours has 35."""
HINTS = 10
"""Wrong keys for which the nearest key is looked up; an error line has no room for more."""
RENAMED = {"train.validate_every": "train.valid_every"}
"""Keys of earlier versions -> their present names. The recipes that runs keep may still use the old ones."""


@dataclass(frozen=True)
class Setting:
    """One value of a recipe."""

    value: object
    """The value as YAML reads it."""
    raw: str
    """The text of an unquoted scalar, else empty: YAML reads `no` as False and `1e-4` as text."""
    where: str
    """`file:line`, or `-o key=value`."""
    from_override: bool = False


@dataclass
class Settings:
    """What one or several sources set, and the problems found in them."""

    by_key: dict[str, Setting]
    problems: list[str]
    suspects: set[str]
    """Keys that a problem is about, and keys that a misspelt one was probably meant for."""


@dataclass(frozen=True)
class Stated:
    """Stands for a schema where only the stage of a recipe is asked for; its other keys are not looked at."""

    stage: str = ""


class YamlError(Exception):
    """Text that is not YAML, or not a mapping: one line with its place."""


def field_types(schema: type) -> dict[str, Any]:
    """Field name -> its type, with the bounds in `Annotated`."""
    hints = get_type_hints(schema, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(schema)}


def dotted_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Every key of a recipe, sections included."""
    for name, kind in field_types(schema).items():
        yield prefix + name
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from dotted_keys(kind, f"{prefix}{name}.")


def nearest_key(key: str, schema: type) -> str | None:
    """The key that a wrong one was probably meant for.

    The most similar of the keys of the same name in other sections and of those of the same section, as far
    as they are similar at all. None if there is no such key.
    """

    def likeness(other: str) -> float:
        return difflib.SequenceMatcher(None, key, other).ratio()

    section, _, name = key.rpartition(".")
    ranked = sorted(dotted_keys(schema), key=likeness, reverse=True)
    siblings = [other for other in ranked if other.rpartition(".")[0] == section] or ranked
    for other in ranked:
        same_name = other.rpartition(".")[2] == name
        if same_name or (other in siblings and likeness(other) >= SIMILAR):
            return other
    return None


@functools.lru_cache(maxsize=256)  # a verb looks at the same recipes many times, and composing YAML is slow
def read_text(text: str, shown: str, schema: type, saved: bool = False) -> tuple[Settings, Setting | None]:
    """Settings of one recipe text, and the value of its top-level `base`; callers share them.

    Args:
        text: YAML.
        shown: name of the file in messages.
        schema: dataclass of the recipe.
        saved: this is the recipe that a run keeps, in which keys of earlier versions are allowed.

    Raises:
        YamlError: not YAML, or not a mapping.
    """
    settings = Settings({}, [], set())
    reader = _Reader(shown, schema, settings, saved)
    try:
        with budget.yaml_loader(text) as loader:
            root = budget.compose_yaml(loader)
            if root is not None and not (isinstance(root, yaml.ScalarNode) and root.value == ""):
                if not isinstance(root, yaml.MappingNode):
                    raise YamlError(f"{shown}:{root.start_mark.line + 1}: a recipe is `key: value` lines")
                reader.section(loader, root, schema, "")
    except yaml.YAMLError as error:
        raise YamlError(_yaml_line(error, shown)) from error
    return settings, reader.base


def read_overrides(overrides: tuple[str, ...], schema: type) -> Settings:
    """Settings of the options `-o key=value`; values are YAML, and the last one of a key wins."""
    settings = Settings({}, [], set())
    known = set(dotted_keys(schema))
    for override in overrides:
        where = f"-o {shortened(override)}"
        key, equals, raw = override.partition("=")
        key = key.strip()
        if not equals:
            settings.problems.append(f"{where}: write it as key=value")
        elif key not in known:
            _unknown(key, where, schema, settings)
        else:
            try:
                value = budget.yaml_value(raw)
            except yaml.YAMLError:
                value = raw  # such as `a: b` or `[x`, which is fine for a key that takes text
            settings.by_key[key] = Setting(value, raw.strip(), where, from_override=True)
    return settings


def shortened(text: str) -> str:
    """A text of a recipe as messages quote it."""
    return text if len(text) <= LONGEST_KEY else text[: LONGEST_KEY - 3] + "..."


def _unknown(key: str, where: str, schema: type, settings: Settings) -> None:
    if key in RENAMED:
        settings.suspects.add(RENAMED[key])
        settings.problems.append(f"{where}: {key} is now called {RENAMED[key]}")
        return
    if len(settings.problems) >= HINTS:  # a file of ten thousand wrong keys would take minutes
        settings.problems.append(f"{where}: {shortened(key)} is not a recipe key")
        return
    near = nearest_key(key[:LONGEST_KEY], schema)
    if near is not None:
        settings.suspects.add(near)
        hint = f"did you mean {near}?"
    else:
        known = list(dotted_keys(schema))
        section = key.rpartition(".")[0]
        siblings = [other for other in known if other.rpartition(".")[0] == section] or field_types(schema)
        hint = f"available: {', '.join(other.rpartition('.')[2] for other in siblings)}"
    settings.problems.append(f"{where}: {shortened(key)} is not a recipe key; {hint}")


def _yaml_line(error: yaml.YAMLError, shown: str) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"{shown}:{mark.line + 1}" if mark is not None else shown
    return f"{place}: not valid YAML: {_reason(error)}"


def _reason(error: yaml.YAMLError) -> str:
    # a recipe is no patient data, so what it says may be quoted
    return getattr(error, "problem", None) or budget.yaml_reason(error)


class _Reader:
    """Walks the YAML nodes of one recipe along its schema, and collects settings and problems."""

    def __init__(self, shown: str, schema: type, settings: Settings, saved: bool) -> None:
        self.shown, self.schema, self.settings, self.saved = shown, schema, settings, saved
        self.base: Setting | None = None

    def section(self, loader: yaml.SafeLoader, node: yaml.MappingNode, schema: type, prefix: str) -> None:
        types, seen = field_types(schema), dict[str, int]()
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            where = f"{self.shown}:{line}"
            name = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
            key = prefix + str(name)
            if name in seen:
                self._problem(key, f"{where}: {shortened(key)} is set twice; first in line {seen[name]}")
                continue
            seen[name] = line
            if name == "base" and not prefix and "base" not in types:
                self.base = self._leaf(loader, value_node, where, key)
            elif name not in types and self.saved and key in RENAMED:
                self._set(RENAMED[key], self._leaf(loader, value_node, where, key))
            elif name not in types and self.schema is Stated:
                continue
            elif name not in types:
                _unknown(key, where, self.schema, self.settings)
            elif not (isinstance(types[name], type) and dataclasses.is_dataclass(types[name])):
                self._set(key, self._leaf(loader, value_node, where, key))
            elif isinstance(value_node, yaml.MappingNode):
                self.section(loader, value_node, types[name], f"{key}.")
            else:  # a value where a section belongs: `build` reports it, unless it is empty and sets nothing
                leaf = self._leaf(loader, value_node, where, key)
                if leaf is None or leaf.value is not None:
                    self._set(key, leaf)

    def _problem(self, key: str, line: str) -> None:
        self.settings.problems.append(line)
        self.settings.suspects.add(key)

    def _set(self, key: str, leaf: Setting | None) -> None:
        if leaf is not None:
            self.settings.by_key[key] = leaf

    def _leaf(self, loader: yaml.SafeLoader, node: yaml.Node, where: str, key: str) -> Setting | None:
        try:
            value = budget.construct_yaml(loader, node)
        except yaml.YAMLError as error:
            self._problem(key, f"{where}: {key}: {_reason(error)}")
            return None
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        return Setting(value, node.value if plain else "", where)
