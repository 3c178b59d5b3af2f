"""What a fine-tuning recipe asks for, resolved: classes, head, loss, metric, and the run it starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medunifier_cli.checkpoint.pretrained import check_pretrained
from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.data.labels.labelled import Kind
from medunifier_cli.data.shards import read_manifest
from medunifier_cli.errors import DataError, MuError
from medunifier_cli.model.head_contract import HeadPlugin
from medunifier_cli.plugin_index import load_dataset, load_head
from medunifier_cli.recipe.load import load_saved
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.roots import shards_folder
from medunifier_cli.run.record import Run


@dataclass(frozen=True)
class Task:
    """A classification task."""

    plugin: DatasetPlugin
    """With the classes that the shards were prepared with."""
    shards: Path
    head: HeadPlugin
    kind: Kind
    metric: str
    """`auroc` or `accuracy`: chooses the best epoch."""

    def image_size(self, started_from: Run) -> int:
        """Edge of the images that a pre-trained run takes, in pixels.

        Raises:
            CheckpointError: it is no pre-training run, or has no checkpoint.
        """
        check_pretrained(started_from)
        return load_saved(started_from.recipe, PretrainRecipe).data.image_size


def task_of(recipe: FinetuneRecipe) -> Task:
    """Look up what the recipe names.

    Raises:
        MuError: an unknown data set or head, or a metric that its loss does not allow.
        DataError: no shards, or fewer than two classes.
    """
    head = load_head(recipe.model.head)
    plugin = load_dataset(recipe.data.dataset)
    folder = Path(recipe.data.shards) if recipe.data.shards else shards_folder(recipe.data.dataset)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of shards; run `mu prepare {plugin.name}`")
    plugin = plugin.with_classes(tuple((read_manifest(folder) or {}).get("classes", ())))
    if len(plugin.classes) < 2:
        named = ", ".join(plugin.classes) or "none"
        raise DataError(
            f"{plugin.name} names fewer than two classes ({named}): there is nothing to fine-tune on"
        )
    kind: Kind = "one" if (recipe.model.loss or head.loss) == "cross_entropy" else "many"
    metric = recipe.model.metric or head.metric or (plugin.headline_metric if kind == "one" else "auroc")
    if kind == "many" and metric == "accuracy":
        raise MuError(
            f"head `{head.name}`: accuracy needs one class a sample, and its loss allows any number; "
            "set model.metric to auroc"
        )
    return Task(plugin, folder, head, kind, metric)
