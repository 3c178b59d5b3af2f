"""Restore the priors of a run of `mu fit-prior` with the pre-trained model whose codes they model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.lineage import base_of
from medunifier_cli.checkpoint.pretrained import PretrainedRun, is_run_of, restore, run_for
from medunifier_cli.data.batch import PackedText
from medunifier_cli.data.subset import parts_of
from medunifier_cli.errors import CheckpointError
from medunifier_cli.model.precision import measuring
from medunifier_cli.model.weights import fitting, without_drawing
from medunifier_cli.prior.contract import TextStates
from medunifier_cli.prior.masked.prior import MaskedPrior
from medunifier_cli.prior.masked.shape import MaskedShape
from medunifier_cli.prior.pair import PriorPair
from medunifier_cli.prior.shape import PriorShape
from medunifier_cli.recipe.load import load_saved, stage_of
from medunifier_cli.recipe.schema import LIVE, PretrainRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.roots import find_run, newest_run, shards_folder
from medunifier_cli.run.record import Run


@dataclass(frozen=True)
class FittedPriors:
    """The priors of both levels as a run left them."""

    run: Run
    recipe: PriorRecipe
    prior: PriorPair | MaskedPrior
    """In evaluation mode, on the model's device."""
    pretrained: PretrainedRun
    """The pre-trained model whose codes they were fitted on."""
    step: int
    identity: str
    """Hash of the priors' checkpoint."""


def splits_of(recipe: PriorRecipe, pretrained: PretrainRecipe) -> tuple[Path, str, str]:
    """The folder of shards that a recipe's priors are fitted on, its train split and its held-out one.

    Returns:
        An empty name where nothing is held out.
    """
    data, own = recipe.data, pretrained.data
    if data.dataset in ("", own.dataset):
        folder = Path(data.shards or own.shards or shards_folder(own.dataset))
        return folder, data.train or own.train, data.valid or own.valid
    folder = Path(data.shards or shards_folder(data.dataset))
    there = parts_of(folder)[0] if folder.is_dir() else []
    return folder, data.train or "train", data.valid or ("valid" if "valid" in there else "")


def on_their_data(fitted: FittedPriors) -> PretrainedRun:
    """The model under the priors, with the data set and splits that these were fitted on in place of its own.

    What is sampled from priors is asked for and judged by the data that they saw; what they were fitted on is
    held out from nothing.
    """
    trained, name = fitted.pretrained, fitted.recipe.data.dataset
    own = trained.recipe.data
    folder, train, valid = splits_of(fitted.recipe, trained.recipe)
    data, test = own, own.test
    if name not in ("", own.dataset):
        test = "test" if folder.is_dir() and "test" in parts_of(folder)[0] else ""
        data = replace(data, dataset=name, sections=(), limit=0)
    if data.dataset != own.dataset or fitted.recipe.data.shards:
        data = replace(data, shards=str(folder), features=fitted.recipe.data.features or LIVE)
    data = replace(data, train=train, valid=valid, test="" if test == train else test)
    return replace(trained, recipe=replace(trained.recipe, data=data))


def build_prior(recipe: PriorRecipe, pretrained: PretrainedRun) -> PriorPair | MaskedPrior:
    """New priors with random weights, in the sizes that the recipe and the pre-trained model require."""
    if recipe.prior.kind == "pixelsnail":
        return _build_pair(recipe, pretrained)
    model = pretrained.recipe.model
    text = model.qformer.width if recipe.prior.condition == "text" else 0
    vectors = model.generator.code_width if recipe.prior.codebook_vectors else 0
    shape = MaskedShape(
        **vars(recipe.prior.masked), codes=model.generator.codebook_size, text_width=text,
        codebook_width=vectors, top_edge=pretrained.model.generator.top,
    )  # fmt: skip
    prior = MaskedPrior(shape)
    if vectors:
        quantised = pretrained.model.generator
        books = (quantised.quantise_top.code_KC, quantised.quantise_bottom.code_KC)
        prior.set_codebooks(*(book_KW.detach().cpu() for book_KW in books))
    return prior


