"""Resolve the names in a fine-tuning recipe: the data set and its classes, the head, the loss, the metric."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medunifier_cli.checkpoint.classifier import kind_of
from medunifier_cli.checkpoint.pretrained import check_pretrained
from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.data.labels.labelled import Kind
from medunifier_cli.data.labels.samples import Extra
from medunifier_cli.data.shard_scan import no_folder
from medunifier_cli.errors import DataError, MuError
from medunifier_cli.model.head_contract import HeadPlugin
from medunifier_cli.plugin_index import load_head, prepared_dataset
from medunifier_cli.recipe.load import load_saved
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.roots import shards_folder
from medunifier_cli.run.record import Run


@dataclass(frozen=True)
class Task:
    """A classification task."""

    plugin: DatasetPlugin
    """The data set, with the classes that its shards were prepared with."""
    shards: Path
    """Folder of the shards."""
    head: HeadPlugin
    kind: Kind
    """`one` class a sample (softmax, cross entropy) or `many` (a sigmoid each, binary cross entropy)."""
    metric: str
    """`auroc` or `accuracy`: the headline, by which the best epoch is chosen."""
    extra: tuple[Extra, ...] = ()
    """Further data sets to train on."""

    def image_size(self, pretrained: Run) -> int:
        """Edge of the images that a pre-trained run takes, in pixels.

        Raises:
            CheckpointError: it is not a pre-training run, or has no checkpoint.
        """
        check_pretrained(pretrained)
        return load_saved(pretrained.recipe, PretrainRecipe).data.image_size


def resolve_task(recipe: FinetuneRecipe) -> Task:
    """Look up the data set and head of a recipe; loss and metric come from it, the head or the data set.

    Raises:
        MuError: an unknown data set or head, or a metric that the loss does not allow.
        DataError: no shards, no class, or cross entropy over a single one.
    """
    head = load_head(recipe.model.head)
    folder = Path(recipe.data.shards) if recipe.data.shards else shards_folder(recipe.data.dataset)
    if not folder.is_dir():
        raise DataError(no_folder(folder))
    plugin = prepared_dataset(recipe.data.dataset, folder)
    if not plugin.classes:
        raise DataError(f"{plugin.name} has no classes: nothing to fine-tune on; prepare it with labels")
    kind = kind_of(recipe, head, len(plugin.classes))
    if kind == "one" and len(plugin.classes) == 1:
        raise DataError(
            f"{plugin.name} has a single class ({plugin.classes[0]}), and cross entropy over one class "
            "learns nothing; give -o model.loss=binary_cross_entropy, which learns whether it is there"
        )
    # accuracy, the headline of some data sets, is defined for exactly one class a sample
    metric = recipe.model.metric or head.metric or (plugin.headline_metric if kind == "one" else "auroc")
    if kind == "many" and metric == "accuracy":
        raise MuError(
            f"head `{head.name}`: accuracy needs one class a sample, but its loss allows any number; "
            "set model.metric to auroc"
        )
    extra = tuple(_extra(name, folder) for name in recipe.data.extra)
    return Task(plugin, folder, head, kind, metric, extra)


def _extra(name: str, real: Path) -> Extra:
    """A data set that adds samples to those in the folder `real`.

    Raises:
        DataError: it is not prepared, or it is the same.
    """
    folder = shards_folder(name)
    if not folder.is_dir():
        raise DataError(f"data.extra: {no_folder(folder)}")
    if folder.resolve() == real.resolve():
        raise DataError(f"{folder}: data.extra names the shards of data.dataset itself; leave it out")
    return Extra(name, folder, prepared_dataset(name, folder))
