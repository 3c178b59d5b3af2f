"""Check that everything a fine-tuning recipe needs is in place, without a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from medunifier_cli.data.labels.labelled import counts
from medunifier_cli.data.labels.samples import Part, plan_samples
from medunifier_cli.errors import MuError
from medunifier_cli.plugin_index import load_head, prepared_dataset
from medunifier_cli.recipe.schema import LIVE
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.stages.check.shared import (
    Check,
    check_batch,
    check_compiler,
    check_device,
    check_features,
    check_image_size,
    check_run_encoder,
    check_runs_folder,
    check_split,
    check_starting_run,
    failed,
    run_check,
    shards_of,
)
from medunifier_cli.stages.finetune_task import resolve_task


def check_finetune(recipe: FinetuneRecipe, processes: int = 0, hashes: bool = False) -> Iterator[Check]:
    """Check everything the recipe needs, in the order a run would need it; downloads and trains nothing.

    Args:
        processes: ranks; 0 for the recipe's number.
        hashes: read every shard and compare its SHA-256.
    """
    data = recipe.data
    folder = shards_of(data.dataset, data.shards)
    yield from run_check("data set", check_dataset, data.dataset, folder)
    yield from run_check("head", check_head, recipe.model.head)
    checks, pretrained = check_starting_run(recipe.model.pretrained, "finetune")
    yield from checks
    if pretrained is not None:
        yield from run_check("image encoder weights", check_run_encoder, pretrained)
    if folder.is_dir():
        for split in dict.fromkeys(filter(None, (data.train, data.valid, data.test))):
            yield from run_check(f"shards of {split}", check_split, folder, split, hashes)
        if pretrained is not None:
            size = pretrained.data.image_size
            yield from run_check("image size", check_image_size, data.dataset, size, folder)
        for name in data.extra:
            other = shards_of(name, "")
            yield from run_check(f"shards of {name}", check_split, other, "train", hashes)
            if pretrained is not None:
                size = pretrained.data.image_size
                yield from run_check(f"image size of {name}", check_image_size, name, size, other)
        yield from check_samples(recipe)
        if pretrained is not None and data.features != LIVE:
            yield from run_check("cached features", check_features, recipe, hashes)
    else:
        yield Check("shards", f"{folder}: no such folder; run `mu prepare {data.dataset}`", False)
    processes = processes or recipe.train.processes
    yield from run_check("batch", check_batch, recipe.train, processes, "images")
    yield from run_check("precision", check_device, recipe.train)
    yield from run_check("compiled", check_compiler, recipe.train, recipe.train.compile)
    yield from run_check("runs folder", check_runs_folder)


def check_dataset(name: str, folder: Path) -> str:
    """Check that there is a plugin for the data set, under its own name or one that `mu prepare` gave it."""
    return prepared_dataset(name, folder).title


def check_head(name: str) -> str:
    """Check that there is a plugin for the head."""
    return load_head(name).title


def check_samples(recipe: FinetuneRecipe) -> Iterator[Check]:
    """Check that each split has labelled samples of at least two classes, and count those of each class.

    Reads no image.
    """
    try:
        task = resolve_task(recipe)
        parts = plan_samples(recipe.data, task.shards, task.plugin, task.kind, 1, task.extra)
    except MuError as error:
        yield from failed("samples", error)
        return
    sizes = ", ".join(f"{len(part.images):,} {part.role}" for part in parts)
    train = next(part for part in parts if part.role == "train")
    classes = task.plugin.classes
    told = f"{sizes}; {len(classes)} classes, {task.metric}; train: {train.selection.rule}"
    yield Check("samples", told, True)
    if task.kind == "many" and len(classes) > 1 and has_one_class_each(parts):
        told = "each class by itself, though each sample has one of them; -o model.loss=cross_entropy chooses"
        yield Check("loss", told, True)
    for part in parts:
        yield Check(f"classes of {part.role}", count_classes(part, classes), True)


def has_one_class_each(parts: Sequence[Part]) -> bool:
    """Whether each selected sample shows exactly one of several classes."""
    return all(bool(((part.images.target == 1).sum(axis=1) == 1).all()) for part in parts)


def count_classes(part: Part, classes: Sequence[str]) -> str:
    """How many selected samples show each class; where labels are missing, of how many that say so."""
    negatives, positives = counts(part.images.target, len(classes)).tolist()
    told = []
    for name, absent, there in zip(classes, negatives, positives, strict=True):
        known = there + absent
        told.append(f"{name} {there:,}" + (f" of {known:,}" if known < len(part.images) else ""))
    unknown = [f"{part.without_label:,} left out, which have no label"] if part.without_label else []
    return "; ".join([", ".join(told), *unknown])
