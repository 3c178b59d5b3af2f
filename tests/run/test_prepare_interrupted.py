"""`mu prepare` on a full disk, killed, and started twice: what is there is whole, and it can be run again."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medunifier_cli.prepare.folder import RECEIPTS
from tests.hand_made import covid_raw
from tests.run.prepare_covid import contents, done, refused, started


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return covid_raw(tmp_path / "raw")


class FullDisk(io.FileIO):
    """Takes so many bytes, then says what the kernel says."""

    room = 20_000

    def write(self, data: Any) -> int:
        FullDisk.room -= len(memoryview(data))
        if FullDisk.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize("room", [3_000, 12_000, 20_000, 60_000, 90_000])
def test_a_full_disk_leaves_nothing_half_written(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    done(raw, tmp_path / "whole")
    out = tmp_path / "out"
    monkeypatch.setattr(FullDisk, "room", room)
    with monkeypatch.context() as patch:
        patch.setattr("medunifier_cli.prepare.write.create_file", _full)
        line = refused(raw, out)
    assert "no space left for it" in line
    assert "run the same command again" in line
    assert not list(out.rglob("*.tmp"))
    whole = contents(tmp_path / "whole")
    assert all(whole[name] == body for name, body in contents(out).items())
    done(raw, out)
    assert contents(out) == whole


def _full(path: Path) -> Any:
    return io.BufferedWriter(FullDisk(path, "x"))


def test_a_disk_that_is_really_full_while_receipts_are_written(raw: Path, tmp_path: Path) -> None:
    """A limit on file size is the nearest to a full disk that needs no privileges."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000));"
        "from medunifier_cli.cli import mu; mu()"
    )
    line = ["prepare", "covid-chestxray", "--raw", str(raw), "--out", str(tmp_path / "out"), "--size", "32"]
    run = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True)
    assert run.returncode == 1
    assert "no space left for it (File too large)" in run.stderr
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert not list((tmp_path / "out").glob("*.tar"))


def test_killed_at_random_and_started_again_ends_byte_identical(tmp_path: Path) -> None:
    raw, out = covid_raw(tmp_path / "raw", 80, edge=600), tmp_path / "out"
    with started(raw, tmp_path / "whole", "--workers", "2") as process:
        assert process.wait() == 0
    rng, kills = np.random.default_rng(0), 0
    for more in (0, 1, 2, 1, 2):  # shards that come before the kill; there are 20 in all
        there = len(list(out.glob("*.tar")))
        with started(raw, out, "--workers", "2") as process:
            while len(list(out.glob("*.tar"))) < there + more and process.poll() is None:
                time.sleep(0.001)
            time.sleep(float(rng.uniform(0, 0.02 if more else 0.5)))
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
    assert kills, "it ended before it was killed"
    with started(raw, out, "--workers", "2") as process:
        assert process.wait() == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    import psutil

    raw = covid_raw(tmp_path / "raw", 80, edge=600)
    with started(raw, tmp_path / "out", "--workers", "2") as process:
        workers: list[psutil.Process] = []
        while len(workers) < 2 and process.poll() is None:
            workers = psutil.Process(process.pid).children()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        gone, alive = psutil.wait_procs(workers, timeout=10)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    assert len(gone) + len(alive) == 2


HOLD = """
import fcntl, sys
lock = open(sys.argv[1], "wb")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_two_calls_at_once_are_refused(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done(raw, out)
    line = [sys.executable, "-c", HOLD, str(out / RECEIPTS / "lock-1of1")]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert "another `mu prepare` is running on it" in refused(raw, out)
        other.kill()
    done(raw, out)


def test_a_killed_call_can_be_run_again_at_once(tmp_path: Path) -> None:
    """Its workers live a moment longer than it; they must not hold what the next call needs."""
    raw = covid_raw(tmp_path / "raw", 48, edge=600)
    with started(raw, tmp_path / "out", "--workers", "2") as process:
        while not list((tmp_path / "out").glob("*.tar")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with started(raw, tmp_path / "out", "--workers", "2") as again:
            assert again.wait() == 0
