"""Find a pre-training run and restore its model, ready to use."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.best import best_of, without_best
from medunifier_cli.checkpoint.encoder.tower import load_tower
from medunifier_cli.checkpoint.exported import is_exported, read_exported
from medunifier_cli.checkpoint.lineage import base_of, pretrained_of
from medunifier_cli.data.texts.tokenizer import MEND, TextTokenizer
from medunifier_cli.distributed import world
from medunifier_cli.errors import CheckpointError, RecipeError
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.model.weights import fitting, without_drawing
from medunifier_cli.objectives.pretraining import build_model
from medunifier_cli.recipe.load import load_saved, stage_of
from medunifier_cli.recipe.schema import LIVE, PretrainRecipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.roots import find_run, newest_run, runs_root
from medunifier_cli.run.record import Run
from medunifier_cli.terminal.say import say, say_more

Started = TypeVar("Started", FinetuneRecipe, PriorRecipe)
"""Recipe of a stage that starts from a pre-training run."""


@dataclass(frozen=True)
class PretrainedRun:
    """A pre-trained model as a run left it."""

    run: Run
    recipe: PretrainRecipe
    tokenizer: TextTokenizer
    model: MedUnifier
    """In evaluation mode, on `device`."""
    device: torch.device
    step: int
    identity: str
    """Hash of the checkpoint, as result files carry it."""
    encoder: str = ""
    """Hash of the frozen image encoder's weights; empty for one that was trained."""
    batch_size: int = 0
    """Images in a forward pass of what is measured; 0 for the verb's own number. Changes rounding alone."""

    def with_batches_of(self, images: int | None) -> PretrainedRun:
        """The same model for batches of this many images; None or 0 for the verb's own number."""
        return dataclasses.replace(self, batch_size=images or 0)

    @property
    def precision(self) -> str:
        """Precision of every forward pass that measures, as results state it; training may have another."""
        cached = self.recipe.data.features != LIVE
        features = "; cached features of the image encoder in bf16" if cached else ""
        if self.device.type != "cuda":
            return f"fp32{features}"
        # as `model.precision.measuring` has it; convolutions by PyTorch's default
        convolutions = " and convolutions" if torch.backends.cudnn.allow_tf32 else ""
        # as `MedUnifier.to_device` has it
        half = ", the frozen image encoder in bf16" if self.recipe.model.vit.frozen else ""
        return f"fp32, matrix products{convolutions} in TF32{half}{features}"


def is_run_of(run: Run, *recipes: type[PretrainRecipe | FinetuneRecipe | PriorRecipe]) -> bool:
    """Whether a folder holds a run of one of these stages, with a checkpoint."""
    try:
        return (
            _has_weights(run)
            and run.recipe.exists()
            and stage_of(run.recipe) in {recipe.stage for recipe in recipes}
        )
    except RecipeError:
        return False  # another program's recipe.yaml: never a run to choose by default


def check_pretrained(run: Run, verb: str = "") -> None:
    """Raises CheckpointError, which says why, unless a folder holds a pre-training run with a checkpoint.

    Args:
        verb: that needs it, for the message; empty where the run is not given by `--run`.
    """
    if not run.recipe.exists():
        raise CheckpointError(f"{run.folder}: not a run, it has no recipe.yaml")
    _check_stage(run, verb)
    if not _has_weights(run):
        raise CheckpointError(f"{run.folder}: no checkpoint yet; run `mu pretrain` again to train it")


def _check_stage(run: Run, verb: str) -> None:
    """Raises CheckpointError for a run that starts from a pre-trained one; it names that one, if it is there.

    Args:
        verb: that needs a pre-trained run by `--run`; empty where the run is given otherwise.
    """
    stage = stage_of(run.recipe)
    if stage == PretrainRecipe.stage:
        return
    what = "a fine-tuned run" if stage == FinetuneRecipe.stage else f"a run of `mu {stage}`"
    needs = f"`mu {verb}` needs a pre-trained one" if verb else "name a pre-trained one"
    base = base_of(run)
    advice = "" if base is None else f": {'--run ' if verb else ''}{_given_as(base)}"
    raise CheckpointError(f"{run.folder} is {what}; {needs}{advice}")


def _given_as(run: Run) -> str:
    """The name of a run if it lies in the runs folder, so that runs can be moved together; else its path."""
    # resolved: a path that was given in full may lead into the runs folder as well
    inside = run.folder.resolve().parent == runs_root().resolve()
    return run.folder.name if inside else str(run.folder.resolve())


def _has_weights(run: Run) -> bool:
    """Whether a folder holds a checkpoint, or is one that `mu export` wrote."""
    return bool(store.steps(run.checkpoints)) or is_exported(run.folder)


