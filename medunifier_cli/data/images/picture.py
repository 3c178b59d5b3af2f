"""A picture that Pillow reads -> mode L: one way for raw files in `mu prepare` and for images in shards."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import IO, TypeVar

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from medunifier_cli.data.images.levels import BadImage, doubt, rescale_intensity

DEEP = {"I;16": 16, "I;16B": 16, "I;16L": 16, "I;16N": 16, "I": 32, "F": 32}
"""Bit depth of Pillow's modes with more than 8 bits per channel."""
ORIENTATION = 0x0112
"""EXIF tag."""
EXIF = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
"""Where in `Image.info` Pillow keeps what may hold an orientation."""
PHOTOMETRIC = 262
"""TIFF tag; 0 is WhiteIsZero."""
# Pillow knows few layouts of more than 8 bits as WhiteIsZero, and reads them as it reads BlackIsZero: not
# inverted, which `as_grey` does.
for _layout, _modes in list(TiffImagePlugin.OPEN_INFO.items()):
    if _layout[1] == 1 and _modes[0] in DEEP:
        TiffImagePlugin.OPEN_INFO.setdefault((_layout[0], 0, *_layout[2:]), _modes)
PNG = b"\x89PNG\r\n\x1a\n"
SHOWN = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND")
"""The chunks of a PNG that its grey levels and orientation depend on (PNG specification, section 11)."""

PIXELS = 100_000_000
"""Maximum number of pixels of a picture of any mode."""
SAMPLES = 200_000_000
"""Maximum of what decoding costs: pixels, each counted `COST` times. That is 100 million pixels of 8 bits, 66
million of 16, 50 million in colour, and 25 million of JPEG 2000.

The largest radiographs stay far below: 28 million pixels of 16 bits for a mammogram of 24 x 30 cm that is
scanned at 50 um, 9 million for a chest of 35 x 43 cm at 139 um (Shaber et al., doi 10.1117/12.317046). So no
picture takes 1 GiB, or 5 seconds of one core, to decode; docs/reliability.md has what was measured.
"""
COST = {"1": 2, "L": 2} | dict.fromkeys(("I;16", "I;16B", "I;16L", "I;16N"), 3)
"""What a pixel costs; 4 in all other modes, palettes among them, which become colours on the way."""
JPEG2000_COST = 8
"""The same for JPEG 2000, whose decoder keeps 32 bits for each colour and is the slowest."""
JPEG2000_BYTES = 1 << 24
"""Bytes of a JPEG 2000, which set the time it takes: noise of 16 bits, 41 MB, took 7 s."""
SCANS = 100
"""Scans that a JPEG may have, as libtiff has it for JPEG inside a TIFF. A progressive one has ten; each takes
its pass over the whole picture, and 60 bytes."""
STRIP = 1 << 22
"""Pixels that are converted together, which bounds the copies that this takes."""

T = TypeVar("T")


