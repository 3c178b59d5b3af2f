"""DICOM files written with pydicom, and two real ones, against pydicom's own functions and slow loops."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLosslessSV1, RLELossless

from medunifier_cli.data.contract import DicomTone, FileImage
from medunifier_cli.data.images.dicom import DicomPixels, dicom_pixels, equalise, missing_decoder
from medunifier_cli.data.images.image import image_from
from medunifier_cli.data.images.levels import BadImage
from medunifier_cli.errors import DataError
from tests.folders import SHARED

REAL = SHARED / "data" / "dicom"
RAMP12 = np.linspace(0, 4095, 48 * 64).reshape(48, 64).astype(np.uint16)


def make(stored: np.ndarray, bits: int = 12, kind: str = "MONOCHROME2", **tags: Any) -> FileDataset:
    """A digital radiograph with these stored values."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = kind
    dataset.BitsAllocated = 8 * stored.dtype.itemsize
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = stored.tobytes()
    return dataset


def body(dataset: FileDataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def decode(dataset: FileDataset, tone: DicomTone = "window") -> DicomPixels:
    return dicom_pixels(io.BytesIO(body(dataset)), tone)


def test_monochrome1_is_inverted_once() -> None:
    window = {"WindowCenter": 2000, "WindowWidth": 3000}
    plain = decode(make(RAMP12, **window))
    other = decode(make(RAMP12, kind="MONOCHROME1", PresentationLUTShape="INVERSE", **window))
    assert (other.pixels.astype(int) == 255 - plain.pixels.astype(int)).all()
    assert (plain.inverted, other.inverted) == (False, True)
    assert (plain.bit_depth, other.bit_depth) == (12, 12)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("signed", [False, True])
def test_windows_equal_pydicom(function: str, signed: bool) -> None:
    stored = (RAMP12.astype(np.int16) - 1000) if signed else RAMP12
    dataset = make(
        stored, bits=13 if signed else 12, WindowCenter=[700, 5], WindowWidth=[1500, 9],
        VOILUTFunction=function, RescaleSlope=1.5, RescaleIntercept=-100,
    )  # fmt: skip
    theirs = apply_windowing(apply_modality_lut(stored, dataset), dataset).astype(float)
    bits = 13 if signed else 12
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    low, high = low * 1.5 - 100, high * 1.5 - 100
    expected = (theirs - low) / (high - low) * 255
    assert np.abs(decode(dataset).pixels - expected).max() <= 0.51


def test_a_voi_table_wins_over_a_window() -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table.LUTData = (np.sqrt(np.arange(4096) / 4095) * 65535).astype(np.uint16).tobytes()
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    dataset = make(RAMP12, WindowCenter=10, WindowWidth=10, VOILUTSequence=[table])
    expected = np.sqrt(RAMP12 / 4095) * 255
    assert np.abs(decode(dataset).pixels - expected).max() <= 1


def test_overlay_bits_beyond_those_stored_are_cleared() -> None:
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    dirty = RAMP12 | np.uint16(0x8000)
    assert (decode(make(dirty, **window)).pixels == decode(make(RAMP12, **window)).pixels).all()


def test_more_than_8_bits_without_a_window_are_stretched() -> None:
    found = decode(make((RAMP12 // 8).astype(np.uint16))).pixels
    assert np.abs(found - RAMP12 / 4095 * 255).max() < 3


def test_8_bits_without_a_window_stay_as_they_are() -> None:
    stored = (RAMP12 // 32 + 10).astype(np.uint8)
    assert (decode(make(stored, bits=8)).pixels == stored).all()


def test_padding_is_black_and_does_not_count() -> None:
    stored = RAMP12.copy()
    stored[:, :20] = 60000 % 4096
    for kind in ("MONOCHROME1", "MONOCHROME2"):
        found = decode(make(stored, kind=kind, PixelPaddingValue=60000 % 4096)).pixels
        assert (found[:, :20] == 0).all()


def test_range_is_minimum_to_maximum_of_the_stored_values() -> None:
    stored = (RAMP12 // 4 + 500).astype(np.uint16)
    found = decode(make(stored, kind="MONOCHROME1", WindowCenter=1, WindowWidth=2), "range").pixels
    low, high = int(stored.min()), int(stored.max())
    expected = [[255 - int((int(v) - low) / (high - low) * 255) for v in row] for row in stored]
    assert np.abs(found - np.array(expected)).max() <= 1


def test_equalise_is_the_textbook_one() -> None:
    """OpenCV's definition, pixel by pixel: share of pixels that are darker, the darkest level aside."""
    pixels = (np.random.default_rng(0).normal(100, 20, (20, 30))).clip(30, 200).astype(np.uint8)
    flat = pixels.reshape(-1).tolist()
    darkest = flat.count(min(flat))
    slow = [round(255 * (sum(v <= w for v in flat) - darkest) / (len(flat) - darkest)) for w in flat]
    assert np.abs(equalise(pixels).reshape(-1) - np.array(slow)).max() <= 0
    assert (equalise(np.full((4, 4), 9, np.uint8)) == 9).all()
    found = decode(make(RAMP12, kind="MONOCHROME1"), "equalise").pixels
    assert (found == equalise(255 - decode(make(RAMP12), "range").pixels)).all()


def test_compressed_files_decode_alike() -> None:
    dataset = make(RAMP12, WindowCenter=2048, WindowWidth=4096)
    plain = decode(dataset).pixels
    dataset.compress(RLELossless)
    assert (decode(dataset).pixels == plain).all()


def test_a_missing_decoder_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make(RAMP12)
    dataset.compress(RLELossless)
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    monkeypatch.setattr("pydicom.pixels.common.CoderBase.is_available", False)
    words = r"JPEG Lossless.*no decoder is installed; `pip install 'medunifier\[dicom\]'`"
    with pytest.raises(DataError, match=words):
        decode(dataset)
    assert "JPEG Lossless" in (missing_decoder(io.BytesIO(body(dataset))) or "")
    assert missing_decoder(io.BytesIO(body(make(RAMP12)))) is None


@pytest.mark.parametrize("keep", [0.9, 0.5])
def test_truncated_pixels_are_found(keep: float) -> None:
    whole = body(make(RAMP12))
    with pytest.raises(BadImage) as caught:
        dicom_pixels(io.BytesIO(whole[: int(len(whole) * keep)]), "window")
    assert caught.value.reason == "truncated"


def test_files_that_hold_no_radiograph() -> None:
    report = make(RAMP12)
    for name in ("PixelData", "Rows", "Columns"):
        delattr(report, name)
    for dataset in (report, make(RAMP12, NumberOfFrames=2)):
        with pytest.raises(BadImage) as caught:
            decode(dataset)
        assert caught.value.reason == "undecodable"


def test_colour_becomes_grey() -> None:
    stored = np.zeros((8, 8, 3), np.uint8)
    stored[..., 1] = np.arange(100, 164).reshape(8, 8)
    dataset = make(stored, bits=8, kind="RGB", SamplesPerPixel=3, PlanarConfiguration=0)
    assert np.abs(decode(dataset).pixels - stored[..., 1] * 0.587).max() <= 1


def test_a_file_without_preamble_is_known(tmp_path: Path) -> None:
    dataset = make(RAMP12, WindowCenter=2048, WindowWidth=4096)
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    bare = body(dataset)
    bare = bare[bare.index(b"\x08\x00\x16\x00") :]
    (tmp_path / "x").write_bytes(bare)
    assert (image_from(FileImage(tmp_path / "x"), 32).pixels[0, 0]) < 20


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data/dicom is not there")
def test_real_files() -> None:
    found = {}
    for path in sorted(REAL.glob("*.dcm")):
        found[path.name[:4]] = image_from(FileImage(path), 224)
        dataset = pydicom.dcmread(path)
        assert (found[path.name[:4]].height, found[path.name[:4]].width) == (dataset.Rows, dataset.Columns)
    assert (found["1.2."].inverted, found["Fake"].inverted) == (False, True)
    assert np.abs(found["1.2."].pixels.astype(int) - (255 - found["Fake"].pixels.astype(int))).mean() < 1
