"""Checkpoints: whole or not there, whenever the writer is interrupted."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medunifier_cli.checkpoint import store
from medunifier_cli.errors import CheckpointError, one_line
from medunifier_cli.run.deleting import put_back
from medunifier_cli.train.writer import Writer
from tests.hostile import changed_bytes


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


def through_the_thread(folder: Path, saved: store.Checkpoint, keep: int) -> None:
    """As training saves."""
    writer = Writer()
    copied = store.Checkpoint(saved.step, writer.copy(saved.tensors), saved.facts)
    writer.begin(lambda: store.save(folder, copied, keep))
    writer.wait()


@pytest.mark.parametrize("save", [store.save, through_the_thread])
def test_killed_at_any_system_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[[Path, store.Checkpoint, int], object]
) -> None:
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
                save(folder, checkpoint(2), 1)
                finished = True
            except Killed:
                finished = False
        newest = store.newest(folder)
        assert newest is not None
        assert torch.equal(newest.tensors["model"]["w"], torch.full((4, 3), float(newest.step)))
        outcomes.add(newest.step)
        store.tidy(folder, newest.step, keep=1)  # as a start does, though no save may come
        assert [path.name for path in folder.iterdir()] == [f"step-{newest.step:08d}"]
        store.save(folder, checkpoint(3), keep=1)  # and the next write is not in the way of what was left
        again = store.newest(folder)
        assert again is not None
        assert again.step == 3
        if finished:
            break
    assert finished, "the loop never let a write finish; raise its end"
    assert outcomes == {1, 2}


def test_killed_while_a_step_is_saved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where its validation is made up for: the run's only checkpoint is there at every moment."""
    outcomes = set()
    for k in range(1, 40):
        folder = tmp_path / str(k)
        store.save(folder, checkpoint(7), keep=1)
        with monkeypatch.context() as patch:
            left = [k]
            for name in ("fsync", "mkdir", "rename", "rmdir", "unlink"):
                patch.setattr(os, name, killing(getattr(os, name), left))
            try:
                store.save(folder, dataclasses.replace(checkpoint(7), facts={"note": "again"}), keep=1)
                finished = True
            except Killed:
                finished = False
        put_back(folder)  # as a start does
        newest = store.newest(folder)
        assert newest is not None
        assert newest.step == 7
        outcomes.add(newest.facts["note"])
        if finished:
            break
    assert finished
    assert outcomes == {7, "again"}


