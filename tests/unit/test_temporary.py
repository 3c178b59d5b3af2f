"""Names of files that are being written, and which of them are left-overs of a dead process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medunifier_cli import temporary
from medunifier_cli.temporary import DAY, is_temporary, sweep, temporary_name
from tests.folders import ROOT

WRITER = """
import sys, time
from pathlib import Path
from medunifier_cli.files import atomic_folder, atomic_write
home = Path(sys.argv[1])
with atomic_write(home / "reports.jsonl") as file, atomic_folder(home / "tokenizer") as folder:
    file.write(b"a report")
    file.flush()
    (folder / "vocab.txt").write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


def aged(path: Path, seconds: float = DAY + 60) -> Path:
    now = path.lstat().st_mtime
    os.utime(path, (now - seconds, now - seconds), follow_symlinks=False)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_names_differ_and_are_known() -> None:
    path = Path("some") / "reports.jsonl"
    one, two = temporary_name(path), temporary_name(path)
    assert one != two
    assert one.parent == two.parent == path.parent
    assert is_temporary(one.name)
    assert one.name.startswith("reports.jsonl.")
    long = temporary_name(Path("x" * 255))
    assert len(long.name.encode()) == 255
    assert is_temporary(long.name)
    assert len(os.fsencode(temporary_name(Path("\u6f22" * 85)).name)) <= 255


@pytest.mark.parametrize(
    "name", ["settings.json", "000000.png", "step-00000010", ".lock", "x.tmp", "reports.jsonl.bak", "a.2024"]
)
def test_other_names_are_not_ours(name: str, tmp_path: Path) -> None:
    assert not is_temporary(name)
    aged(tmp_path).joinpath(name).write_text("a file")
    aged(tmp_path / name)
    assert sweep(tmp_path) == 0


def test_what_a_killed_process_was_writing_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    begun = names(tmp_path)
    assert len(begun) == 2
    assert all(map(is_temporary, begun))
    assert sweep(tmp_path) == 0
    assert names(tmp_path) == begun
    writer.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table of processes
    assert sweep(tmp_path.parent, depth=1) == 2
    assert names(tmp_path) == []
    writer.communicate()


def test_a_number_that_was_given_to_another_process_is_not_the_writer(tmp_path: Path) -> None:
    own = temporary_name(tmp_path / "a.json")
    own.write_text("now")
    machine, pid, start, number = (
        own.name.removeprefix("a.json.").removesuffix(".tmp").replace(".", "-").split("-")
    )
    before = tmp_path / f"a.json.{machine}-{pid}-{int(start) - 1}-{number}.tmp"
    before.write_text("before")
    assert sweep(tmp_path) == 1
    assert names(tmp_path) == [own.name]


def test_what_another_machine_writes_stays_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary, "_machine", lambda: "0" * 8)
    path = temporary_name(tmp_path / "a.json")
    path.write_text("elsewhere")
    monkeypatch.undo()
    assert sweep(tmp_path) == 0
    aged(path, DAY - 60)
    assert sweep(tmp_path) == 0
    aged(path, 120)
    assert sweep(tmp_path) == 1
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [".settings.json.4711", ".reports-x.jsonl.1", "codes.h5.4711.tmp", "test.index.npy.tmp", ".x.h5.writing"],
)
def test_leftovers_of_earlier_versions_go_after_a_day(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a report")
    assert is_temporary(name)
    assert sweep(tmp_path) == 0
    aged(tmp_path / name)
    assert sweep(tmp_path) == 1


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    inside = aged(victim, 0) / ".a.json.1"
    inside.write_text("kept")
    aged(inside)
    home = tmp_path / "home"
    home.mkdir()
    (home / "link").symlink_to(victim)
    (home / "codes.h5.4711.tmp").symlink_to(victim)
    aged(home / "codes.h5.4711.tmp")
    assert sweep(home, depth=3) == 1
    assert names(home) == ["link"]
    assert inside.read_text() == "kept"


def test_a_folder_that_is_not_there_has_none(tmp_path: Path) -> None:
    assert sweep(tmp_path / "nowhere", depth=2) == 0
