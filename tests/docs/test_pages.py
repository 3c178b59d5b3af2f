"""Every block of the pages runs as it is written, or says in one line why not; CONTRIBUTING.md has the rules.

A block of bash runs under bash in the world of `world.py`, the blocks of a page one after another. A block
that begins with the name of a file is written to it. Whether it runs or not, what it types exists.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from medunifier_cli.recipe.load import load_any
from tests.docs import world
from tests.docs.blocks import MARKS, RUN, SHOWN, Block, blocks, blocks_of, pages
from tests.docs.calls import check_batch, faults
from tests.docs.stand_ins import StandIns, bash, stand_ins
from tests.folders import ROOT

PAGES = pages()
STATE = '\nprintf "%s\\n" "$PWD" "${MU_DATA-}" "${MU_RUNS-}" > '
"""Folder and roots in which the next block continues, as in one shell."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIns]:
    folder = tmp_path_factory.mktemp("programs")
    with stand_ins(folder / "bin", world.write_recipes(folder / "recipes")) as made:
        yield made


@pytest.fixture(scope="module")
def home(programs: StandIns, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world that no block has touched."""
    folder = tmp_path_factory.mktemp("world")
    world.build(folder, programs)
    return folder


def run(found: list[Block], home: Path, folder: Path, programs: StandIns) -> None:
    """Run blocks in a copy of the world; its Python comes last, as one program."""
    here = folder / "here"
    shutil.copytree(home, here, symlinks=True)
    roots = {"MU_DATA": "", "MU_RUNS": ""}
    cwd, state, python = here, folder / "state", ""
    programs.plugins.clear()
    if any("mu pretrain full" in block.text for block in found):  # the page trains what others have
        shutil.rmtree(here / "runs/full")
    for block in found:
        if block.language == "bash":
            code = block.text.replace("/path/to/mu", str(here))
            done = bash(code + STATE + str(state), cwd, programs, roots)
            assert done.returncode == 0, f"{block.place}\n{done.stdout}{done.stderr}"
            where, *set_to = state.read_text().splitlines()
            cwd = Path(where)
            roots = dict(zip(roots, set_to, strict=True))
        elif block.file:
            (cwd / block.file).parent.mkdir(parents=True, exist_ok=True)
            (cwd / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            python += block.text
    if python:
        (cwd / "blocks.py").write_text(python, encoding="utf-8")
        code, out, err = programs.answer(["python", "blocks.py"], programs.environment(roots), str(cwd))
        assert code == 0, f"{found[0].page}\n{out}{err}"


def chosen(page: str, *marks: str) -> list[Block]:
    return [block for block in blocks(page) if block.language in RUN and block.mark in marks]


FAST = [page for page in PAGES if any(block.language in ("bash", "python") for block in chosen(page, ""))]
SLOW = [page for page in PAGES if chosen(page, "slow")]


@pytest.mark.parametrize("page", FAST)
def test_the_page_runs_as_written(page: str, home: Path, tmp_path: Path, programs: StandIns) -> None:
    run(chosen(page, ""), home, tmp_path, programs)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW)
def test_the_slow_blocks_run_as_well(page: str, home: Path, tmp_path: Path, programs: StandIns) -> None:
    run(chosen(page, "", "slow"), home, tmp_path, programs)


@pytest.mark.parametrize("page", PAGES)
def test_each_block_is_run_or_says_why_not(page: str) -> None:
    found = blocks(page)
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(MARKS.findall(text)) == sum(bool(block.mark) for block in found), (
        "marks are right above a block"
    )
    for block in found:
        assert block.language in (*RUN, *SHOWN), f"{block.place}: a block has one of these languages"
        if block.mark == "run by":
            test = ROOT / block.reason
            assert Path(page).name in test.read_text(encoding="utf-8"), (
                f"{block.place}: {test} does not read it"
            )
        elif block.mark:
            assert len(block.reason.split()) >= 2, f"{block.place}: say why"


@pytest.mark.parametrize("page", PAGES)
def test_what_is_typed_exists(page: str) -> None:
    found = [
        block for block in blocks(page) if block.language == "bash" and "this page adds" not in block.reason
    ]
    assert [fault for block in found for fault in faults(block)] == []


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.language == "yaml" for b in blocks(page))])
def test_recipes_shown_are_recipes(page: str, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            read = yaml.safe_load(block.text)
            if isinstance(read, dict) and {"base", "stage"} & set(read):
                path = tmp_path / "shown.yaml"
                path.write_text(block.text, encoding="utf-8")
                check_batch(load_any(path))


WRONG = """\
<!-- not run: minutes on a laptop -->
```bash
mu pretrain demo --nmae x
mu pretrain demo -o optim.peak_lrr=1   # a comment
FOO=1 mu report film.png --format xml > out.txt && mu nothing
mu prepare phantom -o trian=3 | sbatch
make tea
python -m experiments.nothing
srun --ntasks=2 mu retrieve --top ten --query "a b"
mu score a b --format json
```
"""


def test_what_does_not_exist_is_found() -> None:
    (block,) = blocks_of(WRONG, "PAGE.md")
    assert (block.line, block.mark, block.reason) == (2, "not run", "minutes on a laptop")
    found = list(faults(block))
    expected = ("--nmae", "optim.peak_lrr", "xml", "no such verb", "trian", "tea", "experiments/nothing")
    assert len(found) == len(expected), json.dumps(found, indent=1)
    for fault, part in zip(found, expected, strict=True):
        assert part in fault


@pytest.mark.parametrize("code", ["mu report no-such-film.png", "mu runs\nfalse", "sbatch no-such-job.sh"])
def test_a_line_that_fails_ends_the_block(code: str, home: Path, tmp_path: Path, programs: StandIns) -> None:
    with pytest.raises(AssertionError, match=r"PAGE\.md:1"):
        run([Block("PAGE.md", 1, "bash", code, "", "")], home, tmp_path, programs)
