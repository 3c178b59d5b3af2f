"""Loader processes that die, hang or cannot pass on what they read: always an end and a word."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from medunifier_cli.data import workers as workers_module
from medunifier_cli.data.loader import SplitSource
from medunifier_cli.errors import MuError
from tests import warm
from tests.hand_made import write_split
from tests.unit.data.test_loader import batches, open_source

COMMAND = """
import os, signal, sys, time
from pathlib import Path
from medunifier_cli.errors import MuError
from tests.unit.data.test_loader import SplitSource, batches, open_source

def read(self, samples, positions, images):
    if positions[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)

if sys.argv[2] == "dying":
    SplitSource.read = read
try:
    print(len(list(batches(open_source(Path(sys.argv[1])), 0, 1, 2))))
except MuError as error:
    sys.exit(f"mu: {error}")
"""


@pytest.fixture
def source(tmp_path: Path) -> SplitSource:
    return open_source(write_split(tmp_path, "train", 23, 10))


def command(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    words = ["-c", COMMAND, write_split(folder, "train", 23, 10), *arguments]
    return warm.run(words, env={**os.environ, **env}, timeout=60)


@pytest.mark.parametrize(("length", "works"), [(60, True), (130, False)])
def test_a_long_folder_of_temporary_files_is_one_line_that_names_tmpdir(
    tmp_path_factory: pytest.TempPathFactory, length: int, works: bool
) -> None:
    """A worker's socket has at most 107 bytes of path; without it the batch never came."""
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        folder = Path(short) / ("x" * (length - len(short) - 1))
        folder.mkdir()
        result = command(tmp_path_factory.mktemp("data"), "reading", TMPDIR=str(folder))
    if works:
        assert (result.returncode, result.stdout) == (0, "6\n"), result.stderr
    else:
        assert result.returncode == 1
        assert result.stderr.startswith(f"mu: TMPDIR: loader processes cannot make a socket under {folder} ")
        assert result.stderr.count("\n") == 1


def test_the_command_ends_when_one_worker_has_died_and_another_hangs(tmp_path: Path) -> None:
    result = command(tmp_path, "dying")
    assert result.returncode == 1
    assert "a loader process died, usually because memory" in result.stderr.splitlines()[-1]


def test_the_death_of_a_worker_is_told_where_its_batch_is_missing_and_nowhere_else(
    source: SplitSource,
) -> None:
    stream = batches(source, 0, 1, 2, steps=400)
    next(stream)
    worker = psutil.Process().children()[-1]
    worker.kill()
    until = time.monotonic() + 1.0
    while time.monotonic() < until:  # torch's handler of SIGCHLD used to raise here, in the middle of a step
        time.sleep(0.01)
    with pytest.raises(MuError, match=r"a loader process died, .*lower data\.workers"):
        list(stream)


def test_a_worker_obeys_its_parent_and_nobody_else(source: SplitSource) -> None:
    stream = batches(source, 0, 1, 1, steps=40)
    next(stream)
    (worker,) = psutil.Process().children()
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    time.sleep(0.3)
    assert worker.is_running()
    assert worker.status() != psutil.STATUS_ZOMBIE
    worker.send_signal(signal.SIGTERM)
    until = time.monotonic() + 10.0
    while worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.01)
    with pytest.raises(MuError, match="a loader process died"):
        list(stream)


def test_a_batch_that_takes_long_is_reported_once_and_waited_for(
    source: SplitSource, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read = SplitSource.read

    def slow(*args: object) -> object:
        time.sleep(1.5)
        return read(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(SplitSource, "read", slow)
    monkeypatch.setattr(workers_module, "SILENCE", 0.2)
    monkeypatch.setattr("medunifier_cli.data.loader.LOOK", 0.3)
    assert len(list(batches(source, 0, 1, 1, steps=1, micro_batch=0))) == 1
    assert capsys.readouterr().err == f"mu: {source.folder}: no batch for 0 s; does its file system answer?\n"
