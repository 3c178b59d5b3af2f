"""What a fine-tuning recipe needs; looks, and trains nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medunifier_cli.data.labels.samples import plan_samples
from medunifier_cli.plugin_index import load_dataset, load_head
from medunifier_cli.recipe.load import load_saved
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.roots import find_run, shards_folder
from medunifier_cli.run.record import Run
from medunifier_cli.stages.check.pretrain import (
    Finding,
    each,
    look_at_batch,
    look_at_runs,
    look_at_size,
    look_at_split,
    look_at_vit,
)
from medunifier_cli.stages.finetune_task import task_of, with_pretrained


def look_at_finetuning(recipe: FinetuneRecipe, processes: int = 0, hashes: bool = False) -> Iterator[Finding]:
    """Look at everything the recipe needs, in the order a run would need it.

    Args:
        processes: ranks; 0 for what the recipe says.
        hashes: read every shard and compare its SHA-256.
    """
    data = recipe.data
    folder = Path(data.shards) if data.shards else shards_folder(data.dataset)
    started_from: list[PretrainRecipe] = []
    yield from each("data set", lambda: load_dataset(data.dataset).title)
    yield from each("head", lambda: load_head(recipe.model.head).title)
    yield from each("pre-trained run", lambda: _pretrained(recipe, started_from))
    for found in started_from:
        yield from each("image encoder weights", lambda found=found: look_at_vit(found))  # type: ignore[misc]
    if not folder.is_dir():
        yield Finding("shards", f"{folder}: no such folder; run `mu prepare {data.dataset}`", False)
    else:
        for split in dict.fromkeys(filter(None, (data.train, data.valid, data.test))):
            yield from each(f"shards of {split}", lambda split=split: look_at_split(folder, split, hashes))  # type: ignore[misc]
        for found in started_from:
            size = found.data.image_size
            yield from each("image size", lambda size=size: look_at_size(data.dataset, size, folder))  # type: ignore[misc]
        yield from each("samples", lambda: _samples(recipe))
    yield from each(
        "batch", lambda: look_at_batch(recipe.train, processes or recipe.train.processes, "images")[0]
    )
    yield from each("runs folder", look_at_runs)


def _pretrained(recipe: FinetuneRecipe, found: list[PretrainRecipe]) -> str:
    run = Run(find_run(with_pretrained(recipe).model.pretrained))
    found.append(load_saved(run.recipe, PretrainRecipe))
    return f"{run.folder}, trained on {found[0].data.dataset}"


def _samples(recipe: FinetuneRecipe) -> str:
    task = task_of(recipe)
    parts = plan_samples(recipe.data, task.shards, task.plugin, task.kind, image_size=1)
    said = ", ".join(f"{len(part.images):,} {part.role}" for part in parts)
    train = next(part for part in parts if part.role == "train")
    return f"{said}; {len(task.plugin.classes)} classes, {task.metric}; train: {train.selection.rule}"
