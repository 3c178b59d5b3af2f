"""Labelled images without text, or cached features of them: the sample sources of fine-tuning.

Samples of which no label is known are left out before these sources are built.

Shapes: n samples, B images of a batch, C classes, Q queries, D width, H = W = `image_size`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.data.cached_features import SplitFeatures
from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.data.images.stored import decode_grey, empty_images
from medunifier_cli.data.loader import eval_batches
from medunifier_cli.data.shards import Shards
from medunifier_cli.errors import DataError

SCAN_BATCH = 64

Kind = Literal["one", "many"]
"""`one`: exactly one class per sample. `many`: any number of labels per sample."""


@dataclass(frozen=True)
class Labelled:
    """A batch of B labelled samples at consecutive positions of the sample order."""

    keys: Sequence[str]
    input: Tensor
    """uint8 images [B, 1, H, W], their cached features of the image encoder, bf16 [B, V, D_v], or the cached
    queries of a frozen model [B, Q, D]."""
    target: Tensor
    """`one`: int64 [B]. `many`: float32 [B, C], NaN where a label is unknown."""
    position_B: Tensor
    """int64 on the CPU, as in `batch.Batch`."""

    def to(self, device: torch.device) -> Labelled:
        """The batch with input and targets on `device`."""
        if device.type == "cpu":
            return self
        inputs, target = (part.to(device, non_blocking=True) for part in (self.input, self.target))
        return Labelled(self.keys, inputs, target, self.position_B)


def targets_of(shards: Shards, plugin: DatasetPlugin, kind: Kind) -> NDArray[Any]:
    """Targets of every sample of a split: int64 [n] with -1 for none or several, or float32 [n, C].

    Labels that are uncertain (-1) or blank count as unknown and become NaN.

    Args:
        plugin: with the classes that the shards were prepared with.

    Raises:
        DataError: the kind is `many` and the shards lack the label of a class.
    """
    if kind == "one":
        return shards.class_indices(plugin)
    missing = [name for name in plugin.classes if name not in shards.label_names]
    if missing:
        raise DataError(
            f"{shards.folder}: split {shards.split!r} has no label {', '.join(missing)}; "
            f"it has {', '.join(shards.label_names) or 'none'}"
        )
    columns = [shards.label_names.index(name) for name in plugin.classes]
    target = shards.index["labels"][:, columns].astype(np.float32)
    target[~np.isin(target, (0, 1))] = np.nan
    return target


def is_known(target: NDArray[Any]) -> NDArray[np.bool_]:
    """Which samples have at least one known label, [n]."""
    known: NDArray[np.bool_] = target >= 0 if target.ndim == 1 else ~np.isnan(target).all(axis=1)
    return known


def counts(target: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """Number of negatives and of positives of each class among known labels, int64 [2, C]."""
    if target.ndim == 1:
        positive = np.bincount(target, minlength=classes)
        return np.stack([len(target) - positive, positive])
    return np.stack([(target == value).sum(axis=0) for value in (0, 1)])


class LabelledImages:
    """Selected samples of a split; picklable. A `loader.SampleSource`.

    Args:
        shards: the opened split.
        rows: rows of the samples in the shards, int64 [n].
        target: targets of these samples, see `Labelled.target`.
        image_size: edge in pixels.
        features: of the split, which batches have in place of images.
    """

    def __init__(
        self, shards: Shards, rows: NDArray[np.int64], target: NDArray[Any], image_size: int,
        features: SplitFeatures | None = None,
    ) -> None:  # fmt: skip
        self.shards, self.rows, self.target, self.image_size = shards, rows, target, image_size
        self.features = features

    @property
    def folder(self) -> Path:
        """Folder of the shards."""
        return self.shards.folder

    @property
    def keys(self) -> list[str]:
        """Keys of all samples."""
        return self.shards.keys(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def empty(self, count: int) -> Tensor:
        """An uninitialised tensor for `count` samples: images uint8 [count, 1, H, W], or their features."""
        return empty_images(count, self.image_size) if self.features is None else self.features.empty(count)

    def read(self, samples: NDArray[np.int64], positions: NDArray[np.int64], image_B1HW: Tensor) -> Labelled:
        """A batch of samples at their positions, its images or features read into `image_B1HW`.

        Raises:
            DataError: a damaged image, shard or file of features; names it.
        """
        rows = self.rows[samples]
        if self.features is not None:
            self.features.read(rows, image_B1HW)
            return self._labelled(samples, positions, image_B1HW)
        for row, good in zip(rows.tolist(), self._decode(rows, image_B1HW), strict=True):
            if not good:
                raise DataError(
                    f"{self.shards.where(row)}: damaged image; it was readable when the run began"
                )
        return self._labelled(samples, positions, image_B1HW)

    def without(self, bad: NDArray[np.bool_]) -> LabelledImages:
        """All samples except those marked."""
        return LabelledImages(self.shards, self.rows[~bad], self.target[~bad], self.image_size, self.features)

    def with_features(self, features: SplitFeatures | None) -> LabelledImages:
        """The same samples with cached features in place of images."""
        return LabelledImages(self.shards, self.rows, self.target, self.image_size, features)

    def _decode(self, rows: NDArray[np.int64], image_B1HW: Tensor) -> list[bool]:
        pixels = image_B1HW.numpy()
        return [decode_grey(body, pixels[i, 0]) for i, body in enumerate(self.shards.images(rows))]

    def _labelled(self, samples: NDArray[np.int64], positions: NDArray[np.int64], inputs: Tensor) -> Labelled:
        target = torch.from_numpy(np.ascontiguousarray(self.target[samples]))
        return Labelled(self.shards.keys(self.rows[samples]), inputs, target, torch.from_numpy(positions))


class _ReadableImages(LabelledImages):
    """A source whose targets tell of each image whether it can be decoded."""

    def read(self, samples: NDArray[np.int64], positions: NDArray[np.int64], image_B1HW: Tensor) -> Labelled:
        good = self._decode(self.rows[samples], image_B1HW)
        # Without the images: only the verdicts need to leave the worker.
        return Labelled((), torch.empty(0), torch.tensor(good), torch.from_numpy(positions))


def unreadable(images: LabelledImages, workers: int) -> NDArray[np.bool_]:
    """Which images cannot be decoded, bool [n]; reads all of them."""
    scan = _ReadableImages(images.shards, images.rows, images.target, images.image_size)
    good = [
        batch.target[mask_B].numpy()
        for batch, mask_B in eval_batches(scan, batch_size=SCAN_BATCH, rank=0, world=1, workers=workers)
    ]
    return ~np.concatenate(good)


class LabelledFeatures:
    """Cached query outputs of a frozen model in place of images. A `loader.SampleSource`.

    Args:
        images: the samples.
        query_nQD: float32, may be memory-mapped.
    """

    def __init__(self, images: LabelledImages, query_nQD: NDArray[np.float32]) -> None:
        self.images, self.query_nQD, self.target = images, query_nQD, images.target

    @property
    def folder(self) -> Path:
        """Folder of the shards."""
        return self.images.folder

    @property
    def keys(self) -> list[str]:
        """Keys of all samples."""
        return self.images.keys

    def __len__(self) -> int:
        return len(self.images)

    def empty(self, count: int) -> Tensor:
        """An uninitialised tensor for the queries of `count` samples, float32 [count, Q, D]."""
        return torch.empty((count, *self.query_nQD.shape[1:]))

    def read(self, samples: NDArray[np.int64], positions: NDArray[np.int64], query_BQD: Tensor) -> Labelled:
        """A batch of samples at their positions, its queries copied into `query_BQD`."""
        query_BQD.copy_(torch.from_numpy(self.query_nQD[samples]))
        return self.images._labelled(samples, positions, query_BQD)
