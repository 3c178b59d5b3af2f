"""A folder of synthetic images: killed in its first write, on a full disk, with links where its files go."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.synthesis.sample_folder import (
    LINES,
    SETTINGS,
    SampleFolder,
    read_grey,
    read_samples,
)
from tests.folders import ROOT
from tests.full_disk import room_for

WISHES = {"seed": 0, "guidance": 1.5}
IMAGE = np.arange(64, dtype=np.uint8).reshape(8, 8)

KILLED = """
import os, signal, sys
from pathlib import Path
from medunifier_cli import files
from medunifier_cli.evaluate.synthesis.sample_folder import SampleFolder
files.sync = os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
SampleFolder(Path(sys.argv[1]), {"seed": 0, "guidance": 1.5})
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_killed_in_its_first_write_the_same_command_goes_on(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = names(tmp_path / "out")
    assert left.startswith(SETTINGS)
    assert left != SETTINGS
    SampleFolder(tmp_path / "out", WISHES)
    assert names(tmp_path / "out") == [LINES, SETTINGS]


@pytest.mark.parametrize("left", [".settings.json.4711", "settings.json.0000000a-1-1-0.tmp"])
def test_what_an_earlier_version_or_another_machine_left_is_not_in_the_way(tmp_path: Path, left: str) -> None:
    (tmp_path / left).write_text("{")
    folder = SampleFolder(tmp_path, WISHES)
    folder.add(0, "000000.png", IMAGE, {"prompt": ""})
    assert [line["sample"] for line in read_samples(tmp_path)] == [0]


def test_other_files_are_still_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match=r"holds other files \(thesis\.tex"):
        SampleFolder(tmp_path, WISHES)


@pytest.mark.parametrize("room", [0, 5, 60])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path: Path, room: int) -> None:
    with room_for(room), pytest.raises(DataError, match="no space left for it"):  # noqa: PT012
        folder = SampleFolder(tmp_path / "out", WISHES)
        folder.add(0, "000000.png", IMAGE, {"prompt": ""})
    assert [name for name in names(tmp_path / "out") if name not in (SETTINGS, LINES)] == []
    folder = SampleFolder(tmp_path / "out", WISHES)
    folder.add(0, "000000.png", IMAGE, {"prompt": ""})
    folder.finish()
    assert SampleFolder(tmp_path / "out", WISHES).done.keys() == {0}


def test_links_are_not_followed(tmp_path: Path) -> None:
    """Of somebody else who may write into the folder of samples."""
    out, victim = tmp_path / "out", tmp_path / "victim"
    victim.write_text("precious")
    folder = SampleFolder(out, WISHES)
    (out / "000000.png").symlink_to(victim)
    folder.add(0, "000000.png", IMAGE, {"prompt": ""})
    assert not (out / "000000.png").is_symlink()
    os.unlink(out / LINES)
    (out / LINES).symlink_to(victim)
    with pytest.raises(DataError, match=r"samples\.jsonl: cannot be written"):
        folder.add(1, "000001.png", IMAGE, {"prompt": ""})
    assert victim.read_text() == "precious"


def test_a_damaged_length_in_an_image_asks_for_no_memory(tmp_path: Path) -> None:
    """A flipped bit makes a block of data a gigabyte long."""
    SampleFolder(tmp_path / "out", WISHES).add(0, "000000.png", IMAGE, {"prompt": ""})
    path = tmp_path / "out" / "000000.png"
    body = bytearray(path.read_bytes())
    body[body.index(b"IDAT") - 4] = 0x43
    path.write_bytes(body)
    tracemalloc.start()
    with contextlib.suppress(DataError):  # Pillow may read it, as the data themselves are whole
        read_grey(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
