"""Shards without a manifest, damaged or hostile in bytes, headers and JSON: samples, or one clean line."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medunifier_cli.data.disk import tar
from medunifier_cli.data.disk.unpack import META_BYTES
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.texts.token_table import sections_there
from medunifier_cli.errors import DataError
from tests.damage import damaged, edited, ends_well
from tests.hand_made import HandMade, sample, write_shard


def read(folder: Path) -> None:
    """All that a run reads of a split."""
    shards = Shards.open(folder, "train")
    for i in range(len(shards)):
        shards.read(i)
    shards.class_indices(HandMade())
    sections_there(shards)


def test_damaged_bytes_end_in_one_line(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "train-000000.tar", [sample(i) for i in range(3)])
    whole, rng = path.read_bytes(), np.random.default_rng(2)
    for _ in range(150):
        path.write_bytes(damaged(whole, rng))
        ends_well(lambda: read(tmp_path))


def test_edited_metadata_ends_in_one_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for _ in range(150):
        key, image, meta = sample(0)
        meta |= {"caption": "A caption.", "view": "PA"}
        write_shard(tmp_path / "train-000000.tar", [(key, image, edited(meta, rng)), sample(1)])
        ends_well(lambda: read(tmp_path))


@pytest.mark.parametrize(
    "meta",
    [
        b"[" * 100_000,
        b'{"labels": {"A": ' + b"9" * 5000 + b"}}",
        b'{"labels": {"A": 1e999999}, "subject": "\\ud800"}',
        b'{"labels": {"\\udfff": 1}}',
        b'{"sections": {"findings": ["a"]}}',
        b'{"sections": {"findings": 5}}',
        b'{"sections": [1]}',
        b'{"labels": [1]}',
        b'{"labels": {"A": {"B": 1}}}',
        b'{"caption": {"a": 1}}',
        b"[1, 2]",
        b"5",
        b"",
        b"\xff\xfe",
        '{"a": "é"}'.encode("latin-1"),
    ],
)
def test_metadata_of_another_kind_is_one_line_that_names_the_file(tmp_path: Path, meta: bytes) -> None:
    _write(tmp_path / "train-0.tar", {"7.png": sample(0)[1], "7.json": meta})
    error = ends_well(lambda: read(tmp_path))
    assert error is not None
    assert "train-0.tar: 7.json" in str(error)


def test_a_report_in_the_place_of_a_label_does_not_come_out(tmp_path: Path) -> None:
    secret = "The mass is malignant."
    for meta in (
        {"labels": {"A": secret}},
        {"labels": {"A": secret, "B": 1.0}},
        {"sections": {"a": [secret]}},
    ):
        write_shard(tmp_path / "train-000000.tar", [sample(0, **meta)])
        error = ends_well(lambda: read(tmp_path))
        assert error is not None
        assert "malignant" not in f"{error} {error.__context__!r} {error.__cause__!r}"


def test_true_and_false_are_labels(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-000000.tar", [sample(0, labels={"A": True, "B": False, "C": 1})])
    shards = Shards.open(tmp_path, "train")
    assert shards.label_dict(shards.index["labels"][0]) == {"A": 1.0, "B": 0.0, "C": 1.0}


@pytest.mark.parametrize("size", [-512, -1024, -(1 << 40), 1 << 62])
@pytest.mark.parametrize("place", ["header", "pax"])
def test_a_member_of_impossible_size_ends(tmp_path: Path, size: int, place: str) -> None:
    """Before Python 3.11.14, tarfile goes round for ever at a negative one."""
    info = tarfile.TarInfo("8.png")
    if place == "pax":
        info.pax_headers = {"size": str(size)}
        header = info.tobuf(tarfile.PAX_FORMAT)
    else:
        header = _with_size(info.tobuf(tarfile.GNU_FORMAT), size)
    _write(tmp_path / "train-0.tar", {"7.png": sample(0)[1], "7.json": b"{}"}, header)
    with pytest.raises(DataError, match=r"train-0\.tar: "):
        read(tmp_path)


def test_a_sparse_file_and_a_chain_of_long_names_end(tmp_path: Path) -> None:
    sparse = tarfile.TarInfo("8.png")
    size = str(1 << 50)
    sparse.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": size, "GNU.sparse.name": "8.png"}
    files = {"7.png": sample(0)[1], "7.json": b"{}"}
    _write(tmp_path / "train-0.tar", files, sparse.tobuf(tarfile.PAX_FORMAT))
    assert ends_well(lambda: read(tmp_path)) is not None
    longname = tarfile.TarInfo("././@LongLink")
    longname.type, longname.size = tarfile.GNUTYPE_LONGNAME, 4
    _write(
        tmp_path / "train-0.tar", {}, (longname.tobuf(tarfile.GNU_FORMAT) + b"abc\0".ljust(512, b"\0")) * 3000
    )
    assert ends_well(lambda: read(tmp_path)) is not None


def test_large_members_are_refused_before_they_are_read(tmp_path: Path) -> None:
    _write(tmp_path / "train-0.tar", {"7.png": sample(0)[1], "7.json": bytes(META_BYTES + 1)})
    tracemalloc.start()
    with pytest.raises(DataError, match=r"7\.json: larger than 4,194,304 bytes"):
        read(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < META_BYTES
    tracemalloc.stop()


def test_an_extended_header_is_not_read_however_large_it_says_it_is() -> None:
    pax = tarfile.TarInfo("pax")
    pax.type, pax.size = tarfile.XHDTYPE, 1 << 33
    archive = io.BytesIO(pax.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(tarfile.ReadError, match="more than 1 MiB"):
        list(tar.members(archive))


def test_names_that_are_not_utf8_or_endless_are_refused(tmp_path: Path) -> None:
    for name in ("\udcff.png", "x" * 600 + ".png"):
        _write(tmp_path / "train-0.tar", {name: sample(0)[1], "7.json": b"{}"})
        assert ends_well(lambda: read(tmp_path)) is not None


def test_thousands_of_labels_are_refused(tmp_path: Path) -> None:
    labels = {f"label {i}": 1.0 for i in range(1001)}
    write_shard(tmp_path / "train-000000.tar", [sample(0, labels=labels)])
    with pytest.raises(DataError, match="1,001 labels in split 'train'; 1,000 are the most"):
        read(tmp_path)


def test_the_version_of_a_manifest_is_looked_at(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-000000.tar", [sample(0)])
    (tmp_path / "manifest.json").write_text(json.dumps({"version": 2, "dataset": "rsna", "splits": [1]}))
    with pytest.raises(
        DataError, match=r"version 2 of its format, .* reads version 1; run `mu prepare rsna`"
    ):
        read(tmp_path)


@pytest.mark.parametrize("name", ["../other.tar", "/etc/passwd", "a/b.tar", "a\0b"])
def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    shard = {"name": name, "bytes": 1, "sha256": "0" * 64}
    (tmp_path / "manifest.json").write_text(json.dumps({"splits": {"train": {"shards": [shard]}}}))
    with pytest.raises(DataError, match=r"manifest\.json: expected str"):
        read(tmp_path)


def _write(path: Path, files: dict[str, bytes], more: bytes = b"") -> None:
    """A tar of these files, and these bytes before its end."""
    body: Any = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w", errors="surrogateescape") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        end = archive.offset
    path.write_bytes(body.getvalue()[:end] + more + bytes(1024))


def _with_size(header: bytes, size: int) -> bytes:
    """A header with a size in base 256, which may be negative, and the checksum that fits."""
    number = (size % (1 << 96)).to_bytes(12, "big") if size < 0 else b"\x80" + size.to_bytes(11, "big")
    header = header[:124] + number + header[136:148] + b" " * 8 + header[156:]
    return header[:148] + f"{sum(header):06o}\0 ".encode() + header[156:]
