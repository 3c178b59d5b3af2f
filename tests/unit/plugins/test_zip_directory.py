"""The streaming reader of zip archives against the standard library's."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest
from medunifier_plugins.raw.zip_directory import read_member, zip_entries

from medunifier_cli.data.contract import DataError


def write(path: Path, members: int, comment: bytes = b"") -> dict[str, bytes]:
    rng = random.Random(members)
    content = {
        f"files/p1{i % 10}/s{i:07d}.txt": rng.randbytes(i % 40) + b"word " * (i % 30) for i in range(members)
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("files/", "")
        for i, (name, body) in enumerate(content.items()):
            archive.writestr(name, body, zipfile.ZIP_DEFLATED if i % 3 else zipfile.ZIP_STORED)
        archive.comment = comment
    return content


@pytest.mark.parametrize("members", [1, 300, 66_000])  # beyond 65,535 the format is zip64
def test_names_and_contents_equal_those_of_zipfile(tmp_path: Path, members: int) -> None:
    path = tmp_path / "a.zip"
    content = write(path, members, b"a comment PK" if members == 300 else b"")
    entries = list(zip_entries(path))
    assert [entry.name for entry in entries] == list(content)
    with path.open("rb") as file:
        for entry in entries[:: max(1, members // 200)]:
            assert read_member(file, *entry[1:]) == content[entry.name]


def test_names_beyond_ascii(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("Röntgen/1.txt", b"x")
    assert [entry.name for entry in zip_entries(tmp_path / "a.zip")] == ["Röntgen/1.txt"]


def test_a_member_said_to_be_beyond_4_gib_is_looked_up_in_the_zip64_field(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive, archive.open("a.txt", "w", force_zip64=True) as member:
        member.write(b"content")
    # zipfile has 64-bit sizes in the local header only; other packers have them in the directory.
    raw = bytearray(path.read_bytes())
    start = raw.rindex(b"PK\x01\x02")
    sizes = (7).to_bytes(8, "little") * 2 + (0).to_bytes(8, "little")
    extra = b"\x01\x00\x18\x00" + sizes
    raw[start + 20 : start + 28] = b"\xff" * 8
    raw[start + 42 : start + 46] = b"\xff" * 4
    raw[start + 30 : start + 32] = len(extra).to_bytes(2, "little")
    end = start + 46 + len("a.txt")
    raw[end:end] = extra
    size = raw.rindex(b"PK\x05\x06") + 12
    raw[size : size + 4] = (46 + 5 + len(extra)).to_bytes(4, "little")
    path.write_bytes(raw)
    with zipfile.ZipFile(path) as archive:
        assert archive.read("a.txt") == b"content"
    (entry,) = zip_entries(path)
    assert (entry.offset, entry.size) == (0, 7)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_archive_is_an_error_of_one_line(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "a.zip"
    write(path, 300)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(DataError, match=r"a\.zip is damaged or cut short; download it again"):
        list(zip_entries(path))


def test_a_damaged_member_is_an_error_that_names_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    write(path, 300)
    entry = list(zip_entries(path))[100]
    raw = bytearray(path.read_bytes())
    raw[entry.offset + 60] ^= 0xFF
    path.write_bytes(raw)
    with (
        path.open("rb") as file,
        pytest.raises(DataError, match=r"a\.zip: a member at byte \d+ cannot be unpacked"),
    ):
        read_member(file, *entry[1:])
