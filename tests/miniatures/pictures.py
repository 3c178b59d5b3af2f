"""Small real image files for miniature downloads: JPEG, PNG and DICOM, each of its own grey pattern."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid


def pattern(seed: int, edge: int = 24) -> NDArray[np.uint8]:
    """A gradient with a bright square, uint8 [edge, edge]."""
    picture = np.add.outer(np.arange(edge), np.arange(edge)) * 100 // edge
    place = seed % (edge - 6)
    picture[place : place + 6, place : place + 6] = 250
    return picture.astype(np.uint8)


def write_picture(path: Path, seed: int = 0) -> None:
    """JPEG or PNG, by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pattern(seed)).save(path)


def write_dicom(
    path: Path, seed: int = 0, view: str | None = "PA", view_code: str | None = None, inverted: bool = False
) -> None:
    """Uncompressed, 12 bits stored in 16, as the hospitals wrote them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = pattern(seed).astype(np.uint16) * 16
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = (
        pydicom.uid.DigitalXRayImageStorageForPresentation
    )
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Modality, dataset.PatientID = "DX", path.stem
    if view is not None:
        dataset.ViewPosition = view
    if view_code is not None:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "R-10206", "SRT", view_code
        dataset.ViewCodeSequence = [code]
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.PixelData = (4095 - pixels if inverted else pixels).tobytes()
    dataset.save_as(path, enforce_file_format=True)


def leave_rubbish(folder: Path) -> None:
    """What wget, gsutil and macOS leave behind, in every folder that is there."""
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for name in ("index.html", "index.html?C=M;O=A", "part.jpg_.gstmp", "._metadata.csv", ".DS_Store"):
            (place / name).write_bytes(b"\x00rubbish")
