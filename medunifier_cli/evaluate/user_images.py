"""A person's own image files: PNG, JPEG or DICOM -> what the model looks at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from medunifier_cli.data.contract import FileImage
from medunifier_cli.data.images.image import image_from
from medunifier_cli.data.images.levels import BadImage
from medunifier_cli.errors import DataError


@dataclass(frozen=True)
class Files:
    """Images read, and those left out."""

    paths: list[Path]
    """Of the images read, in the order given."""
    image_B1HW: Tensor
    """uint8 grey levels."""
    skipped: dict[Path, str]
    """Path -> why."""


def read_images(paths: Sequence[Path], size: int) -> Files:
    """Decode files at the model's size; one that cannot be read is said on stderr and counted.

    Args:
        size: edge in pixels, of the recipe.

    Raises:
        DataError: none can be read.
    """
    (files,) = read_batches(paths, size, len(paths))
    return files


def read_batches(paths: Sequence[Path], size: int, batch: int) -> Iterator[Files]:
    """`read_images` of so many files at a time, some of which may have no image that can be read."""
    left_out = 0
    for start in range(0, len(paths), batch):
        kept, images, skipped = [], [], {}
        for path in paths[start : start + batch]:
            try:
                images.append(image_from(FileImage(path), size).pixels)
                kept.append(path)
            except (BadImage, DataError) as error:
                skipped[path] = str(error).rstrip(": ")
                click.echo(f"mu: {path}: left out ({skipped[path]})", err=True)
        left_out += len(skipped)
        if left_out == len(paths):
            few = f"{paths[0]} is no" if len(paths) == 1 else f"none of {len(paths):,} files is an"
            raise DataError(f"{few} image that can be read")
        grey_BHW = np.stack(images) if images else np.empty((0, size, size), np.uint8)
        yield Files(kept, torch.from_numpy(grey_BHW[:, None]), skipped)
    if left_out:
        click.echo(f"mu: {left_out:,} of {len(paths):,} files left out", err=True)
