"""Recipe text -> settings by dotted key, each with the place it was written: file and line, or `-o`.

What a key may be called is asked of the schema; what its value may be is `build.py`'s business.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_type_hints

import yaml

LIKE = 0.6
"""Share of letters in common from which a key is offered as the one meant."""
VERY_LIKE = 0.75
"""The same, for a key of another section."""
RENAMED = {"train.validate_every": "train.valid_every"}
"""Keys of earlier versions -> their names now. A run's own recipe is still read under them."""
MISSPELT = 0.85
"""From here on a key of the same section is meant, even if another section has one of exactly this name."""


@dataclass(frozen=True)
class Setting:
    """One value of a recipe."""

    value: object
    """As YAML reads it."""
    raw: str
    """As it was written, for a plain scalar; else empty. YAML reads `no` as False and `1e-4` as text."""
    where: str
    """`file:line`, or `-o key=value`."""
    from_override: bool = False


@dataclass
class Settings:
    """What one or several sources set, and what is wrong with them."""

    by_key: dict[str, Setting]
    problems: list[str]
    suspects: set[str]
    """Keys that a problem is about, or that a wrong key was probably meant for."""


class YamlError(Exception):
    """Text that is no YAML, or no recipe at all: one line with its place."""


def field_types(schema: type) -> dict[str, Any]:
    """Field name -> its type with the bounds (`Annotated` is kept)."""
    hints = get_type_hints(schema, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(schema)}


def dotted_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Every key of a recipe, sections included."""
    for name, kind in field_types(schema).items():
        yield prefix + name
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from dotted_keys(kind, f"{prefix}{name}.")


def nearest_key(key: str, schema: type) -> str | None:
    """The key that was probably meant: one of its section, its name in another section, or the closest."""
    known = [other for other in dotted_keys(schema) if not key.startswith(f"{other}.")]
    section, _, last = key.rpartition(".")
    ranked = sorted(known, key=lambda other: -difflib.SequenceMatcher(None, key, other).ratio())
    likeness = difflib.SequenceMatcher(None, key, ranked[0]).ratio()
    near = not section or ranked[0].startswith(f"{section}.")
    moved = [other for other in ranked if other.rpartition(".")[2] == last]
    if moved and not (near and section and likeness >= MISSPELT):
        return moved[0]
    return ranked[0] if likeness >= (LIKE if near else VERY_LIKE) else None


def read_text(text: str, shown: str, schema: type, saved: bool = False) -> tuple[Settings, Setting | None]:
    """Settings of one recipe text, and what its top-level `base` says.

    Args:
        text: YAML.
        shown: the file's name as messages give it.
        schema: dataclass of the recipe.
        saved: the recipe of a run, in which keys of earlier versions count.

    Raises:
        YamlError: no YAML, or not a mapping.
    """
    settings = Settings({}, [], set())
    reader = _Reader(shown, schema, settings, saved)
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is not None and not (isinstance(root, yaml.ScalarNode) and root.value == ""):
            if not isinstance(root, yaml.MappingNode):
                raise YamlError(f"{shown}:{root.start_mark.line + 1}: a recipe is `key: value` lines")
            reader.section(loader, root, schema, "")
    except yaml.YAMLError as error:
        raise YamlError(_yaml_line(error, shown)) from error
    finally:
        loader.dispose()
    return settings, reader.base


def read_overrides(overrides: tuple[str, ...], schema: type) -> Settings:
    """Settings of `-o key=value`; values are YAML, a later one wins."""
    settings = Settings({}, [], set())
    known = set(dotted_keys(schema))
    for override in overrides:
        where = f"-o {override}"
        key, equals, raw = override.partition("=")
        key = key.strip()
        if not equals:
            settings.problems.append(f"{where}: write it as key=value")
        elif key not in known:
            _unknown(key, where, schema, settings)
        else:
            try:
                value = yaml.safe_load(raw)
            except (yaml.YAMLError, ValueError):
                value = raw  # such as `a: b` or `[x`: plain text, if the key takes text
            settings.by_key[key] = Setting(value, raw.strip(), where, from_override=True)
    return settings


def _unknown(key: str, where: str, schema: type, settings: Settings) -> None:
    if key in RENAMED:
        settings.suspects.add(RENAMED[key])
        settings.problems.append(f"{where}: {key} is now called {RENAMED[key]}")
        return
    near = nearest_key(key, schema)
    if near is not None:
        settings.suspects.add(near)
        hint = f"did you mean {near}?"
    else:
        known = list(dotted_keys(schema))
        section = key.rpartition(".")[0]
        beside = [other for other in known if other.rpartition(".")[0] == section] or field_types(schema)
        hint = f"there are: {', '.join(other.rpartition('.')[2] for other in beside)}"
    settings.problems.append(f"{where}: {key} is not a recipe key; {hint}")


def _yaml_line(error: yaml.YAMLError, shown: str) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"{shown}:{mark.line + 1}" if mark is not None else shown
    what = getattr(error, "problem", None) or (str(error).splitlines() or ["cannot be read"])[0]
    return f"{place}: not valid YAML: {what}"


class _Reader:
    """Walks the nodes of one text along the schema."""

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
                self._problem(key, f"{where}: {key} is set twice; first in line {seen[name]}")
                continue
            seen[name] = line
            if name == "base" and not prefix and "base" not in types:
                self.base = self._leaf(loader, value_node, where, key)
            elif name not in types and self.saved and key in RENAMED:
                self._set(RENAMED[key], self._leaf(loader, value_node, where, key))
            elif name not in types:
                _unknown(key, where, self.schema, self.settings)
            elif not (isinstance(types[name], type) and dataclasses.is_dataclass(types[name])):
                self._set(key, self._leaf(loader, value_node, where, key))
            elif isinstance(value_node, yaml.MappingNode):
                self.section(loader, value_node, types[name], f"{key}.")
            else:  # a value where a section belongs; an empty one sets nothing
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
            value = loader.construct_object(node, deep=True)  # type: ignore[no-untyped-call]
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            what = getattr(error, "problem", None) or "cannot be read"
            self._problem(key, f"{where}: {key}: {what}")
            return None
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        return Setting(value, node.value if plain else "", where)
