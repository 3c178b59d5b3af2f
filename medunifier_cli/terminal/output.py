"""The format of results and how much is told beside them, for this process and those that it starts.

The choice is in the environment, because ranks are processes of their own that inherit nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

FORMATS = ("text", "json", "csv", "markdown")
FORMAT, TALK = "MU_FORMAT", "MU_VERBOSITY"
"""Variables of `--format`, and of `-q` and `-v`."""
QUIET, VERBOSE = "quiet", "verbose"
Form = Literal["text", "json", "csv", "markdown"]


def form() -> str:
    """The format of results, one of `FORMATS`."""
    chosen = os.environ.get(FORMAT, "")
    return chosen if chosen in FORMATS else "text"


def quiet() -> bool:
    """Whether progress and notes are left out; warnings and errors never are."""
    return os.environ.get(TALK) == QUIET


def verbose() -> bool:
    """Whether more is told than usual."""
    return os.environ.get(TALK) == VERBOSE


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment, and put back what it was before."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
