"""Say that something is being loaded, before an import that takes seconds leaves the screen empty."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

from medunifier_cli.terminal.say import say

SLOW = "torch"
"""The import that takes two seconds on a laptop, and many on a busy network file system."""


class _Announcer(importlib.abc.MetaPathFinder):
    """Finds no module, but is asked for each: says its line when the slow one is asked for."""

    def __init__(self, line: Callable[[], str]) -> None:
        self.line: Callable[[], str] | None = line

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        # not taken out of the list here: the import that goes through it would skip whoever is next
        if fullname == SLOW and self.line is not None:
            line, self.line = self.line, None
            say(line())
        return None


@contextmanager
def announced(line: Callable[[], str]) -> Iterator[None]:
    """Within this block say the line as soon as PyTorch is imported, which no verb does before it must.

    A process that has imported it already prints nothing.
    """
    announcer = _Announcer(line)
    if SLOW not in sys.modules:
        sys.meta_path.insert(0, announcer)
    try:
        yield
    finally:
        if announcer in sys.meta_path:
            sys.meta_path.remove(announcer)
