"""`pip install .` brings everything: packages, recipes, plugins and the console script."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.house.file_map import FOLDERS, IGNORED, ROOT, source_files

pytest.importorskip("setuptools", reason="building a wheel offline needs setuptools in the environment")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, so that no build folder is left in the working tree."""
    copy = tmp_path_factory.mktemp("copy")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns(*IGNORED))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "out", "."],
        cwd=copy, check=True,
    )  # fmt: skip
    (built,) = (copy / "out").glob("*.whl")
    return built


def test_holds_every_source_file(wheel: Path) -> None:
    renamed = {"plugins": "medunifier_plugins", "recipes": "medunifier_recipes"}
    wanted = set()
    for name in source_files():
        folder, rest = name.split("/", 1)
        if folder not in ("benchmarks", "experiments"):
            wanted.add(f"{renamed.get(folder, folder)}/{rest}")
    wanted |= {"medunifier/py.typed", "medunifier_cli/py.typed"}  # empty, and told to type checkers alone
    assert wanted - set(zipfile.ZipFile(wheel).namelist()) == set()


def test_works_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    """Loaded from the wheel and nowhere else: recipes by name, verbs, plugins."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    script = (
        "import sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import medunifier_cli\n"
        f"assert medunifier_cli.__file__.startswith({str(tmp_path)!r}), medunifier_cli.__file__\n"
        "from medunifier_cli.recipe.load import find_recipe, load_recipe\n"
        f"assert str(find_recipe('full')).startswith({str(tmp_path)!r})\n"
        "assert load_recipe('full').model.qformer.queries == 32\n"
        "from medunifier_cli.plugin_index import load_dataset\n"
        "assert type(load_dataset('phantom')).__module__ == 'medunifier_plugins.phantom.dataset'\n"
        "from medunifier_cli.cli import mu\n"
        "mu(['--help'], prog_name='mu')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout
    assert (
        "mu = medunifier_cli.__main__:main" in next(tmp_path.glob("*.dist-info/entry_points.txt")).read_text()
    )
