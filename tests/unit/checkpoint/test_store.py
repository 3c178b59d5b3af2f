"""Checkpoints: whole or not there, whenever the writer is interrupted."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from medunifier_cli.checkpoint import store
from medunifier_cli.errors import CheckpointError


class Killed(BaseException):
    """Stands for SIGKILL: no code of the package catches it."""


def checkpoint(step: int) -> store.Checkpoint:
    tensors = {
        "model": {"w": torch.full((4, 3), float(step))},
        "rng": {"cpu.0": torch.arange(5, dtype=torch.uint8)},
    }
    return store.Checkpoint(step, tensors, {"note": step})


def test_round_trip_and_keep(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        store.save(tmp_path, checkpoint(step), keep=2)
    assert store.steps(tmp_path) == [2, 3]
    newest = store.newest(tmp_path)
    assert newest is not None
    assert newest.step == 3
    assert newest.facts == {"note": 3}
    assert torch.equal(newest.tensors["model"]["w"], torch.full((4, 3), 3.0))
    assert newest.tensors["rng"]["cpu.0"].dtype == torch.uint8


def test_killed_at_any_system_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill the writer at its k-th touch of the disk, for every k: the old or the new one is whole."""
    outcomes = set()
    for k in range(1, 40):
        folder = tmp_path / str(k)
        store.save(folder, checkpoint(1), keep=1)
        left = k
        real = {name: getattr(os, name) for name in ("fsync", "mkdir", "rename", "rmdir", "unlink")}

        def counting(call: Callable[..., object]) -> Callable[..., object]:
            def counted(*arguments: object, **options: object) -> object:
                nonlocal left
                left -= 1
                if left == 0:
                    raise Killed
                return call(*arguments, **options)

            return counted

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, counting(real[name]))
            try:
                store.save(folder, checkpoint(2), keep=1)
                finished = True
            except Killed:
                finished = False
        newest = store.newest(folder)
        assert newest is not None
        assert torch.equal(newest.tensors["model"]["w"], torch.full((4, 3), float(newest.step)))
        outcomes.add(newest.step)
        store.save(folder, checkpoint(3), keep=1)  # and the next write is not in the way of what was left
        again = store.newest(folder)
        assert again is not None
        assert again.step == 3
        if finished:
            break
    assert finished, "the loop never let a write finish; raise its end"
    assert outcomes == {1, 2}


@pytest.mark.parametrize("what", ["model.safetensors", "checkpoint.json", "DONE"])
@pytest.mark.parametrize("how", ["cut", "flip", "gone"])
def test_a_damaged_newest_checkpoint_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, how: str
) -> None:
    store.save(tmp_path, checkpoint(1), keep=2)
    path = store.save(tmp_path, checkpoint(2), keep=2) / what
    content = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[-3] ^= 1
        path.write_bytes(content)
    newest = store.newest(tmp_path)
    assert newest is not None
    assert newest.step == 1
    warning = capsys.readouterr().err
    assert "step-00000002" in warning
    assert "trying the previous checkpoint" in warning


def test_full_disk_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(tmp_path, checkpoint(1), keep=2)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*step 1 is untouched"):
        store.save(tmp_path, checkpoint(2), keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    newest = store.newest(tmp_path)
    assert newest is not None
    assert newest.step == 1


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert store.newest(tmp_path / "nothing") is None