def run_for(name: str, verb: str, *recipes: type[PretrainRecipe | FinetuneRecipe | PriorRecipe]) -> Run:
    """The run that `verb` uses: `name`, by name or folder, or the newest of these stages with a checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    return Run(find_run(name) if name else newest_run(lambda path: is_run_of(Run(path), *recipes), verb))


def pretrained_run(name: str, verb: str, *also: type[FinetuneRecipe | PriorRecipe]) -> Run:
    """The pre-training run that `verb` uses: `name`, by name or folder, or the newest.

    Args:
        also: other stages whose runs may be named.

    Raises:
        CheckpointError: there is none, or it is one of another stage; the message names the run to take.
    """
    run = run_for(name, verb, PretrainRecipe)
    with suppress(RecipeError):  # of a damaged recipe whoever reads the whole of it says more
        if run.recipe.exists() and not is_exported(run.folder) and not is_run_of(run, *also):
            _check_stage(run, verb)
    return run


def fill_pretrained(recipe: Started, given: str = "", folder: Path | None = None) -> Started:
    """The recipe with the pre-training run that it starts from filled in.

    Args:
        recipe: of fine-tuning or of the priors.
        given: name or folder from the command line; else the recipe's own, else the one that the run in
            `folder` started from (so that a newer pre-training run does not change a run that resumes), else
            the newest pre-training run.
        folder: of the run that is about to start or resume.

    Raises:
        CheckpointError: there is none, or it is not a pre-training run with a checkpoint.
    """
    name = given or pretrained_of(recipe)
    if not name and folder is not None:
        saved = Run(folder).recipe
        if saved.exists() and stage_of(saved) == recipe.stage:
            name = pretrained_of(load_saved(saved, type(recipe)))
    name = starting_run(name, recipe.stage)
    if isinstance(recipe, FinetuneRecipe):
        return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, pretrained=name))
    return dataclasses.replace(recipe, prior=dataclasses.replace(recipe.prior, pretrained=name))


def starting_run(name: str, verb: str) -> str:
    """The pre-training run that `verb` starts from: `name`, by name or folder, or the newest.

    Returns:
        Its name if it lies in the runs folder, so that both runs can be moved together; else its path.

    Raises:
        CheckpointError: there is none, or it is not a pre-training run with a checkpoint.
    """
    run = pretrained_run(name, verb)
    check_pretrained(run, verb)
    return _given_as(run)


def restore(run: Run, device: torch.device | None = None) -> PretrainedRun:
    """The model of a pre-training run's newest intact checkpoint; of its best validation if the recipe asks
    for that with `train.best`, and then says on stderr which step it is. Of an exported folder its one model.

    Raises:
        CheckpointError: no checkpoint, or frozen weights that are not those the run was trained with.
        MissingWeightsError: the frozen image encoder's weights are not on this machine.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if is_exported(run.folder):
        found = read_exported(run.folder)
        model = found.model.to_device(device).eval()
        return PretrainedRun(
            run, found.recipe, found.tokenizer, model, device, found.step, found.identity, found.encoder
        )
    if not run.recipe.exists():
        raise CheckpointError(f"{run.folder}: not a run, it has no recipe.yaml")
    run.sweep()
    recipe = load_saved(run.recipe, PretrainRecipe)
    checkpoint = store.newest(run.checkpoints, only=("model",))
    if checkpoint is None:
        raise CheckpointError(
            f"{run.folder}: no intact checkpoint; run `mu pretrain` again to train it from the start"
        )
    if not run.tokenizer.is_dir():
        raise CheckpointError(f"{run.tokenizer}: missing; {MEND}")
    tokenizer = TextTokenizer.load(str(run.tokenizer))
    # None in checkpoints of earlier versions
    if checkpoint.facts["stage"].get("tokenizer") not in (None, tokenizer.fingerprint):
        raise CheckpointError(f"{run.tokenizer}: not the tokenizer that this run was trained with; {MEND}")
    # a frozen image encoder with random weights, for tests, is in no checkpoint: this seed makes it again
    torch.manual_seed(recipe.train.seed)
    encoder, frozen_hash, frozen = None, "", set[str]()
    if recipe.model.vit.frozen:
        encoder, frozen_hash = load_tower(recipe)
        frozen = {name for name, _ in encoder.frozen_tensors()}
        if frozen_hash != store.stage_facts(checkpoint, run.folder).get("frozen_hash"):
            raise CheckpointError(
                f"{run.folder}: the image encoder's weights ({recipe.model.vit.weights}) on this machine are "
                "not those it was trained with; put the original file back"
            )
    # All weights that training changes are in the checkpoint: none is drawn before it is read.
    with without_drawing():
        model = build_model(recipe, tokenizer.size, load=False, encoder=encoder)
    best = best_of(checkpoint.tensors["model"])
    weights = best.weights if best else without_best(checkpoint.tensors["model"])
    try:
        missing, unexpected = model.load_state_dict(fitting(model, weights), strict=False, assign=True)
    except RuntimeError as error:  # other sizes, for example of the vocabulary
        raise CheckpointError(
            f"{run.folder}: its checkpoint has other sizes than its recipe and tokenizer; put back the files "
            "that it was trained with"
        ) from error
    missing = [name for name in missing if name.removeprefix("vit.vit.") not in frozen]
    if missing or unexpected:
        raise CheckpointError(
            f"{run.folder}: its checkpoint does not fit its recipe; use the version of mu that trained it"
        )
    # of the checkpoint that holds the weights, whichever step they are of
    identity = store.identity(run.checkpoints, checkpoint.step)
    step = best.step if best else checkpoint.step
    if best and world.is_main():
        say(
            f"{run.folder}: weights of step {step:,} of {checkpoint.step:,}, the best by "
            f"{recipe.train.best} ({abs(best.value):.4g})"
        )
    model = model.to_device(device).eval()
    if world.is_main():
        say_more(f"{run.folder}: checkpoint {identity} of step {step:,}, on {device}")
    return PretrainedRun(run, recipe, tokenizer, model, device, step, identity, frozen_hash)