def _build_pair(recipe: PriorRecipe, pretrained: PretrainedRun) -> PriorPair:
    generator, priors = pretrained.recipe.model.generator, recipe.prior
    codes = generator.codebook_size
    text = pretrained.recipe.model.qformer.width if priors.condition == "text" else 0
    vectors = generator.code_width if priors.codebook_vectors else 0
    model: dict[str, Any] = {"codes": codes, "text_width": text, "codebook_width": vectors}
    pair = PriorPair(
        PriorShape(**vars(priors.top), **model), PriorShape(**vars(priors.bottom), **model, top_codes=codes)
    )
    if vectors:
        quantised = pretrained.model.generator
        top, bottom = quantised.quantise_top, quantised.quantise_bottom
        pair.top.set_codebooks(top.code_KC.detach().cpu())
        pair.bottom.set_codebooks(bottom.code_KC.detach().cpu(), top.code_KC.detach().cpu())
    return pair


def text_states(pretrained: PretrainedRun, text: PackedText) -> TextStates:
    """The states of the text pass at every token of some texts, as a prior reads them."""
    with measuring():
        state_ND = pretrained.model.qformer.encode_text(text, states=True).float()
    parts = torch.split(state_ND, text.lengths_B.tolist())
    return TextStates(pad_sequence(list(parts), batch_first=True), text.lengths_B.to(state_ND.device))


def priors_run(name: str, verb: str) -> Run:
    """The run of priors that `verb` uses.

    Args:
        name: of a run of priors, or of the pre-training run that they were fitted on, by name or folder;
            empty for the newest run of priors.

    Raises:
        CheckpointError: there is none.
    """
    if not name or not is_run_of(Run(find_run(name)), PretrainRecipe):
        return run_for(name, verb, PriorRecipe)
    return priors_on(Run(find_run(name)), verb)


def priors_on(pretrained: Run, verb: str) -> Run:
    """The newest run of priors that were fitted on a pre-training run.

    Raises:
        CheckpointError: there is none.
    """
    folder = pretrained.folder

    def fitted_on_it(path: Path) -> bool:
        base = base_of(Run(path)) if is_run_of(Run(path), PriorRecipe) else None
        return base is not None and base.folder.resolve() == folder.resolve()

    try:
        return Run(newest_run(fitted_on_it, verb, folder))
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder}: no priors were fitted on this run; fit some with "
            f"`mu fit-prior RECIPE --run {folder.name}`"
        ) from error


def restore_priors(
    run: Run, device: torch.device | None = None, pretrained: PretrainedRun | None = None
) -> FittedPriors:
    """The priors of a run's newest intact checkpoint, with the pre-trained model they belong to.

    Args:
        device: of both; by default the GPU if there is one.
        pretrained: that model, if it is at hand already; `device` is its own then.

    Raises:
        CheckpointError: not such a run, no checkpoint, or the pre-training run is gone or was trained again.
    """
    if not run.recipe.exists() or stage_of(run.recipe) != PriorRecipe.stage:
        raise CheckpointError(f"{run.folder}: not a run of `mu fit-prior`, which fits the priors")
    recipe = load_saved(run.recipe, PriorRecipe)
    checkpoint = store.newest(run.checkpoints, only=("model",))
    if checkpoint is None:
        raise CheckpointError(f"{run.folder}: no intact checkpoint; run `mu fit-prior` again")
    if pretrained is None:
        pretrained = restore(Run(find_run(recipe.prior.pretrained, run.folder)), device)
    # Codes are indices into one codebook: under other weights the priors would sample noise without an error.
    expected = store.stage_facts(checkpoint, run.folder).get("pretrained")
    if pretrained.identity != expected:
        raise CheckpointError(
            f"{run.folder}: priors of another run: fitted on the codes of checkpoint {expected}, but "
            f"{pretrained.run.folder} holds {pretrained.identity}; run `mu fit-prior` with another --run"
        )
    with without_drawing():
        prior = build_prior(recipe, pretrained)
    try:
        prior.load_state_dict(fitting(prior, checkpoint.tensors["model"]), assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{run.folder}: its checkpoint does not fit its recipe") from error
    identity = store.identity(run.checkpoints, checkpoint.step)
    prior = prior.to(pretrained.device).eval()
    return FittedPriors(run, recipe, prior, pretrained, checkpoint.step, identity)
