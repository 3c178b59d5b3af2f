"""Decode a DICOM to 8-bit grey levels: rescale, VOI window, MONOCHROME1 (PS3.3, C.7.6.3 and C.11.2).

The header is believed unless the picture it leads to is doubtful (`levels.doubt`): then the stored values are
rescaled as if it named no window.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import JPEG2000TransferSyntaxes, JPEGTransferSyntaxes

from medunifier_cli.data.contract import DicomTone
from medunifier_cli.data.disk.unpack import IMAGE_BYTES, dicom_within
from medunifier_cli.data.images.levels import BadImage, by_rows, doubt, reject_blank, rescale_intensity
from medunifier_cli.data.images.picture import refuse_slow
from medunifier_cli.data.images.tables import look_up_table, modality, window
from medunifier_cli.errors import DataError

INSTALL = "`pip install 'medunifier[dicom]'`"
SAMPLES = 3 << 23
"""Largest number of pixels, each counted once for each colour: 25 million. A detector of 43 cm with a pitch
of 0.1 mm has 18 million."""
LEVELS = 1 << 16
"""If stored values span fewer levels than this, grey levels are computed once per level and looked up."""


class MissingDecoderError(DataError):
    """A compression that no installed package decodes. Fatal, as it would reject thousands of good files."""


@dataclass(frozen=True)
class DicomPixels:
    """One decoded frame."""

    pixels: NDArray[np.uint8]
    """[height, width], 0 is black."""
    bit_depth: int
    """The attribute Bits Stored."""
    inverted: bool
    """Whether the file is MONOCHROME1; `pixels` are inverted already."""
    doubt: str = ""
    """Why the levels that the header led to were not believed; empty if they were."""


def dicom_pixels(file: IO[bytes], tone: DicomTone) -> DicomPixels:
    """Decode a single-frame DICOM.

    Raises:
        BadImage: the file has no image or several frames, is blank, truncated or damaged.
        MissingDecoderError: it has a compression that nothing installed can decode.
    """
    # pydicom logs irregularities together with attribute values, which may be patient data; what matters is
    # raised below.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if not dicom_within(file, IMAGE_BYTES):
                raise BadImage("undecodable", f"more than {IMAGE_BYTES:,} bytes, unpacked")
            dataset = pydicom.dcmread(file, force=True)
            return _pixels(dataset, tone)
        except (BadImage, MissingDecoderError):
            raise
        except Exception as error:  # decoders raise all kinds of errors on damaged files
            cut = "less than" in str(error) or isinstance(error, EOFError)
            raise BadImage("truncated" if cut else "undecodable", type(error).__name__) from error


def missing_decoder(file: IO[bytes]) -> str | None:
    """Which package to install to decode this file; None if nothing is missing."""
    try:
        if not dicom_within(file, IMAGE_BYTES):
            return None
        header = pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=[])
        _check_decoder(header)
    except MissingDecoderError as error:
        return str(error)
    except Exception:  # a damaged file, which is rejected when it is decoded
        return None
    return None


def _check_decoder(dataset: pydicom.Dataset) -> None:
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if syntax is None or not syntax.is_compressed or syntax.is_deflated:
        return
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError as error:
        raise BadImage("undecodable", f"transfer syntax {syntax.name}") from error
    if not available:
        raise MissingDecoderError(f"DICOM compressed as {syntax.name}: no decoder is installed; {INSTALL}")


def _pixels(dataset: pydicom.Dataset, tone: DicomTone) -> DicomPixels:
    if "PixelData" not in dataset:
        cut = "Rows" in dataset  # pydicom skips an element that is shorter than its length
        raise BadImage("truncated" if cut else "undecodable", "no pixel data")
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise BadImage("undecodable", f"{dataset.NumberOfFrames} frames")
    _check_decoder(dataset)
    if not hasattr(dataset, "file_meta") or "TransferSyntaxUID" not in dataset.file_meta:
        # A file without preamble does not name its encoding: the standard's default applies.
        dataset.ensure_file_meta()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    area = int(dataset.Rows) * int(dataset.Columns)
    if area * int(dataset.get("SamplesPerPixel") or 1) > SAMPLES:
        raise BadImage("undecodable", f"{dataset.Columns} x {dataset.Rows} pixels")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and syntax in JPEG2000TransferSyntaxes + JPEGTransferSyntaxes:
        refuse_slow(dataset.PixelData, syntax in JPEG2000TransferSyntaxes)
    with _no_more_than(area):
        stored = pixel_array(dataset)  # clears the bits above Bits Stored, where old files keep overlays
    depth = int(dataset.BitsStored)
    kind = str(dataset.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        colour = apply_color_lut(stored, dataset)
        stored = (colour >> 8).astype(np.uint8) if colour.dtype == np.uint16 else colour
    if stored.ndim == 3:
        return _colour(stored, depth)
    padding = _padding(stored, dataset)
    reject_blank(stored if padding is None else stored[~padding])
    inverted = kind == "MONOCHROME1"
    pixels, why = _grey(stored, dataset, tone, padding)
    visible = pixels if padding is None else pixels[~padding]
    if unlikely := doubt(visible):
        # Not inverted yet, so a white that is told of in a MONOCHROME1 is the black that would be seen.
        pixels, why = _rescaled(stored, dataset, padding), f"{unlikely} as the header has it"
    if inverted:
        pixels = 255 - pixels
    if tone == "equalise":
        pixels = equalise(pixels)
    # After the inversion, so that padding is black in MONOCHROME1 as well. The other tones follow
    # MIMIC-CXR-JPG, which leaves padding as it is.
    if padding is not None and tone == "window":
        pixels[padding] = 0
    return DicomPixels(pixels, depth, inverted, why)


@contextlib.contextmanager
def _no_more_than(pixels: int) -> Iterator[None]:
    """Let Pillow, which decodes a JPEG inside a DICOM, refuse one of far more pixels than the header says."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max(1, pixels)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _colour(stored: NDArray[Any], depth: int) -> DicomPixels:
    grey = np.array(Image.fromarray(stored[..., :3]).convert("L"))
    reject_blank(grey)
    why = doubt(grey, coarse=True)
    return DicomPixels(rescale_intensity(grey) if why else grey, depth, False, why)


