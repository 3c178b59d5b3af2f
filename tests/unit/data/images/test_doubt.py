"""Headers that contradict the data: rescaled and said to be, against the same picture told right."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image, TiffImagePlugin

from medunifier_cli.data.contract import DicomTone, FileImage
from medunifier_cli.data.images.dicom import DicomPixels, dicom_pixels
from medunifier_cli.data.images.image import GreyImage, image_from
from medunifier_cli.data.images.levels import BadImage
from tests.unit.data.images.test_dicom import RAMP12, body, make

RAMP8 = np.linspace(5, 250, 64 * 64).reshape(64, 64).astype(np.uint8)


def decode(stored: np.ndarray = RAMP12, tone: DicomTone = "window", **tags: Any) -> DicomPixels:
    return dicom_pixels(io.BytesIO(body(make(stored, **tags))), tone)


def table(entries: np.ndarray, declared: int, packed: bool = False) -> pydicom.Dataset:
    """An item of a look-up table sequence."""
    item = pydicom.Dataset()
    item.LUTDescriptor = [len(entries), 0, declared]
    item.LUTData = entries.astype(np.uint8 if packed else np.uint16).tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    return item


CURVE = np.sqrt(np.arange(4096) / 4095)
TOLD = np.sqrt(RAMP12 / 4095) * 255


@pytest.mark.parametrize(("used", "declared"), [(10, 16), (12, 16), (15, 16), (8, 12)])
def test_a_voi_table_narrower_than_it_says_is_not_black(used: int, declared: int) -> None:
    found = decode(VOILUTSequence=[table(CURVE * (2**used - 1), declared)])
    assert np.abs(found.pixels - TOLD).max() <= 256 / 2**used + 1
    assert found.doubt == f"a look-up table of {used} bits that declares {declared}"


@pytest.mark.parametrize("bits", [8, 9, 10, 12, 16])
def test_tables_of_any_number_of_bits_are_read(bits: int) -> None:
    found = decode(VOILUTSequence=[table(CURVE * (2**bits - 1), bits)])
    assert np.abs(found.pixels - TOLD).max() <= 256 / 2**bits + 1
    assert found.doubt == ""
    # The modality table comes before a window, which here spans its whole output.
    window = {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits}
    found = decode(ModalityLUTSequence=[table(CURVE * (2**bits - 1), bits)], **window)
    assert np.abs(found.pixels - TOLD).max() <= 256 / 2**bits + 1


def test_a_table_of_bytes_is_read() -> None:
    found = decode(VOILUTSequence=[table(CURVE * 255, 8, packed=True)])
    assert np.abs(found.pixels - TOLD).max() <= 2


@pytest.mark.parametrize("tone", ["window", "range"])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("centre", "width"), [(32768, 4096), (-9000, 255), (2000, 1)])
def test_a_window_beside_the_pixels_is_passed_over(
    centre: int, width: int, kind: str, tone: DicomTone
) -> None:
    told = decode(kind=kind)
    found = decode(kind=kind, tone=tone, WindowCenter=centre, WindowWidth=width)
    assert np.abs(found.pixels.astype(int) - told.pixels).max() <= 3
    assert bool(found.doubt) == (tone == "window")  # the other tone reads no window


@pytest.mark.parametrize(
    ("centre", "width"),
    [(["", ""], ["", ""]), (["", 2048], ["", 4096]), ([2048, ""], [4096, ""]), (None, None), ("", ""),
     (2048, None)],
)  # fmt: skip
def test_empty_windows_do_no_harm(centre: Any, width: Any) -> None:
    found = decode(WindowCenter=centre, WindowWidth=width, RescaleSlope=None, RescaleIntercept=None)
    assert np.abs(found.pixels - RAMP12 / 4095 * 255).max() <= 3
    assert found.doubt == ""


def test_a_few_wild_pixels_do_not_blacken_the_range() -> None:
    stored = RAMP12 // 64
    stored[0, :5] = 4095
    found = decode(stored, tone="range")
    assert "black" in found.doubt
    assert 100 < np.median(found.pixels) < 155


def test_padding_does_not_count_as_black() -> None:
    stored = RAMP12 + np.uint16(1)
    stored[:, :62] = 0
    found = decode(stored, PixelPaddingValue=0, WindowCenter=2048, WindowWidth=4096)
    assert found.doubt == ""
    assert (found.pixels[:, :62] == 0).all()


@pytest.mark.parametrize("tone", ["window", "range", "equalise"])
def test_a_blank_dicom_is_refused(tone: DicomTone) -> None:
    for tags in ({}, {"WindowCenter": 2048, "WindowWidth": 4096}):
        with pytest.raises(BadImage, match="blank"):
            decode(np.full((48, 64), 700, np.uint16), tone, **tags)


def picture(path: Path, image: Image.Image, form: str = "PNG", **options: Any) -> GreyImage:
    image.save(path, form, **options)
    return image_from(FileImage(path), 64)


@pytest.mark.parametrize("level", [0, 77, 255])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_a_blank_picture_is_refused(tmp_path: Path, level: int, form: str) -> None:
    with pytest.raises(BadImage, match="blank: every pixel"):
        picture(tmp_path / "x", Image.new("L", (64, 64), level), form)
    with pytest.raises(BadImage, match="blank"):
        picture(tmp_path / "x", Image.fromarray(np.full((64, 64), level, np.uint16)), "TIFF")


@pytest.mark.parametrize(("low", "high"), [(0, 3), (252, 255), (100, 107)])
def test_a_handful_of_levels_is_rescaled_and_said(tmp_path: Path, low: int, high: int) -> None:
    few = np.linspace(low, high, 64 * 64).reshape(64, 64).round().astype(np.uint8)
    found = picture(tmp_path / "x", Image.fromarray(few))
    assert found.doubt
    assert np.abs(found.pixels - (few.astype(float) - low) / (high - low) * 255).max() <= 1
    assert (image_from(FileImage(tmp_path / "x"), 64, believe=True).pixels == few).all()


def test_a_picture_of_two_levels_is_what_it_is(tmp_path: Path) -> None:
    found = picture(tmp_path / "x", Image.fromarray(np.where(RAMP8 > 99, 200, 9).astype(np.uint8)))
    assert set(found.pixels.reshape(-1)) == {9, 200}
    assert found.doubt == ""


def test_an_ordinary_dark_picture_is_left_alone(tmp_path: Path) -> None:
    dark = RAMP8 // 3
    dark[:, :55] = 0  # collimated: 86 % black
    found = picture(tmp_path / "x", Image.fromarray(dark))
    assert (found.pixels == dark).all()
    assert found.doubt == ""


def test_transparency_that_hides_everything_is_not_believed(tmp_path: Path) -> None:
    found = picture(tmp_path / "x", Image.merge("LA", [Image.fromarray(RAMP8), Image.new("L", (64, 64), 0)]))
    assert (found.pixels == RAMP8).all()
    assert found.doubt


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_white_is_zero_at_any_depth(tmp_path: Path, kind: type) -> None:
    deep: np.ndarray = np.linspace(0, 255 if kind is np.uint8 else 4000, 64 * 64).reshape(64, 64).astype(kind)
    black = picture(tmp_path / "b", Image.fromarray(deep), "TIFF")
    body = io.BytesIO()
    Image.fromarray(deep).save(body, "TIFF")
    data = bytearray(body.getvalue())
    tag = data.index(struct.pack("<HHI", TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 3, 1))
    data[tag + 8] = 0  # the tag alone: the same values, white is zero
    (tmp_path / "w").write_bytes(data)
    white = image_from(FileImage(tmp_path / "w"), 64)
    assert np.abs(white.pixels.astype(int) - (255 - black.pixels.astype(int))).max() <= 1
    assert (black.inverted, white.inverted) == (False, True)


def tiff(levels: np.ndarray, order: str, white_is_zero: bool) -> bytes:
    """A TIFF of one strip, by hand: Pillow writes neither WhiteIsZero nor the other byte order."""
    form = {"u": 1, "i": 2, "f": 3}[levels.dtype.kind]
    body = levels.astype(levels.dtype.newbyteorder(order)).tobytes()
    height, width = levels.shape
    tags = [
        (256, 3, width), (257, 3, height), (258, 3, 8 * levels.itemsize), (259, 3, 1),
        (262, 3, 0 if white_is_zero else 1), (273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, len(body)),
        (339, 3, form),
    ]  # fmt: skip
    entries = b"".join(
        struct.pack(order + "HHI", tag, kind, 1) + struct.pack(order + ("I" if kind == 4 else "HH"), *value)
        for tag, kind, value in ((t, k, (v,) if k == 4 else (v, 0)) for t, k, v in tags)
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(body))
    return head + body + struct.pack(order + "H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.int32, np.float32])
def test_tiffs_of_both_byte_orders_are_read_alike(
    tmp_path: Path, kind: type, order: str, white_is_zero: bool
) -> None:
    ramp = np.linspace(-0.1, 1.1, 64 * 64).clip(0, 1).reshape(64, 64)  # ends that the stretch cannot cut
    levels: np.ndarray = (ramp * (255 if kind is np.uint8 else 4000)).astype(kind)
    (tmp_path / "x.tif").write_bytes(tiff(levels, order, white_is_zero))
    found = image_from(FileImage(tmp_path / "x.tif"), 64)
    wanted = 255 * ramp
    wanted = 255 - wanted if white_is_zero else wanted
    assert np.abs(found.pixels - wanted).max() <= 1.5
    assert found.inverted is white_is_zero


def chunk(kind: bytes, contents: bytes) -> bytes:
    return struct.pack(">I", len(contents)) + kind + contents + struct.pack(">I", zlib.crc32(kind + contents))


LARGE = {
    "zTXt": b"history\0\0" + zlib.compress(bytes(5 << 20)),
    "iTXt": b"history\0\1\0\0\0" + zlib.compress(bytes(5 << 20)),
    "iCCP": b"profile\0\0" + zlib.compress(bytes(5 << 20)),
}


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("last", [False, True])
def test_large_texts_and_profiles_of_a_png_do_not_matter(tmp_path: Path, kind: str, last: bool) -> None:
    plain = io.BytesIO()
    Image.fromarray(RAMP8).save(plain, "PNG")
    png = plain.getvalue()
    at = len(png) - 12 if last else 33  # before IEND, or after IHDR
    png = png[:at] + chunk(kind.encode(), LARGE[kind]) + png[at:]
    (tmp_path / "x.png").write_bytes(png)
    assert (image_from(FileImage(tmp_path / "x.png"), 64).pixels == RAMP8).all()
    (tmp_path / "x.png").write_bytes(png[: at // 2] if last else png[:-300])
    with pytest.raises(BadImage) as caught:
        image_from(FileImage(tmp_path / "x.png"), 64)
    assert caught.value.reason == "truncated"
