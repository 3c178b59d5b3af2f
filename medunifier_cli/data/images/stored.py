"""Decode the images that shards hold, PNG or JPEG, to grey levels of the size that a recipe asks for."""

from __future__ import annotations

import io
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from medunifier_cli.data.images.picture import (
    as_grey,
    orientation_of,
    refuse_huge,
    refuse_slow_file,
    upright,
    whatever_its_texts,
)


def empty_images(count: int, image_size: int) -> Tensor:
    """An uninitialised uint8 tensor [count, 1, H, W]."""
    return torch.empty((count, 1, image_size, image_size), dtype=torch.uint8)


def decode_grey(body: bytes, out_HW: NDArray[np.uint8]) -> bool:
    """Decode a PNG or JPEG into `out_HW`, resized if it has another size; False for a damaged image or one
    with too many pixels.

    Grey levels are made as `mu prepare` makes them from a raw file: shards from elsewhere hold images of 16
    bits, with transparency or with an orientation.
    """
    height, width = out_HW.shape
    try:
        grey = whatever_its_texts(_grey, io.BytesIO(body))
        if grey.size != (width, height):
            grey = grey.resize((width, height), Image.Resampling.BILINEAR)
        out_HW[:] = np.asarray(grey)
    except Exception:  # BadImage if it is too large; decoders raise all kinds of errors on damaged files
        return False
    return True


def _grey(file: IO[bytes]) -> Image.Image:
    # No other formats: every further one that Pillow would try is a decoder that a crafted file could attack.
    image = Image.open(file, formats=("PNG", "JPEG"))
    refuse_huge(image)
    if image.format != "PNG":
        refuse_slow_file(file)
    image.load()
    return upright(as_grey(image), orientation_of(image))
