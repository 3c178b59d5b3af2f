"""The samples of a fine-tuning run: selected once, recorded in the run's `samples.json`, reused after that.

Problems (a class without samples, a single class) are reported before training starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.data.labels import labelled
from medunifier_cli.data.labels.fraction import Selection, select
from medunifier_cli.data.labels.labelled import Kind, LabelledImages
from medunifier_cli.data.labels.mixed import refuse_shared, targets_as
from medunifier_cli.data.subset import open_part, refuse_synthetic, synthetic_in
from medunifier_cli.errors import CheckpointError, DataError
from medunifier_cli.parsing import Count, checked, read_json
from medunifier_cli.recipe.schema_finetune import FinetuneDataConfig
from medunifier_cli.terminal.say import say

SAMPLES = "samples.json"
"""Name of the file in the run folder."""
ROLES = ("train", "valid", "test")
EXTRA = "extra:"
"""Begins the role of further samples to train on; the name of their data set follows."""


class Classes(TypedDict):
    """What `samples.json` says of the classes of a split."""

    positives: dict[str, Count]
    """Class -> number of samples that show it, in the order of the head's outputs."""


class Entry(Classes):
    """The fields that a resumed run reads; `choose_samples` adds more."""

    split: str
    shards: str
    n: Count
    rule: str
    keys: list[str] | None
    unreadable: list[str]


@dataclass(frozen=True)
class Part:
    """The samples selected from one split, before any image is read."""

    role: str
    """`train`, `valid`, `test`, or `extra:<data set>`."""
    images: LabelledImages
    selection: Selection
    fraction: float
    without_label: int
    """Number of samples of the split without a known label."""

    @property
    def extra(self) -> str:
        """Name of the data set of extra samples; empty for the task's own."""
        return self.role.removeprefix(EXTRA) if self.role.startswith(EXTRA) else ""


@dataclass(frozen=True)
class Extra:
    """A data set whose train split is trained on besides that of the task."""

    name: str
    folder: Path
    plugin: DatasetPlugin
    """With the classes that its shards were prepared with."""


def plan_samples(
    recipe: FinetuneDataConfig, folder: Path, plugin: DatasetPlugin, kind: Kind, image_size: int,
    extra: Sequence[Extra] = (),
) -> list[Part]:  # fmt: skip
    """Select the samples of each split by their labels; reads no image.

    Args:
        folder: folder of the shards.
        plugin: with the classes that the shards were prepared with.
        extra: further data sets to train on.

    Raises:
        DataError: a split lacks labels, or samples of a class that is needed; synthetic images where they
            must not be; an extra data set with other classes.
    """
    parts = []
    for role in ROLES:
        split = getattr(recipe, role)
        if not split:
            continue
        _check_synthetic(recipe, folder, role, split)
        shards = open_part(folder, split)
        target = labelled.targets_of(shards, plugin, kind)
        fraction = recipe.fraction if role == "train" else 1.0
        selection = select(shards, target, fraction, recipe.fraction_seed)
        images = LabelledImages(shards, selection.rows, target[selection.rows], image_size)
        part = Part(role, images, selection, fraction, int((~labelled.is_known(target)).sum()))
        _check_classes(part, images, plugin.classes)
        parts.append(part)
    for one in extra:
        shards = open_part(one.folder, "train")
        target = targets_as(shards, one.plugin, plugin.classes, plugin, kind)
        selection = select(shards, target, 1.0, 0)
        images = LabelledImages(shards, selection.rows, target[selection.rows], image_size)
        unknown = int((~labelled.is_known(target)).sum())
        parts.append(Part(f"{EXTRA}{one.name}", images, selection, 1.0, unknown))
    return parts


def _check_synthetic(recipe: FinetuneDataConfig, folder: Path, role: str, split: str) -> None:
    if role != "train":
        refuse_synthetic(folder, split, f"data.{role}")
    elif recipe.fraction < 1 and synthetic_in(folder, split):
        raise DataError(
            f"{folder}: {split!r} holds synthetic images, of which data.fraction would take a share; prepare "
            "them apart and name them as data.extra"
        )


