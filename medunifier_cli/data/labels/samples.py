"""The samples of a fine-tuning run: chosen once, written to the run's `samples.json`, read from there after.

What is wrong with them (a class without sample, one class only) is said before anything is trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.data.labels import labelled
from medunifier_cli.data.labels.fraction import Chosen, choose
from medunifier_cli.data.labels.labelled import Kind, LabelledImages
from medunifier_cli.data.subset import open_part
from medunifier_cli.errors import CheckpointError, DataError
from medunifier_cli.recipe.schema_finetune import FinetuneDataConfig

SAMPLES = "samples.json"
"""Name of the file in the run folder."""
ROLES = ("train", "valid", "test")


@dataclass(frozen=True)
class Part:
    """The samples of one split before any image is read."""

    role: str
    """`train`, `valid` or `test`."""
    images: LabelledImages
    chosen: Chosen
    fraction: float
    without_label: int


def plan_samples(
    recipe: FinetuneDataConfig, folder: Path, plugin: DatasetPlugin, kind: Kind, image_size: int
) -> list[Part]:
    """Which samples of which split; looks at labels and at no image.

    Args:
        folder: of the shards.
        plugin: with the classes that the shards were prepared with.

    Raises:
        DataError: a split without labels or without a class that is needed; says which.
    """
    parts = []
    for role in ROLES:
        split = getattr(recipe, role)
        if not split:
            continue
        shards = open_part(folder, split)
        target = labelled.targets_of(shards, plugin, kind)
        fraction = recipe.fraction if role == "train" else 1.0
        chosen = choose(shards, target, fraction, recipe.fraction_seed)
        images = LabelledImages(shards, chosen.rows, target[chosen.rows], image_size)
        part = Part(role, images, chosen, fraction, int((~labelled.is_known(target)).sum()))
        _check_classes(part, images, plugin.classes)
        parts.append(part)
    return parts


def choose_samples(parts: Sequence[Part], classes: tuple[str, ...], workers: int) -> dict[str, Any]:
    """What `samples.json` holds. Every image is read once; those that cannot be are left out and counted.

    Raises:
        DataError: what is left lacks a class.
    """
    entries = {}
    for part in parts:
        bad = labelled.unreadable(part.images, workers)
        images = part.images.without(bad)
        shards = images.shards
        if bad.any():
            click.echo(
                f"mu: warning: {shards.folder}: split {shards.split!r}: {int(bad.sum()):,} of {len(bad):,} "
                "images cannot be read; left out, and listed in the run's samples.json",
                err=True,
            )
            _check_classes(part, images, classes)
        positives = labelled.counts(images.target, len(classes))[1]
        entries[part.role] = {
            "split": shards.split,
            "shards": shards.fingerprint,
            "n": len(images),
            "fraction": part.fraction,
            "rule": part.chosen.rule,
            "seed": part.chosen.seed,
            "keys": images.keys if part.fraction < 1 else None,
            "unreadable": shards.keys(part.images.rows[bad]),
            "without_label": part.without_label,
            "positives": dict(zip(classes, positives.tolist(), strict=True)),
        }
    return entries


def open_samples(entry: Mapping[str, Any], part: Part) -> LabelledImages:
    """The samples that an entry of `samples.json` names, among those of its part.

    Raises:
        CheckpointError: the shards, or their drawn subset, are no longer those they were chosen from.
    """
    images, shards = part.images, part.images.shards
    bad = np.isin(
        shards.index["key"][images.rows], np.array([key.encode() for key in entry["unreadable"]], "S")
    )
    left = images.without(bad)
    if shards.fingerprint != entry["shards"] or (entry["keys"] is not None and left.keys != entry["keys"]):
        raise CheckpointError(
            f"{images.folder}: split {entry['split']!r} is not the one this run chose its samples from; "
            "give the run another name with --run, or start over with --fresh"
        )
    return left


def read_samples(path: Path) -> dict[str, Any]:
    """`samples.json`.

    Raises:
        CheckpointError: it is gone or damaged.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read; start over with --fresh") from error


def _check_classes(part: Part, images: LabelledImages, classes: tuple[str, ...]) -> None:
    """Training needs each class and something beside it; a measurement needs two classes.

    Raises:
        DataError: it has not.
    """
    target, few = images.target, part.fraction < 1
    what = f"{images.folder}: split {images.shards.split!r}"
    what += f" at data.fraction {part.fraction:g}" if few else ""
    if not len(target):
        raise DataError(f"{what}: no sample with a known label and a readable image is left")
    negative, positive = labelled.counts(target, len(classes))
    there = [name for name, count in zip(classes, positive, strict=True) if count]
    if target.ndim == 1 and len(there) == 1 and not few:
        raise DataError(
            f"{what}: all {len(target):,} samples have one class, {there[0]}; nothing to tell apart"
        )
    if part.role != "train":
        if target.ndim == 2 and not ((negative > 0) & (positive > 0)).any():
            raise DataError(f"{what}: no label has both positives and negatives; nothing to tell apart")
        return
    advice = "take a larger data.fraction" if few else "it cannot be learned; prepare data that have some"
    for missing, counted in (("of", positive), ("without", negative)):
        lacking = [name for name, count in zip(classes, counted, strict=True) if not count]
        if lacking:
            raise DataError(
                f"{what}: no sample {missing} {', '.join(lacking)} among {len(target):,}; {advice}"
            )
