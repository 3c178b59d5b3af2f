"""Several sources of labelled samples as one: real images and those that other data sets add to them.

Shapes: n samples of all sources, B samples of a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.data.labels.labelled import (
    Kind,
    Labelled,
    LabelledFeatures,
    LabelledImages,
    targets_of,
)
from medunifier_cli.data.shards import Shards
from medunifier_cli.errors import DataError

AT_ONCE = 256
"""Images read at a time to compare their bytes."""


class Mixed:
    """The samples of several sources end to end; picklable. A `loader.SampleSource`.

    The order of training shuffles all of them together, so an epoch is each sample of each source once.

    Args:
        parts: at least one, all with inputs and targets of one shape; the first names the folder.
    """

    def __init__(self, parts: Sequence[LabelledImages | LabelledFeatures]) -> None:
        self.parts = tuple(parts)
        self.target: NDArray[Any] = np.concatenate([part.target for part in self.parts])
        self._start = np.cumsum([0, *(len(part) for part in self.parts)])

    @property
    def folder(self) -> Path:
        """Folder of the first source's shards."""
        return self.parts[0].folder

    @property
    def keys(self) -> list[str]:
        """Keys of all samples; unique within a source only."""
        return [key for part in self.parts for key in part.keys]

    def __len__(self) -> int:
        return int(self._start[-1])

    def empty(self, count: int) -> Tensor:
        """An uninitialised tensor for the inputs of `count` samples."""
        return self.parts[0].empty(count)

    def read(self, samples: NDArray[np.int64], positions: NDArray[np.int64], inputs: Tensor) -> Labelled:
        """A batch of samples at their positions, each read from its own source into `inputs`.

        Raises:
            DataError: a damaged image or shard; names shard and key.
        """
        keys = [""] * len(samples)
        of_part = np.searchsorted(self._start, samples, side="right") - 1
        for number in np.unique(of_part).tolist():
            rows, part = np.flatnonzero(of_part == number), self.parts[number]
            own = samples[rows] - self._start[number]
            batch = part.read(own, positions[rows], part.empty(len(rows)))
            inputs[torch.from_numpy(rows)] = batch.input
            for row, key in zip(rows.tolist(), batch.keys, strict=True):
                keys[row] = key
        target = torch.from_numpy(np.ascontiguousarray(self.target[samples]))
        return Labelled(keys, inputs, target, torch.from_numpy(positions))


def targets_as(
    shards: Shards, own: DatasetPlugin, classes: tuple[str, ...], plugin: DatasetPlugin, kind: Kind
) -> NDArray[Any]:
    """Targets of a split of another data set, numbered by the classes of the task; see `targets_of`.

    Args:
        own: the other data set, with the classes that its shards were prepared with.
        classes: of the task.
        plugin: the data set of the task.

    Raises:
        DataError: the other data set has no classes, or one that the task has not; or a label is missing.
    """
    unknown = [name for name in own.classes if name not in classes]
    if unknown or not own.classes:
        has = f"has the class {unknown[0]!r}" if unknown else "has no classes"
        raise DataError(
            f"{shards.folder}: data.extra {has}, but {plugin.name} has {', '.join(classes)}; prepare it "
            "with the same names of classes"
        )
    if kind == "many":
        return targets_of(shards, plugin, kind)
    number = shards.class_indices(own)
    of_task = np.array([classes.index(name) for name in own.classes], np.int64)
    return np.where(number >= 0, of_task[number], -1)


def refuse_shared(extra: LabelledImages, heldout: Sequence[LabelledImages]) -> None:
    """Refuse extra samples of which one is an image that the task is validated or tested on.

    Only images that are equal byte for byte are found, and of those of equal length alone are any read.

    Raises:
        DataError: names both samples.
    """
    length = extra.shards.index["image_size"][extra.rows]
    for other in heldout:
        theirs = other.shards.index["image_size"][other.rows]
        known = _hashes(other, other.rows[np.isin(theirs, length)])
        for digest, key in _hashes(extra, extra.rows[np.isin(length, theirs)]).items():
            if digest in known:
                raise DataError(
                    f"{extra.folder}: {key} is the image {known[digest]} of {other.folder}, split "
                    f"{other.shards.split!r}, which is held out; leave it out of data.extra"
                )


def _hashes(images: LabelledImages, rows: NDArray[np.int64]) -> dict[bytes, str]:
    """Hash of each image file -> key."""
    found = {}
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE]
        for body, key in zip(images.shards.images(some), images.shards.keys(some), strict=True):
            found[hashlib.sha256(body).digest()] = key
    return found
