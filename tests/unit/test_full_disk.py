"""A full disk, at every file that is written: one line, nothing half-written, and the next try works."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from medunifier_cli import files
from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.errors import MuError
from medunifier_cli.evaluate.reports.writer import save_rows as save_reports
from medunifier_cli.evaluate.results import Metric, Result, write_samples
from medunifier_cli.evaluate.synthesis.sample_folder import SampleFolder
from medunifier_cli.page.closest_pairs import Pair, write_pairs
from medunifier_cli.page.confusion import save_confusion
from medunifier_cli.page.document import save_page
from medunifier_cli.page.gallery import GalleryImage, write_gallery
from medunifier_cli.page.pictures import save_pairs
from medunifier_cli.run.cache import is_cached, write_cache
from medunifier_cli.run.log import Log
from medunifier_cli.run.record import Run
from medunifier_cli.stages.codes import Codes, write_codes
from medunifier_cli.temporary import is_temporary
from tests.full_disk import room_for
from tests.tiny import tiny_recipe

GREY = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
NAMES = [f"word{i}" for i in range(2000)]


def _result(folder: Path) -> None:
    trained = cast(PretrainedRun, SimpleNamespace(run=Run(folder), step=7, identity="abc"))
    Result(
        "task", "data", "test", folder, protocol="by hand", n=4, seed=3,
        metrics=[Metric("accuracy", 0.5)], more={"names": NAMES},
    ).write(trained)  # fmt: skip


def _codes(folder: Path) -> None:
    codes = Codes(
        np.zeros((9, 16, 16), np.uint16), np.zeros((9, 32, 32), np.uint16), np.zeros((9, 3, 5), np.float16),
        np.zeros(9, np.int16), np.array([b"key"] * 9),
    )  # fmt: skip
    write_codes(folder / "codes.h5", {"train": codes}, {"checkpoint": "abc"})


def _samples(folder: Path) -> None:
    samples = SampleFolder(folder / "samples", {"seed": 0})
    samples.add(0, "000000.png", GREY, {"prompt": ""})
    samples.finish()


def _checkpoint(folder: Path) -> None:
    tensors = {"model": {"w": torch.zeros(5000)}}
    store.save(folder / "checkpoints", store.Checkpoint(3, tensors, {}), keep=1)


def _tokenizer(folder: Path) -> None:
    TextTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *NAMES]).save(folder / "tokenizer")


ABOUT = {"title": "t", "cards": [], "query": None, "warnings": []}

WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda folder: files.write_text(folder / "a.txt", "word " * 2000),
    "json": lambda folder: files.write_json(folder / "a.json", NAMES),
    "result": _result,
    "samples of a result": lambda folder: write_samples(
        Run(folder), "t", "d", "s", [{"n": n} for n in NAMES]
    ),
    "reports": lambda folder: save_reports(
        [{"text": name} for name in NAMES], folder / "r" / "reports.jsonl"
    ),
    "page": lambda folder: save_page(
        folder / "page", "gallery.html", ABOUT | {"about": dict.fromkeys(NAMES, "v")}
    ),
    "picture": lambda folder: save_pairs(
        torch.rand(4, 1, 64, 64), torch.rand(4, 1, 64, 64), folder / "p.png"
    ),
    "confusion": lambda folder: save_confusion(np.eye(9, dtype=np.int64), NAMES[:9], folder / "c.png"),
    "gallery": lambda folder: write_gallery(folder / "g", "t", {}, [GalleryImage(GREY, "a")]),
    "closest pairs": lambda folder: write_pairs(folder / "q", {}, [Pair(GREY, "a", GREY, "b", 0.5, False)]),
    "cache": lambda folder: write_cache(folder / "cache" / "c.h5", "x", {"a": np.arange(5000)}),
    "codes": _codes,
    "samples": _samples,
    "tokenizer": _tokenizer,
    "checkpoint": _checkpoint,
    "run": lambda folder: Run(folder / "run").begin(tiny_recipe(), {"phantom": {"names": NAMES}}, ["mu"]),
    "log": lambda folder: Log(folder / "log.jsonl", 0).write("train", 1, dict.fromkeys(NAMES, 0.5)),
}


def half_written(folder: Path) -> list[Path]:
    names = ("writing", "deleting")
    return [p for p in folder.rglob("*") if is_temporary(p.name) or any(f".{n}-" in p.name for n in names)]


@pytest.mark.parametrize("room", [0, 100, 3000])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_line_and_nothing_is_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, room: int
) -> None:
    write = WRITERS[writer]
    with room_for(room), pytest.raises(MuError) as caught:
        write(tmp_path)
    (line,) = str(caught.value).splitlines()
    assert str(tmp_path) in line
    assert "no space left" in line or "File too large" in line
    assert half_written(tmp_path) == []
    write(tmp_path)


@contextlib.contextmanager
def small_disk(path: Path, size: int) -> Iterator[None]:
    """A file system in memory of so many bytes, where this machine allows to mount one."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(path)]
    try:
        allowed = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        allowed = False
    if not allowed:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    page, disk = 4096, tmp_path / "disk"
    rows: dict[str, Any] = {"a": np.random.default_rng(0).normal(size=(57, 16, 32)).astype("f4")}
    assert 28 * page < rows["a"].nbytes < 29 * page
    with small_disk(disk, 64 * page):
        for free in (0, 1, 2, 12, 27, 28):
            (disk / "other").write_bytes(bytes((64 - free) * page))
            with pytest.raises(MuError, match=r"c\.h5: no space left for it \(No space left on device\)"):
                write_cache(disk / "c.h5", "x", rows)
            assert [path.name for path in disk.iterdir()] == ["other"]
        (disk / "other").unlink()
        write_cache(disk / "c.h5", "x", rows)
        assert is_cached(disk / "c.h5", "x")
