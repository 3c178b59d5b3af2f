"""Generate the reference part of `docs/recipes.md`, and the JSON Schemas of recipes.

`python -m medunifier_cli.recipe.reference` writes both.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from medunifier_cli.files import read_text, write_text
from medunifier_cli.recipe.bounds import Bounds
from medunifier_cli.recipe.documented.fields import field_docs
from medunifier_cli.recipe.documented.json_schema import FOLDER, write_schemas
from medunifier_cli.recipe.settings import field_types
from medunifier_cli.recipe.stages import SCHEMAS

PAGE = Path("docs/recipes.md")
MARK = "<!-- Generated from here on by `python -m medunifier_cli.recipe.reference`; edit the docstrings. -->"


def reference() -> str:
    """Markdown with a table for each section of each schema; a section that several share is printed once,
    and the others name it."""
    parts: list[str] = []
    printed: dict[type, tuple[str, str]] = {}
    for stage, schema in SCHEMAS.items():
        parts.append(f"## `mu {stage}`\n\n{inspect.getdoc(schema)}\n")
        _sections(schema, stage, "", parts, printed)
    return "\n".join(parts)


def _sections(
    schema: type, stage: str, prefix: str, parts: list[str], printed: dict[type, tuple[str, str]]
) -> None:
    types, docs = field_types(schema), field_docs(schema)
    plain = {name: kind for name, kind in types.items() if not dataclasses.is_dataclass(kind)}
    if prefix and schema not in printed:
        parts.append(f"### `{prefix}`\n\n{inspect.getdoc(schema)}\n")
    elif prefix:
        of_stage, first = printed[schema]
        under = f" under [`mu {of_stage}`](#mu-{of_stage})" if of_stage != stage else ""
        parts.append(f"### `{prefix}`\n\nThe keys of `{first}`{under}.\n")
        return
    printed[schema] = (stage, prefix)
    if plain:
        rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
        defaults = {field.name: field.default for field in dataclasses.fields(schema)}
        rows += [
            f"| `{prefix + '.' if prefix else ''}{name}` | {_words(kind)} | `{_default(defaults[name])}`"
            f" | {docs.get(name, '').replace('|', chr(92) + '|')} |"
            for name, kind in plain.items()
        ]
        parts.append("\n".join(rows) + "\n")
    for name, kind in types.items():
        if name not in plain:
            _sections(kind, stage, f"{prefix}.{name}" if prefix else name, parts, printed)


def _words(kind: Any) -> str:
    """A type in the words of the reference."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        bounds = next(item for item in args[1:] if isinstance(item, Bounds))
        return f"{_words(args[0])}{_range(bounds)}"
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in args)
    if origin is tuple:
        return f"list of {_words(args[0])}"
    if args:  # X | None
        return " or ".join(_words(arg) for arg in args)
    return {bool: "`true`, `false`", int: "whole number", float: "number", str: "text", type(None): "`null`"}[
        kind
    ]


def _range(bounds: Bounds) -> str:
    if bounds.high == math.inf:
        return f" {'>' if bounds.above else '>='} {bounds.low:g}"
    return f" in {'(' if bounds.above else '['}{bounds.low:g}, {bounds.high:g}]"


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return '""' if value == "" else "null" if value is None else str(value)


def main() -> None:
    """Rewrite the page below its mark, and the schemas."""
    write_schemas(FOLDER)
    intro = read_text(PAGE).split(MARK)[0]
    write_text(PAGE, f"{intro}{MARK}\n\n{reference()}")


if __name__ == "__main__":
    main()
