"""Decode an image file of any format to 8-bit grey levels and resize it to a square, as the paper does.

The aspect ratio is not preserved. The format is recognised by content: 13 `.jpg` of covid-chestxray are PNG.
Images are decoded completely, so that truncated ones are detected; Pillow's LOAD_TRUNCATED_IMAGES, which
fills the rest with grey, stays off. An image whose levels cannot be meant is rescaled, and one that is blank
is refused.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from medunifier_cli.data.contract import (
    DicomTone,
    DrawnImage,
    EncodedImage,
    FileImage,
    ImageSource,
    ZipImage,
)
from medunifier_cli.data.disk.unpack import IMAGE_BYTES, TooLargeError, gunzip, member_bytes, too_large
from medunifier_cli.data.images.levels import BadImage, reject_blank
from medunifier_cli.data.images.picture import (
    DEEP,
    ORIENTATION,
    PIXELS,
    plausible,
    refuse_huge,
    refuse_slow_file,
    upright,
    whatever_its_texts,
    white_is_zero,
)
from medunifier_cli.errors import DataError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")
"""Formats that Pillow may try, without those that start other programs (EPS)."""
TAIL = 1 << 16
"""Bytes at the end of a file in which its end marker is looked for."""
GZIP = b"\x1f\x8b"
ZIP_ERRORS = (RuntimeError, ValueError, struct.error, OverflowError)
"""What `zipfile` raises, apart from BadZipFile: an encrypted member, an unknown method, damaged fields."""
UNREADABLE = (OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, TooLargeError, *ZIP_ERRORS)


@dataclass(frozen=True)
class GreyImage:
    """A decoded and resized image."""

    pixels: NDArray[np.uint8]
    """[size, size], 0 is black."""
    height: int
    """Height of the original, in pixels."""
    width: int
    """Width of the original, in pixels."""
    bit_depth: int
    """Bits per channel of the original; for a DICOM the bits stored."""
    inverted: bool
    """True for a MONOCHROME1 DICOM or a WhiteIsZero TIFF, whose levels were inverted here."""
    doubt: str = ""
    """Why the levels were rescaled instead of believed, such as `100% of the pixels white`; empty if not."""


def image_from(source: ImageSource, size: int, *, believe: bool = False) -> GreyImage:
    """Read and decode one image.

    Args:
        size: edge of the result in pixels.
        believe: keep the levels of a picture however doubtful or blank they are, as a generated image must
            be judged as it is.

    Raises:
        BadImage: missing, truncated, undecodable or blank.
        DataError: a DICOM with a compression that nothing installed can decode.
    """
    if isinstance(source, DrawnImage):
        pixels = source.draw(size)
        if pixels.shape != (size, size) or pixels.dtype != np.uint8:
            raise DataError(
                f"a synthetic image was drawn as {pixels.dtype} {pixels.shape}, not uint8 ({size}, {size})"
            )
        return GreyImage(pixels, size, size, 8, False)
    try:
        with opened(source) as file:
            return _decode(file, size, source.dicom_tone, believe)
    except (FileNotFoundError, NotADirectoryError, KeyError) as error:
        raise BadImage("missing", "") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise BadImage("truncated", "damaged archive") from error
    except TooLargeError as error:
        raise BadImage("undecodable", f"a file of more than {IMAGE_BYTES:,} bytes") from error
    except (OSError, *ZIP_ERRORS) as error:
        raise BadImage("undecodable", getattr(error, "strerror", "") or type(error).__name__) from error


def opened(source: FileImage | ZipImage | EncodedImage) -> IO[bytes]:
    """Open an image file, to be closed by the caller. Gzipped files (`.dcm.gz`) are unpacked.

    Raises:
        OSError: the file or archive cannot be opened.
        KeyError: the archive has no such member.
        TooLargeError: the file, unpacked, is larger than any radiograph.
    """
    if isinstance(source, EncodedImage):
        return io.BytesIO(source.read())
    if not isinstance(source, FileImage):
        return io.BytesIO(member_bytes(_archive(source.archive), source.member, IMAGE_BYTES))
    file = open(source.path, "rb")  # noqa: SIM115 - the caller closes it
    try:
        packed = file.read(2) == GZIP
        file.seek(0)
        if packed:
            unpacked = io.BytesIO(gunzip(file, IMAGE_BYTES, source.path.name))
            file.close()
            return unpacked
        if os.fstat(file.fileno()).st_size > IMAGE_BYTES:
            raise too_large(source.path.name, IMAGE_BYTES)
    except BaseException:
        file.close()
        raise
    return file


def head_of(source: ImageSource, size: int = 132) -> bytes:
    """The first bytes of an image file; empty if it cannot be read."""
    if not isinstance(source, DrawnImage):
        with contextlib.suppress(*UNREADABLE), opened(source) as file:
            return file.read(size)
    return b""


def bytes_of(source: ImageSource) -> int | None:
    """Size of the file, or of the one around it; None if there is none. Another size means another image."""
    try:
        if isinstance(source, FileImage):
            return source.path.stat().st_size
        if isinstance(source, EncodedImage) and source.container is not None:
            return source.container.stat().st_size
        if isinstance(source, ZipImage):
            return _archive(source.archive).getinfo(source.member).file_size
    except UNREADABLE:
        pass
    return None


def is_dicom(head: bytes) -> bool:
    """Whether the first 132 bytes of a file are those of a DICOM, with or (old files) without preamble."""
    if head[128:132] == b"DICM":
        return True
    # Without a preamble the file begins with a data element of group 2 or 8, whose value representation is
    # either two letters or, in the implicit encoding, a four-byte length whose upper half is zero.
    implicit = head[6:8] == b"\x00\x00"
    return head[:2] in (b"\x02\x00", b"\x08\x00") and (implicit or head[4:6].isalpha())


def resize_to_square(grey: Image.Image, size: int) -> NDArray[np.uint8]:
    """Mode L of any size -> uint8 [size, size], bilinear with antialiasing, as torchvision on a PIL image."""
    if grey.size != (size, size):
        grey = grey.resize((size, size), Image.Resampling.BILINEAR)
    return np.array(grey)


@lru_cache(maxsize=4)
def _archive(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _decode(file: IO[bytes], size: int, tone: DicomTone, believe: bool) -> GreyImage:
    head = file.read(132)
    file.seek(0)
    if not head:
        raise BadImage("truncated", "empty file")
    if is_dicom(head):
        from medunifier_cli.data.images.dicom import dicom_pixels

        dicom = dicom_pixels(file, tone)
        height, width = dicom.pixels.shape
        square = resize_to_square(Image.fromarray(dicom.pixels), size)
        return GreyImage(square, height, width, dicom.bit_depth, dicom.inverted, dicom.doubt)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about large images, which have a limit of ours, and malformed EXIF
        try:
            return whatever_its_texts(partial(_decode_picture, size=size, believe=believe), file)
        except BadImage:
            raise
        except UnidentifiedImageError as error:
            recognised = head.startswith((b"\xff\xd8", b"\x89PNG"))
            raise BadImage("truncated" if recognised else "undecodable", "no image Pillow knows") from error
        except Image.DecompressionBombError as error:
            raise BadImage("undecodable", f"more than {PIXELS:,} pixels") from error
        except Exception as error:  # decoders raise all kinds of errors on damaged files
            cut = "truncat" in str(error).lower() or not _is_whole(file, head)
            raise BadImage("truncated" if cut else "undecodable", type(error).__name__) from error


def _decode_picture(file: IO[bytes], size: int, believe: bool) -> GreyImage:
    with Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        refuse_huge(image)
        orientation = image.getexif().get(ORIENTATION, 1)
        mode, kind = image.mode, image.format
        if kind in ("JPEG", "MPO", "JPEG2000"):
            refuse_slow_file(file, kind == "JPEG2000")
        if kind in ("JPEG", "MPO"):
            # The decoder scales by 1/2, 1/4 or 1/8 while it decodes, never below `size`, and decodes only the
            # luma: half the time, and less than 0.5 grey levels from full decoding.
            image.draft("L", (size, size))
        image.load()
        inverted = white_is_zero(image)
        grey, why = plausible(image, believe)
    grey = upright(grey, orientation)
    if orientation in (5, 6, 7, 8):  # those that swap the axes
        width, height = height, width
    if kind in ("JPEG", "MPO") and not _is_whole(file, b"\xff\xd8"):
        # An interrupted download that was filled up with zeros decodes without an error.
        raise BadImage("truncated", "no end-of-image mark")
    if why:  # not before the file is known to be whole: a truncated one may look blank
        reject_blank(np.asarray(grey))
    depth = DEEP.get(mode, 1 if mode == "1" else 8)
    if mode == "I" and kind == "PNG":  # Pillow widens 16-bit PNGs to 32 bits
        depth = 16
    return GreyImage(resize_to_square(grey, size), height, width, depth, inverted, why)


def _is_whole(file: IO[bytes], head: bytes) -> bool:
    """Whether a JPEG or PNG has its end marker; True for other formats, which have none."""
    file.seek(0, io.SEEK_END)
    file.seek(max(0, file.tell() - TAIL))
    tail = file.read().rstrip(b"\0")
    if head.startswith(b"\xff\xd8"):
        return b"\xff\xd9" in tail[-4096:]
    return b"IEND" in tail[-4096:] if head.startswith(b"\x89PNG") else True