def killing(call: Callable[..., object], left: list[int]) -> Callable[..., object]:
    def counted(*arguments: object, **options: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return call(*arguments, **options)

    return counted


def test_what_cannot_be_deleted_does_not_end_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on NFS, where a file that a process has open leaves its folder full."""
    store.save(tmp_path, checkpoint(1), keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", full)
        for step in (2, 3):
            store.save(tmp_path, checkpoint(step), keep=1)
            newest = store.newest(tmp_path)
            assert newest is not None
            assert newest.step == step
        assert "cannot be deleted yet (Directory not empty)" in capsys.readouterr().err
    store.save(tmp_path, checkpoint(4), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


def full(path: Path, ignore_errors: bool = False) -> None:
    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))


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


@pytest.mark.parametrize("save", [store.save, through_the_thread])
def test_full_disk_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[[Path, store.Checkpoint, int], object]
) -> None:
    store.save(tmp_path, checkpoint(1), keep=2)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*step 1 is untouched"):
        save(tmp_path, checkpoint(2), 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    newest = store.newest(tmp_path)
    assert newest is not None
    assert newest.step == 1


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert store.newest(tmp_path / "nothing") is None


FILE = {"sha256": "x", "bytes": 1}


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A checkpoint whose index was changed, with the hash that belongs to it."""
    index = json.loads((path / store.FACTS).read_text())
    content = json.dumps(change(index) or index).encode()
    (path / store.FACTS).write_bytes(content)
    (path / store.DONE).write_text(hashlib.sha256(content).hexdigest())
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda index: [index], "expected object"),
        (lambda index: index.pop("step"), "required field step|expected object"),
        (lambda index: index.update(step=[3]), "at step"),
        (lambda index: index.update(step=4), "holds the checkpoint of step 4"),
        (lambda index: index.update(facts=3), "at facts"),
        (lambda index: index.update(files=[]), "at files"),
        (lambda index: index["files"].update({"model.safetensors": "x"}), "at files"),
        (lambda index: index.update(files={}), "no tensors of the model"),
        (lambda index: index["files"].update({"../m.safetensors": FILE}), "outside of its"),
        (lambda index: index["files"].update({"a\0b": FILE}), "incomplete"),
    ],
)  # fmt: skip
def test_an_index_of_another_kind_is_one_line_though_its_hash_is_right(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    path = rewritten(store.save(tmp_path, checkpoint(3), keep=1), change)
    with pytest.raises(CheckpointError, match=said) as caught:
        store.load(path, only=("model",) if "model" in said else ())
    assert str(caught.value).startswith(str(path))
    assert store.newest(tmp_path, only=("model",)) is None or "outside" in said or "incomplete" in said


def test_a_checkpoint_that_does_not_say_what_it_was_trained_with(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not say what it was trained with; start over"):
        store.stage_facts(checkpoint(3), tmp_path)


def test_changed_bytes_of_a_checkpoint_are_one_line(tmp_path: Path) -> None:
    path, draws, lines = store.save(tmp_path, checkpoint(3), keep=1), random.Random(0), []
    whole = {file: file.read_bytes() for file in sorted(path.iterdir())}
    for number in range(100):
        file = sorted(whole)[number % len(whole)]
        file.write_bytes(changed_bytes(whole[file], draws))
        try:
            store.load(path)
        except CheckpointError as error:
            lines.append(str(error))
        file.write_bytes(whole[file])
    assert len(lines) > 80
    assert lines == [one_line(line) for line in lines]


def damage(path: Path, how: str) -> None:
    """What a disk, a copy that broke off or a mistaken hand does to a checkpoint."""
    model, done, record = path / "model.safetensors", path / "DONE", path / "checkpoint.json"
    content = bytearray(model.read_bytes())
    if how == "cut":
        model.write_bytes(content[: len(content) // 2])
    elif how == "one bit":
        content[-3] ^= 1
        model.write_bytes(content)
    elif how == "no DONE":
        done.unlink()
    elif how == "empty DONE":
        done.write_bytes(b"")
    elif how == "folder for a file":
        model.unlink()
        model.mkdir()
    elif how == "both records":
        done.unlink()
        record.write_bytes(b"{")
    elif how == "file for the folder":
        shutil.rmtree(path)
        path.write_bytes(b"")
    else:
        record.write_text(record.read_text().replace('"step": 30', '"step": 29'))
        done.write_text(hashlib.sha256(record.read_bytes()).hexdigest())


DAMAGES = (
    "cut", "one bit", "no DONE", "empty DONE", "folder for a file", "both records", "file for the folder",
    "another step",
)  # fmt: skip


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_newest_one_takes_nobodys_place(tmp_path: Path, how: str, keep: int) -> None:
    """The run is killed again and again before it reaches the step of the damaged checkpoint."""
    for step in (10, 20, 30):
        store.save(tmp_path, checkpoint(step), keep=2)
    damage(tmp_path / "step-00000030", how)
    if keep == 1:
        shutil.rmtree(tmp_path / "step-00000020")  # the run starts over
        shutil.rmtree(tmp_path / "step-00000010", ignore_errors=True)
    for start in range(3):
        newest = store.newest(tmp_path)
        expected = {1: (None, 11, 12), 2: (20, 21, 22)}[keep][start]
        assert (newest.step if newest else None) == expected
        step = expected + 1 if expected else 11
        store.save(tmp_path, checkpoint(step), keep=keep)
        after = store.newest(tmp_path)
        assert after is not None
        assert after.step == step
    store.save(tmp_path, checkpoint(30), keep=keep)  # and at last the step is reached
    assert store.steps(tmp_path) == [23 if keep == 2 else 13, 30][-keep:]
    whole = store.newest(tmp_path)
    assert whole is not None
    assert whole.step == 30
    assert len(list(tmp_path.iterdir())) == keep, "nothing damaged is left of it"


def test_the_one_to_fall_back_on_is_hashed_before_an_older_one_goes(tmp_path: Path) -> None:
    for step in (10, 20):
        store.save(tmp_path, checkpoint(step), keep=2)
    damage(tmp_path / "step-00000020", "one bit")  # its size is right, so a look takes it for whole
    assert store.steps(tmp_path) == [10, 20]
    store.save(tmp_path, checkpoint(30), keep=2)
    assert store.steps(tmp_path) == [10, 30]


def test_folders_of_others_are_neither_counted_nor_deleted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "step-00000099").mkdir()
    (tmp_path / "step-00000005").mkdir()
    for step in (10, 20):
        store.save(tmp_path, checkpoint(step), keep=2)
    shutil.copytree(tmp_path / "step-00000020", tmp_path / "step-00000070")  # a copy that somebody made
    assert store.steps(tmp_path) == [10, 20]
    newest = store.newest(tmp_path)
    assert newest is not None
    assert newest.step == 20
    assert "step-00000070: holds the checkpoint of step 20" in capsys.readouterr().err
    for step in (30, 120):
        store.save(tmp_path, checkpoint(step), keep=2)
    assert store.steps(tmp_path) == [30, 120]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [f"step-{step:08d}" for step in (5, 30, 70, 99, 120)]


def test_a_checkpoint_that_may_not_be_read_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (10, 20):
        store.save(tmp_path, checkpoint(step), keep=2)
    read = Path.read_bytes

    def refused(path: Path) -> bytes:
        if "step-00000020" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    assert store.steps(tmp_path) == [10, 20]
    with pytest.raises(CheckpointError, match=r"step-00000020: no permission to read it; ask its owner"):
        store.newest(tmp_path)


def test_a_record_names_files_of_its_own_folder_alone(tmp_path: Path) -> None:
    path = store.save(tmp_path, checkpoint(1), keep=1)
    record = path / "checkpoint.json"
    record.write_text(record.read_text().replace('"model.safetensors"', '"../model.safetensors"'))
    (path / "DONE").write_text(hashlib.sha256(record.read_bytes()).hexdigest())
    with pytest.raises(CheckpointError, match="outside of its folder"):
        store.load(path)
