"""A run of `mu finetune` -> its best classifier, ready to use."""

from __future__ import annotations

from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.pretrained import PretrainedRun, restore
from medunifier_cli.data.labels.samples import SAMPLES, read_samples
from medunifier_cli.errors import CheckpointError
from medunifier_cli.model.classifier import Classifier, build_head
from medunifier_cli.plugin_index import load_head
from medunifier_cli.recipe.load import load_saved, stage_of
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.roots import find_run
from medunifier_cli.run.record import Run


def restore_classifier(run: Run) -> tuple[PretrainedRun, Classifier, tuple[str, ...]]:
    """The best epoch of a run of `mu finetune`.

    Returns:
        The run with its step and hash, the network in evaluation mode, and its classes.

    Raises:
        CheckpointError: not such a run, or not finished.
    """
    if not run.recipe.exists() or stage_of(run.recipe) != FinetuneRecipe.stage:
        raise CheckpointError(f"{run.folder}: not a run of `mu finetune`, which makes classifiers")
    recipe = load_saved(run.recipe, FinetuneRecipe)
    best = store.newest(run.folder / "best")
    if best is None:
        raise CheckpointError(f"{run.folder}: not finished; run `mu finetune` again")
    trained = restore(Run(find_run(recipe.model.pretrained)))
    classes = tuple(read_samples(run.folder / SAMPLES)["train"]["positives"])
    shape = trained.recipe.model.qformer
    head = build_head(load_head(recipe.model.head), shape.queries, shape.width, len(classes), 0)
    network = Classifier(trained.model, head, recipe.model.freeze)
    missing, unexpected = network.load_state_dict(dict(best.tensors["model"]), strict=False)
    if unexpected or any(name.startswith("head.") for name in missing):
        raise CheckpointError(f"{run.folder}: its weights do not fit {trained.run.folder}")
    tuned = PretrainedRun(
        run, trained.recipe, trained.tokenizer, trained.model, trained.device, best.step,
        store.identity(run.folder / "best", best.step),
    )  # fmt: skip
    return tuned, network.to(trained.device).eval(), classes
