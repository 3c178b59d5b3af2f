"""Whether what a block types exists: verbs, options, choices, recipes, keys, files, make's targets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from medunifier_cli import cli
from medunifier_cli.data.loader import micro_batch_size
from medunifier_cli.errors import MuError
from medunifier_cli.plugin_index import load_dataset
from medunifier_cli.recipe.load import Recipe, load_any, shipped_recipes
from medunifier_cli.recipe.schema import PretrainRecipe
from tests.docs.blocks import Block, commands
from tests.folders import ROOT

TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def faults(block: Block) -> Iterator[str]:
    """What is wrong with the calls of a block of bash, each with its place."""
    for words in commands(block.text):
        name, rest = Path(words[0]).name, words[1:]
        try:
            if name == "mu":
                check_mu(rest)
            elif name == "make":
                check_make(rest)
            elif name in ("python", "pytest"):
                check_file(rest)
        except (click.ClickException, MuError, AssertionError) as error:
            message = error.format_message() if isinstance(error, click.ClickException) else str(error)
            yield f"{block.place}: {' '.join(words)}: {message}"


def check_mu(words: Sequence[str]) -> None:
    """Parse the words as click does, without opening any file; resolve recipe and keys."""
    context = click.Context(cli.mu)
    if not words or words[0].startswith("-"):
        cli.mu.make_parser(context).parse_args(list(words))
        return
    command = cli.mu.get_command(context, words[0])
    assert command is not None, "no such verb"
    context = click.Context(command, info_name=words[0], parent=context)
    values, left, _ = command.make_parser(context).parse_args(list(words[1:]))
    assert not left, f"words too many: {left}"
    for param in command.params:
        given = values.get(param.name or "")
        if isinstance(param.type, click.Choice) and isinstance(given, str):
            param.type.convert(given, param, context)
    settings = list(values.get("overrides") or values.get("options") or ())
    recipe = values.get("recipe")
    if isinstance(recipe, str) and (recipe in shipped_recipes() or not recipe.endswith(".yaml")):
        check_batch(load_any(recipe, settings), int(values.get("num_processes") or 0))
    if words[0] == "prepare" and isinstance(values.get("dataset"), str):
        check_options(str(values["dataset"]), settings)


def check_batch(recipe: Recipe, processes: int = 0) -> None:
    """The global batch divides by ranks and micro-batch, which `mu` asks when it starts."""
    if isinstance(recipe, PretrainRecipe):
        train = recipe.train
        micro_batch_size(train.global_batch, train.micro_batch, processes or train.processes or 1)


def check_options(dataset: str, settings: Sequence[str]) -> None:
    """Options of `mu prepare`, which are those of the data set."""
    if dataset != "my-xrays":  # what the how-to makes
        known = load_dataset(dataset).options
        unknown = [setting for setting in settings if setting.split("=")[0] not in known]
        assert not unknown, f"no such option of {dataset}: {unknown}"


def check_make(words: Sequence[str]) -> None:
    unknown = [word for word in words if "=" not in word and word not in TARGETS]
    assert not unknown, f"no such target: {unknown}"


def check_file(words: Sequence[str]) -> None:
    """A module or file of this project, and options that its folder's sources name."""
    if words[:1] == ["-m"] and words[1] in ("venv", "pip"):
        return
    path = Path(f"{words[1].replace('.', '/')}") if words[:1] == ["-m"] else None
    named = [Path(word) for word in words if word.endswith(".py")] if path is None else [path]
    for found in named:
        if len(found.parts) == 1:  # one's own, which the page makes
            continue
        places = [ROOT / found, ROOT / f"{found}.py"]
        assert any(place.exists() for place in places), f"no such file: {found}"
        folder = ROOT / found.parts[0]
        sources = "".join(file.read_text(encoding="utf-8") for file in folder.rglob("*.py"))
        unknown = [word for word in words if word.startswith("--") and f'"{word}"' not in sources]
        assert not unknown or folder.name == "tests", f"no such option: {unknown}"
