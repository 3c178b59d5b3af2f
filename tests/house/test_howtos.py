"""The how-to pages work as they are written: their code is taken out of the Markdown and run."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medunifier_cli import cli
from tests.house.file_map import ROOT

BLOCK = re.compile(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ENTRY_POINT = re.compile(r'\[project\.entry-points\."(.+)"\]\n(\S+) = "(.+)"')


def blocks(page: str) -> dict[str, str]:
    """File name -> code, of every block that opens with a comment that names its file."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return dict(BLOCK.findall(text))


def write(folder: Path, files: dict[str, str]) -> None:
    for name, code in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code, encoding="utf-8")


def run(folder: Path, *arguments: str) -> str:
    """Python in `folder`, whose modules and entry points come before those installed."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def plugin_folder(page: str, folder: Path) -> Path:
    """The page's files, and the entry point as `pip install` would announce it."""
    files = blocks(page)
    match = ENTRY_POINT.search(files["pyproject.toml"])
    assert match is not None
    group, name, target = match.groups()
    info = f"{name}-1.0.dist-info"
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    files[f"{info}/entry_points.txt"] = f"[{group}]\n{name} = {target}\n"
    write(folder, files)
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the package and of the tests' tiny model, to change."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "medunifier_cli", tmp_path / "medunifier_cli", ignore=ignore)
    write(tmp_path, {"tests/__init__.py": "", "tests/tiny.py": (ROOT / "tests" / "tiny.py").read_text()})
    return tmp_path


def insert(path: Path, line: int, code: str) -> None:
    """Put `code` below line number `line` of a file."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([*lines[:line], code, *lines[line:]]), encoding="utf-8")


def assignment(body: list[ast.stmt], name: str) -> tuple[int, ast.AnnAssign | ast.Assign]:
    """Where in a body a name is assigned, and the statement."""
    for place, node in enumerate(body):
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            assert isinstance(node, ast.AnnAssign | ast.Assign)
            return place, node
    raise AssertionError(f"{name} is not assigned")


def test_a_data_set_from_an_empty_folder_is_prepared(tmp_path: Path) -> None:
    folder = plugin_folder("howto-dataset.md", tmp_path)
    run(folder, "make_raw.py")
    assert "1 passed" in run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_xrays.py")


def test_a_head_from_an_empty_folder_gives_logits(tmp_path: Path) -> None:
    folder = plugin_folder("howto-head.md", tmp_path)
    assert "1 passed" in run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_head.py")


def test_an_objective_is_trained_after_the_changes_of_its_page(checkout: Path) -> None:
    files = blocks("howto-objective.md")
    schema = checkout / "medunifier_cli/recipe/schema.py"
    field = files.pop("medunifier_cli/recipe/schema.py")
    (section,) = (
        node
        for node in ast.parse(schema.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "ObjectivesConfig"
    )
    place, _ = assignment(section.body, "tig")
    insert(schema, section.body[place + 1].end_lineno or 0, field)

    listing = checkout / "medunifier_cli/objectives/pretraining.py"
    imported, entry = files.pop("medunifier_cli/objectives/pretraining.py").splitlines(keepends=True)
    body = ast.parse(listing.read_text(encoding="utf-8")).body
    insert(listing, (assignment(body, "OBJECTIVES")[1].end_lineno or 0) - 1, entry)
    insert(listing, next(node.lineno for node in body if isinstance(node, ast.Import)) - 1, imported)

    (test,) = (name for name in files if name.startswith("tests/"))
    write(checkout, files)
    assert "2 passed" in run(checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", test)


def test_a_verb_works_after_the_changes_of_its_page(checkout: Path) -> None:
    files = blocks("howto-verb.md")
    verbs = files.pop("medunifier_cli/cli.py")
    named = ast.literal_eval(ast.parse(verbs).body[0].value)  # type: ignore[attr-defined]
    assert tuple(verb for verb in named if verb != "splits") == cli.VERBS, "the page lists all verbs"
    path = checkout / "medunifier_cli/cli.py"
    text = path.read_text(encoding="utf-8")
    _, old = assignment(ast.parse(text).body, "VERBS")
    lines = text.splitlines(keepends=True)
    path.write_text("".join([*lines[: old.lineno - 1], verbs, *lines[old.end_lineno :]]), encoding="utf-8")

    (test,) = (name for name in files if name.startswith("tests/"))
    write(checkout, files)
    assert "2 passed" in run(checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", test)
