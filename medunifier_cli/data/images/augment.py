"""Random crops, rotations and grey levels of training images: mild, and never a mirror image.

Reports say left and right, so an image is never flipped. What is drawn is a function of (seed, sample,
epoch): neither a resumed run, nor the number of ranks or loader processes, changes it. Only training reads
through `Augmented`; a split that is measured never does.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medunifier_cli.data.batch import Batch
from medunifier_cli.data.split_source import Room, SplitSource, SplitView
from medunifier_cli.distributed import draws
from medunifier_cli.recipe.schema import AugmentConfig

WHITE = 255


class Augmented(SplitView):
    """The samples of a training split, each image changed anew in every epoch.

    Crops are cut from a larger image, so that the smallest is as large as what the model sees, and as sharp
    as a whole image.

    Args:
        source: what is read.
        config: how much an image may change.
        seed: of the run.
    """

    def __init__(self, source: SplitSource, config: AugmentConfig, seed: int) -> None:
        super().__init__(source)
        self.config, self.seed = config, seed
        self.large = source.at_size(math.ceil(source.data.image_size / math.sqrt(config.crop)))

    def read(self, samples: NDArray[np.int64], positions: NDArray[np.int64], room: Room, /) -> Batch:
        """The batch of these samples at these positions of the endless order.

        Raises:
            DataError: damaged image or shard; names shard and key.
        """
        batch = super().read(samples, positions, room)
        pixels = batch.image_B1HW.numpy()  # a view: what is written to it is in the batch
        epochs = positions // len(self.source)
        # words of the counter above the lowest, which counts the numbers that are drawn
        random_B7 = np.array([
            draws.philox(self.seed, draws.AUGMENT, (0, sample, epoch, 0)).random(7)
            for sample, epoch in zip(samples.tolist(), epochs.tolist(), strict=True)
        ])  # fmt: skip
        changed = np.flatnonzero(random_B7[:, 6] < self.config.share)
        large_B1HW = pixels[changed]
        if self.config.crop < 1:
            large_B1HW = self.large.images(samples[changed]).numpy()
        for row, (large_HW,) in zip(changed.tolist(), large_B1HW, strict=True):
            pixels[row, 0] = augment(large_HW, self.config, random_B7[row, :6], pixels.shape[-1])
        return batch


def augment(
    image_HW: NDArray[np.uint8], config: AugmentConfig, random_6: NDArray[np.float64], size: int
) -> NDArray[np.uint8]:
    """Crop and rotate a square image in one step, then change its contrast and its brightness.

    Args:
        image_HW: grey levels.
        config: how much may change.
        random_6: in [0, 1), for the area of the crop, its place from left and top, the angle, contrast and
            brightness; each has its own, so that one key changes nothing of what the others do.
        size: of the result.

    Returns:
        [size, size]. What a rotation brings in from outside is black.
    """
    area, across, down, turn, contrast, brightness = random_6.tolist()
    if config.crop < 1 or config.rotation:
        image_HW = _crop_and_rotate(
            image_HW, math.sqrt(config.crop + (1 - config.crop) * area), across, down,
            math.radians(config.rotation * (2 * turn - 1)), size,
        )  # fmt: skip
    if config.contrast or config.brightness:
        # around the image's own mean: that of a dark film is no sign of another contrast
        middle = float(image_HW.mean())
        factor = 1 + config.contrast * (2 * contrast - 1)
        shift = WHITE * config.brightness * (2 * brightness - 1)
        levels = (image_HW.astype(np.float64) - middle) * factor + middle + shift
        image_HW = np.rint(levels).clip(0, WHITE).astype(np.uint8)
    return image_HW


def _crop_and_rotate(
    image_HW: NDArray[np.uint8], scale: float, across: float, down: float, angle: float, size: int
) -> NDArray[np.uint8]:
    """A part of the image, rotated about the part's centre and resized.

    Args:
        scale: edge of the part, as a share of the image's.
        across, down: where it lies in the room that is left, from 0 (left, top) to 1.
        angle: radians.
        size: edge of the result.
    """
    height, width = image_HW.shape
    centre_x = width * (scale / 2 + (1 - scale) * across)
    centre_y = height * (scale / 2 + (1 - scale) * down)
    # where a pixel of the result comes from: (x, y) -> centre + step * rotation of (x, y) about the middle.
    # Steps are of at most two pixels or so, hence two neighbours in each direction are enough
    step_x, step_y = scale * width / size, scale * height / size
    cos, sin, middle = math.cos(angle), math.sin(angle), size / 2
    matrix = (
        step_x * cos, -step_x * sin, centre_x + step_x * middle * (sin - cos),
        step_y * sin, step_y * cos, centre_y - step_y * middle * (sin + cos),
    )  # fmt: skip
    picture = Image.fromarray(image_HW)
    return np.asarray(
        picture.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    )
