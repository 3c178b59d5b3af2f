"""Each promise of README.md names the tests that prove it, and they exist."""

from __future__ import annotations

import ast
import re

from tests.house.file_map import ROOT

TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def promises(text: str) -> list[str]:
    """The list of "What you can rely on", an entry each."""
    part = text.split("## What you can rely on")[1].split("\n## ")[0]
    return [" ".join(entry.split()) for entry in re.split(r"^- ", part, flags=re.MULTILINE)[1:]]


def missing(path: str, name: str) -> bool:
    """Whether pytest would not collect that test."""
    file = ROOT / path
    if not file.is_file() or not file.name.startswith("test_"):
        return True
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return (
        not any(isinstance(node, ast.FunctionDef) and node.name == name for node in body)
        or name[:5] != "test_"
    )


def unproven(text: str) -> list[str]:
    """Promises without a test, and tests that do not exist."""
    found = []
    for promise in promises(text):
        tests = TEST.findall(promise)
        found += [promise[:60]] if not tests else []
        found += [f"{path}::{name}" for path, name in tests if missing(path, name)]
    return found


def test_every_promise_names_tests_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(promises(text)) >= 6
    assert unproven(text) == []


def test_a_promise_without_a_test_is_seen() -> None:
    text = (
        "## What you can rely on\n\n- **Order.** Always. (`tests/house/test_promises.py::test_gone`)\n"
        "- **Speed.** Fast.\n\n## Limits\n\n- none\n"
    )
    assert unproven(text) == ["tests/house/test_promises.py::test_gone", "**Speed.** Fast."]