def refuse_huge(image: Image.Image) -> None:
    """Look at the size of an opened picture before any of it is decoded.

    Raises:
        BadImage: it has too many pixels for its mode.
    """
    width, height = image.size
    cost = COST.get(image.mode, 4) if image.format != "JPEG2000" else JPEG2000_COST
    if width * height > min(PIXELS, SAMPLES // cost):
        raise BadImage("undecodable", f"{width} x {height} pixels of mode {image.mode}")


def refuse_slow(packed: bytes, is_jpeg2000: bool) -> None:
    """Look at the JPEG inside a DICOM before it is decoded, as at one that is a file.

    Raises:
        BadImage: it has more bytes or scans than any radiograph.
    """
    if is_jpeg2000 and len(packed) > JPEG2000_BYTES:
        raise BadImage("undecodable", f"a JPEG 2000 of more than {JPEG2000_BYTES:,} bytes")
    if not is_jpeg2000 and packed.count(b"\xff\xda") > SCANS:
        raise BadImage("undecodable", f"more than {SCANS} scans")


def refuse_slow_file(jpeg: IO[bytes], is_jpeg2000: bool = False) -> None:
    """As `refuse_slow`, for a JPEG that is a file; it is left at its start.

    Raises:
        BadImage: as there.
    """
    jpeg.seek(0)
    # Within a scan 0xff is followed by a zero or a restart mark; a preview in the metadata adds a few.
    refuse_slow(jpeg.read(), is_jpeg2000)
    jpeg.seek(0)


def whatever_its_texts(decode: Callable[[IO[bytes]], T], file: IO[bytes]) -> T:
    """`decode(file)`; for a PNG whose texts or colour profile are larger than Pillow takes, without them.

    Pillow refuses compressed texts above 1 MiB, which may be an attack; nothing here reads them, and editors
    do write such profiles and edit histories into radiographs.
    """
    try:
        return decode(file)
    except ValueError:
        file.seek(0)
        body = file.read()
        if not body.startswith(PNG):
            raise
    return decode(io.BytesIO(_shown(body)))


def _shown(png: bytes) -> bytes:
    """A PNG without the chunks that do not show; one that is cut off stays cut off."""
    parts, at = [PNG], len(PNG)
    while at + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        end = at + 12 + length  # length, kind, contents, checksum
        if kind in SHOWN or end > len(png):
            parts.append(png[at:end])
        at = end
    return b"".join(parts)


def as_grey(image: Image.Image) -> Image.Image:
    """A loaded image of any mode -> L; transparent pixels become black, the background of a radiograph."""
    if image.mode in DEEP:
        levels = rescale_intensity(np.array(image))
        # Pillow inverts WhiteIsZero of up to 8 bits, and leaves deeper ones as they are stored.
        return Image.fromarray(255 - levels if white_is_zero(image) else levels)
    if image.mode == "L" and not _transparent(image):
        return image
    return _by_strips(_strip_as_grey, image)


def _strip_as_grey(image: Image.Image) -> Image.Image:
    if _transparent(image):
        colour = image.convert("RGBA")
        black = Image.new("RGBA", colour.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, colour).convert("L")
    return image.convert("RGB").convert("L")


def _by_strips(convert: Callable[[Image.Image], Image.Image], image: Image.Image) -> Image.Image:
    """`convert(image)`, of mode L, for a conversion in which every pixel stands for itself."""
    width, height = image.size
    rows = max(1, STRIP // max(width, 1))
    if rows >= height:
        return convert(image)
    grey = Image.new("L", image.size)
    for top in range(0, height, rows):
        grey.paste(convert(image.crop((0, top, width, min(height, top + rows)))), (0, top))
    return grey


def plausible(image: Image.Image, believe: bool) -> tuple[Image.Image, str]:
    """A loaded image of any mode -> L; rescaled where its levels cannot be meant, and then why.

    Args:
        believe: keep the levels however doubtful they are.
    """
    grey = as_grey(image)
    why = "" if believe else doubt(grey, coarse=True)
    return (second_guess(image, grey) if why else grey), why


def second_guess(image: Image.Image, grey: Image.Image) -> Image.Image:
    """What to show instead of `grey`, the doubtful result of `as_grey(image)`."""
    if _transparent(image):
        opaque = _by_strips(lambda strip: strip.convert("RGBA").convert("RGB").convert("L"), image)
        if not doubt(opaque, coarse=True):
            return opaque
    return Image.fromarray(rescale_intensity(np.asarray(grey)))


def upright(grey: Image.Image, orientation: int) -> Image.Image:
    """Turn and mirror an image as its EXIF orientation, 1 to 8, says."""
    if orientation == 1:
        return grey
    # Set again, since `grey` may be a new image without it.
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    grey.info["exif"] = exif.tobytes()
    return ImageOps.exif_transpose(grey)


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation of a loaded PNG or JPEG, 1 where it has none."""
    if not any(name in image.info for name in EXIF):  # parsing nothing still costs 20 us an image
        return 1
    return int(image.getexif().get(ORIENTATION, 1))


def white_is_zero(image: Image.Image) -> bool:
    """Whether a file is a TIFF whose lowest values are white."""
    tags = getattr(image, "tag_v2", None)
    return tags is not None and tags.get(PHOTOMETRIC) == 0


def _transparent(image: Image.Image) -> bool:
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
