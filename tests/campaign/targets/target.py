"""What a fuzzed reader is, and the list of all of them."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SENTINEL = "SENTINELTEXT"
"""A word of the report texts in valid files, which no line and no traceback may show."""
MODULES = ("recipes", "texts", "shards", "runs", "downloads", "images", "weights")


@dataclass(frozen=True)
class Target:
    """A reader."""

    name: str
    share: int
    """Of all inputs, by comparison with the shares of the others."""
    files: Sequence[str]
    """Globs of the files that are damaged, one in each input."""
    make: Callable[[Path, Path], None]
    """Writes valid files into a folder, from the home of the campaign."""
    read: Callable[[Path, Path], object]
    """(folder, damaged file): reads that file in the way `mu` does, with those next to it."""
    fresh: bool = False
    """Whether reading changes the folder, so that each input needs a new one."""
    batch: int = 250
    """Inputs of one batch: fewer where reading is slow."""


@functools.cache
def all_targets() -> dict[str, Target]:
    """Every target by its name."""
    found = {}
    for name in MODULES:
        for target in importlib.import_module(f"tests.campaign.targets.{name}").TARGETS:
            found[target.name] = target
    return found


def call(*words: str) -> object:
    """A verb of `mu`, whose errors come out as they are."""
    import click

    from medunifier_cli.cli import mu

    command = mu.get_command(click.Context(mu), words[0])
    assert command is not None
    return command.main(list(words[1:]), standalone_mode=False)
