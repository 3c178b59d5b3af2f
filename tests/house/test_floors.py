"""Imports go down: an ordered list of names, no circle of files, plugins that import their contract alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

import pytest

from tests.house.file_map import ROOT

FLOORS = (
    "errors", "temporary", "stopping", "files", "budget", "parsing", "terminal", "roots",
    "cluster", "distributed", "recipe", "scores", "run", "data", "prepare", "page", "model", "objectives",
    "prior", "plugin_index", "options", "checkpoint", "train", "pretended", "evaluate", "hub", "overview",
    "stages", "commands", "cli", "__main__",
)  # fmt: skip
"""The package's folders and modules from the ground up. Each imports only what is before it in this list."""
PACKAGE = "medunifier_cli"
CONTRACTS = (f"{PACKAGE}.data.contract", f"{PACKAGE}.model.head_contract")
"""All that a plugin may import of ours."""

Sources = Mapping[str, str]
"""Path relative to the root, with `/` -> text."""


def sources(folder: str) -> Sources:
    """The Python files below a folder."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


def module_of(path: str) -> str:
    """`medunifier_cli/data/loader.py` -> `medunifier_cli.data.loader`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(text: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every absolute import, lazy ones and those for type checkers too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def floor_of(name: str) -> int | None:
    """Index in `FLOORS` of a dotted name of the package; None for the package itself and for others' modules.

    Raises:
        ValueError: a folder or module that is not in the list.
    """
    parts = name.split(".")
    if parts[0] != PACKAGE or len(parts) == 1 or parts[1] == "__version__":
        return None
    return FLOORS.index(parts[1])


def climbing(files: Sources) -> list[str]:
    """Imports of a name that is further up than the importing file's own."""
    return [
        f"{path}:{line} imports {name}"
        for path, text in files.items()
        for line, name in imports(text)
        if (own := floor_of(module_of(path))) is not None
        and (other := floor_of(name)) is not None
        and other > own
    ]


def circle(files: Sources) -> list[str]:
    """The modules of one circle of imports, or nothing."""
    modules = {module_of(path): text for path, text in files.items()}
    needs: dict[str, set[str]] = {}
    for module, text in modules.items():
        named = {name for _, name in imports(text)}
        needs[module] = ({n for n in named if n in modules} | {n.rpartition(".")[0] for n in named}) & set(
            modules
        )
    done: set[str] = set()

    def follow(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        for other in sorted(needs[module] - {module}):
            if found := follow(other, [*way, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(modules) if (found := follow(module, []))), [])


def outside_contract(files: Sources) -> list[str]:
    """Imports of ours by plugins, other than the two contract modules."""
    return [
        f"{path}:{line} imports {name}"
        for path, text in files.items()
        for line, name in imports(text)
        if name.split(".")[0] == PACKAGE and not name.startswith(CONTRACTS)
    ]


def test_every_folder_and_module_has_its_floor() -> None:
    names = {path.split("/")[1].removesuffix(".py") for path in sources(PACKAGE)} - {"__init__"}
    assert names == set(FLOORS)


def test_no_import_climbs() -> None:
    assert climbing(sources(PACKAGE)) == []


def test_no_circle_of_files() -> None:
    assert circle(sources(PACKAGE)) == []
    assert circle(sources("plugins")) == []


def test_python_and_the_command_line_stand_next_to_each_other() -> None:
    """Both call what is below them, and neither the other."""
    ours = [(path, name) for path, text in sources("medunifier").items() for _, name in imports(text)]
    assert any(name.startswith("medunifier_cli.evaluate.") for _, name in ours)
    above = [f"{PACKAGE}.{floor}" for floor in ("stages", "commands", "cli")]
    assert [pair for pair in ours if pair[1].startswith(tuple(above))] == []
    theirs = [name for text in sources(PACKAGE).values() for _, name in imports(text)]
    assert [name for name in theirs if name.split(".")[0] == "medunifier"] == []


def test_plugins_import_their_contract_alone() -> None:
    assert outside_contract(sources("plugins")) == []


def test_no_folder_holds_more_than_ten_files() -> None:
    """More are an attic: nothing in a file's name tells a reader which of them to open. Those of `commands`
    have the names of the verbs, as many as there are."""
    counts: dict[str, int] = {}
    for path in [*sources(PACKAGE), *sources("plugins")]:
        folder, _, name = path.rpartition("/")
        counts[folder] = counts.get(folder, 0) + (name != "__init__.py")
    del counts[f"{PACKAGE}/commands"]
    assert {folder: count for folder, count in counts.items() if count > 10} == {}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("medunifier_cli/distributed/world.py", "from medunifier_cli.train.loop import fit"),
        ("medunifier_cli/model/vit.py", "def lazy():\n    from medunifier_cli.checkpoint import store"),
        ("medunifier_cli/errors.py", "import medunifier_cli.files"),
    ],
)
def test_a_climbing_import_is_seen(path: str, text: str) -> None:
    assert len(climbing({path: text})) == 1


def test_a_circle_is_seen() -> None:
    files = {
        "medunifier_cli/data/image.py": "from medunifier_cli.data.dicom import pixels",
        "medunifier_cli/data/dicom.py": "from medunifier_cli.data import levels",
        "medunifier_cli/data/levels.py": "from medunifier_cli.data.image import stretch",
    }
    assert set(circle(files)) == {module_of(path) for path in files}
    assert circle(dict(list(files.items())[:2])) == []


def test_a_plugin_that_imports_more_is_seen() -> None:
    text = "from medunifier_cli.data.contract import Record\nfrom medunifier_cli.data.shards import Shards"
    assert outside_contract({"plugins/mine.py": text}) == [
        "plugins/mine.py:2 imports medunifier_cli.data.shards.Shards"
    ]
