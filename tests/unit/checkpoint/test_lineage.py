"""Which run was derived from which, and the run that a stage starts from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.lineage import base_of, made_from, pretrained_of, recipe_of
from medunifier_cli.checkpoint.pretrained import fill_pretrained, is_run_of, pretrained_run, run_for
from medunifier_cli.errors import CheckpointError
from medunifier_cli.recipe.load import dump_recipe, load_recipe
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.run.record import Run

Derived = FinetuneRecipe | PriorRecipe


def finetune_recipe(pretrained: str = "") -> FinetuneRecipe:
    return load_recipe("finetune-demo", (f"model.pretrained={pretrained}",), FinetuneRecipe)


def prior_recipe(pretrained: str = "") -> PriorRecipe:
    return load_recipe("prior-demo", (f"prior.pretrained={pretrained}",), PriorRecipe)


def write_run(
    root: Path, name: str, recipe: PretrainRecipe | Derived | str, trained_at: float | None = 0
) -> Run:
    """A run folder; with a checkpoint unless `trained_at` (seconds) is None."""
    run = Run(root / "runs" / name)
    run.folder.mkdir(parents=True)
    run.recipe.write_text(recipe if isinstance(recipe, str) else dump_recipe(recipe))
    if trained_at is not None:
        store.save(run.checkpoints, store.Checkpoint(1, {"model": {"w": torch.zeros(1)}}, {}), keep=1)
        for path in (run.recipe, run.checkpoints):
            os.utime(path, (trained_at, trained_at))
    return run


@pytest.fixture
def old(own_roots: Path) -> Run:
    return write_run(own_roots, "old", load_recipe("demo"), 100)


@pytest.fixture
def new(own_roots: Path) -> Run:
    return write_run(own_roots, "new", load_recipe("demo"), 200)


def test_derived_runs_are_those_that_name_this_one_however_they_spell_it(
    own_roots: Path, old: Run, new: Run
) -> None:
    write_run(own_roots, "b-by-name", finetune_recipe("old"))
    write_run(own_roots, "a-by-path", prior_recipe(str(old.folder / ".." / "old")))
    write_run(own_roots, "of-the-other", finetune_recipe("new"))
    write_run(own_roots, "of-a-deleted-one", prior_recipe("deleted"))
    write_run(own_roots, "of-none-yet", finetune_recipe())
    write_run(own_roots, "unreadable", "stage: [")
    assert [run.folder.name for run in made_from(old)] == ["a-by-path", "b-by-name"]
    assert [run.folder.name for run in made_from(new)] == ["of-the-other"]


def test_base_is_the_pretraining_run_itself_or_the_one_a_recipe_names(own_roots: Path, old: Run) -> None:
    tuned = write_run(own_roots, "tuned", finetune_recipe("old"))
    priors = write_run(own_roots, "priors", prior_recipe("old"))
    orphan = write_run(own_roots, "orphan", prior_recipe("deleted"))
    for run in (old, tuned, priors):
        base = base_of(run)
        assert base is not None
        assert base.folder == old.folder
    assert base_of(orphan) is None


def test_recipe_of_another_program_or_of_no_recipe_is_none(own_roots: Path) -> None:
    strange = write_run(own_roots, "strange", "bread: [500 g wheat\n")
    assert recipe_of(strange) is None
    assert recipe_of(Run(own_roots / "runs" / "nothing")) is None
    assert not is_run_of(strange, PretrainRecipe, FinetuneRecipe, PriorRecipe)


def test_a_run_belongs_to_one_stage_and_needs_a_checkpoint(own_roots: Path, old: Run) -> None:
    tuned = write_run(own_roots, "tuned", finetune_recipe("old"))
    begun = write_run(own_roots, "begun", load_recipe("demo"), trained_at=None)
    assert is_run_of(old, PretrainRecipe)
    assert not is_run_of(old, FinetuneRecipe, PriorRecipe)
    assert is_run_of(tuned, PretrainRecipe, FinetuneRecipe)
    assert not is_run_of(begun, PretrainRecipe)


def test_the_newest_run_of_the_right_stage_is_the_default(own_roots: Path, old: Run, new: Run) -> None:
    write_run(own_roots, "priors", prior_recipe("old"), 300)
    assert pretrained_run("", "report").folder == new.folder
    assert run_for("", "score --fake", PretrainRecipe, PriorRecipe).folder.name == "priors"
    assert pretrained_run("old", "report").folder == old.folder
    with pytest.raises(CheckpointError, match=r"fits `retrieve`: it needs `mu pretrain` first"):
        run_for("", "retrieve", FinetuneRecipe)


@pytest.mark.parametrize("recipe_from", [finetune_recipe, prior_recipe])
def test_start_is_the_given_run_then_the_recipes_then_the_earlier_one_then_the_newest(
    own_roots: Path, old: Run, new: Run, recipe_from: type[Derived]
) -> None:
    third = write_run(own_roots, "third", load_recipe("demo"), 150)
    resumed = write_run(own_roots, "resumed", recipe_from("old"))  # type: ignore[call-arg]
    empty, named = recipe_from(), recipe_from("third")  # type: ignore[call-arg]
    assert pretrained_of(fill_pretrained(named, "old", resumed.folder)) == "old"
    assert pretrained_of(fill_pretrained(named, "", resumed.folder)) == "third"
    assert pretrained_of(fill_pretrained(empty, "", resumed.folder)) == "old"
    assert pretrained_of(fill_pretrained(empty, "", own_roots / "runs" / "no-such")) == "new"
    assert pretrained_of(fill_pretrained(empty)) == "new"
    filled = fill_pretrained(empty, str(third.folder))
    assert filled == recipe_from("third"), "nothing else changes, and a run in the runs folder goes by name"  # type: ignore[call-arg]


def test_a_run_of_another_stage_in_the_folder_is_no_start(own_roots: Path, old: Run, new: Run) -> None:
    other = write_run(own_roots, "other", prior_recipe("old"))
    assert fill_pretrained(finetune_recipe(), "", other.folder).model.pretrained == "new"
    with pytest.raises(
        CheckpointError,
        match=r"other is a run of `mu fit-prior`; `mu finetune` needs a pre-trained one: --run old$",
    ):
        fill_pretrained(finetune_recipe(), "other")
    write_run(own_roots, "probe", finetune_recipe("old"))
    with pytest.raises(
        CheckpointError, match=r"probe is a fine-tuned run; `mu report` needs a pre-trained one: --run old$"
    ):
        pretrained_run("probe", "report")
    write_run(own_roots, "lost", finetune_recipe("gone"))
    with pytest.raises(CheckpointError, match=r"fine-tuned run; `mu report` needs a pre-trained one$"):
        pretrained_run("lost", "report")
    assert pretrained_run("other", "synthesize --reconstruct", PriorRecipe).folder == other.folder
    write_run(own_roots, "begun", load_recipe("demo"), trained_at=None)
    with pytest.raises(CheckpointError, match="begun: no checkpoint yet"):
        fill_pretrained(prior_recipe(), "begun")


def test_a_run_elsewhere_keeps_its_path(own_roots: Path, old: Run) -> None:
    moved = own_roots / "elsewhere"
    old.folder.rename(moved)
    assert fill_pretrained(prior_recipe(), str(moved)).prior.pretrained == str(moved.resolve())


def test_a_run_of_the_runs_folder_keeps_its_name_however_it_is_given(own_roots: Path, old: Run) -> None:
    """Both runs can then be moved together."""
    assert fill_pretrained(prior_recipe(), str(old.folder.resolve())).prior.pretrained == "old"
    (own_roots.parent / "link").symlink_to(old.folder.parent)
    assert fill_pretrained(prior_recipe(), str(own_roots.parent / "link" / "old")).prior.pretrained == "old"
