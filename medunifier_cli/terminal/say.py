"""Say one line on stderr, or show a result on stdout, clean of what a file name may bring with it."""

from __future__ import annotations

import click

from medunifier_cli.errors import one_line, printable


def say(line: str) -> None:
    """Print `mu: ` and a line on stderr, see `errors.one_line`."""
    click.echo(f"mu: {one_line(line)}", err=True)


def show(text: str, err: bool = False) -> None:
    """Print a result as a whole, see `errors.printable`.

    Args:
        err: on stderr, for what a script that reads the result should not get.
    """
    click.echo(printable(text), err=err)
