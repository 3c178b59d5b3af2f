"""Read image files that the user names (PNG, JPEG or DICOM), or images of a program, at the model's size."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from medunifier_cli.data.contract import FileImage
from medunifier_cli.data.images.given import CHANNELS, levels_of
from medunifier_cli.data.images.image import image_from
from medunifier_cli.data.images.levels import BadImage
from medunifier_cli.errors import DataError, MuError
from medunifier_cli.evaluate.shared.sharing import each
from medunifier_cli.terminal.say import say

T = TypeVar("T")
ImageLike = str | os.PathLike[str] | Image.Image | NDArray[Any] | Tensor
"""One image: a path of a PNG, JPEG or DICOM, a Pillow image, or what `data.images.given.levels_of` takes."""


@dataclass(frozen=True)
class GivenImages:
    """Images that a program handed over, all of them readable."""

    names: list[str]
    """The path of a file, `images[2]` for anything else."""
    keys: list[str]
    """As `names`, but of a file its name alone: what a sampled report depends on besides the seed."""
    image_B1HW: Tensor
    """uint8 grey levels."""


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
        for some, (files, result) in zip(batches, computed, strict=True):
            for path, why in files.skipped.items():
                say(f"{path}: left out ({why})", always=True)
            left_out += len(some) - len(files.paths)  # a file may have been named twice
            if left_out == len(paths):
                few = f"{paths[0]} is no" if len(paths) == 1 else f"none of {len(paths):,} files is an"
                raise DataError(f"{few} image that can be read")
            yield files, result
    if left_out:
        say(f"{left_out:,} of {len(paths):,} files left out", always=True)


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


def given_images(images: ImageLike | Iterable[ImageLike], size: int) -> GivenImages:
    """Images that a program hands over, at the model's size.

    Args:
        images: one or several; an array [B, H, W, C] and a tensor [B, C, H, W] are several.
        size: edge in pixels, from the recipe.

    Raises:
        DataError: one of them cannot be read; says which and why.
        MuError: what is given is no image.
    """
    names, keys, levels = [], [], []
    for number, image in enumerate(_several(images)):
        of_file = isinstance(image, str | os.PathLike)
        names.append(os.fspath(image) if of_file else f"images[{number}]")  # type: ignore[arg-type]
        keys.append(Path(names[-1]).name if of_file else names[-1])
        try:
            if of_file:
                levels.append(image_from(FileImage(Path(names[-1])), size).pixels)
            else:
                levels.append(levels_of(image, size))  # type: ignore[arg-type]
        except (BadImage, DataError) as error:
            raise DataError(f"{names[-1]}: no image that can be read ({str(error).rstrip(': ')})") from error
    if not levels:
        raise MuError("no image given")
    return GivenImages(names, keys, torch.from_numpy(np.stack(levels)[:, None]))


def _several(images: Any) -> Iterator[ImageLike]:
    """The images one by one, each of a type that can be one."""
    single = isinstance(images, str | os.PathLike | Image.Image)
    if isinstance(images, np.ndarray):
        single = images.ndim < 3 or (images.ndim == 3 and images.shape[2] in CHANNELS)
    elif isinstance(images, Tensor):
        single = images.dim() < 4
    if not single and (isinstance(images, bytes | dict) or not isinstance(images, Iterable)):
        raise MuError(f"no image: {type(images).__name__}; give a path, a Pillow image, an array or a tensor")
    for number, image in enumerate([images] if single else images):
        if not isinstance(image, str | os.PathLike | Image.Image | np.ndarray | Tensor):
            raise MuError(
                f"images[{number}]: {type(image).__name__} is no image; give a path, a Pillow image, an "
                "array or a tensor"
            )
        yield image
