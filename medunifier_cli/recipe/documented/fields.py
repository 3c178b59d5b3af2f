"""What each key of a recipe means: the string under its field.

Python discards such strings, so they are read from the source.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
from functools import cache
from pathlib import Path

from medunifier_cli.files import read_text


@cache
def field_docs(schema: type) -> dict[str, str]:
    """Field name -> the string under it, in the class or in the base that declares the field."""
    docs: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= _own_docs(base)
    return docs


def _own_docs(schema: type) -> dict[str, str]:
    tree = ast.parse(read_text(Path(inspect.getfile(schema))))
    body = next(
        node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == schema.__name__
    )
    docs = {}
    for field, below in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            docs[field.target.id] = " ".join(str(below.value.value).split())
    return docs
