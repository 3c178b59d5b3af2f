"""Modes of files: those of the umask, and never more for report texts than their data have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from medunifier_cli.checkpoint import store
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.evaluate.reports.writer import save_rows
from medunifier_cli.evaluate.synthesis.sample_folder import SampleFolder
from medunifier_cli.files import readers_of, write_text
from medunifier_cli.page.gallery import write_gallery
from medunifier_cli.run.cache import cached


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize(
    ("folder", "file", "expected"),
    [
        (0o755, 0o644, 0o644),
        (0o755, 0o640, 0o640),
        (0o750, 0o644, 0o640),
        (0o755, 0o600, 0o600),
        (0o700, 0o644, 0o600),
        (0o711, 0o644, 0o644),  # whoever knows the names of the files can read them
    ],
)
@pytest.mark.usefixtures("umask")
def test_texts_are_no_more_readable_than_their_data(
    tmp_path: Path, folder: int, file: int, expected: int
) -> None:
    data, run = tmp_path / "data" / "shards", tmp_path / "runs"
    data.mkdir(parents=True)
    run.mkdir()
    for name in ("train-000000.tar", "train-000001.tar"):
        (data / name).touch()
    (data / "train-000001.tar").chmod(file)
    data.chmod(folder)
    text = run / "reports.jsonl"
    text.touch(0o666)  # an earlier one that everybody could read
    write_text(text, "a report\n", texts_of=data)
    assert mode(text) == expected
    write_text(text, "no report\n")
    assert mode(text) == 0o644
    write_text(text, "a report\n", texts_of=data / "train-000001.tar")  # of one file
    assert mode(text) == expected


@pytest.mark.usefixtures("umask")
def test_folders_above_the_data_count_up_to_the_one_that_holds_both(tmp_path: Path) -> None:
    data, run = tmp_path / "private" / "shards", tmp_path / "private" / "runs"
    for path in (data, run, tmp_path / "elsewhere"):
        path.mkdir(parents=True)
    (tmp_path / "private").chmod(0o700)
    for folder, expected in ((run, 0o644), (tmp_path / "elsewhere", 0o600)):
        write_text(folder / "text", "a report", texts_of=data)
        assert mode(folder / "text") == expected
    assert readers_of(tmp_path / "missing", run) == 0o700


@pytest.mark.usefixtures("umask")
def test_the_group_of_the_data_is_not_that_of_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data.txt"
    data.touch()
    data.chmod(0o640)
    monkeypatch.setattr(os, "getegid", lambda: data.stat().st_gid + 1)
    assert readers_of(data, tmp_path / "text") == 0o700
    data.chmod(0o644)
    assert readers_of(data, tmp_path / "text") == 0o777


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_all_files_of_a_checkpoint_have_the_mode_of_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        tensors = {"model": {"w": torch.zeros(3)}, "rng": {"cpu.0": torch.zeros(2)}}
        path = store.save(tmp_path, store.Checkpoint(1, tensors, {}), keep=1)
    finally:
        os.umask(before)
    assert {file.name: mode(file) for file in path.iterdir()} == dict.fromkeys(
        ("model.safetensors", "rng.safetensors", "checkpoint.json", "DONE"), 0o666 & ~mask
    )
    assert mode(path) == 0o777 & ~mask
    assert torch.equal(store.load(path).tensors["rng"]["cpu.0"], torch.zeros(2))


@pytest.mark.parametrize(("data_mode", "expected"), [(0o640, 0o640), (0o644, 0o644), (0o600, 0o600)])
@pytest.mark.usefixtures("umask")
def test_every_file_with_report_texts_is_no_more_readable_than_they(
    tmp_path: Path, data_mode: int, expected: int
) -> None:
    data, run = tmp_path / "shards", tmp_path / "run"
    data.mkdir()
    run.mkdir()
    (data / "train-000000.tar").touch(data_mode)
    TextTokenizer.train(["clear lungs"] * 3, 40).save(run / "tokenizer", data)
    cached(data / ".cache" / "tokens.h5", "x", lambda: {"ids": np.zeros(3)}, data)
    save_rows([{"reference": "clear lungs"}], run / "reports.jsonl", data)
    page = write_gallery(run / "page", "hits", {}, [], None, data)
    prompts = tmp_path / "prompts.txt"
    prompts.touch(data_mode)
    samples = SampleFolder(run / "samples", {}, prompts)
    samples.add(0, "0.png", np.zeros((8, 8), np.uint8), {"prompt": "clear lungs"})
    samples.finish()
    for path in (
        run / "tokenizer" / "vocab.txt", data / ".cache" / "tokens.h5", run / "reports.jsonl", page,
        run / "samples" / "samples.jsonl", run / "samples" / "samples.csv",
    ):  # fmt: skip
        assert mode(path) == expected, path
    assert mode(run / "samples" / "0.png") == mode(run / "samples" / "settings.json") == 0o644
    assert TextTokenizer.load(str(run / "tokenizer")).size > 5