def _padding(stored: NDArray[Any], dataset: pydicom.Dataset) -> NDArray[np.bool_] | None:
    """Mask of the padding around the image (PS3.3, C.7.5.1.1.2); None if there is none."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return None
    last = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(first), int(first if last is None else last)))
    mask = (stored >= low) & (stored <= high)
    return mask if mask.any() and not mask.all() else None


def _grey(
    stored: NDArray[Any], dataset: pydicom.Dataset, tone: DicomTone, padding: NDArray[np.bool_] | None
) -> tuple[NDArray[np.uint8], str]:
    """Stored values -> grey levels as the header has them, not yet inverted; and what is wrong with it."""
    if tone != "window":
        # As MIMIC-CXR-JPG was made: minimum and maximum of the stored values, no rescale and no window.
        low, high = np.float32(stored.min()), np.float32(stored.max())
        span = max(float(high - low), 1.0)
        return by_rows(lambda part: np.floor((part.astype(np.float32) - low) * (255 / span)), stored), ""
    voi = look_up_table(dataset, "VOILUTSequence")
    why = voi.doubt if voi else ""
    first, last = int(stored.min()), int(stored.max())
    if last - first < LEVELS:
        domain = np.arange(first, last + 1).astype(stored.dtype)
        table = _window(domain, dataset)
        if table is not None:
            return by_rows(lambda part: table[part.astype(np.int64) - first], stored), why
    elif _window(stored[:1], dataset) is not None:
        return by_rows(lambda part: _window(part, dataset), stored), why
    values = modality(stored, dataset)
    if int(dataset.BitsStored) <= 8 and values.min() >= 0 and values.max() <= 255:
        return by_rows(lambda part: part * (255 / (2 ** int(dataset.BitsStored) - 1)), values), why
    return _rescaled(stored, dataset, padding), why


def _rescaled(
    stored: NDArray[Any], dataset: pydicom.Dataset, padding: NDArray[np.bool_] | None
) -> NDArray[np.uint8]:
    """Grey levels by percentile, for a file without a window or with one that cannot be meant."""
    values = modality(stored, dataset)
    if values.min() == values.max():  # a transform that erases the image is not meant either
        values = stored
    if padding is None:
        return rescale_intensity(values)
    # Padding is often an extreme value; at the median it cannot move the percentiles.
    without_padding = values.copy() if values is stored else values
    without_padding[padding] = np.median(values[~padding], overwrite_input=True)
    return rescale_intensity(without_padding)


def _window(stored: NDArray[Any], dataset: pydicom.Dataset) -> NDArray[np.uint8] | None:
    """Apply the VOI look-up table or the first window (PS3.3, C.11.2.1); None if the file has neither."""
    table = look_up_table(dataset, "VOILUTSequence")
    if table is not None:
        levels = table.apply(modality(stored, dataset))
        return _uint8(levels.astype(np.float32) * (255 / table.top))
    found = window(dataset)
    if found is None:
        return None
    centre, width = found
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    x = modality(stored, dataset).astype(np.float64)
    if function == "SIGMOID":
        share = 1 / (1 + np.exp(-4 * (x - centre) / width))
    elif function == "LINEAR_EXACT":
        share = (x - centre) / width + 0.5
    else:
        share = (x - (centre - 0.5)) / max(width - 1, 1e-6) + 0.5
    return _uint8(share * 255)


def _uint8(levels: NDArray[Any]) -> NDArray[np.uint8]:
    rounded: NDArray[np.uint8] = np.rint(levels).clip(0, 255).astype(np.uint8)
    return rounded


def equalise(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Global histogram equalisation like OpenCV's `equalizeHist`, which MIMIC-CXR-JPG used.

    Args:
        pixels: of any shape; the darkest level present becomes 0, the brightest 255.
    """
    histogram = np.bincount(pixels.reshape(-1), minlength=256)
    darkest = int(histogram[np.flatnonzero(histogram)[0]])
    if darkest == pixels.size:
        return pixels
    table = (np.cumsum(histogram) - darkest) * (255 / (pixels.size - darkest))
    return _uint8(_uint8(table)[pixels])