def choose_samples(parts: Sequence[Part], classes: tuple[str, ...], workers: int) -> dict[str, Any]:
    """The contents of `samples.json`. Reads every image once; unreadable ones are reported and left out.

    Raises:
        DataError: the samples left lack a class, or extra ones are held out as well.
    """
    heldout = [part.images for part in parts if part.role in ("valid", "test")]
    for part in parts:
        if part.extra:
            refuse_shared(part.images, heldout)
    entries = {}
    for part in parts:
        bad = labelled.unreadable(part.images, workers)
        images = part.images.without(bad)
        shards = images.shards
        if bad.any():
            say(
                f"warning: {shards.folder}: split {shards.split!r}: {int(bad.sum()):,} of {len(bad):,} "
                "images cannot be read; they are left out and listed in the run's samples.json"
            )
            if not part.extra:
                _check_classes(part, images, classes)
        positives = labelled.counts(images.target, len(classes))[1]
        entries[part.role] = {
            "split": shards.split,
            "shards": shards.fingerprint,
            "n": len(images),
            "fraction": part.fraction,
            "rule": part.selection.rule,
            "seed": part.selection.seed,
            "keys": images.keys if part.fraction < 1 else None,
            "unreadable": shards.keys(part.images.rows[bad]),
            "without_label": part.without_label,
            "positives": dict(zip(classes, positives.tolist(), strict=True)),
        }
        if part.extra:
            entries[part.role]["synthetic"] = synthetic_in(shards.folder, shards.split)
    return entries


def open_samples(entry: Mapping[str, Any], part: Part) -> LabelledImages:
    """The samples of a part that its entry of `samples.json` names.

    Raises:
        CheckpointError: the shards, or a subset of them, have changed since the samples were selected.
    """
    images, shards = part.images, part.images.shards
    bad = np.isin(
        shards.index["key"][images.rows], np.array([key.encode() for key in entry["unreadable"]], "S")
    )
    remaining = images.without(bad)
    # Keys are recorded for a fraction only: for a whole split the fingerprint implies them, and 377,110 keys
    # would make the file unreadable for people.
    if shards.fingerprint != entry["shards"] or entry["keys"] not in (None, remaining.keys):
        raise CheckpointError(
            f"{images.folder}: split {entry['split']!r} has changed since this run selected its samples; "
            "give the run another name with --name, or start over with --fresh"
        )
    return remaining


def read_samples(path: Path, kind: type[Any] = Entry) -> dict[str, Any]:
    """Read `samples.json`.

    Args:
        kind: what it has to say of each split.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    advice = "start over with --fresh"
    content = read_json(path, dict[str, Any], CheckpointError, advice)
    checked(content, dict[str, kind], str(path), CheckpointError, advice)  # type: ignore[valid-type]
    if "train" not in content:
        raise CheckpointError(f"{path}: names no samples to train on; {advice}")
    return content


def trained_classes(path: Path) -> tuple[str, ...]:
    """The classes that a run was trained on, in the order of its head's outputs, from `samples.json`."""
    return tuple(read_samples(path, Classes)["train"]["positives"])


def _check_classes(part: Part, images: LabelledImages, classes: tuple[str, ...]) -> None:
    """Check that samples suffice: training needs every class and its absence, an evaluation two classes.

    Raises:
        DataError: names what is missing.
    """
    target, few = images.target, part.fraction < 1
    what = f"{images.folder}: split {images.shards.split!r}"
    what += f" at data.fraction {part.fraction:g}" if few else ""
    if not len(target):
        raise DataError(f"{what}: no sample with a known label and a readable image is left")
    negative, positive = labelled.counts(target, len(classes))
    present = [name for name, count in zip(classes, positive, strict=True) if count]
    if target.ndim == 1 and len(present) == 1 and not few:
        raise DataError(
            f"{what}: all {len(target):,} samples have one class, {present[0]}; there is nothing to classify"
        )
    if part.role != "train":
        if target.ndim == 2 and not ((negative > 0) & (positive > 0)).any():
            raise DataError(
                f"{what}: no label has both positives and negatives; there is nothing to classify"
            )
        return
    advice = "use a larger data.fraction" if few else "it cannot be learned; prepare data that contain it"
    for relation, counts in (("of", positive), ("without", negative)):
        missing = [name for name, count in zip(classes, counts, strict=True) if not count]
        if missing:
            raise DataError(
                f"{what}: no sample {relation} {', '.join(missing)} among {len(target):,}; {advice}"
            )
