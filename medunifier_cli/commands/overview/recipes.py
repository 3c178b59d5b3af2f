"""`mu recipes [RECIPE]`."""

from __future__ import annotations

from pathlib import Path

import click

from medunifier_cli.options.shared import format_option, overrides_option, recipe_argument, refuse
from medunifier_cli.terminal.output import form
from medunifier_cli.terminal.say import say, show


@click.command()
@recipe_argument(required=False)
@overrides_option
@click.option(
    "--copy", "target", type=click.Path(path_type=Path), metavar="FILE",
    help="Copy RECIPE with its comments to a new file, to be changed there.",
)  # fmt: skip
@format_option
def recipes(recipe: str | None, overrides: tuple[str, ...], target: Path | None) -> None:
    """List the shipped recipes; or show RECIPE with every setting resolved and where each was set.

    RECIPE is a YAML file or the name of a shipped one. Settings that nothing set are marked as defaults;
    `docs/recipes.md` says what each means.
    """
    from medunifier_cli.overview.recipes import copy_recipe, explained, shipped_rows, with_origins

    if recipe is None:
        refuse({"overrides", "target"}, "is for one recipe; name it")
        from medunifier_cli.evaluate.render import render

        show(render(shipped_rows(), form(), words=4))
    elif target is not None:
        refuse({"overrides", "format"}, "has no effect on --copy, which leaves the recipe as it is")
        from medunifier_cli.recipe.load import load_any

        copy_recipe(recipe, target)
        name = load_any(target).name or target.stem
        say(f"{target}: copied; its runs are called {name} unless --name says otherwise")
    elif form() == "text":
        show(with_origins(recipe, overrides))
    else:
        from medunifier_cli.evaluate.render import render

        rows: list[list[object]] = [["key", "value", "origin"], *map(list, explained(recipe, overrides))]
        show(render(rows, form(), words=3))
