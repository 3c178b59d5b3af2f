"""Damaged zip archives are reported in one line that names the archive; whole ones are read."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest
from medunifier_plugins.raw.zip_archive import open_zip, read_member

from medunifier_cli.data.contract import DataError


def write(path: Path, members: int) -> dict[str, bytes]:
    rng = random.Random(members)
    content = {
        f"files/p1{i % 10}/s{i:07d}.txt": rng.randbytes(i % 40) + b"word " * (i % 30) for i in range(members)
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("files/", "")
        for i, (name, body) in enumerate(content.items()):
            archive.writestr(name, body, zipfile.ZIP_DEFLATED if i % 3 else zipfile.ZIP_STORED)
    return content


def test_whole_archives_are_read(tmp_path: Path) -> None:
    content = write(tmp_path / "a.zip", 300)
    with open_zip(tmp_path / "a.zip") as archive:
        assert {name: read_member(archive, name) for name in content} == content


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_archive_is_an_error_of_one_line(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "a.zip"
    write(path, 300)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(DataError, match=r"a\.zip is damaged or cut short; download it again") as error:
        open_zip(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("start", "value"), [(6, b"\xff"), (46, b"\xff")], ids=["version", "name"])
def test_a_damaged_table_of_contents_is_an_error_of_one_line(
    tmp_path: Path, start: int, value: bytes
) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Röntgen.txt", b"x")  # stored as UTF-8, so that a wrong byte in it can be noticed
    raw = bytearray(path.read_bytes())
    entry = raw.rindex(b"PK\x01\x02")
    raw[entry + start : entry + start + 1] = value
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"a\.zip is damaged or cut short"):
        open_zip(path)


@pytest.mark.parametrize("damage", ["content", "compression", "method", "encrypted"])
def test_a_damaged_member_is_an_error_that_names_archive_and_member(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.zip"
    write(path, 300)
    with zipfile.ZipFile(path) as archive:
        entry = archive.infolist()[101]
    raw = bytearray(path.read_bytes())
    directory = raw.rindex(entry.filename.encode()) - 46
    content = entry.header_offset + 30 + len(entry.filename)
    if damage == "content":
        raw[content + 10] ^= 0xFF  # still a deflate stream, but with the wrong checksum
    elif damage == "compression":
        raw[content] = 0xFF  # a type of block that deflate does not have
    elif damage == "method":
        raw[directory + 10] = 99
    else:
        raw[directory + 8] |= 1
        raw[entry.header_offset + 6] |= 1
    path.write_bytes(raw)
    with (
        open_zip(path) as archive,
        pytest.raises(DataError, match=rf"a\.zip: {entry.filename} cannot be unpacked; download"),
    ):
        read_member(archive, entry.filename)
