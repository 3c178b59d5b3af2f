"""What a hostile file may cost: sizes are looked at before any work, and a bound that is met is said."""

from __future__ import annotations

import gzip
import io
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medunifier_plugins.mimic_cxr.dataset import MimicCxr
from medunifier_plugins.open_i.reports import read_reports
from medunifier_plugins.raw.dicom_header import view_position
from medunifier_plugins.raw.tables import Table
from PIL import Image

from medunifier_cli import files
from medunifier_cli.data.contract import DataError, FileImage, Record, ZipImage
from medunifier_cli.data.disk import unpack
from medunifier_cli.data.images import levels, picture
from medunifier_cli.data.images.image import image_from
from medunifier_cli.data.images.levels import BadImage
from medunifier_cli.data.images.stored import decode_grey
from medunifier_cli.data.texts.tokenizer import LONGEST_TEXT, TextTokenizer
from medunifier_cli.prepare.render import Reject, render
from tests.miniatures import mimic
from tests.miniatures.pictures import write_dicom, write_picture
from tests.miniatures.planner import Planner


def png_header(width: int, height: int, depth: int, colour: int) -> bytes:
    """A PNG of black pixels that claims this size, and holds a few rows of them."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height", "depth", "colour", "said"),
    [
        (13_000, 13_000, 8, 6, "13000 x 13000 pixels of mode RGBA"),
        (13_000, 13_000, 16, 0, r"13000 x 13000 pixels of mode I;16"),
        (13_000, 13_000, 8, 2, "13000 x 13000 pixels of mode RGB"),
        (10_100, 10_000, 8, 0, "10100 x 10000 pixels of mode L"),
        (8_000, 7_000, 8, 3, "8000 x 7000 pixels of mode P"),
        (9_000, 8_000, 16, 0, r"9000 x 8000 pixels of mode I;16"),
    ],
)
def test_pixels_are_counted_with_what_they_take_before_any_is_decoded(
    tmp_path: Path, width: int, height: int, depth: int, colour: int, said: str
) -> None:
    body = png_header(width, height, depth, colour)
    (tmp_path / "x.png").write_bytes(body)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImage, match=said):
        image_from(FileImage(tmp_path / "x.png"), 32)
    assert not decode_grey(body, np.empty((32, 32), np.uint8))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_large_radiograph_is_decoded() -> None:
    for mode, pixels in (("RGB", 7000 * 7000), ("I;16", 4728 * 5928), ("L", 10_000 * 10_000)):
        assert pixels <= min(picture.PIXELS, picture.SAMPLES // picture.COST.get(mode, 4))


def test_a_jpeg_of_a_thousand_scans_is_refused_before_any_is_decoded(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray((np.arange(64 * 64) % 251).astype(np.uint8).reshape(64, 64)).save(
        file, "JPEG", progressive=True
    )
    first, *scans = file.getvalue().split(b"\xff\xda")
    (tmp_path / "x.jpg").write_bytes(file.getvalue())
    assert image_from(FileImage(tmp_path / "x.jpg"), 32).width == 64
    body = b"\xff\xda".join([first, *scans[:2], *[scans[1]] * 1000, *scans[2:]])
    (tmp_path / "x.jpg").write_bytes(body)
    with pytest.raises(BadImage, match="more than 100 scans"):
        image_from(FileImage(tmp_path / "x.jpg"), 32)
    assert not decode_grey(body, np.empty((32, 32), np.uint8))


def test_bytes_of_jpeg_2000_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.jp2")
    assert image_from(FileImage(tmp_path / "x.jp2"), 32).width == 64
    monkeypatch.setattr(picture, "JPEG2000_BYTES", 1000)
    with pytest.raises(BadImage, match="a JPEG 2000 of more than 1,000 bytes"):
        image_from(FileImage(tmp_path / "x.jp2"), 32)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "F"]
)
def test_strips_change_no_pixel(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    if mode in ("I;16", "F"):
        kind: Any = np.uint16 if mode == "I;16" else np.float32
        image = Image.fromarray(rng.integers(0, 5000, (61, 37)).astype(kind))
        if mode == "F":
            image.putpixel((3, 3), float("nan"))
    elif mode in ("P", "PA"):
        image = Image.new(mode, (37, 61))
        image.putpalette(rng.integers(0, 256, 768).tolist())
        image.putdata([(i % 256, i % 7 * 40) if mode == "PA" else i % 256 for i in range(37 * 61)])
        image.info["transparency"] = 3
    else:
        bands = len(Image.new(mode, (1, 1)).getbands())
        body = rng.integers(0, 256, 37 * 61 * bands, np.uint8).tobytes()
        image = Image.new(mode, (37, 61)) if mode == "1" else Image.frombytes(mode, (37, 61), body)
        if mode == "1":
            image.putdata([255 * (i % 3 == 0) for i in range(37 * 61)])
    whole = np.asarray(picture.as_grey(image)), np.asarray(picture.second_guess(image, image.convert("L")))
    monkeypatch.setattr(picture, "STRIP", 100)
    monkeypatch.setattr(levels, "TOGETHER", 100)
    parts = np.asarray(picture.as_grey(image)), np.asarray(picture.second_guess(image, image.convert("L")))
    assert (whole[0] == parts[0]).all()
    assert (whole[1] == parts[1]).all()


def test_strips_change_no_pixel_of_a_dicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dicom(tmp_path / "x.dcm")
    for tone in ("window", "range", "equalise"):
        whole = image_from(FileImage(tmp_path / "x.dcm", tone), 24).pixels
        with monkeypatch.context() as patch:
            patch.setattr(levels, "TOGETHER", 50)
            assert (image_from(FileImage(tmp_path / "x.dcm", tone), 24).pixels == whole).all()


def test_unpacked_bytes_of_an_image_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("medunifier_cli.data.images.image", "medunifier_cli.data.images.dicom"):
        monkeypatch.setattr(f"{module}.IMAGE_BYTES", 2000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.png", bytes(100_000))
    (tmp_path / "x.dcm.gz").write_bytes(gzip.compress(bytes(100_000)))
    (tmp_path / "plain.png").write_bytes(bytes(100_000))
    _deflated(tmp_path / "deflated.dcm", 100_000)
    sources = [FileImage(tmp_path / name) for name in ("x.dcm.gz", "plain.png", "deflated.dcm")]
    for source in (*sources, ZipImage(tmp_path / "x.zip", "x.png")):
        with pytest.raises(BadImage, match="more than 2,000 bytes"):
            image_from(source, 32)


def test_a_dicom_of_more_pixels_than_any_detector_has_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dicom(tmp_path / "x.dcm")
    monkeypatch.setattr("medunifier_cli.data.images.dicom.SAMPLES", 500)
    with pytest.raises(BadImage, match="24 x 24 pixels"):
        image_from(FileImage(tmp_path / "x.dcm"), 32)


def test_the_header_of_a_deflated_dicom_is_not_unpacked_without_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dicom(tmp_path / "x.dcm", view="AP")
    (tmp_path / "x.dcm.gz").write_bytes(gzip.compress((tmp_path / "x.dcm").read_bytes()))
    assert view_position(tmp_path / "x.dcm") == view_position(tmp_path / "x.dcm.gz") == "AP"
    monkeypatch.setattr(unpack, "IMAGE_BYTES", 2000)
    _deflated(tmp_path / "bomb.dcm", 1 << 20)
    monkeypatch.setattr("pydicom.filereader.zlib.decompress", lambda *_: pytest.fail("unpacked at once"))
    assert view_position(tmp_path / "bomb.dcm") is None


def test_tables_and_archives_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "TABLE_BYTES", 10_000)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"key\n" + b"1\n" * 10_000))
    with pytest.raises(DataError, match=r"a\.csv\.gz: larger than 10,000 bytes"):
        list(Table(tmp_path / "a.csv.gz").rows(["key"]))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", b"key\n" + b"1\n" * 10_000)
    with pytest.raises(DataError, match=r"a\.zip!a\.csv: larger than 10,000 bytes"):
        list(Table(tmp_path / "a.zip", "a.csv").rows(["key"]))
    monkeypatch.setattr(files, "LINE", 100)
    (tmp_path / "line.csv").write_bytes(b"key\n" + b"1" * 1000)
    with pytest.raises(DataError, match=r"line\.csv:2: a line of more than 100 characters"):
        list(Table(tmp_path / "line.csv").rows(["key"]))


@pytest.mark.parametrize("name", ["1.xml", "skipped.bin"])
def test_an_archive_of_reports_is_bounded_with_what_is_skipped(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "ARCHIVE_BYTES", 1 << 20)
    with tarfile.open(tmp_path / "NLMCXR_reports.tgz", "w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = 8 << 20
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    with pytest.raises(DataError, match=r"NLMCXR_reports\.tgz.*larger than 1,048,576 bytes"):
        read_reports([tmp_path])


def test_a_report_of_a_megabyte_is_a_counted_drop(tmp_path: Path) -> None:
    study = mimic.Study(10000032, 50414267, ("PA",), report="x" * (unpack.REPORT_BYTES + 1))
    other = mimic.Study(10000033, 50414268, ("PA",), report=mimic.report_text("Clear.", "Normal."))
    mimic.write_jpg_release(tmp_path, [study, other])
    mimic.write_reports_zip(tmp_path / "mimic-cxr-reports.zip", [study, other])
    records, drops = Planner(MimicCxr()).items(tmp_path, per_class=0)
    assert [drop.reason for drop in drops] == ["report is too large"]
    assert len(records) == 1


def test_metadata_that_no_reader_would_take_is_a_reject(tmp_path: Path) -> None:
    write_picture(tmp_path / "x.png")
    record = Record("k", FileImage(tmp_path / "x.png"), "train", "s", "s", "x.png")
    assert not isinstance(render(record, 32, "png"), Reject)
    large = Record(
        "k", FileImage(tmp_path / "x.png"), "train", "s", "s", "x.png", None, {"findings": "x" * (1 << 22)}
    )
    found = render(large, 32, "png")
    assert isinstance(found, Reject)
    assert found.reason == "metadata too large"


def test_a_word_of_a_megabyte_is_no_word() -> None:
    """The trainer took more than a minute for one; WordPiece reads any of over 100 letters as [UNK]."""
    texts = ["the heart is normal", "no effusion, no edema"] * 20
    plain = TextTokenizer.train(texts, 200)
    assert TextTokenizer.train([*texts, "x" * 1_000_000], 200).fingerprint == plain.fingerprint
    joined = [f"{','.join(['normal'] * 40)}" for _ in range(20)]  # more than 100 characters, but 40 words
    assert TextTokenizer.train([*texts, *joined], 200).fingerprint == _spaced(texts, joined).fingerprint


def _spaced(texts: list[str], joined: list[str]) -> TextTokenizer:
    return TextTokenizer.train([*texts, *(text.replace(",", " , ") for text in joined)], 200)


def test_a_text_is_read_up_to_its_bound() -> None:
    tokenizer = TextTokenizer.train(["the heart is normal"] * 3, 100)
    text = "heart " * LONGEST_TEXT
    assert tokenizer.encode(text, 64) == tokenizer.encode("heart " * 100, 64)
    assert len(tokenizer.encode(text, 10**6)) < LONGEST_TEXT


MEASURE = """
import sys
from pathlib import Path
from medunifier_cli.data.contract import FileImage
from medunifier_cli.data.images.image import image_from
from medunifier_cli.data.images.levels import BadImage
import pydicom
try:
    image_from(FileImage(Path(sys.argv[1])), 224)
except BadImage:
    pass
status = Path("/proc/self/status").read_text()  # ru_maxrss would count the process that started this one
print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rgba", "16 bit", "palette"])
def test_the_largest_picture_takes_less_than_a_gibibyte(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.png"
    edge = {"rgba": 7000, "16 bit": 8_100, "palette": 7000}[kind]
    row = (np.arange(edge) % 200).astype(np.uint8)
    pixels = np.broadcast_to(row.astype(np.uint16) * 16 if kind == "16 bit" else row, (edge, edge))
    mode = {"rgba": "RGBA", "palette": "P"}.get(kind)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    (image.convert(mode) if mode else image).save(path, compress_level=1)
    run = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, check=True)
    assert int(run.stdout) < 1024


def _deflated(path: Path, size: int) -> None:
    """A DICOM whose data set is zeros, packed as PS3.5 A.5 has it."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.filewriter import write_file_meta_info

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2"
    head = io.BytesIO()
    write_file_meta_info(head, meta)
    pack = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(bytes(128) + b"DICM" + head.getvalue() + pack.compress(bytes(size)) + pack.flush())
