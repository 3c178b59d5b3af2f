"""Say one line on stderr, clean of what a file name may bring with it."""

from __future__ import annotations

import click

from medunifier_cli.errors import one_line


def say(line: str) -> None:
    """Print `mu: ` and a line on stderr, see `errors.one_line`."""
    click.echo(f"mu: {one_line(line)}", err=True)
