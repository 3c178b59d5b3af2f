"""The runs of a training verb: the one that it starts from and the one that it makes, under old names too.

`--run` once named the new run, and `--from` the one to start from.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, TypeVar

import click

from medunifier_cli.errors import MuError
from medunifier_cli.options import complete
from medunifier_cli.options.shared import note_old, run_option
from medunifier_cli.recipe.load import stage_of
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.roots import find_run, run_names, runs_root
from medunifier_cli.terminal.say import say

Verb = TypeVar("Verb", bound=Callable[..., Any])
ALIKE = 0.8
"""Likeness of two names, from 0 to 1, from which on one is taken for a misspelling of the other."""


SHOWN = 5
"""Runs that a message lists."""


def old_name_option(verb: Verb) -> Verb:
    """`--run` of a verb that starts from no run: the old spelling of `--name`."""
    return click.option("--run", "old_name", default="", hidden=True, help="Old spelling of --name.")(verb)


def name_of_new(name: str, old_name: str) -> str:
    """The name of the new run, from `--name` or its old spelling.

    Raises:
        click.UsageError: both are given.
    """
    if old_name and name:
        raise click.UsageError("--run is the old spelling of --name; give one of them")
    if old_name:
        note_old("--run", "--name")
    return name or old_name


def starting_run_options(verb: Verb) -> Verb:
    """`--run`, the pre-training run to start from; and `--from`, as it was called before."""
    old = click.option(
        "--from", "old_from", default="", hidden=True, shell_complete=complete.runs,
        help="Old spelling of --run.",
    )  # fmt: skip
    return run_option("the newest pre-trained one", "used")(old(verb))


def used_and_made(run: str, old_from: str, name: str) -> tuple[str, str]:
    """The run to start from and the name of the new one; either is empty where nothing says it.

    Args:
        run: of `--run`. With `--from`, or where it is no pre-training run and nothing else names the new run,
            it is meant as it once was: the name of the new run.
        old_from: of `--from`.
        name: of `--name`.

    Raises:
        click.UsageError: two options name one run.
        MuError: `run` is no run, and very much like the name of one, or there are several to start from.
    """
    if old_from:
        note_old("--from", "--run")
        if run and name:
            raise click.UsageError("--from is the old spelling of --run; give one of them")
        if run:
            note_old("--run for the new run", "--name")
        return old_from, run or name
    if not run or name or _is_pretraining(run):
        return run, name
    others = [other for other in run_names() if _is_pretraining(other)]
    near = difflib.get_close_matches(run, others, n=1, cutoff=ALIKE)
    if near and run not in run_names():
        raise MuError(
            f"no run `{run}` under {runs_root()}/; did you mean `{near[0]}`? A new run is named with --name"
        )
    if len(others) > 1 and run not in run_names():
        # the old spelling would start from the newest of them, which nobody asked for
        shown = ", ".join(others[:SHOWN]) + (", ..." if len(others) > SHOWN else "")
        raise MuError(
            f"no run `{run}` under {runs_root()}/; --run names the run to start from ({shown}), "
            "--name the new one"
        )
    say(f"--run names the run that is used; {run} is no pre-training run, so it names the new one: --name")
    return "", run


def _is_pretraining(name: str) -> bool:
    try:
        return stage_of(find_run(name) / "recipe.yaml") == PretrainRecipe.stage
    except MuError:
        return False
