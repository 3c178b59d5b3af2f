"""Tell of recipes: list the shipped ones, show one resolved with the origin of each setting, and copy one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from medunifier_cli.errors import RecipeError
from medunifier_cli.files import read_text, text_lines, write_text
from medunifier_cli.recipe.documented.json_schema import COMMENT, with_comment
from medunifier_cli.recipe.load import find_recipe, load_any, origins, plain, shipped_recipes, stage_of

DEFAULT = "default"
"""Origin of a setting that no file and no option sets."""


def shipped_rows() -> list[list[object]]:
    """A row for each shipped recipe under a header: name, stage, base, and its first sentence."""
    rows: list[list[object]] = [["recipe", "stage", "base", "what it is for"]]
    for name in shipped_recipes():
        path = find_recipe(name)
        text = read_text(path)
        base = (yaml.safe_load(text) or {}).get("base", "")
        rows.append([name, load_any(path).stage, base, _first_sentence(text_lines(path))])
    return rows


def _first_sentence(lines_of_file: Sequence[str]) -> str:
    lines = []
    for line in lines_of_file:
        if COMMENT.match(f"{line}\n"):
            continue
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    words = " ".join(lines)
    end = words.find(". ")
    return words if end < 0 else words[: end + 1]


def explained(recipe: str | Path, overrides: Iterable[str] = ()) -> list[tuple[str, Any, str]]:
    """Every setting of a recipe in the order of `docs/recipes.md`: dotted key, value, and where it was set.

    The place is a file and line, an option `-o`, or `DEFAULT`.

    Raises:
        RecipeError: what `load_recipe` raises.
    """
    loaded, places = origins(recipe, overrides)
    settings = plain(dataclasses.asdict(loaded))  # type: ignore[call-overload]
    return [(key, value, places.get(key, DEFAULT)) for key, value in _leaves(settings)]


def with_origins(recipe: str | Path, overrides: Iterable[str] = ()) -> str:
    """A recipe as YAML that is a recipe itself: resolved, with the origin of each setting as a comment.

    Raises:
        RecipeError: what `load_recipe` raises.
    """
    loaded, places = origins(recipe, overrides)
    lines = list(_yaml(plain(dataclasses.asdict(loaded)), places))  # type: ignore[call-overload]
    width = min(max(len(line) for line, _ in lines), 50)
    return "\n".join(f"{line:<{width}}  # {origin}" if origin else line for line, origin in lines)


def _leaves(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _yaml(settings: dict[str, Any], places: dict[str, str], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Lines of YAML, each with the origin of its setting; headings of sections have none."""
    indent = "  " * prefix.count(".")
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:", ""
            yield from _yaml(value, places, f"{prefix}{key}.")
        else:
            # in one line, however long: the comment belongs to it
            dumped = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
            written = dumped.removesuffix("...\n").strip()  # which ends a document of one word
            yield f"{indent}{key}: {written}", places.get(prefix + key, DEFAULT)


def copy_recipe(recipe: str | Path, target: Path) -> None:
    """Copy a recipe with its comments; the copy is checked, and names the installed schema to editors.

    Raises:
        RecipeError: no such recipe; the target exists or cannot be written; or the copy would not load, as
            its base is found from the folder of the original alone.
    """
    source = find_recipe(recipe)
    text = with_comment(read_text(source), stage_of(source))
    if target.exists():
        raise RecipeError(f"{target}: exists already; name another file, or remove it")
    if target.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"{target}: a recipe is a YAML file; give a name that ends in .yaml")
    if not target.parent.is_dir():
        raise RecipeError(f"{target.parent}: no such folder; make it first")
    write_text(target, text)
    try:
        load_any(target)
    except RecipeError as error:
        target.unlink()
        raise RecipeError(f"{target}: not copied, as it would not load there: {error}") from error
