"""Text files are read and written by `files.py`, as UTF-8 in every locale; a line ends at a line feed."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.test_floors import Sources, sources

HELPERS = "medunifier_cli/files.py"
RUNS = ("run", "Popen", "check_output")
MODE = re.compile(r"[rwxabt+]+")


def text_open(call: ast.Call) -> bool:
    """Whether a call opens a text file without saying in which encoding."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name != "open" or any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    position = 0 if isinstance(call.func, ast.Attribute) else 1
    modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    mode = (modes or [*call.args[position : position + 1], None])[0]
    if mode is None:  # `path.open()` and `open(path)`; `Image.open(path)` has an argument
        return not call.args[position:] and (position == 1 or not call.args)
    return isinstance(mode, ast.Constant) and bool(MODE.fullmatch(str(mode.value))) and "b" not in mode.value


def of_error(call: ast.Call) -> bool:
    """`str(error).splitlines()`, which splits a message of ours or of a library."""
    value = call.func.value if isinstance(call.func, ast.Attribute) else None
    return isinstance(value, ast.Call) and getattr(value.func, "id", "") == "str"


def careless(files: Sources) -> Iterator[str]:
    """Where a file is read, written, decoded or split into lines in another way than by `files.py`."""
    for path, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if name in ("read_text", "write_text") and getattr(node.func.value, "id", "") != "files":
                yield f"{path}:{node.lineno}: {name} of Path"
            elif name == "splitlines" and not of_error(node):
                yield f"{path}:{node.lineno}: splitlines"
            elif name == "TextIOWrapper" and path != HELPERS:
                yield f"{path}:{node.lineno}: TextIOWrapper"
            elif {"text", "universal_newlines"} & {keyword.arg for keyword in node.keywords} and name in RUNS:
                yield f"{path}:{node.lineno}: output of a process without encoding"
            elif text_open(node):
                yield f"{path}:{node.lineno}: open without encoding"


def test_text_is_read_and_written_in_one_way() -> None:
    assert [
        line for name in ("medunifier", "medunifier_cli", "plugins") for line in careless(sources(name))
    ] == []


@pytest.mark.parametrize(
    "line",
    [
        "path.read_text()",
        "path.read_text(encoding='utf-8').splitlines()",
        "path.write_text('x')",
        "open(path)",
        "open(path, 'w')",
        "path.open()",
        "path.open('a')",
        "path.open(mode='r')",
        "text.splitlines()",
        "subprocess.run(command, text=True)",
    ],
)
def test_a_careless_line_is_found(line: str) -> None:
    assert list(careless({"plugins/x.py": line}))


@pytest.mark.parametrize(
    "line",
    [
        "open(path, 'rb')",
        "path.open('wb')",
        "path.open('a', encoding='utf-8')",
        "Image.open(path)",
        "Shards.open(folder, split)",
        "tarfile.open(path, 'r:')",
        "archive.open(member)",
        "os.open(path, os.O_RDONLY)",
        "str(error).splitlines()",
        "read_text(path)",
    ],
)
def test_a_careful_line_is_not(line: str) -> None:
    assert list(careless({"plugins/x.py": line})) == []


COMMANDS = """
import sys, warnings
warnings.filterwarnings("error", category=EncodingWarning, module=r"medunifier_(cli|plugins)\\b")
from click.testing import CliRunner
from medunifier_cli import plugin_index
from medunifier_cli.cli import mu
plugin_index.load_all(plugin_index.DATASETS)
for arguments in (
    ["--help"], ["prepare", "--list"],
    ["prepare", "phantom", "--out", "shards", "--size", "64", "--workers", "1", "-o", "train=4"],
    ["check", "demo", "-o", "data.shards=shards"],
    ["score", "--reports", "reports.jsonl"],
):
    result = CliRunner().invoke(mu, arguments, catch_exceptions=False)
    if result.exit_code:
        sys.exit(f"{arguments}: {result.stdout}{result.stderr}")
"""


@pytest.mark.slow
def test_no_command_leaves_an_encoding_to_the_locale(tmp_path: Path) -> None:
    """Python's own check, at the places that these commands reach."""
    line = '{"reference": "no\u2028effusion \u2013 clear", "hypothesis": "no effusion"}\n'
    (tmp_path / "reports.jsonl").write_text(line * 2, encoding="utf-8")
    java = (
        tmp_path / "bin" / "java"
    )  # METEOR's real program takes seconds to start, and reads no file of ours
    java.parent.mkdir()
    java.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    java.chmod(0o755)
    environment = os.environ | {"PATH": f"{java.parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"PYTHONWARNDEFAULTENCODING": "1", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8", errors="replace",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
