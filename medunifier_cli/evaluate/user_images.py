"""Read image files that the user names (PNG, JPEG or DICOM) at the size the model takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medunifier_cli.data.contract import FileImage
from medunifier_cli.data.images.image import image_from
from medunifier_cli.data.images.levels import BadImage
from medunifier_cli.errors import DataError
from medunifier_cli.terminal.say import say


@dataclass(frozen=True)
class UserImages:
    """Images that could be read, and the files that could not."""

    paths: list[Path]
    """Files of the images, in the order given."""
    image_B1HW: Tensor
    """uint8 grey levels."""
    skipped: dict[Path, str]
    """File -> why it could not be read."""


def read_images(paths: Sequence[Path], size: int) -> UserImages:
    """Decode files at the model's size; unreadable ones are reported on stderr, counted and skipped.

    Args:
        size: edge in pixels, from the recipe.

    Raises:
        DataError: none can be read.
    """
    (images,) = read_image_batches(paths, size, len(paths))
    return images


def read_image_batches(paths: Sequence[Path], size: int, batch: int) -> Iterator[UserImages]:
    """The same, `batch` files at a time; a batch may hold no readable image."""
    left_out = 0
    for start in range(0, len(paths), batch):
        readable, images, skipped = [], [], {}
        for path in paths[start : start + batch]:
            try:
                images.append(image_from(FileImage(path), size).pixels)
                readable.append(path)
            except (BadImage, DataError) as error:
                skipped[path] = str(error).rstrip(": ")
                say(f"{path}: left out ({skipped[path]})", always=True)
        left_out += len(skipped)
        if left_out == len(paths):
            few = f"{paths[0]} is no" if len(paths) == 1 else f"none of {len(paths):,} files is an"
            raise DataError(f"{few} image that can be read")
        grey_BHW = np.stack(images) if images else np.empty((0, size, size), np.uint8)
        yield UserImages(readable, torch.from_numpy(grey_BHW[:, None]), skipped)
    if left_out:
        say(f"{left_out:,} of {len(paths):,} files left out", always=True)
