"""Rules that a reader relies on: names, sizes, imports, help texts, and pages that are true and linked."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import click
import pytest

from medunifier_cli import cli, plugin_index
from medunifier_cli.recipe import reference
from tests.house import file_map
from tests.house.test_floors import FLOORS

ROOT = file_map.ROOT
SOURCES = [name for name in file_map.source_files() if name.endswith(".py")]
VERBS = cli.mu.list_commands(click.Context(cli.mu))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

FILE_LINES, FUNCTION_LINES = 320, 70
"""About 300 and about 60 are wanted; this much is the end of about."""

HEAD_MODULES = {
    entry.module for entry in distribution("medunifier").entry_points if entry.group == plugin_index.HEADS
}


def modules_without_torch() -> list[str]:
    """What `mu --help`, a recipe or a data set plugin imports."""
    light = [
        name
        for name in SOURCES
        if name.startswith(("medunifier_cli/commands/", "medunifier_cli/recipe/", "plugins/"))
        or name
        in {f"medunifier_cli/{stem}.py" for stem in ("cli", "__main__", "plugin_index", "roots", "errors")}
        or name in ("medunifier_cli/data/contract.py", "medunifier/__init__.py", "medunifier/answers.py")
    ]
    names = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in light]
    names = [re.sub(r"^plugins\b", "medunifier_plugins", name) for name in names]
    return [name for name in names if name not in HEAD_MODULES]


def test_file_map_lists_exactly_the_files_there_are() -> None:
    listed = re.findall(r"^- `([^`]+)` - .", file_map.PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(listed) == sorted(file_map.source_files()), "run `make docs`"


def test_file_map_says_what_the_files_say() -> None:
    assert file_map.PAGE.read_text(encoding="utf-8") == file_map.file_map(), "run `make docs`"


def test_recipe_reference_is_up_to_date() -> None:
    text = (ROOT / reference.PAGE).read_text(encoding="utf-8")
    assert text.split(reference.MARK)[1].strip() == reference.reference().strip(), "run `make docs`"


def test_every_recipe_key_is_documented() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \|.*\| (.*) \|$", reference.reference(), flags=re.MULTILINE)
    assert len(rows) > 50
    assert [key for key, meaning in rows if not meaning.strip()] == []


def test_torch_is_not_imported_where_nothing_needs_it() -> None:
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules: sys.exit(f'{name} imports torch')\n"
    )
    names = modules_without_torch()
    assert "medunifier_cli.recipe.load" in names
    done = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SOURCES)
def test_file(name: str) -> None:
    path = ROOT / name
    assert path.stem not in {"utils", "util", "common", "helpers", "helper", "misc"}, "say what it knows"
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 <= FUNCTION_LINES, node.name


def test_every_file_of_commands_is_a_verb() -> None:
    stems = {path.stem for path in cli.COMMANDS.rglob("*.py")} - {"__init__"}
    assert stems == {verb.replace("-", "_") for verb in VERBS}


@pytest.mark.parametrize("verb", VERBS)
def test_verb_and_its_options_have_help(verb: str) -> None:
    command = cli.mu.get_command(click.Context(cli.mu), verb)
    assert command is not None
    assert command.help
    assert cli.help_line(cli.source_of(verb))
    without = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert without == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_names_only_verbs_files_and_targets_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    # a how-to names what its reader is about to make
    made = set(re.findall(r"^# (\S+\.(?:py|toml))$", text, flags=re.MULTILINE))
    verbs = set(re.findall(r"(?:^|[`$(])\s*mu ([a-z][a-z-]+)", text, flags=re.MULTILINE))
    new = {Path(name).stem for name in made if name.startswith("medunifier_cli/commands/")}
    assert verbs <= {*VERBS, *new}, "a verb that does not work is not named"
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.MULTILINE)) <= targets
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), link
    for name in set(re.findall(r"`((?:\w+/)+\w+\.py)`", text)) - made:
        assert any((root / name).exists() for root in (ROOT, ROOT / "medunifier_cli")), name


def test_every_page_can_be_reached_from_readme() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
            waiting += [page.parent / link for link in links]
    assert {page.name for page in PAGES if page.resolve() not in reached} == set()


def test_architecture_page_lists_the_floors_that_are_tested() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = text.split("<!-- floors -->")[1].split("```")[1].removeprefix("text")
    assert tuple(re.findall(r"\w+", listed)) == FLOORS


def test_readme_shows_every_verb() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [verb for verb in VERBS if f"mu {verb}" not in text] == []


def test_every_package_is_declared() -> None:
    """A folder left out of pyproject.toml works where it was written and is missing from a wheel."""
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    folders = {str(Path(name).parent) for name in SOURCES if name.startswith("medunifier")}
    assert [folder for folder in sorted(folders) if f'"{folder.replace("/", ".")}"' not in declared] == []


def test_built_in_plugins_all_load(capsys: pytest.CaptureFixture[str]) -> None:
    for group in (plugin_index.DATASETS, plugin_index.HEADS):
        assert set(plugin_index.load_all(group)) == set(plugin_index.entries(group)) != set()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", sorted(plugin_index.entries(plugin_index.DATASETS)))
def test_built_in_data_sets_name_citation_licence_labels_and_homepage(name: str) -> None:
    """As attributes, which `mu prepare --list` shows, and alike in the class's docstring, for a reader."""
    plugin = plugin_index.load_dataset(name)
    docstring = " ".join((inspect.getdoc(type(plugin)) or "").split())
    assert plugin.title
    assert plugin.needs
    assert re.search(r"Labels: \w", docstring)
    for label, text in {"Citation": plugin.citation, "Licence": plugin.licence}.items():
        assert text
        assert f"{label}: {text}" in docstring
    if plugin.needs_raw and plugin.raw_form == "folder":  # files of one's own have no homepage
        assert plugin.homepage.startswith("https://")
        assert f"Homepage: {plugin.homepage}" in docstring
    assert plugin.classes or "Labels: none" in docstring
    missing = [label for label in plugin.classes if label not in docstring]
    assert missing == [], "classes that the docstring's line of labels leaves out"


def test_continuous_integration_runs_make_test_and_nothing_else() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    commands = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert commands[-1] == "make test"
    assert all(line.startswith(("set ", "cd ")) for line in commands[:-1])


def test_changelog_has_an_unreleased_part() -> None:
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
