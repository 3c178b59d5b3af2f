"""A run of `mu fit-prior` -> the two priors and the model whose codes they know, ready to draw from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.pretrained import PretrainedRun, restore
from medunifier_cli.errors import CheckpointError, MuError, RecipeError
from medunifier_cli.prior.pair import PriorPair
from medunifier_cli.prior.shape import PriorShape
from medunifier_cli.recipe.load import load_saved, stage_of
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.roots import find_run
from medunifier_cli.run.record import Run


@dataclass(frozen=True)
class Fitted:
    """Priors as a run left them."""

    run: Run
    recipe: PriorRecipe
    pair: PriorPair
    """In evaluation mode, on the model's device."""
    trained: PretrainedRun
    """The pre-trained model whose codes they were fitted on."""
    step: int
    identity: str
    """Hash of the priors' checkpoint."""


def is_fitted(run: Run) -> bool:
    """Whether a folder holds priors with a checkpoint."""
    try:
        return (
            bool(store.steps(run.checkpoints))
            and run.recipe.exists()
            and stage_of(run.recipe) == PriorRecipe.stage
        )
    except RecipeError:
        return False


def fitted_on(run: Run) -> Path | None:
    """Folder of the pre-training run whose codes the priors know; None where it is gone."""
    try:
        return find_run(load_saved(run.recipe, PriorRecipe).prior.pretrained).resolve()
    except MuError:
        return None


def build_pair(recipe: PriorRecipe, trained: PretrainedRun) -> PriorPair:
    """Fresh priors in the shapes that recipe and model ask for."""
    generator, priors = trained.recipe.model.generator, recipe.prior
    codes = generator.codebook_size
    text = trained.recipe.model.qformer.width if priors.condition == "text" else 0
    vectors = generator.code_width if priors.codebook_vectors else 0
    model: dict[str, Any] = {"codes": codes, "text_width": text, "codebook_width": vectors}
    pair = PriorPair(
        PriorShape(**vars(priors.top), **model), PriorShape(**vars(priors.bottom), **model, top_codes=codes)
    )
    if vectors:
        top, bottom = trained.model.generator.quantise_top, trained.model.generator.quantise_bottom
        pair.top.set_codebooks(top.code_KC.detach().cpu())
        pair.bottom.set_codebooks(bottom.code_KC.detach().cpu(), top.code_KC.detach().cpu())
    return pair


def restore_priors(run: Run, device: torch.device | None = None) -> Fitted:
    """The newest whole checkpoint of priors, with the model they belong to.

    Raises:
        CheckpointError: not such a run, no checkpoint, or the pre-trained run is gone or is another one now.
    """
    if not run.recipe.exists() or stage_of(run.recipe) != PriorRecipe.stage:
        raise CheckpointError(f"{run.folder}: not a run of `mu fit-prior`, which makes the priors")
    recipe = load_saved(run.recipe, PriorRecipe)
    checkpoint = store.newest(run.checkpoints, only=("model",))
    if checkpoint is None:
        raise CheckpointError(f"{run.folder}: no whole checkpoint; run `mu fit-prior` again")
    trained = restore(Run(find_run(recipe.prior.pretrained)), device)
    fitted_on = checkpoint.facts["stage"]["pretrained"]
    if trained.identity != fitted_on:
        raise CheckpointError(
            f"{run.folder}: priors of another run: fitted on the codes of checkpoint {fitted_on}, but "
            f"{trained.run.folder} holds {trained.identity}; run `mu fit-prior` again under another name"
        )
    pair = build_pair(recipe, trained)
    try:
        pair.load_state_dict(dict(checkpoint.tensors["model"]))
    except RuntimeError as error:
        raise CheckpointError(f"{run.folder}: its checkpoint does not fit its recipe") from error
    identity = store.identity(run.checkpoints, checkpoint.step)
    return Fitted(run, recipe, pair.to(trained.device).eval(), trained, checkpoint.step, identity)
