"""Locks of a folder that is being prepared."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from medunifier_cli.errors import DataError
from medunifier_cli.prepare.folder import RECEIPTS, join_lock, locked


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def lockf(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    (tmp_path / RECEIPTS).mkdir()
    with locked(tmp_path, (1, 1)), join_lock(tmp_path):
        (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mu: {tmp_path}: the file system has no locks ({os.strerror(number)}); ")


def test_a_lock_that_is_held_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lockf(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    (tmp_path / RECEIPTS).mkdir()
    with pytest.raises(DataError, match="another `mu prepare` is running"), locked(tmp_path, (1, 1)):
        pass
