"""What the shell offers for a word that is being typed: runs, recipes, data sets, and keys of a recipe.

Nothing here may raise or print: the shell would show it in the middle of the line. Modules that know recipes
and data sets are imported when they are asked, as every verb imports this one.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from contextlib import redirect_stderr
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from medunifier_cli.errors import MuError
from medunifier_cli.roots import prepared_names, run_names, runs_root


def runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the runs under `$MU_RUNS`, each with its stage; and folders."""
    names = _beginning(run_names(), incomplete)
    found = [CompletionItem(name, help=_stage(runs_root() / name / "recipe.yaml")) for name in names]
    # first: bash takes an item of this type for all, and offers folders where no name follows
    return [CompletionItem(incomplete, type="dir"), *found]


def recipes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shipped recipes of the verb's stage, or of every stage; and files."""
    from medunifier_cli.recipe.load import shipped_recipes
    from medunifier_cli.recipe.stages import SCHEMAS

    names = [
        CompletionItem(name, help=stage)
        for name in _beginning(shipped_recipes(), incomplete)
        if (stage := _stage(name)) == ctx.info_name or ctx.info_name not in SCHEMAS
    ]
    return [CompletionItem(incomplete, type="file"), *names]


def data_sets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Data sets that `mu prepare` knows."""
    from medunifier_cli.plugin_index import DATASETS, entries

    with redirect_stderr(io.StringIO()):  # two packages with one name are no matter of this word
        names = sorted(entries(DATASETS))
    return [CompletionItem(name) for name in _beginning(names, incomplete)]


def prepared(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Data sets that are prepared under `$MU_DATA`."""
    return [CompletionItem(name) for name in _beginning(prepared_names(), incomplete)]


def keys(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`KEY=` for each key of the verb's recipe; of the recipe that is typed where the verb takes any."""
    from medunifier_cli.recipe.settings import dotted_keys
    from medunifier_cli.recipe.stages import SCHEMAS

    # an option without its value, as this one is, ends the parsing: what was typed before it is in `args`
    typed = ctx.params.get("recipe") or next(iter(ctx.args), "")
    verb = ctx.info_name or ""
    stage = verb if verb in SCHEMAS else _stage(str(typed))
    if "=" in incomplete or stage not in SCHEMAS:
        return []
    every = list(dotted_keys(SCHEMAS[stage]))
    sections = {key.rpartition(".")[0] for key in every}
    leaves = [f"{key}=" for key in every if key not in sections]
    return [CompletionItem(key) for key in _beginning(leaves, incomplete)]


def _beginning(names: Iterable[str], start: str) -> list[str]:
    return [name for name in names if name.startswith(start)]


def _stage(recipe: str | Path) -> str:
    """The stage of a recipe; empty where there is none that can be read."""
    from medunifier_cli.recipe.load import stage_of

    try:
        return stage_of(recipe) if recipe else ""
    except (MuError, OSError):
        return ""
