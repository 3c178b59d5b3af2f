"""Generate a JSON Schema of each kind of recipe, by which an editor completes, explains and checks recipes.

`python -m medunifier_cli.recipe.reference` writes them to `recipes/schema/`, with the reference. They check
each key as `build.py` does; what several keys must agree on, `problems()` of a recipe checks alone.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
import types
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from medunifier_cli.files import make_folder, write_text
from medunifier_cli.recipe.bounds import Bounds
from medunifier_cli.recipe.build import LONGEST_LIST, LONGEST_TEXT
from medunifier_cli.recipe.documented.fields import field_docs
from medunifier_cli.recipe.settings import field_types
from medunifier_cli.recipe.stages import SCHEMAS

FOLDER = Path("recipes/schema")
DIALECT = "http://json-schema.org/draft-07/schema#"
"""The newest that yaml-language-server, and so most editors, read in full."""
COMMENT = re.compile(r"^# yaml-language-server: \$schema=.*\n", re.MULTILINE)
"""The line by which a YAML file names its schema to an editor, by a path beside it or a URI."""
BASE = "Recipe that this one builds on: a shipped one by name, or a file beside this one; state what differs."
ONE_LINE = r"^[^\u0000-\u001f\u007f-\u009f]*$"
"""Text without control characters."""


def schema_of(stage: str) -> dict[str, Any]:
    """The JSON Schema of the recipes of a verb; a recipe may leave out any key.

    Args:
        stage: a key of `SCHEMAS`.
    """
    recipe = SCHEMAS[stage]
    section = _section(recipe)
    base = {"type": "string", "minLength": 1, "description": BASE}
    return {
        "$schema": DIALECT,
        "title": f"Recipe of mu {stage}",
        **section,
        "properties": {"base": base, **section["properties"]},
    }


def _section(schema: type) -> dict[str, Any]:
    docs = field_docs(schema)
    defaults = {field.name: field.default for field in dataclasses.fields(schema)}
    properties = {}
    for name, kind in field_types(schema).items():
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            # an empty section sets nothing, and is allowed
            properties[name] = {**_section(kind), "type": ["object", "null"]}
        else:
            properties[name] = {**_value(kind), "default": defaults[name], "description": docs[name]}
    description = " ".join(str(inspect.getdoc(schema)).split())
    return {
        "description": description, "type": "object", "additionalProperties": False, "properties": properties,
    }  # fmt: skip


def _value(kind: Any) -> dict[str, Any]:
    """The schema of a single value, as `build.check` takes it."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        bounds = [item for item in args[1:] if isinstance(item, Bounds)]
        return {**_value(args[0]), **{key: limit for one in bounds for key, limit in _limits(one).items()}}
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_value(one) for one in args]}
    if origin is tuple:
        return {"type": "array", "items": _value(args[0]), "maxItems": LONGEST_LIST}
    if kind is int:  # 64 bits, as `build.check` has it
        return {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
    simple: dict[Any, dict[str, Any]] = {
        bool: {"type": "boolean"},
        float: {"type": "number"},
        str: {"type": "string", "maxLength": LONGEST_TEXT, "pattern": ONE_LINE},
        type(None): {"type": "null"},
    }
    return simple[kind]


def _limits(bounds: Bounds) -> dict[str, float]:
    limits = {"exclusiveMinimum" if bounds.above else "minimum": bounds.low, "maximum": bounds.high}
    return {key: limit for key, limit in limits.items() if math.isfinite(limit)}


def write_schemas(folder: Path) -> None:
    """Write `<stage>.json` of every stage."""
    make_folder(folder)
    for stage in SCHEMAS:
        write_text(folder / f"{stage}.json", json_of(stage))


def json_of(stage: str) -> str:
    """The text of a schema's file."""
    return json.dumps(schema_of(stage), indent=1, ensure_ascii=False) + "\n"


def with_comment(text: str, stage: str) -> str:
    """A recipe's text that names the installed schema of its stage to editors, wherever the file is.

    Args:
        text: with such a line, which is replaced, or without.
    """
    schema = Path(str(resources.files("medunifier_recipes").joinpath(f"schema/{stage}.json")))
    return f"# yaml-language-server: $schema={schema.as_uri()}\n{COMMENT.sub('', text)}"
