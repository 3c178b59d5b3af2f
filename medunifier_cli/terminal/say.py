"""Say one line on stderr, or show a result on stdout, clean of what a file name may bring with it."""

from __future__ import annotations

import io
import sys

import click

from medunifier_cli.errors import one_line, printable
from medunifier_cli.terminal.output import quiet, verbose

WARNING = "warning: "
"""Begins a line that `-q` does not silence."""


def keep_any_letter() -> None:
    """Have stdout and stderr write out a letter that the terminal's encoding lacks.

    Hours of work must not end because of a letter of a report.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(line: str, always: bool = False) -> None:
    """Print `mu: ` and a line on stderr, see `errors.one_line`.

    Args:
        always: with `-q` too, as an error is; a line that begins with `warning: ` needs no such word.
    """
    if always or line.startswith(WARNING) or not quiet():
        click.echo(f"mu: {one_line(line)}", err=True)


def say_more(line: str) -> None:
    """Print a line on stderr that only `-v` asks for."""
    if verbose():
        say(line)


def counted(n: int, one: str, many: str = "") -> str:
    """`1 image`, `2,000 images`; `many` is the plural of a word that takes no plain `s`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def show(text: str, err: bool = False) -> None:
    """Print a result as a whole, see `errors.printable`.

    Args:
        err: on stderr, for what a script that reads the result should not get, and `-q` leaves out.
    """
    if not (err and quiet()):
        click.echo(printable(text), err=err)
