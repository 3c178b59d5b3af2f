"""What the package declares that it needs, what it imports, and how the Makefile installs both."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement

from tests.folders import ROOT
from tests.house.lock import LOCK, canonical, declared

OURS = ("medunifier", "medunifier_cli", "plugins")
EXTRAS = (
    "clinical", "dicom", "fid", "mlflow", "nlg", "onnx", "parquet", "tensorboard", "trackio", "wandb",
)  # fmt: skip
NEWER = {  # module -> names that Python 3.10 does not have; PEP 451 and later "What's new" pages
    "typing": {"Self", "Never", "LiteralString", "assert_never", "override", "Required", "NotRequired",
               "Unpack", "TypeVarTuple", "reveal_type", "TypeAliasType", "ReadOnly", "TypeIs"},
    "datetime": {"UTC"}, "enum": {"StrEnum", "verify", "nonmember", "member"}, "contextlib": {"chdir"},
    "hashlib": {"file_digest"}, "itertools": {"batched"}, "collections.abc": {"Buffer"},
    "asyncio": {"TaskGroup", "timeout", "Runner"}, "operator": {"call"}, "math": {"cbrt", "exp2", "sumprod"},
    "warnings": {"deprecated"}, "copy": {"replace"}, "queue": {"ShutDown"}, "inspect": {"getmembers_static"},
}  # fmt: skip
NEW_MODULES = {"tomllib"}
NEW_NAMES = {"ExceptionGroup", "BaseExceptionGroup", "PythonFinalizationError"}


def trees(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    """Every file in the grammar of the oldest Python that is declared."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            yield str(path.relative_to(ROOT)), ast.parse(text, path.name, feature_version=(3, 10))


def imported(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """The top package of each absolute import, and whether it is imported when the module is."""
    lazy = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.dump(outer.test))
        for node in ast.walk(outer)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        yield from ((name.partition(".")[0], id(node) not in lazy) for name in names)


def names_of(table: str) -> set[str]:
    return {canonical(Requirement(line).name) for line in declared(table)}


def undeclared(files: Iterator[tuple[str, ast.Module]]) -> list[str]:
    """Imports of packages that are not declared, or of an extra's at import time."""
    base, extras = names_of("dependencies"), set[str]().union(*map(names_of, EXTRAS))
    dists = packages_distributions()
    problems = []
    for path, tree in files:
        for module, at_once in imported(tree):
            if module in sys.stdlib_module_names or module.startswith("medunifier"):
                continue
            # an extra that is not installed is called as its module
            packages = {canonical(name) for name in dists.get(module, [module])}
            if not packages & (base if at_once else base | extras):
                problems.append(f"{path} imports {module}{'' if at_once else ' in a function'}")
    return problems


def test_every_import_is_declared_and_those_of_extras_are_lazy() -> None:
    assert undeclared(trees(*OURS)) == []


def test_an_undeclared_import_is_found() -> None:
    text = "import scipy\nimport tensorboard\ndef f():\n    import wandb\n    import jsonschema\n"
    assert undeclared(iter([("a.py", ast.parse(text))])) == [
        "a.py imports scipy", "a.py imports tensorboard", "a.py imports jsonschema in a function",
    ]  # fmt: skip


def test_nothing_is_newer_than_the_oldest_python_that_is_declared() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'requires-python = ">=3.10"' in text
    assert 'target-version = "py310"' in text
    found = []
    for path, tree in trees(*OURS, "recipes", "tests", "benchmarks", "experiments"):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                new = {alias.name for alias in node.names} & NEWER.get(node.module or "", set())
                found += [f"{path}: {node.module}.{name}" for name in new]
                found += [f"{path}: {node.module}"] if node.module in NEW_MODULES else []
            elif isinstance(node, ast.Import):
                found += [f"{path}: {alias.name}" for alias in node.names if alias.name in NEW_MODULES]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.attr in NEWER.get(node.value.id, set()):
                    found.append(f"{path}: {node.value.id}.{node.attr}")
            elif isinstance(node, ast.Name) and node.id in NEW_NAMES:
                found.append(f"{path}: {node.id}")
    assert found == []


def test_the_lock_file_holds_one_version_of_all_that_is_needed_and_allowed() -> None:
    pins = [Requirement(line) for line in LOCK.read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    versions = {}
    for pin in pins:
        (only,) = pin.specifier
        assert (only.operator, pin.marker, pin.url) == ("==", None, None), pin
        versions[canonical(pin.name)] = only.version
    assert len(versions) == len(pins)
    for line in declared("dependencies"):
        requirement = Requirement(line)
        assert requirement.specifier.contains(versions[canonical(requirement.name)]), f"{line}: `make lock`"
    # what a fresh machine needs and nothing declares, such as PyTorch's own
    assert {"sympy", "typing-extensions", "filelock"} <= versions.keys()


def commands(*arguments: str) -> tuple[list[str], str]:
    """What `make` would run in a fresh clone, and what it says on stderr."""
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "VENV=no-such-folder", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert (done.returncode == 0) == (not done.stderr), done.stderr
    return [line for line in done.stdout.splitlines() if "pip install" in line], done.stderr


def test_make_demo_installs_the_build_and_the_versions_that_are_asked_for() -> None:
    pip = "no-such-folder/bin/python -m pip install --disable-pip-version-check"
    (plain,), _ = commands("demo")
    assert plain.split() == [*pip.split(), "-e", "."]
    url = "TORCH_INDEX=https://index.example/cpu"
    first, second = commands("demo", "TORCH=cpu", url)[0]
    assert first.split() == [*pip.split(), "--index-url", url.partition("=")[2], "torch", "torchvision"]
    assert second == plain, "pip finds PyTorch there, and takes the rest from its own index"
    locked = [line.split() for line in commands("demo", "TORCH=cpu", url, "LOCKED=1")[0]]
    assert [line[5:7] for line in locked] == [["--constraint", ".ci/requirements.lock"]] * 2
    assert (ROOT / ".ci" / "requirements.lock") == LOCK


@pytest.mark.parametrize(("given", "threads"), [((), "1"), (("THREADS=8",), "8")])
def test_make_demo_runs_on_one_thread_unless_told_otherwise(given: tuple[str, ...], threads: str) -> None:
    words = ["make", "--dry-run", "--print-data-base", "demo", *given]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert re.findall(r"^demo: OMP_NUM_THREADS := (.*)$", done.stdout, re.M) == [threads]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["TORCH=cpu"], "TORCH=cpu needs TORCH_INDEX=URL"), (["TORCH=rocm"], "only `cpu` can be chosen")],
)
def test_make_says_what_is_missing_before_it_does_anything(arguments: list[str], message: str) -> None:
    assert message in commands("demo", *arguments)[1]


def test_readme_says_how_to_install_without_cuda() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"make demo TORCH=cpu TORCH_INDEX=", text)
    assert "LOCKED=1" in text
