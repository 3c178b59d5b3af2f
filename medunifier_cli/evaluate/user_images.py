"""Read image files that the user names (PNG, JPEG or DICOM) at the size the model takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from medunifier_cli.data.contract import FileImage
from medunifier_cli.data.images.image import image_from
from medunifier_cli.data.images.levels import BadImage
from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.sharing import each
from medunifier_cli.terminal.say import say

T = TypeVar("T")


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
    (images,) = of_files(_unchanged, paths, size, len(paths))
    return images[1]


def of_files(
    compute: Callable[[UserImages], T], paths: Sequence[Path], size: int, batch: int
) -> Iterator[tuple[UserImages, T]]:
    """The same, `batch` files at a time and on all ranks, with what is computed from them.

    Args:
        compute: picklable; a batch may hold no readable image.

    Returns:
        In the order of the files: a batch, with its pixels left out, and what was computed.
    """
    left_out = 0
    batches = [paths[start : start + batch] for start in range(0, len(paths), batch)]
    with closing(each(partial(_read_and_compute, compute, size), batches)) as computed:
        for files, result in computed:
            for path, why in files.skipped.items():
                say(f"{path}: left out ({why})")
            left_out += len(files.skipped)
            if left_out == len(paths):
                few = f"{paths[0]} is no" if len(paths) == 1 else f"none of {len(paths):,} files is an"
                raise DataError(f"{few} image that can be read")
            yield files, result
    if left_out:
        say(f"{left_out:,} of {len(paths):,} files left out")


def _read_and_compute(
    compute: Callable[[UserImages], T], size: int, paths: Sequence[Path]
) -> tuple[UserImages, T]:
    readable, images, skipped = [], [], {}
    for path in paths:
        try:
            images.append(image_from(FileImage(path), size).pixels)
            readable.append(path)
        except (BadImage, DataError) as error:
            skipped[path] = str(error).rstrip(": ")
    grey_BHW = np.stack(images) if images else np.empty((0, size, size), np.uint8)
    files = UserImages(readable, torch.from_numpy(grey_BHW[:, None]), skipped)
    return replace(files, image_B1HW=files.image_B1HW[:0].clone()), compute(files)


def _unchanged(files: UserImages) -> UserImages:
    return files
