"""Grey levels of an image that a program hands over: a Pillow image, an array or a tensor instead of a file.

The levels become what `image_from` makes of a file with the same pixels: doubtful ones are rescaled, a blank
image is refused, and the result is a square.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from medunifier_cli.data.images.image import resize_to_square
from medunifier_cli.data.images.levels import BadImage, reject_blank, rescale_intensity
from medunifier_cli.data.images.picture import ORIENTATION, plausible, refuse_huge, upright

CHANNELS = (1, 3, 4)
"""Grey levels, colours, and colours with transparency."""


def levels_of(given: Image.Image | NDArray[Any] | Tensor, size: int) -> NDArray[np.uint8]:
    """The image as uint8 [size, size], 0 is black.

    Args:
        given: a Pillow image of any mode, upright or with an EXIF orientation; an array [H, W] or [H, W, C];
            or a tensor [H, W] or [C, H, W], on any device. C is 1, 3 or 4. Of arrays and tensors, uint8 are
            grey levels, floats from 0 to 1 are black to white, and booleans too; all other numbers are
            rescaled as those of a file with more than 8 bits.
        size: edge of the result in pixels.

    Raises:
        BadImage: another shape or type, a damaged or a blank image.
    """
    if isinstance(given, Image.Image):
        return _square(given, size)
    if isinstance(given, Tensor):
        given = _channels_last(given)
    return _square(Image.fromarray(_levels(given)), size)


def _square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    refuse_huge(image)
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
        image.load()
    except (OSError, SyntaxError, ValueError) as error:  # opened by the program, and decoded only now
        raise BadImage("undecodable", type(error).__name__) from error
    grey, why = plausible(image, believe=False)
    if orientation != 1:
        grey = upright(grey.copy(), orientation)  # a copy, since the program's own image may be grey already
    if why:
        reject_blank(np.asarray(grey))
    return resize_to_square(grey, size)


def _channels_last(tensor: Tensor) -> NDArray[Any]:
    """[C, H, W] -> [H, W, C], as Pillow has colours; on the CPU."""
    tensor = tensor.detach().cpu()
    if tensor.dim() == 3 and tensor.shape[0] not in CHANNELS:
        raise BadImage("undecodable", f"a tensor of shape {tuple(tensor.shape)}, not [H, W] or [C, H, W]")
    if tensor.dtype == torch.bfloat16:  # which NumPy does not know
        tensor = tensor.float()
    array: NDArray[Any] = (tensor.permute(1, 2, 0) if tensor.dim() == 3 else tensor).numpy()
    return array


def _levels(values: NDArray[Any]) -> NDArray[np.uint8]:
    """[H, W] or [H, W, C] of any numbers -> uint8 [H, W] or, with colours, [H, W, 3] or [H, W, 4]."""
    shape = values.shape
    if not (len(shape) == 2 or (len(shape) == 3 and shape[2] in CHANNELS)) or 0 in shape:
        raise BadImage("undecodable", f"an array of shape {shape}, not [H, W] or [H, W, C]")
    if values.dtype.kind not in "buif":
        raise BadImage("undecodable", f"an array of {values.dtype}, not of numbers")
    if len(shape) == 3 and shape[2] == 1:
        values = values[:, :, 0]
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    # NaN compares as false, and goes with those that are rescaled
    if values.dtype.kind in "bf" and values.min() >= 0 and values.max() <= 1:
        return np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    return rescale_intensity(values)
