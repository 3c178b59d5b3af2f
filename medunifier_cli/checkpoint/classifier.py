"""Build the classifier that `mu finetune` trains, and restore the best one of a run."""

from __future__ import annotations

import dataclasses

import torch

from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.pretrained import PretrainedRun, restore
from medunifier_cli.data.labels.labelled import Kind
from medunifier_cli.data.labels.samples import SAMPLES, trained_classes
from medunifier_cli.errors import CheckpointError
from medunifier_cli.model.classifier import Classifier, build_head
from medunifier_cli.model.head_contract import HeadPlugin
from medunifier_cli.plugin_index import load_head
from medunifier_cli.recipe.load import load_saved, stage_of
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.roots import find_run
from medunifier_cli.run.record import Run


def build_classifier(recipe: FinetuneRecipe, pretrained: PretrainedRun, classes: int) -> Classifier:
    """The pre-trained model and a new head with random weights, as fine-tuning starts from.

    Raises:
        MuError: an unknown head, or one that gives no logits [B, C].
    """
    shape = pretrained.recipe.model.qformer
    head = build_head(load_head(recipe.model.head), shape.queries, shape.width, classes, recipe.train.seed)
    return Classifier(pretrained.model, head, recipe.model.freeze)


def kind_of(recipe: FinetuneRecipe, head: HeadPlugin, classes: int) -> Kind:
    """Whether a sample has exactly one class or any number, by the loss of a recipe or else of its head.

    A single class is there or not, which is a label: only a recipe that states `cross_entropy` has it
    otherwise, and `stages.finetune_task` refuses that.

    Args:
        classes: number of classes, 1 or more.
    """
    by_default = head.loss if classes > 1 else "binary_cross_entropy"
    return "one" if (recipe.model.loss or by_default) == "cross_entropy" else "many"


def classifies(run: Run) -> Kind:
    """`kind_of` a run of `mu finetune`.

    Raises:
        MuError: its recipe or samples.json is damaged, or its head is not installed.
    """
    recipe = load_saved(run.recipe, FinetuneRecipe)
    return kind_of(recipe, load_head(recipe.model.head), len(trained_classes(run.folder / SAMPLES)))


def restore_classifier(
    run: Run, device: torch.device | None = None
) -> tuple[PretrainedRun, Classifier, tuple[str, ...]]:
    """The classifier of the best epoch of a run of `mu finetune`.

    Args:
        run: of `mu finetune`.
        device: by default the GPU if there is one.

    Returns:
        The run with its step and hash, the network in evaluation mode, and its classes in the order of the
        network's outputs.

    Raises:
        CheckpointError: not such a run, not finished, or the pre-training run is gone or was trained again.
    """
    if not run.recipe.exists() or stage_of(run.recipe) != FinetuneRecipe.stage:
        raise CheckpointError(f"{run.folder}: not a run of `mu finetune`, which makes classifiers")
    recipe = load_saved(run.recipe, FinetuneRecipe)
    best = store.newest(run.folder / "best", only=("model",))
    if best is None:
        raise CheckpointError(f"{run.folder}: not finished; run `mu finetune` again")
    pretrained = restore(Run(find_run(recipe.model.pretrained, run.folder)), device)
    # A head on other features than its own would answer without an error.
    expected = best.facts.get("pretrained", pretrained.identity)
    if pretrained.identity != expected:
        raise CheckpointError(
            f"{run.folder}: fine-tuned from checkpoint {expected}, but {pretrained.run.folder} holds "
            f"{pretrained.identity}; fine-tune again with --fresh"
        )
    # From the run, not from the data set: these are the classes that the head was trained on, in its order,
    # even if the shards were prepared again or are gone.
    classes = trained_classes(run.folder / SAMPLES)
    network = build_classifier(recipe, pretrained, len(classes))
    # Not strict: a frozen encoder is not in the checkpoint of a probe, and comes from the pre-training run.
    try:
        missing, unexpected = network.load_state_dict(dict(best.tensors["model"]), strict=False)
    except RuntimeError as error:
        raise CheckpointError(
            f"{run.folder}: its weights have other sizes than its recipe and samples.json; put back the "
            "files that it was trained with"
        ) from error
    if unexpected or any(name.startswith("head.") for name in missing):
        raise CheckpointError(f"{run.folder}: its weights do not fit {pretrained.run.folder}")
    finetuned = dataclasses.replace(
        pretrained, run=run, step=best.step, identity=store.identity(run.folder / "best", best.step)
    )
    return finetuned, network.to(pretrained.device).eval(), classes
