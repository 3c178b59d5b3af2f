"""The campaign sees what it is there to see: a fault that is planted, of each kind, is found."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medunifier_cli.errors import DataError
from medunifier_cli.terminal.say import say
from tests.campaign import forked, fuzz, kills, parts, record, report, state
from tests.campaign.inputs import draw_edits, mutate, restructure
from tests.campaign.targets.target import SENTINEL


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "writes.so"
    if not forked.build(path):
        pytest.skip("needs a C compiler, as the exact kills do")
    return path


def preloaded(library: Path, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Python with `writes.c`, armed by `arm(at, action)` in the code."""
    start = (
        f"import ctypes, os; library = ctypes.CDLL({str(library)!r})\n"
        "def arm(at, action): library.campaign_arm(ctypes.c_long(at), action)\n"
    )
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    return subprocess.run(
        [sys.executable, "-c", start + code], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_a_process_dies_in_the_middle_of_the_write_that_was_chosen(library: Path, tmp_path: Path) -> None:
    code = f"arm(4, {forked.KILL_SELF})\nfor n in 'abc': open(n, 'w').write('12345678')\n"
    done = preloaded(library, code, tmp_path)
    assert done.returncode == -9
    # opening and writing are a change each: the fourth is the write of the second file
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "12345678", "b": "1234"}


def test_a_disk_stays_full_from_the_write_that_was_chosen(library: Path, tmp_path: Path) -> None:
    code = (
        f"arm(4, {forked.FULL})\nfound = []\nfor n in 'abc':\n"
        "    try:\n        with open(n, 'w') as file: file.write('12345678')\n"
        "    except OSError as error: found.append(error.errno)\nprint(found)\n"
    )
    assert preloaded(library, code, tmp_path).stdout.strip() == "[28, 28]"


def test_hdf5_is_seen_too(library: Path, tmp_path: Path) -> None:
    code = (
        f"import h5py; arm(0, {forked.COUNT})\n"
        "with h5py.File('x.h5', 'w', locking=False) as file: file['a'] = [1, 2, 3]\n"
        "print(library.campaign_changes())\n"
    )
    assert int(preloaded(library, code, tmp_path).stdout) >= 3


def test_a_connection_to_another_machine_is_said_and_refused(library: Path, tmp_path: Path) -> None:
    code = (
        "import socket\nfor to in ('192.0.2.1', '127.0.0.1'):\n"
        "    try: socket.socket().connect((to, 9))\n    except OSError as error: print(to, error.errno)\n"
    )
    done = preloaded(library, code, tmp_path)
    assert done.stderr.count("reached for the network") == 1
    assert "192.0.2.1 101" in done.stdout


def planted(read: Callable[[], object], debug: bool = False) -> str:
    """The kind of what `attempt` finds."""
    return fuzz.attempt(read, debug).split(" at ")[0]


def raises(error: BaseException) -> Callable[[], object]:
    def read() -> None:
        raise error

    return read


def test_good_results_and_lines_of_mu_pass() -> None:
    assert planted(lambda: None) == ""
    assert planted(raises(DataError("x.json: is no JSON; write it again"))) == ""
    assert planted(lambda: say("x.png: left out")) == ""


@pytest.mark.parametrize("error", [KeyError("x"), OSError(5, "x"), MemoryError(), RecursionError()])
def test_any_other_error_is_found(error: Exception) -> None:
    assert planted(raises(error)) == type(error).__name__


def test_a_text_of_a_report_is_found_in_lines_and_in_tracebacks() -> None:
    assert planted(raises(DataError(f"x: {SENTINEL} effusion"))) == "REPORT TEXT"
    assert planted(lambda: print(SENTINEL, file=sys.stderr)) == "REPORT TEXT"

    def read() -> None:
        try:
            int(SENTINEL)
        except ValueError as error:
            raise DataError("x: no number") from error

    assert planted(read) == ""


def test_lines_that_are_long_or_hold_control_characters_are_found() -> None:
    assert planted(lambda: print("mu: " + "x" * 300, file=sys.stderr)) == "LONG LINE"
    assert planted(lambda: print("mu: \x1b[31m", file=sys.stderr)) == "CONTROL CHARACTERS"


def test_edits_and_bytes_are_those_of_the_seed() -> None:
    document = json.dumps({"a": [1, 2, {"b": "c"}], "d": 5}).encode()
    once, again = draw_edits(30, 5), draw_edits(30, 5)
    changed = [restructure(document, ".json", edits, random.Random(0)) for edits in once]
    assert changed == [restructure(document, ".json", edits, random.Random(0)) for edits in again]
    assert len({body for body in changed if body is not None}) > 15
    assert mutate(document, random.Random(1)) == mutate(document, random.Random(1)) != document
    assert restructure(document, ".png", once[0], random.Random(0)) is None


def test_what_differs_is_missing_or_left_over_is_named(tmp_path: Path) -> None:
    for name, seconds in (("calm", 1), ("other", 2)):
        (tmp_path / name).mkdir()
        line = {"event": "train", "step": 1, "loss": 0.5, "seconds": seconds}
        (tmp_path / name / "log.jsonl").write_text(json.dumps(line) + "\n")
    calm = state.state_of(tmp_path / "calm")
    assert state.differences(calm, state.state_of(tmp_path / "other")) == []
    (tmp_path / "other/log.jsonl").write_text('{"event": "train", "step": 1, "loss": 0.6, "seconds": 1}\n')
    (tmp_path / "other/x.tmp").touch()
    found = state.differences(calm, state.state_of(tmp_path / "other"))
    assert found == ["log.jsonl differs", "x.tmp is left over"]
    assert state.differences({**calm, "y": "1"}, calm) == ["y is missing"]


def test_a_campaign_resumes_and_its_table_counts_every_failure(tmp_path: Path) -> None:
    book = record.Book(tmp_path)
    book.add(record.Outcome("kills", "pretrain: killed", "kills/0/0/pretrain", 3, ["not equal"]))
    book.add(record.Outcome("fuzz", "recipes", "fuzz/0/0/recipes/250", 250))
    again = record.Book(tmp_path)
    assert again.done == {"kills/0/0/pretrain", "fuzz/0/0/recipes/250"}
    assert report.failures(again.outcomes()) == ["kills/0/0/pretrain: not equal"]
    lines = report.table(again.outcomes()).split("\n")
    assert "| | **all SIGKILLs** | **3** | **1** |" in lines
    assert "| | **all inputs** | **250** | **0** |" in lines
    (tmp_path / "sources").write_text("of another version")
    assert record.Book(tmp_path).done == set()


def test_every_part_has_its_trials_and_the_same_for_a_seed() -> None:
    assert kills.trials(20, 3) == kills.trials(20, 3) != kills.trials(20, 4)
    assert {name.split("/", 3)[3] for name in kills.trials(len(kills.SHARES), 0)} == set(kills.SHARES)
    counts = [int(name.rsplit("/", 1)[1]) for name in fuzz.trials(100_000, 0)]
    assert sum(counts) >= 100_000
    assert {name.split("/")[0] for name in parts.SHORT} == {"kills", "signals", "disk", "fuzz"}
